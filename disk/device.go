package disk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/epoch"
)

// This file is one disk as its front end sees it. A request is checked, then
//
//	read:  newest bytes from the held log, the rest from the store
//	write: protected ──> Accept: copied into the held log, complete
//	       unprotected ─> Do: lease? ── overwrite callbacks ── store

var (
	// ErrRange is returned for a request outside the disk, or larger than Info
	// allows, or whose segments are not of its size.
	ErrRange = errors.New("request outside what the disk has")
	// ErrReadOnly is returned for a change of a read-only disk.
	ErrReadOnly = errors.New("the disk is read-only")
)

// Device is one disk of a Set. It implements Backend.
type Device struct {
	set    *Set
	id     epoch.DiskID
	store  Store
	split  splitter // store, if it is one
	shared bool
	info   Info
	bounce bounce
	kick   chan struct{} // there may be something for the flusher to do
	merged []byte        // the flusher's own: what it makes one request of

	// Under the Set's lock:
	lane      *lane // the core's
	front     Frontend
	resubmit  []byte // for the next front end that attaches
	inFlight  []byte // of the front end on the other host, as of the last commit
	overlay   overlay
	slow      time.Time // of the last direct transfer that took long
	learner   learner
	acquiring context.Context
	giveUp    func()     // ends that
	problem   error      // why the lane is failing
	copies    *syncState // nil: the shared store
}

func newDevice(s *Set, id epoch.DiskID, c DiskConfig) *Device {
	d := &Device{
		set: s, id: id, store: c.Store, shared: c.Store.Shared(), overlay: newOverlay(), kick: make(chan struct{}, 1),
		info: Info{
			Sectors: c.Store.Sectors(), Serial: c.Serial, ReadOnly: c.ReadOnly,
			MaxSectors: epoch.MaxWriteSectors, MaxZeroSectors: epoch.MaxZeroSectors,
		},
	}
	d.lane = &lane{id: id, shared: d.shared, readOnly: c.ReadOnly}
	s.core.lanes = append(s.core.lanes, d.lane)
	d.split, _ = c.Store.(splitter)
	d.learner.wake = make(chan struct{}, 1)
	if !d.shared && !c.ReadOnly {
		d.copies = newSyncState(d.info.Sectors)
	}
	return d
}

// Info says what the guest is told of the disk.
func (d *Device) Info() Info { return d.info }

// Attach makes f the disk's front end, or nil nobody. Requests of a taken-over
// guest that were in flight are given to it now, if Activate found no front end.
func (d *Device) Attach(f Frontend) error {
	s := d.set
	s.mu.Lock()
	d.front = f
	var state []byte
	if f != nil {
		state, d.resubmit = d.resubmit, nil
	}
	s.mu.Unlock()
	if state == nil {
		return nil
	}
	if err := f.Resubmit(state); err != nil {
		return fmt.Errorf("disk %d: submitting the requests in flight anew: %w", d.id, err)
	}
	return nil
}

// check refuses what the guest must not ask for.
func (d *Device) check(r *Request) error { return d.info.check(d.id, r) }

// check refuses what the guest of a disk must not ask for.
func (i *Info) check(disk epoch.DiskID, r *Request) error {
	switch r.Op {
	case OpFlush:
		return nil
	case OpRead, OpWrite, OpDiscard, OpWriteZeroes:
	default:
		return fmt.Errorf("disk %d: operation %d: %w", disk, r.Op, ErrRange)
	}
	if err := i.checkSectors(disk, r.Sector, r.Sectors); err != nil {
		return err
	}
	limit := i.MaxSectors
	if r.Op == OpDiscard || r.Op == OpWriteZeroes {
		limit = i.MaxZeroSectors
	}
	if r.Sectors > limit {
		return fmt.Errorf("disk %d: %d sectors in one request, at most %d: %w", disk, r.Sectors, limit, ErrRange)
	}
	if i.ReadOnly && r.Op != OpRead {
		return fmt.Errorf("disk %d: %w", disk, ErrReadOnly)
	}
	want := uint64(r.Sectors) * epoch.SectorSize
	if r.Op == OpRead || r.Op == OpWrite {
		var have uint64
		for k := range r.Segments {
			have += uint64(len(r.Segments[k].Data))
		}
		if have != want {
			return fmt.Errorf("disk %d: segments of %d bytes for %d: %w", disk, have, want, ErrRange)
		}
	}
	return nil
}

