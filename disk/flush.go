package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/crashpoint"
	"understudy/epoch"
)

// This file is the flusher, one goroutine for each disk, the only one that
// brings held writes to its store:
//
//	released entries, in order, up to a barrier ── pieces: what is newest of
//	each sector ── [may we? overwrite callbacks; store] for each run ── Sync ──
//	durable: out of overlay and log, into the index
//
// It also acquires the store, and makes direct writes durable when the disks
// begin to hold.

const (
	batchEntries = 256
	batchBytes   = 8 << 20
	// mergeBytes bounds the copy that makes one write of adjacent small ones.
	mergeBytes   = 1 << 20
	backoffFirst = 10 * time.Millisecond
	backoffMost  = 5 * time.Second
)

// errPaused ends a batch half way because nothing may be written now.
var errPaused = errors.New("the disk may not be written now")

// job is what a flusher has to do next.
type job uint8

const (
	jobNone job = iota
	jobEnd
	jobAcquire
	jobSettle
	jobFlush
)

// batched is one entry of a batch.
type batched struct {
	index uint64
	e     entry
}

// scratch is what a flusher uses again and again.
type scratch struct {
	batch  []batched
	pieces []piece
	merged []byte
}

// flush is the flusher's goroutine.
func (d *Device) flush(ctx context.Context) {
	for {
		var err error
		switch job := d.next(); job {
		case jobEnd:
			return
		case jobNone:
			select {
			case <-d.kick:
			case <-d.set.done:
				return
			}
			continue
		case jobAcquire:
			err = d.acquire(ctx)
		case jobSettle:
			err = d.settle()
		case jobFlush:
			err = d.flushBatch()
		}
		d.after(err)
		if err != nil && !errors.Is(err, errPaused) {
			d.failures++
			select {
			case <-time.After(min(backoffMost, backoffFirst<<min(d.failures-1, 10))):
			case <-d.set.done:
				return
			}
			continue
		}
		d.failures = 0
	}
}

// next decides, and takes the batch.
func (d *Device) next() job {
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return jobEnd
	case d.wantsLocked():
		d.busy = true
		return jobAcquire
	case !d.mayWriteLocked():
		return jobNone
	}
	flush := d.gatherLocked()
	switch {
	case d.unsynced && d.direct == 0 && (flush || s.mode != ModePass || s.draining > 0):
		d.busy = true
		return jobSettle
	case flush:
		d.busy = true
		return jobFlush
	}
	return jobNone
}

// after notes how a job ended.
func (d *Device) after(err error) {
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	d.busy = false
	switch {
	case errors.Is(err, errPaused) || s.closed:
	case err == nil:
		if d.problem != nil {
			s.log.Info("the disk works again", "disk", d.id)
		}
		d.problem = nil
	default:
		if d.problem == nil {
			s.log.Error("the disk fails, and is tried again", "disk", d.id, "error", err)
		}
		s.count.errors++
		d.problem = fmt.Errorf("disk %d: %w", d.id, err)
	}
	s.changed.tell()
}

// wantsLocked reports whether this host is to become the writer of the store.
func (d *Device) wantsLocked() bool {
	s := d.set
	if s.quiet || s.settling || d.info.ReadOnly || d.acquired && d.since == s.generation {
		return false
	}
	return s.role == roleOwner && s.owned
}

// acquire makes this host the writer, for as long as it takes.
func (d *Device) acquire(ctx context.Context) error {
	s := d.set
	s.mu.Lock()
	if !d.wantsLocked() {
		s.mu.Unlock()
		return errPaused
	}
	ctx, d.giveUp = context.WithCancel(ctx)
	giveUp, g := d.giveUp, s.generation
	d.waiting = true
	s.mu.Unlock()
	err := d.store.Acquire(ctx, g)
	given := ctx.Err() != nil
	giveUp()
	s.mu.Lock()
	defer s.mu.Unlock()
	d.giveUp, d.waiting = nil, false
	if err == nil {
		// Whoever wants it to be let go waits for us first.
		d.acquired, d.since = true, g
		return nil
	}
	if given {
		return errPaused
	}
	return fmt.Errorf("becoming its writer in generation %d: %w", g, err)
}

// settled reports whether every direct write is durable.
func (d *Device) settled() bool {
	d.set.mu.Lock()
	defer d.set.mu.Unlock()
	return !d.unsynced
}

// settle makes what was written directly durable.
func (d *Device) settle() error {
	if err := d.syncStore(); err != nil {
		return err
	}
	d.set.mu.Lock()
	d.unsynced = d.direct > 0
	d.set.mu.Unlock()
	return nil
}

func (d *Device) syncStore() error {
	if !d.may() {
		return errPaused
	}
	if err := d.store.Sync(); err != nil {
		d.failSync = true
		return fmt.Errorf("making writes durable: %w", err)
	}
	d.failSync = false
	return nil
}

// may is asked before every call that changes the store.
func (d *Device) may() bool {
	d.set.mu.Lock()
	defer d.set.mu.Unlock()
	return d.mayWriteLocked()
}

