package host

// This file takes one guest from role to role: read the log → be what it says →
// when that role ends, read the log again.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"understudy/backup"
	"understudy/checkpoint"
	"understudy/hypervisor"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
)

// manager plays this host's part for one guest.
type manager struct {
	Guest
	host     *Host
	slog     *slog.Logger
	sessions chan backup.Opened
	restores chan *restoring
	starts   chan *starting
	bubbles  bubbles
	goOn     chan struct{}         // a handover was given up
	settings atomic.Pointer[Guest] // as they are now, see Change

	cancel context.CancelFunc // ends run
	ended  chan struct{}      // closed when it has

	// Owned by run.
	guest    hypervisor.Guest // held by this host, nil if none
	running  bool
	left     *primary.Left // of the guest that stands still; nil: nobody has left any
	giveBack func()        // ends what the guest needs of a checkpoint file; nil: nothing
	said     sayings

	mu      sync.Mutex // the roles, for status and requests
	role    string
	primary *primary.Primary
	backup  *backup.Backup
	problem string
	// How often the guest was taken over, and what was done by former primaries.
	takeovers uint64
	earlier   primary.Totals
	state     ownership.Guest
	looked    bool                // for what a former daemon has left
	found     bool                // there was something
	pending   *checkpoint.Pending // of a lazy restore, nil when it is over
	unsettle  context.CancelFunc  // ends the wait of a guest that nobody has booted yet
}

// again is the pause before something that failed is tried again.
const again = 200 * time.Millisecond

func (m *manager) run(ctx context.Context) {
	left, ok := m.Driver.(hypervisor.Leftover)
	found := ok && left.Left()
	m.mu.Lock()
	m.looked, m.found = true, found
	m.mu.Unlock()
	for ctx.Err() == nil {
		state, err := m.read(ctx)
		if err == nil {
			err = m.play(ctx, state)
		}
		m.note(err)
		if err != nil && ctx.Err() == nil {
			m.slog.Warn("this host cannot do its part for the guest, and tries again", "err", err)
			sleep(ctx, again)
		}
	}
	m.leave()
}

// play is one role, from its beginning to its end.
func (m *manager) play(ctx context.Context, state ownership.Guest) error {
	self := m.host.cfg.Self
	switch {
	case state.Fenced == self && m.guest == nil:
		return m.unfence(ctx, state)
	case state.Generation == 0 && m.settings.Load().Home == self:
		return m.boot(ctx, state)
	case state.Generation == 0:
		m.as("waiting", nil, nil)
		return m.waitFirst(ctx, state)
	case state.Desired == ownership.Stopped:
		m.as("stopped", nil, nil)
		if err := errors.Join(m.end(ctx), m.letGo(ctx)); err != nil {
			return err
		}
		return m.waitStopped(ctx, state)
	case state.Owner != self && state.Phase == ownership.PhaseActivating && state.Previous == self:
		// The new owner may yet give it back: keep it, paused and shut in, or as
		// a former process left it.
		m.as("yielding", nil, nil)
		return m.changed(ctx, state)
	case state.Owner != self && state.Protection == ownership.ProtectionOff:
		return m.release(ctx, state)
	case state.Owner != self:
		return m.standBy(ctx, state)
	case m.guest == nil:
		return m.recover(ctx, state)
	}
	return m.own(ctx, state)
}

// own runs the guest that this host holds.
func (m *manager) own(ctx context.Context, state ownership.Guest) error {
	left := m.left
	m.left = nil
	p, err := primary.New(m.settings.Load().Primary(m.lease()), primary.Deps{
		Guest: m.guest, Gate: m.Gate, Disks: m.primaryDisks(), Log: m.host.cfg.Log, Clock: m.host.cfg.Clock, Slog: m.slog,
		State: state, Running: m.running, Left: left, Blocks: m.blocks(), Events: m.primaryEvents(),
		Dial: func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
			g := m.settings.Load()
			s, err := g.Dial(ctx)
			return s, g.Peer, err
		},
	})
	if err != nil {
		return err
	}
	m.as("primary", p, nil)
	outcome, err := p.Run(ctx)
	m.running = false
	m.Gate.OnFirst(nil)
	m.slog.Info("no longer the primary", "outcome", outcome.String(), "err", err)
	switch outcome {
	case primary.OutcomeDetached:
		return err
	case primary.OutcomeHandedOver:
		return errors.Join(err, m.handedOver(ctx, p.Left()))
	case primary.OutcomeLost, primary.OutcomeStopped, primary.OutcomeSuperseded:
		m.Gate.Shut()
		m.Gate.Discard()
		return errors.Join(err, m.end(ctx))
	}
	return err
}

