package disk

import (
	"slices"
	"time"

	"understudy/clock"
	"understudy/epoch"
)

// This file is the core's machine for one disk's flusher. The flusher asks for
// its next action, carries it out, says how it went, and asks again (flush.go; a
// simulation does the same by hand):
//
//	            released entries, in order, up to a barrier
//	next ─┬─ acquire      │
//	      ├─ sync         v                                      ok
//	      └─ (job) ── arrange ── for each run: [warn] ── write ── … ── sync ──> report
//	            ^            │ may we, still? no: the job is dropped    │ failed
//	            └────────────┴──────── gathered and written anew ───────┘
//
// Nothing of a batch is reported before all of it is durable, and a batch ends at
// a barrier: so no write reaches the disk before everything in front of the
// barrier before it is durable (rule 13). A job that fails leaves its entries where
// they are (rule 14). Writing twice is harmless.

// job is what a flusher is at, over several actions.
type job uint8

const (
	jobNone    job = iota
	jobAcquire     // becoming the store's writer
	jobSettle      // making direct writes durable
	jobFlush       // writing a batch
	jobReport      // the batch is durable, and not all are told yet
)

// deed says what an action is.
type deed uint8

const (
	doWait    deed = iota // until the given instant if there is one; or until an event
	doEnd                 // nothing more will come
	doAcquire             // become the store's writer in the given generation, for as long as it takes
	doArrange             // lane.plan.arrange, which takes a while
	doWarn                // say that sectors are about to be overwritten
	doWrite               // write the pieces' bytes, which follow each other, with one request
	doZero                // make sectors zero
	doDiscard             // make sectors zero; space may be given back
	doSync                // make durable what was written
	doReport              // the entries of lane.plan.batch are durable
)

// action is what a flusher has to do.
type action struct {
	do         deed
	until      clock.Instant    // of doWait; 0: none
	generation epoch.Generation // of doAcquire
	sector     uint64           // of doWarn … doDiscard
	sectors    uint32
	pieces     []piece // of doWrite
	batch      bool    // doSync: of a batch
	anew       bool    // doSync: all that a failed sync may have lost was written again
}

const (
	batchEntries = 256
	batchBytes   = 8 << 20
	// mergeBytes bounds the copy that makes one write of adjacent small ones.
	mergeBytes   = 1 << 20
	backoffFirst = 10 * time.Millisecond
	backoffMost  = 5 * time.Second
)

// next decides what a disk's flusher does next. An action other than doWait and
// doEnd is followed by done, failed or gaveUp.
func (c *core) next(l *lane, now clock.Instant) action {
	switch {
	case l.job == jobReport:
		return action{do: doReport} // it is durable, whatever has happened meanwhile
	case c.closed:
		l.job = jobNone
		return action{do: doEnd}
	case now.Before(l.retry):
		return action{do: doWait, until: l.retry}
	case c.wants(l):
		l.job = jobAcquire
		return action{do: doAcquire, generation: c.generation}
	case !c.mayWrite(l, now):
		l.job = jobNone
		return action{do: doWait}
	}
	if l.job == jobNone {
		switch flush := c.gather(l); {
		case l.unsynced && l.direct == 0 && (flush || c.mode != ModePass || c.draining > 0):
			l.job = jobSettle
		case flush:
			l.job = jobFlush
			return action{do: doArrange}
		default:
			return action{do: doWait}
		}
	}
	if l.job == jobFlush && l.plan.at < len(l.plan.pieces) {
		return l.plan.write(c.watched)
	}
	flush := l.job == jobFlush
	// Every batch ends with a sync: what it wrote is all that can be lost, unless
	// there are direct writes, which only the guest can write again.
	return action{do: doSync, batch: flush, anew: flush && l.unsure && !l.unsynced}
}

// done: the action was carried out.
func (c *core) done(l *lane, a action) {
	switch a.do {
	case doAcquire:
		// Whoever wants it to be let go has waited for us.
		l.acquired, l.since = true, a.generation
		l.succeed()
	case doWarn:
		l.plan.warned = true
	case doWrite, doZero, doDiscard:
		l.plan.at, l.plan.warned = l.plan.at+l.plan.run, false
	case doSync:
		l.unsure = false
		if l.job == jobFlush {
			l.job = jobReport
			return
		}
		l.unsynced = l.direct > 0
		l.succeed()
	case doReport:
		l.succeed()
	}
}

// failed: the action was tried and failed. The job is tried anew, later.
func (c *core) failed(l *lane, a action, now clock.Instant) {
	l.job = jobNone
	l.unsure = l.unsure || a.do == doSync
	l.failing = l.failing || !c.closed
	l.failures++
	l.retry = now.Add(min(backoffMost, backoffFirst<<min(l.failures-1, 10)))
}

// gaveUp: the action was not carried out, since somebody wanted that.
func (c *core) gaveUp(l *lane) { l.job = jobNone }

func (l *lane) succeed() {
	l.job, l.failing, l.failures, l.retry = jobNone, false, 0, 0
}

// plan is a batch of entries, and how it is written. It is the flusher's own.
type plan struct {
	batch  []batched
	pieces []piece
	at     int  // pieces before it are written
	run    int  // how many the write under way has
	warned bool // of that write
}

// batched is one entry of a batch.
type batched struct {
	index uint64
	e     entry
}

// gather takes the next released entries of a disk, up to and with a barrier.
func (c *core) gather(l *lane) bool {
	p := &l.plan
	p.batch, p.pieces, p.at, p.warned = p.batch[:0], p.pieces[:0], 0, false
	l.cursor = max(l.cursor, c.log.first)
	bytes := 0
	for i := l.cursor; i < c.released && len(p.batch) < batchEntries && bytes < batchBytes; i++ {
		e := c.log.at(i)
		if e.disk != l.id || e.done {
			if len(p.batch) == 0 {
				l.cursor = i + 1
			}
			continue
		}
		p.batch = append(p.batch, batched{i, *e})
		bytes += int(e.dataBytes())
		if e.kind == epoch.WriteBarrier {
			break
		}
	}
	return len(p.batch) > 0
}

// arrange makes pieces of the batch.
func (p *plan) arrange() { p.pieces = newest(p.pieces[:0], p.batch) }

// write returns the action for the next pieces that go together. watched:
// somebody is told before.
func (p *plan) write(watched bool) action {
	pieces := p.pieces[p.at:]
	first := pieces[0]
	a := action{do: doWrite, sector: first.sector}
	limit := uint32(epoch.MaxZeroSectors)
	switch {
	case hasData(first.kind):
		limit = mergeBytes / epoch.SectorSize
	case first.kind == epoch.WriteDiscard:
		a.do = doDiscard
	default:
		a.do = doZero
	}
	n, sectors := 1, first.sectors
	for n < len(pieces) {
		q := pieces[n]
		if q.sector != first.sector+uint64(sectors) || hasData(q.kind) != hasData(first.kind) ||
			!hasData(q.kind) && q.kind != first.kind || sectors+q.sectors > limit {
			break
		}
		sectors += q.sectors
		n++
	}
	a.sectors, a.pieces, p.run = sectors, pieces[:n], n
	if watched && !p.warned {
		a.do = doWarn
	}
	return a
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
