package primary

// What the record is told of a guest, in order, through what happens to it.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/events"
	"understudy/hypervisor"
	"understudy/ownership"
)

// notes is a record that keeps everything.
type notes struct {
	mu  sync.Mutex
	all []events.Event
}

func (n *notes) Add(e events.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, e)
}

// short is what was told since the last call, in words.
func (n *notes) short() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var words []string
	for _, e := range n.all {
		word := string(e.Kind)
		if e.Kind == events.KindModeChanged {
			word = e.Change.From + ">" + e.Change.To
		}
		if e.Reason != "" {
			word += ":" + string(e.Reason)
		}
		words = append(words, word)
	}
	n.all = nil
	return strings.Join(words, " ")
}

func (n *notes) has(kind events.Kind) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.all, func(e events.Event) bool { return e.Kind == kind })
}

// moodyLog may stop to renew.
type moodyLog struct {
	*rigLog
	mu     sync.Mutex
	refuse bool
}

func (l *moodyLog) Renew(ctx context.Context, guest string, g epoch.Generation) (clock.Instant, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse {
		return 0, errors.New("no leader")
	}
	return l.rigLog.Renew(ctx, guest, g)
}

func (l *moodyLog) renews(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = !yes
}

const intoProtection = "starting>alone unprotected:no-backup-yet alone>syncing syncing>entering entering>protected protected"

func TestTheRecordIsToldWhatHappens(t *testing.T) {
	for _, c := range []struct {
		name  string
		story func(r *rig, n *notes, l *moodyLog)
		until events.Kind
		want  string
	}{
		{"the backup falls silent", func(r *rig, _ *notes, _ *moodyLog) { r.refuseDials(); r.cut() }, events.KindUnprotected,
			"protected>detaching unprotected:backup-silent detaching>alone"},
		{"it comes back in time", func(r *rig, _ *notes, _ *moodyLog) { r.cut(); time.Sleep(200 * time.Millisecond) }, "", ""},
		{"the guest reboots", func(r *rig, _ *notes, _ *moodyLog) { r.must(r.guest.Reboot()) }, events.KindGuestEvent, "guest-event:reset"},
		{"the guest powers itself off", func(r *rig, _ *notes, _ *moodyLog) { r.must(r.guest.PowerOff()) }, events.KindStopped,
			"guest-event:shutdown protected>leaving stopped:shutdown leaving>ended"},
		{"an operator stops it", func(r *rig, _ *notes, _ *moodyLog) { r.must(r.p.Ask(r.t.Context(), RequestStop)) }, events.KindStopped,
			"stop-asked protected>leaving stopped:operator leaving>ended"},
		{"a switchover that the backup does not take", func(r *rig, _ *notes, _ *moodyLog) {
			r.must(r.p.Ask(r.t.Context(), RequestSwitchover))
		}, events.KindTakenBack, "switchover-asked protected>leaving surrendered:operator leaving>yielded taken-back yielded>alone unprotected:taken-back"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, nil, func(r *rig) {
				n, l := &notes{}, &moodyLog{rigLog: r.log}
				r.p.Events, r.p.Log = n, l
				r.start(true)
				r.wait("protected", 5*time.Second, r.protected)
				if got := n.short(); got != intoProtection {
					t.Fatalf("told %q, want %q", got, intoProtection)
				}
				c.story(r, n, l)
				r.wait(c.name, 20*time.Second, func() bool { return c.until == "" || n.has(c.until) })
				time.Sleep(time.Millisecond)
				// Afterwards it is protected anew, maybe.
				if got := n.short(); got != c.want && !strings.HasPrefix(got, c.want+" ") || c.want == "" && got != "" {
					t.Errorf("told %q, want %q", got, c.want)
				}
			})
		})
	}
}

// TestALostLeaseIsToldOnce, with how long the guest stood still for it.
func TestALostLeaseIsToldOnce(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		n, l := &notes{}, &moodyLog{rigLog: r.log}
		r.p.Events, r.p.Log = n, l
		r.start(false)
		r.wait("it runs", 5*time.Second, func() bool { return r.p.Status().Mode == ModeAlone })
		n.short()
		l.renews(false)
		r.wait("the lease is lost", 5*time.Second, func() bool { return n.has(events.KindLeaseLost) })
		time.Sleep(3 * time.Second)
		l.renews(true)
		r.wait("it goes on", 5*time.Second, func() bool { return n.has(events.KindLeaseRenewed) })
		stood := n.all[len(n.all)-1].Duration
		if got := n.short(); got != "lease-lost lease-renewed-again" || stood < 3*time.Second || stood > 4*time.Second {
			t.Errorf("told %q, stood still %v", got, stood)
		}
	})
}

