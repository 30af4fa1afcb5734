package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holderEnv makes the test binary a process that holds a disk's lock.
const holderEnv = "STORE_TEST_HOLD"

func holdLock(path string) {
	var f *File
	var err error
	if strings.HasSuffix(path, ".qcow2") {
		f, err = OpenVia(context.Background(), Config{Path: path, Host: "beta"}, Via{Dir: filepath.Dir(path)})
	} else {
		f, err = Open(Config{Path: path, Shared: true, Host: "beta"})
	}
	if err == nil {
		err = f.Acquire(context.Background(), 5)
	}
	fmt.Println("held", err)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	if err := f.Close(); err != nil {
		fmt.Println(err)
	}
}

// otherProcess starts a process that has acquired the disk in generation 5.
func otherProcess(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holderEnv+"="+path)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "held <nil>" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	return cmd
}

// TestLockFight: another process has the disk. While it lives, even stopped, we
// do not get it; when it is killed, the waiter does.
func TestLockFight(t *testing.T) {
	path := makeFile(t, t.TempDir(), testSectors)
	other := otherProcess(t, path)
	f, err := Open(Config{Path: path, Shared: true, Host: "alpha"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.WriteAt(make([]byte, 512), 0); !errors.Is(err, ErrNotWriter) {
		t.Fatalf("a write without the lock: %v", err)
	}
	for _, stopped := range []bool{false, true} {
		if stopped {
			if err := other.Process.Signal(unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
		ctx, stop := context.WithTimeout(t.Context(), 150*time.Millisecond)
		err := f.Acquire(ctx, 6)
		stop()
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "beta") {
			t.Fatalf("stopped %v: %v", stopped, err)
		}
	}
	got := make(chan error, 1)
	go func() { got <- f.Acquire(t.Context(), 6) }()
	killed := time.Now()
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	t.Logf("the waiter had the lock %v after the holder was killed", time.Since(killed))
	if err := f.WriteAt(make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
}

// TestGenerations: an owner that was overtaken does not become the writer.
func TestGenerations(t *testing.T) {
	path := makeFile(t, t.TempDir(), testSectors)
	open := func(host string) *File {
		f, err := Open(Config{Path: path, Shared: true, Host: host})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	a, b := open("alpha"), open("beta")
	step := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
	}
	step("first owner", a.Acquire(t.Context(), 3), nil)
	step("again", a.Acquire(t.Context(), 3), nil)
	step("a later generation of the same", a.Acquire(t.Context(), 4), nil)
	step("back", a.Acquire(t.Context(), 3), ErrStale)
	step("still the writer", a.WriteAt(make([]byte, 512), 0), nil)
	step("let go", a.Release(), nil)
	step("twice", a.Release(), nil)
	step("not the writer", a.Zero(0, 1, true), ErrNotWriter)
	step("the other, too low", b.Acquire(t.Context(), 3), ErrStale)
	step("the other, same generation", b.Acquire(t.Context(), 4), ErrStale)
	step("the other", b.Acquire(t.Context(), 5), nil)
	step("it writes", b.WriteAt(make([]byte, 512), 0), nil)
	step("it lets go", b.Release(), nil)
	step("the stale one", a.Acquire(t.Context(), 4), ErrStale)
	step("a refusal lets go of the lock", b.Acquire(t.Context(), 6), nil)
	if r, err := a.Record(); err != nil || r.Generation != 5 {
		t.Fatalf("record before anything is written: %+v, %v", r, err)
	}
	step("it writes again", b.WriteAt(make([]byte, 512), 0), nil)
	if r, err := a.Record(); err != nil || r.Generation != 6 || r.Owner != "beta" {
		t.Fatalf("record %+v, %v", r, err)
	}
}

// TestOwnDiskIsLockedFromOpenOn: a copy of our own has one daemon, and no QEMU
// beside it.
func TestOwnDiskIsLockedFromOpenOn(t *testing.T) {
	path := makeFile(t, t.TempDir(), testSectors)
	first := open(t, Config{Path: path})
	if _, err := Open(Config{Path: path}); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second opening: %v", err)
	}
	qemu := func() (string, error) {
		out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", path).CombinedOutput()
		return string(out), err
	}
	if out, err := qemu(); err == nil || !strings.Contains(out, "lock") {
		t.Fatalf("QEMU writes to our disk: %s, %v", out, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := qemu(); err != nil {
		t.Fatalf("QEMU is kept out of a disk that nobody has: %s, %v", out, err)
	}
}

// What the kernel still does for a process that was killed holds the file open, and
// so the lock, if it is that description's.
func TestTheLockOutlivesWhatIsUnderWay(t *testing.T) {
	f := open(t, Config{Path: makeFile(t, t.TempDir(), testSectors), Shared: true})
	other, err := os.OpenFile(f.cfg.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		t.Error("another description gets the lock")
	}
	if err := unix.Flock(f.fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the description that requests are made with has not the lock: %v", err)
	}
}
