package failover

// renew.go: the owner's side of a lease.

import (
	"context"
	"fmt"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

// Grant is a renewed lease.
type Grant struct {
	// Until is when the lease ends, by this host's clock: its length counted
	// from before the request was sent.
	Until clock.Instant
	Lease time.Duration
	// State is the leader's applied state at the renewal.
	State ownership.Guest
}

// Denied is the error of a renewal that the applied state forbids: another
// host, generation or phase. It will not come back by asking again.
type Denied struct {
	Guest      string
	Generation epoch.Generation
	Reason     string
	State      ownership.Guest
}

func (d *Denied) Error() string {
	return fmt.Sprintf("lease of %s in generation %d denied: %s", d.Guest, d.Generation, d.Reason)
}

// Renew renews this host's lease for a guest it owns in the given generation.
// It tries, at whichever voter leads, until ctx ends. *Denied means the lease
// is gone for good; any other error leaves the lease as it was, running out.
// Renewals of one guest are made one after the other.
//
// A host that has proposed Surrender or Return must not rely on a lease it
// still holds.
func (n *Node) Renew(ctx context.Context, guest string, generation epoch.Generation) (Grant, error) {
	if err := checkName("guest", guest); err != nil {
		return Grant{}, fmt.Errorf("renew a lease: %w", err)
	}
	c := n.callers.get(n, guest)
	select {
	case c.renewing <- struct{}{}:
		defer func() { <-c.renewing }()
	case <-ctx.Done():
		return Grant{}, fmt.Errorf("renew the lease of %s: an earlier renewal is under way: %w", guest, ctx.Err())
	}
	out, err := n.route(ctx, kindRenew, request{Guest: guest, Generation: generation},
		func(c code) bool { return c == codeOK || c == codeRefused })
	switch {
	case err != nil:
		return Grant{}, fmt.Errorf("renew the lease of %s in generation %d: %w", guest, generation, err)
	case out.Code == codeRefused:
		return Grant{}, &Denied{Guest: guest, Generation: generation, Reason: out.Text, State: out.State}
	}
	return Grant{Until: out.sent.Add(out.Lease), Lease: out.Lease, State: out.State}, nil
}
