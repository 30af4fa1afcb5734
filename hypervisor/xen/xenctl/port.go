//go:build xen

package xenctl

// This file is an event channel between a guest's driver and a back end of ours:
// libxenevtchn. Each has a handle of its own, so that each is waited for apart.

/*
#include <xenevtchn.h>
*/
import "C"

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Port is our end of an event channel. Its methods may be called from several
// goroutines, Wait from one.
type Port struct {
	control *Control
	domain  uint32
	events  *C.xenevtchn_handle
	port    C.xenevtchn_port_or_error_t
	wake    int // an eventfd that ends a Wait

	mu      sync.RWMutex // held for reading while the handle is in use
	waiting sync.Mutex
	closed  bool
}

// Bind binds to a port that the guest has made for us: xenevtchn_open,
// xenevtchn_bind_interdomain. One that a process has bound which is no more can be
// bound again.
func (c *Control) Bind(domain, port uint32) (*Port, error) {
	events, err := C.xenevtchn_open(c.words.logger(), 0)
	if events == nil {
		return nil, c.words.failed("open the event channels", domain, err)
	}
	p := &Port{control: c, domain: domain, events: events}
	if p.port, err = C.xenevtchn_bind_interdomain(events, C.uint32_t(domain), C.evtchn_port_t(port)); p.port < 0 {
		C.xenevtchn_close(events)
		return nil, c.words.failed(fmt.Sprintf("bind to the event channel %d", port), domain, err)
	}
	p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		C.xenevtchn_close(events)
		return nil, os.NewSyscallError("eventfd", err)
	}
	return p, nil
}

// Wait returns after the guest has told us something since Wait returned last, or
// with net.ErrClosed after Close: xenevtchn_pending, xenevtchn_unmask.
func (p *Port) Wait() error {
	p.waiting.Lock()
	defer p.waiting.Unlock()
	p.mu.RLock()
	if p.closed {
		p.mu.RUnlock()
		return net.ErrClosed
	}
	fds := []unix.PollFd{{Fd: int32(C.xenevtchn_fd(p.events)), Events: unix.POLLIN}, {Fd: int32(p.wake), Events: unix.POLLIN}}
	p.mu.RUnlock()
	for {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if fds[1].Revents != 0 {
			return net.ErrClosed
		}
		if fds[0].Revents != 0 {
			break
		}
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return net.ErrClosed
	}
	port, err := C.xenevtchn_pending(p.events)
	if port < 0 {
		return p.control.words.failed("look for an event", p.domain, err)
	}
	if rc, err := C.xenevtchn_unmask(p.events, C.evtchn_port_t(port)); rc < 0 {
		return p.control.words.failed("unmask an event channel", p.domain, err)
	}
	return nil
}

// Notify tells the guest: xenevtchn_notify. After Close it does nothing.
func (p *Port) Notify() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return nil
	}
	if rc, err := C.xenevtchn_notify(p.events, C.evtchn_port_t(p.port)); rc < 0 {
		return p.control.words.failed("notify the guest", p.domain, err)
	}
	return nil
}

// Close ends the channel, and a Wait: xenevtchn_close. A second call does nothing.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	if _, err := unix.Write(p.wake, binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
		return os.NewSyscallError("write to an eventfd", err)
	}
	p.waiting.Lock() // nobody polls any more
	defer p.waiting.Unlock()
	rc, err := C.xenevtchn_close(p.events)
	if rc < 0 {
		err = p.control.words.failed("close the event channels", p.domain, err)
	} else {
		err = nil
	}
	return errors.Join(err, unix.Close(p.wake))
}
