package leases

import (
	"strings"
	"testing"
	"time"

	"understudy/clock"
	"understudy/ownership"
)

const (
	web   = "web"
	hostA = ownership.HostID("a")
	hostB = ownership.HostID("b")
	lease = time.Second
)

var (
	long  = Lengths{Length: lease, Longest: lease, Revision: 1}
	over  = lease + Drift(lease) // a lease granted now is certainly over
	alone = ownership.Guest{Generation: 4, Revision: 20, Owner: hostA, Phase: ownership.PhaseActive, Desired: ownership.Running}
	given = with(alone, func(g *ownership.Guest) { g.Phase = ownership.PhaseSurrendered })
	taken = with(alone, func(g *ownership.Guest) {
		g.Generation, g.Owner, g.Previous, g.Phase = 5, hostB, hostA, ownership.PhaseActivating
	})
	returned = with(alone, func(g *ownership.Guest) { g.Generation = 6 })
)

func with(g ownership.Guest, change func(*ownership.Guest)) ownership.Guest {
	change(&g)
	return g
}

func by(h ownership.HostID, k ownership.Kind) ownership.Command {
	return ownership.Command{Guest: web, Kind: k, Host: h}
}

func TestRenewAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		who     ownership.HostID
		applied ownership.Guest
		log     Lengths
		want    Answer
		reason  string
	}{
		"the owner":                         {hostA, alone, long, Granted{lease}, ""},
		"the owner of a stopped guest":      {hostA, with(alone, func(g *ownership.Guest) { g.Desired = ownership.Stopped }), long, Granted{lease}, ""},
		"a taker that activates":            {hostB, with(taken, func(g *ownership.Guest) { g.Generation = 4 }), long, Granted{lease}, ""},
		"another host":                      {hostB, alone, long, Denied{}, "b is not the owner"},
		"a generation that is over":         {hostA, taken, long, Denied{}, "generation 4 is over"},
		"RULES 3: one not applied here yet": {hostA, with(alone, func(g *ownership.Guest) { g.Generation = 3 }), long, Later{}, "generation 4 is not applied"},
		"RULES 7: who has surrendered":      {hostA, given, long, Denied{}, "the guest is surrendered"},
		"a log without a length":            {hostA, alone, Lengths{}, Later{}, "no length"},
	} {
		t.Run(name, func(t *testing.T) {
			got := Begin(0).Renew(Renewal{Guest: web, Who: tc.who, Generation: 4, Received: 1}, tc.applied, tc.log)
			var reason string
			switch a := got.(type) {
			case Denied:
				reason, got = a.Reason, Denied{}
			case Later:
				reason, got = a.Reason, Later{}
			}
			if got != tc.want || !strings.Contains(reason, tc.reason) {
				t.Fatalf("%#v, %q; want %#v, %q", got, reason, tc.want, tc.reason)
			}
		})
	}
}

// book is a Book whose reign began so long ago that only its own grants count.
func book() *Book { return Begin(-clock.Instant(time.Hour)) }

// wants demands a verdict and returns the ticket of a Go.
func wants(t *testing.T, b *Book, now clock.Instant, c ownership.Command, before, after ownership.Guest, want Verdict) Ticket {
	t.Helper()
	got := b.Propose(now, c, before, after, long)
	ticket := Ticket{}
	if g, ok := got.(Go); ok {
		ticket, got = g.Ticket, Go{}
	}
	if got != want {
		t.Fatalf("%s by %s at %s: %#v, want %#v", c.Kind, c.Host, now, got, want)
	}
	return ticket
}

// fencedA is a guest whose owner is known to be off, after it had a lease.
var fencedA = with(alone, func(g *ownership.Guest) { g.Fenced = hostA })

// TestAFencedHostGetsNoLease: nobody would wait for it.
func TestAFencedHostGetsNoLease(t *testing.T) {
	a, ok := book().Renew(Renewal{Guest: web, Who: hostA, Generation: fencedA.Generation, Received: 100}, fencedA, long).(Later)
	if !ok || !strings.Contains(a.Reason, "is fenced") {
		t.Errorf("%+v, %v", a, ok)
	}
}

