package main

// A guest as understudy runs, saves and restores it: a served disk, a primary
// without a backup, and checkpoint files.
//
//	boot ─> work ─> save …, the last one with a mark of the disk ─> work ─> … ─> leave
//	─> restore the last file, lazily or eagerly, until it answers ─> the disk as it was
//	─> … ─> the disk as it was at the mark before ─> restore that one's file ─> …

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"understudy/checkpoint"
	"understudy/clock"
	"understudy/egress"
	"understudy/epoch"
	"understudy/guest/client"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu"
	"understudy/integration/onevoter"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
)

// own is such a guest. Its driver, gate and image outlive a boot.
type own struct {
	b      *savedBench
	cfg    qemu.Config
	driver *qemu.Driver
	gate   *egress.Gate
	image  *copied

	disks   *served
	guest   *qemu.Guest
	primary *primary.Primary
	stop    context.CancelFunc
	ended   chan error
	drained chan struct{}
	control *client.Control
	file    *checkpoint.File    // that it was restored from
	pending *checkpoint.Pending // lazily
}

func newOwn(b *savedBench, cfg qemu.Config, img *copied) (_ *own, err error) {
	g := &own{b: b, cfg: cfg, image: img}
	if g.driver, err = qemu.NewDriver(cfg, b.place.Log); err != nil {
		return nil, err
	}
	if err := g.driver.Prepare(); err != nil {
		return nil, err
	}
	g.gate, err = b.place.openGate(cfg, tapName, g.driver.Grant)
	return g, err
}

// open makes the gate let through what comes, and serves the disk.
func (g *own) open(exclude bool) (err error) {
	g.gate.Pass()
	if err := g.gate.Allow(clock.Boot{}.Now().Add(time.Hour)); err != nil {
		return err
	}
	g.disks, err = serve(g.cfg, g.driver, g.image, hostA, exclude, g.b.place.Log)
	return err
}

// boot starts the guest with a primary that has no backup, unless dial finds it one.
func (g *own) boot(ctx context.Context, exclude bool, c primary.Config, d primary.Deps) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("boot the guest: %w", err), g.end())
		}
	}()
	g.image.mark()
	if err := g.open(exclude); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	started, err := g.driver.Start(ctx)
	if err != nil {
		return err
	}
	g.adopt(started)
	log := onevoter.New(hostA, leaseTime)
	c.Disks, c.PrintKey = g.disks.spec, g.disks.key
	d.Guest, d.Gate, d.Disks, d.Log = g.guest, g.gate, g.disks.Set, log
	d.Clock, d.Slog, d.State, d.Running = clock.Boot{}, g.b.place.Log, log.Begin(), true
	if g.disks.index != nil {
		d.Blocks = g.disks.index
	}
	if g.primary, err = primary.New(c, d); err != nil {
		return err
	}
	running, stop := context.WithCancel(context.Background())
	g.stop, g.ended = stop, make(chan error, 1)
	p, ended := g.primary, g.ended
	go func() { // ends with leave
		_, err := p.Run(running)
		ended <- err
	}()
	if err := g.guest.Resume(ctx); err != nil {
		return err
	}
	g.control, err = g.b.control(ctx, g.cfg)
	return err
}

// adopt keeps reading a guest's events.
func (g *own) adopt(started hypervisor.Guest) {
	g.guest, g.drained = started.(*qemu.Guest), make(chan struct{})
	events, drained := started.Events(), g.drained
	go func() { // ends with the guest
		defer close(drained)
		for range events { //nolint:revive // nobody wants them
		}
	}()
}

// alone is a primary's way to a backup that there is none of.
func alone(context.Context) (protocol.Session, ownership.HostID, error) {
	return nil, hostB, errors.New("there is no backup")
}

func (g *own) primaryConfig() primary.Config {
	c := primary.DefaultConfig(guestName, hostA, leaseTime)
	c.Reconnect = time.Minute
	return c
}

// savedSample is what one save came to.
type savedSample struct {
	bytes  uint64        // of the file
	took   time.Duration // from the request to the file under its name
	synced time.Duration // of it, waiting for the disk (fsync)
	pause  time.Duration
	rounds int
	pages  checkpoint.Counts
	moment primary.Moment
}

// saver gives a primary's pages to a checkpoint file.
type saver struct{ *checkpoint.Writer }

func (s saver) Image(ctx context.Context, image hypervisor.Image, set *epoch.PageSet) error {
	return s.Writer.Image(ctx, image, set, nil)
}

