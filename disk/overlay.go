package disk

import "understudy/epoch"

// This file knows, for one disk, which sectors have newer bytes in the held log
// than in the store, and in which entry. It is looked at for every read, so it
// is a map of 4 KiB blocks to slots of eight sectors.

// overlay holds for each sector the index of the newest held write of it. The
// Set's lock protects it.
type overlay struct {
	blocks map[uint64]uint32 // block number → slot
	slots  []slot
	free   []uint32
}

// slot has an entry's index plus one for each sector of a block; 0 is none.
type slot [epoch.PageSectors]uint64

func newOverlay() overlay { return overlay{blocks: map[uint64]uint32{}} }

func (o *overlay) clear() {
	clear(o.blocks)
	o.slots, o.free = o.slots[:0], o.free[:0]
}

// put makes the entry at index the newest of sectors.
func (o *overlay) put(sector uint64, sectors uint32, index uint64) {
	for sectors > 0 {
		block, at := sector/epoch.PageSectors, uint32(sector%epoch.PageSectors)
		n := min(sectors, epoch.PageSectors-at)
		s := o.slot(block)
		for i := at; i < at+n; i++ {
			s[i] = index + 1
		}
		sector, sectors = sector+uint64(n), sectors-n
	}
}

func (o *overlay) slot(block uint64) *slot {
	i, ok := o.blocks[block]
	if !ok {
		if n := len(o.free); n > 0 {
			i, o.free = o.free[n-1], o.free[:n-1]
		} else {
			i = uint32(len(o.slots))
			o.slots = append(o.slots, slot{})
		}
		o.slots[i] = slot{}
		o.blocks[block] = i
	}
	return &o.slots[i]
}

// remove forgets the entry at index where it is still the newest.
func (o *overlay) remove(sector uint64, sectors uint32, index uint64) {
	for sectors > 0 {
		block, at := sector/epoch.PageSectors, uint32(sector%epoch.PageSectors)
		n := min(sectors, epoch.PageSectors-at)
		if i, ok := o.blocks[block]; ok {
			s := &o.slots[i]
			for k := at; k < at+n; k++ {
				if s[k] == index+1 {
					s[k] = 0
				}
			}
			if *s == (slot{}) {
				delete(o.blocks, block)
				o.free = append(o.free, i)
			}
		}
		sector, sectors = sector+uint64(n), sectors-n
	}
}

// owns reports whether the entry at index is the newest of all the sectors.
func (o *overlay) owns(sector uint64, sectors uint32, index uint64) bool {
	n, owner, ok := o.run(sector, sectors)
	return ok && owner == index && n == sectors
}

// any reports whether a held write has newer bytes for one of the sectors.
func (o *overlay) any(sector uint64, sectors uint32) bool {
	n, _, ok := o.run(sector, sectors)
	return ok || n < sectors
}

// run returns how many of the sectors, from the first on, have the same newest
// entry, and which; ok is false if they have none.
func (o *overlay) run(sector uint64, sectors uint32) (n uint32, index uint64, ok bool) {
	if len(o.blocks) == 0 {
		return sectors, 0, false
	}
	var owner uint64
	for n < sectors {
		block, at := (sector+uint64(n))/epoch.PageSectors, uint32((sector+uint64(n))%epoch.PageSectors)
		i, have := o.blocks[block]
		for end := min(epoch.PageSectors, at+sectors-n); at < end; at++ {
			var here uint64
			if have {
				here = o.slots[i][at]
			}
			if n == 0 {
				owner = here
			}
			if here != owner {
				return n, owner - 1, owner != 0
			}
			n++
		}
	}
	return n, owner - 1, owner != 0
}
