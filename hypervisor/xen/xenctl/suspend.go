//go:build xen

package xenctl

// This file is the event channel by which a domain is asked to suspend, and the
// one by which Xen says that it has: libxenevtchn, and libxc's suspend functions.
//
//	guest's port (device/suspend/event-channel in xenstore, or one made by us)
//	    ─ bind_interdomain ─> ours: notify asks the guest
//	    ─ subscribe ─> Xen notifies the same port when the domain shuts down
//	listen ─> Wait
//
// One goroutine listens. It is owned by the Channel, and ends with Close. It waits by
// Go's poller: a goroutine that waits in the kernel keeps its processor from all others
// until that is noticed, which takes milliseconds of a pause on a host that gives its
// first domain a single one.

/*
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
	"sync"
	"time"

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

	file   *os.File // the descriptor of events once more, for the poller
	heard  chan struct{}
	err    error // why listen has ended, when heard is closed
	listen sync.WaitGroup
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
	s.heard = make(chan struct{}, 1)
	s.file, err = pollable(int(C.xenevtchn_fd(events)))
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.listen.Go(s.listens)
	return s, nil
}

// pollable makes a file of a copy of a descriptor, which Go's poller waits for.
func pollable(fd int) (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
	}
	err = unix.SetNonblock(fd, true)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl(O_NONBLOCK)", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "/dev/xen/evtchn"), nil
}

// listens takes what Xen notifies us of: xenevtchn_pending, xenevtchn_unmask.
func (s *Channel) listens() {
	defer close(s.heard)
	conn, err := s.file.SyscallConn()
	for err == nil {
		var port C.xenevtchn_port_or_error_t
		var failed error
		err = conn.Read(func(uintptr) bool {
			port, failed = C.xenevtchn_pending(s.events)
			return port >= 0 || !errors.Is(failed, unix.EAGAIN)
		})
		switch {
		case err != nil:
			err = fmt.Errorf("listen for the suspend of domain %d: %w", s.domain, err)
		case port < 0:
			err = s.control.words.failed("look for the suspend", s.domain, failed)
		default:
			err = s.take(port)
		}
	}
	s.err = err
}

func (s *Channel) take(port C.xenevtchn_port_or_error_t) error {
	if rc, err := C.xenevtchn_unmask(s.events, C.evtchn_port_t(port)); rc < 0 {
		return s.control.words.failed("unmask the suspend channel", s.domain, err)
	}
	if port == s.port {
		select {
		case s.heard <- struct{}{}:
		default: // nobody has taken the last one
		}
	}
	return nil
}

// Notify asks the guest to suspend, if the port is its own: xenevtchn_notify.
func (s *Channel) Notify() error {
	if rc, err := C.xenevtchn_notify(s.events, C.evtchn_port_t(s.port)); rc < 0 {
		return s.control.words.failed("ask for the suspend", s.domain, err)
	}
	return nil
}

// patience is how long a wait is: xenstored tells of a domain's end once, and not if
// that came between its resume and our word of it.
const patience = time.Second

// Wait returns when Xen has notified us, there is something in also, or a second has
// gone by: the domain has shut down, or something else has happened to it, or
// nothing; Control.Info says what.
func (s *Channel) Wait(ctx context.Context, also <-chan struct{}) error {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for domain %d to suspend: %w", s.domain, ctx.Err())
	case _, ok := <-s.heard:
		if !ok {
			return s.err
		}
	case _, ok := <-also:
		if !ok {
			return fmt.Errorf("wait for domain %d: xenstored is gone", s.domain)
		}
	case <-enough.C:
	}
	return nil
}

// Close lets go of the channel: xc_domain_subscribe_for_suspend of no port,
// xc_suspend_evtchn_release. While a port is subscribed Xen notifies that instead of
// xenstored, also when nobody has it any more: `xl save` would wait in vain. What the
// second returns says nothing: in Xen 4.17 it is -1 also when all went well. The domain
// may be gone.
func (s *Channel) Close() error {
	var err error
	if s.file != nil {
		err = s.file.Close()
	}
	s.listen.Wait()
	C.xc_domain_subscribe_for_suspend(s.control.xch, C.uint32_t(s.domain), 0)
	C.xc_suspend_evtchn_release(s.control.xch, s.events, C.uint32_t(s.domain), s.port, &s.lock)
	s.control.words.forget()
	if rc, failed := C.xenevtchn_close(s.events); rc < 0 {
		err = errors.Join(err, s.control.words.failed("close the event channels", s.domain, failed))
	}
	return err
}
