package hypervisortest

import (
	"context"
	"errors"
	"testing"

	"understudy/epoch"
	"understudy/hypervisor"
)

// The stories of a guest's life: how it ends, who hears of it, and who takes
// on or clears away what a dead process left.

func destroys(t testing.TB, h Harness) {
	s := newStage(t, h)
	g, sb, _ := s.pair()
	s.must(g.Destroy(), "destroy a guest")
	s.must(g.Destroy(), "destroy a guest again")
	s.must(sb.Destroy(), "destroy a standby")
	s.must(sb.Destroy(), "destroy a standby again")
	s.nothingLeft("destroy")
	s.gone(g)
	s.refused(g.Resume(s.ctx), "resume a destroyed guest")
	s.refused(g.CollectDirty(epoch.NewPageSet(g.Pages())), "collect from a destroyed guest")
	_, err := s.a.Adopt(s.ctx)
	if !errors.Is(err, hypervisor.ErrNoGuest) {
		s.Fatalf("adopt after destroy: %v, want %v", err, hypervisor.ErrNoGuest)
	}
	s.startUp(s.a) // the host is free again
}

func adopts(t testing.TB, h Harness) {
	if h.NoAdopt {
		return
	}
	s := newStage(t, h)
	if _, err := s.a.Adopt(s.ctx); !errors.Is(err, hypervisor.ErrNoGuest) {
		s.Fatalf("adopt on an empty host: %v, want %v", err, hypervisor.ErrNoGuest)
	}
	g := s.startUp(s.a)
	s.pause(g)
	s.collect(g)
	at := s.counter(g)
	s.resume(g)
	s.detach(g)

	next, err := s.a.Adopt(s.ctx)
	s.must(err, "adopt the guest")
	adopted := s.own(next)
	first := s.hash(adopted)
	if now := s.hash(adopted); now != first {
		s.Fatalf("an adopted guest is not paused: its image went from %v to %v", first, now)
	}
	if now := s.counter(adopted); now < at {
		s.Fatalf("the adopted guest is at %d, it was at %d before", now, at)
	}
	if set := s.collect(adopted); set.Count() != adopted.Pages() {
		s.Fatalf("the first collect of an adopted guest reports %d pages of %d", set.Count(), adopted.Pages())
	}
	s.workOn(adopted)

	// It can be protected like any other.
	s.pause(adopted)
	sb := s.standby(s.b, adopted.Spec())
	s.dropStandby(sb)
	full := epoch.NewPageSet(adopted.Pages())
	full.Fill()
	s.collect(adopted)
	s.copyPages(adopted, sb, full)
	s.workOn(adopted)
	s.checkpoint(adopted, sb)
	s.must(adopted.Destroy(), "destroy an adopted guest")
}

func hearsPowerOff(t testing.TB, h Harness) { hears(t, h, h.PowerOff, hypervisor.EventShutdown) }
func hearsPanic(t testing.TB, h Harness)    { hears(t, h, h.Panic, hypervisor.EventPanic) }

// hears tells of a guest that stops by itself. It stands still afterwards and
// is all there: its owner takes a last checkpoint of it (RULES 6).
func hears(t testing.TB, h Harness, act func(context.Context, hypervisor.Guest) error, want hypervisor.EventKind) {
	if act == nil {
		return
	}
	s := newStage(t, h)
	g := s.startUp(s.a)
	s.must(act(s.ctx, g.Guest), "make the guest do it")
	s.awaitEvent(g, want)
	first := s.hash(g)
	if now := s.hash(g); now != first {
		s.Fatalf("after %v the guest's image went from %v to %v", want, first, now)
	}
	sb := s.standby(s.b, g.Spec())
	s.dropStandby(sb)
	s.checkpoint(g, sb)
	s.must(g.Destroy(), "destroy the guest after %v", want)
	s.gone(g)
}

func hearsReboot(t testing.TB, h Harness) {
	if h.Reboot == nil {
		return
	}
	s := newStage(t, h)
	g := s.startUp(s.a)
	s.pause(g)
	s.collect(g)
	mirror := make([]byte, g.Pages()*epoch.PageSize)
	s.changed(g, mirror)
	s.resume(g)
	s.must(h.Reboot(s.ctx, g.Guest), "make the guest reboot")
	s.awaitEvent(g, hypervisor.EventReset)
	s.must(s.WaitUp(s.ctx, g.Guest), "wait until the guest is up again")
	s.pause(g)
	reported, changed := s.collect(g), s.changed(g, mirror)
	for first, count := range changed.Runs {
		for f := first; f < first+epoch.GFN(count); f++ {
			if !reported.Contains(f) {
				s.Fatalf("the reboot changed page %d, which was not reported dirty", f)
			}
		}
	}
	s.workOn(g)
}

