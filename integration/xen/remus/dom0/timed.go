//go:build xen

package main

// This file takes the time of our driver's steps, at the same places where stock's is
// taken (../stock): when the guest is asked to suspend, when it was seen to have, and
// when the hypercall is made that lets it go on (resumed.c).

/*
#cgo CFLAGS: -Wall -Werror -D__XEN_TOOLS__
#cgo LDFLAGS: -rdynamic -lxencall -ldl
#include "resumed.h"
*/
import "C"

import (
	"context"
	"sync"
	"time"

	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenctl"
	"understudy/integration/xen/remus/cell"
)

// steps are those of the suspend under way, in the nanoseconds of CLOCK_MONOTONIC.
type steps struct {
	mu                 sync.Mutex
	request, suspended int64
}

// now is CLOCK_MONOTONIC.
func now() int64 { return int64(C.us_now()) }

func (s *steps) asked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.request, s.suspended = now(), 0
}

func (s *steps) stands() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.suspended == 0 {
		s.suspended = now()
	}
}

// took returns the last suspend, whose guest runs again, as an epoch.
func (s *steps) took() cell.Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cell.Epoch{Stood: s.suspended, Suspend: time.Duration(s.suspended - s.request), Pause: time.Duration(int64(C.us_resumed()) - s.suspended)}
}

// timedHost is a host whose domains are timed.
type timedHost struct {
	*xenctl.Host
	steps *steps
}

// Attach takes a domain on.
func (h *timedHost) Attach(ctx context.Context, domain uint32) (*xen.Attached, error) {
	a, err := h.Host.Attach(ctx, domain)
	if err != nil {
		return nil, err
	}
	a.Domain, a.Ask = &timedDomain{a.Domain, h.steps}, &timedAsker{a.Ask, h.steps}
	return a, nil
}

type timedDomain struct {
	xen.Domain
	steps *steps
}

// Info notes when the domain has suspended.
func (d *timedDomain) Info() (xen.Info, error) {
	info, err := d.Domain.Info()
	if err == nil && info.Shutdown && info.Reason == xen.ReasonSuspend {
		d.steps.stands()
	}
	return info, err
}

type timedAsker struct {
	xen.Asker
	steps *steps
}

// Ask notes when the guest is asked.
func (a *timedAsker) Ask(ctx context.Context) error {
	a.steps.asked()
	return a.Asker.Ask(ctx)
}
