package disk

import (
	"context"
	"fmt"
	"time"

	"understudy/crashpoint"
	"understudy/epoch"
)

// This file is the flusher, one goroutine for each disk, the only one that
// brings held writes to its store. The core says what it does (plan.go):
//
//	core.next ──> action ── carryOut: lock, callbacks, store, index ──> core.done, failed
//
// What it is at between two actions is the core's; what it uses again and again
// is here.

// flush is the flusher's goroutine.
func (d *Device) flush(ctx context.Context) {
	for {
		switch a := d.next(ctx); a.do {
		case doEnd:
			return
		case doWait:
			if !d.rest(a) {
				return
			}
		default:
			d.carryOut(a)
		}
	}
}

// rest waits until the core is to be asked again. false: the Set is closed.
func (d *Device) rest(a action) bool {
	var until <-chan time.Time
	kick := d.kick
	if a.until != 0 {
		until, kick = time.After(a.until.Sub(d.set.clock.Now())), nil
	}
	select {
	case <-kick:
	case <-until:
	case <-d.set.done:
		return false
	}
	return true
}

// next asks the core. What waits for the store ends with ctx, or when somebody
// gives it up.
func (d *Device) next(ctx context.Context) action {
	s, l := d.set, d.lane
	s.mu.Lock()
	defer s.mu.Unlock()
	was := l.job
	a := s.core.next(l, s.clock.Now())
	if a.do == doAcquire {
		d.acquiring, d.giveUp = context.WithCancel(ctx)
	}
	if was != jobNone && l.job == jobNone { // it was dropped
		s.changed.tell()
	}
	return a
}

// carryOut does what the core says, and tells it how that went.
func (d *Device) carryOut(a action) {
	var err error
	gaveUp := false
	switch a.do {
	case doAcquire:
		gaveUp, err = d.acquire(a.generation)
	case doArrange:
		d.lane.plan.arrange()
	case doWarn:
		err = d.set.beforeOverwrite(d.id, a.sector, a.sectors)
	case doWrite, doZero, doDiscard:
		err = d.write(a)
	case doSync:
		err = d.sync(a)
	case doReport:
		for i := range d.lane.plan.batch {
			d.report(d.lane.plan.batch[i].index)
		}
	}
	d.came(a, gaveUp, err)
}

// came tells the core how an action went.
func (d *Device) came(a action, gaveUp bool, err error) {
	s, l := d.set, d.lane
	s.mu.Lock()
	defer s.mu.Unlock()
	failing := l.failing
	switch {
	case gaveUp:
		s.core.gaveUp(l)
	case err != nil:
		s.core.failed(l, a, s.clock.Now())
		if s.core.closed {
			break
		}
		if !failing {
			s.log.Error("the disk fails, and is tried again", "disk", d.id, "error", err)
		}
		s.count.errors++
		d.trouble(fmt.Errorf("disk %d: %w", d.id, err))
	default:
		s.core.done(l, a)
	}
	if failing && !l.failing {
		s.log.Info("the disk works again", "disk", d.id)
		d.trouble(nil)
	}
	if l.job == jobNone {
		s.changed.tell()
	}
}

// trouble notes why the lane fails, nil if it does not, and tells of the change;
// set.mu is held.
func (d *Device) trouble(err error) {
	changed := (d.problem == nil) != (err == nil)
	d.problem = err
	if changed && d.set.tell != nil {
		d.set.tell(d.id, err)
	}
}

// acquire makes this host the writer, for as long as it takes.
func (d *Device) acquire(g epoch.Generation) (gaveUp bool, err error) {
	s := d.set
	s.mu.Lock()
	ctx, giveUp := d.acquiring, d.giveUp
	s.mu.Unlock()
	err = d.store.Acquire(ctx, g)
	gaveUp = err != nil && ctx.Err() != nil
	giveUp()
	s.mu.Lock()
	defer s.mu.Unlock()
	d.acquiring, d.giveUp = nil, nil
	if err != nil {
		err = fmt.Errorf("becoming its writer in generation %d: %w", g, err)
	}
	return gaveUp, err
}

// write makes one request of an action's pieces.
func (d *Device) write(a action) error {
	var err error
	switch {
	case a.do != doWrite:
		err = d.store.Zero(a.sector, a.sectors, a.do == doDiscard)
	case len(a.pieces) == 1:
		err = d.store.WriteAt(d.bytesOf(a.pieces[0]), a.sector)
	default:
		if d.merged == nil {
			d.merged = d.bounce.get(mergeBytes).room // page aligned, and the flusher's for good
		}
		merged := d.merged[:0]
		for _, p := range a.pieces {
			merged = append(merged, d.bytesOf(p)...)
		}
		err = d.store.WriteAt(merged, a.sector)
	}
	if err != nil {
		return fmt.Errorf("flushing %d sectors from %d on: %w", a.sectors, a.sector, err)
	}
	return nil
}

// bytesOf returns a piece's bytes in the ring, where they stay until the entry
// is finished, which this goroutine does.
func (d *Device) bytesOf(p piece) []byte {
	b := &d.lane.plan.batch[p.from]
	data := d.set.held.data(&b.e)
	return data[(p.sector-b.e.sector)*epoch.SectorSize:][:p.sectors*epoch.SectorSize]
}

// sync makes what was written durable.
func (d *Device) sync(a action) error {
	if a.batch {
		crashpoint.At(crashpoint.FlushWritten)
	}
	if a.anew {
		rewritten(d.store)
	}
	if err := d.store.Sync(); err != nil {
		return fmt.Errorf("making writes durable: %w", err)
	}
	if a.batch {
		crashpoint.At(crashpoint.Flushed)
	}
	return nil
}

// report takes a durable entry out of overlay and log, and into the index. The
// lock is taken for each: a guest's next write is not to wait for a whole batch.
func (d *Device) report(index uint64) {
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.held.at(index)
	if e.kind == epoch.WriteData && s.core.role == roleOwner {
		data := s.held.data(e)
		for k := uint32(0); (k+1)*epoch.PageSectors <= e.sectors; k++ {
			sector := e.sector + uint64(k)*epoch.PageSectors
			if d.overlay.owns(sector, epoch.PageSectors, index) {
				s.index.Flushed(d.id, sector, s.held.page(e, k), data[k*epoch.PageSize:][:epoch.PageSize])
			}
		}
	}
	s.count.flushed++
	s.count.flushedBytes += uint64(e.dataBytes())
	s.core.durable(d.lane, index)
	s.dropLocked(index, e)
	s.changed.tell()
}

// dropLocked forgets an entry that is durable somewhere.
func (s *Set) dropLocked(index uint64, e *entry) {
	d := s.disks[e.disk]
	if e.sectors > 0 {
		d.overlay.remove(e.sector, e.sectors, index)
	}
	s.core.dropped(e)
	s.held.finish(index)
}
