package vhost

// This file is one split ring (virtio 1.2, 2.7): its setup, its start and stop,
// the taking of requests from the available ring and their return through the
// used ring. Everything here runs under the ring's lock.
//
//	start ─> next: resubmitted first, then new ones ─> push ─> notify … halt
//
// A request that was taken stays in flight over a halt. At the next start the
// ring goes on with it if nothing says that this is another life of the ring;
// else it is an orphan: its result counts no more, and nothing new is begun
// before the backend is through with it.

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	usedNoNotify      = 1 // VIRTQ_USED_F_NO_NOTIFY
	availNoInterrupt  = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	ringHeader        = 4 // flags and index, before the entries of either ring
	usedEntry         = 8
	descEntry         = 16
	interruptEvent    = 1 // what is added to the call's eventfd
	interruptEventLen = 8
)

// ringShape is where a ring lies in the image.
type ringShape struct {
	num               uint16
	desc, avail, used uint64
}

// ring is one queue of the device.
type ring struct {
	s       *Server
	index   int
	workers sync.WaitGroup
	fence   atomic.Uint32

	mu sync.Mutex

	// What the hypervisor has set.
	num                   uint16
	addr                  vringAddr
	addrSet               bool
	base                  uint16
	baseSet               bool // since the ring was halted
	known                 bool // base or lastAvail is the ring's, on this connection
	lost                  bool // it was asked for when it was not known; started it is known again
	kickFD, callFD, errFD int  // -1: none
	enabled               bool
	restored              *flightState // from another host, for the first start

	// The running ring. What is here stays as it was after a halt.
	run               *run // nil: halted, guest memory is not touched
	mem               *memory
	shape             ringShape
	desc, avail, used piece
	eventIdx          bool
	indirect          bool
	lastAvail         uint16 // the next entry to take
	availIdx          uint16 // as last read
	usedIdx           uint16
	usedFlags         uint16
	signalled         uint16 // usedIdx when the guest was last asked to be told
	signalKnown       bool
	part              flightPart

	flight   []*work // by head: taken and not completed
	inFlight int
	pending  []*work  // of those, what the next start or step takes on first
	stranded []*batch // whose requests the kernel has for ever
	touches  bool     // counted in Server.running
	lent     int      // direct transfers under way …
	forlorn  int      // … of which as many will never end
	drained  sync.Cond
	free     []*work
	counter  uint64
	dirty    *dirtyLog

	chain    chain
	sorted   []*work // of AppendInFlight
	callData [interruptEventLen]byte
}

func newRing(s *Server, index int) *ring {
	r := &ring{s: s, index: index, kickFD: -1, callFD: -1, errFD: -1, baseSet: true, flight: make([]*work, s.cfg.QueueSize)}
	r.drained.L = &r.mu
	binary.LittleEndian.PutUint64(r.callData[:], interruptEvent)
	return r
}

// resolve finds the ring's pieces in guest memory.
func (r *ring) resolve(mem *memory) error {
	n := uint64(r.num)
	var err error
	if n == 0 || !r.addrSet || mem == nil {
		return fmt.Errorf("ring %d is started before its size, its addresses and the memory table are set", r.index)
	}
	if r.desc, err = mem.user(r.addr.desc, descEntry*n); err != nil {
		return fmt.Errorf("descriptors of ring %d: %w", r.index, err)
	}
	if r.avail, err = mem.user(r.addr.avail, ringHeader+2*n+2); err != nil {
		return fmt.Errorf("available ring %d: %w", r.index, err)
	}
	if r.used, err = mem.user(r.addr.used, ringHeader+usedEntry*n+2); err != nil {
		return fmt.Errorf("used ring %d: %w", r.index, err)
	}
	if r.desc.off%16 != 0 || r.avail.off%2 != 0 || r.used.off%4 != 0 {
		return fmt.Errorf("ring %d is not aligned: descriptors at %#x, available at %#x, used at %#x of the image", r.index, r.desc.off, r.avail.off, r.used.off)
	}
	return nil
}

