package epoch

import (
	"slices"
	"unsafe"
)

// The stage's part for disks:
//
//	reference ──> References         write (memory, to be filled) ──> Writes
//	refers, read: a page as it is after the epoch, as far as the epoch brings it
//
// A write's data is in one piece. Its memory comes in slabs of any size, of
// which a bounded part is kept for the next epoch.

const (
	refBytes       = uint64(unsafe.Sizeof(Reference{}))
	diskWriteBytes = uint64(unsafe.Sizeof(DiskWrite{}))
	// keepData bounds the slabs for data that are kept from epoch to epoch.
	keepData = 16 << 20
)

// dataSlabs is the memory for the data of writes.
type dataSlabs struct {
	slabs [][]byte // all that are kept
	count int      // slabs in use, in order
	at    int      // offset in the last slab in use
	bytes uint64   // of data
	held  uint64   // of slabs in use
}

// References returns the pages that the epoch gives as references, in
// ascending order of pages. It is valid until the decoder's next Begin or
// Reset.
func (s *Stage) References() []Reference { return s.refs }

// Writes returns the disk writes of the epoch, in order. Their Data is in the
// stage's memory, and Pages is nil. It is valid until the decoder's next Begin
// or Reset.
func (s *Stage) Writes() []DiskWrite { return s.writes }

// DiskState returns what the sender's disks say beside their writes, or nil. It
// is valid until the decoder's next Begin or Reset.
func (s *Stage) DiskState() []byte {
	if len(s.disks) == 0 {
		return nil
	}
	return s.disks
}

// reference adds a reference. It reports false if the limit leaves no room.
func (s *Stage) reference(r Reference) bool {
	if !s.fits(refBytes) {
		return false
	}
	s.refs = append(s.refs, r)
	s.pages++
	return true
}

// refers reports whether the epoch brings a page as a reference.
func (s *Stage) refers(f GFN) bool {
	_, ok := slices.BinarySearchFunc(s.refs, f, func(r Reference, f GFN) int {
		switch {
		case r.Page < f:
			return -1
		case r.Page > f:
			return 1
		}
		return 0
	})
	return ok
}

// read copies a page to dst. It reports false if the epoch does not bring its
// content.
func (s *Stage) read(f GFN, dst []byte) bool {
	i, ok := slices.BinarySearchFunc(s.runs, f, func(r stagedRun, f GFN) int {
		switch {
		case r.first+GFN(r.count) <= f:
			return -1
		case r.first > f:
			return 1
		}
		return 0
	})
	if !ok {
		return false
	}
	r := s.runs[i]
	if r.at == zeroRun {
		clear(dst)
		return true
	}
	at := r.at + int(f-r.first)*PageSize
	copy(dst, s.slabs[at/s.slab][at%s.slab:])
	return true
}

// write adds a write with n bytes of data and returns the memory for them, to
// be filled by the caller. It reports false if the limit leaves no room.
func (s *Stage) write(w DiskWrite, n int) ([]byte, bool) {
	if !s.fits(diskWriteBytes) {
		return nil, false
	}
	if n > 0 {
		if !s.data.room(n, s.slab, func(slab int) bool { return s.fits(diskWriteBytes + uint64(slab)) }) {
			return nil, false
		}
		w.Data = s.data.take(n)
	}
	s.writes = append(s.writes, w)
	return w.Data, true
}

// room makes sure that the last slab has room for n bytes. A new one has the
// given size, or n bytes; fits tells whether it may be taken.
func (d *dataSlabs) room(n, size int, fits func(slab int) bool) bool {
	if d.count > 0 && len(d.slabs[d.count-1])-d.at >= n {
		return true
	}
	size = max(size, n)
	switch {
	case d.count < len(d.slabs) && len(d.slabs[d.count]) >= n && fits(len(d.slabs[d.count])):
	case !fits(size):
		return false
	case d.count < len(d.slabs):
		d.slabs[d.count] = make([]byte, size)
	default:
		d.slabs = append(d.slabs, make([]byte, size))
	}
	d.held += uint64(len(d.slabs[d.count]))
	d.count, d.at = d.count+1, 0
	return true
}

// take returns the next n bytes of the last slab.
func (d *dataSlabs) take(n int) []byte {
	at := d.at
	d.at, d.bytes = at+n, d.bytes+uint64(n)
	return d.slabs[d.count-1][at : at+n : at+n]
}

// reset empties the slabs and keeps some of them.
func (d *dataSlabs) reset() {
	kept := 0
	for i, slab := range d.slabs {
		if kept += len(slab); kept > keepData {
			clear(d.slabs[i:])
			d.slabs = d.slabs[:i]
			break
		}
	}
	d.count, d.at, d.bytes, d.held = 0, 0, 0, 0
}