// teller is a primary of which only what it says counts.
func teller(log ownership.Guest) (*Primary, *notes) {
	n := &notes{}
	cfg := DefaultConfig("web", "a", rigLease)
	return &Primary{cfg: cfg, Deps: Deps{Events: n, Clock: clock.Boot{}}, core: NewCore(cfg, log, true)}, n
}

// TestHowAGuestCameHereIsTold: the first word of a primary is true of each way there.
func TestHowAGuestCameHereIsTold(t *testing.T) {
	for _, c := range []struct {
		log     ownership.Guest
		running bool
		want    string
	}{
		{ownership.Guest{Generation: 1, Owner: "a", Phase: ownership.PhaseActive}, false, "the guest begins here, and no backup is in sync yet"},
		{ownership.Guest{Generation: 4, Owner: "a", Phase: ownership.PhaseActivating, Previous: "b"}, false, "the guest has come here from b, and no backup is in sync yet"},
		{ownership.Guest{Generation: 4, Owner: "a", Phase: ownership.PhaseActive}, true, "the guest was found running here, and no backup is in sync yet"},
	} {
		c.log.Desired = ownership.Running
		p, n := teller(c.log)
		p.State, p.Running = c.log, c.running
		p.tellMode(0, ModeAlone)
		if got := n.all[len(n.all)-1]; got.Reason != events.ReasonNoBackupYet || got.Text != c.want {
			t.Errorf("%+v: told %s: %q, want %q", c.log, got.Reason, got.Text, c.want)
		}
	}
}

func TestWhyAGuestIsNotProtected(t *testing.T) {
	image := epoch.NewIncarnation()
	log := ownership.Guest{Generation: 3, Revision: 9, Owner: "a", Phase: ownership.PhaseActive, Desired: ownership.Running,
		InSync: true, Backup: ownership.Backup{Host: "b", Image: image, Epoch: 1}}
	now := clock.Instant(time.Hour)
	for _, c := range []struct {
		want events.Reason
		text string
		make func(c *Core)
	}{
		{events.ReasonBackupSilent, "nothing is heard of b", func(*Core) {}},
		{events.ReasonBackupGone, "its daemon has died", func(c *Core) { c.deserted = true }},
		{events.ReasonNoAck, "has not acknowledged epoch 8 for", func(c *Core) { c.sealed = 8; c.sealedAt[8] = now.Add(-c.cfg.AckTimeout) }},
		{events.ReasonNoCapture, "no checkpoint of the guest", func(c *Core) { c.failing = now.Add(-c.cfg.AckTimeout) }},
		{events.ReasonBackupStalled, "stood still", func(c *Core) { c.stalled = true }},
		{events.ReasonImageDiffers, "differs", func(c *Core) { c.mismatched = true }},
		{events.ReasonImageLost, "has lost its image", func(c *Core) { c.mismatched, c.image = true, epoch.NewIncarnation() }},
		{events.ReasonImageLost, "has lost its image", func(c *Core) { c.log.InSync = false }},
		{events.ReasonTakenBack, "came back", func(c *Core) { c.generation++ }},
	} {
		p, n := teller(log)
		p.core.now, p.core.peer, p.core.image, p.core.acked, p.core.sealed = now, "b", image, 7, 7
		p.tellMode(ModeEntering, ModeProtected)
		c.make(p.core)
		p.tellMode(ModeProtected, ModeDetaching)
		got := n.all[len(n.all)-1]
		if got.Kind != events.KindUnprotected || got.Reason != c.want || !strings.Contains(got.Text, c.text) || got.Peer != "b" || got.Guest != "web" {
			t.Errorf("%s: told %+v", c.want, got)
		}
		p.tellMode(ModeDetaching, ModeAlone)
		p.tellMode(ModeAlone, ModeSyncing)
		if n.has(events.KindUnprotected) && strings.Count(n.short(), "unprotected") != 1 {
			t.Errorf("%s: told more than once", c.want)
		}
	}
}