func (r *ring) shapeNow() ringShape {
	return ringShape{num: r.num, desc: r.desc.off, avail: r.avail.off, used: r.used.off}
}

// goesOn reports whether the requests in flight are this start's too.
func (r *ring) goesOn(sameRegion bool) bool {
	return sameRegion && (!r.baseSet || r.base == r.lastAvail) && r.shapeNow() == r.shape
}

// start lets the ring run. fresh says that the requests of a former life have
// been orphaned.
func (r *ring) start(ctx context.Context, mem *memory, region *inflightRegion, features uint64, fresh bool) error {
	if err := r.ready(ctx, mem, region, features, fresh); err != nil {
		return err
	}
	r.workers.Go(r.run.begin)
	return nil
}

// ready makes all of a ring that runs but who works for it.
func (r *ring) ready(ctx context.Context, mem *memory, region *inflightRegion, features uint64, fresh bool) error {
	for _, p := range []piece{r.desc, r.avail, r.used} {
		if err := r.fill(p); err != nil {
			return err
		}
	}
	r.chain.clear()
	r.mem, r.part = mem, region.part(r.index, int(r.num))
	r.eventIdx, r.indirect = features&featureEventIdx != 0, features&featureIndirect != 0
	if region != nil && r.part == nil {
		return fmt.Errorf("ring %d of %d entries has no place in the memory for requests in flight: %d rings of %d", r.index, r.num, region.queues, region.depth)
	}
	if fresh {
		r.begin()
	}
	r.shape, r.baseSet, r.restored = r.shapeNow(), false, nil
	r.known = true
	r.setLost(false)
	r.availIdx = r.lastAvail
	w := &run{r: r, ctx: ctx, lead: make(chan struct{}, 1), workers: 1, idle: 1}
	w.lead <- struct{}{}
	w.wake = -1
	r.run = w
	if !r.touches {
		r.touches = true
		r.s.running.Add(1)
	}
	return nil
}

// begin starts a new life: where the ring stands, and what must be done again.
func (r *ring) begin() {
	index := binary.LittleEndian.Uint32(r.used.data)
	r.usedFlags, r.usedIdx = uint16(index), uint16(index>>16)
	r.signalKnown = false
	r.lastAvail = r.base
	heads, counter := r.part.recover(int(r.num), r.usedIdx)
	r.counter = counter
	if r.base-r.usedIdx > r.num { // less was taken than was returned, or more than fits
		r.lastAvail = r.usedIdx
		r.s.log.Warn("the hypervisor begins a ring where it cannot be: it goes on behind what was returned to the guest",
			"ring", r.index, "base", r.base, "used", r.usedIdx)
	}
	switch f := r.restored; {
	case f != nil && f.shape == r.shapeNow() && f.last == r.base && int(f.last-r.usedIdx) == len(f.heads):
		heads = f.heads
		r.part.reset(r.usedIdx)
		for i, h := range heads {
			r.part.taken(h, r.counter+uint64(i)+1)
		}
	case f != nil:
		r.s.log.Warn("the ring is not the one whose requests were in flight at the checkpoint: they are dropped",
			"ring", r.index, "requests", len(f.heads), "base", r.base, "want", f.last, "used", r.usedIdx)
	}
	if len(heads) > 0 {
		r.lastAvail = r.usedIdx + uint16(len(heads))
		r.s.log.Info("requests in flight are submitted anew", "ring", r.index, "requests", len(heads))
	}
	for _, h := range heads {
		q := r.newWork(h)
		r.counter++
		q.order, q.state = r.counter, isHead
		r.pending = append(r.pending, q)
	}
}

// halt stops the ring: from its return on guest memory is left alone but by
// direct transfers that are under way (drain).
func (r *ring) halt() {
	w := r.run
	if w == nil {
		return
	}
	w.over.Store(true)
	if w.kick != nil {
		_ = w.kick.Close() // ends the wait of the worker that leads
	}
	w.rouse()
	r.run = nil
	r.rest()
	r.s.budget.wake()
	r.s.orphans.add(0)
}

