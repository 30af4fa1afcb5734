package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"understudy/epoch"
)

// This file is the disks of a host that stands by. What the peer's guest wrote
// goes into our own held log as it is committed:
//
//	Commit ─> held log ─┬─ shared: until the peer reports it flushed
//	                    └─ replicated: until it is durable in our own copy
//	Activate: what is left is released, and flushed as the guest's own writes are

// overwriteFunc is told before sectors of a disk get other bytes.
type overwriteFunc = func(disk epoch.DiskID, sector uint64, sectors uint32) error

// watcher is a registered overwriteFunc.
type watcher struct {
	id int
	f  overwriteFunc
}

// OnOverwrite has f called before any block of a disk's store is overwritten, by
// a direct write, a flush, a discard or a replay; if f fails, the block is not
// touched and the write is tried again later, or fails if it is a direct one. f
// may call ReadSectors. remove ends that; f may still be running then.
func (s *Set) OnOverwrite(f func(disk epoch.DiskID, sector uint64, sectors uint32) error) (remove func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchID++
	id := s.watchID
	s.watchLocked(append(slices.Clip(s.watchers), watcher{id, f}))
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.watchLocked(slices.DeleteFunc(slices.Clone(s.watchers), func(w watcher) bool { return w.id == id }))
	}
}

func (s *Set) watchLocked(all []watcher) {
	s.watchers = all
	s.core.watch(len(all) > 0)
}

func (s *Set) beforeOverwrite(disk epoch.DiskID, sector uint64, sectors uint32) error {
	s.mu.Lock()
	watchers := s.watchers // never changed in place
	s.mu.Unlock()
	for _, w := range watchers {
		if err := w.f(disk, sector, sectors); err != nil {
			return fmt.Errorf("disk %d: saving what %d sectors from %d on hold before they are overwritten: %w", disk, sectors, sector, err)
		}
	}
	return nil
}

// StandBy makes the disks those of a backup: nothing is written but what Commit
// brings to a copy of our own, every front end waits, and nothing that was kept
// before counts any more. After an error it is to be called again.
func (s *Set) StandBy(ctx context.Context) error {
	if err := s.standBy(ctx); err != nil {
		return fmt.Errorf("making the disks a backup's: %w", err)
	}
	s.look()
	return nil
}

func (s *Set) standBy(ctx context.Context) error {
	s.mu.Lock()
	s.core.standBy()
	s.changed.tell()
	err := s.restLocked(ctx)
	s.mu.Unlock()
	if err == nil {
		err = s.letGo(func(d *Device) bool { return d.shared })
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core.closed {
		return ErrClosed
	}
	s.forgetLocked(s.held.first)
	s.core.stoodBy()
	s.core.peerOff = false
	s.watchLocked(nil)
	s.fresh = true
	for _, d := range s.disks {
		d.resubmit, d.inFlight = nil, nil
		d.trouble(nil)
	}
	s.index.Forget()
	s.syncAllLocked()
	s.changed.tell()
	s.kick()
	return nil
}

// Forget throws away what was held and not released, for a guest that is not
// going on from here. Call it before Hold or Pass. What was released stays: the
// guest, or its user, was told that it would last.
func (s *Set) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.core.closed {
		s.forgetLocked(s.core.released)
	}
}

// forgetLocked forgets the entries from index on.
func (s *Set) forgetLocked(index uint64) {
	h := s.held
	h.cut(index)
	s.core.forgotten()
	for _, d := range s.disks {
		d.overlay.clear()
	}
	for i := h.first; i < h.next; i++ {
		// What is left may have been hidden by what is gone.
		if e := h.at(i); !e.done {
			s.disks[e.disk].cover(i, e)
		}
	}
}

// Room waits until the writes of one more epoch, bytes of data in all, may be
// kept. With the shared store there always is: the peer holds them too, within
// the same limit. With the replicated store it waits for our own disk.
func (s *Set) Room(ctx context.Context, bytes uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.core.closed {
			return ErrClosed
		}
		if s.core.hasRoom(bytes, s.held.limit) {
			return nil
		}
		if err := s.waitLocked(ctx); err != nil {
			return fmt.Errorf("waiting for our own copy of the disks to take %d held bytes: %w", s.held.used, errors.Join(err, s.problemLocked()))
		}
	}
}

