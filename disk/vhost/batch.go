package vhost

// This file is how requests are carried out where the backend's Do can be split
// (disk.Splitter) and the system has io_uring(7). One goroutine on a thread of
// its own takes all there is in the ring, hands it to the kernel at once, sleeps
// for the next kick and the next completion alike, and gives all that is over to
// the guest with one interrupt:
//
//	gather: take, accept or begin ─> enter ─> reap: end ─> complete ─> notify ─> …
//
// What cannot be split goes to a goroutine that calls Do (aside).

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"understudy/disk"
	"understudy/epoch"
)

// Who a completion is for, beside the transfers.
const (
	forKick = 1<<32 + iota
	forWake
)

// portion is how many bytes are copied before the disk, or the guest, gets what
// there is so far to work on.
const portion = 256 << 10

// transfer is one that the kernel has, or a free place for one.
type transfer struct {
	q *work
	t disk.Transfer
}

// lingerTime is how long a ring keeps its Go processor while it waits: about as
// long as a fast disk or a busy guest takes.
const lingerTime = time.Millisecond

// Linger lets rings, one at a time of all that share it, wait for a short while
// without giving their Go processor up, which makes them faster to wake. A
// program that has one should have a processor more than there are CPUs
// (runtime.GOMAXPROCS), since that one sleeps. The zero value is ready to use.
type Linger struct{ taken atomic.Bool }

func (l *Linger) take() bool { return l != nil && l.taken.CompareAndSwap(false, true) }
func (l *Linger) give()      { l.taken.Store(false) }

// batch is the one goroutine's.
type batch struct {
	w       *run
	split   disk.Splitter
	ring    *uring
	kick    int
	places  []transfer
	free    []uint32
	over    []finished // reaped, not settled
	begun   []*work    // to be prepared
	asides  int        // requests in goroutines of their own; under the ring's lock
	polling struct{ kick, wake bool }
}

// finished is a request that the disk is through with.
type finished struct {
	q   *work
	err error
}

// batch serves the ring until it is halted and nothing is under way any more. It
// reports false, at once, if there is no io_uring to be had.
func (w *run) batch(split disk.Splitter) bool {
	// The kernel completes what a thread has submitted on that very thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	debug.SetPanicOnFault(true)
	b := &batch{w: w, split: split, kick: -1}
	if err := b.open(); err != nil {
		w.r.s.log.Info("no io_uring: requests are carried out by a goroutine each", "error", err)
		return false
	}
	w.r.s.orphans.none(w.over.Load)
	for {
		more, done := b.gather()
		if done {
			b.close()
			return true
		}
		if err := b.submit(more); err != nil {
			b.broken(err)
			return true
		}
		b.reap()
	}
}

// open makes the ring and what it waits for.
func (b *batch) open() (err error) {
	r := b.w.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.run != b.w {
		return os.ErrClosed
	}
	n := int(r.num)
	if b.ring, err = newUring(n + 2); err != nil {
		return err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		b.kick, err = unix.FcntlInt(uintptr(r.kickFD), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			_ = unix.Close(wake)
		}
	}
	if err != nil {
		b.ring.close()
		return err
	}
	b.places, b.free = make([]transfer, n), make([]uint32, n)
	for i := range b.free {
		b.free[i] = uint32(i)
	}
	b.w.wake, b.w.split = wake, b.split
	return nil
}

func (b *batch) close() {
	r := b.w.r
	r.mu.Lock()
	wake := b.w.wake
	b.w.wake, b.w.split = -1, nil
	r.mu.Unlock()
	b.ring.close()
	_ = unix.Close(wake)
	_ = unix.Close(b.kick)
}

// rouse makes the batch look at the ring. The ring's lock is held.
func (w *run) rouse() {
	if w.wake >= 0 {
		one := [8]byte{1}
		_, _ = unix.Write(w.wake, one[:]) // full: it has yet to look
	}
}

// gather settles what is over and takes what has come. more: there is something
// to look at without a wait. done: the run is over and nothing is under way.
func (b *batch) gather() (more, done bool) {
	r := b.w.r
	r.mu.Lock()
	bytes := 0
	for _, f := range b.over {
		if bytes += len(f.q.Buffer); bytes >= portion && r.run != nil {
			bytes = 0
			r.notify()
		}
		if !b.w.settle(f.q, f.err) {
			b.carry(f.q)
		}
	}
	b.over = b.over[:0]
	starved := 0
	if r.run == b.w {
		starved, more = b.take()
	}
	if r.run != nil { // it may be another by now, with the same guest
		r.notify()
	}
	halted := r.run != b.w
	r.mu.Unlock()
	for _, q := range b.begun {
		b.prepare(q)
	}
	b.begun = b.begun[:0]
	idle := len(b.free) == len(b.places)
	if halted {
		return false, idle && len(b.over) == 0
	}
	if starved > 0 && idle && len(b.over) == 0 {
		// Other rings have all of the memory.
		r.s.budget.room(starved, b.w.over.Load)
		more = true
	}
	return more || len(b.over) > 0, false
}

// take takes requests for as long as there are any, and room for them. The
// ring's lock is held.
func (b *batch) take() (starved int, more bool) {
	r := b.w.r
	var next outcome
	defer func() { r.caught(recover(), &next) }()
	bytes := 0
	for range 2 * int(r.num) {
		if bytes >= portion {
			return 0, true
		}
		if len(b.begun) == len(b.free) || b.asides >= r.s.cfg.Workers {
			return 0, false // whoever makes room makes us look again
		}
		q, starved, err := r.next()
		switch {
		case err != nil:
			r.notify()
			r.fail(err)
			return 0, false
		case starved > 0:
			return starved, false
		case q == nil:
			if r.arm() {
				continue
			}
			return 0, false
		case r.offer(q):
			continue
		}
		q.state = isDoing
		b.carry(q)
		if q.Op == disk.OpWrite { // carried by now, but not over
			bytes += int(q.Sectors) * epoch.SectorSize
		}
	}
	return 0, true // others want the lock too
}

