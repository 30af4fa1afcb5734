package bubble

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"understudy/hypervisor"
	"understudy/rebuild"
)

// This file is one bubble from its beginning to its end. Whatever happens on the
// way, what was made is taken away in the reverse order:
//
//	surroundings → waiting machine → fork → copy → load → run → check → hold
//	     → (one more commit, if a disk is shared) → end

// Source is the backup that has the guest's image (package backup).
type Source interface {
	// Machine describes the machine that the image is of.
	Machine() (hypervisor.Spec, error)
	// Fork begins a fork at the next moment between two commits. disks, which
	// may be nil, is called at that moment, too.
	Fork(ctx context.Context, f *Fork, disks func() (Disks, error)) error
}

// Ground is where a guest's bubbles can be on this host.
type Ground interface {
	// Begin makes the surroundings of one: it has room, and nothing leads out of
	// it. address is the host's own in there, "" for the configured one.
	Begin(ctx context.Context, address string) (Place, error)
	// Clean removes what bubbles of a former process have left.
	Clean(ctx context.Context) error
}

// Place is the surroundings of one bubble.
type Place interface {
	// Driver makes the bubble's machine, which has disks and network of its own.
	Driver() hypervisor.Driver
	// ForkDisks freezes the guest's disks as of the last commit and shows them to
	// the bubble's machine. nil: it has none.
	ForkDisks() (Disks, error)
	// Loaded is called when the machine has its state and is about to run:
	// requests that were in flight are begun anew.
	Loaded() error
	// Check runs a command inside the bubble's network.
	Check(ctx context.Context, argv, env []string) Check
	// Written is what the bubble's guest has written to its disks, in bytes.
	Written() uint64
	// Name is what the bubble's network is called on this host, "" for none.
	Name() string
	// Close removes all of it. The machine is gone by then.
	Close() error
}

// Deps are what Run works with.
type Deps struct {
	Guest  string
	Source Source
	Ground Ground
	Log    *slog.Logger
}

const (
	// prepareTime bounds the making of machine and surroundings, forkTime the
	// wait for a moment between two commits, startTime loading and starting.
	prepareTime = time.Minute
	forkTime    = 30 * time.Second
	startTime   = time.Minute
	// afterwards bounds the wait for one more commit.
	afterwards = 30 * time.Second
)

// Run has one bubble and returns when nothing of it is left. The result of a
// bubble that was ended before its time is worth nothing. release ends what is
// held for Spec.Hold early; nil: nothing does.
func Run(ctx context.Context, d Deps, spec Spec, release <-chan struct{}, progress Progress) (r Result, err error) {
	began := time.Now()
	if err := spec.Validate(); err != nil {
		return r, err
	}
	b := &run{Deps: d, spec: spec, release: release, progress: progress, result: &r}
	r.Guest = d.Guest
	defer func() {
		progress.tell(StageEnd, 0, 0)
		err = errors.Join(err, b.close())
		r.Took = time.Since(began)
		if err != nil {
			err = fmt.Errorf("bubble of guest %q: %w", d.Guest, err)
		}
	}()
	for _, step := range []func(context.Context) error{b.prepare, b.fork, b.copy, b.start, b.check, b.hold, b.confirm} {
		if err := step(ctx); err != nil {
			if b.forked != nil && b.forked.Context().Err() != nil {
				err = context.Cause(b.forked.Context()) // what follows from that is no news
			}
			return r, err
		}
		if b.forked != nil {
			ctx = b.forked.Context()
		}
	}
	return r, nil
}

// run is one bubble.
type run struct {
	Deps
	spec     Spec
	release  <-chan struct{}
	progress Progress
	result   *Result

	place   Place
	standby hypervisor.Standby
	forked  *Fork
	guest   hypervisor.Guest
	events  sync.WaitGroup
}

// prepare makes all that can be made ahead.
func (b *run) prepare(ctx context.Context) (err error) {
	began := time.Now()
	b.progress.tell(StagePrepare, 0, 0)
	ctx, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	machine, err := b.Source.Machine()
	if err != nil {
		return err
	}
	if b.place, err = b.Ground.Begin(ctx, b.spec.Address); err != nil {
		return err
	}
	if b.standby, err = b.place.Driver().Standby(ctx, machine); err != nil {
		return err
	}
	if pages := b.standby.Pages(); pages != machine.Pages {
		return fmt.Errorf("the bubble's machine has %d pages, the guest's %d", pages, machine.Pages)
	}
	b.result.Prepared = time.Since(began)
	return nil
}

