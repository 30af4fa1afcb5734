package exclusion

import (
	"encoding/binary"
	"math/rand/v2"

	"understudy/epoch"
)

// blocks is the bounded table of what is known to be on the disks: extents of
// PageSize bytes that begin at any sector, each with the fingerprint of its
// content.
//
//	put:       (disk, sector) → chain of its aligned block → slot, or a new one,
//	           or the one not used for longest (second chance)
//	keep:      put, for what nobody writes to
//	overwrite: each aligned block in which an extent that overlaps may begin →
//	           chain → the slots that do overlap are dead
//	find:      fingerprint → chain of it → a live slot
//
// A dead slot stays, so that it can be said why a page is not left out, until
// its place is needed or its extent comes back.
type blocks struct {
	slots   []slot   // handed out so far; its capacity is the bound
	starts  []uint32 // heads of chains by aligned block
	prints  []uint32 // heads of chains by fingerprint, live slots only
	mask    uint64
	seed    uint64 // a guest cannot choose sectors that share a chain
	hand    int    // of the clock that looks for a slot to give away
	alive   int
	kept    int // slots that are
	evicted uint64
	lost    uint64 // extents that died, were replaced or given away, and calls of forget
}

// slot is one extent. Slots are named by their index plus one; 0 is none.
type slot struct {
	print                epoch.Fingerprint
	sector               uint64
	nextStart            uint32
	nextPrint, prevPrint uint32
	disk                 epoch.DiskID
	live                 bool
	used                 bool // since the clock's hand last passed
	kept                 bool // neither given away nor forgotten: see keep
}

// maxWalk bounds the search for a fingerprint: a disk that holds one content a
// thousand times must not make the search for another slow. What is not found
// is sent.
const maxWalk = 64

// maxKept is the part of the table that may be kept: a quarter.
const maxKept = 4

func newBlocks(bound int) blocks {
	size := uint64(16)
	for size < uint64(bound) {
		size *= 2
	}
	return blocks{
		slots:  make([]slot, 0, bound),
		starts: make([]uint32, size), prints: make([]uint32, size), mask: size - 1,
		seed: rand.Uint64(),
	}
}

// forget drops all but what is kept.
func (b *blocks) forget() {
	kept := make([]slot, 0, b.kept)
	for i := 0; len(kept) < b.kept; i++ {
		if b.slots[i].kept {
			kept = append(kept, b.slots[i])
		}
	}
	clear(b.starts)
	clear(b.prints)
	b.slots, b.hand, b.alive, b.kept = b.slots[:0], 0, 0, 0
	b.lost++
	for i := range kept {
		b.keep(kept[i].disk, kept[i].sector, kept[i].print)
	}
}

// keep is put for an extent that stays in the table until it is overwritten. It
// reports false if there is no room for one more.
func (b *blocks) keep(disk epoch.DiskID, sector uint64, print epoch.Fingerprint) bool {
	if b.kept >= cap(b.slots)/maxKept {
		return false
	}
	if s := b.at(b.put(disk, sector, print)); !s.kept {
		s.kept = true
		b.kept++
	}
	return true
}

// chainOf returns the chain of the extents that begin in an aligned block.
func chainOf(disk epoch.DiskID, block, seed, mask uint64) uint64 {
	x := (block | uint64(disk)<<56) ^ seed
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return (x ^ x>>33) & mask
}

func (b *blocks) start(disk epoch.DiskID, sector uint64) *uint32 {
	return &b.starts[chainOf(disk, sector/epoch.PageSectors, b.seed, b.mask)]
}

func (b *blocks) print(p *epoch.Fingerprint) *uint32 {
	return &b.prints[binary.LittleEndian.Uint64(p[:])&b.mask]
}

func (b *blocks) at(name uint32) *slot { return &b.slots[name-1] }

