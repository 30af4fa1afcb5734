package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func hash(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// room is what a file takes on the disk, in bytes.
func room(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestSmallImageIsTheSameEverywhereCleanAndSparse(t *testing.T) {
	one, err := Small(t.Context(), filepath.Join(t.TempDir(), "new", "directory"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := Small(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(one) != filepath.Base(other) {
		t.Errorf("one recipe, two names: %s and %s", one, other)
	}
	if hash(t, one) != hash(t, other) {
		t.Error("one recipe, two contents")
	}
	if err := Fsck(t.Context(), one); err != nil {
		t.Error(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := Copy(copied, one); err != nil {
		t.Fatal(err)
	}
	if hash(t, one) != hash(t, copied) || room(t, copied) > 48*mib {
		t.Errorf("a copy differs, or is not sparse: %d MiB", room(t, copied)/mib)
	}
	if err := Copy(copied, one); !errors.Is(err, os.ErrExist) {
		t.Errorf("a copy over a file gives %v", err)
	}
}

func TestAnImageIsMadeOnceAndReplacesThoseOfOldRecipes(t *testing.T) {
	dir, made := t.TempDir(), 0
	build := func(recipe string) string {
		t.Helper()
		path, err := built(dir, "kind", recipe, func(path string) error {
			made++
			return os.WriteFile(path, []byte(recipe), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	old := build("one")
	if again := build("one"); again != old || made != 1 {
		t.Errorf("made %d times, %s and %s", made, old, again)
	}
	fresh := build("two")
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || filepath.Join(dir, left[0].Name()) != fresh {
		t.Errorf("left are %v, %v", left, err)
	}
	_, err = built(dir, "kind", "three", func(path string) error {
		return errors.Join(os.WriteFile(path, nil, 0o644), errors.New("the disk is full"))
	})
	if err == nil {
		t.Fatal("a failure is kept to itself")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("after a failure %v are left, %v", left, err)
	}
}

func TestFsckSeesDamage(t *testing.T) {
	small, err := Small(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, harm := range map[string]struct {
		at   int64
		with []byte
		says string
	}{
		"an error the kernel noted": {1024 + 0x3a, []byte{3}, "the kernel noted"},
		"no file system":            {1024 + 0x38, []byte{0, 0}, "no ext4"},
		"an inode overwritten":      {firstInodes(t, small) + 11*256, bytes.Repeat([]byte{0xff}, 256), "inode"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			if err := Copy(path, small); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt(harm.with, harm.at)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			err = Fsck(t.Context(), path)
			var unclean *Unclean
			if !errors.As(err, &unclean) || !strings.Contains(err.Error(), harm.says) {
				t.Errorf("Fsck says %v, want something of %q", err, harm.says)
			}
		})
	}
	if err := Fsck(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no image gives %v", err)
	}
}

// firstInodes is where group 0 has its inodes, in bytes.
func firstInodes(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var d [12]byte // of the first group descriptor, in the block after the superblock's
	if _, err := f.ReadAt(d[:], 4096); err != nil {
		t.Fatal(err)
	}
	return (int64(d[8]) | int64(d[9])<<8 | int64(d[10])<<16 | int64(d[11])<<24) * 4096
}
