package store

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
	return string(out)
}

func makeQcow2(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image, with comma.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", path, "64M")
	return path
}

func openImage(t *testing.T, path string) *File {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	f, err := OpenVia(ctx, Config{Path: path, Host: "alpha"}, Via{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestQcow2: an image is a disk like another: what is written is there again, in
// the image, and a discard gives space back.
func TestQcow2(t *testing.T) {
	path := makeQcow2(t)
	f := openImage(t, path)
	direct, memory, io := f.IsDirect()
	t.Logf("direct %v, memory %d, blocks %d", direct, memory, io)
	if !direct || f.Sectors() != 64<<20/512 {
		t.Fatalf("direct %v, %d sectors", direct, f.Sectors())
	}
	full := bytes.Repeat([]byte{0xa5}, 8<<20)
	if err := errors.Join(f.Acquire(t.Context(), 1), f.WriteAt(full, 0), f.WriteAt(full[:512], 40001), f.Sync()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: path}); !errors.Is(err, ErrLocked) {
		t.Fatalf("the image is open twice: %v", err)
	}
	used := blocksOf(t, path)
	if err := errors.Join(f.Zero(0, 12<<10, true), f.Zero(12<<10, 1, false), f.Sync()); err != nil {
		t.Fatal(err)
	}
	if now := blocksOf(t, path); now > used-5<<20 {
		t.Errorf("a discard of 6 MiB gave %d bytes back", used-now)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if out := qemuImg(t, "check", path); !strings.Contains(out, "No errors") {
		t.Fatal(out)
	}
	f = openImage(t, path)
	got := make([]byte, 8<<20)
	if err := f.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	clear(full[:12<<10*512+512])
	if !bytes.Equal(got, full) {
		t.Fatal("content differs after it was opened again")
	}
}

func blocksOf(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestStorageDaemonKilled: what was synced is in the image, and every request
// afterwards fails.
func TestStorageDaemonKilled(t *testing.T) {
	path := makeQcow2(t)
	f := openImage(t, path)
	full := bytes.Repeat([]byte{0x5a}, 1<<20)
	if err := errors.Join(f.WriteAt(full, 100), f.Sync(), f.WriteAt(full, 90000)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(f.via.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-f.via.ended
	one := make([]byte, 512)
	for name, err := range map[string]error{
		"write": f.WriteAt(one, 0), "sync": f.Sync(), "zero": f.Zero(0, 8, true), "read": f.ReadAt(one, 200),
	} {
		if err == nil || !strings.Contains(err.Error(), "storage daemon: signal: killed") {
			t.Errorf("%s with the daemon dead: %v", name, err)
		}
	}
	if err := f.Close(); err == nil {
		t.Error("closing says nothing of the daemon's death")
	}
	f = openImage(t, path)
	got := make([]byte, len(full))
	if err := f.ReadAt(got, 100); err != nil || !bytes.Equal(got, full) {
		t.Fatalf("what was synced is lost: %v", err)
	}
}

// TestStorageDaemonDoesNotOutliveUs: a process with an image open is killed, and
// its storage daemon with it.
func TestStorageDaemonDoesNotOutliveUs(t *testing.T) {
	path := makeQcow2(t)
	other := otherProcess(t, path)
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	openImage(t, path) // gets both locks, ours and QEMU's
}

func TestQcow2Refused(t *testing.T) {
	path := makeQcow2(t)
	overlay := filepath.Join(t.TempDir(), "overlay")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", overlay)
	outside := filepath.Join(t.TempDir(), "outside")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+outside+".raw", outside, "1M")
	for _, c := range []struct {
		name string
		cfg  Config
		via  Via
		want string
	}{
		{"shared", Config{Path: path, Shared: true}, Via{}, "cannot be a shared disk"},
		{"backing file", Config{Path: overlay}, Via{}, "backing file"},
		{"data in another file", Config{Path: outside}, Via{}, "another file"},
		{"raw", Config{Path: makeFile(t, t.TempDir(), 8)}, Via{}, "not a qcow2 image"},
		{"no daemon", Config{Path: path}, Via{Program: "/nonexistent", Dir: t.TempDir()}, "/nonexistent"},
		{"daemon that fails", Config{Path: path}, Via{Program: "/bin/false", Dir: t.TempDir()}, "does not start"},
	} {
		if _, err := OpenVia(t.Context(), c.cfg, c.via); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
