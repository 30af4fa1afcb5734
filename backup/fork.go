package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/bubble"
	"understudy/epoch"
	"understudy/hypervisor"
)

// This file lets a bubble (package bubble) have a copy of the image while commits
// go on. The loop begins it between two steps, when the last commit is applied;
// from then on, for each epoch:
//
//	session, before it is acknowledged: blocks of shared disks (makeRoom)
//	loop, before it is applied:         pages that it overwrites, or leaves out
//
// The first is the only one that an acknowledgement can wait for. Without a bubble
// all of it is one look at a pointer. A takeover ends it before it loads anything.

// forking is a fork that somebody asks for.
type forking struct {
	fork  *bubble.Fork
	disks func() (bubble.Disks, error)
	done  chan error // gets one answer
}

// errNoFork says that there is nothing to fork now.
type errNoFork struct{ why string }

func (e errNoFork) Error() string {
	return fmt.Sprintf("the backup's copy cannot be started: %s; `understudy status` says how the guest is protected", e.why)
}

// Machine describes the machine that the image is of.
func (b *Backup) Machine() (hypervisor.Spec, error) {
	if spec := b.spec.Load(); spec != nil {
		return *spec, nil
	}
	return hypervisor.Spec{}, errNoFork{"it has no image yet"}
}

// Fork begins a fork of the last commit, as soon as the loop comes by between two
// commits: the image has to be whole and fed. disks may be nil.
func (b *Backup) Fork(ctx context.Context, f *bubble.Fork, disks func() (bubble.Disks, error)) error {
	r := forking{fork: f, disks: disks, done: make(chan error, 1)}
	select {
	case b.forks <- r:
	case <-b.over:
		return errNoFork{"this host does not stand by for the guest any more"}
	case <-ctx.Done():
		return fmt.Errorf("wait for a moment between two commits: %w", ctx.Err())
	}
	return <-r.done // the loop does not wait for anybody
}

// begin begins the fork, or says why not. It is the loop's.
func (b *Backup) begin(r forking) error {
	began := time.Now()
	at, whole := b.core.At()
	switch former := b.forked.Load(); {
	case former != nil && !former.Over():
		return errNoFork{"a copy of it runs already"}
	case b.core.asking:
		return errNoFork{"a takeover is being asked for"}
	case b.session == nil:
		return errNoFork{"no primary feeds it"}
	case b.standby == nil || !whole || len(b.state) == 0 || b.core.spoilt:
		return errNoFork{"its image is not whole yet"}
	case r.fork.Pages() != b.standby.Pages():
		return fmt.Errorf("fork an image of %d pages into one of %d", b.standby.Pages(), r.fork.Pages())
	}
	missing, err := b.table.Missing()
	if err != nil {
		return err
	}
	var disks bubble.Disks
	if r.disks != nil {
		if disks, err = r.disks(); err != nil {
			return err
		}
	}
	c := bubble.Commit{At: at, Age: b.Clock.Now().Sub(b.stats.committedAt()), State: append([]byte(nil), b.state...),
		Missing: missing, Key: b.table.Key()}
	r.fork.Begin(c, b.standby, disks, began)
	b.forked.Store(r.fork)
	return nil
}

// endFork ends the fork, if there is one.
func (b *Backup) endFork(why error) {
	if f := b.forked.Swap(nil); f != nil {
		f.End(why)
	}
}

// endBorrowed ends a fork that stands on a disk which another host writes to, and
// no longer tells of.
func (b *Backup) endBorrowed() {
	if f := b.forked.Load(); f != nil && f.Disks != nil && f.Disks.Shared() {
		b.endFork(bubble.ErrNotFed)
	}
}

// setAside keeps of the disks what the epoch's writes overwrite there, for the
// fork that there is, and returns which that is.
func (b *Backup) setAside(stage *epoch.Stage) *bubble.Fork {
	f := b.forked.Load()
	if f == nil || f.Over() || f.Disks == nil || !f.Disks.Shared() {
		return f
	}
	for _, w := range stage.Writes() {
		switch w.Kind {
		case epoch.WriteData, epoch.WriteZeroes, epoch.WriteDiscard:
			f.Disks.Before(w.Disk, w.Sector, w.Sectors)
		}
	}
	return f
}

// spare copies for the fork what the epoch is about to change in the image.
func (b *Backup) spare(f *bubble.Fork, stage *epoch.Stage) {
	stage.EachRun(f.Before)
	for _, r := range stage.References() { // will be filled there
		f.Before(r.Page, 1)
	}
}

// fork returns the fork that the commit of an epoch has to spare, nil for none,
// and for how long the epoch has waited for it. The session has set blocks aside
// if the fork was there already.
func (b *Backup) fork(s *session, stage *epoch.Stage) (f *bubble.Fork, heldUp time.Duration) {
	f = b.forked.Load()
	switch {
	case f == nil:
		return nil, 0
	case f.Over():
		b.forked.CompareAndSwap(f, nil)
		return nil, 0
	case s.spared == f:
		return f, s.sparing
	}
	began := time.Now()
	b.setAside(stage)
	return f, time.Since(began)
}

var errBackupEnds = errors.New("this host does not stand by for the guest any more")
