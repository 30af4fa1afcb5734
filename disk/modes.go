package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"understudy/clock"
	"understudy/epoch"
)

// This file says what may reach a disk when: the modes, the epochs, the lease.
//
//	           accepted ─ Seal(n) ─ Release(n) ─ flushed
//	Hold:         │         │          │
//	lost epoch:   └── Hold ─┘ back to accepted
//	Pass: everything is released; new writes wait until the log is empty, and
//	then go straight to the store

// Mode says what becomes of the guest's writes.
type Mode uint8

const (
	// ModeHold: a write reaches the store after its epoch was released. A Set
	// starts like this.
	ModeHold Mode = iota
	// ModePass: every write goes to the store before the guest hears of it, for
	// a guest whose running unprotected is on record.
	ModePass
	// ModeShut: nothing reaches a store, and no change is taken.
	ModeShut
)

func (m Mode) String() string {
	switch m {
	case ModeHold:
		return "hold"
	case ModePass:
		return "pass"
	case ModeShut:
		return "shut"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Own says that this host owns the guest in generation g: the stores are
// acquired, behind the caller's back, and may be written as far as Allow says.
// It is called before the guest runs here, at every new generation, and after a
// Quiesce that led to nothing.
//
// A backup's disks wait for Activate after it, or for Hold or Pass. Without
// Activate they are those of a guest that is started anew: what was kept of its
// former life is worth nothing on a shared disk, where its owner went on writing,
// and goes on to a copy of our own.
func (s *Set) Own(g epoch.Generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core.closed {
		return
	}
	if s.core.role == roleNone {
		s.running.Go(s.look)
	}
	s.core.own(g)
	s.held.j.word(wordGeneration).Store(uint64(g))
	s.changed.tell()
	s.kick()
}

// Seal ends epoch n: every write accepted before belongs to it or to an epoch
// before. The guest must stand still, and n be above the n of every Seal since
// the last Hold or Pass.
func (s *Set) Seal(n epoch.Number) error {
	s.mu.Lock()
	free := s.core.spareSeal()
	s.mu.Unlock()
	state, err := s.describe(free.state[:0])
	if err != nil {
		return fmt.Errorf("sealing the writes of epoch %d: %w", n, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.core.maySeal(n); err != nil {
		return err
	}
	for i, d := range s.disks {
		putFlushed(state, i, d.lane.flushed)
	}
	free.state = state
	s.core.seal(n, free)
	return nil
}

// describe appends the disks' state, without what was flushed. It fails if a
// front end still touches guest memory. The front ends are asked without our
// lock, which they take themselves.
func (s *Set) describe(dst []byte) ([]byte, error) {
	dst = appendStateHead(dst, len(s.disks))
	for i, d := range s.disks {
		s.mu.Lock()
		f := d.front
		s.mu.Unlock()
		if f != nil && !f.Stopped() {
			return nil, fmt.Errorf("the front end of disk %d has not stopped: pause the guest first", i)
		}
		var err error
		if dst, err = appendInFlight(dst, i, f); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

// Sealed returns the writes of epoch n and the disks' state as of its Seal. Both
// are valid until n is released, or until Hold, Pass or Close. An epoch that is
// not sealed has neither.
func (s *Set) Sealed(n epoch.Number) (writes []epoch.DiskWrite, state []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core.closed {
		return nil, nil
	}
	for k := range s.core.seals {
		p := &s.core.seals[k]
		if p.n != n {
			continue
		}
		if !p.listed {
			p.writes, p.listed = p.writes[:0], true
			for i := p.from; i < p.to; i++ {
				p.writes = append(p.writes, s.writeLocked(s.held.at(i)))
			}
		}
		return p.writes, p.state
	}
	return nil, nil
}

// writeLocked shows an entry as a write, with its bytes in place.
func (s *Set) writeLocked(e *entry) epoch.DiskWrite {
	w := epoch.DiskWrite{Seq: e.seq, Disk: e.disk, Kind: e.kind, Sector: e.sector, Sectors: e.sectors}
	if hasData(e.kind) {
		w.Data = s.held.data(e)
	}
	if e.pages > 0 {
		// The ring is aligned, and so is a record's list of pages.
		w.Pages = unsafe.Slice((*epoch.GFN)(unsafe.Pointer(&s.held.j.place(e.pos)[recordFixed])), e.pages)
	}
	return w
}

// Snapshot returns, while the guest stands still, every write that was accepted
// and is not durable, in order, and the disks' state, as Sealed does. It changes
// nothing, and returns copies.
func (s *Set) Snapshot() (writes []epoch.DiskWrite, state []byte, err error) {
	state, err = s.describe(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("a snapshot of the disks: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core.closed {
		return nil, nil, ErrClosed
	}
	for i, d := range s.disks {
		putFlushed(state, i, d.lane.flushed)
	}
	for i := s.held.first; i < s.held.next; i++ {
		if e := s.held.at(i); !e.done {
			w := s.writeLocked(e)
			w.Data, w.Pages = bytes.Clone(w.Data), slices.Clone(w.Pages)
			writes = append(writes, w)
		}
	}
	return writes, state, nil
}

// Release lets the writes of epochs up to through reach the disks, in order, as
// soon as mode and lease allow. It does not wait for them.
func (s *Set) Release(through epoch.Number) {
	s.mu.Lock()
	was := s.core.released
	s.core.release(through)
	s.releasedLocked(was)
	s.mu.Unlock()
}

func (s *Set) releaseAllLocked() {
	was := s.core.released
	s.core.releaseAll()
	s.releasedLocked(was)
}

// releasedLocked has the flushers look, after what may have released entries;
// the journal outlives us and has to know, as long as we have it.
func (s *Set) releasedLocked(was uint64) {
	if index := s.core.released; index > was && !s.held.j.closed() {
		pos := s.held.tail
		if index < s.held.next {
			pos = s.held.at(index).pos
		}
		s.held.j.word(wordReleased).Store(pos)
	}
	s.kick()
}

// Hold holds every write that has not been released, whatever was sealed, for
// the next epoch to be sealed.
func (s *Set) Hold() { s.enter(ModeHold) }

// Pass lets every held write reach its disk, in order, and from now on each as
// it comes. The caller has seen it recorded that the guest runs unprotected.
func (s *Set) Pass() { s.enter(ModePass) }

func (s *Set) enter(m Mode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core.closed {
		return
	}
	if s.core.role == roleStandBy && m == ModePass {
		s.log.Error("the disks of a guest that runs elsewhere were to be used", "mode", m.String())
		return
	}
	was := s.core.released
	if s.core.heir {
		s.dropSharedLocked()
		s.core.disinherit()
		s.index.Forget()
		s.fresh = true
		s.running.Go(s.look)
	}
	s.lostLocked()
	if m == ModePass {
		s.unsentLocked()
	}
	s.core.enter(m)
	s.releasedLocked(was)
	s.changed.tell()
}

// Settled reports whether no write from before Hold is on its way to a disk any
// more, and all of them are durable: those that were held and released, too,
// since a new backup does not have them.
func (s *Set) Settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.settled()
}

// Shut lets nothing reach a disk any more; what a store has been asked for may
// still end. See Quiesce.
func (s *Set) Shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.shut()
	s.changed.tell()
}

// Allow lets the disks be written until the given instant and not later.
func (s *Set) Allow(until clock.Instant) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core.closed {
		return ErrClosed
	}
	s.core.allow(until)
	s.changed.tell()
	s.kick()
	return nil
}

// Pressure tells that held writes near their limit: at half, once per sealed
// epoch, and whenever the guest has to wait for room.
func (s *Set) Pressure() <-chan struct{} { return s.pressure }

// Problem returns why a write that the guest was told of cannot reach its disk
// now (EIO, ENOSPC), or a disk cannot be acquired; nil if all is well. It is
// tried again and again, and the guest's changes wait meanwhile.
func (s *Set) Problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problemLocked()
}

func (s *Set) problemLocked() error {
	for _, d := range s.disks {
		if d.problem != nil {
			return d.problem
		}
	}
	return nil
}

// Drain waits until everything released has reached the disks durably and
// nothing is on its way; the guest stands still.
func (s *Set) Drain(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.drain(1)
	defer s.core.drain(-1)
	s.kick()
	for !s.core.drained() {
		if s.core.closed {
			return ErrClosed
		}
		if err := s.waitLocked(ctx); err != nil {
			return fmt.Errorf("draining the disks: %d held writes are not durable yet: %w", s.held.count, errors.Join(err, s.problemLocked()))
		}
	}
	return nil
}

// Quiesce stops writing, waits until nothing is on its way to a disk, and lets
// the disks go for another host. The guest stands still. Own takes them back.
func (s *Set) Quiesce(ctx context.Context) error {
	s.mu.Lock()
	s.core.quiesce()
	s.changed.tell()
	err := s.restLocked(ctx)
	s.mu.Unlock()
	if err == nil {
		err = s.letGo(func(*Device) bool { return true })
	}
	if err != nil {
		return fmt.Errorf("quiescing the disks: %w", err)
	}
	return nil
}

// restLocked gives waits for locks up and waits until nothing is on its way. The
// caller has seen to it that nothing is begun.
func (s *Set) restLocked(ctx context.Context) error {
	for s.core.busy() {
		for _, d := range s.disks {
			if d.giveUp != nil {
				d.giveUp()
			}
		}
		if err := s.waitLocked(ctx); err != nil {
			return fmt.Errorf("a request is still on its way to a disk: %w", err)
		}
	}
	return nil
}

// letGo releases the stores that this host is the writer of.
func (s *Set) letGo(which func(*Device) bool) error {
	var all error
	for _, d := range s.disks {
		s.mu.Lock()
		mine := d.lane.acquired && which(d)
		s.mu.Unlock()
		if !mine {
			continue
		}
		err := d.store.Release()
		s.mu.Lock()
		if err == nil {
			s.core.letGo(d.lane)
		}
		s.mu.Unlock()
		if err != nil {
			all = errors.Join(all, fmt.Errorf("disk %d: %w", d.id, err))
		}
	}
	return all
}

// CollectDirty adds the pages that were written through our own mapping since
// the last call, and those whose reference was overtaken. set is over an image
// of SetConfig.Pages pages.
func (s *Set) CollectDirty(set *epoch.PageSet) {
	s.dirty.collect(set)
	s.index.Redirtied(set)
}

// Encoding returns what decides on the pages of epoch n while it is encoded.
func (s *Set) Encoding(n epoch.Number) epoch.Excluder { return s.index.Encoding(n) }

// Materialised says that the backup has filled every reference up to n.
func (s *Set) Materialised(n epoch.Number) { s.index.Materialised(n) }

// Void says that no reference sent so far counts.
func (s *Set) Void() {
	s.mu.Lock()
	s.lostLocked()
	s.mu.Unlock()
	s.index.Void()
}