// checkBuffer refuses a buffer that does not fit its read.
func checkBuffer(disk epoch.DiskID, r *Request) error {
	if want := int(r.Sectors) * epoch.SectorSize; len(r.Buffer) != want {
		return fmt.Errorf("disk %d: a buffer of %d bytes for %d: %w", disk, len(r.Buffer), want, ErrRange)
	}
	return nil
}

func (d *Device) checkSectors(sector uint64, sectors uint32) error {
	return d.info.checkSectors(d.id, sector, sectors)
}

func (i *Info) checkSectors(disk epoch.DiskID, sector uint64, sectors uint32) error {
	if sectors == 0 || sector >= i.Sectors || uint64(sectors) > i.Sectors-sector {
		return fmt.Errorf("disk %d: %d sectors from %d on, it has %d: %w", disk, sectors, sector, i.Sectors, ErrRange)
	}
	return nil
}

// entryOf makes a change into an entry of the held log.
func (d *Device) entryOf(r *Request) entry {
	e := entry{disk: d.id, sector: r.Sector, sectors: r.Sectors}
	switch r.Op {
	case OpWrite:
		e.kind = epoch.WriteData
		e.pages = r.Sectors / epoch.PageSectors
	case OpDiscard:
		e.kind = epoch.WriteDiscard
	case OpWriteZeroes:
		e.kind = epoch.WriteZeroes
		if r.Unmap {
			e.kind = epoch.WriteDiscard
		}
	default:
		e.kind, e.sector, e.sectors = epoch.WriteBarrier, 0, 0
	}
	e.layout()
	return e
}

// Accept takes a change into the held log if the disk holds writes and there is
// room. See Backend.
func (d *Device) Accept(r *Request) (taken bool, err error) {
	if r.Op == OpRead {
		return false, nil
	}
	if err := d.check(r); err != nil {
		return false, err
	}
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.core.holds(d.lane) {
		return false, nil
	}
	if r.Op == OpFlush && d.lane.barred {
		return true, nil // nothing to separate
	}
	e := d.entryOf(r)
	if !d.acceptsLocked(&e) {
		return false, nil
	}
	e.seq = s.core.number()
	i, at := s.held.add(e)
	if at.kind == epoch.WriteData {
		copySegments(s.held.data(at), r.Segments)
		walk := pageWalk{segments: r.Segments}
		for k := range at.pages {
			s.held.setPage(at, k, walk.next())
		}
	}
	s.held.seal(at)
	if at.kind != epoch.WriteBarrier {
		// The content index first: see Landed.
		s.index.Accepted(d.id, at.sector, at.sectors, false)
	}
	d.take(i, at)
	s.count.accepted++
	if s.core.mode == ModePass {
		s.releaseAllLocked() // without a fence: it waits for the lock alone
	}
	if s.core.press(s.held.limit) {
		signal(s.pressure)
	}
	return true, nil
}

// take puts an entry of the held log over the store.
func (d *Device) take(i uint64, e *entry) {
	d.set.core.take(i, e)
	d.cover(i, e)
}

// cover hides what the store has of an entry's sectors.
func (d *Device) cover(i uint64, e *entry) {
	if e.sectors > 0 {
		d.overlay.put(e.sector, e.sectors, i)
	}
}

// acceptsLocked reports whether this change can be: there is room, and no disk
// refuses what the guest was already told of.
func (d *Device) acceptsLocked(e *entry) bool {
	s := d.set
	if s.core.troubled() {
		return false
	}
	if s.held.room(e) {
		return true
	}
	s.count.full++
	signal(s.pressure)
	return false
}

// Do carries a request out. See Backend.
func (d *Device) Do(ctx context.Context, r *Request) error {
	if err := d.check(r); err != nil {
		return err
	}
	if r.Op == OpRead {
		if err := checkBuffer(d.id, r); err != nil {
			return err
		}
		return d.read(ctx, r)
	}
	if r.Op == OpFlush && d.info.ReadOnly {
		return nil
	}
	ticket, err := d.begin(ctx, r)
	if err != nil {
		return err
	}
	err = d.change(r, ticket)
	d.end(r, ticket, err)
	return err
}

