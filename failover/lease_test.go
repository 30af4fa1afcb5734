package failover

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/clock"
	"understudy/ownership"
)

const testLease = 600 * time.Millisecond

func now() clock.Instant { return clock.Boot{}.Now() }

// RULES 3, DESIGN guarantee 6: a silent owner keeps its guest for a full lease
// counted from its last renewal, and not a moment less.
func TestSilentOwnerIsTakenOverAfterItsLease(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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

// RULES 7: an owner that surrendered is not waited for.
func TestSurrenderedGuestIsTakenAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 20*time.Second) // a wait would not fit into the test's time
	st, b := c.protected()
	c.renew(hostA, st.Generation)
	b.Epoch = 7
	c.do(hostA, ownership.Surrender, b)

	_, err := c.node[hostA].Renew(c.ctx, guest, st.Generation)
	if denied := (*Denied)(nil); !errors.As(err, &denied) {
		t.Fatalf("renewal after the surrender: %v", err)
	}
	start := now()
	if got := c.do(hostB, ownership.Takeover, b); got.Owner != hostB {
		t.Fatalf("after the takeover: %+v", got)
	}
	t.Logf("taken over in %s", now().Sub(start))
	// A failed activation is given back, by its owner: no wait either.
	if got := c.do(hostB, ownership.Return, ownership.Backup{}); got.Owner != hostA {
		t.Fatalf("after the return: %+v", got)
	}
}

// RULES 10: the former owner takes back what its taker does not activate, after
// a lease that counts from the takeover; not while the taker renews.
func TestTakenBackAfterTheTakersLease(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, b := c.protected()
	c.renew(hostA, st.Generation)
	b.Epoch = 7
	c.do(hostA, ownership.Surrender, b)
	st = c.do(hostB, ownership.Takeover, b) // has waited for nobody
	taken := now()

	ctx, cancel := context.WithTimeout(c.ctx, testLease/2)
	defer cancel()
	// A leader on a busy machine answers late: the outcome is then unknown to A.
	if _, err := c.try(ctx, hostA, ownership.Return, ownership.Backup{}); !errors.Is(err, ErrNotProposed) && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("taken back at once: %v", err)
	}
	grant := c.renew(hostB, st.Generation) // which is refused if it was taken back
	got := c.do(hostA, ownership.Return, ownership.Backup{})
	back := now()
	if got.Owner != hostA || got.Phase != ownership.PhaseActive || back.Before(grant.Until) || back.Before(taken.Add(testLease)) {
		t.Fatalf("%+v, %s after the takeover, %s before the taker's lease ended", got, back.Sub(taken), grant.Until.Sub(back))
	}
	_, err := c.node[hostB].Renew(c.ctx, guest, st.Generation)
	if denied := (*Denied)(nil); !errors.As(err, &denied) {
		t.Fatalf("the taker's renewal after that: %v", err)
	}
}

// A stopped guest belongs to nobody, but its last owner may still be letting
// its output out under its lease: another host's start waits like a takeover.
func TestStartElsewhereWaitsForTheLease(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, _ := c.protected()
	c.do(hostA, ownership.Stop, ownership.Backup{})
	grant := c.renew(hostA, st.Generation)
	got := c.do(hostB, ownership.Start, ownership.Backup{})
	if early := grant.Until.Sub(now()); early > 0 {
		t.Fatalf("%+v, %s before the old owner's lease ended", got, early)
	}
}

// RULES 3: a new leader does not know what the old one granted. It waits out a
// full lease of its own before it grants a takeover.
func TestNewLeaderWaitsAFullLease(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, b := c.protected()
	cmd, err := c.command(c.ctx, hostB, ownership.Takeover, b)
	if err != nil {
		t.Fatal(err)
	}
	grant := c.renew(hostA, st.Generation)
	killed := now()
	c.stop(witness)
	done := make(chan error, 1)
	go func() {
		_, err := c.node[hostB].Propose(c.ctx, cmd)
		done <- err
	}()
	leader := c.leader()
	elected := now()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	granted := now()
	t.Logf("%s leads %s after the loss, granted %s after that", leader, elected.Sub(killed), granted.Sub(elected))
	if granted.Before(killed.Add(testLease)) || granted.Before(grant.Until) {
		t.Fatalf("granted %s after the leader was lost, the lease is %s", granted.Sub(killed), testLease)
	}
	if r := c.node[c.leader()].reigns.now(); r != nil && granted.Sub(r.start) < testLease && r.n.cfg.Self == leader {
		t.Fatalf("granted %s after the reign began", granted.Sub(r.start))
	}
}

