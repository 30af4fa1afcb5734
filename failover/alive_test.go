package failover

import (
	"context"
	"strings"
	"testing"
	"time"
)

// later is a raft future that is answered when it is closed.
type later chan struct{}

func (l later) Error() error { <-l; return nil }

// TestAVoterThatIsStuckIsNotAlive: leader, followers and one that is cut off are
// alive; one that does not answer is not.
func TestAVoterThatIsStuckIsNotAlive(t *testing.T) {
	c := newCluster(t, 500*time.Millisecond)
	c.leads(witness)
	ask := func(what string, n *Node) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := n.Alive(ctx); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for id, n := range c.node {
		ask(string(id), n)
	}
	c.net.isolate(witness, hostA, hostB)
	ask("the leader that is cut off", c.node[witness])
	c.net.isolate(hostA, hostB)
	ask("alone", c.node[hostA])
	c.net.heal(true)

	stuck := make(later)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.node[hostA].answered(ctx, stuck); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("it is stuck: %v", err)
	}
	close(stuck)

	gone := c.node[hostB]
	c.stop(hostB)
	ask("it has stopped", gone)
}
