package exclusion

import "understudy/epoch"

// outstanding are the references that were emitted and that the backup has not
// reported filled: a queue in the order of their epochs, of bounded length, with
// a chain for each aligned block in which their extents begin.
//
//	add → queue's end, chain's head
//	overwritten → chain → each that overlaps is taken out
//	through → from the queue's front, all up to an epoch
//
// One that is taken out of the middle keeps its place in the queue until the
// front has come to it.
type outstanding struct {
	refs        []sent // ring; position p is refs[p % len(refs)]
	front, back uint64 // positions
	heads       []uint32
	mask, seed  uint64
	live        int
}

// sent is one reference. Its name is its index plus one; 0 is none.
type sent struct {
	sector     uint64
	page       epoch.GFN
	epoch      epoch.Number
	next, prev uint32
	disk       epoch.DiskID
	live       bool
}

func newOutstanding(bound int, seed uint64) outstanding {
	size := uint64(16)
	for size < uint64(bound) {
		size *= 2
	}
	return outstanding{refs: make([]sent, bound), heads: make([]uint32, size), mask: size - 1, seed: seed}
}

func (o *outstanding) room() bool { return o.back-o.front < uint64(len(o.refs)) }

func (o *outstanding) at(name uint32) *sent { return &o.refs[name-1] }

func (o *outstanding) head(disk epoch.DiskID, sector uint64) *uint32 {
	return &o.heads[chainOf(disk, sector/epoch.PageSectors, o.seed, o.mask)]
}

// newest returns the epoch of the reference added last.
func (o *outstanding) newest() epoch.Number {
	if o.front == o.back {
		return 0
	}
	return o.refs[(o.back-1)%uint64(len(o.refs))].epoch
}

// add notes a reference; there is room.
func (o *outstanding) add(r epoch.Reference, n epoch.Number) {
	name := uint32(o.back%uint64(len(o.refs))) + 1
	head := o.head(r.Disk, r.Sector)
	*o.at(name) = sent{sector: r.Sector, page: r.Page, epoch: n, disk: r.Disk, next: *head, live: true}
	if *head != 0 {
		o.at(*head).prev = name
	}
	*head = name
	o.back++
	o.live++
}

// drop takes a reference out of its chain.
func (o *outstanding) drop(name uint32) {
	s := o.at(name)
	if s.next != 0 {
		o.at(s.next).prev = s.prev
	}
	if s.prev != 0 {
		o.at(s.prev).next = s.next
	} else {
		*o.head(s.disk, s.sector) = s.next
	}
	s.live = false
	o.live--
}

// through takes out every reference of the epochs up to n.
func (o *outstanding) through(n epoch.Number) {
	for ; o.front < o.back; o.front++ {
		name := uint32(o.front%uint64(len(o.refs))) + 1
		s := o.at(name)
		if s.epoch > n {
			return
		}
		if s.live {
			o.drop(name)
		}
	}
}

// overwritten takes out every reference to an extent that has a sector in
// from..to, and adds its page to pages.
func (o *outstanding) overwritten(disk epoch.DiskID, from, to uint64, pages *epoch.PageSet) {
	if o.live == 0 {
		return
	}
	take := func(name uint32) {
		if s := o.at(name); s.live && s.disk == disk && overlaps(s.sector, from, to) {
			pages.Add(s.page)
			o.drop(name)
		}
	}
	first, last := startsOf(from, to)
	if last-first >= o.back-o.front {
		for p := o.front; p < o.back; p++ {
			take(uint32(p%uint64(len(o.refs))) + 1)
		}
		return
	}
	for block := first; block <= last; block++ {
		for name := o.heads[chainOf(disk, block, o.seed, o.mask)]; name != 0; {
			next := o.at(name).next
			take(name)
			name = next
		}
	}
}

// void takes all out and adds their pages to pages.
func (o *outstanding) void(pages *epoch.PageSet) {
	for ; o.front < o.back; o.front++ {
		name := uint32(o.front%uint64(len(o.refs))) + 1
		if s := o.at(name); s.live {
			pages.Add(s.page)
			o.drop(name)
		}
	}
}