// TestAnOutcomeIsToldOnceHoweverItIsLearnt: from the proposal's answer, or from
// the log when there was none.
func TestAnOutcomeIsToldOnceHoweverItIsLearnt(t *testing.T) {
	before := ownership.Guest{Generation: 3, Revision: 9, Owner: "a", Phase: ownership.PhaseActivating, Previous: "b", Desired: ownership.Running}
	command := ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Activated, Host: "a", Generation: 3, Revision: 9}
	after, err := ownership.Apply(before, command)
	if err != nil {
		t.Fatal(err)
	}
	answer, applied := Proposed{Command: command, State: after}, LogApplied{after}
	lost := Proposed{Command: command, Err: errors.New("no answer")}
	for i, story := range [][]Event{{answer}, {answer, applied}, {applied, answer}, {lost, applied, answer}, {lost, applied, lost}} {
		p, n := teller(before)
		p.said.proposed = command
		for _, ev := range story {
			p.tell(ev, 0)
		}
		if got := n.short(); got != "activated" {
			t.Errorf("story %d: told %q", i, got)
		}
	}
	p, n := teller(before)
	p.tell(LogApplied{after}, 0) // somebody else's
	p.said.proposed = command
	p.tell(lost, 0)
	if got := n.short(); got != "" {
		t.Errorf("told %q of what is not known", got)
	}
}

// TestTheRecordKnowsWhoGaveAGuestUp: the same commands have more than one meaning.
func TestTheRecordKnowsWhoGaveAGuestUp(t *testing.T) {
	for _, c := range []struct {
		kind  ownership.Kind
		owner ownership.HostID
		make  func(c *Core)
		want  string
	}{
		{ownership.Surrender, "a", func(*Core) {}, "surrendered:operator"},
		{ownership.Surrender, "a", func(c *Core) { c.guestErr = true }, "surrendered:guest-lost"},
		{ownership.Return, "a", func(*Core) {}, "taken-back"},
		{ownership.Return, "b", func(*Core) {}, "returned"},
		{ownership.Reclaim, "a", func(*Core) {}, "taken-back"},
		{ownership.Stop, "a", func(c *Core) { c.guestOff = true }, "stopped:shutdown"},
		{ownership.InSync, "a", func(*Core) {}, ""},
		{ownership.OutOfSync, "a", func(*Core) {}, ""},
	} {
		p, n := teller(ownership.Guest{Generation: 3, Owner: "a"})
		c.make(p.core)
		p.said.proposed = ownership.Command{ID: ownership.NewCommandID(), Kind: c.kind, Backup: ownership.Backup{Host: "b", Epoch: 5}}
		p.tell(Proposed{Command: p.said.proposed, State: ownership.Guest{Owner: c.owner, Generation: 4}}, 0)
		if got := n.short(); got != c.want {
			t.Errorf("%s: told %q, want %q", c.kind, got, c.want)
		}
	}
}

// TestAMismatchIsTold, and what a guest does, in its hypervisor's words.
func TestAMismatchIsTold(t *testing.T) {
	p, n := teller(ownership.Guest{Generation: 3, Owner: "a"})
	p.core.peer = "b"
	p.tell(Mismatch{Number: 12}, 0)
	p.tell(GuestDid{hypervisor.Event{Kind: hypervisor.EventFault, Detail: "io error"}}, 0)
	if len(n.all) != 2 || n.all[0].Epoch != 12 || n.all[0].Kind != events.KindMismatch || n.all[1].Text != "the guest: fault: io error" {
		t.Errorf("told %s", fmt.Sprint(n.all))
	}
}

// TestNothingNewCostsNothing: the loop steps at every epoch.
func TestNothingNewCostsNothing(t *testing.T) {
	p, n := teller(ownership.Guest{Generation: 3, Owner: "a"})
	var ev Event = Acked{5}
	if allocs := testing.AllocsPerRun(1000, func() { p.tell(ev, p.core.Mode()) }); allocs != 0 || len(n.all) != 0 {
		t.Errorf("%v allocations, told %v", allocs, n.all)
	}
}
