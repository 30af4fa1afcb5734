//go:build xen

package xenctl

// This file is the event channel by which a domain is asked to suspend, and the
// one by which Xen says that it has: libxenevtchn, and libxc's suspend functions.
//
//	guest's port (device/suspend/event-channel in xenstore, or one made by us)
//	    ─ bind_interdomain ─> ours: notify asks the guest
//	    ─ subscribe ─> Xen notifies the same port when the domain shuts down

/*
#include <poll.h>
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenguest.h>
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Channel is the way to suspend one domain. Its methods are called by one
// goroutine at a time.
type Channel struct {
	control *Control
	domain  uint32
	events  *C.xenevtchn_handle
	port    C.int // ours
	lock    C.int // of /var/run/xen/suspend-evtchn-DOMID.lock
}

// AllocPort makes a port in the domain that we can bind to:
// xc_evtchn_alloc_unbound. A PVH guest publishes none of its own, and one that is
// made for it only tells us of its end: the guest is asked by control/shutdown.
func (c *Control) AllocPort(domain uint32) (uint32, error) {
	port, err := C.xc_evtchn_alloc_unbound(c.xch, C.uint32_t(domain), 0)
	if port < 0 {
		return 0, c.words.failed("make an event channel", domain, err)
	}
	return uint32(port), nil
}

// Suspend binds to a port of the domain, and has Xen notify it when the domain
// shuts down: xc_suspend_evtchn_init_exclusive. Only one program may have it: an
// `xl save` or `xl migrate` under way is a reason to fail.
func (c *Control) Suspend(domain, port uint32) (*Channel, error) {
	events, err := C.xenevtchn_open(c.words.logger(), 0)
	if events == nil {
		return nil, c.words.failed("open the event channels", domain, err)
	}
	s := &Channel{control: c, domain: domain, events: events, lock: -1}
	if s.port, err = C.xc_suspend_evtchn_init_exclusive(c.xch, events, C.uint32_t(domain), C.int(port), &s.lock); s.port < 0 {
		C.xenevtchn_close(events)
		return nil, c.words.failed("bind the suspend channel (is another program saving it?)", domain, err)
	}
	return s, nil
}

// Notify asks the guest to suspend, if the port is its own: xenevtchn_notify.
func (s *Channel) Notify() error {
	if rc, err := C.xenevtchn_notify(s.events, C.evtchn_port_t(s.port)); rc < 0 {
		return s.control.words.failed("ask for the suspend", s.domain, err)
	}
	return nil
}

// step is how often a wait looks whether it should end, in milliseconds, and steps
// how many of them it is patient: xenstored tells of a domain's end once, and not if
// that came between its resume and our word of it.
const (
	step  = 50
	steps = 20
)

// Wait returns when Xen has notified us, there is something in also, or a second has
// gone by: the domain has shut down, or something else has happened to it, or
// nothing; Control.Info says what. xenevtchn_pending, xenevtchn_unmask.
func (s *Channel) Wait(ctx context.Context, also <-chan struct{}) error {
	fds := []unix.PollFd{{Fd: int32(C.xenevtchn_fd(s.events)), Events: unix.POLLIN}}
	for range steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for domain %d to suspend: %w", s.domain, err)
		}
		n, err := unix.Poll(fds, step)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if n < 1 {
			select {
			case _, ok := <-also:
				if !ok {
					return fmt.Errorf("wait for domain %d: xenstored is gone", s.domain)
				}
				return nil
			default:
				continue
			}
		}
		port, err := C.xenevtchn_pending(s.events)
		if port < 0 {
			return s.control.words.failed("look for the suspend", s.domain, err)
		}
		if rc, err := C.xenevtchn_unmask(s.events, C.evtchn_port_t(port)); rc < 0 {
			return s.control.words.failed("unmask the suspend channel", s.domain, err)
		}
		if port == s.port {
			return nil
		}
	}
	return nil
}

// Close lets go of the channel: xc_suspend_evtchn_release. What that returns says
// nothing: in Xen 4.17 it is -1 also when all went well.
func (s *Channel) Close() error {
	C.xc_suspend_evtchn_release(s.control.xch, s.events, C.uint32_t(s.domain), s.port, &s.lock)
	s.control.words.forget()
	if rc, err := C.xenevtchn_close(s.events); rc < 0 {
		return s.control.words.failed("close the event channels", s.domain, err)
	}
	return nil
}