// Commit keeps the writes of epoch n, which was acknowledged, and drops those
// that state says the primary has flushed. It copies what it keeps. Nothing is
// kept of an epoch that is refused. It waits for our own disk if there is more
// than HeldBytes to write to it.
func (s *Set) Commit(n epoch.Number, writes []epoch.DiskWrite, state []byte) error {
	if err := s.commit(writes, state); err != nil {
		return fmt.Errorf("committing the writes of epoch %d: %w", n, err)
	}
	return nil
}

func (s *Set) commit(writes []epoch.DiskWrite, state []byte) error {
	states, err := parseState(state, len(s.disks))
	if err != nil {
		return err
	}
	if err := s.checkWrites(writes); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core.closed {
		return ErrClosed // the journal's memory is gone
	}
	if s.core.role != roleStandBy || s.core.settling {
		return errors.New("this host does not stand by for the guest")
	}
	s.fresh = false
	for i, st := range states {
		s.disks[i].inFlight = append(s.disks[i].inFlight[:0], st.inFlight...)
	}
	if states != nil {
		s.dropFlushedLocked(states)
	} else {
		// An epoch of a synchronisation: its guest runs unprotected, and writes
		// to a shared disk itself. What was kept before is older than what a
		// reference in this epoch names, and must not be read instead of it.
		s.dropSharedLocked()
	}
	for k := range writes {
		if err := s.keepLocked(&writes[k]); err != nil {
			return err
		}
	}
	was := s.core.released
	s.core.commit()
	s.releasedLocked(was) // the flusher of a shared disk does nothing yet
	return nil
}

// checkWrites refuses what a peer must not send.
func (s *Set) checkWrites(writes []epoch.DiskWrite) error {
	last := uint64(0)
	for k := range writes {
		w := &writes[k]
		e := entryOfWrite(w)
		if !e.layout() {
			return fmt.Errorf("write %d: %v of %d sectors: %w", k, w.Kind, w.Sectors, ErrRange)
		}
		if err := s.checkEntry(&e); err != nil {
			return fmt.Errorf("write %d: %w", k, err)
		}
		if uint32(len(w.Data)) != e.dataBytes() {
			return fmt.Errorf("write %d: %d bytes for %d sectors: %w", k, len(w.Data), w.Sectors, ErrRange)
		}
		if w.Kind == epoch.WriteSync {
			if s.disks[w.Disk].shared {
				return fmt.Errorf("write %d: synchronisation of disk %d, which both hosts share", k, w.Disk)
			}
			continue
		}
		if w.Seq <= last {
			return fmt.Errorf("write %d: sequence number %d after %d", k, w.Seq, last)
		}
		last = w.Seq
	}
	return nil
}

func entryOfWrite(w *epoch.DiskWrite) entry {
	e := entry{seq: w.Seq, disk: w.Disk, kind: w.Kind, sector: w.Sector, sectors: w.Sectors}
	if w.Kind == epoch.WriteBarrier {
		e.sector = 0
	}
	if n := w.Sectors / epoch.PageSectors; w.Kind == epoch.WriteData && n > 0 && uint32(len(w.Pages)) == n {
		e.pages = n
	}
	return e
}

// dropFlushedLocked forgets writes to shared disks that the peer has flushed.
func (s *Set) dropFlushedLocked(states []diskState) {
	h := s.held
	for i := h.first; i < h.next; i++ {
		if i < h.first {
			continue // went with one before
		}
		e := h.at(i)
		if d := s.disks[e.disk]; d.shared && !e.done && e.seq <= states[e.disk].flushed {
			s.dropLocked(i, e)
		}
	}
	s.changed.tell()
}

// dropSharedLocked forgets what is kept of shared disks.
func (s *Set) dropSharedLocked() {
	all := make([]diskState, len(s.disks))
	for i := range all {
		all[i].flushed = ^uint64(0)
	}
	s.dropFlushedLocked(all)
}

// keepLocked adds a committed write to the log.
func (s *Set) keepLocked(w *epoch.DiskWrite) error {
	e := entryOfWrite(w)
	e.layout()
	for !s.held.room(&e) {
		switch {
		case s.core.closed:
			return ErrClosed
		case s.core.role != roleStandBy:
			return errors.New("this host does not stand by for the guest any more")
		case !s.core.drainsItself():
			return fmt.Errorf("%d bytes of the peer's writes are kept and not reported flushed: configure the same limit of held bytes on both hosts", s.held.used)
		}
		if err := s.problemLocked(); err != nil {
			return err
		}
		s.releaseAllLocked()
		if err := s.waitLocked(context.Background()); err != nil {
			return err
		}
	}
	if s.core.closed {
		return ErrClosed
	}
	i, at := s.held.add(e)
	copy(s.held.data(at), w.Data)
	for k := range at.pages {
		s.held.setPage(at, k, w.Pages[k])
	}
	s.held.seal(at)
	s.disks[e.disk].take(i, at)
	s.core.numbered(w.Seq)
	return nil
}

