package failover

// returning.go: entries for a voter that does not answer.
//
// After each failure to send entries raft waits before it tries again, twice as
// long as the time before, up to 10 s, and nothing wakes it up (hashicorp/raft
// replication.go: replicateTo, backoff). A host that comes back after a minute
// would learn that much later what has become of its guests, though heartbeats
// reach it at once. So a failure is not told to raft: what it wants to send is
// tried again here, at a steady pace, until it arrives or this voter does not
// lead any more in the term it is sent in. Until then the leader is not moved to
// that voter (placement.go): raft would wait for it, and take no entries.

import (
	"context"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"understudy/ownership"
)

// AppendEntries implements raft.Transport.
func (g *gatedTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	send := func() error {
		*resp = raft.AppendEntriesResponse{} // of the try before
		return g.NetworkTransport.AppendEntries(id, target, args, resp)
	}
	if isHeartbeat(args) {
		return send() // raft tries again soon enough
	}
	return g.persist(id, args.Term, send)
}

// InstallSnapshot implements raft.Transport. A snapshot is read while it is
// sent, so it is sent only once, when the voter answers.
func (g *gatedTransport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if l := g.n.link(ownership.HostID(id)); l != nil {
		if err := g.persist(id, args.Term, func() error {
			ctx, cancel := context.WithTimeout(g.n.ctx, g.n.cfg.Profile.Attempt)
			defer cancel()
			_, err := l.call(ctx, kindStatus, request{})
			return err
		}); err != nil {
			return err
		}
	}
	return g.NetworkTransport.InstallSnapshot(id, target, args, resp, data)
}

// isHeartbeat tells what raft sends to keep its followers (hashicorp/raft
// replication.go, heartbeat) from what it sends to fill their logs.
func isHeartbeat(args *raft.AppendEntriesRequest) bool {
	return len(args.Entries) == 0 && args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && args.LeaderCommitIndex == 0
}

// persist tries until there is no error, this voter leads in the term no more,
// or the node is closed. It runs on raft's goroutine for the one voter; raft
// itself ends that only between two sends, and waits for its end in Shutdown.
func (g *gatedTransport) persist(id raft.ServerID, term uint64, try func() error) error {
	pause := min(max(g.n.cfg.Profile.Heartbeat/4, 10*time.Millisecond), 100*time.Millisecond)
	defer g.away.CompareAndDelete(id, term) // another term's is its own
	for {
		err := try()
		if err == nil || !g.leads(term) || !g.n.isMember(ownership.HostID(id)) {
			return err
		}
		g.away.Store(id, term)
		select {
		case <-time.After(pause):
		case <-g.n.ctx.Done():
			return err
		}
	}
}

// waitsFor reports whether entries for the voter cannot be sent.
func (g *gatedTransport) waitsFor(id ownership.HostID) bool {
	_, waits := g.away.Load(raft.ServerID(id))
	return waits
}

// leads reports whether this voter leads in the term; also not when raft has
// been shut down, or is being made.
func (g *gatedTransport) leads(term uint64) bool {
	r := g.raft.Load()
	return r != nil && r.State() == raft.Leader && r.CurrentTerm() == term
}