// gatherLocked takes the next released entries up to and with a barrier.
func (d *Device) gatherLocked() bool {
	s, c := d.set, &d.scratch
	c.batch = c.batch[:0]
	d.cursor = max(d.cursor, s.held.first)
	bytes := 0
	for i := d.cursor; i < s.released && len(c.batch) < batchEntries && bytes < batchBytes; i++ {
		e := s.held.at(i)
		if e.disk != d.id || e.done {
			if len(c.batch) == 0 {
				d.cursor = i + 1
			}
			continue
		}
		c.batch = append(c.batch, batched{i, *e})
		bytes += int(e.dataBytes())
		if e.kind == epoch.WriteBarrier {
			break
		}
	}
	return len(c.batch) > 0
}

// flushBatch brings the batch to the store, durably. After an error it is
// gathered and written anew: writing twice is harmless.
func (d *Device) flushBatch() error {
	c := &d.scratch
	c.pieces = newest(c.pieces[:0], c.batch)
	for i := 0; i < len(c.pieces); {
		n, err := d.writeRun(c.pieces[i:])
		if err != nil {
			return err
		}
		i += n
	}
	if d.failSync && d.settled() {
		rewritten(d.store) // every batch ends with a Sync: this is all that can be lost
	}
	crashpoint.At(crashpoint.FlushWritten)
	if err := d.syncStore(); err != nil {
		return err
	}
	crashpoint.At(crashpoint.Flushed)
	for i := range c.batch {
		d.durable(c.batch[i].index)
	}
	return nil
}

// writeRun writes the first of the pieces and those that can go with it, and
// returns how many that were.
func (d *Device) writeRun(pieces []piece) (int, error) {
	first := pieces[0]
	n, sectors := 1, first.sectors
	limit := uint32(epoch.MaxZeroSectors)
	if hasData(first.kind) {
		limit = mergeBytes / epoch.SectorSize
	}
	for n < len(pieces) {
		p := pieces[n]
		if p.sector != first.sector+uint64(sectors) || hasData(p.kind) != hasData(first.kind) ||
			!hasData(p.kind) && p.kind != first.kind || sectors+p.sectors > limit {
			break
		}
		sectors += p.sectors
		n++
	}
	if err := d.set.beforeOverwrite(d.id, first.sector, sectors); err != nil {
		return 0, err
	}
	if !d.may() {
		return 0, errPaused
	}
	var err error
	switch {
	case !hasData(first.kind):
		err = d.store.Zero(first.sector, sectors, first.kind == epoch.WriteDiscard)
	case n == 1:
		err = d.store.WriteAt(d.bytesOf(first), first.sector)
	default:
		merged := d.scratch.merged[:0]
		if merged == nil {
			merged = d.bounce.get(mergeBytes).room[:0] // page aligned, and the flusher's for good
		}
		for _, p := range pieces[:n] {
			merged = append(merged, d.bytesOf(p)...)
		}
		d.scratch.merged = merged
		err = d.store.WriteAt(merged, first.sector)
	}
	if err != nil {
		return 0, fmt.Errorf("flushing %d sectors from %d on: %w", sectors, first.sector, err)
	}
	return n, nil
}

// bytesOf returns a piece's bytes in the ring, where they stay until the entry
// is finished, which this goroutine does.
func (d *Device) bytesOf(p piece) []byte {
	b := &d.scratch.batch[p.from]
	data := d.set.held.data(&b.e)
	return data[(p.sector-b.e.sector)*epoch.SectorSize:][:p.sectors*epoch.SectorSize]
}

// durable takes an entry out of overlay and log.
func (d *Device) durable(index uint64) {
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.held.at(index)
	d.flushed = max(d.flushed, e.seq)
	if e.kind == epoch.WriteData && s.role == roleOwner {
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
	d.cursor = index + 1
	s.dropLocked(index, e)
	s.changed.tell()
}

// dropLocked forgets an entry that is durable somewhere.
func (s *Set) dropLocked(index uint64, e *entry) {
	d := s.disks[e.disk]
	if e.sectors > 0 {
		d.overlay.remove(e.sector, e.sectors, index)
	}
	d.pending--
	s.held.finish(index)
}

// piece is a run of sectors whose newest content in a batch is one entry's.
type piece struct {
	sector  uint64
	sectors uint32
	from    uint32 // index in the batch
	kind    epoch.WriteKind
}

func (p piece) end() uint64 { return p.sector + uint64(p.sectors) }

// newest cuts the batch into pieces that do not overlap, ascending, each with
// the newest content. There is no barrier but at the end, so that the order of
// the writes among themselves is nobody's business (RULES 13).
func newest(pieces []piece, batch []batched) []piece {
	for i := range batch {
		e := &batch[i].e
		if e.sectors == 0 {
			continue
		}
		p := piece{sector: e.sector, sectors: e.sectors, from: uint32(i), kind: e.kind}
		// lo..hi are the older pieces that p overlaps.
		lo, _ := slices.BinarySearchFunc(pieces, p.sector, func(q piece, sector uint64) int {
			if q.end() <= sector {
				return -1
			}
			return 1
		})
		hi := lo
		for hi < len(pieces) && pieces[hi].sector < p.end() {
			hi++
		}
		var with [3]piece
		put := with[:0]
		if lo < hi && pieces[lo].sector < p.sector {
			q := pieces[lo]
			q.sectors = uint32(p.sector - q.sector)
			put = append(put, q)
		}
		put = append(put, p)
		if lo < hi && pieces[hi-1].end() > p.end() {
			q := pieces[hi-1]
			q.sectors, q.sector = uint32(q.end()-p.end()), p.end()
			put = append(put, q)
		}
		pieces = slices.Replace(pieces, lo, hi, put...)
	}
	return pieces
}