// begin waits until a change may go straight to the store: the disk is
// unprotected, nothing is held any more, and the lease holds.
func (d *Device) begin(ctx context.Context, r *Request) (ticket uint64, err error) {
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.core.closed:
			return 0, ErrClosed
		case s.core.holds(d.lane):
			if e := d.entryOf(r); d.acceptsLocked(&e) {
				return 0, ErrAgain
			}
		case s.core.passes(d.lane) && d.mayWriteLocked():
			s.core.begin(d.lane, r.Op == OpFlush)
			s.count.direct++
			if r.Op == OpFlush {
				return 0, nil
			}
			return s.index.Accepted(d.id, r.Sector, r.Sectors, true), nil
		}
		if err := s.waitLocked(ctx); err != nil {
			return 0, fmt.Errorf("disk %d: %w", d.id, err)
		}
	}
}

// change does at the store what a request asks for.
func (d *Device) change(r *Request, ticket uint64) error {
	s := d.set
	if r.Op == OpFlush {
		err := d.store.Sync()
		if err != nil {
			// The guest hears of it, and what was lost is its own to write again.
			rewritten(d.store)
		}
		return err
	}
	if err := s.beforeOverwrite(d.id, r.Sector, r.Sectors); err != nil {
		return err
	}
	if r.Op != OpWrite {
		return d.store.Zero(r.Sector, r.Sectors, r.Op == OpDiscard || r.Unmap)
	}
	// The guest may change its memory while the store reads it: what is on the
	// disk would then be known to nobody.
	buf := d.bounce.get(int(r.Sectors) * epoch.SectorSize)
	defer d.bounce.put(buf)
	copySegments(buf.b, r.Segments)
	if err := d.store.WriteAt(buf.b, r.Sector); err != nil {
		return err
	}
	d.written(r, ticket, buf.b)
	return nil
}

// written tells the index what a direct write has brought to the store.
func (d *Device) written(r *Request, ticket uint64, content []byte) {
	walk := pageWalk{segments: r.Segments}
	for at := 0; at+epoch.PageSize <= len(content); at += epoch.PageSize {
		page := walk.next()
		d.set.index.WriteDone(ticket, d.id, r.Sector+uint64(at/epoch.SectorSize), page, content[at:at+epoch.PageSize])
	}
}

func (d *Device) end(r *Request, ticket uint64, err error) {
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Op != OpFlush {
		// Now, and not before: what a synchronisation has read meanwhile may be
		// old.
		d.markLocked(r.Sector, r.Sectors)
		s.index.Landed(ticket)
	}
	if s.core.end(d.lane, r.Op == OpFlush, err == nil) {
		signal(d.kick)
	}
	if d.lane.direct == 0 {
		s.changed.tell()
	}
}

// read reads the newest bytes.
func (d *Device) read(ctx context.Context, r *Request) error {
	s := d.set
	s.mu.Lock()
	for !s.core.readable(d.lane) {
		if s.core.closed {
			s.mu.Unlock()
			return ErrClosed
		}
		if err := s.waitLocked(ctx); err != nil {
			s.mu.Unlock()
			return fmt.Errorf("disk %d: %w", d.id, err)
		}
	}
	s.count.reads++
	r.Ticket = s.index.ReadBegins()
	var few [8]gap
	gaps := d.lookLocked(r.Buffer, r.Sector, ^uint64(0), few[:0])
	s.mu.Unlock()
	return d.fillGaps(r.Buffer, r.Sector, gaps)
}

// mayWriteLocked asks the core with the time as it is.
func (d *Device) mayWriteLocked() bool { return d.set.core.mayWrite(d.lane, d.set.clock.Now()) }

// gap is a run of sectors that the store has the newest bytes of.
type gap struct {
	at, sectors uint32 // at: from the start of the read
}

