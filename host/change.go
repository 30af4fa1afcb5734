package host

// This file is what can change of the guests while the daemon runs: guests come
// and go, and the settings of those that stay change under them.
//
//	Add      a manager with its goroutines, as Run makes them
//	Remove   is the log done with it here? → the manager ends → gate and disks close
//	Change   the new settings are there for the next role → the present one is told

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/ownership"
	"understudy/primary"
)

// Add plays the part for one more guest, from now on. The Host closes its gate and
// its disks, also when it returns an error.
func (h *Host) Add(g Guest) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.newManager(g)
	switch {
	case h.begin == nil:
		m.close()
		return fmt.Errorf("guest %q is not taken on: this host goes down", g.Name)
	case h.managers[g.Name] != nil:
		m.close()
		return fmt.Errorf("guest %q is here already", g.Name)
	}
	h.managers[g.Name] = m
	h.begin(m)
	m.slog.Info("guest added", "home", g.Home, "peer", g.Peer)
	return nil
}

// Removable says why a guest cannot be removed from this host now, and what to do
// first; nil: it can.
func (h *Host) Removable(ctx context.Context, guest string) error {
	if _, err := h.manager(guest); err != nil {
		return err
	}
	state, err := h.readLog(ctx, guest)
	if err != nil {
		return fmt.Errorf("guest %q: %w", guest, err)
	}
	return h.removable(guest, state)
}

func (h *Host) removable(guest string, state ownership.Guest) error {
	self := h.cfg.Self
	switch {
	case state.Generation == 0 || state.Desired == ownership.Stopped:
		return nil
	case state.Owner == self:
		return fmt.Errorf("guest %q runs on host %s: stop it first (understudy stop %s), or switch it over to a host that keeps it", guest, self, guest)
	case state.Phase != ownership.PhaseActive && state.Previous == self:
		return fmt.Errorf("guest %q is just being taken over from host %s: try again when it is protected", guest, self)
	case state.InSync && state.Backup.Host == self:
		return fmt.Errorf("host %s is the backup in sync of guest %q: stop the guest first (understudy stop %s), or give it another backup: apply the configuration on host %s, its owner",
			self, guest, guest, state.Owner)
	}
	return nil
}

// Remove ends the part for a guest that the log says is stopped, or that this host
// is nothing to: its gate and disks are closed, what is left of it here is cleaned
// up. The log keeps what it knows of the guest.
func (h *Host) Remove(ctx context.Context, guest string) error {
	if err := h.Removable(ctx, guest); err != nil {
		return err
	}
	h.mu.Lock()
	m := h.managers[guest]
	if m == nil || h.begin == nil {
		h.mu.Unlock()
		return fmt.Errorf("guest %q is not removed: it is not here any more, or this host goes down", guest)
	}
	delete(h.managers, guest)
	h.mu.Unlock()
	m.cancel()
	<-m.ended
	// It may have been started, or taken over, at the last moment.
	state, err := h.readLog(ctx, guest)
	if err == nil {
		err = h.removable(guest, state)
	}
	if err != nil {
		err = fmt.Errorf("guest %q stays: %w", guest, err)
		if back := h.takeBack(m); back != nil {
			return errors.Join(err, back)
		}
		return err
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := m.end(clean); err != nil {
		m.slog.Warn("something is left of the guest", "err", err)
	}
	m.close()
	m.slog.Info("guest removed")
	return nil
}

// takeBack goes on with a guest whose manager was ended in vain.
func (h *Host) takeBack(m *manager) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	again := h.newManager(*m.settings.Load())
	if h.begin == nil || h.managers[m.Name] != nil {
		again.close()
		return fmt.Errorf("guest %q: this host goes down", m.Name)
	}
	again.takeovers, again.earlier = m.takeovers, m.earlier
	h.managers[m.Name] = again
	h.begin(again)
	return nil
}

// Change gives a guest the Home, Peer, Primary, Backup, Dial, FailbackAfter and OnStop of g: at once to
// the role that this host plays, and to those that follow. anew makes the session
// to the backup anew. If the role does not take them within ctx, those that follow
// do, and an error says so.
func (h *Host) Change(ctx context.Context, g Guest, anew bool) error {
	m, err := h.manager(g.Name)
	if err != nil {
		return err
	}
	next := m.Guest
	next.Home, next.Peer, next.Primary, next.Backup, next.Dial, next.FailbackAfter = g.Home, g.Peer, g.Primary, g.Backup, g.Dial, g.FailbackAfter
	next.OnStop = g.OnStop
	m.settings.Store(&next)
	m.mu.Lock()
	p, b, unsettle := m.primary, m.backup, m.unsettle
	m.mu.Unlock()
	if unsettle != nil {
		unsettle()
	}
	switch {
	case b != nil:
		b.Reconfigure(next.Backup(m.lease()))
	case p != nil:
		// A role that has ended makes way for one with the new settings.
		if err := p.Reconfigure(ctx, next.Primary(m.lease()), anew); err != nil && !errors.Is(err, primary.ErrEnded) {
			return fmt.Errorf("guest %q goes on with its former settings for now: %w", g.Name, err)
		}
	}
	return nil
}
