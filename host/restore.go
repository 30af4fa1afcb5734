package host

// This file lets a stopped guest go on from a checkpoint file:
//
//	request ─> the guest's manager, which waits while the guest is stopped ─> the
//	disks are as they were, or are rolled back ─> a standby is made what the file
//	says ─> Start is proposed ─> the standby runs, instead of a boot ─> primary
//
// Until the log has recorded the start nothing of the guest runs, and a failure
// leaves it stopped. The pages of a lazy restore come behind the running guest:
// the file stays open until all are there, or the guest is gone from here.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/checkpoint"
	"understudy/epoch"
	"understudy/events"
	"understudy/hypervisor"
	"understudy/ownership"
)

// RestoreRequest says from which file, and how.
type RestoreRequest struct {
	File string `json:"file"` // absolute
	// Eager restores every page before the guest runs; otherwise each comes when
	// the guest touches it, and the rest behind it.
	Eager bool `json:"eager,omitempty"`
}

// RestoreResult says how the guest runs now.
type RestoreResult struct {
	Log        ownership.Guest `json:"log"`
	Lazy       bool            `json:"lazy"`
	RolledBack bool            `json:"rolled_back"` // disks, to their pins
	// Disks and Ready are the time until the disks were as they must be, and
	// until the guest ran.
	Disks time.Duration `json:"disks_ns"`
	Ready time.Duration `json:"ready_ns"`
}

// restoring is a request on its way to the guest's manager.
type restoring struct {
	ctx      context.Context
	file     *checkpoint.File
	eager    bool
	progress Progress
	began    time.Time
	result   RestoreResult
	done     chan error // gets one answer
}

var errMovedOn = errors.New("the guest was started or given away meanwhile: look at its status")

// handOver is how long a manager may take to turn to a request.
const handOver = 5 * time.Second

// RestoreCheckpoint lets a stopped guest go on from a file, on this host. It
// returns when the guest runs.
func (h *Host) RestoreCheckpoint(ctx context.Context, guest string, req RestoreRequest, progress Progress) (RestoreResult, error) {
	m, file, err := h.open(guest, req.File)
	if err != nil {
		return RestoreResult{}, err
	}
	state, err := h.readLog(ctx, guest)
	switch {
	case err != nil: // says what was tried
	case state.Desired != ownership.Stopped:
		err = fmt.Errorf("guest %q is not stopped: it runs on host %s; stop it first", guest, state.Owner)
	case m.Copies && state.Owner != h.cfg.Self:
		err = m.notOurCopy(state)
	}
	if err != nil {
		return RestoreResult{}, errors.Join(err, file.Close())
	}
	r := &restoring{ctx: ctx, file: file, eager: req.Eager, progress: progress, began: time.Now(), done: make(chan error, 1)}
	t := time.NewTimer(handOver)
	defer t.Stop()
	select {
	case m.restores <- r:
		err = <-r.done
		return r.result, err
	case <-t.C:
		err = fmt.Errorf("host %s is not ready to restore guest %q (its role here: %s): try again", h.cfg.Self, guest, m.status().Role)
	case <-ctx.Done():
		err = ctx.Err()
	}
	return RestoreResult{}, errors.Join(err, file.Close())
}

// waitStopped waits until the log says something newer, or the guest is to be
// started, or there is a file to go on from. Nothing of the guest is here.
func (m *manager) waitStopped(ctx context.Context, state ownership.Guest) error {
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	news := make(chan error, 1)
	go func() { news <- m.changed(wait, state) }()
	select {
	case err := <-news:
		return err
	case r := <-m.starts:
		cancel()
		if err := <-news; err == nil {
			r.done <- errMovedOn
			return nil
		}
		// The log then names this host the owner of a guest that is nowhere: it is
		// booted.
		var err error
		if r.result, err = m.propose(ctx, state, ownership.Start, ownership.Backup{}); err == nil {
			m.tellBegun(events.KindStarted, r.result, 0, "an operator starts the guest here")
		}
		r.done <- err
		return nil
	case r := <-m.restores:
		cancel()
		if err := <-news; err == nil {
			r.done <- errors.Join(errMovedOn, r.file.Close())
			return nil
		}
		return m.restore(ctx, state, r)
	}
}

// restore plays the whole part of an owner, from the file on.
func (m *manager) restore(ctx context.Context, state ownership.Guest, r *restoring) error {
	m.as("restoring", nil, nil)
	guest, pending, next, err := m.revive(ctx, state, r)
	if err != nil {
		m.slog.Warn("not restored", "file", r.file.Path(), "err", err)
		r.done <- errors.Join(err, r.file.Close())
		return m.end(ctx) // and the log is read again
	}
	m.guest, m.running = guest, true
	m.lend(r.file, pending)
	r.result.Log, r.result.Lazy, r.result.Ready = next, pending != nil, time.Since(r.began)
	m.slog.Info("guest restored", "file", r.file.Path(), "generation", next.Generation, "lazy", pending != nil, "took", r.result.Ready)
	m.tellBegun(events.KindRestored, next, r.result.Ready, "the guest goes on from checkpoint file "+r.file.Path())
	r.done <- nil
	return m.own(ctx, next)
}