// lookLocked copies into dst what the held log has of the sectors from sector
// on, as of the entries before bound, and appends the rest to gaps.
//
// The order matters: a sector that is not in the log at this moment is on the
// store already, so that what the store is asked for afterwards is at least
// as new.
func (d *Device) lookLocked(dst []byte, sector uint64, bound uint64, gaps []gap) []gap {
	h := d.set.held
	total := uint32(len(dst) / epoch.SectorSize)
	if d.lane.pending == 0 {
		return append(gaps, gap{0, total})
	}
	for at := uint32(0); at < total; {
		n, i, ok := d.overlay.run(sector+uint64(at), total-at)
		if ok && i >= bound {
			n, i, ok = d.olderLocked(sector+uint64(at), n, bound)
		}
		if !ok {
			if k := len(gaps); k > 0 && gaps[k-1].at+gaps[k-1].sectors == at {
				gaps[k-1].sectors += n
			} else {
				gaps = append(gaps, gap{at, n})
			}
		} else {
			to := dst[at*epoch.SectorSize : (at+n)*epoch.SectorSize]
			if e := h.at(i); hasData(e.kind) {
				copy(to, h.data(e)[(sector+uint64(at)-e.sector)*epoch.SectorSize:])
			} else {
				clear(to)
			}
		}
		at += n
	}
	return gaps
}

// olderLocked finds the newest entry before bound that has the first of the
// sectors, and for how many of them. The overlay does not know: a newer entry
// lies over it.
func (d *Device) olderLocked(sector uint64, sectors uint32, bound uint64) (n uint32, index uint64, ok bool) {
	h := d.set.held
	for i := min(bound, h.next); i > h.first; i-- {
		e := h.at(i - 1)
		if e.disk != d.id || e.sectors == 0 || e.sector >= sector+uint64(sectors) || e.sector+uint64(e.sectors) <= sector {
			continue
		}
		if e.sector > sector {
			sectors = uint32(e.sector - sector) // what lies before it may be in a still older one
			continue
		}
		return uint32(min(uint64(sectors), e.sector+uint64(e.sectors)-sector)), i - 1, true
	}
	return sectors, 0, false
}

// fillGaps reads from the store what the held log did not have.
func (d *Device) fillGaps(dst []byte, sector uint64, gaps []gap) error {
	for _, g := range gaps {
		if err := d.store.ReadAt(dst[g.at*epoch.SectorSize:(g.at+g.sectors)*epoch.SectorSize], sector+uint64(g.at)); err != nil {
			return err
		}
	}
	return nil
}

// Landed notes that a read's bytes are in the guest. See Backend.
//
// The index learns only what the store has. A page that is not in the held log
// now was either not in it as the read began, or it was and has been flushed
// since, so that the store has what was read; a write accepted after the read
// began makes the ticket void.
func (d *Device) Landed(r *Request) {
	s := d.set
	for i := range r.Segments {
		g := &r.Segments[i]
		s.dirty.mark(g.Page, g.At, len(g.Data))
	}
	if r.Buffer == nil {
		d.note(r)
		return
	}
	walk := pageWalk{segments: r.Segments}
	for at := 0; at+epoch.PageSize <= len(r.Buffer); at += epoch.PageSize {
		if page := walk.next(); page != epoch.NoPage {
			d.known(r.Ticket, r.Sector+uint64(at/epoch.SectorSize), page, r.Buffer[at:at+epoch.PageSize])
		}
	}
}

// known gives the index what a read has brought from the store, unless it came
// from the held log.
func (d *Device) known(ticket uint64, sector uint64, page epoch.GFN, content []byte) {
	s := d.set
	s.mu.Lock()
	held := d.lane.pending > 0 && d.overlay.any(sector, epoch.PageSectors)
	s.mu.Unlock()
	if !held {
		s.index.ReadLanded(ticket, d.id, sector, page, content)
	}
}

// Touched notes that the front end has written to guest memory. See Backend.
func (d *Device) Touched(page epoch.GFN, length int) { d.set.dirty.mark(page, 0, length) }

// Fill makes sure that pages are in the guest's memory. See Backend.
func (d *Device) Fill(page epoch.GFN, count int) error {
	f := d.set.filler.Load()
	if f == nil || count <= 0 {
		return nil
	}
	return (*f)(page, uint64(count))
}
