package failover

import (
	"flag"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"understudy/ownership"
)

var absence = flag.Duration("absence", time.Second, "how long TestAReturningHostLearnsAtOnce keeps a host away")

// absences are the ways in which host B goes away and comes back.
var absences = map[string]struct{ leave, back func(*cluster) }{
	"dead":    {func(c *cluster) { c.stop(hostB) }, func(c *cluster) { c.start(hostB) }},
	"cut off": {func(c *cluster) { c.net.isolate(hostB, hostA, witness) }, func(c *cluster) { c.net.heal(true) }},
}

// To raft the sending of entries takes long while their voter is away, and does
// not fail. A heartbeat fails: by its heartbeats a leader knows whether it still
// has a majority.
func TestEntriesWaitForAVoterThatIsAway(t *testing.T) {
	for name, way := range absences {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, testLease)
			c.leads(witness)
			w := c.node[witness]
			send := func(committed uint64) error {
				for {
					a := raft.AppendEntriesRequest{Term: w.raft.CurrentTerm(), LeaderCommitIndex: committed, RPCHeader: raft.RPCHeader{
						ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(witness), Addr: []byte(witness)}}
					err := w.transport.AppendEntries(raft.ServerID(hostB), raft.ServerAddress(hostB), &a, &raft.AppendEntriesResponse{})
					if err == nil || w.transport.leads(a.Term) || c.ctx.Err() != nil {
						return err
					} // else a busy machine has unseated the leader
				}
			}
			way.leave(c)
			if err := send(0); err == nil {
				t.Fatal("a heartbeat has reached a voter that is away")
			}
			sent := make(chan error, 1)
			go func() { sent <- send(emptyLog) }()
			c.until("it was tried several times", after(testLease))
			select {
			case err := <-sent:
				t.Fatalf("entries for a voter that is away: %v", err)
			default:
			}
			c.until("the leader is not moved to it", func() bool { return w.transport.waitsFor(hostB) })
			way.back(c)
			back := now()
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			t.Logf("sent %s after the voter was back", now().Sub(back))
		})
	}
}

// A host that was away learns what the log holds as soon as it is back: with
// raft's own back-off it took as long again as it was away, up to 10 s. To
// measure that: -absence 20s.
func TestAReturningHostLearnsAtOnce(t *testing.T) {
	for name, way := range absences {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, testLease)
			c.protected()
			way.leave(c)
			st := c.do(hostA, ownership.OutOfSync, ownership.Backup{})
			c.until("it was away for long", after(*absence))
			way.back(c)
			back := now()
			c.until("it has applied what it missed", func() bool { return c.node[hostB].Guests()[guest].Revision == st.Revision })
			late := now().Sub(back)
			t.Logf("away for %s, learned after %s", *absence, late)
			if late > 2*time.Second {
				t.Errorf("away for %s, and learned what it missed only %s after it was back", *absence, late)
			}
		})
	}
}

// A leader that is deposed, or closed, does not go on trying.
func TestADeposedLeaderDoesNotPersist(t *testing.T) {
	t.Parallel()
	c := newCluster(t, testLease)
	c.protected()
	c.stop(hostB)
	c.do(hostA, ownership.OutOfSync, ownership.Backup{})
	w := c.node[witness]
	var term uint64
	c.until("the leader knows its term, which a busy machine may have changed", func() bool {
		term = w.raft.CurrentTerm()
		return w.transport.leads(term)
	})
	if w.transport.leads(term - 1) {
		t.Fatal("it leads in the term before")
	}
	tries := make(chan error, 1)
	go func() {
		tries <- w.transport.persist(raft.ServerID(hostB), term, func() error { return errNotSent })
	}()
	c.net.isolate(witness, hostA)
	if err := <-tries; err != errNotSent {
		t.Fatal(err)
	}
	start := now()
	c.stop(witness)
	if took := now().Sub(start); took > 2*time.Second {
		t.Errorf("closed after %s", took)
	}
}
