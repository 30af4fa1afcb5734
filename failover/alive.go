package failover

import (
	"context"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// Alive returns nil once this voter's raft has come round to its next event, or
// the voter has stopped; an error if it does not until ctx ends.
func (n *Node) Alive(ctx context.Context) error {
	return n.answered(ctx, n.raft.VerifyLeader())
}

// answered waits for any answer: that this voter does not lead, or no longer,
// comes from the same loop as that it does.
func (n *Node) answered(ctx context.Context, f raft.Future) error {
	if err := n.raftWait(ctx, f); ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fmt.Errorf("the ownership log's voter on %s is stuck in an event: %w", n.cfg.Self, err)
	}
	return nil
}
