package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/checkpoint"
	"understudy/config"
	"understudy/disk"
	"understudy/epoch"
	"understudy/hypervisor/qemu"
)

// TestAFileNamesWhatTheGuestWasStartedWith: the kernel and the initrd of a guest,
// with and without a disk, are in its checkpoint files, and must be there again,
// with the same content, before one is restored.
func TestAFileNamesWhatTheGuestWasStartedWith(t *testing.T) {
	for _, c := range []struct {
		name      string
		disk      bool
		exclusion config.Exclusion
		want      []epoch.DiskID
	}{
		{"a guest with a disk", true, config.ExclusionOn, []epoch.DiskID{0, disk.InitrdID, disk.KernelID}},
		{"a guest without one", false, config.ExclusionOn, []epoch.DiskID{disk.InitrdID, disk.KernelID}},
		{"nothing is to be left out", true, config.ExclusionOff, []epoch.DiskID{0}},
		{"of a guest without a disk", false, config.ExclusionOff, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			kernel, initrd := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
			write := func(path string, fill byte) {
				t.Helper()
				if err := os.WriteFile(path, bytes.Repeat([]byte{fill, fill + 1}, 10000), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(kernel, 'k')
			write(initrd, 'i')
			g := config.Guest{Name: "web", Memory: 64 * config.MiB, Kernel: kernel, Initrd: initrd}
			g.Protection.Exclusion = c.exclusion
			if c.disk {
				g.Disks = []config.Disk{{Path: filepath.Join(dir, "disk"), Mode: config.Replicated, Size: config.MiB}}
			}
			self := config.Host{Name: "alpha", Dirs: config.Dirs{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}}
			o := Options{Config: &config.Config{}, Slog: slog.New(slog.DiscardHandler)}
			s, err := newDisks(o, self, g, nil, qemu.Config{RunDir: filepath.Join(dir, "web")})
			if err != nil {
				t.Fatal(err)
			}
			if s == nil {
				if c.want != nil || s.history() != nil || s.orNone() != nil {
					t.Error("there is nothing to remember")
				}
				return
			}
			defer func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			s.Own(1)
			for begin := time.Now(); !written(s) && time.Since(begin) < 10*time.Second; {
				runtime.Gosched() // its lock is being got
			}
			h := s.history()
			if _, key := h.Finder(); key != s.key {
				t.Error("the fingerprints have another key")
			}
			marked, err := h.Mark("")
			if err != nil {
				t.Fatal(err)
			}
			var ids []epoch.DiskID
			for _, d := range marked {
				ids = append(ids, d.ID)
			}
			if !slices.Equal(ids, c.want) {
				t.Fatalf("the file names disks %v, want %v", ids, c.want)
			}
			s.Shut()
			if err := s.StandBy(t.Context()); err != nil { // the guest is stopped
				t.Fatal(err)
			}
			check := func() error {
				t.Helper()
				now, err := h.Conditions()
				if err != nil {
					t.Fatal(err)
				}
				return checkpoint.CheckDisks(checkpoint.Head{Disks: marked}, now)
			}
			if err := check(); err != nil {
				t.Errorf("nothing has changed: %v", err)
			}
			if err := h.Rollback(t.Context(), 1, marked, func(context.Context) error { return nil }); err != nil {
				t.Errorf("there is nothing to roll back: %v", err)
			}
			if c.exclusion == config.ExclusionOff {
				return
			}
			blocks, release, err := h.Blocks(marked)
			if err != nil {
				t.Fatal(err)
			}
			page := make([]byte, epoch.PageSize)
			if err := blocks.ReadSectors(disk.InitrdID, 3, page); err != nil || page[0] != 'i' {
				t.Errorf("the initrd begins with %q: %v", page[0], err)
			}
			release()
			write(kernel, 'x')
			if err := check(); !errors.Is(err, checkpoint.ErrStale) || !strings.Contains(err.Error(), kernel) {
				t.Errorf("another kernel: %v", err)
			}
			write(kernel, 'k')
			if err := os.Remove(initrd); err != nil {
				t.Fatal(err)
			}
			if err := check(); err == nil || !strings.Contains(err.Error(), initrd) {
				t.Errorf("no initrd: %v", err)
			}
			write(initrd, 'i')
			if err := check(); err != nil {
				t.Errorf("all is as it was: %v", err)
			}
			// A file from before these were looked at has no need of them.
			marked = marked[:len(marked)-2]
			if err := check(); err != nil {
				t.Errorf("a file that names none: %v", err)
			}
		})
	}
}

// TestAKernelThatChangesUnderASave fails it.
func TestAKernelThatChangesUnderASave(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	at := time.Now()
	put := func(fill byte) {
		t.Helper()
		if err := os.WriteFile(kernel, bytes.Repeat([]byte{fill}, 10000), 0o600); err != nil {
			t.Fatal(err)
		}
		at = at.Add(time.Second) // two writes may come between two ticks of the file system's clock
		if err := os.Chtimes(kernel, at, at); err != nil {
			t.Fatal(err)
		}
	}
	put('k')
	g := config.Guest{Name: "web", Memory: 64 * config.MiB, Kernel: kernel}
	g.Protection.Exclusion = config.ExclusionOn
	s, err := newDisks(Options{Config: &config.Config{}, Slog: slog.New(slog.DiscardHandler)}, config.Host{Name: "alpha"}, g, nil, qemu.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	s.Own(1)
	s.Pass()
	h := s.history()
	finder, key := h.Finder()
	page := bytes.Repeat([]byte{'k'}, epoch.PageSize)
	if _, _, ok := finder.FindPrint(3, key.Of(page)); !ok {
		t.Fatal("a page of the kernel is not found")
	}
	put('x')
	s.LookAtBoot() // as others do at any time
	if marked, err := h.Mark(""); err == nil || !strings.Contains(err.Error(), "save it again") {
		t.Errorf("marked %v, %v", marked, err)
	}
	finder, key = h.Finder()
	if _, _, ok := finder.FindPrint(3, key.Of(page)); ok {
		t.Error("a page of the former kernel is still found")
	}
	if marked, err := h.Mark(""); err != nil || len(marked) > 0 {
		t.Errorf("saved again, the file names %v: %v", marked, err)
	}
}

// written reports whether this host is the writer of every disk.
func written(s *served) bool {
	for _, d := range s.Status().Disks {
		if !d.Writer {
			return false
		}
	}
	return true
}
