// Package onevoter is an ownership log of one voter in this process, for benchmarks
// whose subject is not the log: what raft costs is not in what they measure.
package onevoter

import (
	"context"
	"sync"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

// Log gives the owner every lease, and grants a takeover at once: whoever has one
// asked for has seen to it that the former owner is dead.
type Log struct {
	lease   time.Duration
	owner   ownership.HostID
	mu      sync.Mutex
	state   ownership.Guest
	changed chan struct{} // closed at the next change
}

// New returns the log of a guest that runs unprotected on owner.
func New(owner ownership.HostID, lease time.Duration) *Log {
	g := &Log{owner: owner, lease: lease, changed: make(chan struct{})}
	g.Begin()
	return g
}

// Begin makes the guest run unprotected on its first owner again.
func (g *Log) Begin() ownership.Guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = ownership.Guest{Generation: 1, Revision: 1, Owner: g.owner, Phase: ownership.PhaseActive, Desired: ownership.Running}
	return g.state
}

// Lease is the length of a lease.
func (g *Log) Lease() time.Duration { return g.lease }

// Renew grants the lease from now on.
func (g *Log) Renew(context.Context, string, epoch.Generation) (clock.Instant, error) {
	return clock.Boot{}.Now().Add(g.lease), nil
}

// Propose applies the command at once.
func (g *Log) Propose(_ context.Context, c ownership.Command) (ownership.Guest, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	next, err := ownership.Apply(g.state, c)
	if err == nil {
		g.state = next
		close(g.changed)
		g.changed = make(chan struct{})
	}
	return next, err
}

// Read returns the state.
func (g *Log) Read(context.Context, string) (ownership.Guest, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state, nil
}

// Watch sends the state now and after each change; its goroutine ends with ctx.
func (g *Log) Watch(ctx context.Context, _ string) <-chan ownership.Guest {
	states := make(chan ownership.Guest)
	go func() {
		defer close(states)
		for {
			g.mu.Lock()
			state, changed := g.state, g.changed
			g.mu.Unlock()
			select {
			case states <- state:
			case <-ctx.Done():
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return states
}
