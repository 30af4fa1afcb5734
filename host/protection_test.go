package host

// The operator's switch and the way home, on two hosts with real cores.

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"understudy/events"
	"understudy/ownership"
	"understudy/primary"
)

// until waits until ok says so.
func (p *pair) until(what string, ok func() bool) {
	p.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			p.Fatalf("not within 20 s: %s; the log has %+v", what, p.log.now())
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}

// newest is the number of the last event.
func (d *daemon) newest() uint64 { return d.record.Newest(1, events.Filter{})[0].Seq }

func TestAPausedGuestIsAloneAndItsImageWaits(t *testing.T) {
	p := newPair(t)
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	since := a.newest()

	if g, err := a.host.Pause(t.Context(), "web"); err != nil || g.Protection != ownership.ProtectionPaused || g.InSync || g.ProtectionSince == 0 {
		t.Fatalf("paused: %+v, %v", g, err)
	}
	told := inOrder(t, a.record, since, events.KindUnprotected)
	if told[0].Reason != events.ReasonOperator {
		t.Errorf("told %+v", told[0])
	}
	if e := inOrder(t, a.record, since, events.KindProtectionChanged)[0]; e.Change != (events.Change{From: "on", To: "paused"}) {
		t.Errorf("told %+v", e)
	}
	p.until("a is alone, b waits", func() bool {
		return a.status(t).Primary.Mode == primary.ModeAlone && b.status(t).Backup != nil && b.status(t).Backup.State == "waiting"
	})
	kept := b.status(t).Backup
	if st := a.status(t); st.Protected != ProtectedNo || kept.Image == "" || !kept.Whole || kept.InSync {
		t.Errorf("a: %+v, b: %+v", st, kept)
	}
	if g, err := a.host.Pause(t.Context(), "web"); err != nil || g.Protection != ownership.ProtectionPaused {
		t.Errorf("paused once more: %+v, %v", g, err)
	}
	if _, err := b.host.Resume(t.Context(), "web"); err == nil || !strings.Contains(err.Error(), `owned by host a: ask it there`) {
		t.Errorf("b resumes it: %v", err)
	}
	if _, err := a.host.Switchover(t.Context(), "web"); err == nil {
		t.Error("a switchover without protection")
	}

	since = a.newest()
	if g, err := a.host.Resume(t.Context(), "web"); err != nil || g.Protection != ownership.ProtectionOn {
		t.Fatalf("resumed: %+v, %v", g, err)
	}
	inOrder(t, a.record, since, events.KindProtected)
	if now := b.status(t).Backup; now.Image != kept.Image {
		t.Errorf("the image was %s, and is made anew: %s", kept.Image, now.Image)
	}
}

