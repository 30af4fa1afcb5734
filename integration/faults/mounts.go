package main

// This file makes file systems that fail when they are told to: FUSE in front of
// the disks, so that the daemon's own system calls, io_uring's too, see errors,
// short writes and delays; and a small tmpfs under each host's state, which can
// be filled.
//
//	daemon ── write(2) ──> kernel ── FUSE ──> this process: fail? tear? wait? ──> the real file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"understudy/config"
	"understudy/demo/world"
)

// ail is what a file suffers from. Its zero value is nothing.
type ail struct {
	write, sync, read syscall.Errno // what these calls end with
	torn              bool          // a write that fails has written its first half
	short             bool          // a write takes its first half, and says so
	slow              time.Duration // each call takes so much longer
}

// patients are the files of one mount by their names.
type patients struct {
	under string // the directory behind it

	mu   sync.Mutex
	ails map[string]ail
	hit  map[string]int // calls that suffered
}

// give has a file suffer from a until the next give.
func (p *patients) give(name string, a ail) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ails[name], p.hit[name] = a, 0
}

// heal ends all, and tells how many calls suffered.
func (p *patients) heal() (hits int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, n := range p.hit {
		hits += n
		delete(p.hit, name)
		delete(p.ails, name)
	}
	return hits
}

func (p *patients) of(name string, does func(a ail) bool) ail {
	p.mu.Lock()
	a := p.ails[name]
	if does(a) || a.slow > 0 {
		p.hit[name]++
	}
	p.mu.Unlock()
	if a.slow > 0 {
		time.Sleep(a.slow) // what a slow disk does
	}
	return a
}

// node is a file or directory of the mount; all but opening is the loopback's.
type node struct {
	fs.LoopbackNode
	p *patients
}

// WrapChild implements fs.NodeWrapChilder.
func (n *node) WrapChild(context.Context, fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{fs.LoopbackNode{RootData: n.RootData}, n.p}
}

// Open implements fs.NodeOpener.
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	path := filepath.Join(n.RootData.Path, n.Path(n.Root()))
	// Direct I/O is between the daemon and the kernel; we are behind it.
	f, err := os.OpenFile(path, int(flags)&^(unix.O_DIRECT|os.O_APPEND|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW), 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	return &handle{f, filepath.Base(path), n.p}, fuse.FOPEN_DIRECT_IO, 0
}

// Create implements fs.NodeCreater.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, made, _, errno := n.LoopbackNode.Create(ctx, name, flags&^unix.O_DIRECT, mode, out)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	if r, ok := made.(fs.FileReleaser); ok {
		_ = r.Release(ctx)
	}
	path := filepath.Join(n.RootData.Path, n.Path(n.Root()), name)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, 0, fs.ToErrno(err)
	}
	return inode, &handle{f, name, n.p}, fuse.FOPEN_DIRECT_IO, 0
}

// handle is an open file.
type handle struct {
	f    *os.File
	name string
	p    *patients
}

// Read implements fs.FileReader.
func (h *handle) Read(_ context.Context, dst []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if a := h.p.of(h.name, func(a ail) bool { return a.read != 0 }); a.read != 0 {
		return nil, a.read
	}
	n, err := unix.Pread(int(h.f.Fd()), dst, off)
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(dst[:n]), 0
}

// Write implements fs.FileWriter.
func (h *handle) Write(_ context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	a := h.p.of(h.name, func(a ail) bool { return a.write != 0 || a.short })
	half := len(data) / 2 &^ 511
	switch {
	case a.torn:
		data = data[:half]
	case a.short && half > 0:
		data = data[:half]
		a.write = 0
	case a.write != 0:
		return 0, a.write
	}
	n, err := unix.Pwrite(int(h.f.Fd()), data, off)
	if err != nil {
		return 0, fs.ToErrno(err)
	}
	return uint32(n), a.write
}

// Fsync implements fs.FileFsyncer.
func (h *handle) Fsync(context.Context, uint32) syscall.Errno {
	if a := h.p.of(h.name, func(a ail) bool { return a.sync != 0 }); a.sync != 0 {
		return a.sync
	}
	return fs.ToErrno(unix.Fdatasync(int(h.f.Fd())))
}

// Allocate implements fs.FileAllocater: discards and zeroes.
func (h *handle) Allocate(_ context.Context, off, size uint64, mode uint32) syscall.Errno {
	if a := h.p.of(h.name, func(a ail) bool { return a.write != 0 }); a.write != 0 {
		return a.write
	}
	return fs.ToErrno(unix.Fallocate(int(h.f.Fd()), mode, int64(off), int64(size)))
}

// Flush implements fs.FileFlusher.
func (h *handle) Flush(context.Context) syscall.Errno { return 0 }

