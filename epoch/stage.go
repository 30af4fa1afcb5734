package epoch

import (
	"slices"
	"unsafe"
)

// Stage holds one decoded epoch until it is applied:
//
//	Decoder → take (page memory), zero (runs), takeState → Apply
//	        → reference, write (stage_disk.go)
//
// Page memory comes in slabs that are kept for the next epoch. Everything an
// epoch makes the stage hold counts against one limit.
type Stage struct {
	limit  uint64
	slab   int      // size of a slab in bytes, whole pages
	slabs  [][]byte // all ever allocated
	filled int      // bytes of slabs in use by this epoch, in order

	runs   []stagedRun
	refs   []Reference
	pages  uint64
	device []byte

	writes []DiskWrite
	data   dataSlabs
	disks  []byte // disk state
}

// stagedRun is a run of pages in one slab, or of zero pages.
type stagedRun struct {
	first GFN
	count uint64
	at    int // byte offset over all slabs, or zeroRun
}

const (
	stageSlab = 1 << 20
	zeroRun   = -1
	runBytes  = uint64(unsafe.Sizeof(stagedRun{}))
)

func newStage(limit uint64) *Stage {
	return &Stage{limit: limit, slab: int(min(stageSlab, max(limit/4, PageSize)/PageSize*PageSize))}
}

// PageCount returns how many pages the epoch changes, zero pages and references
// included.
func (s *Stage) PageCount() uint64 { return s.pages }

// Bytes returns the bytes of page content, states and disk writes in the stage;
// zero pages and references count nothing.
func (s *Stage) Bytes() uint64 {
	return uint64(s.filled) + uint64(len(s.device)) + uint64(len(s.disks)) + s.data.bytes
}

// DeviceState returns the state of vCPUs and devices, or nil for an epoch of
// KindSync. It is valid until the decoder's next Begin or Reset.
func (s *Stage) DeviceState() []byte {
	if len(s.device) == 0 {
		return nil
	}
	return s.device
}

// EachRun calls f for every run of pages that Apply writes, in ascending order.
func (s *Stage) EachRun(f func(first GFN, count uint64)) {
	for _, r := range s.runs {
		f(r.first, r.count)
	}
}

// Apply calls write for every page of the epoch but its references, in
// ascending order and in pieces of at most 1 MiB. write must not change or keep data. Applying an
// epoch twice leaves the image as applying it once does, so an Apply that
// failed half way is simply repeated.
func (s *Stage) Apply(write func(first GFN, data []byte) error) error {
	for _, r := range s.runs {
		if r.at != zeroRun {
			slab, at := s.slabs[r.at/s.slab], r.at%s.slab
			if err := write(r.first, slab[at:at+int(r.count)*PageSize]); err != nil {
				return err
			}
			continue
		}
		for first, left := r.first, r.count; left > 0; {
			n := min(left, uint64(len(zeros)/PageSize))
			if err := write(first, zeros[:n*PageSize]); err != nil {
				return err
			}
			first, left = first+GFN(n), left-n
		}
	}
	return nil
}

// reset empties the stage and keeps its memory.
func (s *Stage) reset() {
	s.filled, s.pages = 0, 0
	s.runs, s.device = s.runs[:0], s.device[:0]
	s.refs, s.disks = s.refs[:0], s.disks[:0]
	clear(s.writes) // they name slabs
	s.writes = s.writes[:0]
	s.data.reset()
}

// used is what the limit bounds: everything this epoch holds.
func (s *Stage) used() uint64 {
	slabs := (s.filled + s.slab - 1) / s.slab
	return uint64(slabs)*uint64(s.slab) + uint64(len(s.runs))*runBytes + uint64(len(s.refs))*refBytes +
		uint64(len(s.device)) + uint64(len(s.disks)) + s.data.held + uint64(len(s.writes))*diskWriteBytes
}

// fits reports whether the stage may hold that much more.
func (s *Stage) fits(more uint64) bool {
	used := s.used()
	return used <= s.limit && more <= s.limit-used
}

// take adds up to count pages, starting at first, and returns the memory for
// their content, to be filled by the caller: as many pages as fit into the
// slab, at least one. It reports false if the limit leaves no room.
func (s *Stage) take(first GFN, count uint64) ([]byte, bool) {
	at := s.filled % s.slab
	if !s.fits(runBytes) || at == 0 && !s.fits(runBytes+uint64(s.slab)) {
		return nil, false
	}
	if s.filled/s.slab == len(s.slabs) {
		s.slabs = append(s.slabs, make([]byte, s.slab))
	}
	n := min(count, uint64(s.slab-at)/PageSize)
	if last := len(s.runs) - 1; at > 0 && s.runs[last].at != zeroRun && s.runs[last].first+GFN(s.runs[last].count) == first {
		s.runs[last].count += n
	} else {
		s.runs = append(s.runs, stagedRun{first: first, count: n, at: s.filled})
	}
	slab := s.slabs[s.filled/s.slab]
	s.filled += int(n) * PageSize
	s.pages += n
	return slab[at : at+int(n)*PageSize], true
}

// zero adds a run of zero pages. It reports false if the limit leaves no room.
func (s *Stage) zero(first GFN, count uint64) bool {
	s.pages += count
	if last := len(s.runs) - 1; last >= 0 && s.runs[last].at == zeroRun && s.runs[last].first+GFN(s.runs[last].count) == first {
		s.runs[last].count += count
		return true
	}
	if !s.fits(runBytes) {
		return false
	}
	s.runs = append(s.runs, stagedRun{first: first, count: count, at: zeroRun})
	return true
}

// takeState makes a state n bytes longer and returns the memory for them, to
// be filled by the caller. It reports false if the limit leaves no room.
func (s *Stage) takeState(state *[]byte, n int) ([]byte, bool) {
	if !s.fits(uint64(n)) {
		return nil, false
	}
	at := len(*state)
	*state = slices.Grow(*state, n)[:at+n]
	return (*state)[at:], true
}