func TestAnUnprotectedGuestsBackupKeepsNothing(t *testing.T) {
	p := newPair(t)
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	if _, err := a.host.Unprotect(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	p.until("b lets go", func() bool { return b.status(t).Role == "released" && b.status(t).Backup == nil })

	// It outlives both daemons.
	b.end()
	a.end()
	b = p.up("b", "a")
	a = p.up("a", "b")
	p.until("a goes on alone", func() bool { s := a.status(t).Primary; return s != nil && s.Mode == primary.ModeAlone && s.Running })
	p.until("b still keeps nothing", func() bool { return b.status(t).Role == "released" })

	since := a.newest()
	if _, err := a.host.Protect(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	inOrder(t, a.record, since, events.KindProtected)
}

// TestAFencedHostSaysThatItIsBack: an operator has seen that it was off.
func TestAFencedHostSaysThatItIsBack(t *testing.T) {
	p := newPair(t)
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	if _, err := a.host.FenceConfirm(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "owns none of the guests") {
		t.Errorf("the backup: %v", err)
	}
	if _, err := a.host.FenceConfirm(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "so it is not off") {
		t.Errorf("itself: %v", err)
	}
	a.lost()
	f, err := b.host.FenceConfirm(t.Context(), "a")
	if err != nil || len(f.Guests) != 1 || f.Guests[0].Fenced != "a" {
		t.Fatalf("confirmed: %+v, %v", f, err)
	}
	inOrder(t, b.record, 0, events.KindFenceAsked, events.KindFenced)
	p.until("it runs on b", func() bool { g := p.log.now(); return g.Owner == "b" && g.Phase == ownership.PhaseActive })
	a = p.up("a", "b")
	inOrder(t, a.record, 0, events.KindUnfenced)
	p.until("a is not fenced, and protects it", func() bool { g := p.log.now(); return g.Fenced == "" && g.InSync })
}

// TestATakeoverThatStandsStillHasItsOwnerFenced by the configuration's command,
// which fails at first.
func TestATakeoverThatStandsStillHasItsOwnerFenced(t *testing.T) {
	p := newPair(t)
	p.fence = make(chan error, 1)
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	p.log.deny(true) // the owner's lease does not run out
	a.lost()
	p.fence <- nil
	told := inOrder(t, b.record, 0, events.KindTakeoverAsked, events.KindFenceAsked, events.KindFenced)
	if told[1].Reason != events.ReasonPolicy || told[2].Peer != "a" {
		t.Errorf("told %+v", told)
	}
	p.until("it runs on b", func() bool { g := p.log.now(); return g.Owner == "b" && g.Phase == ownership.PhaseActive })
}

func TestFailbackGoesHomeAndNowhereElse(t *testing.T) {
	p := newPair(t)
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	refused := func(d *daemon, why string) {
		t.Helper()
		if _, err := d.host.Failback(t.Context(), "web"); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("failback: %v, want %q", err, why)
		}
	}
	refused(a, "is on a already")
	if _, err := a.host.Switchover(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	inOrder(t, b.record, 0, events.KindActivated, events.KindProtected)
	refused(a, "owned by host b: ask it there")
	if _, err := b.host.Pause(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	refused(b, "set its protection to paused")
	if _, err := b.host.Protect(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	p.until("it is protected", func() bool { return p.log.now().InSync && b.status(t).Protected == ProtectedYes })
	if g, err := b.host.Failback(t.Context(), "web"); err != nil || g.Owner != "a" {
		t.Errorf("failback: %+v, %v", g, err)
	}
}

func TestAGuestGoesHomeByItself(t *testing.T) {
	p := newPair(t)
	p.home = 300 * time.Millisecond
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	if _, err := a.host.Switchover(context.WithoutCancel(t.Context()), "web"); err != nil {
		t.Fatal(err)
	}
	told := inOrder(t, b.record, 0, events.KindActivated, events.KindProtected, events.KindFailbackBegun, events.KindSurrendered)
	if e := told[2]; e.Reason != events.ReasonPolicy || e.Peer != "a" || e.Boot.Sub(told[1].Boot) < p.home {
		t.Errorf("told %+v after %+v", e, told[1])
	}
	p.until("it runs on a", func() bool { g := p.log.now(); return g.Owner == "a" && g.Phase == ownership.PhaseActive })
}

// TestAGuestStaysWhereADrillHasBroughtIt until the drill is over.
func TestAGuestStaysWhereADrillHasBroughtIt(t *testing.T) {
	p := newPair(t)
	p.home = 50 * time.Millisecond
	var asked atomic.Int32
	over := make(chan struct{})
	p.drills = func(context.Context) string {
		asked.Add(1)
		select {
		case <-over:
			return ""
		default:
			return "20260101-weekly"
		}
	}
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	if _, err := a.host.Switchover(context.WithoutCancel(t.Context()), "web"); err != nil {
		t.Fatal(err)
	}
	p.until("it was asked for drills again and again", func() bool { return asked.Load() > 5 })
	if e := b.record.Newest(1, events.Filter{Kinds: []events.Kind{events.KindFailbackBegun}}); len(e) > 0 {
		t.Errorf("it goes home in the middle of a drill: %+v", e)
	}
	close(over)
	inOrder(t, b.record, 0, events.KindFailbackBegun, events.KindSurrendered)
	p.until("it runs on a", func() bool { g := p.log.now(); return g.Owner == "a" && g.Phase == ownership.PhaseActive })
}
