package failover

// leave.go: a voter that is about to end in good order. Who leads hands that over
// first, so that nobody has to find out by silence.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"understudy/ownership"
)

// Unreached asks the other voters whether they are there, and returns those that
// have not answered before ctx ended. Without this voter the log goes on only if
// all others are.
func (n *Node) Unreached(ctx context.Context) []ownership.HostID {
	var mu sync.Mutex
	var away []ownership.HostID
	var asking sync.WaitGroup
	for _, id := range n.voting() {
		if id == n.cfg.Self {
			continue
		}
		asking.Go(func() {
			l, err := n.link(id), errNotSent // of a voter that is not known here
			if l != nil {
				_, err = l.call(ctx, kindStatus, request{})
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				away = append(away, id)
			}
		})
	}
	asking.Wait()
	return away
}

// HandLeadership moves the leader to another voter, the best that takes it, if
// this one leads. It returns when this voter knows of another leader.
func (n *Node) HandLeadership(ctx context.Context) error {
	if n.Leader() != n.cfg.Self {
		return nil
	}
	var errs []error
	voting := n.voting()
	for rank := range 3 {
		for _, p := range n.known() {
			if p.ID == n.cfg.Self || n.rank(p) != rank || !slices.Contains(voting, p.ID) {
				continue
			}
			n.log.Info("handing the leadership over, since this voter is about to end", "to", p.ID)
			err := n.raftWait(ctx, n.raft.LeadershipTransferToServer(raft.ServerID(p.ID), raft.ServerAddress(p.ID)))
			if err == nil {
				err = n.awaitLeader(ctx)
			}
			if err == nil {
				return nil
			}
			errs = append(errs, fmt.Errorf("%s: %w", p.ID, err))
		}
	}
	return fmt.Errorf("hand the leadership of the ownership log over: %w", errors.Join(errs...))
}

// awaitLeader waits until another voter leads.
func (n *Node) awaitLeader(ctx context.Context) error {
	for {
		leader, changed := n.leaders.get()
		if leader != "" && leader != n.cfg.Self {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("no other leader is known: %w", ctx.Err())
		case <-n.ctx.Done():
			return ErrClosed
		}
	}
}