// The owner outlives the loss of the leader: its lease is renewed by the next
// one in the same generation.
func TestRenewalGoesOnWithTheNextLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, _ := c.protected()
	c.renew(hostA, st.Generation)
	start := now()
	c.net.isolate(witness, hostA, hostB)
	grant := c.renew(hostA, st.Generation)
	t.Logf("renewed %s after the leader went silent", now().Sub(start))
	if !start.Before(grant.Until) || grant.State.Owner != hostA {
		t.Fatalf("grant %+v", grant)
	}
}

// RULES 9: an owner that cannot reach the leader renews and proposes through
// another voter.
func TestVotersRelay(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, b := c.protected()
	c.net.isolate(hostA, witness)
	grant := c.renew(hostA, st.Generation)
	if grant.State.Owner != hostA {
		t.Fatalf("grant %+v", grant)
	}
	c.do(hostA, ownership.OutOfSync, ownership.Backup{})
	if got := c.do(hostA, ownership.InSync, b); !got.InSync {
		t.Fatalf("proposed through B: %+v", got)
	}
}

// A renewal is granted to the voter the connection belongs to, whatever the
// request says.
func TestOnlyTheOwnerRenews(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, b := c.protected()
	_, err := c.node[hostB].Renew(c.ctx, guest, st.Generation)
	if denied := (*Denied)(nil); !errors.As(err, &denied) {
		t.Fatalf("B renews A's lease: %v", err)
	}
	_, err = c.node[hostA].Renew(c.ctx, guest, st.Generation-1)
	if denied := (*Denied)(nil); !errors.As(err, &denied) {
		t.Fatalf("A renews an old generation: %v", err)
	}
	// B proposes in A's name.
	cmd, err := c.command(c.ctx, hostA, ownership.Surrender, b)
	if err != nil {
		t.Fatal(err)
	}
	var refused *ownership.Refused
	if _, err := c.node[hostB].Propose(c.ctx, cmd); !errors.As(err, &refused) {
		t.Fatalf("B surrenders for A: %v", err)
	}
	// Somebody who is no voter gets no answer at all.
	for _, proto := range []string{ProtocolRPC, ProtocolRaft} {
		conn, err := c.net.dial(c.ctx, "mallory", witness, c.addr[witness][proto])
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		f, err := encodeFrame(kindConfirm, 1, request{Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(f) // may find the connection closed already
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Fatalf("%s: a stranger was answered %d bytes", proto, n)
		} else if ne, ok := err.(interface{ Timeout() bool }); ok && ne.Timeout() {
			t.Fatalf("%s: a stranger's connection was kept open", proto)
		}
		_ = conn.Close()
	}
}

// RULES 3: a lease that is shortened does not shorten those granted before. A
// new leader knows from the log that longer ones may be alive.
func TestShortenedLeaseIsWaitedOutInFull(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, 2*time.Second, ProfileFor(testLease))
	st, b := c.protected()
	if err := c.node[hostA].SetLease(c.ctx, 200*time.Millisecond); err == nil {
		t.Fatal("a lease that raft's timing does not suit was accepted")
	}
	grant := c.renew(hostA, st.Generation)
	if err := c.node[hostA].SetLease(c.ctx, testLease); err != nil {
		t.Fatal(err)
	}
	if again := c.renew(hostA, st.Generation); again.Lease != testLease {
		t.Fatalf("renewed for %s after the length was changed", again.Lease)
	}
	c.stop(witness)
	c.do(hostB, ownership.Takeover, b)
	if early := grant.Until.Sub(now()); early > 0 {
		t.Fatalf("granted %s before the longer lease ended", early)
	}
	c.until("the old length is settled", func() bool {
		return c.node[c.leader()].fsm.lengths().Longest == testLease
	})
}

