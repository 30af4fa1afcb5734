package xen

// This file is what happens to a domain by itself, or by others.
//
//	Domain.Await ─> examine ─┬─ suspended, as we want: it stands still
//	                         ├─ powered off, crashed: it stands still, for good
//	                         ├─ rebooted: renew ─> a new domain in its place, which runs
//	                         └─ gone: nothing more can happen
//
// To Xen a reboot is the end of a domain; somebody has to make the next one. It is
// of the same shape, since it is of the same configuration: the image stays, and
// every page of it is dirty.

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"understudy/hypervisor"
)

// Successor is the domain that follows one which has rebooted. It has yet to run.
type Successor struct {
	Domain  Domain
	Ask     Asker
	Plugged Plugged
	Frames  *Frames
	Rings   []uint64
}

// fate is why a domain will not go on by itself.
type fate uint8

const (
	fateNone    fate = iota
	fateOff          // it has powered itself off
	fateCrashed      // it can only begin anew
	fateForeign      // somebody else has suspended it
)

// watch tells of what happens to the domain.
func (g *Guest) watch(ctx context.Context) {
	defer close(g.events)
	for {
		event, over := g.examine(ctx)
		g.tell(ctx, event)
		if over {
			return
		}
		if err := g.wait(ctx); err != nil {
			if ctx.Err() == nil {
				g.tell(ctx, g.useless(hypervisor.EventFault, err))
			}
			return
		}
	}
}

// wait returns when something has happened to the domain, or a restart is asked
// for.
func (g *Guest) wait(ctx context.Context) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	g.mu.Lock()
	g.wake = cancel
	if g.restarting || g.displaced.Load() {
		cancel()
	}
	g.mu.Unlock()
	err := g.domain.Await(waiting) // only this goroutine replaces the domain
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}

// examine asks what the domain is now; over: nothing more can happen to it.
func (g *Guest) examine(ctx context.Context) (event *hypervisor.Event, over bool) {
	g.looking.Lock()
	defer g.looking.Unlock()
	info, err := g.domain.Info()
	g.mu.Lock()
	fate, restarting := g.fate, g.restarting
	g.mu.Unlock()
	switch {
	case errors.Is(err, syscall.ESRCH) || err == nil && info.Dying:
		return g.useless(hypervisor.EventExited, errGone), true
	case err != nil:
		return g.useless(hypervisor.EventFault, err), false
	case g.displaced.Load():
		return g.broken(ErrMoved)
	case restarting:
		return g.renew(ctx, "it has crashed")
	case info.Crashed || info.Shutdown && (info.Reason == ReasonCrash || info.Reason == ReasonWatchdog):
		return g.halted(ctx, fateCrashed, hypervisor.EventPanic, fmt.Sprintf("the guest has crashed (reason %d)", info.Reason)), false
	case !info.Shutdown:
		if fate == fateForeign {
			g.become(fateNone)
		}
		if err := g.fits(info); err != nil {
			return g.broken(err)
		}
		return nil, false
	case info.Reason == ReasonSuspend && g.asking.Load():
		if g.paused.Load() {
			return nil, false
		}
		g.plugged.Stop()
		if err := g.domain.Still(ctx); err != nil {
			return g.broken(err)
		}
		g.freeze()
		g.become(fateNone)
		return nil, false
	case info.Reason == ReasonSuspend && fate == fateForeign:
		return nil, false
	case info.Reason == ReasonSuspend:
		// What it has read of the log is lost to us.
		g.collecting.Lock()
		g.known = false
		g.collecting.Unlock()
		g.become(fateForeign)
		return &hypervisor.Event{Kind: hypervisor.EventFault, Detail: "another program has suspended the domain (xl save, xl migrate)"}, false
	case info.Reason == ReasonPowerOff:
		return g.halted(ctx, fateOff, hypervisor.EventShutdown, "the guest has powered itself off"), false
	}
	return g.renew(ctx, fmt.Sprintf("it has rebooted (reason %d)", info.Reason))
}

