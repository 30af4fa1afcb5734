package failover

// peers.go: the voters this one knows how to reach: those of the configuration,
// which SetPeers changes, and those that still vote, or are to vote, although the
// configuration names them no more. Who votes is another matter: that is in raft's
// own configuration, in the log (members.go).

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"understudy/ownership"
)

// peers are the voters that are known. A voter keeps its link as long as it is.
type peers struct {
	mu         sync.Mutex
	configured []Peer
	former     []Peer
	others     map[ownership.HostID]*other // all of them but this one
	changed    chan struct{}               // closed and replaced at each change
}

// other is another voter: the way to it, and when it was last heard.
type other struct {
	link  *link
	heard atomic.Int64 // a clock.Instant; 0: never
}

// SetPeers makes these the configuration's voters, Self among them. Who votes does
// not change: a voter that is not among them goes on to be one, and to be known,
// until Replace has removed it.
func (n *Node) SetPeers(now []Peer) error {
	cfg := n.cfg
	cfg.Peers = now
	if err := cfg.check(); err != nil {
		return err
	}
	ps := &n.peers
	ps.mu.Lock()
	ps.former = append(ps.former, ps.configured...)
	ps.configured = slices.Clone(now)
	ps.mu.Unlock()
	n.sortPeers()
	return nil
}

// sortPeers brings the peers into line with the configuration and with who votes:
// after a change of either.
func (n *Node) sortPeers() {
	votes := map[ownership.HostID]bool{}
	if n.raft != nil {
		for _, s := range n.members() {
			votes[ownership.HostID(s.ID)] = true
		}
	}
	// Before this voter has been filled, its log does not say who votes now.
	filled := len(votes) > 0 && n.transport.admitted.Load()
	ps := &n.peers
	ps.mu.Lock()
	known := map[ownership.HostID]bool{}
	for _, p := range ps.configured {
		known[p.ID] = true
	}
	ps.former = slices.DeleteFunc(ps.former, func(p Peer) bool {
		gone := known[p.ID] || filled && !votes[p.ID]
		if !gone {
			known[p.ID] = true
		}
		return gone
	})
	var dropped []*other
	for id, o := range ps.others {
		if !known[id] {
			delete(ps.others, id)
			dropped = append(dropped, o)
		}
	}
	for id := range known {
		if id != n.cfg.Self && ps.others[id] == nil {
			ps.others[id] = &other{link: &link{n: n, peer: id}}
		}
	}
	close(ps.changed)
	ps.changed = make(chan struct{})
	ps.mu.Unlock()
	for _, o := range dropped {
		n.log.Info("a voter is not known any more", "voter", o.link.peer)
		o.link.close()
		n.conns.closeOf(o.link.peer)
	}
}

// Peers returns the voters that are known: those of the configuration, in its
// order, then those that still vote without being in it; and a channel that is
// closed when that has changed.
func (n *Node) Peers() (configured, former []Peer, changed <-chan struct{}) {
	ps := &n.peers
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return slices.Clone(ps.configured), slices.Clone(ps.former), ps.changed
}

// known are all of them.
func (n *Node) known() []Peer {
	configured, former, _ := n.Peers()
	return append(configured, former...)
}

// configured reports whether the configuration names a voter.
func (n *Node) configured(id ownership.HostID) bool {
	all, _, _ := n.Peers()
	return slices.ContainsFunc(all, func(p Peer) bool { return p.ID == id })
}

// isPeer reports whether id is one of the others.
func (n *Node) isPeer(id ownership.HostID) bool { return n.other(id) != nil }

// other returns what is known of another voter, nil if nothing is.
func (n *Node) other(id ownership.HostID) *other {
	n.peers.mu.Lock()
	defer n.peers.mu.Unlock()
	return n.peers.others[id]
}

// link returns the way to another voter, nil if there is none.
func (n *Node) link(id ownership.HostID) *link {
	if o := n.other(id); o != nil {
		return o.link
	}
	return nil
}

// members are the voters, and those that are to become one, as in the newest
// configuration in this voter's log, committed or not; see raft's rules.
func (n *Node) members() []raft.Server { return n.raft.GetConfiguration().Configuration().Servers }

// voting are the members that vote.
func (n *Node) voting() (all []ownership.HostID) {
	for _, s := range n.members() {
		if s.Suffrage == raft.Voter {
			all = append(all, ownership.HostID(s.ID))
		}
	}
	return all
}

// isMember reports whether entries of the log are for a voter.
func (n *Node) isMember(id ownership.HostID) bool {
	return slices.ContainsFunc(n.members(), func(s raft.Server) bool { return s.ID == raft.ServerID(id) })
}
