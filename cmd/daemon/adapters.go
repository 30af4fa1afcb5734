package daemon

// This file fits the packages to each other: failover.Node to host.Ownership,
// transport.Session to protocol.Session.

import (
	"context"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/failover"
	"understudy/ownership"
	"understudy/protocol"
	"understudy/transport"
)

// OwnershipLog is a failover.Node as package host wants it.
type OwnershipLog struct{ Node *failover.Node }

// Renew asks for the lease of a guest.
func (o OwnershipLog) Renew(ctx context.Context, guest string, g epoch.Generation) (clock.Instant, error) {
	grant, err := o.Node.Renew(ctx, guest, g)
	return grant.Until, err
}

// Propose puts a command to the log.
func (o OwnershipLog) Propose(ctx context.Context, c ownership.Command) (ownership.Guest, error) {
	return o.Node.Propose(ctx, c)
}

// Read returns the guest's state through a barrier.
func (o OwnershipLog) Read(ctx context.Context, guest string) (ownership.Guest, error) {
	return o.Node.Read(ctx, guest)
}

// Lease is the length of a lease in the log, 0 while it is not known.
func (o OwnershipLog) Lease() time.Duration { return o.Node.Lease() }

// Watch turns the node's signal into a channel of states. Its goroutine ends
// with ctx.
func (o OwnershipLog) Watch(ctx context.Context, guest string) <-chan ownership.Guest {
	states := make(chan ownership.Guest)
	go func() {
		defer close(states)
		w := o.Node.Watch(guest)
		defer w.Close()
		for {
			select {
			case <-w.C():
			case <-ctx.Done():
				return
			}
			select {
			case states <- w.State():
			case <-ctx.Done():
				return
			}
		}
	}()
	return states
}

// Session is a transport.Session as package protocol wants it.
type Session struct{ *transport.Session }

// Receive returns the next message.
func (s Session) Receive(ctx context.Context) (protocol.Message, error) {
	m, err := s.Session.Receive(ctx)
	if err != nil {
		return protocol.Message{}, err
	}
	return protocol.Message{Kind: m.Kind, Payload: m.Payload, Release: m.Release}, nil
}
