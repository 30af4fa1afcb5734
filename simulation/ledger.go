package simulation

// The ownership log and its leaders. What a leader grants, and when it lets a
// proposal into the log, is decided by leases.Book, as in package failover; this
// is another shell around it, in which requests get lost, late, or applied
// without an answer, and a leader that another has followed may not know it.

import (
	"errors"
	"slices"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/failover/leases"
	"understudy/ownership"
)

var errUnknown = errors.New("the outcome is unknown")

// leaseLengths is what the log says of the length of a lease.
var leaseLengths = leases.Lengths{Length: lease, Longest: lease, Revision: 1}

type ledger struct {
	w        *world
	state    ownership.Guest
	applied  map[ownership.CommandID]bool
	sessions [2]int // of each host's proposals
	cut      [2]bool
	views    [2]ownership.Guest // what each host has applied
	reign    *reign
	former   *reign           // deposed, and maybe not aware of it
	stays    [2]time.Duration // until when a host knows of no other leader
	electing bool
	taken    time.Duration // when the last takeover was applied
}

// reign is one leader's time.
type reign struct {
	l       *ledger
	over    bool
	last    ownership.Guest // what it had applied when it was deposed
	book    *leases.Book
	waiting []func() // proposals that wait until another is settled
	pending []*entry // appended, not committed
}

type entry struct {
	c       ownership.Command
	session int
	host    int
	reign   *reign        // of the leader that appended it
	ticket  leases.Ticket // that leader's
	takes   bool          // the guest from its owner
	settled func(st ownership.Guest, err error)
	done    bool
}

func newLedger(w *world) *ledger {
	return &ledger{w: w, applied: map[ownership.CommandID]bool{}}
}

// elect ends the reign; the next begins after d. What the old leader had
// appended and not committed is committed by the new one up to some entry, and
// lost from there.
func (l *ledger) elect(d time.Duration) {
	old := l.reign
	if old != nil {
		old.over, old.last = true, l.state
		l.former = old
	}
	l.reign = nil
	if l.electing {
		return
	}
	l.electing = true
	l.w.after(d, func() {
		l.electing = false
		if old != nil {
			keep := l.w.dice.IntN(len(old.pending) + 1)
			for _, e := range old.pending[:keep] {
				l.commit(e)
			}
		}
		l.reign = newReign(l)
		l.w.say("L", "leads")
	})
}

// newReign begins after everything that an earlier leader has appended is
// applied or lost.
func newReign(l *ledger) *reign {
	r := &reign{l: l}
	start := r.clock()
	if l.w.breach == newLeaderWaitsNot {
		start = 0
	}
	r.book = leases.Begin(start)
	return r
}

// leaderEpoch is what a leader's clock says when the world begins.
const leaderEpoch = clock.Instant(time.Hour)

// clock is the leader's: fast by 500 ppm, and so it finds a lease over early.
func (r *reign) clock() clock.Instant {
	now := r.l.w.now
	return leaderEpoch.Add(now + now/2000)
}

// wait is how long the world's time goes on until the leader's clock says t.
func (r *reign) wait(t clock.Instant) time.Duration {
	left := t.Sub(r.clock())
	return left - left/2001 + time.Microsecond
}

// deciding: an entry that takes the guest is appended, and not committed.
func (r *reign) deciding() bool {
	return slices.ContainsFunc(r.pending, func(e *entry) bool { return e.takes })
}

// call carries a request of d to the leader and back until it is answered or
// the time is over. handle answers at most once.
func (l *ledger) call(d *daemon, timeout, attempt time.Duration, handle func(r *reign, sent clock.Instant, session int, reply func(done func())), expired func()) {
	over := false
	w := l.w
	d.after(timeout, func() {
		if !over {
			over = true
			expired()
		}
	})
	t := w.twist() // of the first request
	deaf := t == faultAmbiguous
	var try func()
	try = func() {
		if over {
			return
		}
		sent, session := d.clock(), d.session
		delay := w.between(200*time.Microsecond, 3*time.Millisecond)
		if w.chance(w.faults.lateRequest) {
			delay = w.between(10*time.Millisecond, 1500*time.Millisecond)
		}
		lost := w.chance(w.faults.lostRequest)
		copies := 1
		switch t {
		case faultLost:
			lost = true
		case faultDelayed:
			delay = w.between(10*time.Millisecond, attempt)
		case faultReordered: // the next attempt comes before it
			delay = w.between(attempt+5*time.Millisecond, 3*attempt)
		case faultDuplicated:
			copies = 2
		}
		t = faultKinds
		request := func() {
			r := l.reign
			if l.former != nil && (w.now < l.stays[d.h.index] || w.chance(w.faults.formerLeader)) {
				r = l.former
			}
			if lost || r == nil || l.cut[d.h.index] {
				return
			}
			handle(r, sent, session, func(done func()) {
				if deaf || w.chance(w.faults.lostAnswer) {
					return
				}
				w.after(w.between(200*time.Microsecond, 3*time.Millisecond), func() {
					if l.cut[d.h.index] {
						return
					}
					d.after(0, func() {
						if !over {
							over = true
							done()
						}
					})
				})
			})
		}
		for range copies {
			w.after(delay, request)
			delay += w.between(0, 50*time.Millisecond)
		}
		d.after(attempt, try)
	}
	try()
}

