package failover

// admit.go: a voter with an empty log does not vote until it is known why the
// log is empty.
//
// raft's safety rests on disks that remember. A voter that has lost its disk
// has forgotten entries it acknowledged and votes it gave; if it helped to
// elect a voter that lacks those entries, they would be gone: a takeover, say,
// undone. So raft's requests for votes are kept from it until
//
//   - every voter of the configuration says that its log is empty as well: the
//     cluster is being formed, and only now is the configuration the log's first
//     entry; or
//   - a leader, elected without it, has filled its log up to what was
//     committed when it asked.
//
// A majority with empty logs would not do: a voter that is to take another's place
// (members.go) and one that has lost its disk are a majority of the configuration,
// and must not begin a log while the third, which has it, cannot be reached.
//
// Losing two disks at once is beyond this.

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"understudy/ownership"
)

// emptyLog is the last index of a log that holds nothing but the bootstrap.
const emptyLog = 1

// gatedTransport is raft's transport, with requests for votes refused while
// the voter has not been admitted, and with patience for voters that are away
// (returning.go).
type gatedTransport struct {
	*raft.NetworkTransport
	n        *Node
	raft     atomic.Pointer[raft.Raft] // that sends by it; nil while it is being made
	away     sync.Map                  // raft.ServerID: voters that entries cannot be sent to
	admitted atomic.Bool
	consume  chan raft.RPC
}

var errNotAdmitted = errors.New("this voter's log is empty and has not been filled yet: it does not vote")

// Consumer implements raft.Transport.
func (g *gatedTransport) Consumer() <-chan raft.RPC { return g.consume }

// pass hands raft's requests on until ctx ends.
func (g *gatedTransport) pass(ctx context.Context) {
	for {
		select {
		case rpc := <-g.NetworkTransport.Consumer():
			if !g.admitted.Load() && asksForVote(rpc) {
				rpc.Respond(nil, errNotAdmitted)
				continue
			}
			select {
			case g.consume <- rpc:
			case <-ctx.Done():
				rpc.Respond(nil, raft.ErrTransportShutdown)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// asksForVote also holds for TimeoutNow, which makes a candidate of its
// receiver.
func asksForVote(rpc raft.RPC) bool {
	switch rpc.Command.(type) {
	case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest, *raft.TimeoutNowRequest:
		return true
	}
	return false
}

// RequestVote implements raft.Transport: who may not vote does not stand.
func (g *gatedTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if !g.admitted.Load() {
		return errNotAdmitted
	}
	return g.NetworkTransport.RequestVote(id, target, args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (g *gatedTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if !g.admitted.Load() {
		return errNotAdmitted
	}
	return g.NetworkTransport.RequestPreVote(id, target, args, resp)
}

// admit asks the others until this voter may vote. It is a goroutine of the
// Node, ended by admission or with its context.
func (n *Node) admit() {
	n.log.Info("the log is empty: asking the other voters whether the cluster is new")
	for told, waits := false, false; ; {
		empty := 1
		var silent []ownership.HostID
		for _, p := range n.known() {
			l := n.link(p.ID)
			if l == nil {
				continue
			}
			ctx, cancel := context.WithTimeout(n.ctx, 2*n.cfg.Profile.Attempt)
			a, err := l.call(ctx, kindStatus, request{})
			cancel()
			switch {
			case err != nil || a.Code != codeOK:
				silent = append(silent, l.peer)
			case a.Index <= emptyLog:
				empty++
			case a.Leader == l.peer && n.raft.AppliedIndex() >= a.Index:
				n.log.Info("admitted: the log has been filled", "by", l.peer, "index", a.Index)
				n.transport.admitted.Store(true)
				n.sortPeers()
				return
			case !told:
				told = true
				n.log.Warn("the cluster has a log and this voter has none: if it is not new, its disk was lost; "+
					"it votes again when a leader has filled its log", "heard from", l.peer)
			}
		}
		if configured, _, _ := n.Peers(); empty == len(configured) {
			err := n.raft.BootstrapCluster(n.voters()).Error()
			if err == nil || errors.Is(err, raft.ErrCantBootstrap) && n.raft.LastIndex() == emptyLog {
				n.log.Info("admitted: the cluster is new", "voters with an empty log", empty, "voters", len(configured))
				n.transport.admitted.Store(true)
				n.sortPeers()
				return
			}
			n.log.Warn("the ownership log cannot be begun yet", "err", err)
		} else if missing := len(configured) - empty; missing > 0 && missing == len(silent) && !waits {
			waits = true
			n.log.Info("a new ownership log is begun once every voter has said that it has none", "waits for", silent)
		}
		select {
		case <-time.After(n.cfg.Profile.Heartbeat / 4):
		case <-n.ctx.Done():
			return
		}
	}
}

// status answers admit: how far the log goes, and as the leader, up to where
// it is committed.
func (n *Node) status(req request) answer {
	a := answer{Code: codeOK, Index: n.raft.LastIndex(), Waits: !n.transport.admitted.Load(), Knows: req.Host != "" && n.configured(req.Host)}
	if r := n.reigns.now(); r != nil && r.holds() == nil {
		a.Index, a.Leader, a.Term = n.raft.CommitIndex(), n.cfg.Self, r.term
	}
	return a
}
