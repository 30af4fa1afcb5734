package disk

import (
	"fmt"

	"understudy/epoch"
)

// This file is Do in two halves, for the requests that need nothing but the
// store: a read of which the held log has nothing or all, and a write or flush of
// a guest that is not protected. Everything else goes through Do.

var _ Splitter = (*Device)(nil)

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
		d.direct++
		s.count.direct++
	}
	return t, ok
}

func (d *Device) beginRead(r *Request) (t Transfer, ok bool) {
	s := d.set
	s.mu.Lock()
	if !d.readableLocked() {
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
		t.File, t.Offset, ok = d.split.StartRead(t.Data, r.Sector+uint64(g.at))
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
	s.mu.Lock()
	ok = d.beginsLocked()
	s.mu.Unlock()
	if !ok {
		return t, false
	}
	// Guest memory is read before anything is promised: it may be gone.
	buf := d.bounce.get(int(r.Sectors) * epoch.SectorSize)
	copySegments(buf.b, r.Segments)
	t = Transfer{Write: true, Data: buf.b}
	if t.File, t.Offset, ok = d.split.StartWrite(buf.b, r.Sector); ok {
		s.mu.Lock()
		if ok = d.beginsLocked(); ok {
			d.direct++
			d.unsynced = true
			s.count.direct++
			r.Ticket, r.bounce = s.index.Accepted(d.id, r.Sector, r.Sectors, true), buf
		}
		s.mu.Unlock()
		if !ok {
			d.split.EndWrite()
		}
	}
	if !ok {
		d.bounce.put(buf)
	}
	return t, ok
}

// beginsLocked reports whether a write may go straight to the store, and nobody
// has to be told before.
func (d *Device) beginsLocked() bool {
	s := d.set
	return !s.closed && !d.holdsLocked() && s.mode == ModePass && d.pending == 0 && len(s.watchers) == 0 && d.mayWriteLocked()
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
	if r.Op != OpWrite {
		return err
	}
	d.split.EndWrite()
	buf := r.bounce
	r.bounce = nil
	if err == nil {
		d.written(r, r.Ticket, buf.b)
	}
	d.bounce.put(buf)
	d.end(r, r.Ticket, err)
	return err
}
