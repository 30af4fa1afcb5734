package failover

// propose.go: the proposer's side of the log, and what it does about outcomes
// it does not know.
//
// A proposal whose answer was lost may still be on its way to a leader: a read
// through a barrier would not see it, and it could apply after the read
// (RULES 4). So proposals are made in a session. Read, when this host has a
// proposal of unknown outcome, opens the next session in the log: proposals of
// the session before that have not applied by then never will.

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy/ownership"
)

var (
	// ErrUnknown marks a proposal that may have been applied, or may yet be.
	// The stricter of the two states holds for the proposer until Read, a
	// retry with the same command ID, or a stricter command at the current
	// revision has resolved it.
	ErrUnknown = errors.New("the outcome is unknown")
	// ErrNotProposed marks a proposal that was certainly not applied, and will
	// not be: no leader was found, or the owner's lease did not run out in
	// time.
	ErrNotProposed = ownership.ErrNotProposed
)

// caller is this host's dealings about one guest.
type caller struct {
	renewing chan struct{} // held by the renewal in flight
	opening  chan struct{} // held by whoever opens a session

	mu      sync.Mutex
	session session
	opened  bool
	unknown uint64 // proposals whose outcome was unknown, ever
	known   uint64 // how many of them have been resolved
}

type callers struct {
	mu     sync.Mutex
	guests map[string]*caller
}

func (cs *callers) get(n *Node, guest string) *caller {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.guests[guest]
	if c == nil {
		c = &caller{renewing: make(chan struct{}, 1), opening: make(chan struct{}, 1)}
		cs.guests[guest] = c
	}
	return c
}

func (c *caller) current() (session, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session, c.opened
}

// Propose asks the leader to apply cmd, whose Host must be this host. It
// returns the state after it; if others have changed the guest since, that is
// the newest state. A takeover waits at the leader, as long as ctx allows, for
// the owner's lease to run out.
//
// The error is *ownership.Refused (not applied, and it never will be), one
// that wraps ErrNotProposed (the same), or one that wraps ErrUnknown.
func (n *Node) Propose(ctx context.Context, cmd ownership.Command) (ownership.Guest, error) {
	what := func(err error) error {
		return fmt.Errorf("propose %s of %s, command %s: %w", cmd.Kind, cmd.Guest, cmd.ID, err)
	}
	if err := checkCommand(cmd); err != nil {
		return ownership.Guest{}, what(fmt.Errorf("%w: %w", ErrNotProposed, err))
	}
	c := n.callers.get(n, cmd.Guest)
	for {
		s, opened := c.current()
		if !opened {
			// The first proposal of this process: those of an earlier process
			// must not come after it.
			if err := n.openSession(ctx, cmd.Guest, c, s); err != nil {
				return ownership.Guest{}, what(fmt.Errorf("%w: %w", ErrNotProposed, err))
			}
			continue
		}
		out, err := n.route(ctx, kindPropose, request{Command: &cmd, Session: s},
			func(c code) bool { return c == codeOK || c == codeRefused || c == codeVoid })
		switch {
		case err != nil && out.maybe:
			c.mu.Lock()
			c.unknown++
			c.mu.Unlock()
			return ownership.Guest{}, what(fmt.Errorf("%w: %w", ErrUnknown, err))
		case err != nil:
			return ownership.Guest{}, what(fmt.Errorf("%w: %w", ErrNotProposed, err))
		case out.Code == codeRefused:
			return out.State, &ownership.Refused{Command: cmd, Reason: out.Text, State: out.State}
		case out.Code == codeVoid:
			// Certainly not applied: another session has begun, by Read here
			// or by an earlier process of this host. Go on in the current one.
			if err := n.openSession(ctx, cmd.Guest, c, s); err != nil {
				return ownership.Guest{}, what(fmt.Errorf("%w: %w", ErrNotProposed, err))
			}
		default:
			return out.State, nil
		}
	}
}

// openSession opens the next session, unless another goroutine has done so
// since the caller saw the session seen.
func (n *Node) openSession(ctx context.Context, guest string, c *caller, seen session) error {
	select {
	case c.opening <- struct{}{}:
		defer func() { <-c.opening }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s, opened := c.current(); opened && s != seen {
		return nil
	}
	c.mu.Lock()
	unknown := c.unknown
	c.mu.Unlock()
	from := n.fsm.sessionOf(guest, n.cfg.Self)
	for {
		var nonce [8]byte
		rand.Read(nonce[:]) // never fails, see crypto/rand
		to := session{Number: from.Number + 1, Nonce: binary.BigEndian.Uint64(nonce[:])}
		out, err := n.route(ctx, kindSession, request{Guest: guest, From: from, Session: to},
			func(c code) bool { return c == codeOK || c == codeRefused })
		if err != nil {
			return fmt.Errorf("open a session: %w", err)
		}
		if out.Code == codeRefused {
			if out.Session == from {
				return fmt.Errorf("open a session: refused: %s", out.Text)
			}
			from = out.Session
			continue
		}
		c.mu.Lock()
		c.session, c.opened, c.known = to, true, max(c.known, unknown)
		c.mu.Unlock()
		return nil
	}
}

// Read returns the guest's state as of some time after the call, from the
// leader. It resolves every proposal of this host whose outcome was unknown
// when it was called: what is not in the state it returns will never apply.
func (n *Node) Read(ctx context.Context, guest string) (ownership.Guest, error) {
	if err := checkName("guest", guest); err != nil {
		return ownership.Guest{}, fmt.Errorf("read the ownership log: %w", err)
	}
	c := n.callers.get(n, guest)
	c.mu.Lock()
	target := c.unknown
	c.mu.Unlock()
	for {
		c.mu.Lock()
		resolved, seen := c.known >= target, c.session
		c.mu.Unlock()
		if resolved {
			break
		}
		if err := n.openSession(ctx, guest, c, seen); err != nil {
			return ownership.Guest{}, fmt.Errorf("read the ownership of %s: %w", guest, err)
		}
	}
	out, err := n.route(ctx, kindRead, request{Guest: guest}, func(c code) bool { return c == codeOK || c == codeRefused })
	if err != nil {
		return ownership.Guest{}, fmt.Errorf("read the ownership of %s: %w", guest, err)
	}
	if out.Code == codeRefused {
		return ownership.Guest{}, fmt.Errorf("read the ownership of %s: %s", guest, out.Text)
	}
	return out.State, nil
}

// SetLease changes the length of every lease, in the log. Takeovers go on
// waiting for the longer of the old and the new length until no longer lease
// can be alive.
func (n *Node) SetLease(ctx context.Context, lease time.Duration) error {
	if err := n.cfg.Profile.Validate(lease); err != nil {
		return fmt.Errorf("set the lease to %s: raft's timing does not suit it: %w", lease, err)
	}
	out, err := n.route(ctx, kindLease, request{Lease: lease}, func(c code) bool { return c == codeOK || c == codeRefused })
	switch {
	case err != nil && out.maybe:
		return fmt.Errorf("set the lease to %s: %w: %w", lease, ErrUnknown, err)
	case err != nil:
		return fmt.Errorf("set the lease to %s: %w", lease, err)
	case out.Code == codeRefused:
		return fmt.Errorf("set the lease to %s: refused: %s", lease, out.Text)
	}
	return nil
}