// errDenied is a renewal that the applied state forbids.
var errDenied = errors.New("the lease is denied")

func (l *ledger) renew(d *daemon, g epoch.Generation, done func(until clock.Instant, err error)) {
	w := l.w
	l.call(d, lease/2, lease/4, func(r *reign, sent clock.Instant, _ int, reply func(func())) {
		received, arrived := w.now, r.clock()
		w.after(w.between(500*time.Microsecond, 5*time.Millisecond), func() { // a majority confirms that r leads
			st := l.state
			if r.over {
				if w.breach != renewUnconfirmed {
					return // later
				}
				st = r.last
			}
			renewal := leases.Renewal{Guest: "web", Who: d.h.id, Generation: g, Received: arrived}
			switch a := r.book.Renew(renewal, st, leaseLengths).(type) {
			case leases.Later:
				return
			case leases.Denied:
				reply(func() { done(0, errDenied) })
			case leases.Granted:
				w.at(d, stepLeaseGrant)
				switch {
				case r.over && w.breach != renewUnconfirmed:
					return // the leader was lost in this moment
				case r.deciding():
					w.violated("rule 3: %s gets a lease while it is decided whether another host takes over", d.h.name)
				case r.over && l.reign != nil:
					w.violated("rule 3: %s gets a lease from a leader that another has followed: nobody waits for its end", d.h.name)
				}
				w.oracle.granted(d.h, received)
				reply(func() {
					if w.breach == renewFromReply {
						sent = d.clock()
					}
					done(sent.Add(a.Length), nil)
				})
			}
		})
	}, func() { done(0, errUnknown) })
}

// propose carries a command to the log.
func (l *ledger) propose(d *daemon, c ownership.Command, timeout time.Duration, done func(st ownership.Guest, err error)) {
	w := l.w
	attempt := 200 * time.Millisecond
	if c.Kind == ownership.Takeover || c.Kind == ownership.Start || c.Kind == ownership.Force {
		attempt = 2 * lease
	}
	appended, never := false, false // never: the leader has said that it waited in vain
	l.call(d, timeout, attempt, func(r *reign, _ clock.Instant, session int, reply func(func())) {
		if session == 0 && d.session == 0 { // the first of this process ends those of the former one
			l.sessions[d.h.index]++
			d.session = l.sessions[d.h.index]
			session = d.session
		}
		answer := func(st ownership.Guest, err error) { reply(func() { done(st, err) }) }
		giveUp := w.now + attempt*4/5
		var look func()
		look = func() {
			if r.over || w.now > giveUp || never {
				return
			}
			next, void, err := l.decide(c, session, d.h.index)
			switch {
			case void:
				if session == d.session {
					d.session = 0 // another process of this host was here: opened again
				}
				return // proposed again, in the current session
			case err != nil || next.Revision == l.state.Revision:
				answer(next, err)
				return
			}
			e := &entry{c: c, session: session, host: d.h.index, reign: r, settled: answer}
			switch v := r.book.Propose(r.clock(), c, l.state, next, leaseLengths).(type) {
			case leases.Go:
				appended = true
				e.ticket, e.takes = v.Ticket, v.Ticket != leases.Ticket{}
				r.append(e)
				if w.breach == renewWhileTaken {
					r.settle(e, leases.Refused)
				}
			case leases.Wait:
				switch {
				case !v.Deciding && (w.breach == takeoverWaitsNot || w.breach == forceWaitsNot && c.Kind == ownership.Force):
					appended = true
					e.takes = true
					r.append(e)
				case v.Deciding:
					r.waiting = append(r.waiting, look)
				default:
					w.after(r.wait(v.Until), look)
				}
			}
		}
		look()
	}, func() {
		if never = c.Kind == ownership.Force && !appended; never {
			done(ownership.Guest{}, ownership.ErrNotProposed)
			return
		}
		d.unknown++
		done(ownership.Guest{}, errUnknown)
	})
}

