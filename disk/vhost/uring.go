package vhost

// This file is an io_uring(7): a queue of reads and writes that the kernel is
// handed many of at a time, and that tells when each is over. It is for one
// thread.
//
//	prepare … ─> enter: submit all, wait for one ─> completions

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From <linux/io_uring.h>.
const (
	uringSetupCoopTaskrun  = 1 << 8
	uringSetupSingleIssuer = 1 << 12
	uringSetupDeferTaskrun = 1 << 13
	uringFeatSingleMmap    = 1 << 0
	uringFeatNoDrop        = 1 << 1
	uringFeatExtArg        = 1 << 8
	uringEnterGetevents    = 1 << 0
	uringEnterExtArg       = 1 << 3
	uringOffRings          = 0
	uringOffEntries        = 0x10000000

	uringOpReadv   = 1
	uringOpWritev  = 2
	uringOpFsync   = 3
	uringOpPollAdd = 6
	uringOpRead    = 22
	uringOpWrite   = 23

	uringFsyncDatasync = 1
)

type uringOffsets struct {
	head, tail, mask, entries, flags, dropped, array, resv uint32
	user                                                   uint64
}

// uringParams is struct io_uring_params; a completion ring's offsets have other
// names, in the same places: overflow for flags, cqes for dropped.
type uringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wq uint32
	resv                                                 [3]uint32
	sq, cq                                               uringOffsets
}

// uringEntry is struct io_uring_sqe.
type uringEntry struct {
	op, flags uint8
	priority  uint16
	fd        int32
	offset    uint64
	addr      uint64
	length    uint32
	opFlags   uint32
	user      uint64
	_         [3]uint64
}

// uringWait is struct io_uring_getevents_arg with the time that it points to.
type uringWait struct {
	mask     uint64
	maskSize uint32
	_        uint32
	limit    *unix.Timespec
}

// uringDone is struct io_uring_cqe.
type uringDone struct {
	user   uint64
	result int32
	flags  uint32
}

const (
	uringParamsSize = 120
	uringEntrySize  = 64
	uringDoneSize   = 16
)

// uring is the ring.
type uring struct {
	fd       int
	rings    []byte
	table    []byte
	entries  []uringEntry
	dones    []uringDone
	sqHead   *uint32
	sqTail   *uint32
	cqHead   *uint32
	cqTail   *uint32
	prepared uint32 // entries that the kernel has not been told of
	lingers  bool   // linger works
	limit    unix.Timespec
	wait     uringWait
}

// newUring makes a ring that entries operations fit into at once. The calling
// goroutine is locked to its thread, and alone uses the ring.
func newUring(entries int) (_ *uring, err error) {
	p := uringParams{flags: uringSetupSingleIssuer | uringSetupDeferTaskrun | uringSetupCoopTaskrun}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	u := &uring{fd: int(fd)}
	defer func() {
		if err != nil {
			u.close()
		}
	}()
	if want := uint32(uringFeatSingleMmap | uringFeatNoDrop); p.features&want != want {
		return nil, fmt.Errorf("io_uring has the features %#x, want %#x", p.features, want)
	}
	u.lingers = p.features&uringFeatExtArg != 0
	size := max(p.sq.array+4*p.sqEntries, p.cq.dropped+uringDoneSize*p.cqEntries)
	flags := unix.MAP_SHARED | unix.MAP_POPULATE
	if u.rings, err = unix.Mmap(u.fd, uringOffRings, int(size), unix.PROT_READ|unix.PROT_WRITE, flags); err != nil {
		return nil, fmt.Errorf("map an io_uring: %w", err)
	}
	if u.table, err = unix.Mmap(u.fd, uringOffEntries, int(uringEntrySize*p.sqEntries), unix.PROT_READ|unix.PROT_WRITE, flags); err != nil {
		return nil, fmt.Errorf("map an io_uring's entries: %w", err)
	}
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&u.rings[off])) }
	u.sqHead, u.sqTail, u.cqHead, u.cqTail = word(p.sq.head), word(p.sq.tail), word(p.cq.head), word(p.cq.tail)
	u.entries = unsafe.Slice((*uringEntry)(unsafe.Pointer(&u.table[0])), p.sqEntries)
	u.dones = unsafe.Slice((*uringDone)(unsafe.Pointer(&u.rings[p.cq.dropped])), p.cqEntries)
	for i := range p.sqEntries {
		*word(p.sq.array + 4*i) = i
	}
	return u, nil
}

