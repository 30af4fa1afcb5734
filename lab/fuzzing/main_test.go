package main

import (
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../.."

// TestCorporaAreBoundedAndWanted: a corpus without its target is never run, and
// one that grows without end slows every test.
func TestCorporaAreBoundedAndWanted(t *testing.T) {
	targets, err := find(root)
	if err != nil {
		t.Fatal(err)
	}
	wanted := map[string]bool{}
	for _, target := range targets {
		wanted[target.corpus()] = true
	}
	if len(targets) < 40 {
		t.Errorf("only %d targets were found", len(targets))
	}
	corpora := 0
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() || filepath.Base(filepath.Dir(p)) != "fuzz" || filepath.Base(filepath.Dir(filepath.Dir(p))) != "testdata" {
			return nil
		}
		corpora++
		if !wanted[p] {
			t.Errorf("%s is the corpus of no target", p)
		}
		files, bytes, err := size(p)
		if files > maxFiles || bytes > maxBytes {
			t.Errorf("%s holds %d files, %d bytes: at most %d and %d", p, files, bytes, maxFiles, maxBytes)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if corpora == 0 {
		t.Error("no corpus was found")
	}
}

// TestProgressIsRead reads what Go's fuzzer says.
func TestProgressIsRead(t *testing.T) {
	const said = "fuzz: elapsed: 30s, execs: 201683 (0/sec), new interesting: 10 (total: 25)"
	if m := progress.FindStringSubmatch(said); m == nil || strings.Join(m[1:], " ") != "201683 10" {
		t.Errorf("%q was read as %q", said, m)
	}
	const profile = "mode: set\nunderstudy/a/b.go:1.2,3.4 2 1\nunderstudy/a/b.go:5.2,6.4 1 0\n"
	if m := blockForm.FindAllStringSubmatch(profile, -1); len(m) != 1 || m[0][1] != "understudy/a/b.go:1.2,3.4" {
		t.Errorf("the profile was read as %q", m)
	}
}