// RULES 3, 7: whose lease is waited for.
func TestWhoIsWaitedFor(t *testing.T) {
	for name, tc := range map[string]struct {
		c             ownership.Command
		before, after ownership.Guest
		waits, takes  bool
	}{
		"a takeover":                               {by(hostB, ownership.Takeover), alone, taken, true, true},
		"a takeover of what was surrendered":       {by(hostB, ownership.Takeover), given, taken, false, true},
		"a takeover from a host that is off":       {by(hostB, ownership.Takeover), fencedA, with(taken, func(g *ownership.Guest) { g.Fenced = hostA }), false, true},
		"a forced one":                             {by(hostB, ownership.Force), alone, taken, true, true},
		"a start elsewhere":                        {by(hostB, ownership.Start), alone, with(alone, func(g *ownership.Guest) { g.Owner = hostB }), true, true},
		"a first start":                            {by(hostB, ownership.Start), ownership.Guest{}, alone, false, false},
		"the return by the former owner":           {by(hostA, ownership.Return), taken, returned, true, true},
		"the return by the taker: its own doing":   {by(hostB, ownership.Return), taken, returned, false, false},
		"what does not change the owner: in sync":  {by(hostA, ownership.InSync), alone, alone, false, false},
		"what does not change the owner: activate": {by(hostB, ownership.Activated), taken, taken, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := book()
			const received = clock.Instant(100)
			if _, ok := b.Renew(Renewal{Guest: web, Who: tc.before.Owner, Generation: tc.before.Generation, Received: received},
				with(tc.before, func(g *ownership.Guest) { g.Phase, g.Fenced = ownership.PhaseActive, "" }), long).(Granted); !ok && tc.before.Generation > 0 {
				t.Fatal("not renewed")
			}
			end := received.Add(over)
			if tc.waits {
				wants(t, b, received, tc.c, tc.before, tc.after, Wait{Until: end})
				wants(t, b, end-1, tc.c, tc.before, tc.after, Wait{Until: end})
				wants(t, Begin(7), 7, tc.c, tc.before, tc.after, Wait{Until: clock.Instant(7).Add(over)}) // a new leader
			} else {
				end = received
			}
			ticket := wants(t, b, end, tc.c, tc.before, tc.after, Go{})
			if (ticket != Ticket{}) != tc.takes || b.Deciding() != tc.takes {
				t.Fatalf("ticket %+v, deciding %v", ticket, b.Deciding())
			}
		})
	}
}

// RULES 3, 4: from Go to Settle renewals are refused and no other proposal
// takes the guest; for good, when the fate is never known.
func TestRenewalsAreShutWhileItIsDecided(t *testing.T) {
	renewal := Renewal{Guest: web, Who: hostA, Generation: 4, Received: 100}
	take := by(hostB, ownership.Takeover)
	for name, tc := range map[string]struct {
		fate Fate
		open bool
	}{"refused": {Refused, true}, "applied": {Applied, true}, "unknown": {Unknown, false}} {
		t.Run(name, func(t *testing.T) {
			b := book()
			ticket := wants(t, b, 100, take, alone, taken, Go{})
			if a, ok := b.Renew(renewal, alone, long).(Later); !ok {
				t.Fatalf("renewed while it was decided: %#v", a)
			}
			other := Renewal{Guest: "db", Who: hostA, Generation: 4, Received: 100}
			if a, ok := b.Renew(other, alone, long).(Granted); !ok {
				t.Fatalf("another guest: %#v", a)
			}
			wants(t, b, 100, take, alone, taken, Wait{Deciding: true})
			if b.Settle(101, Ticket{}, Applied, long) || b.Settle(101, Ticket{web, 99}, Applied, long) {
				t.Fatal("settled by another's ticket")
			}
			if open := b.Settle(101, ticket, tc.fate, long); open != tc.open || b.Deciding() == open {
				t.Fatalf("open %v, deciding %v", open, b.Deciding())
			}
			if b.Settle(102, ticket, tc.fate, long) {
				t.Fatal("settled twice")
			}
			if _, granted := b.Renew(renewal, alone, long).(Granted); granted != tc.open {
				t.Fatalf("renewed: %v", granted)
			}
		})
	}
}

// RULES 10: a takeover that was applied counts for the taker as a renewal at
// that moment: its former owner cannot take the guest back before the taker had
// the time of a lease to renew. What was refused counts for nobody.
func TestATakerHasALeaseToBegin(t *testing.T) {
	take, back := by(hostB, ownership.Takeover), by(hostA, ownership.Return)
	b := book()
	ticket := wants(t, b, 100, take, given, taken, Go{})
	// Applied, and the leader has not learned of it yet.
	wants(t, b, 150, back, taken, returned, Wait{Deciding: true})
	b.Settle(200, ticket, Applied, long)
	end := clock.Instant(200).Add(over)
	wants(t, b, 201, back, taken, returned, Wait{Until: end})
	// The taker renews: it is waited for anew.
	if a, ok := b.Renew(Renewal{Guest: web, Who: hostB, Generation: 5, Received: end - 1}, taken, long).(Granted); !ok {
		t.Fatalf("%#v", a)
	}
	wants(t, b, end, back, taken, returned, Wait{Until: (end - 1).Add(over)})
	wants(t, b, (end - 1).Add(over), back, taken, returned, Go{})

	b = book()
	b.Settle(200, wants(t, b, 100, take, given, taken, Go{}), Refused, long)
	wants(t, b, 200, take, alone, taken, Go{})
}

// RULES 3: the length of a lease. A longer one is forgotten a longer one later.
func TestKeepTheLength(t *testing.T) {
	b := Begin(0)
	asks := func(now clock.Instant, log Lengths, duty Duty, next clock.Instant) {
		t.Helper()
		if d, n := b.Keep(now, log); d != duty || n != next {
			t.Fatalf("at %s, %+v: duty %d, again at %s; want %d, %s", now, log, d, n, duty, next)
		}
	}
	asks(0, Lengths{}, Write, 0)
	asks(5, long, Rest, 0)
	short := Lengths{Length: lease / 2, Longest: lease, Revision: 2}
	end := clock.Instant(100).Add(over)
	asks(100, short, Rest, end)
	asks(200, short, Rest, end)
	short.Revision++ // changed again
	end = clock.Instant(300).Add(over)
	asks(300, short, Rest, end)
	asks(end, short, Forget, 0)
	asks(end+1, short, Forget, 0) // the first try failed
	short.Longest = short.Length
	asks(end+2, short, Rest, 0)
}
