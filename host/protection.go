package host

// This file is the operator's switch of a guest's protection, and the way home:
// Pause, Resume, Unprotect, Protect, Failback, and the failback that the owner's
// daemon makes by itself when the configuration says so.
//
//	switch:   read the log → propose → the primary and the backup follow it
//	failback: protected by its own host for long enough → switchover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/clock"
	"understudy/events"
	"understudy/ownership"
	"understudy/primary"
)

// Pause stops protecting the guest for a while. Its backup keeps its image, so
// that Resume has to send only what has changed.
func (h *Host) Pause(ctx context.Context, guest string) (ownership.Guest, error) {
	return h.protection(ctx, guest, ownership.ProtectionPaused)
}

// Resume protects a guest again whose protection was paused or given up.
func (h *Host) Resume(ctx context.Context, guest string) (ownership.Guest, error) {
	return h.protection(ctx, guest, ownership.ProtectionOn)
}

// Unprotect gives the guest's protection up. Its backup frees image and memory.
func (h *Host) Unprotect(ctx context.Context, guest string) (ownership.Guest, error) {
	return h.protection(ctx, guest, ownership.ProtectionOff)
}

// Protect is Resume.
func (h *Host) Protect(ctx context.Context, guest string) (ownership.Guest, error) {
	return h.protection(ctx, guest, ownership.ProtectionOn)
}

// switchTime bounds an operation on the switch. What is proposed meanwhile by
// the guest's primary comes first, and the switch is proposed once more.
const switchTime = 10 * time.Second

// protection sets the switch, and returns once the log has it. It is so already:
// nothing is done.
func (h *Host) protection(ctx context.Context, guest string, to ownership.Protection) (ownership.Guest, error) {
	m, err := h.manager(guest)
	if err != nil {
		return ownership.Guest{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, switchTime)
	defer cancel()
	for {
		state, err := h.readLog(ctx, guest)
		switch {
		case err != nil:
			return state, err
		case state.Generation == 0:
			return state, fmt.Errorf("guest %q was never started: its protection is on once it is", guest)
		case state.Owner != h.cfg.Self:
			return state, fmt.Errorf("guest %q is owned by host %s: ask it there", guest, state.Owner)
		case state.Phase != ownership.PhaseActive:
			return state, fmt.Errorf("guest %q is %s: try again when it runs on its new host", guest, state.Phase)
		case state.Protection == to:
			return state, nil
		}
		c := m.command(state, ownership.SwitchTo(to), ownership.Backup{})
		c.At = time.Now().UnixMilli()
		next, err := h.cfg.Log.Propose(ctx, c)
		if refused := (*ownership.Refused)(nil); errors.As(err, &refused) && refused.State.Revision > state.Revision {
			continue // the log went on meanwhile
		}
		if err != nil {
			return next, fmt.Errorf("set the protection of %s to %s: %w", guest, to, err)
		}
		m.tell(events.Event{Kind: events.KindProtectionChanged, Generation: next.Generation, Peer: m.settings.Load().Peer, Reason: events.ReasonOperator,
			Change: events.Change{From: state.Protection.String(), To: to.String()}, Text: fmt.Sprintf("an operator sets the guest's protection to %s", to)})
		return next, nil
	}
}

// Failback brings the guest back to the host that the configuration names for
// it: a switchover, if that host is its backup in sync.
func (h *Host) Failback(ctx context.Context, guest string) (ownership.Guest, error) {
	m, err := h.manager(guest)
	if err != nil {
		return ownership.Guest{}, err
	}
	home := m.settings.Load().Home
	state, err := h.readLog(ctx, guest)
	switch {
	case err != nil:
		return state, err
	case state.Owner == home:
		return state, fmt.Errorf("guest %q is on %s already, the host that the configuration names for it", guest, home)
	case state.Owner != h.cfg.Self:
		return state, fmt.Errorf("guest %q is owned by host %s: ask it there", guest, state.Owner)
	case state.Protection != ownership.ProtectionOn:
		return state, fmt.Errorf("guest %q cannot go back to %s: an operator has set its protection to %s; `understudy protect %s` first, and wait until it is in sync",
			guest, home, state.Protection, guest)
	case !state.InSync:
		return state, fmt.Errorf("guest %q cannot go back to %s, which is not in sync: wait until `understudy status` says that it is protected", guest, home)
	case state.Backup.Host != home:
		return state, fmt.Errorf("guest %q cannot go back to %s: its backup in sync is %s", guest, home, state.Backup.Host)
	}
	return h.Switchover(ctx, guest)
}

// failbackTime bounds one failback that the daemon makes by itself.
const failbackTime = 2 * time.Minute

// goHome brings the guest back by itself, if the configuration says so, once it
// was protected by its own host for that long without a break. It ends with ctx.
func (m *manager) goHome(ctx context.Context) {
	var rest clock.Instant // after one that failed
	waits := ""            // for a drill
	for {
		g := m.settings.Load()
		sleep(ctx, look(g.FailbackAfter))
		if ctx.Err() != nil {
			return
		}
		if g = m.settings.Load(); m.host.cfg.Clock.Now().Before(rest) || !m.mayGoHome(g) {
			continue
		}
		if id := m.drilling(ctx); id != "" {
			if id != waits {
				m.slog.Info("going back to the guest's own host waits for the end of a drill", "drill", id)
			}
			waits = id
			continue
		}
		m.tell(events.Event{Kind: events.KindFailbackBegun, Peer: g.Home, Reason: events.ReasonPolicy, Duration: g.FailbackAfter,
			Text: fmt.Sprintf("the guest was protected by %s, its own host, for %v: it goes back there", g.Home, g.FailbackAfter)})
		m.slog.Info("going back to the guest's own host", "host", g.Home)
		call, cancel := context.WithTimeout(ctx, failbackTime)
		_, err := m.host.Failback(call, m.Name)
		cancel()
		if err != nil && ctx.Err() == nil {
			m.slog.Warn("the guest did not go back to its own host: tried again later", "host", g.Home, "err", err, "after", g.FailbackAfter)
		}
		rest = m.host.cfg.Clock.Now().Add(g.FailbackAfter)
	}
}

// drilling names a drill that runs somewhere: it moves guests itself, and brings them
// back.
func (m *manager) drilling(ctx context.Context) string {
	if m.host.cfg.Drilling == nil {
		return ""
	}
	return m.host.cfg.Drilling(ctx)
}

// look is how long to wait between two looks.
func look(after time.Duration) time.Duration {
	if after <= 0 {
		return 10 * time.Second // an operator does it, until the configuration says something else
	}
	return min(max(after/10, 10*time.Millisecond), 10*time.Second)
}

// mayGoHome reports whether this host runs the guest and its own host has
// protected it for long enough.
func (m *manager) mayGoHome(g *Guest) bool {
	m.mu.Lock()
	p := m.primary
	m.mu.Unlock()
	if p == nil || g.FailbackAfter <= 0 || g.Home == m.host.cfg.Self {
		return false
	}
	st := p.Status()
	return st.Mode == primary.ModeProtected && st.Linked && st.Backup == g.Home && st.ModeFor >= g.FailbackAfter
}
