package store

// This file decides who may write. The lock is on the disk itself, and is held
// exactly while this host may write:
//
//	Acquire ── poll the lock until ctx ends ── read the record ── a lower
//	generation than recorded? refuse ── record ours, durably ── writer
//	Release ── wait for writes in flight ── sync ── unlock
//
// The kernel drops the lock when its process dies, and not while it merely stands
// still. On a network file system the server keeps it for all hosts; a block
// device's lock is known to this host alone (Fencing).

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// What Fencing returns.
const (
	FencingLock  = "lock"
	FencingLocal = "local lock only: declare unfenced or use a fencing hook"
)

// ErrStale is returned by Acquire for a generation that another owner has
// overtaken.
var ErrStale = errors.New("a newer owner has had the disk")

// ErrTorn is returned by Acquire for a disk that was being rolled back.
var ErrTorn = errors.New("a rollback of the disk was begun and has not ended: restore the checkpoint file again")

// ErrLocked says that another process has the disk.
var ErrLocked = errors.New("the disk is locked by another process")

// Polling of the lock: flock(2) cannot wait and be cancelled.
const (
	pollFirst = 2 * time.Millisecond
	pollMost  = 50 * time.Millisecond
	// openWait is how long Open waits for the lock of a disk of our own, since
	// a process that was killed lets go of it only when the kernel has cleaned
	// up.
	openWait = time.Second
)

// Fencing says what keeps another host from writing.
func (f *File) Fencing() string {
	if f.cfg.Shared && f.block {
		return FencingLocal
	}
	return FencingLock
}

// Acquire makes this host the writer, as the owner of generation g: it waits for
// the lock until ctx ends. A generation lower than the recorded one, or the same
// of another owner, is refused with ErrStale. The record says g before the first
// write: a takeover does not wait for it. It may be called again with a higher
// generation.
//
// A disk whose rollback was begun and has not ended is refused with ErrTorn.
func (f *File) Acquire(ctx context.Context, g epoch.Generation) error {
	return f.acquire(ctx, g, false)
}

// AcquireTorn is Acquire for whoever begins a rollback, or brings it to its end.
func (f *File) AcquireTorn(ctx context.Context, g epoch.Generation) error {
	return f.acquire(ctx, g, true)
}

func (f *File) acquire(ctx context.Context, g epoch.Generation, torn bool) error {
	if err := f.lockAndBecome(ctx, g, torn); err != nil {
		return fmt.Errorf("become the writer of disk %s in generation %d: %w", f.cfg.Path, g, err)
	}
	return nil
}

func (f *File) lockAndBecome(ctx context.Context, g epoch.Generation, torn bool) error {
	select {
	case f.acquiring <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-f.acquiring }()
	if f.cfg.ReadOnly {
		return nil // nothing will be written, and nobody need be kept out
	}
	if err := f.locker.wait(ctx, true); err != nil {
		return fmt.Errorf("%w%s", err, f.holder())
	}
	f.gate.Lock()
	defer f.gate.Unlock()
	err := f.become(g, torn)
	if err != nil && f.cfg.Shared && !f.writer {
		f.letGo()
	}
	return err
}

// letGo forgets what only the writer knows, and unlocks. The gate is held.
func (f *File) letGo() {
	f.writer = false
	for _, p := range f.pins {
		p.close()
	}
	f.pins = nil
	f.mu.Lock()
	f.known = false
	f.mu.Unlock()
	f.locker.unlock()
}

// become makes us the writer. The lock is held, and the gate.
func (f *File) become(g epoch.Generation, torn bool) error {
	if f.closed {
		return ErrClosed
	}
	if err := f.adopt(); err != nil {
		return err
	}
	f.mu.Lock()
	next := f.record
	f.mu.Unlock()
	switch {
	case next.Rolling != (PinID{}) && !torn:
		return fmt.Errorf("%w: to pin %s", ErrTorn, next.Rolling)
	case g < next.Generation:
		return fmt.Errorf("%w: generation %d, owner %s, since %v", ErrStale, next.Generation, next.Owner, next.Since)
	case g == next.Generation && next.Owner != "" && f.cfg.Host != "" && next.Owner != f.cfg.Host:
		return fmt.Errorf("%w: generation %d belongs to %s, not to %s", ErrStale, g, next.Owner, f.cfg.Host)
	case g == next.Generation && next.Owner == f.cfg.Host && f.writer:
		return nil
	}
	next.Generation, next.Owner, next.Since = g, f.cfg.Host, time.Now().UTC()
	f.mu.Lock()
	f.record = next
	f.pristine.Store(true) // so the first write saves the record
	f.mu.Unlock()
	f.writer = true
	f.log.Info("writer of the disk", "generation", g, "fencing", f.Fencing())
	return nil
}

