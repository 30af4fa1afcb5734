package cpio

// This file makes an initramfs of a single program, for guests that need no more.

import (
	"bytes"
	"os"
	"path/filepath"
)

// Initramfs writes an initramfs with one program, and the console that it is started
// with, to path.
func Initramfs(program, path string) error {
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	w := NewWriter(&archive)
	for _, step := range []func() error{
		func() error { return w.Dir("dev", 0o755) },
		func() error { return w.CharDevice("dev/console", 0o600, 5, 1) },
		func() error { return w.File(filepath.Base(program), 0o755, text) },
		w.Close,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return os.WriteFile(path, archive.Bytes(), 0o644)
}
