package host

// Forced failovers, on two hosts with real cores. The log of these tests grants
// at once: whose lease is waited for is told in packages leases and simulation.

import (
	"context"
	"strings"
	"testing"

	"understudy/events"
	"understudy/hypervisor/sim"
	"understudy/ownership"
	"understudy/primary"
)

// lost ends a host with all that runs on it.
func (d *daemon) lost() {
	d.end()
	d.machine.Kill()
}

func (p *pair) refused(d *daemon, r FailoverRequest, why string) {
	p.Helper()
	if _, err := d.host.Failover(p.Context(), "web", r); err == nil || !strings.Contains(err.Error(), why) {
		p.Errorf("failover %+v: %v, want %q", r, err, why)
	}
}

func TestAForcedFailoverGoesOnFromThePausedImage(t *testing.T) {
	p := newPair(t)
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	p.refused(a, FailoverRequest{}, "host a owns guest \"web\" already")
	p.until("b is fed", func() bool { return b.status(t).Backup.InSync })
	p.refused(b, FailoverRequest{}, "use `understudy switchover web`, which loses nothing")
	if _, err := a.host.Pause(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	p.until("b waits", func() bool { return b.status(t).Log.Protection != "" && b.status(t).Backup.State == "waiting" })
	kept := b.status(t).Backup
	a.lost()

	c, err := b.host.FailoverCost(t.Context(), "web")
	if err != nil || c.Way != WayImage || c.Epoch != kept.Epoch || c.EpochAge <= 0 || !strings.Contains(c.Why, "set the guest's protection to paused") ||
		!strings.Contains(c.Loses[0], "everything it did since is lost, also what the world has seen of it") {
		t.Fatalf("the cost: %+v, %v", c, err)
	}
	p.refused(b, FailoverRequest{}, "no takeover by host b would be granted: an operator has set")
	p.refused(b, FailoverRequest{Force: true, Lose: "whatever"}, "is not what was agreed to")

	g, err := b.host.Failover(t.Context(), "web", FailoverRequest{Force: true, Lose: c.Consent})
	if err != nil || g.Owner != "b" || g.Generation != 2 || g.Protection != ownership.ProtectionPaused {
		t.Fatalf("forced: %+v, %v", g, err)
	}
	told := inOrder(t, b.record, 0, events.KindTakeoverAsked, events.KindForced, events.KindTakeoverRunning)
	if told[0].Reason != events.ReasonOperator || told[1].Reason != events.ReasonImage || told[1].Epoch != kept.Epoch || told[1].Peer != "a" ||
		!strings.Contains(told[1].Text, "is lost") {
		t.Errorf("told %+v", told)
	}

	// The former owner comes back, finds itself superseded, and protects it.
	a = p.up("a", "b")
	p.until("a stands by", func() bool { return a.status(t).Role == "backup" })
	if _, err := b.host.Resume(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	p.until("it is protected", func() bool { return p.log.now().InSync })
}

func TestAForcedFailoverWithoutAnImageBootsTheGuest(t *testing.T) {
	p := newPair(t)
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	if _, err := a.host.Unprotect(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	p.until("b lets go", func() bool { return b.status(t).Role == "released" })
	a.lost()
	c, err := b.host.FailoverCost(t.Context(), "web")
	if err != nil || c.Way != WayBoot || !strings.Contains(c.Loses[0], "booted anew") {
		t.Fatalf("the cost: %+v, %v", c, err)
	}
	g, err := b.host.Failover(t.Context(), "web", FailoverRequest{Force: true, Lose: c.Consent})
	if err != nil || g.Owner != "b" || g.Generation != 3 || g.Phase != ownership.PhaseActive {
		t.Fatalf("forced: %+v, %v", g, err)
	}
	told := inOrder(t, b.record, 0, events.KindForced, events.KindBooted)
	if told[0].Reason != events.ReasonBoot || told[0].Peer != "a" || told[0].Generation != 2 {
		t.Errorf("told %+v", told)
	}
	if st := b.status(t); st.Primary == nil || st.Primary.Mode != primary.ModeAlone {
		t.Errorf("b: %+v", st)
	}
	a = p.up("a", "b")
	p.until("a keeps nothing", func() bool { return a.status(t).Role == "released" })
}

// TestAGuestThatIsForcedHereIsNotTheOneThatWasLeftBehind: a guest was taken over
// and ran elsewhere while the daemon here was down. What that daemon left is of the
// past, and must not go on when the operator has the guest booted anew here.
func TestAGuestThatIsForcedHereIsNotTheOneThatWasLeftBehind(t *testing.T) {
	s := newScene(t)
	left, err := sim.ReadBoot(s.guest())
	s.must(err)
	s.end()

	s.log.mu.Lock()
	s.log.state = ownership.Guest{Generation: 7, Revision: 20, Owner: "b", Phase: ownership.PhaseActive, Desired: ownership.Running}
	s.log.mu.Unlock()
	busy := &busyLog{memoryLog: s.log, kept: true}
	s.cfg.Log = busy
	s.run()
	ctx, boot := context.WithValue(t.Context(), operator{}, true), FailoverRequest{Force: true, Lose: "boot generation 7"}
	if _, err := s.host.Failover(ctx, "web", boot); err == nil || !strings.Contains(err.Error(), "has not put away yet what it had of the guest") {
		t.Errorf("forced before this host knows that it lost the guest: %v", err)
	}
	busy.asked.Store(true)
	s.role("backup")
	_, err = s.host.Failover(ctx, "web", boot)
	s.must(err)
	s.counts(1)
	now, err := sim.ReadBoot(s.guest())
	s.must(err)
	if now.ID == left.ID {
		t.Errorf("the guest %+v goes on as %+v: it was lost when another host took it over", left, now)
	}
}

func TestWhatCannotBeForced(t *testing.T) {
	p := newPair(t)
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	if _, err := a.host.Stop(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	p.refused(b, FailoverRequest{Force: true}, "is meant to be stopped: start it instead")
	if _, err := b.host.FailoverCost(t.Context(), "mail"); err == nil || !strings.Contains(err.Error(), `no guest "mail"`) {
		t.Errorf("a guest that is not there: %v", err)
	}
}

// TestASharedDiskForbidsAnOldMemory: the disk has gone on without it.
func TestASharedDiskForbidsAnOldMemory(t *testing.T) {
	p := newPair(t)
	p.shared = true
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	if _, err := a.host.Pause(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	p.until("b waits", func() bool { return b.status(t).Log.Protection != "" && b.status(t).Backup.State == "waiting" })
	c, err := b.host.FailoverCost(t.Context(), "web")
	if err != nil || c.Way != WayBoot || !strings.Contains(strings.Join(c.Loses, "\n"), "a memory that does not fit it") {
		t.Errorf("the cost: %+v, %v", c, err)
	}
}

func (*oneDisk) PeerOff(bool) {}

// TestAHostThatHoldsAnOlderGuestForcesNothing: its guest would go on in the new
// generation, although another one has run elsewhere since.
func TestAHostThatHoldsAnOlderGuestForcesNothing(t *testing.T) {
	elsewhere := ownership.Guest{Generation: 3, Revision: 9, Owner: "b", Phase: ownership.PhaseActive, Desired: ownership.Running}
	for _, role := range []string{"", "primary", "recovering", "yielding"} {
		m := &manager{Guest: Guest{Name: "web"}, host: &Host{cfg: Config{Self: "a"}}, role: role}
		if _, err := m.forceBoot(t.Context(), elsewhere); err == nil || !strings.Contains(err.Error(), "has not put away yet what it had of the guest") {
			t.Errorf("a host that is %q: %v", role, err)
		}
	}
}
