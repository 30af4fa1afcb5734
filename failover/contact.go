package failover

// contact.go: what this voter can say of the others, and of itself, without
// asking anybody: each byte that a voter sends on any connection is noted with
// its time (hear), and View puts it beside what raft knows.

import (
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"understudy/clock"
	"understudy/ownership"
)

// hearing is a connection that notes when its peer was last heard.
type hearing struct {
	net.Conn
	clock clock.Clock
	at    *atomic.Int64 // a clock.Instant; 0: never
}

func (h *hearing) Read(b []byte) (int, error) {
	n, err := h.Conn.Read(b)
	if n > 0 {
		h.at.Store(max(1, int64(h.clock.Now())))
	}
	return n, err
}

// hear lets c note when peer was heard.
func (n *Node) hear(c net.Conn, peer ownership.HostID) net.Conn {
	at := n.heard[peer]
	if at == nil { // ourselves
		return c
	}
	return &hearing{Conn: c, clock: n.cfg.Clock, at: at}
}

// View is the ownership log as one voter sees it.
type View struct {
	Self   ownership.HostID
	Leader ownership.HostID // "" if none is known
	Leads  bool             // this voter does
	Term   uint64
	// Last is the newest entry here, Committed the newest known to be on a
	// majority, Applied the newest that what is read here contains.
	Last, Committed, Applied uint64
	// Contact is how old the knowledge is that this voter is part of the
	// cluster: since the leader was last heard, or for the leader, since a
	// majority was. nil: never since the daemon began.
	Contact *time.Duration
	Voters  []Voter // this one included, in the configuration's order
}

// Voter is one of them.
type Voter struct {
	ID      ownership.HostID
	Address string
	Witness bool
	// Heard is since its last byte on any connection, nil if it was not heard
	// since the daemon began. Of the voter itself it is 0.
	Heard *time.Duration
}

// View returns what this voter knows now. It asks nobody and does not wait.
func (n *Node) View() View {
	v := View{Self: n.cfg.Self, Leader: n.Leader(), Term: n.raft.CurrentTerm(), Leads: n.raft.State() == raft.Leader,
		Last: n.raft.LastIndex(), Committed: n.raft.CommitIndex(), Applied: n.raft.AppliedIndex()}
	now := n.cfg.Clock.Now()
	var others []time.Duration
	for _, p := range n.cfg.Peers {
		voter := Voter{ID: p.ID, Address: p.Address, Witness: p.Witness}
		if p.ID == n.cfg.Self {
			voter.Heard = new(time.Duration)
		} else if at := n.heard[p.ID].Load(); at != 0 {
			age := max(0, now.Sub(clock.Instant(at)))
			voter.Heard = &age
			others = append(others, age)
		}
		v.Voters = append(v.Voters, voter)
	}
	switch need := len(n.cfg.Peers) / 2; { // others that make a majority with us
	case !v.Leads:
		if last := n.raft.LastContact(); !last.IsZero() {
			age := time.Since(last)
			v.Contact = &age
		}
	case need == 0:
		v.Contact = new(time.Duration)
	case len(others) >= need:
		slices.Sort(others)
		v.Contact = &others[need-1]
	}
	return v
}
