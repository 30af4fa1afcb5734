package blkif

// This file is how requests are carried out. One goroutine serves a ring: it takes
// the next request, completes at once what the backend accepts, and waits for the
// guest's event when there is nothing. A request that must go through Backend.Do
// gets a goroutine of its own, of which there is a bounded number: beyond it,
// requests wait in the guest's ring. All of them end with the ring (end).

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"understudy/disk"
	"understudy/epoch"
)

// life is the goroutines of a ring.
type life struct {
	ctx    context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup
}

func newLife() life {
	ctx, cancel := context.WithCancel(context.Background())
	return life{ctx: ctx, cancel: cancel}
}

// work is one request in flight. It is used again.
type work struct {
	disk.Request
	ask    request
	status int16
	done   bool // has a status, to be completed
	// finished: it is complete, and waits for those before it to be answered.
	finished bool
	left     uint64 // sectors of a discard that come after this piece
	write    bool   // after this flush comes a write of the same request
	memory   []byte // for Buffer
}

func (q *work) answer(status int16) { q.status, q.done = status, true }

// begin starts to serve. The Device's lock is held. The guest is told once: a former
// process may have died between an answer and its event.
func (r *ring) begin() {
	if err := r.channel.Notify(); err != nil {
		r.fail(fmt.Errorf("notify the guest: %w", err))
	}
	r.life.all.Go(r.serve)
}

// end returns when all goroutines have ended. The ring has failed before.
func (r *ring) end() { r.life.all.Wait() }

// resume goes on after Start. The Device's lock is held.
func (r *ring) resume() {
	if r.over != nil {
		return
	}
	for _, q := range r.pending {
		r.carry(q)
	}
	r.pending = r.pending[:0]
	r.push()
	r.change.Broadcast()
}

// serve is the ring's goroutine.
func (r *ring) serve() {
	for r.drain() {
		if err := r.channel.Wait(); err != nil {
			r.d.mu.Lock()
			r.fail(fmt.Errorf("wait for the guest's event: %w", err))
			r.d.mu.Unlock()
		}
	}
}

// drain takes requests until there are no more, and reports whether the ring is
// still there.
func (r *ring) drain() bool {
	d := r.d
	d.mu.Lock()
	defer d.mu.Unlock()
	for r.over == nil {
		if d.stopped { // and all that was answered has been pushed
			r.change.Wait()
			continue
		}
		if r.doing >= d.cfg.Workers {
			if r.push(); r.over == nil {
				r.change.Wait()
			}
			continue
		}
		there, err := r.next()
		switch {
		case err != nil:
			r.fail(err)
		case there:
			q := r.take()
			r.read(q)
			r.carry(q)
		case r.arm():
		default:
			r.push()
			return r.over == nil
		}
	}
	return false
}

// take returns a work for the request that next has copied.
func (r *ring) take() *work {
	var q *work
	if n := len(r.free); n > 0 {
		q, r.free = r.free[n-1], r.free[:n-1]
	} else {
		q = &work{}
	}
	r.order[(r.taken-1)&(r.size-1)] = q
	return q
}

// read makes the request of the entry that next has copied.
func (r *ring) read(q *work) {
	err := r.layout.parse(r.entry[:], &q.ask)
	for i := 0; err == nil && i < len(q.ask.tables); i++ {
		var page []byte
		if page, _, err = r.page(q.ask.tables[i], false); err == nil {
			var table [pageSize]byte // the guest may change the page
			copy(table[:], page)
			err = q.ask.addTable(table[:])
		}
	}
	if err == nil {
		err = r.request(q)
	}
	switch {
	case err == nil:
	case errors.Is(err, errUnsupported):
		q.answer(statusUnsupported)
	default:
		r.d.log.Debug("a request of a Xen guest makes no sense", "operation", q.ask.operation, "sector", q.ask.sector, "error", err)
		q.answer(statusError)
	}
}

// page is Memory.Grant, filled.
func (r *ring) page(ref uint32, write bool) ([]byte, epoch.GFN, error) {
	page, gfn, err := r.d.cfg.Memory.Grant(ref, write)
	if err == nil && len(page) != pageSize {
		err = fmt.Errorf("a page of %d bytes", len(page))
	}
	if err == nil {
		err = r.d.backend.Fill(gfn, 1)
	}
	return page, gfn, err
}

