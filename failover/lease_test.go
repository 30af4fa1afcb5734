package failover

import (
	"context"
	"errors"
	"testing"
	"time"

	"understudy/clock"
	"understudy/ownership"
)

const testLease = 600 * time.Millisecond

func now() clock.Instant { return clock.Boot{}.Now() }

// RULES 3, DESIGN guarantee 6: a silent owner keeps its guest for a full lease
// counted from its last renewal, and not a moment less.
func TestSilentOwnerIsTakenOverAfterItsLease(t *testing.T) {
	c := newCluster(t, testLease)
	st, b := c.protected()
	// Let the leader's own first lease pass, so that the renewal is what counts.
	for start := now(); now().Sub(start) < testLease+testLease/4; {
		c.renew(hostA, st.Generation)
		c.until("a tenth of a lease later", after(testLease/10))
	}
	grant := c.renew(hostA, st.Generation)
	if grant.Lease != testLease || grant.State.Revision != st.Revision {
		t.Fatalf("grant %+v, want a lease of %s at revision %d", grant, testLease, st.Revision)
	}
	got := c.do(hostB, ownership.Takeover, b)
	granted := now()
	if got.Owner != hostB || got.Phase != ownership.PhaseActivating || got.Generation != st.Generation+1 {
		t.Fatalf("after the takeover: %+v", got)
	}
	late := granted.Sub(grant.Until)
	if late < 0 {
		t.Fatalf("granted %s before the owner's lease ended", -late)
	}
	if late > testLease/2 {
		t.Errorf("granted only %s after the owner's lease ended", late)
	}
	t.Logf("granted %s after the owner's lease ended", late)

	// The old owner is told for good, and told who owns the guest.
	_, err := c.node[hostA].Renew(c.ctx, guest, st.Generation)
	var denied *Denied
	if !errors.As(err, &denied) || denied.State.Owner != hostB {
		t.Fatalf("the old owner's renewal: %v", err)
	}
	c.renew(hostB, got.Generation) // activating: the new owner gets leases
	got = c.do(hostB, ownership.Activated, ownership.Backup{})
	c.renew(hostB, got.Generation)
}

func after(d time.Duration) func() bool {
	start := now()
	return func() bool { return now().Sub(start) >= d }
}

// A takeover waits as long as the owner goes on renewing, and its proposer
// learns that it was never proposed.
func TestTakeoverWaitsForAnOwnerThatRenews(t *testing.T) {
	c := newCluster(t, testLease)
	st, b := c.protected()
	cmd, err := c.command(c.ctx, hostB, ownership.Takeover, b)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.ctx, 2*testLease)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.node[hostB].Propose(ctx, cmd)
		done <- err
	}()
	for {
		select {
		case err := <-done:
			if !errors.Is(err, ErrNotProposed) {
				t.Fatalf("takeover from an owner that renews: %v", err)
			}
			if got, err := c.node[hostB].Read(c.ctx, guest); err != nil || got != st {
				t.Fatalf("after it: %+v, %v", got, err)
			}
			return
		case <-time.After(testLease / 10):
			c.renew(hostA, st.Generation)
		}
	}
}
