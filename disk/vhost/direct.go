package vhost

// This file is what direct transfers ask for, those between a file and guest
// memory itself (disk.Splitter):
//
//	read: Direct? ─> no buffer ─> carry: lend ─> … the kernel is at it … ─> settle: land
//
// A ring that was halted touches guest memory until its last direct transfer is
// over. Until then the server has not stopped, and whoever has halted the ring for
// the hypervisor waits (drain): a guest that is reset, or whose pages are about to
// be copied, must not find its memory changing. Pages are reported as written when
// they are, and not when the guest is told: that may be after a pause.

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/disk"
	"understudy/epoch"
)

// direct reports whether a read needs no buffer. The ring's lock is held.
func (r *ring) direct(q *work) bool {
	return r.run != nil && r.run.split != nil && r.run.split.Direct(&q.Request)
}

// buffered gives a read a buffer after all: it is not to be a direct one. The
// ring's lock is held.
func (r *ring) buffered(q *work) {
	if q.Op == disk.OpRead && q.Buffer == nil && q.state != isDone {
		q.Buffer = r.s.budget.force(int(q.Sectors) * epoch.SectorSize)
	}
}

// lend hands a request's guest memory to the kernel. The ring's lock is held.
func (r *ring) lend(q *work) {
	q.lent = true
	r.lent++
	q.pieces, q.left = q.pieces[:0], 0
	for i := range q.Segments {
		p := q.Segments[i].Data
		v := unix.Iovec{Base: unsafe.SliceData(p)}
		v.SetLen(len(p))
		q.pieces = append(q.pieces, v)
		q.left += len(p)
	}
}

// advance forgets the first n bytes of what is left.
func (q *work) advance(n int) {
	q.left -= n
	for n > 0 {
		v := &q.pieces[0]
		if n < int(v.Len) {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(int(v.Len) - n)
			return
		}
		n -= int(v.Len)
		q.pieces = q.pieces[1:]
	}
}

// land takes a request's guest memory back. The ring's lock is held.
func (r *ring) land(q *work) {
	q.lent = false
	if q.Op == disk.OpRead {
		for i := range q.Segments {
			r.dirty.mark(q.gpas[i], uint64(len(q.Segments[i].Data)))
		}
		r.s.backend.Landed(&q.Request)
	}
	if r.lent--; r.lent == r.forlorn {
		r.drained.Broadcast()
		r.rest()
	}
}

// rest notes that the ring touches guest memory no more, if it is so. The ring's
// lock is held.
func (r *ring) rest() {
	if r.touches && r.run == nil && r.lent == 0 {
		r.touches = false
		r.s.running.Add(-1)
	}
}

// drain waits until no direct transfer is under way. The ring's lock is held, and
// left meanwhile.
func (r *ring) drain() {
	for r.lent > r.forlorn {
		r.drained.Wait()
	}
}

// drainHalted waits until no ring that does not run touches guest memory.
func (s *Server) drainHalted() {
	for _, r := range s.rings {
		r.mu.Lock()
		if r.run == nil {
			r.drain()
		}
		r.mu.Unlock()
	}
}