// request makes what the backend is asked of what the guest asks.
func (r *ring) request(q *work) error {
	info := r.d.info
	n := q.ask.sectors()
	switch q.ask.operation {
	case opRead:
		q.Op = disk.OpRead
	case opWrite:
		q.Op = disk.OpWrite
	case opFlush:
		q.Op, q.write = disk.OpFlush, n > 0
	case opDiscard:
		if info.MaxZeroSectors == 0 {
			return errUnsupported
		}
		q.Op = disk.OpDiscard
	}
	if info.ReadOnly && (q.Op == disk.OpDiscard || q.Op == disk.OpWrite || q.write) {
		return errors.New("a write to a disk that is for reading")
	}
	if q.Op == disk.OpDiscard {
		if !r.d.within(q.ask.sector, q.ask.count) {
			return fmt.Errorf("%d sectors to discard, on a disk of %d", q.ask.count, info.Sectors)
		}
		q.Sector, q.left = q.ask.sector, q.ask.count
		r.piece(q)
		if q.Sectors == 0 {
			q.answer(statusOK)
		}
		return nil
	}
	if q.Op == disk.OpFlush && !q.write {
		return nil // Linux says sector -1
	}
	if n > info.MaxSectors || !r.d.within(q.ask.sector, uint64(n)) {
		return fmt.Errorf("%d sectors, of a disk of %d that takes %d at a time", n, info.Sectors, info.MaxSectors)
	}
	for _, s := range q.ask.segments {
		page, gfn, err := r.page(s.ref, q.Op == disk.OpRead)
		if err != nil {
			return fmt.Errorf("the page with the reference %d: %w", s.ref, err)
		}
		at, end := int(s.first)*epoch.SectorSize, (int(s.last)+1)*epoch.SectorSize
		q.Segments = append(q.Segments, disk.Segment{Data: page[at:end], Page: gfn, At: at})
	}
	if q.Op == disk.OpFlush {
		return nil
	}
	q.Sector, q.Sectors = q.ask.sector, n
	if q.Op == disk.OpRead {
		if size := int(n) * epoch.SectorSize; size > cap(q.memory) {
			q.memory = make([]byte, size)
		}
		q.Buffer = q.memory[:int(n)*epoch.SectorSize]
	}
	return nil
}

// piece makes the request one for the next sectors of a discard.
func (r *ring) piece(q *work) {
	n := min(q.left, uint64(r.d.info.MaxZeroSectors))
	q.Sectors, q.left = uint32(n), q.left-n
}

// within reports whether the disk has those sectors.
func (d *Device) within(sector, sectors uint64) bool {
	return sectors <= d.info.Sectors && sector <= d.info.Sectors-sectors
}

// carry brings a request as far as it goes without waiting, and gives it to a
// goroutine if it must wait. The Device's lock is held, and it is not stopped.
func (r *ring) carry(q *work) {
	for !q.done && q.Op != disk.OpRead {
		taken, err := r.d.backend.Accept(&q.Request)
		switch {
		case err != nil:
			q.answer(statusError)
		case taken:
			r.step(q)
		default:
			r.wait(q)
			return
		}
	}
	if q.done {
		r.complete(q)
		return
	}
	r.wait(q)
}

// wait gives a request to a goroutine of its own. The Device's lock is held.
func (r *ring) wait(q *work) {
	r.doing++
	r.life.all.Go(func() { r.do(q) })
}

// step goes on after a success: a discard with its next piece, a flush that has
// data with them.
func (r *ring) step(q *work) {
	switch {
	case q.left > 0:
		q.Sector += uint64(q.Sectors)
		r.piece(q)
	case q.write:
		q.write, q.Op = false, disk.OpWrite
		q.Sector, q.Sectors = q.ask.sector, q.ask.sectors()
	default:
		q.answer(statusOK)
	}
}

// do carries one request out that must wait, and goes on with it.
func (r *ring) do(q *work) {
	err := r.d.backend.Do(r.life.ctx, &q.Request)
	d := r.d
	d.mu.Lock()
	defer d.mu.Unlock()
	r.doing--
	r.change.Broadcast()
	switch {
	case err == nil:
		r.step(q)
	case errors.Is(err, disk.ErrAgain):
	default:
		q.answer(statusError)
		d.log.Debug("a request of a Xen guest has failed", "op", q.Op, "sector", q.Sector, "sectors", q.Sectors, "error", err)
	}
	switch {
	case r.over != nil:
	case d.stopped: // the guest must not be touched
		r.pending = append(r.pending, q)
	default:
		r.carry(q)
		r.push()
	}
}

// complete gives the outcome of a request to the guest, its answer as soon as all
// before it have theirs.
func (r *ring) complete(q *work) {
	if q.Op == disk.OpRead && q.status == statusOK {
		n := 0
		for _, s := range q.Segments {
			n += copy(s.Data, q.Buffer[n:])
		}
		r.d.backend.Landed(&q.Request)
	}
	q.finished = true
	r.settle()
}

// release keeps a request's memory for another.
func (r *ring) release(q *work) {
	clear(q.Segments)
	ask := request{segments: q.ask.segments[:0], tables: q.ask.tables[:0]}
	*q = work{Request: disk.Request{Segments: q.Segments[:0]}, ask: ask, memory: q.memory}
	r.free = append(r.free, q)
}
