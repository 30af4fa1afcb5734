// Package leases is the pure part of a leader's leases: what the leader of the
// ownership log has granted during its reign, and what follows from it. Package
// failover is the shell around it (raft, sockets, timers); package simulation
// runs the same code under simulated faults.
//
//	event                                     answer
//	Renew    a renewal arrived, confirmed     Granted, Later, Denied
//	Propose  a command that would apply       Go, Wait
//	Settle   what became of it                renewals are answered again, or not
//	Keep     the log's length of a lease      Write, Forget, Rest
//
// A Book has no clock, no lock and no goroutine. Its caller reads the clock,
// and looks at the applied state in the same critical section: between the
// look and the event nothing may be settled.
//
// The times: an owner counts its lease from before it sent the request, by its
// own clock; the leader writes down the moment the request arrived, which is
// later, by its own. So the owner's lease is over when the leader's record is,
// but for the rates of the two clocks: see Drift.
package leases

import (
	"fmt"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

// Drift is added to every lease that a leader waits out. CLOCK_BOOTTIME is
// slewed by at most 500 ppm (adjtimex(2)), a crystal is off by some 100 ppm
// more: two clocks drift apart by less than 0.15% of the time. 0.5% and a
// millisecond leave room.
func Drift(lease time.Duration) time.Duration { return lease/200 + time.Millisecond }

// Lengths is the length of a lease as the log has it.
type Lengths struct {
	// Length of a lease granted now; 0: the log holds none yet.
	Length time.Duration `json:"length"`
	// Longest is the longest length of a lease that may still be alive. It is
	// what a new leader waits out: the old leader may have granted it just
	// before the length was shortened.
	Longest  time.Duration `json:"longest"`
	Revision uint64        `json:"revision"`
}

// Book is what one leader has granted, and what it is deciding. It begins with
// the reign and dies with it.
type Book struct {
	start  clock.Instant // of the reign
	guests map[string]*page
	taking uint64 // tickets given, ever

	shortened uint64        // the Lengths.Revision that Keep has seen to be shorter than the longest
	since     clock.Instant // and when
}

// page is what the book says of one guest.
type page struct {
	end    clock.Instant // when every lease granted in this reign is certainly over
	taking uint64        // the proposal under way that takes the guest from its owner; 0: none
}

// Begin opens the book of a reign. start must lie after the election and after
// everything that an earlier leader has put into the log was applied: whatever
// that leader granted, it granted for requests that arrived before.
func Begin(start clock.Instant) *Book {
	return &Book{start: start, guests: map[string]*page{}}
}

func (b *Book) page(guest string) *page {
	p := b.guests[guest]
	if p == nil {
		p = &page{}
		b.guests[guest] = p
	}
	return p
}

// Renewal is a request to renew a lease. After it arrived it was confirmed that
// nobody else had been elected.
type Renewal struct {
	Guest      string
	Who        ownership.HostID
	Generation epoch.Generation
	Received   clock.Instant // when it arrived, by the leader's clock
}

// Answer is Granted, Later or Denied.
type Answer interface{ answer() }

type (
	// Granted: the lease lasts this long from when the request was sent.
	Granted struct{ Length time.Duration }
	// Later: asking again may help.
	Later struct{ Reason string }
	// Denied: the applied state forbids it, and asking again will not help.
	Denied struct{ Reason string }
)

func (Granted) answer() {}
func (Later) answer()   {}
func (Denied) answer()  {}

// Renew checks a renewal against the applied state, and writes it down when it
// is granted. While it is decided whether another host takes the guest, nothing
// is: its proposer does not wait for what is granted now.
func (b *Book) Renew(r Renewal, applied ownership.Guest, log Lengths) Answer {
	switch {
	case r.Generation > applied.Generation:
		return Later{fmt.Sprintf("generation %d is not applied here yet", r.Generation)}
	case r.Generation < applied.Generation:
		return Denied{fmt.Sprintf("generation %d is over, the log is at %d", r.Generation, applied.Generation)}
	case applied.Generation == 0 || applied.Owner != r.Who:
		return Denied{fmt.Sprintf("%s is not the owner, %q is", r.Who, applied.Owner)}
	case applied.Phase != ownership.PhaseActive && applied.Phase != ownership.PhaseActivating:
		return Denied{fmt.Sprintf("the guest is %s", applied.Phase)}
	case applied.Fenced == r.Who:
		// Nobody waits for its lease. Whoever is back says so first (ownership.Unfence).
		return Later{fmt.Sprintf("%s is fenced: the log knows it to be off; start its daemon anew", r.Who)}
	case log.Length == 0:
		return Later{"the log holds no length of a lease yet"}
	}
	p := b.page(r.Guest)
	if p.taking != 0 {
		return Later{"a change of the owner is being decided"}
	}
	p.lives(r.Received, log)
	return Granted{log.Length}
}

// lives: a lease counts from no later than t.
func (p *page) lives(t clock.Instant, log Lengths) {
	p.end = max(p.end, t.Add(log.Length+Drift(log.Length)))
}

// runsOut returns when every lease for the guest has certainly run out, unless
// it is renewed in the meantime.
func (b *Book) runsOut(p *page, log Lengths) clock.Instant {
	return max(p.end, b.start.Add(log.Longest+Drift(log.Longest))) // what an earlier leader granted
}

// Ticket is a proposal that takes a guest from its owner and has been told to
// go. The zero Ticket takes from nobody; there is nothing to settle.
type Ticket struct {
	guest  string
	number uint64
}

// Verdict is Go or Wait.
type Verdict interface{ verdict() }

type (
	// Go: put it into the log now. Its fate is told to Settle.
	Go struct{ Ticket Ticket }
	// Wait: it would take the guest from an owner whose lease may be alive.
	// Ask again then.
	Wait struct {
		Until clock.Instant
		// Deciding: another proposal takes the guest. Until says nothing, ask
		// again when that is settled.
		Deciding bool
	}
)

func (Go) verdict()   {}
func (Wait) verdict() {}

// Propose says when a command goes into the log that would lead from the
// applied state, before, to after. A guest is taken from its owner only when
// the owner's lease has run out, be it by a takeover, by a start elsewhere, or
// by the return to its former owner; and by one proposal at a time, so that
// what Settle writes down is there before the next is looked at. A surrendered
// guest's owner has shut its gate, and a fenced one is off: there is no lease to
// wait for.
func (b *Book) Propose(now clock.Instant, c ownership.Command, before, after ownership.Guest, log Lengths) Verdict {
	if !takesFrom(before, after, c) {
		return Go{}
	}
	p := b.page(c.Guest)
	if p.taking != 0 {
		return Wait{Deciding: true}
	}
	off := before.Phase == ownership.PhaseSurrendered || before.Fenced != "" && before.Fenced == before.Owner
	if end := b.runsOut(p, log); now.Before(end) && !off {
		return Wait{Until: end}
	}
	b.taking++
	p.taking = b.taking
	return Go{Ticket{c.Guest, b.taking}}
}

// takesFrom reports whether c gives a guest that has an owner to another host
// that is not the owner's doing.
func takesFrom(before, after ownership.Guest, c ownership.Command) bool {
	return before.Generation > 0 && after.Owner != before.Owner && c.Host != before.Owner
}

// Fate is what became of a proposal.
type Fate int

const (
	// Unknown: it may have been applied, or may yet be. Renewals of its guest
	// stay shut for the rest of the reign.
	Unknown Fate = iota
	// Refused: it was not applied, and never will be.
	Refused
	// Applied: it was applied not later than now.
	Applied
)

// Settle takes note of a proposal's fate and reports whether the guest's
// renewals are answered again, and other proposals looked at. Who has taken a
// guest counts as having renewed its lease now: nobody takes it from that host
// before it had the time of a lease to renew for the first time.
func (b *Book) Settle(now clock.Instant, t Ticket, f Fate, log Lengths) (open bool) {
	p := b.guests[t.guest]
	if f == Unknown || t.number == 0 || p == nil || p.taking != t.number {
		return false
	}
	p.taking = 0
	if f == Applied {
		p.lives(now, log)
	}
	return true
}

// Deciding reports whether a proposal is under way that takes a guest.
func (b *Book) Deciding() bool {
	for _, p := range b.guests {
		if p.taking != 0 {
			return true
		}
	}
	return false
}

// Duty is what a leader owes the log's length of a lease.
type Duty int

const (
	// Rest: nothing, for now.
	Rest Duty = iota
	// Write: the log is fresh and holds no length; write one.
	Write
	// Forget: no lease of the longer length of before is alive any more.
	Forget
)

// Keep says what is to be written into the log about the length of a lease, at
// the revision of log. It is asked again at next, 0 meaning not before the
// length has changed, and after what it said was tried.
func (b *Book) Keep(now clock.Instant, log Lengths) (d Duty, next clock.Instant) {
	switch {
	case log.Length == 0:
		return Write, 0
	case log.Longest <= log.Length:
		return Rest, 0
	}
	if b.since == 0 || b.shortened != log.Revision {
		// Longer leases were granted until the change was applied, or by an
		// earlier leader: before now.
		b.shortened, b.since = log.Revision, now
	}
	if end := b.since.Add(log.Longest + Drift(log.Longest)); now.Before(end) {
		return Rest, end
	}
	return Forget, 0
}
