package disk

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"understudy/epoch"
)

// This file is a disk whose writes nobody keeps: they lie in memory, over what
// the disk showed at first, and are gone with it.
//
//	read:  what lies below, then what was written over it
//	write: into memory, done; flush: nothing to do; discard: zeros

// ErrScratchFull is what a guest's write ends with that there is no memory for.
var ErrScratchFull = errors.New("the memory for what is written to a disk that is not to be written is used up")

// Scratch is such a disk. It implements Backend.
type Scratch struct {
	id    epoch.DiskID
	info  Info
	limit uint64

	mu     sync.Mutex
	below  func(sector uint64, dst []byte) error
	blocks map[uint64]scratchBlock
	bytes  uint64
}

var _ Backend = (*Scratch)(nil)

// scratchBlock is what was written of an aligned block of 4 KiB.
type scratchBlock struct {
	has  uint8 // one bit for each sector
	data *[epoch.PageSize]byte
}

// scratchCost is what a block takes besides its bytes.
const scratchCost = 64

// NewScratch returns a disk that looks like one with this id and Info. At most
// limit bytes can be written to it. Nothing can be read before Over.
func NewScratch(id epoch.DiskID, info Info, limit uint64) *Scratch {
	return &Scratch{id: id, info: info, limit: limit, blocks: map[uint64]scratchBlock{}}
}

// Over says what lies below: read fills dst with what the disk holds from sector
// on. It may be called from several goroutines.
func (s *Scratch) Over(read func(sector uint64, dst []byte) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.below = read
}

// Written is how much was written, in bytes of blocks.
func (s *Scratch) Written() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// Info says what the guest is told of the disk.
func (s *Scratch) Info() Info { return s.info }

// Accept takes every change at once. See Backend.
func (s *Scratch) Accept(r *Request) (taken bool, err error) {
	if r.Op == OpRead {
		return false, nil
	}
	if err := s.info.check(s.id, r); err != nil {
		return false, err
	}
	if r.Op == OpFlush {
		return true, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from := reader{segments: r.Segments}
	for sector, left := r.Sector, r.Sectors; left > 0; {
		n := min(left, epoch.PageSectors-uint32(sector%epoch.PageSectors))
		room, err := s.room(sector, n)
		if err != nil {
			return false, err
		}
		if r.Op == OpWrite {
			from.fill(room)
		} else {
			clear(room)
		}
		sector, left = sector+uint64(n), left-n
	}
	return true, nil
}

// room returns the memory for sectors of one block. The lock is held.
func (s *Scratch) room(sector uint64, sectors uint32) ([]byte, error) {
	block, at := sector/epoch.PageSectors, uint32(sector%epoch.PageSectors)
	b := s.blocks[block]
	if b.data == nil {
		if s.bytes+epoch.PageSize+scratchCost > s.limit {
			return nil, fmt.Errorf("disk %d: %d MiB: %w", s.id, s.limit>>20, ErrScratchFull)
		}
		s.bytes += epoch.PageSize + scratchCost
		b.data = new([epoch.PageSize]byte)
	}
	b.has |= uint8(1<<sectors-1) << at
	s.blocks[block] = b
	return b.data[at*epoch.SectorSize : (at+sectors)*epoch.SectorSize], nil
}

// Do reads. See Backend.
func (s *Scratch) Do(_ context.Context, r *Request) error {
	if err := s.info.check(s.id, r); err != nil {
		return err
	}
	if r.Op != OpRead {
		return ErrAgain // Accept takes it, or says why not
	}
	if err := checkBuffer(s.id, r); err != nil {
		return err
	}
	s.mu.Lock()
	below := s.below
	s.mu.Unlock()
	if below == nil {
		return fmt.Errorf("disk %d: it shows nothing yet", s.id)
	}
	if err := below(r.Sector, r.Buffer); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.blocks) == 0 {
		return nil
	}
	for at := uint32(0); at < r.Sectors; at++ {
		sector := r.Sector + uint64(at)
		in := uint32(sector % epoch.PageSectors)
		if b := s.blocks[sector/epoch.PageSectors]; b.has&(1<<in) != 0 {
			copy(r.Buffer[at*epoch.SectorSize:], b.data[in*epoch.SectorSize:(in+1)*epoch.SectorSize])
		}
	}
	return nil
}

// Landed, Touched and Fill have nothing to do: nobody follows this guest's memory,
// and all of it is there.
func (s *Scratch) Landed(*Request) {}

// Touched is part of Backend.
func (s *Scratch) Touched(epoch.GFN, int) {}

// Fill is part of Backend.
func (s *Scratch) Fill(epoch.GFN, int) error { return nil }

// reader reads segments one after the other.
type reader struct {
	segments []Segment
	at       int // in the first
}

// fill fills dst with the next bytes.
func (r *reader) fill(dst []byte) {
	for len(dst) > 0 && len(r.segments) > 0 {
		n := copy(dst, r.segments[0].Data[r.at:])
		dst, r.at = dst[n:], r.at+n
		if r.at == len(r.segments[0].Data) {
			r.segments, r.at = r.segments[1:], 0
		}
	}
}