// A renewal is confirmed by messages sent after it came: callers share a round
// that begins after they called, never one that is under way.
func TestConfirmationsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, start := 0, time.Now()
		rs := &rounds{spawn: func(f func()) bool { go f(); return true },
			once: func() error { begun++; time.Sleep(time.Millisecond); return nil }}
		var wg sync.WaitGroup
		ask := func(answered time.Duration) {
			wg.Go(func() {
				if err := rs.confirm(t.Context()); err != nil || time.Since(start) != answered {
					t.Errorf("%v, answered after %s, want %s", err, time.Since(start), answered)
				}
			})
		}
		ask(time.Millisecond)
		synctest.Wait() // the first round is under way
		for range 100 {
			ask(2 * time.Millisecond)
		}
		wg.Wait()
		if begun != 2 {
			t.Errorf("%d rounds for 101 callers", begun)
		}
	})
}

// RULES 3: a voter that is in a later term than the leader's has perhaps voted
// for another: it does not confirm, whatever raft's heartbeats say.
func TestLaterTermDoesNotConfirm(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	c.leads(witness)
	n := c.node[witness]
	r := n.reigns.now()
	if err := r.rounds.confirm(c.ctx); err != nil {
		t.Fatal(err)
	}
	old := &reign{n: n, term: r.term - 1, ctx: c.ctx}
	if err := old.confirmOnce(); err == nil || !strings.Contains(err.Error(), "no majority confirms") {
		t.Fatalf("a leader of an earlier term was confirmed: %v", err)
	}
	// Cut off, it is confirmed by nobody.
	c.net.isolate(witness, hostA, hostB)
	ctx, cancel := context.WithTimeout(c.ctx, testLease)
	defer cancel()
	if err := r.rounds.confirm(ctx); err == nil {
		t.Fatal("a leader that is cut off was confirmed")
	}
}

// Guarantee 1, RULES 3: whatever the interleaving of renewals and takeovers,
// at no instant does an owner hold a lease of a generation that is over. Both
// hosts' clocks are one here, so the instants can be compared.
func TestNoLeaseOutlivesItsGeneration(t *testing.T) {
	lease := 300 * time.Millisecond
	t.Parallel()
	c := newCluster(t, lease)
	_, b := c.protected()
	owner, other := hostA, hostB
	for round := range 6 {
		st, err := c.node[owner].Read(c.ctx, guest)
		if err != nil {
			t.Fatal(err)
		}
		// The owner renews without pause from three goroutines until it is
		// told to fall silent, at another time each round.
		silent := make(chan struct{})
		lasts := make(chan clock.Instant, 3)
		for range 3 {
			go func() {
				var last clock.Instant
				for {
					select {
					case <-silent:
						lasts <- last
						return
					default:
					}
					ctx, cancel := context.WithTimeout(c.ctx, lease)
					if g, err := c.node[owner].Renew(ctx, guest, st.Generation); err == nil {
						last = max(last, g.Until)
					}
					cancel()
				}
			}()
		}
		granted := make(chan clock.Instant, 1)
		go func() {
			for {
				if _, err := c.try(c.ctx, other, ownership.Takeover, b); err == nil || c.ctx.Err() != nil {
					granted <- now()
					return
				}
			}
		}()
		c.until("the owner falls silent", after(time.Duration(round)*lease/5))
		close(silent)
		last := max(<-lasts, <-lasts, <-lasts)
		if at := <-granted; at.Before(last) {
			t.Fatalf("round %d: granted %s before the owner's lease ended", round, last.Sub(at))
		}
		owner, other = other, owner
		c.do(owner, ownership.Activated, ownership.Backup{})
		b = ownership.Backup{Host: other, Image: b.Image, Epoch: b.Epoch + 1}
		c.do(owner, ownership.InSync, b)
	}
}