// fork begins the fork. It lasts until close.
func (b *run) fork(ctx context.Context) error {
	b.progress.tell(StageFork, 0, 0)
	b.forked = NewFork(ctx, b.standby)
	ctx, cancel := context.WithTimeout(ctx, forkTime)
	defer cancel()
	if err := b.Source.Fork(ctx, b.forked, b.place.ForkDisks); err != nil {
		return err
	}
	b.result.ForkTime = b.forked.took
	b.Log.Info("a bubble is forked off", "at", b.forked.At, "age", b.forked.Age, "missing", len(b.forked.Missing))
	return nil
}

// copy brings the whole image into the bubble.
func (b *run) copy(ctx context.Context) error {
	f := b.forked
	if err := f.Copy(func(done, total uint64) { b.progress.tell(StageCopy, done, total) }); err != nil {
		return err
	}
	if len(f.Missing) > 0 {
		if err := b.fill(ctx); err != nil {
			return err
		}
	}
	b.result.CopyTime = time.Since(f.begun)
	return nil
}

// fill puts the pages into the copy that were only on a disk.
func (b *run) fill(ctx context.Context) error {
	f := b.forked
	if f.Disks == nil {
		return fmt.Errorf("%d pages were left out for disks that there are none of", len(f.Missing))
	}
	t := rebuild.New(rebuild.Config{Pages: f.Pages(), Key: f.Key, Blocks: f.Disks, Read: b.standby.ReadPages, Write: b.standby.WritePages,
		Limit: len(f.Missing), Log: b.Log})
	t.Add(f.Missing, f.At.Number)
	return t.FillAll(ctx, func(uint64, uint64) { b.progress.tell(StageCopy, f.Pages(), f.Pages()) })
}

// start lets the copy run.
func (b *run) start(ctx context.Context) error {
	b.progress.tell(StageStart, 0, 0)
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := b.standby.Load(ctx, b.forked.State, nil); err != nil {
		return err
	}
	if err := b.place.Loaded(); err != nil {
		return err
	}
	g, err := b.standby.Run(ctx)
	if err != nil {
		return err
	}
	b.guest, b.standby = g, nil
	b.result.RunsAfter = time.Since(b.forked.begun)
	b.events.Go(func() {
		for e := range g.Events() { // of no consequence, but somebody has to read them
			b.Log.Info("the bubble's guest", "event", e.Kind, "detail", e.Detail)
		}
	})
	b.Log.Info("the bubble's guest runs", "after", b.result.RunsAfter, "network", b.place.Name())
	return nil
}

// check runs the command.
func (b *run) check(ctx context.Context) error {
	if len(b.spec.Check) == 0 {
		return nil
	}
	b.progress.tell(StageCheck, 0, 0)
	limited, cancel := context.WithTimeout(ctx, cmp.Or(b.spec.Timeout, DefaultTimeout))
	defer cancel()
	c := b.place.Check(limited, b.spec.Check, []string{
		"UNDERSTUDY_GUEST=" + b.Guest,
		fmt.Sprintf("UNDERSTUDY_EPOCH=%d", b.forked.At.Number),
		"UNDERSTUDY_NETWORK=" + b.place.Name(),
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.result.Check = &c
	return nil
}

// hold leaves the bubble as it is for a while.
func (b *run) hold(ctx context.Context) error {
	if b.spec.Hold == 0 {
		return nil
	}
	end := time.NewTimer(b.spec.Hold)
	defer end.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	total := uint64(b.spec.Hold.Milliseconds())
	for began := time.Now(); ; {
		b.progress.tell(StageHold, min(total, uint64(time.Since(began).Milliseconds())), total)
		select {
		case <-tick.C:
		case <-end.C:
			return nil
		case <-b.release:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// confirm makes sure that what the bubble's guest has read from a shared disk was
// what the commit had there: see Fork.AwaitCommit. It also is where a bubble that
// has ended by itself shows.
func (b *run) confirm(ctx context.Context) error {
	if b.guest != nil {
		if err := b.guest.Alive(); err != nil {
			return fmt.Errorf("the bubble's guest has not lasted: %w", err)
		}
	}
	if d := b.forked.Disks; d != nil {
		if err := d.Err(); err != nil { // whether or not the guest has noticed
			return err
		}
		if d.Shared() {
			limited, cancel := context.WithTimeout(ctx, afterwards)
			defer cancel()
			return b.forked.AwaitCommit(limited)
		}
	}
	return ctx.Err()
}

// close takes everything away.
func (b *run) close() error {
	var errs []error
	if b.guest != nil {
		errs = append(errs, b.guest.Destroy())
		b.events.Wait()
	}
	if b.standby != nil {
		errs = append(errs, b.standby.Destroy())
	}
	if b.forked != nil {
		b.forked.account(b.result)
		b.forked.End(errDone)
	}
	if b.place != nil {
		b.result.Written = b.place.Written()
		errs = append(errs, b.place.Close())
	}
	return errors.Join(errs...)
}

var errDone = errors.New("the bubble is over")