// revive makes the guest run. After an error it does not, and the log says that
// it is stopped, if it could be reached.
func (m *manager) revive(ctx context.Context, state ownership.Guest, r *restoring) (_ hypervisor.Guest, _ *checkpoint.Pending, next ownership.Guest, err error) {
	// The request may be given up until the start is proposed.
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	gone := context.AfterFunc(r.ctx, cancel)
	defer gone()
	if err := m.bringDisks(call, state, r); err != nil {
		return nil, nil, next, err
	}
	r.result.Disks = time.Since(r.began)
	r.progress.tell(StageStart, 0, 0)
	var blocks checkpoint.Blocks
	if m.Disks != nil {
		blocks = m.Disks
	}
	_, whole := m.Driver.(hypervisor.Whole)
	standby, pending, err := checkpoint.Restore(call, r.file, m.Driver, blocks,
		checkpoint.RestoreOptions{Lazy: !r.eager && !whole, Progress: r.progress.of(StageRestore)})
	if err != nil {
		return nil, nil, next, err
	}
	if next, err = m.proposeStart(ctx, state); err != nil {
		return nil, nil, next, errors.Join(err, standby.Destroy())
	}
	guest, err := m.runStandby(ctx, standby, pending)
	if err != nil {
		// It must not be booted now from disks that are meant for this memory.
		_, stop := m.propose(ctx, next, ownership.Stop, ownership.Backup{})
		return nil, nil, next, errors.Join(fmt.Errorf("run the restored guest: %w", err), standby.Destroy(), stop)
	}
	return guest, pending, next, nil
}

// bringDisks makes the disks, which are nobody's, what they were.
func (m *manager) bringDisks(ctx context.Context, state ownership.Guest, r *restoring) error {
	head := r.file.Head()
	if m.History == nil || m.Disks == nil {
		return checkpoint.CheckDisks(head, nil)
	}
	now, err := m.History.Conditions()
	if err != nil {
		return err
	}
	if err := checkpoint.CheckDisks(head, now); err != nil {
		return err
	}
	if !unchanged(head.Disks, now) {
		if state.Owner != m.host.cfg.Self {
			return fmt.Errorf("the disks of guest %q have to be rolled back, and host %s was the last to write to them: restore it there", m.Name, state.Owner)
		}
		r.progress.tell(StageDisks, 0, 0)
		if err := m.History.Rollback(ctx, state.Generation, head.Disks, func(ctx context.Context) error { return m.still(ctx, state) }); err != nil {
			return fmt.Errorf("roll the disks of guest %q back, restore again to resume that: %w", m.Name, err)
		}
		r.result.RolledBack = true
	}
	b, err := r.file.DiskState()
	if err != nil {
		return err
	}
	inFlight, writes, err := parseDisks(b)
	if err != nil {
		return fmt.Errorf("checkpoint file %s: %w", r.file.Path(), err)
	}
	if err := m.Disks.Commit(1, writes, inFlight); err != nil {
		return fmt.Errorf("checkpoint file %s: the guest's last writes: %w", r.file.Path(), err)
	}
	return nil
}

// still fails if the log says something newer.
func (m *manager) still(ctx context.Context, state ownership.Guest) error {
	now, err := m.read(ctx)
	if err == nil && now.Revision != state.Revision {
		err = errMovedOn
	}
	return err
}

// proposeStart proposes the start until its outcome is known: a start that was
// recorded and not followed by this guest would be followed by a boot.
func (m *manager) proposeStart(ctx context.Context, state ownership.Guest) (ownership.Guest, error) {
	c := m.command(state, ownership.Start, ownership.Backup{})
	for {
		next, err := m.put(ctx, c)
		var refused *ownership.Refused
		if err == nil || errors.As(err, &refused) || ctx.Err() != nil {
			return next, err
		}
		m.slog.Warn("the start is asked for again", "err", err)
		sleep(ctx, again)
	}
}

// runStandby lets the loaded machine run, with its disks as it knows them.
func (m *manager) runStandby(ctx context.Context, standby hypervisor.Standby, pending *checkpoint.Pending) (hypervisor.Guest, error) {
	if m.Disks != nil {
		var overwrite func(epoch.DiskID, uint64, uint32) error
		if pending != nil {
			overwrite = pending.Overwrite
		}
		m.Disks.SetFiller(standby.Fill)
		if err := m.Disks.Activate(ctx, overwrite); err != nil {
			return nil, fmt.Errorf("activate the disks: %w", err)
		}
	}
	return standby.Run(ctx)
}

// lend keeps the file open until the pages of a lazy restore are all there, or
// the guest is gone (giveBack).
func (m *manager) lend(file *checkpoint.File, pending *checkpoint.Pending) {
	gone, closed := make(chan struct{}), make(chan struct{})
	var all <-chan struct{}
	if pending == nil {
		close(gone)
	} else {
		all = pending.Done()
	}
	go func() {
		defer close(closed)
		select {
		case <-all:
			m.slog.Info("every page of the checkpoint file is restored", "file", file.Path())
		case <-gone:
		}
		m.mu.Lock()
		m.pending = nil
		m.mu.Unlock()
		_ = file.Close() // it was only read
	}()
	m.mu.Lock()
	m.pending = pending
	m.mu.Unlock()
	m.giveBack = func() {
		m.giveBack = nil
		if pending != nil {
			close(gone)
		}
		<-closed
	}
}