// Release implements fs.FileReleaser.
func (h *handle) Release(context.Context) syscall.Errno { return fs.ToErrno(h.f.Close()) }

// mountDisks puts the failing file system at dir, in front of a directory that
// goes with it.
func (p *patients) mountDisks(dir string) (unmount func() error, err error) {
	under, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+"-under-")
	if err != nil {
		return nil, err
	}
	p.under = under
	root := &fs.LoopbackRoot{Path: under}
	top := &node{fs.LoopbackNode{RootData: root}, p}
	root.RootNode = top
	none := time.Duration(0)
	server, err := fs.Mount(dir, top, &fs.Options{EntryTimeout: &none, AttrTimeout: &none, MountOptions: fuse.MountOptions{
		DirectMountStrict: true, FsName: "understudy-faults", Name: "faults", DisableXAttrs: true, MaxWrite: 1 << 20}})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(under))
	}
	return func() error {
		// By force: whoever on this machine has copied our mounts into a namespace of
		// its own meanwhile would otherwise keep the file system, and us, alive.
		err := unix.Unmount(dir, unix.MNT_FORCE)
		if err != nil {
			err = unix.Unmount(dir, unix.MNT_DETACH)
		}
		server.Wait()
		return errors.Join(err, os.RemoveAll(under))
	}, nil
}

// stateSize is room for a log of ownership, and quickly filled.
const stateSize = 64 << 20

// mountState puts a small file system under a host's state.
func mountState(h config.Host) (func() error, error) {
	if err := os.MkdirAll(h.State, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", h.State, "tmpfs", 0, fmt.Sprintf("size=%d", stateSize)); err != nil {
		return nil, fmt.Errorf("mount a small tmpfs at %s: %w", h.State, err)
	}
	return func() error { return unix.Unmount(h.State, unix.MNT_DETACH) }, nil
}

// fill leaves no room in a directory's file system; the file that takes it all
// is returned.
func fill(dir string) (string, error) {
	path := filepath.Join(dir, "full")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	for piece := make([]byte, 1<<20); len(piece) > 0; {
		if _, err := f.Write(piece); errors.Is(err, unix.ENOSPC) {
			piece = piece[:len(piece)/2]
		} else if err != nil {
			return path, err
		}
	}
	return path, nil
}

// mount puts both in place for a world.
func (p *patients) mount(w *world.World) (_ func() error, err error) {
	var undo []func() error
	all := func() error {
		var errs []error
		for _, f := range undo {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, all())
		}
	}()
	disks, err := p.mountDisks(w.Disks)
	if err != nil {
		return nil, err
	}
	undo = append(undo, disks)
	for _, h := range w.Config.Hosts {
		one, err := mountState(h)
		if err != nil {
			return nil, err
		}
		undo = append(undo, one)
	}
	return all, nil
}

// sweepMounts removes what a process that has died left: the mounts of worlds
// whose directory nobody locks (see package world), and what was behind them.
func sweepMounts(prefix string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if name := worldOf(f[4], prefix); name != "" && !locked("/dev/shm/"+name) {
			errs = append(errs, unix.Unmount(f[4], unix.MNT_DETACH))
		}
	}
	left, err := filepath.Glob("/var/tmp/" + prefix + "-world-*-under-*")
	for _, dir := range left {
		if !locked("/dev/shm/" + worldOf(dir, prefix)) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(append(errs, err)...)
}

// worldOf finds the name of a world's directory, PREFIX-world-NUMBER, in a path;
// "" if there is none.
func worldOf(path, prefix string) string {
	_, after, ok := strings.Cut(path, "/"+prefix+"-world-")
	if !ok {
		return ""
	}
	number, _, _ := strings.Cut(after, "/")
	number, _, _ = strings.Cut(number, "-")
	return prefix + "-world-" + number
}

// locked reports whether a living process holds a directory.
func locked(dir string) bool {
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer func() { _ = d.Close() }()
	return syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
}

// newControlDir makes the directory of a world's sockets and histories, and
// locks it for as long as this process lives; those of dead ones are removed.
func newControlDir(prefix string) (dir string, lock *os.File, err error) {
	left, err := filepath.Glob("/dev/shm/" + prefix + "-control-*")
	if err != nil {
		return "", nil, err
	}
	for _, old := range left {
		// One that is being made is not locked yet.
		if info, err := os.Stat(old); err == nil && time.Since(info.ModTime()) > time.Minute && !locked(old) {
			if err := os.RemoveAll(old); err != nil {
				return "", nil, err
			}
		}
	}
	if dir, err = os.MkdirTemp("/dev/shm", prefix+"-control-"); err != nil {
		return "", nil, err
	}
	if lock, err = os.Open(dir); err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), os.RemoveAll(dir))
	}
	return dir, lock, nil
}
