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

// seal says that the entries from..to belong to epoch n.
type seal struct {
	n        epoch.Number
	from, to uint64
	state    []byte
	writes   []epoch.DiskWrite
	listed   bool
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
	if s.closed {
		return
	}
	switch s.role {
	case roleStandBy:
		s.heir = true
	case roleNone:
		s.running.Go(s.look)
	}
	s.role, s.owned, s.quiet, s.generation = roleOwner, true, false, g
	s.held.j.word(wordGeneration).Store(uint64(g))
	s.changed.tell()
	s.kick()
}

// Seal ends epoch n: every write accepted before belongs to it or to an epoch
// before. The guest must stand still, and n be above the n of every Seal since
// the last Hold or Pass.
func (s *Set) Seal(n epoch.Number) error {
	s.mu.Lock()
	var free seal
	if k := len(s.spare); k > 0 {
		free, s.spare = s.spare[k-1], s.spare[:k-1]
	}
	s.mu.Unlock()
	state, err := s.describe(free.state[:0])
	if err != nil {
		return fmt.Errorf("sealing the writes of epoch %d: %w", n, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case s.role != roleOwner:
		return fmt.Errorf("sealing the writes of epoch %d: the guest does not run on this host", n)
	case n <= s.last:
		return fmt.Errorf("sealing the writes of epoch %d: epoch %d is sealed already", n, s.last)
	case s.mode == ModeHold && !s.settledLocked():
		return fmt.Errorf("sealing the writes of epoch %d: writes from before Hold are still on their way", n)
	}
	for i, d := range s.disks {
		putFlushed(state, i, d.flushed)
	}
	free.n, free.from, free.to, free.state, free.listed = n, s.sealed, s.held.next, state, false
	s.seals = append(s.seals, free)
	s.last, s.sealed, s.pressed = n, s.held.next, false
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
// are valid until n is released, or until Hold or Pass. An epoch that is not
// sealed has neither.
func (s *Set) Sealed(n epoch.Number) (writes []epoch.DiskWrite, state []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.seals {
		p := &s.seals[k]
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
	if s.closed {
		return nil, nil, ErrClosed
	}
	for i, d := range s.disks {
		putFlushed(state, i, d.flushed)
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
	k := 0
	for k < len(s.seals) && s.seals[k].n <= through {
		s.releaseLocked(s.seals[k].to)
		s.spare = append(s.spare, s.seals[k])
		k++
	}
	s.seals = append(s.seals[:0], s.seals[k:]...)
	s.mu.Unlock()
	s.kick()
}

// releaseLocked lets the entries before index reach the disk.
func (s *Set) releaseLocked(index uint64) {
	if s.closed || index <= s.released {
		return
	}
	s.released = index
	pos := s.held.tail
	if index < s.held.next {
		pos = s.held.at(index).pos
	}
	s.held.j.word(wordReleased).Store(pos)
}

func (s *Set) releaseAllLocked() {
	s.releaseLocked(s.held.next)
	s.sealed = s.held.next
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
	if s.closed {
		return
	}
	if s.role == roleStandBy && m == ModePass {
		s.log.Error("the disks of a guest that runs elsewhere were to be used", "mode", m.String())
		return
	}
	if s.heir {
		s.heir, s.asOf = false, ^uint64(0)
		s.dropSharedLocked()
		s.releaseAllLocked()
		s.index.Forget()
		s.fresh = true
		s.running.Go(s.look)
	}
	s.mode = m
	s.spare = append(s.spare, s.seals...)
	s.seals, s.last, s.pressed = s.seals[:0], 0, false
	s.lostLocked()
	if m == ModePass {
		s.unsentLocked()
		s.releaseAllLocked()
	} else {
		s.sealed, s.before = s.released, s.released
	}
	s.changed.tell()
	s.kick()
}

// Settled reports whether no write from before Hold is on its way to a disk any
// more, and all of them are durable: those that were held and released, too,
// since a new backup does not have them.
func (s *Set) Settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settledLocked()
}

func (s *Set) settledLocked() bool {
	for _, d := range s.disks {
		if d.direct > 0 || d.unsynced || d.landing > 0 {
			return false
		}
	}
	return s.held.first >= min(s.before, s.held.next)
}

// Shut lets nothing reach a disk any more; what a store has been asked for may
// still end. See Quiesce.
func (s *Set) Shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.role == roleOwner {
		s.mode = ModeShut
	}
	s.changed.tell()
}

// Allow lets the disks be written until the given instant and not later.
func (s *Set) Allow(until clock.Instant) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.until = until
	s.changed.tell()
	s.kick()
	return nil
}

// mayWriteLocked reports whether a write to the disk's store may be begun at this
// moment.
func (d *Device) mayWriteLocked() bool {
	s := d.set
	if s.closed || s.quiet || s.settling || s.heir || d.info.ReadOnly {
		return false
	}
	switch s.role {
	case roleStandBy:
		return !d.shared // our own copy, which no guest writes to
	case roleOwner:
		return d.acquired && d.since == s.generation && s.mode != ModeShut && s.clock.Now().Add(s.guard).Before(s.until)
	}
	return false
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

// busyLocked reports whether something is on its way to a store.
func (s *Set) busyLocked() bool {
	for _, d := range s.disks {
		if d.busy || d.direct > 0 {
			return true
		}
	}
	return false
}

// Drain waits until everything released has reached the disks durably and
// nothing is on its way; the guest stands still.
func (s *Set) Drain(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining++
	defer func() { s.draining-- }()
	s.kick()
	for s.held.first < s.released || s.busyLocked() || !s.settledLocked() {
		if s.closed {
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
	s.quiet, s.owned = true, false
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
	for s.busyLocked() {
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
		mine := d.acquired && which(d)
		s.mu.Unlock()
		if !mine {
			continue
		}
		err := d.store.Release()
		s.mu.Lock()
		if err == nil {
			d.acquired = false
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