// ReadSectors reads what the disk holds as of the last commit, also after
// Activate, as long as OnOverwrite's or Activate's callback has not been called
// for the block.
func (s *Set) ReadSectors(disk epoch.DiskID, sector uint64, dst []byte) error {
	return s.readAsOf(disk, sector, dst, atLastCommit)
}

// atLastCommit is the bound of what a backup reads, whichever that is.
const atLastCommit = ^uint64(0)

// readAsOf is ReadSectors with the held log as of the entries before bound.
func (s *Set) readAsOf(disk epoch.DiskID, sector uint64, dst []byte, bound uint64) error {
	if ok, err := s.readBoot(disk, sector, dst); ok {
		return err
	}
	if int(disk) >= len(s.disks) {
		return fmt.Errorf("reading disk %d: there are %d: %w", disk, len(s.disks), ErrRange)
	}
	n := uint64(len(dst)) / epoch.SectorSize
	if len(dst)%epoch.SectorSize != 0 || n > epoch.MaxZeroSectors {
		return fmt.Errorf("reading disk %d: %d bytes: %w", disk, len(dst), ErrRange)
	}
	if n == 0 {
		return nil
	}
	d := s.disks[disk]
	if err := d.checkSectors(sector, uint32(n)); err != nil {
		return err
	}
	s.mu.Lock()
	if s.core.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	if bound == atLastCommit {
		bound = s.core.asOf
	}
	var few [8]gap
	gaps := d.lookLocked(dst, sector, bound, few[:0])
	s.mu.Unlock()
	return d.fillGaps(dst, sector, gaps)
}

// PeerOff says whether the other host is known to be off (RULES 12: it was
// fenced). Then the guest runs before the lock of a shared store is got, which a
// server may keep for a while for a host that is gone; what it writes waits in the
// held log until then. StandBy forgets it.
func (s *Set) PeerOff(off bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core.peerOff = off
	s.changed.tell()
	s.kick()
}

// Activate makes the disks those of an owner whose guest is about to run from
// the last commit. Nothing is written, and no request served, before Own. After
// Own it waits until a shared store's lock is got from the former owner, unless
// SetConfig.Unfenced says otherwise; before it, reads wait for that. After an
// error it may be called again. overwrite may be nil.
func (s *Set) Activate(ctx context.Context, overwrite func(disk epoch.DiskID, sector uint64, sectors uint32) error) error {
	s.mu.Lock()
	if s.core.settling || s.core.role != roleStandBy && s.core.role != roleOwner {
		s.mu.Unlock()
		return errors.New("activating the disks: this host does not stand by for the guest")
	}
	was := s.core.released
	if s.core.activate() {
		s.releasedLocked(was)
		s.index.Forget()
		for _, d := range s.disks {
			if len(d.inFlight) > 0 {
				d.resubmit = slices.Clone(d.inFlight)
			}
		}
	}
	s.watchLocked(nil)
	if overwrite != nil {
		s.watchID++
		s.watchLocked([]watcher{{s.watchID, overwrite}})
	}
	s.changed.tell()
	s.kick()
	err := s.fencedLocked(ctx)
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("activating the disks: %w", err)
	}
	for _, d := range s.disks {
		s.mu.Lock()
		front := d.front
		s.mu.Unlock()
		if front == nil {
			continue // Attach does it
		}
		if err := d.Attach(front); err != nil {
			return fmt.Errorf("activating the disks: %w", err)
		}
	}
	return nil
}

// fencedLocked waits until no other host can write to our disks any more.
func (s *Set) fencedLocked(ctx context.Context) error {
	for _, d := range s.disks {
		for !s.core.fenced(d.lane) {
			if s.core.closed {
				return ErrClosed
			}
			if err := s.waitLocked(ctx); err != nil {
				return fmt.Errorf("disk %d: another host may still write to it: %w", d.id, errors.Join(err, d.problem))
			}
		}
	}
	return nil
}