// fail ends the ring on an error that the guest (or its hypervisor) has made.
func (r *ring) fail(err error) {
	r.s.log.Error("the guest's driver has broken a ring of the disk: it is stopped until it is set up anew", "ring", r.index, "error", err)
	r.halt()
	if r.errFD >= 0 {
		_, _ = unix.Write(r.errFD, r.callData[:])
	}
}

// orphan gives up what is in flight. The ring is halted.
func (r *ring) orphan() {
	r.pending = r.pending[:0]
	for h, q := range r.flight {
		if q == nil {
			continue
		}
		r.flight[h] = nil
		if q.state == isDoing {
			q.orphan = true
			r.s.orphans.add(1)
		} else {
			r.recycle(q)
		}
	}
	r.inFlight = 0
}

// orphanHalted gives up what is in flight in every ring that does not run.
func (s *Server) orphanHalted() {
	for _, r := range s.rings {
		r.mu.Lock()
		if r.run == nil {
			r.drain()
			r.orphan()
		}
		r.mu.Unlock()
	}
}

// setLost notes whether where the ring stands is in nobody's hands.
func (r *ring) setLost(lost bool) {
	if r.lost == lost {
		return
	}
	r.lost = lost
	if lost {
		r.s.lost.Add(1)
	} else {
		r.s.lost.Add(-1)
	}
}

// setFD replaces one of the ring's descriptors.
func setFD(at *int, fd int) {
	if *at >= 0 {
		_ = unix.Close(*at)
	}
	*at = fd
}

// reset forgets what a hypervisor has set.
func (r *ring) reset() {
	r.halt()
	r.drain()
	r.orphan()
	for _, at := range []*int{&r.kickFD, &r.callFD, &r.errFD} {
		setFD(at, -1)
	}
	r.num, r.addr, r.addrSet, r.enabled = 0, vringAddr{}, false, false
	r.base, r.baseSet, r.shape, r.lastAvail = 0, true, ringShape{}, 0
	r.known = false
	r.setLost(false)
	r.mem, r.part, r.desc, r.avail, r.used = nil, nil, piece{}, piece{}, piece{}
	r.chain.clear()
}

// next takes the next request, nil if there is none. It reports starved if
// there is no memory for the request now; size is what it needs.
func (r *ring) next() (q *work, starved int, err error) {
	if len(r.pending) > 0 {
		q = r.pending[0]
		if q.state == isHead {
			if starved, err = r.read(q); starved != 0 || err != nil {
				return nil, starved, err
			}
		}
		r.pending = slices.Delete(r.pending, 0, 1)
		return q, 0, nil
	}
	if r.availIdx == r.lastAvail {
		r.availIdx = load16(r.avail.data[2:])
		if ahead := r.availIdx - r.lastAvail; ahead > r.num {
			return nil, 0, fmt.Errorf("%d requests are available in a ring of %d", ahead, r.num)
		} else if ahead == 0 {
			return nil, 0, nil
		}
	}
	head := binary.LittleEndian.Uint16(r.avail.data[ringHeader+2*int(r.lastAvail%r.num):])
	if head >= r.num {
		return nil, 0, fmt.Errorf("available descriptor %d in a ring of %d", head, r.num)
	}
	if r.flight[head] != nil {
		return nil, 0, fmt.Errorf("descriptor %d is made available again before it was used", head)
	}
	q = r.newWork(head)
	if starved, err = r.read(q); starved != 0 || err != nil {
		r.flight[head] = nil
		r.inFlight--
		r.recycle(q)
		return nil, starved, err
	}
	r.lastAvail++
	r.counter++
	q.order = r.counter
	r.part.taken(head, q.order)
	r.quiet()
	return q, 0, nil
}

// newWork notes a head as in flight.
func (r *ring) newWork(head uint16) *work {
	var q *work
	if last := len(r.free) - 1; last >= 0 {
		q = r.free[last]
		r.free = r.free[:last]
	} else {
		q = new(work)
	}
	q.head, q.file = head, r.mem.file
	q.file.hold()
	r.flight[head] = q
	r.inFlight++
	return q
}

