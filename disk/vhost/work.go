package vhost

// This file is how requests are carried out. A ring has a few workers, one of
// which leads: it takes the next request, completes at once what the backend
// accepts, and goes to sleep on the guest's kick when there is nothing. When a
// request must go through Backend.Do the leader first hands the lead to a
// follower and then does it itself, so that a request is carried by one
// goroutine from kick to interrupt and a slow one stops none behind it. Where
// the backend can split Do and the system has io_uring(7), one goroutine does
// all that instead (batch.go).

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"understudy/disk"
)

// state is how far a request is.
type state uint8

const (
	isHead  state = iota // known by its head, to be read from the ring
	isRead               // to be offered to the backend
	isDoing              // with Backend.Do
	isDone               // has a status, to be completed
)

// work is one request in flight.
type work struct {
	disk.Request
	head     uint16
	state    state
	status   byte
	flushes  bool // a flush belongs to it
	orphan   bool
	order    uint64 // ascending as taken
	written  uint32 // bytes of guest memory, with the status byte
	statusAt piece
	gpas     []uint64      // of the segments
	file     *mapping      // kept mapped
	transfer disk.Transfer // begun, for batch
	lent     bool          // the transfer is with guest memory itself
	pieces   []unix.Iovec  // of that memory, what is left
	left     int           // bytes
}

// unmap forgets the request's guest memory.
func (q *work) unmap() {
	clear(q.Segments)
	q.Segments, q.gpas = q.Segments[:0], q.gpas[:0]
}

// answer decides the request's outcome.
func (q *work) answer(status byte) { q.state, q.status = isDone, status }

// run is a ring between start and halt.
type run struct {
	r    *ring
	ctx  context.Context
	kick *os.File      // of workers; nil: there are none
	lead chan struct{} // holds one token: the lead
	over atomic.Bool   // halted; for those who wait without the ring's lock
	buf  [8]byte
	wake int // eventfd: there is something for batch to look at; -1: nobody waits for it
	// split is set while batch serves the ring. Under the ring's lock, as wake.
	split disk.Splitter

	workers, idle int // under the ring's lock; idle ones wait for the lead
}

// begin carries the ring's requests out, in the best way there is.
func (w *run) begin() {
	if split, ok := w.r.s.backend.(disk.Splitter); ok && w.batch(split) {
		return
	}
	w.r.mu.Lock()
	err := w.listen()
	w.r.mu.Unlock()
	if err == nil {
		w.work()
	}
}

// listen takes the kick for workers, who wait for it as the package os does; a
// descriptor that the runtime watches would wake a thread of its own at every
// kick, which a batch has no use for. The ring's lock is held.
func (w *run) listen() error {
	if w.r.run != w {
		return os.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(w.r.kickFD), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		err = fmt.Errorf("take the kick of ring %d: %w", w.r.index, err)
		w.r.fail(err)
		return err
	}
	w.kick = os.NewFile(uintptr(fd), "kick") // does not block: see setRing
	return nil
}

// work is one worker.
func (w *run) work() {
	// Memory that its owner has cut short is an error, not our end.
	debug.SetPanicOnFault(true)
	first := true
	for {
		<-w.lead
		if first {
			w.r.s.orphans.none(w.over.Load)
			first = false
		}
		q := w.take()
		w.lead <- struct{}{}
		if q == nil {
			return
		}
		for done := false; !done; {
			err := w.r.s.backend.Do(w.ctx, &q.Request)
			done = w.finish(q, err)
		}
	}
}

// take waits for a request that the backend must Do; nil: the run is over.
func (w *run) take() *work {
	for first := true; ; first = false {
		q, next, starved := w.step(first)
		switch {
		case q != nil:
			return q
		case next == ended:
			return nil
		case next == again:
		case starved > 0:
			w.r.s.budget.room(starved, w.over.Load)
		default:
			if _, err := w.kick.Read(w.buf[:]); err != nil && !w.over.Load() {
				w.r.mu.Lock()
				if w.r.run == w {
					w.r.fail(fmt.Errorf("wait for the kick: %w", err))
				}
				w.r.mu.Unlock()
			}
		}
	}
}

// outcome says what the leader does next.
type outcome uint8

const (
	asleep outcome = iota // wait for a kick, or for memory
	again                 // there is more
	ended                 // the run is over
)

