package egress

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// pollFD is a non-blocking descriptor on Go's poller. Waiting and reading are
// apart, so that a Gate can wait without its lock and read under it.
type pollFD struct {
	file  *os.File
	raw   syscall.RawConn
	ready func(fd uintptr) bool

	mu     sync.RWMutex // held for reading around each system call on fd
	fd     int
	closed bool
}

// newPollFD takes fd over; on an error fd is closed.
func newPollFD(fd int, name string) (*pollFD, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("making %s non-blocking: %w", name, err), unix.Close(fd))
	}
	p := &pollFD{file: os.NewFile(uintptr(fd), name), fd: fd}
	raw, err := p.file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("waiting for %s: %w", name, err), p.file.Close())
	}
	p.raw = raw
	// The poller is edge-triggered: the state is asked for after it was armed,
	// so that an edge between the last read and the arming is not missed.
	set := make([]unix.PollFd, 1)
	p.ready = func(fd uintptr) bool {
		set[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		n, err := unix.Poll(set, 0)
		return n > 0 || (err != nil && err != unix.EINTR)
	}
	return p, nil
}

// Wait waits until a read would not block. os.File lets one goroutine wait at
// a time, which is what keeps ready's array from being shared.
func (p *pollFD) Wait() error {
	if err := p.raw.Read(p.ready); err != nil {
		// os says "closed" in more than one way.
		p.mu.RLock()
		defer p.mu.RUnlock()
		if p.closed {
			return net.ErrClosed
		}
		return fmt.Errorf("waiting for a frame on %s: %w", p.file.Name(), err)
	}
	return nil
}

// read is one non-blocking read(2).
func (p *pollFD) read(buf []byte) (int, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return 0, net.ErrClosed
	}
	for {
		n, err := unix.Read(p.fd, buf)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, ErrEmpty
		default:
			return 0, fmt.Errorf("reading a frame from %s: %w", p.file.Name(), err)
		}
	}
}

// Close wakes Wait and closes the descriptor.
func (p *pollFD) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if err := p.file.Close(); err != nil {
		return fmt.Errorf("closing %s: %w", p.file.Name(), err)
	}
	return nil
}

// checkSize says whether a frame can be carried.
func checkSize(frame []byte) error {
	if len(frame) < headerLen || len(frame) > MaxFrame {
		return ErrFrameSize
	}
	return nil
}
