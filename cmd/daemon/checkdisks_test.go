package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/config"
	"understudy/hypervisor/qemu"
)

func TestCheckHostLooksAtTheDisks(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int64) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		disk config.Disk
		want qemu.Status
		says string
		fact string
	}{
		{"there", config.Disk{Mode: config.Replicated, Path: file("a", 1<<20)}, qemu.StatusOK, "replicated, 1 MiB", "replicated, 1048576 bytes"},
		{"to be made", config.Disk{Mode: config.Replicated, Path: filepath.Join(dir, "b"), Size: 2 << 20}, qemu.StatusOK, "will be made, 2 MiB", "replicated, 2097152 bytes"},
		{"missing", config.Disk{Mode: config.Replicated, Path: filepath.Join(dir, "c")}, qemu.StatusFail, "no such file", "not known"},
		{"shared and missing", config.Disk{Mode: config.Shared, Path: filepath.Join(dir, "d"), Size: 1 << 20}, qemu.StatusFail, "no such file", "not known"},
		{"odd", config.Disk{Mode: config.Replicated, Path: file("e", 1000)}, qemu.StatusFail, "sectors of 512", "not known"},
		{"empty", config.Disk{Mode: config.Replicated, Path: file("f", 0)}, qemu.StatusFail, "0 bytes", "not known"},
		{"no disk", config.Disk{Mode: config.Replicated, Path: fifo}, qemu.StatusFail, "neither", "not known"},
		{"no room", config.Disk{Mode: config.Replicated, Path: file("g", 1<<42)}, qemu.StatusWarn, "may grow", "4398046511104 bytes"},
		{"no directory", config.Disk{Mode: config.Replicated, Path: filepath.Join(dir, "x", "h"), Size: 1 << 20}, qemu.StatusFail, "no such file", "not known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r qemu.Report
			checkDisks(&r, "alpha", config.Guest{Disks: []config.Disk{c.disk}})
			if len(r.Checks) != 1 || len(r.Facts.Disks) != 1 {
				t.Fatalf("got %+v", r)
			}
			got := r.Checks[0]
			if got.Status != c.want || got.Name != "disk 0" || !strings.Contains(got.Detail, c.says) || (got.Status != qemu.StatusOK) != (got.Remedy != "") {
				t.Errorf("got %+v, want %s that says %q, and a remedy if it is not ok", got, c.want, c.says)
			}
			if !strings.Contains(r.Facts.Disks[0], c.fact) {
				t.Errorf("fact %q, want %q", r.Facts.Disks[0], c.fact)
			}
		})
	}
}
