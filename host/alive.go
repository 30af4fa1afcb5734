package host

import (
	"context"
	"errors"
	"fmt"
)

// Alive returns nil once every guest's loop on this host has come round to its
// next event; else, when ctx ends, an error that names those that have not. It
// takes every lock that Status takes, and does not give one up: call it where a
// call that never returns does no harm.
func (h *Host) Alive(ctx context.Context) error {
	var stuck []error
	for _, g := range h.Status() {
		m := h.managers[g.Name]
		m.mu.Lock()
		p, b := m.primary, m.backup
		m.mu.Unlock()
		switch {
		case p != nil:
			stuck = append(stuck, p.Alive(ctx))
		case b != nil:
			stuck = append(stuck, b.Alive(ctx))
		}
	}
	if err := errors.Join(stuck...); err != nil {
		return fmt.Errorf("host %s: %w", h.cfg.Self, err)
	}
	return nil
}
