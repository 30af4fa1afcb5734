package primary

import (
	"context"
	"fmt"
)

// Alive returns nil once the loop has come round to its next event, or has
// ended; an error if it does not until ctx ends.
func (p *Primary) Alive(ctx context.Context) error {
	select {
	case p.errands <- func(context.Context) {}:
		return nil
	case <-p.over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the primary of %s is stuck in an event: %w", p.cfg.Guest, ctx.Err())
	}
}