func (r *reign) append(e *entry) {
	r.pending = append(r.pending, e)
	w := r.l.w
	slow := w.between(500*time.Microsecond, 8*time.Millisecond)
	if w.chance(w.faults.slowCommit) {
		slow = w.between(10*time.Millisecond, 400*time.Millisecond)
	}
	w.after(slow, func() {
		if r.over {
			return
		}
		// Entries are committed in order.
		for len(r.pending) > 0 {
			first := r.pending[0]
			r.pending = r.pending[1:]
			r.l.commit(first)
			if first == e || r.over {
				return
			}
		}
	})
}

// settle tells the book what became of an entry.
func (r *reign) settle(e *entry, f leases.Fate) {
	if r.book.Settle(r.clock(), e.ticket, f, leaseLengths) {
		for _, look := range r.waiting {
			r.l.w.after(0, look)
		}
		r.waiting = nil
	}
}

// decide says what c comes to now.
func (l *ledger) decide(c ownership.Command, session, host int) (next ownership.Guest, void bool, err error) {
	if l.applied[c.ID] {
		return l.state, false, nil
	}
	if session != l.sessions[host] {
		return l.state, true, nil
	}
	next, err = l.w.breach.decide(l.state, c)
	return next, false, err
}

// commit applies an entry.
func (l *ledger) commit(e *entry) {
	if e.done {
		return
	}
	e.done = true
	next, void, err := l.decide(e.c, e.session, e.host)
	switch {
	case e.reign.over: // its leader never learns of it
	case void || err != nil:
		e.reign.settle(e, leases.Refused)
	default:
		e.reign.settle(e, leases.Applied)
	}
	if void {
		l.w.say("L", "%s by %s is void", e.c.Kind, e.c.Host)
		return
	}
	if err == nil && next.Revision != l.state.Revision {
		before := l.state
		l.state = next
		l.applied[e.c.ID] = true
		l.w.say("L", "applied %s by %s: generation %d revision %d owner %s %s %s in sync %v", e.c.Kind, e.c.Host,
			next.Generation, next.Revision, next.Owner, next.Phase, next.Desired, next.InSync)
		l.w.oracle.applied(l.w, e.c, before, next)
		l.fair(e.c, before)
		if d := l.w.hosts[e.host].daemon; d != nil {
			l.w.at(d, applications[e.c.Kind])
		}
		for _, h := range l.w.hosts {
			l.show(h, next)
		}
	} else if err != nil {
		l.w.say("L", "refused: %v", err)
	}
	e.settled(next, err)
}

// fair: who has taken a guest has the time of a lease to renew before its former
// owner takes it back.
func (l *ledger) fair(c ownership.Command, before ownership.Guest) {
	switch {
	case c.Kind == ownership.Takeover:
		l.taken = l.w.now
	case c.Kind == ownership.Return && c.Host != before.Owner && l.w.now < l.taken+lease:
		l.w.violated("rule 10: %s takes the guest back %v after %s took it", c.Host, l.w.now-l.taken, before.Owner)
	case c.Kind == ownership.Return && c.Host != before.Owner:
		l.w.oracle.visits["log taken back"]++
	}
}

// show lets a host's voter apply a state, some time later.
func (l *ledger) show(h *host, st ownership.Guest) {
	delay := l.w.between(0, 5*time.Millisecond)
	if l.w.chance(l.w.faults.lagging) {
		delay = l.w.between(20*time.Millisecond, 800*time.Millisecond)
	}
	l.w.after(delay, func() {
		if !h.up || l.cut[h.index] || l.w.now < l.stays[h.index] || st.Revision <= l.views[h.index].Revision {
			return
		}
		l.views[h.index] = st
		if d := h.daemon; d != nil {
			d.after(0, d.seen)
		}
	})
}

// read returns the state as of some time after the call; what it does not show
// of this daemon's proposals never applies.
func (l *ledger) read(d *daemon, done func(st ownership.Guest, err error)) {
	unknown := d.unknown
	if l.w.at(d, stepReadLog) {
		return
	}
	l.call(d, 5*time.Second, 200*time.Millisecond, func(r *reign, _ clock.Instant, _ int, reply func(func())) {
		l.w.after(l.w.between(500*time.Microsecond, 6*time.Millisecond), func() {
			if r.over {
				return
			}
			if unknown > 0 {
				l.sessions[d.h.index]++
				d.session = l.sessions[d.h.index]
				d.unknown = 0
			}
			st := l.state
			reply(func() { done(st, nil) })
		})
	}, func() { done(ownership.Guest{}, errUnknown) })
}
