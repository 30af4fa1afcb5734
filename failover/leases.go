package failover

// leases.go: the leader's side of a lease. A renewal arrives, is confirmed
// (reign.go), checked against the applied state, written down, answered. A
// takeover waits until what was written down has certainly run out, shuts
// renewals, and only then is proposed (propose.go).
//
// The times: the owner counts its lease from before it sent the request, by
// its own clock; the leader writes down the moment the request arrived, which
// is later, by its own. So the owner's lease is over when the leader's record
// is, but for the rates of the two clocks: see drift.

import (
	"context"
	"fmt"
	"sync"
	"time"

	"understudy/clock"
	"understudy/crashpoint"
	"understudy/ownership"
)

// drift is added to every lease the leader waits out. CLOCK_BOOTTIME is
// slewed by at most 500 ppm (adjtimex(2)), a crystal is off by some 100 ppm
// more: two clocks drift apart by less than 0.15% of the time. 0.5% and a
// millisecond leave room.
func drift(lease time.Duration) time.Duration { return lease/200 + time.Millisecond }

type leases struct {
	r       *reign
	resized chan struct{} // a signal that the length has changed

	mu     sync.Mutex
	guests map[string]*granted
}

// granted is what this reign has granted for one guest.
type granted struct {
	renewed clock.Instant // arrival of the last renewal that was answered
	end     clock.Instant // when that lease is certainly over
	frozen  int           // proposals that change the owner, outcome not known
	waiting int           // such proposals, waiting for the lease to run out
}

func (l *leases) init(r *reign) {
	l.r, l.resized, l.guests = r, make(chan struct{}, 1), map[string]*granted{}
}

func (l *leases) guest(name string) *granted {
	g := l.guests[name]
	if g == nil {
		g = &granted{}
		l.guests[name] = g
	}
	return g
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

// grant checks a confirmed renewal against the applied state and writes it
// down.
func (l *leases) grant(who ownership.HostID, req request, received clock.Instant) answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	st, length := l.r.n.fsm.guest(req.Guest), l.r.n.fsm.leaseState().Length
	refuse := func(c code, format string, a ...any) answer {
		return answer{Code: c, Text: fmt.Sprintf(format, a...), State: st}
	}
	switch {
	case req.Generation > st.Generation:
		return refuse(codeLater, "generation %d is not applied here yet", req.Generation)
	case req.Generation < st.Generation:
		return refuse(codeRefused, "generation %d is over, the log is at %d", req.Generation, st.Generation)
	case st.Generation == 0 || st.Owner != who:
		return refuse(codeRefused, "%s is not the owner, %q is", who, st.Owner)
	case st.Phase != ownership.PhaseActive && st.Phase != ownership.PhaseActivating:
		return refuse(codeRefused, "the guest is %s", st.Phase)
	case length == 0:
		return refuse(codeLater, "the log holds no length of a lease yet")
	}
	g := l.guest(req.Guest)
	if g.frozen > 0 {
		return refuse(codeLater, "a change of the owner is being decided")
	}
	g.renewed = max(g.renewed, received)
	g.end = max(g.end, received.Add(length+drift(length)))
	return answer{Code: codeOK, State: st, Lease: length}
}

// runsOut returns when every lease for the guest has certainly run out, unless
// it is renewed in the meantime. l.mu is held.
func (l *leases) runsOut(guest string) clock.Instant {
	longest := l.r.n.fsm.leaseState().Longest
	end := l.r.start.Add(longest + drift(longest)) // what an earlier leader granted
	if g := l.guests[guest]; g != nil {
		end = max(end, g.end)
	}
	return end
}

// shut waits until the guest's lease has run out, then refuses renewals until
// open is called. It gives up, having shut nothing, when ctx or the reign
// ends.
func (l *leases) shut(ctx context.Context, guest string, wait bool) (open func(), err error) {
	l.mu.Lock()
	l.guest(guest).waiting++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.guests[guest].waiting--
	}()
	for {
		l.mu.Lock()
		left := l.runsOut(guest).Sub(l.r.n.cfg.Clock.Now())
		if !wait || left <= 0 {
			l.guest(guest).frozen++
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.guests[guest].frozen--
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return nil, fmt.Errorf("the owner's lease may live for another %s", left.Round(time.Millisecond))
		case <-l.r.ctx.Done():
			return nil, errNotLeader
		}
	}
}

// keepLength writes the length of a lease into a fresh log, and takes note of
// a shortened one when the last longer lease has run out. It ends with the
// reign.
func (r *reign) keepLength() {
	n := r.n
	retry := n.cfg.Profile.Heartbeat
	if l := n.fsm.leaseState().Length; l != 0 && l != n.cfg.Lease {
		n.log.Warn("the log's length of a lease counts, not the configuration's; set it there to change it",
			"log", l, "configuration", n.cfg.Lease)
	}
	for r.ctx.Err() == nil {
		st := n.fsm.leaseState()
		var wait <-chan time.Time
		switch {
		case st.Length == 0:
			if _, a := r.apply(r.ctx, entry{Kind: entryLease, Lease: n.cfg.Lease, Revision: st.Revision}, nil); a.Code == codeOK {
				continue
			}
			wait = time.After(retry)
		case st.Longest > st.Length:
			select {
			case <-time.After(st.Longest + drift(st.Longest)):
				_, a := r.apply(r.ctx, entry{Kind: entrySettle, Revision: st.Revision}, nil)
				if a.Code == codeOK || a.Code == codeRefused {
					continue
				}
				wait = time.After(retry)
			case <-r.leases.resized:
				continue
			case <-r.ctx.Done():
				return
			}
		}
		select {
		case <-wait:
		case <-r.leases.resized:
		case <-r.ctx.Done():
		}
	}
}

func (r *reign) setLease(ctx context.Context, req request) answer {
	st := r.n.fsm.leaseState()
	if st.Length == req.Lease {
		return answer{Code: codeOK, Lease: st.Length}
	}
	res, a := r.apply(ctx, entry{Kind: entryLease, Lease: req.Lease, Revision: st.Revision}, nil)
	if a.Code == codeOK {
		a.Lease = res.Lease.Length
		select {
		case r.leases.resized <- struct{}{}:
		default:
		}
	}
	return a
}
