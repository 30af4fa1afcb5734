package store

// This file opens a qcow2 image. Its format is not ours to write: QEMU's own
// storage daemon shows the image as a raw file through FUSE, and the store works
// on that view:
//
//	lock the image ── start qemu-storage-daemon (mount namespace of its own) ──
//	open its view through /proc/PID/root, direct I/O ── as any other store
//
// Direct I/O leaves nothing in a page cache of ours: each write is an answer of
// the daemon, and fdatasync is its flush of the image, format's tables included.
// The daemon dies with us (the kernel kills it) and its mount with the namespace,
// so that nobody is left who has the image open. If the daemon dies, every
// request fails from then on.
//
// Only a disk of our own can be such an image: the daemon keeps the format's
// tables in memory, so that a second host that reads the image while this one
// writes would see blocks where they are no longer.

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Via says how a qcow2 image is shown as a raw file.
type Via struct {
	// Program is qemu-storage-daemon's path; "" looks for it in $PATH.
	Program string
	// Dir is where the mount point goes; it is visible to the daemon alone. ""
	// is the system's directory for temporary files.
	Dir string
}

// stopWait is how long the storage daemon has to flush and end.
const stopWait = 10 * time.Second

// OpenVia opens a qcow2 image as a disk of our own. It waits until the storage
// daemon shows the image, or ctx ends. Needs root, for the mount.
func OpenVia(ctx context.Context, cfg Config, via Via) (*File, error) {
	f, err := openVia(ctx, cfg, via)
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", cfg.Path, err)
	}
	return f, nil
}

func openVia(ctx context.Context, cfg Config, via Via) (*File, error) {
	if cfg.Shared {
		return nil, errors.New("a qcow2 image cannot be a shared disk, since another host would read it by tables " +
			"that are out of date: convert it (qemu-img convert -O raw)")
	}
	if cfg.Create != 0 {
		return nil, errors.New("images are made with qemu-img create")
	}
	var err error
	if cfg.Path, err = filepath.Abs(cfg.Path); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	image, err := os.Open(cfg.Path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.Close() }() // only read
	if err := checkQcow2(image); err != nil {
		return nil, err
	}
	cfg.Direct = DirectAlways
	f := newFile(cfg)
	f.locker.plain = true // the daemon takes QEMU's locks
	err = f.openView(ctx, image, via)
	if err != nil {
		f.abandon()
		return nil, err
	}
	return f, nil
}

func (f *File) openView(ctx context.Context, image *os.File, via Via) error {
	if err := f.locker.open(f.cfg.Path, image, f.cfg.ReadOnly); err != nil {
		return err
	}
	wait, stop := context.WithTimeout(ctx, openWait)
	defer stop()
	if err := f.locker.wait(wait, !f.cfg.ReadOnly); err != nil {
		return err
	}
	if err := f.startVia(ctx, wait, via); err != nil {
		return err
	}
	if err := f.openData(f.via.view()); err != nil {
		return f.via.explain(err)
	}
	return f.ready(false)
}

// startVia starts the storage daemon. One of a process that was just killed may
// still be on its way out with QEMU's locks: it is waited for as long as our own
// lock.
func (f *File) startVia(ctx, wait context.Context, via Via) error {
	for {
		d, err := startDaemon(ctx, f.cfg, via)
		if err == nil {
			f.via = d
			return nil
		}
		if !strings.Contains(err.Error(), "lock") {
			return err
		}
		select {
		case <-wait.Done():
			return errors.Join(ErrLocked, err)
		case <-time.After(pollMost):
		}
	}
}

// checkQcow2 refuses an image that names other files: whoever made the image
// would choose which files of this host its disk shows (qemu docs/interop/qcow2:
// magic, backing_file_offset at 8, incompatible_features at 72, bit 2 external
// data file).
func checkQcow2(image io.ReaderAt) error {
	var h [80]byte
	if _, err := image.ReadAt(h[:], 0); err != nil || string(h[:4]) != "QFI\xfb" {
		return errors.New("not a qcow2 image: other formats must be converted (qemu-img convert -O raw)")
	}
	version := binary.BigEndian.Uint32(h[4:])
	switch {
	case version != 2 && version != 3:
		return fmt.Errorf("qcow2 version %d is not known", version)
	case binary.BigEndian.Uint64(h[8:]) != 0:
		return errors.New("it rests on a backing file: make it stand alone first (qemu-img rebase -b '')")
	case version == 3 && binary.BigEndian.Uint64(h[72:])&4 != 0:
		return errors.New("its data is in another file: convert it (qemu-img convert)")
	}
	return nil
}

