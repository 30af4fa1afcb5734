package backup

import (
	"context"
	"fmt"
)

// Alive returns nil once the loop has come round to its next event, or is not
// running; an error if it does not until ctx ends.
func (b *Backup) Alive(ctx context.Context) error {
	select {
	case <-b.looping:
	default:
		return nil // it still waits for the disks
	}
	select {
	case b.asked <- struct{}{}:
		return nil
	case <-b.over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the backup of %s is stuck in an event: %w", b.cfg.Guest, ctx.Err())
	}
}
