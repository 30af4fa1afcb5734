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
	o := n.other(peer)
	if o == nil { // ourselves, or known no more
		return c
	}
	return &hearing{Conn: c, clock: n.cfg.Clock, at: &o.heard}
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
	Voters  []Voter // this one included, in the configuration's order, then others
}

// Voter is one of them.
type Voter struct {
	ID      ownership.HostID
	Address string
	Witness bool
	// Heard is since its last byte on any connection, nil if it was not heard
	// since the daemon began. Of the voter itself it is 0.
	Heard *time.Duration
	// Configured: it is in this host's configuration. Member: the log is for it.
	// Votes: it votes. All three, but while a voter is replaced.
	Configured, Member, Votes bool
}

// View returns what this voter knows now. It asks nobody and does not wait.
func (n *Node) View() View {
	v := View{Self: n.cfg.Self, Leader: n.Leader(), Term: n.raft.CurrentTerm(), Leads: n.raft.State() == raft.Leader,
		Last: n.raft.LastIndex(), Committed: n.raft.CommitIndex(), Applied: n.raft.AppliedIndex()}
	now := n.cfg.Clock.Now()
	var others []time.Duration
	members := n.members()
	all := n.known()
	for _, s := range members {
		if id := ownership.HostID(s.ID); !slices.ContainsFunc(all, func(p Peer) bool { return p.ID == id }) {
			all = append(all, Peer{ID: id})
		}
	}
	votes := 0
	for _, p := range all {
		voter := Voter{ID: p.ID, Address: p.Address, Witness: p.Witness, Configured: n.configured(p.ID)}
		i := slices.IndexFunc(members, func(s raft.Server) bool { return s.ID == raft.ServerID(p.ID) })
		voter.Member, voter.Votes = i >= 0, i >= 0 && members[i].Suffrage == raft.Voter
		if !voter.Configured && !voter.Member {
			continue // it has just been removed
		}
		if voter.Votes {
			votes++
		}
		if p.ID == n.cfg.Self {
			voter.Heard = new(time.Duration)
		} else if o := n.other(p.ID); o != nil && o.heard.Load() != 0 {
			age := max(0, now.Sub(clock.Instant(o.heard.Load())))
			voter.Heard = &age
			if voter.Votes {
				others = append(others, age)
			}
		}
		v.Voters = append(v.Voters, voter)
	}
	switch need := votes / 2; { // others that make a majority with us
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
