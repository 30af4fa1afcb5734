package disk

import (
	"fmt"
	"time"

	"understudy/epoch"
)

// This file is Do in two halves, for the requests that need nothing but the
// store: a read of which the held log has nothing or all, and a write or flush of
// a guest that is not protected. Everything else goes through Do.
//
// Of a guest that is not protected, larger reads and writes are direct transfers,
// without a copy. What they bring to the disk or the guest is seen by nobody on
// its way, and guest memory may have changed since, so that the content index
// learns of them later, by reads of our own (learn.go). A direct read that is under
// way when the guest becomes protected counts as not settled: no epoch is sealed
// before it is over.

const (
	// directBytes is the least length of a direct transfer: what is shorter is
	// copied in less time than it takes to read it again.
	directBytes = 16 << 10
	// directPieces bounds the pieces of guest memory of one.
	directPieces = 256
	// A pause of the guest waits for direct transfers that are under way. If one
	// took longer than slowTransfer there are none for slowTime.
	slowTransfer = 200 * time.Millisecond
	slowTime     = 10 * time.Second
)

var _ Splitter = (*Device)(nil)

// Direct reports whether a request may be a direct transfer now. See Splitter.
func (d *Device) Direct(r *Request) bool {
	if d.split == nil || r.Op != OpRead && r.Op != OpWrite || r.Sectors < directBytes/epoch.SectorSize || len(r.Segments) > directPieces {
		return false
	}
	for i := range r.Segments {
		if !d.split.Aligned(r.Segments[i].Data) {
			return false
		}
	}
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.directLocked()
}

func (d *Device) directLocked() bool {
	return d.set.core.passes(d.lane) && (d.slow.IsZero() || time.Since(d.slow) > slowTime)
}

// Begin begins a request. See Splitter.
func (d *Device) Begin(r *Request) (t Transfer, ok bool) {
	if d.split == nil || d.check(r) != nil {
		return t, false
	}
	switch r.Op {
	case OpRead:
		return d.beginRead(r)
	case OpWrite:
		return d.beginWrite(r)
	case OpFlush:
		return d.beginFlush()
	}
	return t, false
}

func (d *Device) beginFlush() (t Transfer, ok bool) {
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if !d.beginsLocked() {
		return t, false
	}
	if t.File, ok = d.split.StartSync(); ok {
		t.Sync = true
		s.core.begin(d.lane, true)
		s.count.direct++
	}
	return t, ok
}

// beginDirect begins a read into guest memory itself.
func (d *Device) beginDirect(r *Request) (t Transfer, ok bool) {
	if !d.Direct(r) {
		return t, false
	}
	s := d.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.core.readable(d.lane) || !d.directLocked() {
		return t, false
	}
	if t.File, t.Offset, ok = d.split.StartRead(r.Sector, r.Sectors); ok {
		t.Direct = true
		r.began = time.Now()
		s.count.reads++
		s.core.land(d.lane)
	}
	return t, ok
}

func (d *Device) beginRead(r *Request) (t Transfer, ok bool) {
	if r.Buffer == nil {
		return d.beginDirect(r)
	}
	if checkBuffer(d.id, r) != nil {
		return t, false
	}
	s := d.set
	s.mu.Lock()
	if !s.core.readable(d.lane) {
		s.mu.Unlock()
		return t, false
	}
	s.count.reads++
	r.Ticket = s.index.ReadBegins()
	var few [8]gap
	gaps := d.lookLocked(r.Buffer, r.Sector, ^uint64(0), few[:0])
	s.mu.Unlock()
	switch len(gaps) {
	case 0:
		return t, true
	case 1:
		g := gaps[0]
		t.Data = r.Buffer[g.at*epoch.SectorSize : (g.at+g.sectors)*epoch.SectorSize]
		if d.split.Aligned(t.Data) {
			t.File, t.Offset, ok = d.split.StartRead(r.Sector+uint64(g.at), g.sectors)
		}
	}
	if !ok {
		s.mu.Lock()
		s.count.reads-- // Do counts it
		s.mu.Unlock()
	}
	return t, ok
}

// beginWrite is begin, without waiting, and the first half of change.
func (d *Device) beginWrite(r *Request) (t Transfer, ok bool) {
	s := d.set
	t.Write = true
	var buf *buffer
	if t.Direct = d.Direct(r); t.Direct {
		r.began = time.Now()
	} else {
		s.mu.Lock()
		ok = s.core.passes(d.lane)
		s.mu.Unlock()
		if !ok {
			return t, false
		}
		// Guest memory is read before anything is promised: it may be gone.
		buf = d.bounce.get(int(r.Sectors) * epoch.SectorSize)
		copySegments(buf.b, r.Segments)
		t.Data = buf.b
	}
	if t.File, t.Offset, ok = d.split.StartWrite(r.Sector, r.Sectors); ok {
		s.mu.Lock()
		if ok = d.beginsLocked(); ok {
			s.core.begin(d.lane, false)
			s.count.direct++
			r.Ticket, r.bounce = s.index.Accepted(d.id, r.Sector, r.Sectors, true), buf
		}
		s.mu.Unlock()
		if !ok {
			d.split.EndWrite()
		}
	}
	if !ok && buf != nil {
		d.bounce.put(buf)
	}
	return t, ok
}

// beginsLocked reports whether a change may go straight to the store, and nobody
// has to be told before.
func (d *Device) beginsLocked() bool {
	c := &d.set.core
	return c.passes(d.lane) && !c.watched && d.mayWriteLocked()
}

// End ends a request that Begin began. See Splitter.
func (d *Device) End(r *Request, err error) error {
	if r.Op == OpFlush {
		if err = d.split.EndSync(err); err != nil {
			rewritten(d.store) // see change
		}
		d.end(r, 0, err)
		return err
	}
	if err != nil {
		err = fmt.Errorf("disk %d, %d sectors from %d on: %w", d.id, r.Sectors, r.Sector, err)
	}
	direct := r.Buffer == nil && r.bounce == nil
	if direct {
		d.endDirect(r)
	}
	if r.Op != OpWrite {
		return err
	}
	d.split.EndWrite()
	if direct {
		d.note(r)
	} else {
		buf := r.bounce
		r.bounce = nil
		if err == nil {
			d.written(r, r.Ticket, buf.b)
		}
		d.bounce.put(buf)
	}
	d.end(r, r.Ticket, err)
	return err
}

// endDirect ends a direct transfer.
func (d *Device) endDirect(r *Request) {
	s := d.set
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(r.began) > slowTransfer {
		d.slow = now
	}
	if r.Op != OpRead {
		return
	}
	if s.core.landed(d.lane) {
		s.changed.tell()
	}
}