// daemon is a storage daemon of ours.
type daemon struct {
	dir   string
	pid   int
	ended chan struct{} // closed when it has ended
	err   error         // how; valid then
	said  tail
}

func startDaemon(ctx context.Context, cfg Config, via Via) (*daemon, error) {
	program := via.Program
	if program == "" {
		program = "qemu-storage-daemon"
	}
	dir, err := os.MkdirTemp(via.Dir, "understudy-view-*")
	if err != nil {
		return nil, err
	}
	d := &daemon{dir: dir, ended: make(chan struct{})}
	if err := os.WriteFile(d.mountpoint(), nil, 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	node, err := json.Marshal(map[string]any{
		"driver": "qcow2", "node-name": "image", "discard": "unmap", "read-only": cfg.ReadOnly,
		"cache": map[string]bool{"direct": false, "no-flush": false},
		"file":  map[string]any{"driver": "file", "filename": cfg.Path, "discard": "unmap", "locking": "auto"},
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	export, err := json.Marshal(map[string]any{
		"type": "fuse", "id": "view", "node-name": "image", "mountpoint": d.mountpoint(),
		"writable": !cfg.ReadOnly, "growable": false, "allow-other": "off",
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	cmd := exec.Command(program, "--blockdev", string(node), "--export", string(export), "--pidfile", d.pidfile())
	cmd.Stderr = &d.said
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Pdeathsig: syscall.SIGKILL, Unshareflags: syscall.CLONE_NEWNS,
	}
	started := make(chan error, 1)
	go d.run(cmd, started)
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start %s (package qemu-system-common; needs root): %w", program, err), os.RemoveAll(dir))
	}
	if err := d.await(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

// run is the daemon's life. The kernel counts as its parent the thread that
// started it, and kills it when that ends: the thread stays as long as the
// daemon does.
func (d *daemon) run(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(d.ended)
	if d.err = cmd.Start(); d.err != nil {
		started <- d.err
		return
	}
	d.pid = cmd.Process.Pid
	started <- nil
	if d.err = cmd.Wait(); d.err == nil {
		d.err = errors.New("it has ended")
	}
}

func (d *daemon) mountpoint() string { return filepath.Join(d.dir, "view") }
func (d *daemon) pidfile() string    { return filepath.Join(d.dir, "pid") }

// view is the mount point as the daemon sees it.
func (d *daemon) view() string {
	return fmt.Sprintf("/proc/%d/root%s", d.pid, d.mountpoint())
}

// await waits until the image is shown: the daemon writes its process id once
// all is set up.
func (d *daemon) await(ctx context.Context) error {
	tick := time.NewTicker(pollFirst)
	defer tick.Stop()
	for {
		if info, err := os.Stat(d.pidfile()); err == nil && info.Size() > 0 {
			return nil
		}
		select {
		case <-d.ended:
			return d.explain(errors.New("the storage daemon does not start"))
		case <-ctx.Done():
			return fmt.Errorf("wait for the storage daemon: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// explain adds to an error that the daemon has ended, and how.
func (d *daemon) explain(err error) error {
	if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
		// Its end may be a moment away from being known.
		select {
		case <-d.ended:
		case <-time.After(time.Second):
		}
	}
	select {
	case <-d.ended:
		return fmt.Errorf("%w (storage daemon: %w: %s)", err, d.err, d.said.text())
	default:
		return err
	}
}

// stop ends the daemon: it flushes the image and closes it. An error says that it
// did not do so in peace.
func (d *daemon) stop() error {
	err := error(nil)
	select {
	case <-d.ended:
		err = fmt.Errorf("the storage daemon had ended before: %w", d.err)
	default:
		// The process is not waited for yet, so that its id is its own.
		_ = unix.Kill(d.pid, unix.SIGTERM)
		timer := time.NewTimer(stopWait)
		defer timer.Stop()
		select {
		case <-d.ended:
			var exit *exec.ExitError
			if errors.As(d.err, &exit) {
				err = fmt.Errorf("the storage daemon failed: %w: %s", d.err, d.said.text())
			}
		case <-timer.C:
			_ = unix.Kill(d.pid, unix.SIGKILL)
			<-d.ended
			err = fmt.Errorf("the storage daemon did not end within %v and was killed", stopWait)
		}
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// tail keeps the last bytes that were written to it.
type tail struct {
	mu   sync.Mutex
	last []byte
}

const tailMost = 1 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, p...)
	t.last = t.last[max(0, len(t.last)-tailMost):]
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.last))
}
