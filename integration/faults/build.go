package main

// This file makes the daemon that is struck, and says what it was made of: a
// report is about one build, and a run that goes on with another has to say so.

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// buildDaemon makes understudyd with the tag crashpoints in a directory that
// every user may read. The caller removes the directory.
func buildDaemon(ctx context.Context) (program string, remove func() error, err error) {
	dir, err := os.MkdirTemp("", "understudy-faults-")
	if err != nil {
		return "", nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	program = filepath.Join(dir, "understudyd")
	build := exec.CommandContext(ctx, "go", "build", "-tags", "crashpoints", "-o", program, "understudy/cmd/understudyd")
	out, err := build.CombinedOutput()
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		_ = remove()
		return "", nil, fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	return program, remove, nil
}

// identify names the build of a program: the commit, or, of a work tree with
// changes or none that is known, also the program itself.
func identify(program string) (string, error) {
	revision, modified := "no commit known", true
	if info, err := buildinfo.ReadFile(program); err == nil {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				revision = s.Value[:min(len(s.Value), 12)]
			case "vcs.modified":
				modified = s.Value != "false"
			}
		}
	}
	if !modified {
		return revision, nil
	}
	f, err := os.Open(program)
	if err != nil {
		return "", fmt.Errorf("identify the daemon: %w", err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("identify the daemon: %w", err)
	}
	return revision + " with changes, program " + hex.EncodeToString(sum.Sum(nil)[:6]), nil
}
