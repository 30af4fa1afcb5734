package disk

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"

	"understudy/epoch"
)

// This file keeps what the disks of a host that stands by held at one commit,
// for as long as somebody wants to read that (package bubble):
//
//	held log before the bound ─┐
//	store, as it is now ───────┴─> ReadSectors, unless set aside
//	                                     ^
//	a block is about to be overwritten: Before reads it and sets it aside
//
// Who overwrites blocks? Our own flusher, of a replicated disk: it says so before
// (OnOverwrite). The other host, of a shared disk: the backup says so before it
// acknowledges the epoch that has the write.
//
// A reader reads first and looks then for what was set aside meanwhile: what was
// overwritten under its hands has been set aside before.

// Fork is what the disks held at one commit. Its methods may be called from
// several goroutines.
type Fork struct {
	set      *Set
	bound    uint64 // index: entries before it belong to it
	limit    uint64
	remove   func()
	inFlight [][]byte

	keeping sync.Mutex // one block is set aside once; taken before mu
	mu      sync.Mutex
	kept    []map[uint64][]byte // by disk: aligned blocks; nil: of zeros
	bytes   uint64
	broken  error
}

// asideCost is what a block that is set aside takes besides its bytes.
const asideCost = 64

var errForkClosed = errors.New("the fork of the disks is over")

// Fork begins to keep what the disks hold now, as of the last commit: the caller
// sees to it that none comes meanwhile. At most limit bytes are set aside; if that
// is not enough, or a disk cannot be read, the fork fails, and nothing else does.
// The disks must be those of a backup; Close comes before they are anything else.
func (s *Set) Fork(limit uint64) (*Fork, error) {
	f := &Fork{set: s, limit: limit}
	s.mu.Lock()
	if s.core.closed || s.core.settling || s.core.role != roleStandBy {
		s.mu.Unlock()
		return nil, errors.New("forking the disks: this host does not stand by for the guest")
	}
	f.bound = s.core.asOf
	for _, d := range s.disks {
		f.kept = append(f.kept, map[uint64][]byte{})
		f.inFlight = append(f.inFlight, slices.Clone(d.inFlight))
	}
	s.mu.Unlock()
	f.remove = s.OnOverwrite(func(disk epoch.DiskID, sector uint64, sectors uint32) error {
		f.Before(disk, sector, sectors)
		return nil
	})
	return f, nil
}

// InFlight is what the front end of a disk had in flight: for Frontend.Resubmit.
func (f *Fork) InFlight(disk epoch.DiskID) []byte { return f.inFlight[disk] }

// Shared reports whether another host writes to one of the disks.
func (f *Fork) Shared() bool {
	return slices.ContainsFunc(f.set.disks, func(d *Device) bool { return d.shared && !d.lane.readOnly })
}

// SetAside is how many bytes are kept.
func (f *Fork) SetAside() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bytes
}

// Close ends it. What is read afterwards is an error.
func (f *Fork) Close() {
	f.remove()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail(errForkClosed)
}

// fail keeps the first reason, and no block. The lock is held.
func (f *Fork) fail(err error) {
	if f.broken == nil {
		f.broken = err
	}
	for i := range f.kept {
		f.kept[i] = nil
	}
}

// Err is why reads fail from now on; nil: they do not.
func (f *Fork) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken
}

// ReadSectors reads what a disk held at the fork's commit.
func (f *Fork) ReadSectors(disk epoch.DiskID, sector uint64, dst []byte) error {
	if err := f.set.readAsOf(disk, sector, dst, f.bound); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return fmt.Errorf("reading disk %d as it was: %w", disk, f.broken)
	}
	if int(disk) >= len(f.kept) || len(f.kept[disk]) == 0 {
		return nil
	}
	for len(dst) > 0 {
		block, at := sector/epoch.PageSectors, int(sector%epoch.PageSectors)*epoch.SectorSize
		n := min(len(dst), epoch.PageSize-at)
		if kept, ok := f.kept[disk][block]; ok && kept == nil {
			clear(dst[:n])
		} else if ok {
			copy(dst[:n], kept[at:])
		}
		sector, dst = sector+uint64(n/epoch.SectorSize), dst[n:]
	}
	return nil
}

// Before sets aside what sectors held, as far as that has not been done: they are
// about to be overwritten. It waits for the disk.
func (f *Fork) Before(disk epoch.DiskID, sector uint64, sectors uint32) {
	if int(disk) >= len(f.set.disks) || sectors == 0 || f.set.disks[disk].checkSectors(sector, sectors) != nil {
		return // nothing that anybody could overwrite
	}
	f.keeping.Lock()
	defer f.keeping.Unlock()
	const most = 1 << 20 / epoch.PageSize
	first, end := sector/epoch.PageSectors, (sector+uint64(sectors)+epoch.PageSectors-1)/epoch.PageSectors
	for first < end {
		n, todo := f.run(disk, first, min(end-first, most))
		if todo {
			if err := f.keep(disk, first, n); err != nil {
				f.mu.Lock()
				f.fail(err)
				f.mu.Unlock()
			}
		}
		first += n
	}
}

// run returns how many blocks from first on are equally to be set aside or not,
// and which of the two.
func (f *Fork) run(disk epoch.DiskID, first, most uint64) (n uint64, todo bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return most, false
	}
	_, there := f.kept[disk][first]
	for n = 1; n < most; n++ {
		if _, also := f.kept[disk][first+n]; also != there {
			break
		}
	}
	return n, !there
}

// keep reads blocks and sets them aside.
func (f *Fork) keep(disk epoch.DiskID, first, n uint64) error {
	d := f.set.disks[disk]
	sector := first * epoch.PageSectors
	last := min(d.info.Sectors, (first+n)*epoch.PageSectors) // the last block may be a short one
	buf := d.bounce.get(int(last-sector) * epoch.SectorSize)
	defer d.bounce.put(buf)
	if err := f.set.readAsOf(disk, sector, buf.b, f.bound); err != nil {
		return fmt.Errorf("setting %d sectors from %d on of disk %d aside: %w", last-sector, sector, disk, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range n {
		if f.broken != nil {
			return nil
		}
		piece := buf.b[i*epoch.PageSize : min((i+1)*epoch.PageSize, uint64(len(buf.b)))]
		var kept []byte
		cost := uint64(asideCost)
		if !bytes.Equal(piece, zeroBlock[:len(piece)]) {
			kept = make([]byte, epoch.PageSize)
			copy(kept, piece)
			cost += epoch.PageSize
		}
		if f.bytes+cost > f.limit {
			return fmt.Errorf("the guest has overwritten more than the %d MiB of its disks that are kept as they were", f.limit>>20)
		}
		f.kept[disk][first+i] = kept
		f.bytes += cost
	}
	return nil
}

var zeroBlock [epoch.PageSize]byte