// save makes a checkpoint file of the guest, which runs on. With mark, the disk
// can be brought back to what it is at that moment.
func (g *own) save(ctx context.Context, path string, mark bool) (s savedSample, err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return s, err
	}
	spec := g.guest.Spec()
	begin := time.Now()
	w, err := checkpoint.Create(path, checkpoint.Head{Guest: guestName, Hypervisor: "qemu", Created: begin, Generation: 1,
		Pages: spec.Pages, Key: g.disks.key, Machine: spec.Machine}, checkpoint.Options{Finder: g.disks.index})
	if err != nil {
		return s, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	var disks []checkpoint.Disk
	s.moment, err = g.primary.Save(ctx, saver{w}, func(primary.Moment) error {
		if mark { // the guest stands still
			g.image.mark()
		}
		disks, err = g.disks.marked()
		return err
	})
	if err != nil {
		return s, err
	}
	if len(s.moment.Writes) > 0 {
		return s, fmt.Errorf("%d writes are held of a guest that is not protected", len(s.moment.Writes))
	}
	if err := w.Final(checkpoint.Final{DeviceState: s.moment.Device, DiskState: s.moment.DiskState, Disks: disks}); err != nil {
		return s, err
	}
	syncing := time.Now()
	if err := g.disks.store.Sync(); err != nil { // what the file refers to
		return s, err
	}
	s.synced = time.Since(syncing)
	info, err := w.Commit(nil)
	if err != nil {
		return s, err
	}
	s.took = time.Since(begin)
	s.synced += w.Synced()
	s.bytes, s.pages = info.FileBytes, info.Summary.Pages
	s.pause, s.rounds = s.moment.Pause, s.moment.Rounds
	return s, nil
}

// leave ends the primary and the guest. The disk stays what it is.
func (g *own) leave() error {
	var errs []error
	if g.control != nil {
		errs = append(errs, g.control.Close())
		g.control = nil
	}
	if g.primary != nil {
		g.stop()
		errs = append(errs, <-g.ended)
		g.primary = nil
	}
	if g.guest != nil {
		errs = append(errs, g.guest.Destroy())
		<-g.drained
		g.guest = nil
	}
	if g.disks != nil {
		errs = append(errs, g.disks.Close())
		g.disks = nil
	}
	if g.file != nil {
		errs = append(errs, g.file.Close())
		g.file, g.pending = nil, nil
	}
	return errors.Join(errs...)
}

// end is leave, and the disk as it was before boot.
func (g *own) end() error { return errors.Join(g.leave(), g.image.undoAll()) }

// restored is how long a restore took.
type restored struct {
	answer time.Duration // until the guest answered
	loaded time.Duration // until the machine was loaded
	run    time.Duration // until it ran
	whole  time.Duration // until all of its memory was there
}

// restore brings a saved guest back, and ends it when it has answered. Before,
// nothing of the file is in the page cache.
func (g *own) restore(ctx context.Context, path string, m primary.Moment, lazy bool) (r restored, err error) {
	if err := evict(path); err != nil {
		return r, err
	}
	g.image.mark()
	defer func() { err = errors.Join(err, g.leave(), g.image.undo()) }()
	if err := g.open(true); err != nil { // a daemon has it open
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	begin := time.Now()
	answered := g.b.whenAnswered(ctx, g.cfg, begin)
	err = g.bring(ctx, path, m, lazy, begin, &r)
	if err != nil {
		cancel()
	}
	a := <-answered
	if err == nil {
		r.answer, err = a.after, a.err
	}
	if err != nil {
		return r, err
	}
	if r.whole == 0 {
		select {
		case <-g.pending.Done():
			r.whole = time.Since(begin)
		case <-ctx.Done():
			err = fmt.Errorf("%d pages of a lazily restored guest are missing still: %w", g.pending.Remaining(), ctx.Err())
		}
	}
	return r, err
}

// bring is what a daemon does for a restore.
func (g *own) bring(ctx context.Context, path string, m primary.Moment, lazy bool, begin time.Time, r *restored) error {
	file, err := checkpoint.Open(path)
	if err != nil {
		return err
	}
	g.file = file
	set := g.disks.Set
	if err := set.StandBy(ctx); err != nil {
		return err
	}
	if err := set.Commit(1, m.Writes, m.DiskState); err != nil {
		return err
	}
	standby, pending, err := checkpoint.Restore(ctx, file, g.driver, set, checkpoint.RestoreOptions{Lazy: lazy})
	if err != nil {
		return err
	}
	r.loaded = time.Since(begin)
	var overwrite func(epoch.DiskID, uint64, uint32) error
	if pending != nil {
		overwrite = pending.Overwrite
	}
	set.SetFiller(standby.Fill)
	set.Own(1)
	err = set.Activate(ctx, overwrite)
	if err == nil {
		err = set.Allow(clock.Boot{}.Now().Add(time.Hour))
	}
	if err != nil {
		return errors.Join(err, standby.Destroy())
	}
	set.Pass()
	started, err := standby.Run(ctx)
	if err != nil {
		return errors.Join(err, standby.Destroy())
	}
	g.adopt(started)
	r.run = time.Since(begin)
	g.pending = pending
	if pending == nil {
		r.whole = r.run
	}
	return nil
}

// bootAlone boots the guest with nobody to protect it.
func (g *own) bootAlone(ctx context.Context) error {
	return g.boot(ctx, true, g.primaryConfig(), primary.Deps{Dial: alone})
}
