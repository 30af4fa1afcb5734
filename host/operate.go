package host

// This file is what an operator can see and ask of this host: Status, and the
// requests Switchover, Verify, Stop and Start. Those about its protection are in
// protection.go.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	"understudy/backup"
	"understudy/disk"
	"understudy/exclusion"
	"understudy/ownership"
	"understudy/primary"
)

// GuestStatus is what this host knows of one guest.
type GuestStatus struct {
	Name string           `json:"name"`
	Host ownership.HostID `json:"host"` // who answers
	// Home is the host that the configuration names for it, where a failback brings it.
	Home ownership.HostID `json:"home,omitempty"`
	Role string           `json:"role"` // primary, backup, booting, recovering, waiting, stopped, yielding, released
	// Owner and the rest of Log are what the ownership log has applied here.
	Log ownership.Guest `json:"log"`
	// Protected: the log names a backup in sync, and this host, being the
	// primary, feeds it. Unknown ("") where this host is not the primary.
	Protected string          `json:"protected"`
	Primary   *primary.Status `json:"primary,omitempty"`
	Backup    *backup.Status  `json:"backup,omitempty"`
	// Disks are those that the daemon serves; Excluded counts the pages that
	// were left out of checkpoints, while this host is the primary.
	Disks    *disk.Status     `json:"disks,omitempty"`
	Excluded *exclusion.Stats `json:"excluded,omitempty"`
	// Missing pages of a lazy restore are still only in the checkpoint file.
	Missing uint64 `json:"missing_pages,omitempty"`
	Problem string `json:"problem,omitempty"`
	// Bubble is the copy that this host runs in isolation, nil if there is none.
	Bubble *BubbleStatus `json:"bubble,omitempty"`
	// Takeovers counts how often this host took the guest over, and Earlier sums
	// up its former times as the primary, since the daemon began.
	Takeovers uint64          `json:"takeovers"`
	Earlier   *primary.Totals `json:"earlier_totals,omitempty"`
}

// Protection answers of GuestStatus.Protected.
const (
	ProtectedYes     = "yes"
	ProtectedNo      = "no"
	ProtectedUnknown = "unknown"
)