// broken ends what can happen to a domain that is there and of no use: its devices
// serve it no more, and its owner ends it.
func (g *Guest) broken(why error) (event *hypervisor.Event, over bool) {
	g.plugged.Stop()
	return g.useless(hypervisor.EventExited, why), true
}

// restart has a guest that has crashed begin anew, and waits until it runs.
func (g *Guest) restart(ctx context.Context) error {
	if g.again == nil {
		return errors.New("the guest has crashed: it has to be started again")
	}
	g.asking.Store(false)
	g.mu.Lock()
	g.restarting = true
	if g.wake != nil {
		g.wake()
	}
	g.mu.Unlock()
	for {
		g.mu.Lock()
		changed, ended, fate := g.changed, g.ended, g.fate
		g.mu.Unlock()
		if ended != nil || fate != fateCrashed {
			return ended
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// renew puts a new domain in the place of one that is over.
func (g *Guest) renew(ctx context.Context, why string) (event *hypervisor.Event, over bool) {
	if g.again == nil {
		return g.useless(hypervisor.EventFault, fmt.Errorf("%s: its domain is over, and a new one has to be started", why)), false
	}
	g.swap.Lock()
	err := g.replace(ctx)
	if err == nil && !g.asking.Load() {
		err = g.run(ctx)
	} else if err == nil {
		g.freeze() // who is about to pause it has it
	}
	g.swap.Unlock()
	if err != nil {
		return g.useless(hypervisor.EventFault, fmt.Errorf("%s, and cannot begin anew: %w", why, err)), true
	}
	g.become(fateNone)
	return &hypervisor.Event{Kind: hypervisor.EventReset, Detail: why}, false
}

// replace ends the domain and makes the next. The caller holds swap.
func (g *Guest) replace(ctx context.Context) error {
	err := errors.Join(gone(g.domain.Destroy()), g.plugged.Unplug(), g.domain.Close())
	g.domain = nil
	if err != nil {
		return err
	}
	next, err := g.again(ctx)
	if err != nil {
		return err
	}
	info, err := next.Domain.Info()
	if err == nil && !next.Frames.Equal(g.frames) {
		err = errors.New("the next domain's memory has another shape than its own: it was ballooned")
	}
	if err == nil {
		err = next.Domain.Limit(info.Pages)
	}
	if err != nil {
		return errors.Join(err, gone(next.Domain.Destroy()), next.Plugged.Unplug(), next.Domain.Close())
	}
	g.domain, g.ask, g.plugged, g.rings, g.pages = next.Domain, next.Ask, next.Plugged, next.Rings, info.Pages
	g.displaced.Store(false)
	g.up.Store(false)
	g.thaw()
	g.collecting.Lock()
	g.known, g.ran = false, true
	g.collecting.Unlock()
	return nil
}

// halted notes that the guest stands still, and will not go on by itself.
func (g *Guest) halted(ctx context.Context, f fate, kind hypervisor.EventKind, why string) *hypervisor.Event {
	g.mu.Lock()
	told := g.fate == f
	g.mu.Unlock()
	if told {
		return nil
	}
	g.plugged.Stop()
	_ = g.domain.Still(ctx) // a device model that is gone shows when its state is saved
	g.freeze()
	g.become(f)
	return &hypervisor.Event{Kind: kind, Detail: why}
}

// become notes the guest's fate, and has those who wait look.
func (g *Guest) become(f fate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fate, g.restarting = f, false
	close(g.changed)
	g.changed = make(chan struct{})
}

// useless notes why the domain is of no use any more, and returns the event for the
// first such reason.
func (g *Guest) useless(kind hypervisor.EventKind, why error) *hypervisor.Event {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended != nil {
		return nil
	}
	g.ended = why
	close(g.changed)
	g.changed = make(chan struct{})
	return &hypervisor.Event{Kind: kind, Detail: why.Error()}
}

func (g *Guest) tell(ctx context.Context, event *hypervisor.Event) {
	if event == nil {
		return
	}
	select {
	case g.events <- *event:
	case <-ctx.Done():
	}
}