// own makes a disk of our own ours from Open on: no other process may have it
// open for writing.
func (f *File) own(created bool) error {
	ctx, stop := context.WithTimeout(context.Background(), openWait)
	defer stop()
	if err := f.locker.wait(ctx, !f.cfg.ReadOnly); err != nil {
		return fmt.Errorf("%w%s", errors.Join(ErrLocked, err), f.holder())
	}
	if f.cfg.ReadOnly {
		return nil
	}
	if err := f.adopt(); err != nil {
		return err
	}
	f.writer = true
	if created {
		// A record that lies there from a file that is gone says nothing of
		// this one but the generation.
		f.mu.Lock()
		next := f.record
		f.mu.Unlock()
		next.Complete, next.Stamp = false, newStamp()
		return f.save(next)
	}
	return nil
}

// holder says what the record knows of who has the lock.
func (f *File) holder() string {
	r, err := f.side.load()
	if err != nil || r.Owner == "" {
		return ""
	}
	return fmt.Sprintf(" (last writer: %s, generation %d, since %v)", r.Owner, r.Generation, r.Since)
}

// Release makes what was written durable and lets another host become the
// writer; it waits for the writes that are under way. A disk of our own stays
// locked until Close. It is no error to release what is not held.
func (f *File) Release() error {
	f.gate.Lock()
	defer f.gate.Unlock()
	if !f.writer || !f.cfg.Shared {
		return nil
	}
	// The other host reads the disk itself: what our page cache or the device's
	// holds must be there first.
	err := f.Sync()
	f.letGo()
	return err
}

// locker is the lock on the disk: flock(2), and beside it the byte locks by which
// QEMU says of an image that it writes it and lets nobody else
// (block/file-posix.c: bytes 100 + permission for what is used, 200 + permission
// for what is not shared), so that neither runs over the other.
type locker struct {
	mu   sync.Mutex
	file *os.File
	held bool
	// plain: flock alone; QEMU itself has the image open on our behalf.
	plain bool
}

// Permissions of QEMU's block layer: write, and resize.
var qemuBytes = [...]int64{101, 103, 201, 203}

// open makes the lock's descriptor: of the description that data's is of, so that
// what the kernel has yet to write or read for us after our death, by io_uring(7),
// keeps the lock, and who comes after us meets none of it. Of an image that QEMU
// shows us, data is another file.
func (l *locker) open(path string, data *os.File, readOnly bool) error {
	if !l.plain {
		fd, err := unix.FcntlInt(data.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fmt.Errorf("another descriptor for the lock: %w", err)
		}
		l.file = os.NewFile(uintptr(fd), path)
		return nil
	}
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	var err error
	if l.file, err = os.OpenFile(path, flags, 0); err != nil {
		return fmt.Errorf("open for the lock: %w", err)
	}
	return nil
}

// wait takes the lock, or says why not when ctx ends.
func (l *locker) wait(ctx context.Context, exclusive bool) error {
	pause := pollFirst
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		err := l.try(exclusive)
		if err == nil || !errors.Is(err, ErrLocked) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-timer.C:
		}
		pause = min(2*pause, pollMost)
		timer.Reset(pause)
	}
}

// try takes the lock if it is free, or held by us already.
func (l *locker) try(exclusive bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return ErrClosed
	}
	if l.held {
		return nil
	}
	fd := int(l.file.Fd())
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	for {
		err := unix.Flock(fd, how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrLocked
		case err != nil:
			return fmt.Errorf("lock (flock): %w", err)
		}
		break
	}
	l.held = true
	if l.plain || !exclusive {
		return nil
	}
	if err := l.lockQEMU(fd); err != nil {
		l.drop()
		return err
	}
	return nil
}

// lockQEMU takes the byte locks and looks whether somebody else has one that
// forbids us. A file system without such locks has no QEMU that minds them.
func (l *locker) lockQEMU(fd int) error {
	for _, at := range qemuBytes {
		lock := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: at, Len: 1}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock); err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
				return fmt.Errorf("%w: byte lock %d", ErrLocked, at)
			}
			return nil
		}
	}
	for _, at := range qemuBytes {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: 1}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock); err == nil && lock.Type != unix.F_UNLCK {
			return fmt.Errorf("%w: a QEMU has it open (its byte lock %d)", ErrLocked, at)
		}
	}
	return nil
}

// unlock lets the lock go if it is held.
func (l *locker) unlock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held {
		l.drop()
	}
}

// drop lets the lock go. It says so to the kernel, since a child that is just
// being started has a copy of the descriptor until its exec.
func (l *locker) drop() {
	fd := int(l.file.Fd())
	all := unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart, Start: 0, Len: 0}
	_ = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &all) // there may be none
	_ = unix.Flock(fd, unix.LOCK_UN)                         // fails only for a bad descriptor
	l.held = false
}

func (l *locker) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	if l.held {
		l.drop()
	}
	_ = l.file.Close() // nothing was written through it
	l.file = nil
}
