package failover

// leases.go: the leader's leases, as the shell around leases.Book, which
// decides. Here are its clock, its lock and its waiting: the book is always
// asked together with a look at the applied state, under one lock.
//
//	renewal -> confirm (reign.go) -> grant -> answer
//	proposal (decide.go) -> admit: asks, waits, asks again -> the log -> settle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy/clock"
	"understudy/crashpoint"
	"understudy/failover/leases"
	"understudy/ownership"
)

type leaseBook struct {
	r       *reign
	resized chan struct{} // a signal that the length has changed

	mu      sync.Mutex
	book    *leases.Book
	settled chan struct{} // closed and replaced when renewals are answered again
	waiting int           // proposals that wait for a lease, or for each other
}

func (l *leaseBook) init(r *reign) {
	*l = leaseBook{r: r, resized: make(chan struct{}, 1), book: leases.Begin(r.start), settled: make(chan struct{})}
}

// renew answers a renewal by who that arrived at received.
func (r *reign) renew(ctx context.Context, who ownership.HostID, req request, received clock.Instant) answer {
	if err := r.rounds.confirm(ctx); err != nil {
		return r.later(err)
	}
	a := r.leases.grant(who, req, received)
	crashpoint.At(crashpoint.LeaseGranted)
	return a
}

// grant answers a confirmed renewal.
func (l *leaseBook) grant(who ownership.HostID, req request, received clock.Instant) answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.r.n.fsm.guest(req.Guest)
	renewal := leases.Renewal{Guest: req.Guest, Who: who, Generation: req.Generation, Received: received}
	switch a := l.book.Renew(renewal, st, l.r.n.fsm.lengths()).(type) {
	case leases.Granted:
		return answer{Code: codeOK, State: st, Lease: a.Length}
	case leases.Denied:
		return answer{Code: codeRefused, State: st, Text: a.Reason}
	case leases.Later:
		return answer{Code: codeLater, State: st, Text: a.Reason}
	default:
		panic(fmt.Sprintf("an answer to a renewal of type %T", a))
	}
}

// admit waits until c may be put into the log: while it would take the guest
// from its owner, until the owner's lease has run out. What cannot apply, or
// changes nothing, is answered at once, and so is everything when ctx or the
// reign ends; it must not be put into the log then. Else the ticket is to be
// settled.
func (l *leaseBook) admit(ctx context.Context, c ownership.Command, s session) (leases.Ticket, *answer) {
	// Leave time to answer.
	ctx, cancel := context.WithTimeout(ctx, remaining(ctx)*4/5)
	defer cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting++
	defer func() { l.waiting-- }()
	for {
		before, res := l.r.n.fsm.preview(c, s)
		if res.Refused != "" || res.State.Revision == before.Revision {
			a := fromResult(res)
			return leases.Ticket{}, &a
		}
		switch v := l.book.Propose(l.r.n.cfg.Clock.Now(), c, before, res.State, l.r.n.fsm.lengths()).(type) {
		case leases.Go:
			return v.Ticket, nil
		case leases.Wait:
			if err := l.wait(ctx, v); err != nil {
				a := l.r.later(err)
				return leases.Ticket{}, &a
			}
		default:
			panic(fmt.Sprintf("a verdict on a proposal of type %T", v))
		}
	}
}

// wait waits for what v says, without l.mu, which is held before and after.
func (l *leaseBook) wait(ctx context.Context, v leases.Wait) error {
	err := errors.New("another change of the owner is being decided")
	var out <-chan time.Time
	if !v.Deciding {
		left := v.Until.Sub(l.r.n.cfg.Clock.Now())
		out = time.After(left)
		err = fmt.Errorf("the owner's lease may live for another %s", left.Round(time.Millisecond))
	}
	settled := l.settled
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-out:
	case <-settled:
	case <-ctx.Done():
		return err
	case <-l.r.ctx.Done():
		return errNotLeader
	}
	return nil
}

// settle takes note of the fate of a proposal that admit let go.
func (l *leaseBook) settle(t leases.Ticket, f leases.Fate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.book.Settle(l.r.n.cfg.Clock.Now(), t, f, l.r.n.fsm.lengths()) {
		close(l.settled)
		l.settled = make(chan struct{})
	}
}

// deciding reports whether a change of an owner is under way, or waits.
func (l *leaseBook) deciding() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting > 0 || l.book.Deciding()
}

// keepLength writes the length of a lease into a fresh log, and takes note of
// a shortened one when the last longer lease has run out. It ends with the
// reign.
func (r *reign) keepLength() {
	n := r.n
	if l := n.fsm.lengths().Length; l != 0 && l != n.cfg.Lease {
		n.log.Warn("the log's length of a lease counts, not the configuration's; set it there to change it",
			"log", l, "configuration", n.cfg.Lease)
	}
	for r.ctx.Err() == nil {
		log := n.fsm.lengths()
		duty, next := r.leases.keep(log)
		var again <-chan time.Time
		switch e := (entry{Revision: log.Revision}); duty {
		case leases.Write:
			e.Kind, e.Lease = entryLease, n.cfg.Lease
			again = r.tryEntry(e)
		case leases.Forget:
			e.Kind = entrySettle
			again = r.tryEntry(e)
		case leases.Rest:
			if next != 0 {
				again = time.After(next.Sub(n.cfg.Clock.Now()))
			}
		}
		select {
		case <-again:
		case <-r.leases.resized:
		case <-r.ctx.Done():
		}
	}
}

func (l *leaseBook) keep(log leases.Lengths) (leases.Duty, clock.Instant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.book.Keep(l.r.n.cfg.Clock.Now(), log)
}

// tryEntry puts e into the log and says when to look again: at once, or some
// time after a failure.
func (r *reign) tryEntry(e entry) <-chan time.Time {
	if _, a := r.apply(r.ctx, e, leases.Ticket{}); a.Code == codeOK || a.Code == codeRefused {
		return time.After(0)
	}
	return time.After(r.n.cfg.Profile.Heartbeat)
}

func (r *reign) setLease(ctx context.Context, req request) answer {
	st := r.n.fsm.lengths()
	if st.Length == req.Lease {
		return answer{Code: codeOK, Lease: st.Length}
	}
	res, a := r.apply(ctx, entry{Kind: entryLease, Lease: req.Lease, Revision: st.Revision}, leases.Ticket{})
	if a.Code == codeOK {
		a.Lease = res.Lease.Length
		select {
		case r.leases.resized <- struct{}{}:
		default:
		}
	}
	return a
}