// put notes that an extent has this content, and returns its slot's name.
func (b *blocks) put(disk epoch.DiskID, sector uint64, print epoch.Fingerprint) uint32 {
	for name := *b.start(disk, sector); name != 0; name = b.at(name).nextStart {
		s := b.at(name)
		if s.disk != disk || s.sector != sector {
			continue
		}
		if s.live && s.print == print {
			return name
		}
		if s.live {
			b.unlinkPrint(name)
		}
		s.print = print
		b.linkPrint(name)
		return name
	}
	name := b.take()
	*b.at(name) = slot{print: print, disk: disk, sector: sector}
	head := b.start(disk, sector)
	b.at(name).nextStart, *head = *head, name
	b.linkPrint(name)
	return name
}

// take returns a slot that is in no chain.
func (b *blocks) take() uint32 {
	if len(b.slots) < cap(b.slots) {
		b.slots = b.slots[:len(b.slots)+1]
		return uint32(len(b.slots))
	}
	for {
		name := uint32(b.hand + 1)
		b.hand = (b.hand + 1) % len(b.slots)
		s := b.at(name)
		if s.kept {
			continue
		}
		if s.live && s.used {
			s.used = false
			continue
		}
		if s.live {
			b.unlinkPrint(name)
			b.evicted++
		}
		link := b.start(s.disk, s.sector)
		for *link != name {
			link = &b.at(*link).nextStart
		}
		*link = s.nextStart
		return name
	}
}

// linkPrint makes a slot live.
func (b *blocks) linkPrint(name uint32) {
	s := b.at(name)
	head := b.print(&s.print)
	s.nextPrint, s.prevPrint = *head, 0
	if *head != 0 {
		b.at(*head).prevPrint = name
	}
	*head = name
	s.live = true
	b.alive++
}

// unlinkPrint makes a slot dead.
func (b *blocks) unlinkPrint(name uint32) {
	s := b.at(name)
	if s.nextPrint != 0 {
		b.at(s.nextPrint).prevPrint = s.prevPrint
	}
	if s.prevPrint != 0 {
		b.at(s.prevPrint).nextPrint = s.nextPrint
	} else {
		*b.print(&s.print) = s.nextPrint
	}
	s.nextPrint, s.prevPrint = 0, 0
	s.live, s.used = false, false
	if s.kept {
		s.kept = false
		b.kept--
	}
	b.alive--
	b.lost++
}

// overwrite makes every extent dead that has a sector in from..to.
func (b *blocks) overwrite(disk epoch.DiskID, from, to uint64) {
	first, last := startsOf(from, to)
	if last-first >= uint64(len(b.slots)) { // fewer slots than chains to look at
		for i := range b.slots {
			b.kill(uint32(i+1), disk, from, to)
		}
		return
	}
	for block := first; block <= last; block++ {
		for name := b.starts[chainOf(disk, block, b.seed, b.mask)]; name != 0; name = b.at(name).nextStart {
			b.kill(name, disk, from, to)
		}
	}
}

func (b *blocks) kill(name uint32, disk epoch.DiskID, from, to uint64) {
	if s := b.at(name); s.live && s.disk == disk && overlaps(s.sector, from, to) {
		b.unlinkPrint(name)
	}
}

// find returns the name of a live extent with this content.
func (b *blocks) find(print *epoch.Fingerprint) uint32 {
	name := *b.print(print)
	for range maxWalk {
		if name == 0 || b.at(name).print == *print {
			return name
		}
		name = b.at(name).nextPrint
	}
	return 0
}

// startsOf returns the first and the last aligned block in which an extent may
// begin that has a sector in from..to, which is not empty.
func startsOf(from, to uint64) (first, last uint64) {
	return (from - min(from, epoch.PageSectors-1)) / epoch.PageSectors, (to - 1) / epoch.PageSectors
}

// overlaps reports whether the extent that begins at sector has one in from..to.
func overlaps(sector, from, to uint64) bool {
	return sector < to && from < sector+epoch.PageSectors
}