// step takes requests for as long as they can be completed at once. first says
// that the worker has just got the lead.
func (w *run) step(first bool) (q *work, next outcome, starved int) {
	r := w.r
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.caught(recover(), &next) }()
	if first {
		w.idle--
	}
	if r.run != w {
		return nil, ended, 0
	}
	for range 2 * int(r.num) {
		q, starved, err := r.next()
		switch {
		case err != nil:
			r.notify()
			r.fail(err)
			return nil, ended, 0
		case starved > 0:
			r.notify()
			return nil, asleep, starved
		case q == nil:
			if r.arm() {
				continue
			}
			r.notify()
			return nil, asleep, 0
		case r.offer(q):
			continue
		}
		r.notify()
		q.state = isDoing
		r.buffered(q)
		if w.idle == 0 && w.workers < r.s.cfg.Workers {
			w.workers++
			w.idle++
			r.workers.Go(w.work)
		}
		return q, again, 0
	}
	r.notify()
	return nil, again, 0 // others want the lock too
}

// offer completes a request that needs no Do, and reports whether it did.
func (r *ring) offer(q *work) bool {
	for q.state == isRead && q.Op != disk.OpRead {
		taken, err := r.s.backend.Accept(&q.Request)
		switch {
		case err != nil:
			q.answer(statusIOErr)
		case !taken:
			return false
		default:
			q.step()
		}
	}
	if q.state != isDone {
		return false
	}
	r.complete(q)
	return true
}

// step goes on after a success: a write that must be durable is flushed.
func (q *work) step() {
	if !q.flushes {
		q.answer(statusOK)
		return
	}
	q.flushes, q.Op, q.state = false, disk.OpFlush, isRead
	q.Sector, q.Sectors = 0, 0
	q.unmap()
}

// finish takes note of what Do said and reports whether the worker is through
// with the request.
func (w *run) finish(q *work, err error) (done bool) {
	r := w.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if done = w.settle(q, err); done {
		w.idle++
		r.notify()
	}
	return done
}

// settle brings a request that the backend is through with to the guest, and
// reports whether there is no more to do for it. The ring's lock is held; the
// caller notifies the guest.
func (w *run) settle(q *work, err error) (done bool) {
	r := w.r
	var next outcome
	defer func() { done = done || next == ended }()
	defer func() { r.caught(recover(), &next) }()
	if q.lent {
		r.land(q)
	}
	if q.orphan {
		r.recycle(q)
		r.s.orphans.add(-1)
		return true
	}
	switch {
	case err == nil:
		q.step()
	case errors.Is(err, disk.ErrAgain):
		q.state = isRead
	default:
		q.answer(statusIOErr)
		r.s.log.Debug("a request of the guest has failed", "ring", r.index, "op", q.Op, "sector", q.Sector, "sectors", q.Sectors, "error", err)
	}
	if r.run == nil {
		// Guest memory must not be touched: the next start goes on with it.
		r.pending = append(r.pending, q)
		return true
	}
	if !r.offer(q) {
		q.state = isDoing
		r.buffered(q)
		return false
	}
	return true
}

// complete gives the outcome of a request to the guest.
func (r *ring) complete(q *work) {
	if q.Buffer != nil {
		if q.status == statusOK {
			n := 0
			for i, s := range q.Segments {
				n += copy(s.Data, q.Buffer[n:])
				r.dirty.mark(q.gpas[i], uint64(len(s.Data)))
			}
			r.s.backend.Landed(&q.Request)
		} else {
			q.written = 1
		}
	} else if q.status != statusOK && q.Op == disk.OpRead {
		q.written = 1
	}
	q.statusAt.data[0] = q.status
	r.touch(q.statusAt, 1)
	r.push(q.head, q.written)
	r.recycle(q)
}

// caught turns a fault of guest memory, as recovered under the ring's lock,
// into the ring's end.
func (r *ring) caught(e any, next *outcome) {
	if e == nil {
		return
	}
	r.fail(memoryFault(e))
	*next = ended
}

// memoryFault is the error of a recovered fault of mapped memory; it panics
// again with anything else.
func memoryFault(e any) error {
	fault, ok := e.(runtime.Error)
	if _, at := e.(interface{ Addr() uintptr }); !ok || !at {
		panic(e)
	}
	return fmt.Errorf("guest memory is gone: %w", fault)
}
