package failover

// route.go: a request finds the leader. It goes to the leader we know of; an
// answer "not I" carries a hint; a leader we cannot reach is tried through
// another voter; a change of the leader ends the attempt under way. Each
// attempt is bounded, the whole by its context.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/clock"
	"understudy/ownership"
)

// attempt bounds one try of a request of kind k at one voter.
func (n *Node) attempt(k kind, req request) time.Duration {
	p := n.cfg.Profile
	switch {
	case k == kindRenew:
		return p.Attempt
	case k == kindPropose && (req.Command.Kind == ownership.Takeover || req.Command.Kind == ownership.Start || req.Command.Kind == ownership.Force):
		// It may wait for a lease at the leader.
		return max(8*p.Attempt, 2*n.cfg.Lease)
	default: // two disks are synced on the way
		return max(8*p.Attempt, time.Second)
	}
}

// routed is what became of a request.
type routed struct {
	answer
	sent clock.Instant // before the answered attempt was sent
	// maybe: an attempt was sent whose fate is not known.
	maybe bool
}

// route returns the first answer other than "not the leader" and "unknown".
// final says which others end it as well. The error is that of the last
// attempt when ctx ended.
func (n *Node) route(ctx context.Context, k kind, req request, final func(code) bool) (routed, error) {
	var (
		out  routed
		hint ownership.HostID
		via  bool // the last attempt could not reach the leader: go through another voter
		err  = errors.New("no leader is known")
	)
	for try := 0; ; try++ {
		if n.ctx.Err() != nil {
			return out, ErrClosed
		}
		if ctx.Err() != nil {
			return out, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		leader, changed := n.leaders.get()
		to := hint
		if to == "" {
			to = leader
		}
		hint = ""
		relay := (via || to == "") && try%2 == 1
		if relay {
			to = n.another(to, try/2)
		}
		if to == "" {
			n.pause(ctx, changed)
			continue
		}
		req.Relay = relay
		actx, cancel := context.WithTimeout(ctx, n.attempt(k, req))
		stop := n.cancelOn(actx, cancel, changed, to)
		out.sent = n.cfg.Clock.Now()
		var a answer
		a, aerr := n.callOrHandle(actx, to, k, req)
		cancel()
		stop()
		switch {
		case aerr != nil:
			err, via = aerr, true
			out.maybe = out.maybe || !errors.Is(aerr, errNotSent)
		case a.Code == codeNotLeader:
			err, via = fmt.Errorf("%s: %s", to, a.Text), relay
			if a.Leader != to && (a.Leader == n.cfg.Self || n.link(a.Leader) != nil) {
				hint = a.Leader
			}
			if hint != "" && try < 2*len(n.known()) {
				continue // at once
			}
		case a.Code == codeUnknown:
			err = fmt.Errorf("%s: %s", to, a.Text)
			out.maybe = true
		case final(a.Code):
			out.answer = a
			return out, nil
		default:
			err = fmt.Errorf("%s: %s", to, a.Text)
		}
		n.pause(ctx, changed)
	}
}

// callOrHandle asks a voter, which may be this one.
func (n *Node) callOrHandle(ctx context.Context, to ownership.HostID, k kind, req request) (answer, error) {
	if to != n.cfg.Self {
		l := n.link(to)
		if l == nil {
			return answer{}, fmt.Errorf("%s: %w: it is not known here", to, errNotSent)
		}
		return l.call(ctx, k, req)
	}
	req.Timeout = min(remaining(ctx), maxTimeout)
	return n.handle(ctx, n.cfg.Self, k, req), nil
}

// another picks a voter to relay through: not we, not the leader.
func (n *Node) another(leader ownership.HostID, turn int) ownership.HostID {
	var others []ownership.HostID
	for _, p := range n.known() {
		if p.ID != n.cfg.Self && p.ID != leader {
			others = append(others, p.ID)
		}
	}
	if len(others) == 0 {
		return ""
	}
	return others[turn%len(others)]
}

// pause waits a little, or for a change of the leader.
func (n *Node) pause(ctx context.Context, changed <-chan struct{}) {
	select {
	case <-changed:
	case <-time.After(n.cfg.Profile.Heartbeat / 8):
	case <-ctx.Done():
	case <-n.ctx.Done():
	}
}

// cancelOn ends an attempt when another voter than the one it was sent to has
// become the leader. The returned function waits for the watcher's end.
func (n *Node) cancelOn(ctx context.Context, cancel context.CancelFunc, changed <-chan struct{}, to ownership.HostID) (stop func()) {
	done := make(chan struct{})
	watch := func() {
		defer close(done)
		for {
			select {
			case <-changed:
				var leader ownership.HostID
				if leader, changed = n.leaders.get(); leader != "" && leader != to {
					cancel()
					return
				}
			case <-n.ctx.Done():
				cancel()
				return
			case <-ctx.Done():
				return
			}
		}
	}
	if !n.spawn(watch) {
		cancel()
		close(done)
	}
	return func() { <-done }
}
