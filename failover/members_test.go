package failover

// members_test.go: voters are replaced while owners renew and guests are taken
// over. What must hold is what lease_test.go holds: no lease outlives its
// generation; and on a quiet network no lease is lost.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/clock"
	"understudy/ownership"
)

const fresh = ownership.HostID("x")

// quietLease is one that no busy machine ends: what ends it is a replacement.
const quietLease = 3 * time.Second

// instead returns the voters with one in the place of another.
func instead(old, new ownership.HostID) []Peer {
	all := hosts()
	for i := range all {
		if all[i].ID == old {
			all[i].ID = new
		}
	}
	return all
}

// startWith starts a voter with a configuration of its own, and with an empty log
// if it has none.
func (c *cluster) startWith(id ownership.HostID, peers []Peer) *Node {
	c.t.Helper()
	if c.dir[id] == "" {
		c.dir[id] = c.t.TempDir()
	}
	cfg := c.config(id)
	cfg.Peers = peers
	n, err := Open(c.ctx, cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node[id] = n
	return n
}

// configure gives running voters another configuration.
func (c *cluster) configure(peers []Peer, ids ...ownership.HostID) {
	c.t.Helper()
	for _, id := range ids {
		if err := c.at(id).SetPeers(peers); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cluster) replace(by, old, new ownership.HostID) {
	c.t.Helper()
	if err := c.node[by].Replace(c.ctx, old, new, func(text string) { c.t.Log(text) }); err != nil {
		c.t.Fatal(err)
	}
}

// vote waits until every one of these voters has these in its log, and no others.
func (c *cluster) vote(want ...ownership.HostID) {
	c.t.Helper()
	slices.Sort(want)
	for _, id := range want {
		c.until(fmt.Sprintf("%v vote, as %s sees it", want, id), func() bool {
			got := c.node[id].voting()
			slices.Sort(got)
			_, former, _ := c.node[id].Peers()
			return slices.Equal(got, want) && len(c.node[id].members()) == len(want) && len(former) == 0
		})
	}
}

// owner renews the lease of its guest as a primary does, and notes the longest time
// that it had none.
type owner struct {
	end  context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	until  clock.Instant
	lost   time.Duration
	grants int
}

func (c *cluster) keepLease(h ownership.HostID, st ownership.Guest) *owner {
	ctx, cancel := context.WithCancel(c.ctx)
	o := &owner{end: cancel, until: c.renew(h, st.Generation).Until, lost: -c.lease}
	n := c.node[h]
	o.done.Go(func() {
		for ctx.Err() == nil {
			call, cancel := context.WithTimeout(ctx, c.lease/2)
			g, err := n.Renew(call, guest, st.Generation)
			cancel()
			o.mu.Lock()
			if err == nil {
				o.lost = max(o.lost, now().Sub(o.until))
				o.until = max(o.until, g.Until)
				o.grants++
			}
			o.mu.Unlock()
			wait := c.lease / 4
			if err != nil {
				wait = c.lease / 8
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	})
	c.t.Cleanup(o.stop)
	return o
}

func (o *owner) stop() { o.end(); o.done.Wait() }

// kept reports that the lease was never lost.
func (o *owner) kept(t testing.TB) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lost >= 0 || now().Sub(o.until) > 0 {
		t.Errorf("the owner was without a lease for %s", max(o.lost, now().Sub(o.until)))
	}
	t.Logf("%d renewals, each %s or more before the end", o.grants, -o.lost)
}

// The witness is replaced while it lives, while it leads, and when it is dead: the
// owner keeps its lease, the fresh one comes to lead, and the pair with the fresh
// one does all that the pair with the old one did.
func TestWitnessIsReplaced(t *testing.T) {
	for _, alive := range []bool{true, false} {
		t.Run(fmt.Sprintf("alive %v", alive), func(t *testing.T) {
			t.Parallel()
			c := newClusterWith(t, quietLease, ProfileFor(testLease))
			st, b := c.protected()
			o := c.keepLease(hostA, st)
			if !alive {
				c.stop(witness)
				c.leader()
			}
			peers := instead(witness, fresh)
			c.startWith(fresh, peers)
			c.configure(peers, hostA, hostB)
			c.replace(hostA, witness, fresh)
			c.vote(hostA, hostB, fresh)
			c.leads(fresh)
			o.kept(t)
			c.replace(hostB, witness, fresh) // once more: nothing is left to do

			// The old one has no say, and no way in.
			for _, id := range []ownership.HostID{hostA, hostB, fresh} {
				if c.node[id].isPeer(witness) {
					t.Errorf("%s still lets the removed witness in", id)
				}
			}
			if alive {
				call, cancel := context.WithTimeout(c.ctx, testLease)
				defer cancel()
				if _, err := c.node[witness].Read(call, guest); err == nil {
					t.Error("the removed witness is answered")
				}
				c.stop(witness)
			}
			o.kept(t)
			o.stop()
			got := c.do(hostB, ownership.Takeover, b)
			if early := o.until.Sub(now()); early > 0 || got.Owner != hostB {
				t.Errorf("%+v, %s before the owner's lease ended", got, early)
			}
			// What was logged before is known to the fresh one.
			if got := c.node[fresh].Guests()[guest]; got.Generation < st.Generation {
				t.Errorf("the fresh witness knows %+v", got)
			}
		})
	}
}

// The backup's host is lost and another takes its place. As long as the log says
// that the old one's image is in sync it may not go.
func TestHostIsReplaced(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, quietLease, ProfileFor(testLease))
	st, b := c.protected()
	o := c.keepLease(hostA, st)
	peers := instead(hostB, fresh)
	c.stop(hostB)
	c.startWith(fresh, peers)
	c.configure(peers, hostA, witness)
	err := c.node[hostA].Replace(c.ctx, hostB, fresh, func(string) {})
	if err == nil || !strings.Contains(err.Error(), "is the backup in sync of guest web") {
		t.Fatalf("the backup in sync was removed: %v", err)
	}
	// The owner goes on alone, and then with the fresh host.
	c.do(hostA, ownership.OutOfSync, ownership.Backup{})
	b.Host = fresh
	c.do(hostA, ownership.InSync, b)
	c.replace(witness, hostB, fresh)
	c.vote(hostA, witness, fresh)
	o.kept(t)
	o.stop()
	if got := c.do(fresh, ownership.Takeover, b); got.Owner != fresh {
		t.Errorf("%+v", got)
	}
}

// A host that owns a guest does not go, nor one that the configuration has, nor for
// one that it has not; nor do two at once.
func TestWhoMayNotBeReplaced(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	c.protected()
	try := func(by, old, new ownership.HostID, want string) {
		t.Helper()
		call, cancel := context.WithTimeout(c.ctx, 4*testLease)
		defer cancel()
		if err := c.node[by].Replace(call, old, new, func(string) {}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("replace %s by %s at %s: %v, want %q", old, new, by, err, want)
		}
	}
	try(hostB, hostA, fresh, "x is not in the configuration of this host")
	try(hostB, hostA, witness, "a is still in the configuration")

	peers := instead(hostA, fresh)
	c.configure(peers, witness) // the leader; b is missing
	c.startWith(fresh, peers)
	try(witness, hostA, fresh, "x is not in the configuration of host b yet")
	// The owner's host itself is not told, since it is to go.
	cfg := c.node[hostB].cfg.Peers
	c.configure(peers, hostB)
	try(witness, hostA, fresh, "guest web is owned by a: switch it over")
	try(hostB, hostA, hostA, "is not in the configuration of this host")

	// Back again: nothing has been lost, and the fresh one goes.
	c.configure(cfg, witness, hostB)
	c.replace(witness, fresh, hostA)
	c.vote(hostA, hostB, witness)

	// Two at once.
	both := instead(witness, fresh)
	both[1].ID = "y"
	c.configure(both, hostA)
	c.leads(witness)
	try(hostA, witness, fresh, "")
}

// An interrupted replacement goes on where it stood, whoever asks.
func TestReplacementIsResumed(t *testing.T) {
	t.Parallel()
	c := newClusterWith(t, quietLease, ProfileFor(testLease))
	st, _ := c.protected()
	o := c.keepLease(hostA, st)
	peers := instead(witness, fresh)
	c.startWith(fresh, peers)
	c.configure(peers, hostA, hostB)
	for i := range 20 {
		by := []ownership.HostID{hostA, hostB}[i%2]
		ctx, cancel := context.WithCancel(c.ctx)
		steps := 0
		err := c.node[by].Replace(ctx, witness, fresh, func(text string) {
			if steps++; steps > 1 {
				cancel() // as if its terminal was closed in the middle of the next step
			}
		})
		cancel()
		if err == nil {
			c.vote(hostA, hostB, fresh)
			o.kept(t)
			t.Logf("done in %d parts", i+1)
			return
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	t.Fatal("never done")
}

// A voter that is restarted in the middle of a replacement, with the configuration
// of after it, finds a log with the voters of before: it takes part, and with the
// one that goes, if it is told where that is.
func TestRestartInTheMiddle(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	c.protected()
	c.stop(hostB)
	c.dir[fresh] = t.TempDir()
	cfg := c.config(hostB)
	cfg.Peers, cfg.Former = instead(witness, fresh), []Peer{{ID: witness, Witness: true}}
	n, err := Open(c.ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.node[hostB] = n
	c.mu.Unlock()
	c.stop(hostA) // b and the witness, which b's configuration names no more
	if _, err := c.node[hostB].Read(c.ctx, guest); err != nil {
		t.Fatal(err)
	}
	for _, v := range n.View().Voters {
		want := map[ownership.HostID][3]bool{hostA: {true, true, true}, hostB: {true, true, true}, witness: {false, true, true}, fresh: {true, false, false}}[v.ID]
		if got := [3]bool{v.Configured, v.Member, v.Votes}; got != want {
			t.Errorf("%s is %v, want %v", v.ID, got, want)
		}
	}
}

// A voter that is to be let in and one that has lost its disk do not begin a log of
// their own: together they would be a majority of the new configuration.
func TestAFreshVoterBeginsNoLog(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	st, _ := c.protected()
	peers := instead(witness, fresh)
	c.stop(hostB)
	c.dir[hostB] = t.TempDir() // its disk is lost
	c.startWith(fresh, peers)
	cfg := c.config(hostB) // as it is restarted: with the new configuration, and where the old witness is
	cfg.Peers, cfg.Former = peers, []Peer{{ID: witness, Witness: true}}
	n, err := Open(c.ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.node[hostB] = n
	c.mu.Unlock()
	// A does not know of the fresh one yet: it hears from b alone, whose log is empty.
	c.until("b has been filled", func() bool { return n.transport.admitted.Load() })
	if c.node[fresh].transport.admitted.Load() || c.node[fresh].raft.LastIndex() != 0 {
		t.Fatal("the fresh voter has begun a log")
	}
	c.configure(peers, hostA)
	if got := c.node[hostB].voting(); len(got) != 3 || slices.Contains(got, fresh) {
		t.Fatalf("b, filled, knows the voters %v", got)
	}
	c.replace(hostA, witness, fresh)
	c.vote(hostA, hostB, fresh)
	if got, err := c.node[fresh].Read(c.ctx, guest); err != nil || got.Generation != st.Generation {
		t.Errorf("%+v, %v", got, err)
	}
}

// A voter that has forgotten whom it voted for does not confirm that a leader leads.
func TestAVoterThatIsNotAdmittedDoesNotConfirm(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	c.leads(witness) // with A's vote: B may have yet to be admitted
	c.until("b is admitted", c.node[hostB].transport.admitted.Load)
	term := c.node[witness].reigns.now().term
	ask := func() code {
		ctx, cancel := context.WithTimeout(c.ctx, time.Second)
		defer cancel()
		return c.node[hostB].handle(ctx, witness, kindConfirm, request{Term: term}).Code
	}
	if got := ask(); got != codeOK {
		t.Fatalf("an admitted voter says %s", got)
	}
	c.node[hostB].transport.admitted.Store(false)
	if got := ask(); got == codeOK {
		t.Error("a voter that was not admitted confirms")
	}
}

// Voters come and go while the guest is taken over and back, connections break, and
// leaders change: no lease outlives its generation, and in the end all is well.
func TestReplacementsUnderTakeoversAndFaults(t *testing.T) {
	t.Parallel()
	lease := 300 * time.Millisecond
	c := newCluster(t, lease)
	st, b := c.protected()
	random := rand.New(rand.NewPCG(5, 7))

	// One goroutine replaces the witness, again and again.
	stop := make(chan struct{})
	var working sync.WaitGroup
	replaced := 0
	was := witness
	working.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			is := ownership.HostID(fmt.Sprintf("w%d", i))
			peers := instead(witness, is)
			c.startWith(is, peers)
			c.configure(peers, hostA, hostB)
			for c.ctx.Err() == nil {
				ctx, cancel := context.WithTimeout(c.ctx, 5*lease)
				err := c.at(hostA).Replace(ctx, was, is, func(string) {})
				cancel()
				if err == nil {
					break
				}
			}
			if c.ctx.Err() != nil {
				return
			}
			c.stop(was)
			was = is
			replaced++
		}
	})
	// Another cuts the hosts off from each other and from the witnesses, shortly.
	working.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-c.ctx.Done():
				return
			case <-time.After(time.Duration(random.IntN(400)) * time.Millisecond):
			}
			one, two := hostA, hostB
			if random.IntN(2) == 0 {
				one, two = two, one
			}
			if random.IntN(2) == 0 {
				c.net.block(one, two, true)
			} else {
				for i := range 12 {
					c.net.block(one, ownership.HostID(fmt.Sprintf("w%d", i)), true)
				}
			}
			select {
			case <-time.After(time.Duration(random.IntN(300)) * time.Millisecond):
			case <-stop:
			}
			c.net.heal(random.IntN(2) == 0)
		}
	})
	owner, other := hostA, hostB
	for round := range 6 {
		silent := make(chan struct{})
		lasts := make(chan clock.Instant, 2)
		for range 2 {
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
					if g, err := c.at(owner).Renew(ctx, guest, st.Generation); err == nil {
						last = max(last, g.Until)
					}
					cancel()
				}
			}()
		}
		granted := make(chan clock.Instant, 1)
		go func() {
			for {
				ctx, cancel := context.WithTimeout(c.ctx, 10*lease)
				now, err := c.at(other).Read(ctx, guest)
				if err == nil && now.Owner == owner {
					_, err = c.try(ctx, other, ownership.Takeover, b)
				}
				cancel()
				at := clock.Boot{}.Now()
				if err == nil || c.ctx.Err() != nil {
					granted <- at
					return
				}
			}
		}()
		c.until("the owner falls silent", after(time.Duration(round)*lease/3))
		close(silent)
		last := max(<-lasts, <-lasts)
		if at := <-granted; at.Before(last) {
			t.Fatalf("round %d: granted %s before the owner's lease ended", round, last.Sub(at))
		}
		owner, other = other, owner
		sure := func(k ownership.Kind, b ownership.Backup, done func(g ownership.Guest) bool) ownership.Guest {
			for {
				ctx, cancel := context.WithTimeout(c.ctx, 10*lease)
				g, err := c.at(owner).Read(ctx, guest)
				if err == nil && !done(g) {
					g, err = c.try(ctx, owner, k, b)
				}
				cancel()
				if err == nil && done(g) {
					return g
				}
				if c.ctx.Err() != nil {
					t.Fatalf("%s of %s: %v", k, owner, err)
				}
			}
		}
		sure(ownership.Activated, ownership.Backup{}, func(g ownership.Guest) bool { return g.Phase == ownership.PhaseActive && g.Owner == owner })
		b = ownership.Backup{Host: other, Image: b.Image, Epoch: b.Epoch + 1}
		st = sure(ownership.InSync, b, func(g ownership.Guest) bool { return g.InSync && g.Backup.Host == other })
	}
	close(stop)
	working.Wait()
	c.net.heal(true)
	t.Logf("%d witnesses were replaced", replaced)
	if replaced == 0 {
		t.Error("no witness was replaced")
	}
	c.vote(hostA, hostB, was)
}