func hearsCrash(t testing.TB, h Harness) {
	if h.Crash == nil {
		return
	}
	s := newStage(t, h)
	g := s.startUp(s.a)
	s.must(g.Alive(), "look for a guest that lives")
	s.must(h.Crash(s.ctx, g.Guest), "crash the hypervisor")
	s.awaitEvent(g, hypervisor.EventExited)
	s.refused(g.Alive(), "look for a guest whose hypervisor is gone")
	s.gone(g)
	s.refused(g.Pause(s.ctx), "pause a guest whose hypervisor is gone")
	s.refused(g.CollectDirty(epoch.NewPageSet(g.Pages())), "collect from a guest whose hypervisor is gone")
	s.must(g.Destroy(), "destroy a guest whose hypervisor is gone")
	s.nothingLeft("destroying a crashed guest")
}

func cleans(t testing.TB, h Harness) {
	s := newStage(t, h)
	g := s.startUp(s.a)
	sb := s.standby(s.b, g.Spec())
	s.detach(g)
	s.must(s.a.Clean(s.ctx), "clean the host of a guest")
	s.must(s.b.Clean(s.ctx), "clean the host of a standby")
	s.nothingLeft("clean")
	s.must(s.a.Clean(s.ctx), "clean a clean host")
	if _, err := s.a.Adopt(s.ctx); !errors.Is(err, hypervisor.ErrNoGuest) {
		s.Fatalf("adopt after clean: %v, want %v", err, hypervisor.ErrNoGuest)
	}
	s.must(sb.Destroy(), "destroy a standby that was cleaned away")
	s.startUp(s.a)
}

// honoursContext makes each call with a context that is over: it fails with
// the context's error and leaves everything as it was.
func honoursContext(t testing.TB, h Harness) {
	s := newStage(t, h)
	over, cancel := context.WithCancel(s.ctx)
	cancel()
	cancelled := func(err error, what string) {
		s.Helper()
		if !errors.Is(err, context.Canceled) {
			s.Fatalf("%s with a cancelled context: %v, want %v", what, err, context.Canceled)
		}
	}
	_, err := s.a.Start(over)
	cancelled(err, "start")
	s.nothingLeft("a cancelled start")

	g, sb, state := s.pair()
	at := s.counter(g)
	_, err = s.b.Standby(over, g.Spec())
	cancelled(err, "standby")
	_, err = s.b.Adopt(over)
	cancelled(err, "adopt")
	cancelled(s.b.Clean(over), "clean")
	_, err = g.AppendDeviceState(over, nil)
	cancelled(err, "device state")
	cancelled(g.Resume(over), "resume")
	if now := s.counter(g); now != at {
		s.Fatalf("a cancelled resume let the guest run from %d to %d", at, now)
	}
	s.resume(g)
	cancelled(g.Pause(over), "pause")
	s.awaitCounter(g, at)
	s.must(g.Destroy(), "lose the guest")

	cancelled(sb.Load(over, state, nil), "load")
	cancelled(sb.Reset(over), "reset")
	s.must(sb.Reset(s.ctx), "reset after cancelled calls")
	s.must(sb.Load(s.ctx, state, nil), "load after cancelled calls")
	_, err = sb.Run(over)
	cancelled(err, "run")
	next, err := sb.Run(s.ctx)
	s.must(err, "run after a cancelled call")
	s.awaitCounter(s.own(next), at)
}

// awaitEvent waits for an event; resets before it are passed over, since a
// firmware may reset a machine more than once.
func (s *stage) awaitEvent(g *actor, want hypervisor.EventKind) {
	s.Helper()
	for {
		select {
		case e, ok := <-g.events:
			switch {
			case !ok:
				s.Fatalf("the guest is gone, its owner has not heard of %v", want)
			case e.Kind == want:
				return
			case e.Kind != hypervisor.EventReset:
				s.Fatalf("the guest's owner heard of %v (%s), want %v", e.Kind, e.Detail, want)
			}
		case <-s.ctx.Done():
			s.Fatalf("the guest's owner has not heard of %v: %v", want, s.ctx.Err())
		}
	}
}

// gone waits until the guest's event channel is closed.
func (s *stage) gone(g *actor) {
	s.Helper()
	for {
		select {
		case _, ok := <-g.events:
			if !ok {
				return
			}
		case <-s.ctx.Done():
			s.Fatalf("the event channel of a guest that is gone is still open")
		}
	}
}