// recycle makes a request that is over ready to be used again.
func (r *ring) recycle(q *work) {
	if q.Buffer != nil {
		r.s.budget.give(q.Buffer)
	}
	q.file.release()
	segments, gpas, pieces := q.Segments, q.gpas, q.pieces[:cap(q.pieces)]
	clear(segments) // nothing may point to where guest memory was once mapped
	clear(pieces)
	*q = work{gpas: gpas[:0], pieces: pieces[:0]}
	q.Segments = segments[:0]
	r.free = append(r.free, q)
}

// quiet tells the guest not to kick while we look anyway.
func (r *ring) quiet() {
	if !r.eventIdx && r.usedFlags&usedNoNotify == 0 {
		r.usedFlags |= usedNoNotify
		r.storeUsed()
	}
}

// arm asks the guest to kick for the next request, and reports whether one has
// come meanwhile.
func (r *ring) arm() (more bool) {
	if r.eventIdx {
		at := ringHeader + usedEntry*int(r.num)
		if event := r.used.data[at:]; binary.LittleEndian.Uint16(event) != r.lastAvail {
			store16(event, r.lastAvail)
			r.touchUsed(at, 2)
		}
	} else if r.usedFlags&usedNoNotify != 0 {
		r.usedFlags &^= usedNoNotify
		r.storeUsed()
	}
	// Our store must be seen before we load: a full barrier.
	r.fence.Add(1)
	return load16(r.avail.data[2:]) != r.lastAvail
}

// storeUsed writes the used ring's flags and index.
func (r *ring) storeUsed() {
	store32(r.used.data, uint32(r.usedFlags)|uint32(r.usedIdx)<<16)
	r.touchUsed(0, ringHeader)
}

// push returns a request to the guest: length bytes were written for it.
func (r *ring) push(head uint16, length uint32) {
	at := ringHeader + usedEntry*int(r.usedIdx%r.num)
	entry := r.used.data[at:]
	binary.LittleEndian.PutUint32(entry, uint32(head))
	binary.LittleEndian.PutUint32(entry[4:], length)
	r.touchUsed(at, usedEntry)
	r.part.completing(head)
	r.usedIdx++
	r.storeUsed()
	r.part.completed(head, r.usedIdx)
	r.flight[head] = nil
	r.inFlight--
}

// notify interrupts the guest if it wants to know of what was pushed.
func (r *ring) notify() {
	if r.signalKnown && r.signalled == r.usedIdx {
		return
	}
	want := !r.signalKnown
	if !want && r.eventIdx {
		event := load16(r.avail.data[ringHeader+2*int(r.num):])
		want = r.usedIdx-event-1 < r.usedIdx-r.signalled
	} else if !want {
		want = load16(r.avail.data)&availNoInterrupt == 0
	}
	r.signalled, r.signalKnown = r.usedIdx, true
	if want && r.callFD >= 0 {
		_, _ = unix.Write(r.callFD, r.callData[:]) // full: the guest has yet to see the last one
	}
}

// touchUsed reports n bytes at an offset of the used ring as written.
func (r *ring) touchUsed(at, n int) {
	gpa := r.used.gpa
	if r.addr.flags&vringFlagLog != 0 {
		gpa = r.addr.log
	}
	r.touch(piece{off: r.used.off + uint64(at), gpa: gpa + uint64(at)}, n)
}

// touch reports n bytes from p on as written.
func (r *ring) touch(p piece, n int) {
	r.s.backend.Touched(p.page(), p.at()+n)
	r.dirty.mark(p.gpa, uint64(n))
}

// fill makes sure that a piece is there before we touch it.
func (r *ring) fill(p piece) error {
	pages := (p.at() + len(p.data) + pageSize - 1) / pageSize
	if err := r.s.backend.Fill(p.page(), pages); err != nil {
		return fmt.Errorf("fill %d guest pages from %d on for ring %d: %w", pages, p.page(), r.index, err)
	}
	return nil
}
