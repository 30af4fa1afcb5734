package failover

// What a voter says of the others is what it has heard: fresh among all three,
// older and older of one that is cut off, and of everybody there.

import (
	"testing"
	"time"
)

func TestAVoterKnowsHowOldItsKnowledgeIs(t *testing.T) {
	c := newCluster(t, 500*time.Millisecond)
	c.leads(witness)
	const fresh, old = 400 * time.Millisecond, 600 * time.Millisecond
	at := func(age *time.Duration, below time.Duration) bool { return age != nil && *age < below }
	whole := func() bool {
		for id, n := range c.node {
			v := n.View()
			if v.Self != id || v.Leader != witness || v.Leads != (id == witness) || v.Term == 0 || v.Applied == 0 ||
				v.Applied > v.Last || len(v.Voters) != 3 || !at(v.Contact, fresh) {
				return false
			}
			for _, peer := range v.Voters {
				// Followers hear of each other only what they ask.
				if (id == witness || peer.ID == witness || peer.ID == id) && !at(peer.Heard, fresh) {
					return false
				}
			}
		}
		return true
	}
	c.until("every voter has heard of the leader, and the leader of all", whole)

	c.net.isolate(hostA, hostB, witness)
	c.until("the voter that is cut off says how old its knowledge is", func() bool {
		v := c.node[hostA].View()
		return v.Contact != nil && *v.Contact > old
	})
	c.until("the leader says since when it has not heard of it, and that it has a majority", func() bool {
		v := c.node[witness].View()
		return v.Leads && at(v.Contact, fresh) && v.Voters[0].ID == hostA && v.Voters[0].Heard != nil && *v.Voters[0].Heard > old
	})
	c.net.heal(true)
	c.leader()
	c.until("all know of each other again", func() bool {
		return at(c.node[hostA].View().Contact, fresh)
	})
}