// standBy keeps an image of the guest that another host owns.
func (m *manager) standBy(ctx context.Context, state ownership.Guest) error {
	m.Gate.Shut()
	m.Gate.Discard()
	if err := m.end(ctx); err != nil {
		return err
	}
	b := backup.New(m.settings.Load().Backup(m.lease()), backup.Deps{
		Driver: m.Driver, Disks: m.backupDisks(), Log: m.host.cfg.Log, Sessions: m.sessions, Clock: m.host.cfg.Clock, Slog: m.slog, State: state,
		Events: m.backupEvents(),
	})
	m.as("backup", nil, b)
	r, err := b.Run(ctx)
	m.slog.Info("no longer the backup", "outcome", r.Outcome.String(), "err", err)
	if r.Outcome != backup.OutcomeTookOver {
		return err
	}
	// From here to the first frame every millisecond is the guest's outage: the
	// log's state is the one that granted the takeover, it need not be read.
	m.guest, m.running = r.Guest, true
	m.mu.Lock()
	m.takeovers++
	m.mu.Unlock()
	m.tellFirstOutput(r.State)
	return m.own(ctx, r.State)
}

// release keeps nothing of the guest: the operator has given its protection up.
func (m *manager) release(ctx context.Context, state ownership.Guest) error {
	m.Gate.Shut()
	m.Gate.Discard()
	if err := errors.Join(m.end(ctx), m.letGo(ctx)); err != nil {
		return err
	}
	m.as("released", nil, nil) // only now: see putAway
	return m.changed(ctx, state)
}

// lease returns the length of a lease; run begins only once it is known.
func (m *manager) lease() time.Duration { return m.host.cfg.Log.Lease() }

// read waits until the log can be read through a barrier.
func (m *manager) read(ctx context.Context) (ownership.Guest, error) {
	call, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	state, err := m.host.cfg.Log.Read(call, m.Name)
	if err != nil {
		return state, fmt.Errorf("read the ownership log: %w", err)
	}
	if m.lease() == 0 {
		return state, errors.New("the ownership log has not begun, or this host has not heard of it: the first start needs all three daemons, later ones two")
	}
	m.mu.Lock()
	m.state = state
	m.mu.Unlock()
	m.said.first.Do(func() { close(m.said.read) })
	return state, nil
}

// changed waits until the log says something newer.
func (m *manager) changed(ctx context.Context, state ownership.Guest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for s := range m.host.cfg.Log.Watch(ctx, m.Name) {
		if s.Revision > state.Revision {
			return nil
		}
	}
	return ctx.Err()
}

// waitFirst waits until the guest's home has booted it, or this host has become
// its home.
func (m *manager) waitFirst(ctx context.Context, state ownership.Guest) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	m.mu.Lock()
	m.unsettle = cancel
	m.mu.Unlock()
	if m.settings.Load().Home == m.host.cfg.Self {
		return nil // it has become so just now
	}
	err := m.changed(waiting, state)
	if waiting.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}

// end destroys the guest this host holds, and whatever is left of it here.
func (m *manager) end(ctx context.Context) error {
	if m.guest != nil {
		if err := m.guest.Destroy(); err != nil {
			return fmt.Errorf("end the guest: %w", err)
		}
		m.guest, m.left = nil, nil
	}
	if m.giveBack != nil {
		m.giveBack()
	}
	if err := removeLeft(m.LeftFile); err != nil {
		return fmt.Errorf("clean up what is left of the guest: %w", err)
	}
	if err := m.Driver.Clean(ctx); err != nil {
		return fmt.Errorf("clean up what is left of the guest: %w", err)
	}
	return nil
}

// letGo makes the disks nobody's: another host may take them.
func (m *manager) letGo(ctx context.Context) error {
	if m.Disks == nil {
		return nil
	}
	if err := m.Disks.StandBy(ctx); err != nil {
		return fmt.Errorf("let go of the disks: %w", err)
	}
	return nil
}

// primaryDisks and backupDisks keep a guest without disks from looking like one
// with disks that are nil.
func (m *manager) primaryDisks() primary.Disks {
	if m.Disks == nil {
		return nil
	}
	return m.Disks
}

func (m *manager) backupDisks() backup.Disks {
	if m.Disks == nil {
		return nil
	}
	return m.Disks
}

// leave is the daemon going down.
func (m *manager) leave() {
	defer func() {
		if m.giveBack != nil {
			m.giveBack()
		}
	}()
	if m.guest == nil {
		return
	}
	if m.left != nil {
		m.leaveLeft()
	}
	var err error
	if m.host.cfg.AdoptLater {
		err = m.guest.Detach()
	} else {
		err = m.guest.Destroy()
	}
	if err != nil {
		m.slog.Warn("guest not left cleanly", "err", err)
	}
	m.guest = nil
}

// as notes the role for status and requests, then tells it: who hears of it and
// asks for the status finds it there.
func (m *manager) as(role string, p *primary.Primary, b *backup.Backup) {
	m.mu.Lock()
	if m.primary != nil && m.primary != p {
		m.earlier = m.earlier.Plus(m.primary.Status().Totals)
	}
	m.role, m.primary, m.backup = role, p, b
	if p != nil || b != nil {
		m.problem = "" // what was in the way has been overcome
	}
	m.mu.Unlock()
	m.tellRole(role)
	if p != nil || b != nil {
		m.tellProblem(nil)
	}
}

// note keeps what is in the way for status, then tells it.
func (m *manager) note(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	m.mu.Lock()
	m.problem = text
	m.mu.Unlock()
	m.tellProblem(err)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
