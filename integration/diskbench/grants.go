package main

import (
	"context"
	"sync"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

// grants is an ownership log of one voter in this process. Who owns the guest
// gets every lease, and a takeover is granted at once: whoever has it asked for
// has seen to it that the former owner is dead.
type grants struct {
	mu      sync.Mutex
	state   ownership.Guest
	changed chan struct{} // closed at the next change
}

func newGrants() *grants { return &grants{changed: make(chan struct{})} }

// begin makes the guest run unprotected on host a.
func (g *grants) begin() ownership.Guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = ownership.Guest{Generation: 1, Revision: 1, Owner: hostA, Phase: ownership.PhaseActive, Desired: ownership.Running}
	return g.state
}

func (g *grants) Lease() time.Duration { return leaseTime }

func (g *grants) Renew(context.Context, string, epoch.Generation) (clock.Instant, error) {
	return clock.Boot{}.Now().Add(leaseTime), nil
}

func (g *grants) Propose(_ context.Context, c ownership.Command) (ownership.Guest, error) {
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

func (g *grants) Read(context.Context, string) (ownership.Guest, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state, nil
}

// Watch sends the state now and after each change; its goroutine ends with ctx.
func (g *grants) Watch(ctx context.Context, _ string) <-chan ownership.Guest {
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