// carry begins a request, or has it done aside. The ring's lock is held.
func (b *batch) carry(q *work) {
	if b.w.r.run == b.w && len(b.begun) < len(b.free) {
		var ok bool
		if q.transfer, ok = b.split.Begin(&q.Request); !ok && q.Op == disk.OpRead && q.Buffer == nil {
			b.w.r.buffered(q)
			q.transfer, ok = b.split.Begin(&q.Request)
		}
		if ok {
			if q.transfer.Direct {
				b.w.r.lend(q)
			}
			b.begun = append(b.begun, q)
			return
		}
	}
	b.w.r.buffered(q)
	b.aside(q)
}

// aside does a request in a goroutine of its own. The ring's lock is held.
func (b *batch) aside(q *work) {
	r := b.w.r
	b.asides++
	r.workers.Go(func() {
		debug.SetPanicOnFault(true)
		for done := false; !done; {
			err := r.s.backend.Do(b.w.ctx, &q.Request)
			r.mu.Lock()
			if done = b.w.settle(q, err); done {
				if r.run != nil {
					r.notify()
				}
				if b.asides--; b.asides == r.s.cfg.Workers-1 {
					b.w.rouse()
				}
			}
			r.mu.Unlock()
		}
	})
}

// prepare hands a request that was begun to the kernel.
func (b *batch) prepare(q *work) {
	if t := &q.transfer; len(t.Data) == 0 && !t.Sync && !t.Direct {
		b.end(q, nil)
		return
	}
	last := len(b.free) - 1
	place := b.free[last]
	b.free = b.free[:last]
	b.places[place] = transfer{q, q.transfer}
	q.transfer = disk.Transfer{}
	b.again(place)
}

// again prepares what is left of a transfer.
func (b *batch) again(place uint32) {
	t := &b.places[place].t
	var err error
	switch {
	case t.Direct:
		err = b.ring.vector(t.Write, t.File, b.places[place].q.pieces, t.Offset, uint64(place))
	case t.Sync:
		err = b.ring.sync(t.File, uint64(place))
	case t.Write:
		err = b.ring.transfer(uringOpWrite, t.File, t.Data, t.Offset, uint64(place))
	default:
		err = b.ring.transfer(uringOpRead, t.File, t.Data, t.Offset, uint64(place))
	}
	if err != nil {
		b.finish(place, err)
	}
}

// submit hands everything to the kernel and waits, unless there is more to do.
func (b *batch) submit(more bool) error {
	if !b.polling.kick && !b.w.over.Load() {
		if err := b.ring.poll(b.kick, forKick); err != nil {
			return err
		}
		b.polling.kick = true
	}
	if !b.polling.wake {
		if err := b.ring.poll(b.w.wake, forWake); err != nil {
			return err
		}
		b.polling.wake = true
	}
	if more || b.ring.ready() > 0 {
		return b.ring.enter(0)
	}
	if l := b.w.r.s.cfg.Linger; l.take() {
		err := b.ring.linger(lingerTime)
		l.give()
		if err != nil || b.ring.ready() > 0 {
			return err
		}
	}
	return b.ring.enter(1)
}

// reap takes everything that is over.
func (b *batch) reap() {
	var p [8]byte
	for n := b.ring.ready(); n > 0; n-- {
		switch d := b.ring.next(); d.user {
		case forKick:
			b.polling.kick = false
			_, _ = unix.Read(b.kick, p[:]) // taken by another: as well
		case forWake:
			b.polling.wake = false
			_, _ = unix.Read(b.w.wake, p[:])
		default:
			b.completed(uint32(d.user), d.result)
		}
	}
}

// completed takes note of what the kernel says of a transfer.
func (b *batch) completed(place uint32, result int32) {
	t := &b.places[place].t
	switch {
	case result == -int32(unix.EAGAIN) || result == -int32(unix.EINTR):
		b.again(place)
	case result < 0:
		b.finish(place, unix.Errno(-result))
	case t.Sync:
		b.finish(place, nil)
	case result == 0:
		b.finish(place, io.ErrUnexpectedEOF)
	case t.Direct:
		q := b.places[place].q
		if q.advance(int(result)); q.left == 0 {
			b.finish(place, nil)
			return
		}
		if t.Offset >= 0 {
			t.Offset += int64(result)
		}
		b.again(place)
	case int(result) < len(t.Data):
		t.Data, t.Offset = t.Data[result:], t.Offset+int64(result)
		b.again(place)
	default:
		b.finish(place, nil)
	}
}

// finish frees a transfer's place.
func (b *batch) finish(place uint32, err error) {
	q := b.places[place].q
	b.places[place] = transfer{}
	b.free = append(b.free, place)
	if err != nil {
		err = fmt.Errorf("the file: %w", err)
	}
	b.end(q, err)
}

// end has the backend end a request, which the next gather gives to the guest.
func (b *batch) end(q *work, err error) {
	b.over = append(b.over, finished{q, b.split.End(&q.Request, err)})
}

// broken ends the ring: the kernel takes nothing from us any more. What it has
// may still be written to, and nobody will say when that is over, so that its
// memory is kept, and those requests stay in flight.
func (b *batch) broken(err error) {
	r := b.w.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.run == b.w {
		r.fail(err)
	}
	r.stranded = append(r.stranded, b)
	// Guest memory that they have is not ours to say anything of: we have never
	// stopped, and nobody waits for them.
	r.forlorn = r.lent
	r.drained.Broadcast()
}
