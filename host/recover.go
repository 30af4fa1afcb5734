package host

// This file is for a host that the log names the owner while it holds no guest:
// the daemon was restarted, or the host was, or the guest was lost.
//
//	the former daemon left it      go on with it as it was (left.go)
//	a live guest is found here     adopt it: unprotected at first, full
//	                               synchronisation follows (RULES 11)
//	… and its held writes are lost it is ended, as if there were none
//	none, a backup is in sync      surrender: the backup goes on (RULES 7)
//	none, no backup in sync        boot it anew
//	granted a takeover, no image   give the grant back (RULES 10)

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/crashpoint"
	"understudy/events"
	"understudy/hypervisor"
	"understudy/ownership"
)

// Settled reports whether nothing that a former daemon has left of a guest waits to be
// adopted, or ended, any more. Until the log can be read, it does.
func (h *Host) Settled() bool {
	for _, m := range h.now() {
		m.mu.Lock()
		settled := m.looked && (!m.found || m.role != "" && m.role != "recovering")
		m.mu.Unlock()
		if !settled {
			return false
		}
	}
	return true
}

// reclaimAfter is how long a surrendered guest waits for its backup before this
// host, which no longer holds it, boots it anew.
const reclaimAfter = 30 * time.Second

func (m *manager) recover(ctx context.Context, state ownership.Guest) error {
	m.as("recovering", nil, nil)
	switch state.Phase {
	case ownership.PhaseActivating:
		// What a former process left of the takeover must not run beside it.
		if err := m.end(ctx); err != nil {
			return err
		}
		_, err := m.propose(ctx, state, ownership.Return, ownership.Backup{})
		return err
	case ownership.PhaseSurrendered:
		if !state.InSync {
			m.slog.Warn("the backup that the guest was surrendered to has lost its image: it is booted anew")
			_, err := m.propose(ctx, state, ownership.Reclaim, ownership.Backup{})
			return err
		}
		wait, cancel := context.WithTimeout(ctx, reclaimAfter)
		defer cancel()
		if err := m.changed(wait, state); err == nil || ctx.Err() != nil {
			return err
		}
		m.slog.Warn("the backup did not take the guest over: it is booted anew")
		_, err := m.propose(ctx, state, ownership.Reclaim, ownership.Backup{})
		return err
	}
	crashpoint.At(crashpoint.AdoptionBegun)
	left := m.takeLeft()
	guest, exact, err := m.adopt(ctx, left != nil)
	switch {
	case err == nil && exact && left.Continues(state, m.host.cfg.Self):
		m.slog.Info("the guest that the former daemon handed over goes on", "at", left.At)
		crashpoint.At(crashpoint.Adopted)
		m.tell(events.Event{Kind: events.KindAdopted, Generation: state.Generation, Peer: left.Backup, Epoch: left.At.Number,
			Text: "the guest that the former daemon handed over goes on as it was"})
		m.guest, m.running, m.left = guest, false, left
		return m.own(ctx, state)
	case err == nil:
		m.slog.Info("adopted the running guest")
		crashpoint.At(crashpoint.Adopted)
		next, err := m.propose(ctx, state, ownership.Adopt, ownership.Backup{})
		if err != nil {
			// Not in a generation of its own yet: found and adopted once more.
			return errors.Join(err, guest.Detach())
		}
		m.guest, m.running = guest, false
		return m.own(ctx, next)
	case !errors.Is(err, hypervisor.ErrNoGuest):
		m.slog.Warn("the guest found here cannot be adopted: it is ended", "err", err)
	}
	// Whatever is left of it here must be gone before anyone else may run it.
	if err := m.end(ctx); err != nil {
		return err
	}
	if state.InSync {
		m.slog.Warn("the guest is gone here; its backup is in sync and takes it over", "backup", state.Backup.Host)
		crashpoint.At(crashpoint.Surrendering)
		_, err := m.propose(ctx, state, ownership.Surrender, state.Backup)
		return err
	}
	return m.boot(ctx, state)
}

// boot starts the guest from nothing, in a new generation.
func (m *manager) boot(ctx context.Context, state ownership.Guest) error {
	m.as("booting", nil, nil)
	began := m.host.cfg.Clock.Now()
	crashpoint.At(crashpoint.Booting)
	if err := m.end(ctx); err != nil {
		return err
	}
	if err := m.whole(); err != nil {
		return err
	}
	if m.Disks != nil {
		m.Disks.PeerOff(state.Fenced != "" && state.Fenced != m.host.cfg.Self)
	}
	guest, err := m.Driver.Start(ctx)
	if err != nil {
		return fmt.Errorf("start the guest: %w", err)
	}
	m.guest, m.running = guest, false
	next, err := m.propose(ctx, state, ownership.Start, ownership.Backup{})
	if err != nil {
		return errors.Join(err, m.end(ctx))
	}
	m.slog.Info("guest started", "generation", next.Generation)
	m.tellBegun(events.KindBooted, next, m.host.cfg.Clock.Now().Sub(began), "the guest is booted here")
	return m.own(ctx, next)
}

// propose puts one command to the log. When its outcome is unknown, the caller
// returns the error, and run reads the log through a barrier, which settles it.
func (m *manager) propose(ctx context.Context, state ownership.Guest, kind ownership.Kind, b ownership.Backup) (ownership.Guest, error) {
	return m.put(ctx, m.command(state, kind, b))
}

func (m *manager) command(state ownership.Guest, kind ownership.Kind, b ownership.Backup) ownership.Command {
	return ownership.Command{ID: ownership.NewCommandID(), Guest: m.Name, Kind: kind,
		Host: m.host.cfg.Self, Generation: state.Generation, Revision: state.Revision, Backup: b}
}

func (m *manager) put(ctx context.Context, c ownership.Command) (ownership.Guest, error) {
	call, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	next, err := m.host.cfg.Log.Propose(call, c)
	if err != nil {
		return next, fmt.Errorf("propose %s: %w", c.Kind, err)
	}
	m.tellApplied(c, next)
	return next, nil
}

// adopt takes a guest that a former process has left here, unless the writes that
// were held for it are lost: it was told of them (RULES 11).
//
// exact says that it is as a former process left it standing still, if asLeft asks
// for that.
func (m *manager) adopt(ctx context.Context, asLeft bool) (guest hypervisor.Guest, exact bool, err error) {
	if r, ok := m.Driver.(hypervisor.Resumer); ok && asLeft {
		guest, exact, err = r.Resume(ctx)
	} else {
		guest, err = m.Driver.Adopt(ctx)
	}
	if err == nil && m.Disks != nil && m.Disks.Status().Recovered.Missing {
		return nil, false, errors.Join(errors.New("the writes that were held for it are gone"), guest.Destroy())
	}
	return guest, exact, err
}