// Status returns what this host knows of its guests, by name.
func (h *Host) Status() []GuestStatus {
	h.mu.RLock()
	managers := slices.Collect(maps.Values(h.managers))
	h.mu.RUnlock()
	all := make([]GuestStatus, 0, len(managers))
	for _, m := range managers {
		all = append(all, m.status())
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all
}

func (m *manager) status() GuestStatus {
	m.mu.Lock()
	st := GuestStatus{Name: m.Name, Host: m.host.cfg.Self, Role: m.role, Log: m.state, Problem: m.problem, Protected: ProtectedUnknown}
	p, b := m.primary, m.backup
	st.Takeovers = m.takeovers
	if m.earlier != (primary.Totals{}) {
		earlier := m.earlier
		st.Earlier = &earlier
	}
	if m.pending != nil {
		st.Missing = m.pending.Remaining()
	}
	m.mu.Unlock()
	if now, ok := m.host.applied(m.Name); ok {
		st.Log = now
	}
	st.Home, st.Bubble = m.settings.Load().Home, m.bubbles.status()
	if m.Disks != nil {
		ds := m.Disks.Status()
		st.Disks = &ds
		if p != nil {
			ex := m.Disks.Excluded()
			st.Excluded = &ex
		}
	}
	switch {
	case p != nil:
		ps := p.Status()
		st.Primary, st.Protected = &ps, ProtectedNo
		if ps.Mode == primary.ModeProtected && ps.Linked && st.Log.Protection == ownership.ProtectionOn {
			st.Protected = ProtectedYes
		}
	case b != nil:
		bs := b.Status()
		st.Backup = &bs
	}
	return st
}

// applied returns the newest state of the log on this host.
func (h *Host) applied(guest string) (ownership.Guest, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for s := range h.cfg.Log.Watch(ctx, guest) {
		return s, true
	}
	return ownership.Guest{}, false
}

// asPrimary returns the guest's primary, which must run on this host.
func (h *Host) asPrimary(guest string) (*manager, *primary.Primary, error) {
	m, err := h.manager(guest)
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.primary == nil {
		return nil, nil, fmt.Errorf("guest %q is not run by host %s (its role here: %s): ask host %s, its owner",
			guest, h.cfg.Self, m.role, m.state.Owner)
	}
	return m, m.primary, nil
}

// Switchover hands the guest to its backup and returns when it runs there.
func (h *Host) Switchover(ctx context.Context, guest string) (ownership.Guest, error) {
	m, p, err := h.asPrimary(guest)
	if err != nil {
		return ownership.Guest{}, err
	}
	switch st := p.Status(); {
	case st.Mode != primary.ModeProtected:
		return ownership.Guest{}, fmt.Errorf("guest %q is not protected (%s): a switchover needs a backup in sync", guest, st.Mode)
	case !st.Linked:
		return ownership.Guest{}, fmt.Errorf("guest %q is not protected: its backup %s does not answer", guest, st.Backup)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, moveTime, errMoveTime)
	defer cancel()
	// What has been applied here may be older than what the primary was told.
	from, err := h.readLog(ctx, guest)
	if err != nil {
		return from, err
	}
	if !from.InSync { // lost just now
		return from, fmt.Errorf("guest %q is not protected: the log names no backup in sync", guest)
	}
	if err := p.Ask(ctx, primary.RequestSwitchover); err != nil {
		return ownership.Guest{}, err
	}
	return m.await(ctx, "the switchover", nil, func(s ownership.Guest) (bool, error) { return switched(from, s) })
}

// switched tells from the log whether a guest has gone from its owner to the
// backup, or never will by this switchover.
func switched(from, now ownership.Guest) (done bool, err error) {
	switch {
	case now.Phase != ownership.PhaseActive || now.Revision < from.Revision:
		return false, nil
	case now.Owner != from.Owner:
		return true, nil
	case now.Generation > from.Generation:
		return false, errors.New("the backup did not take the guest over: it was taken back and runs on")
	case !now.InSync:
		return false, errors.New("the backup was lost before the guest was handed over: it runs on and is not protected")
	}
	return false, nil
}

// Stop commits a last epoch, records that the guest is meant to be stopped, and
// ends it.
func (h *Host) Stop(ctx context.Context, guest string) (ownership.Guest, error) {
	m, p, err := h.asPrimary(guest)
	if err != nil {
		return ownership.Guest{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, moveTime, errMoveTime)
	defer cancel()
	from, err := h.readLog(ctx, guest)
	if err != nil {
		return from, err
	}
	if err := p.Ask(ctx, primary.RequestStop); err != nil {
		return ownership.Guest{}, fmt.Errorf("stop guest %q: %w", guest, err)
	}
	return m.stopped(ctx, p, from)
}

// stopped waits until the log says that the guest is stopped.
func (m *manager) stopped(ctx context.Context, p *primary.Primary, from ownership.Guest) (ownership.Guest, error) {
	return m.await(ctx, "the stop", p.Over(), func(s ownership.Guest) (bool, error) { return stoppedSince(from, s) })
}

// stoppedSince tells from the log whether a guest has been stopped, or never will be
// by this request: it died before, and goes on in another generation.
func stoppedSince(from, now ownership.Guest) (done bool, err error) {
	switch {
	case now.Desired == ownership.Stopped:
		return true, nil
	case now.Generation > from.Generation:
		return false, fmt.Errorf("the guest was lost before, and goes on on host %s: see its status, and stop it there", now.Owner)
	}
	return false, nil
}

// moveTime bounds an operator's wait for a switchover or a stop, which go on without
// him: no voter may be reached, or a disk be slow.
const moveTime = 2 * time.Minute

var errMoveTime = fmt.Errorf("it has taken %v: see the guest's status", moveTime)

// readTime bounds the wait for the log to be read through a barrier.
const readTime = 5 * time.Second

// readLog reads the log through a barrier.
func (h *Host) readLog(ctx context.Context, guest string) (ownership.Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	state, err := h.cfg.Log.Read(ctx, guest)
	if err != nil {
		return state, fmt.Errorf("read the ownership log: %w", err)
	}
	return state, nil
}

// starting is an operator's start on its way to the guest's manager.
type starting struct {
	result ownership.Guest
	done   chan error // gets one answer
}

// Start boots a guest that was stopped, on this host. Its manager proposes that,
// when nothing of the guest is left here: what a former process left would be
// found by recover and go on, though the guest has run elsewhere since.
func (h *Host) Start(ctx context.Context, guest string) (ownership.Guest, error) {
	m, err := h.manager(guest)
	if err != nil {
		return ownership.Guest{}, err
	}
	state, err := h.readLog(ctx, guest)
	if err != nil {
		return state, err
	}
	if state.Desired != ownership.Stopped {
		return state, fmt.Errorf("guest %q is not stopped: it runs on host %s", guest, state.Owner)
	}
	if m.Copies && state.Generation != 0 && state.Owner != h.cfg.Self {
		return state, m.notOurCopy(state)
	}
	if err := m.whole(); err != nil {
		return state, err
	}
	r := &starting{done: make(chan error, 1)}
	t := time.NewTimer(handOver)
	defer t.Stop()
	select {
	case m.starts <- r:
		err = <-r.done
		return r.result, err
	case <-t.C:
		return state, fmt.Errorf("host %s is not ready to start guest %q (its role here: %s): try again", h.cfg.Self, guest, m.status().Role)
	case <-ctx.Done():
		return state, ctx.Err()
	}
}

// whole says why the guest must not be booted from its disks.
func (m *manager) whole() error {
	if m.History == nil {
		return nil
	}
	if err := m.History.Whole(); err != nil {
		return fmt.Errorf("guest %q is not booted: %w", m.Name, err)
	}
	return nil
}

// notOurCopy: only the owner's copies are known to be whole. Nothing kept ours up
// to date while the guest ran unprotected, or stood still.
func (m *manager) notOurCopy(state ownership.Guest) error {
	return fmt.Errorf("guest %q ran on host %s last, and only that host's copy of its disks is known to be complete: start it there, then switch over",
		m.Name, state.Owner)
}

// Verify compares the guest's whole image on both hosts while it runs.
func (h *Host) Verify(ctx context.Context, guest string) (primary.VerifyResult, error) {
	_, p, err := h.asPrimary(guest)
	if err != nil {
		return primary.VerifyResult{}, err
	}
	return p.Verify(ctx)
}

// await waits until the log satisfies done, or done says that it never will. over,
// if not nil, is closed when nobody works on it any more: then the log says how it
// has ended.
func (m *manager) await(ctx context.Context, what string, over <-chan struct{}, done func(ownership.Guest) (bool, error)) (ownership.Guest, error) {
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	var last ownership.Guest
	for states := m.host.cfg.Log.Watch(watch, m.Name); ; {
		ended := false
		select {
		case s, ok := <-states:
			if !ok {
				return last, fmt.Errorf("%s of %s is not done: the log names %s the owner, %s: %w", what, m.Name, last.Owner, last.Phase, context.Cause(ctx))
			}
			last = s
		case <-over:
			s, err := m.host.readLog(ctx, m.Name)
			if err != nil {
				return last, fmt.Errorf("%s of %s: how it has ended is not known: %w", what, m.Name, err)
			}
			last, ended = s, true
		}
		switch ok, err := done(last); {
		case err != nil:
			return last, fmt.Errorf("%s of %s was given up: %w", what, m.Name, err)
		case ok:
			return last, nil
		case ended:
			return last, fmt.Errorf("%s of %s was given up: this host is not its primary any more; the log names %s the owner, %s", what, m.Name, last.Owner, last.Phase)
		}
	}
}
