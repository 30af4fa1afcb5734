package failover

// placement.go: where the leader sits. The loss of a host that leads costs an
// election and a full lease on top; so the leader moves to the witness, or
// else to a host that owns no guest, when that voter has been well for a
// while. It never moves to a voter that is not better, and failed attempts are
// spaced out, so it does not flap.

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"understudy/ownership"
)

const (
	wellChecks  = 5                // a candidate must answer this many checks in a row
	maxAttempts = 30 * time.Second // at most this long between attempts
)

// rank orders voters as leaders, the lowest is the best.
func (n *Node) rank(p Peer) int {
	switch {
	case p.Witness:
		return 0
	case !n.fsm.owns(p.ID):
		return 1
	}
	return 2
}

// place is one of a reign's duties; it ends with the reign.
func (r *reign) place() {
	n := r.n
	every := n.cfg.Profile.Heartbeat
	wait := 2 * every
	well := map[ownership.HostID]int{}
	for tick := time.NewTimer(every); ; tick.Reset(wait) {
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			tick.Stop()
			return
		}
		to, ready := r.better(well)
		switch {
		case to == "":
			wait = 4 * every
		case !ready || r.leases.deciding():
			wait = every
		default:
			n.log.Info("moving the leader", "to", to)
			f := n.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
			if err := n.raftWait(r.ctx, f); err == nil {
				return
			} else if r.ctx.Err() == nil {
				n.log.Info("the leader could not be moved", "to", to, "err", err)
			}
			clear(well)
			wait = min(max(2*wait, 8*every), maxAttempts)
		}
	}
}

// better returns the best voter to lead, if it is better than we are, and
// whether it has been well for long enough.
func (r *reign) better(well map[ownership.HostID]int) (to ownership.HostID, ready bool) {
	n := r.n
	own := 2
	configured, _, _ := n.Peers()
	for _, p := range configured {
		if p.ID == n.cfg.Self {
			own = n.rank(p)
		}
	}
	best, voting := own, n.voting()
	for _, p := range configured {
		rank, l := n.rank(p), n.link(p.ID)
		if l == nil || rank >= own || !slices.Contains(voting, p.ID) {
			continue
		}
		ctx, cancel := context.WithTimeout(r.ctx, n.cfg.Profile.Attempt)
		err := r.ask(ctx, l)
		cancel()
		if err != nil || n.transport.waitsFor(p.ID) {
			well[p.ID] = 0
			continue
		}
		well[p.ID]++
		if rank < best {
			to, best, ready = p.ID, rank, well[p.ID] >= wellChecks
		}
	}
	return to, ready
}
