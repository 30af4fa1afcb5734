package host

// This file is the daemon's going down in good order. To be started anew (HandOver):
// each guest that runs here is made to stand still after a last epoch that its backup
// has acknowledged, and its backup waits (package primary, handover.go). On a signal
// (GoDown): the same, if the guest's OnStop has it so.
//
//	HandOver ─> every primary here ─┬─ all have: Run's context ends ─> leave:
//	                                │  what is held leaves, the file (left.go), Detach
//	                                └─ one has not: TakeBack, the guests go on here

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"understudy/primary"
)

// drainTime bounds the wait for released frames to leave.
const drainTime = 200 * time.Millisecond

// HandOver makes every guest that this host runs stand still for the next daemon.
// When it returns nil, Run's context is to be ended at once; after an error the
// guests go on here. Before ctx ends it returns.
func (h *Host) HandOver(ctx context.Context) error {
	managers := h.now()
	all := make(chan error, len(managers))
	var asking sync.WaitGroup
	for _, m := range managers {
		asking.Go(func() { all <- m.handOver(ctx) })
	}
	asking.Wait()
	close(all)
	var errs []error
	for err := range all {
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if err != nil {
		h.TakeBack()
	}
	return err
}

// OnStop is what becomes of a guest that runs on a host whose daemon is told to stop.
type OnStop uint8

const (
	// OnStopHandover hands it over, as HandOver does.
	OnStopHandover OnStop = iota
	// OnStopLeave leaves it as it is: its backup takes it over, or the next daemon
	// adopts it.
	OnStopLeave
	// OnStopStop commits a last epoch and ends it.
	OnStopStop
)

// GoDown does with every guest that this host runs what its OnStop says, so that
// Run's context can be ended. A handover may take as long as handover says, a stop as
// long as stop. An error says what could not be done.
func (h *Host) GoDown(ctx context.Context, handover, stop time.Duration) error {
	managers := h.now()
	errs := make([]error, len(managers))
	var asking sync.WaitGroup
	for i, m := range managers {
		asking.Go(func() {
			switch m.settings.Load().OnStop {
			case OnStopLeave:
			case OnStopStop:
				ctx, cancel := context.WithTimeout(ctx, stop)
				defer cancel()
				errs[i] = m.stopAndEnd(ctx)
			default:
				ctx, cancel := context.WithTimeout(ctx, handover)
				defer cancel()
				errs[i] = m.handOver(ctx)
			}
		})
	}
	asking.Wait()
	return errors.Join(errs...)
}

// stopAndEnd stops the guest if it runs here, and waits until nothing of it is left.
func (m *manager) stopAndEnd(ctx context.Context) error {
	if _, _, err := m.host.asPrimary(m.Name); err != nil {
		return nil //nolint:nilerr // it does not run here
	}
	if _, err := m.host.Stop(ctx, m.Name); err != nil {
		return err
	}
	for m.roleNow() != "stopped" { // it is said once the guest's machine has ended
		if sleep(ctx, stopLook); ctx.Err() != nil {
			return fmt.Errorf("guest %q is stopped, and its machine has not ended: %w", m.Name, ctx.Err())
		}
	}
	return nil
}

const stopLook = 5 * time.Millisecond

func (m *manager) roleNow() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.role
}

// TakeBack has the guests that were handed over go on here after all.
func (h *Host) TakeBack() {
	for _, m := range h.now() {
		select {
		case m.goOn <- struct{}{}:
		default: // told already
		}
	}
}

// now are the guests' managers at this moment.
func (h *Host) now() []*manager {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Values(h.managers))
}

func (m *manager) handOver(ctx context.Context) error {
	select {
	case <-m.goOn: // an earlier handover was given up, and it had none
	default:
	}
	m.mu.Lock()
	p, role := m.primary, m.role
	m.mu.Unlock()
	switch role {
	case "booting", "recovering", "restoring", "yielding":
		return fmt.Errorf("guest %q: this host is %s: try again when that is over", m.Name, role)
	}
	if p == nil || m.LeftFile == "" {
		return nil
	}
	if err := p.HandOver(ctx); err != nil {
		return fmt.Errorf("guest %q: %w", m.Name, err)
	}
	return nil
}

// handedOver waits for the daemon's end, or for the guest to go on here.
func (m *manager) handedOver(ctx context.Context, left primary.Left) error {
	m.left = &left
	m.slog.Info("the guest stands still for the next daemon", "protected", left.Protected(), "at", left.At)
	select {
	case <-ctx.Done():
	case <-m.goOn:
		m.slog.Info("the guest goes on here")
	}
	return nil
}

// leaveLeft notes what is left, when everything that may leave has left.
func (m *manager) leaveLeft() {
	end := time.NewTimer(drainTime)
	defer end.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting; {
		if frames, _ := m.Gate.Held(); frames == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-end.C:
			waiting = false
		}
	}
	m.Gate.Shut()
	if !m.left.Protected() {
		return
	}
	if err := WriteLeft(m.LeftFile, *m.left); err != nil {
		m.slog.Warn("the guest's protection will begin anew", "err", err)
	}
}