func (u *uring) close() {
	for _, m := range [][]byte{u.table, u.rings} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	_ = unix.Close(u.fd)
}

// prepare adds an operation, which the next enter submits. The memory that it
// names has to stay where it is until its completion.
func (u *uring) prepare(e uringEntry) error {
	tail := *u.sqTail
	if tail-atomic.LoadUint32(u.sqHead) == uint32(len(u.entries)) {
		if err := u.enter(0); err != nil {
			return err
		}
	}
	u.entries[tail&uint32(len(u.entries)-1)] = e
	atomic.StoreUint32(u.sqTail, tail+1)
	u.prepared++
	return nil
}

// poll prepares to be told when fd can be read.
func (u *uring) poll(fd int, user uint64) error {
	return u.prepare(uringEntry{op: uringOpPollAdd, fd: int32(fd), opFlags: unix.POLLIN, user: user})
}

// transfer prepares a read or write of p, which is not empty.
func (u *uring) transfer(op uint8, fd int, p []byte, offset int64, user uint64) error {
	return u.prepare(uringEntry{
		op: op, fd: int32(fd), offset: uint64(offset), addr: uint64(uintptr(unsafe.Pointer(&p[0]))), length: uint32(len(p)), user: user,
	})
}

// vector prepares a read or write of pieces, which stay where they are until its
// completion. There is one at least.
func (u *uring) vector(write bool, fd int, pieces []unix.Iovec, offset int64, user uint64) error {
	op := uint8(uringOpReadv)
	if write {
		op = uringOpWritev
	}
	e := uringEntry{op: op, fd: int32(fd), offset: uint64(offset), addr: uint64(uintptr(unsafe.Pointer(&pieces[0]))), length: uint32(len(pieces)), user: user}
	if len(pieces) == 1 {
		e.op, e.addr, e.length = op+uringOpRead-uringOpReadv, uint64(uintptr(unsafe.Pointer(pieces[0].Base))), uint32(pieces[0].Len)
	}
	return u.prepare(e)
}

// sync prepares an fdatasync(2).
func (u *uring) sync(fd int, user uint64) error {
	return u.prepare(uringEntry{op: uringOpFsync, fd: int32(fd), opFlags: uringFsyncDatasync, user: user})
}

// enter submits what was prepared and waits for that many completions.
func (u *uring) enter(wait int) error {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), uintptr(u.prepared), uintptr(wait), uringEnterGetevents, 0, 0)
		switch errno {
		case 0:
			u.prepared -= uint32(n)
			if u.prepared == 0 {
				return nil
			}
		case unix.EINTR:
		case unix.EAGAIN, unix.EBUSY:
			// No memory for more, or completions to be taken first.
			if u.ready() > 0 {
				return nil
			}
		default:
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
	}
}

// linger is enter(1) that gives up after limit, or earlier, with nothing. It keeps
// the thread's Go processor, as a computation would: when a system call lasts for
// more than some 20 µs the scheduler takes the processor away, and four threads
// have to be woken, one after the other, until the goroutine goes on. A thread
// that is to be preempted (a garbage collection) gets a signal, which ends the
// wait.
func (u *uring) linger(limit time.Duration) error {
	if !u.lingers {
		return nil
	}
	u.limit = unix.NsecToTimespec(int64(limit))
	u.wait = uringWait{limit: &u.limit}
	n, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), uintptr(u.prepared), 1,
		uringEnterGetevents|uringEnterExtArg, uintptr(unsafe.Pointer(&u.wait)), unsafe.Sizeof(u.wait))
	switch errno {
	case 0:
		u.prepared -= uint32(n)
	case unix.EINTR, unix.ETIME, unix.EAGAIN, unix.EBUSY:
	default:
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	return nil
}

// ready is how many completions there are.
func (u *uring) ready() int { return int(atomic.LoadUint32(u.cqTail) - *u.cqHead) }

// next takes the next completion; there is one.
func (u *uring) next() uringDone {
	head := *u.cqHead
	d := u.dones[head&uint32(len(u.dones)-1)]
	atomic.StoreUint32(u.cqHead, head+1)
	return d
}
