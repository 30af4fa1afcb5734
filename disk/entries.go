package disk

import "understudy/epoch"

// This file is what the core knows of the held writes: an entry for each, in the
// order of their acceptance over all disks. Their bytes are elsewhere (held.go).
// Entries are named by an index that only grows:
//
//	first ── being flushed ── core.released ── held ── next
//
// An entry that is durable is done, and goes when every one before it is done.

// entry is one held write.
type entry struct {
	seq     uint64
	pos     uint64 // in the journal's ring
	sector  uint64
	sectors uint32
	header  uint32 // bytes before the data
	size    uint32 // of the record
	pages   uint32 // known guest pages, one for each whole page of data; or 0
	kind    epoch.WriteKind
	disk    epoch.DiskID
	done    bool
}

// hasData reports whether a write of kind k carries bytes.
func hasData(k epoch.WriteKind) bool { return k == epoch.WriteData || k == epoch.WriteSync }

// dataBytes is how long the data is.
func (e *entry) dataBytes() uint32 {
	if !hasData(e.kind) {
		return 0
	}
	return e.sectors * epoch.SectorSize
}

// layout computes header and size and reports whether the entry is possible.
func (e *entry) layout() bool {
	switch e.kind {
	case epoch.WriteData, epoch.WriteSync:
		if e.sectors == 0 || e.sectors > epoch.MaxWriteSectors || e.pages != 0 && e.pages != e.sectors/epoch.PageSectors {
			return false
		}
	case epoch.WriteZeroes, epoch.WriteDiscard:
		if e.sectors == 0 || e.sectors > epoch.MaxZeroSectors || e.pages != 0 {
			return false
		}
	case epoch.WriteBarrier:
		if e.sectors != 0 || e.pages != 0 {
			return false
		}
	default:
		return false
	}
	e.header = (recordFixed + 8*e.pages + epoch.SectorSize - 1) / epoch.SectorSize * epoch.SectorSize
	e.size = e.header + e.dataBytes()
	return true
}

// overlayCost is what the overlay takes for a block, in bytes. What has data is
// not charged for it: it is small beside the data.
const overlayCost = 112

// charge is what the entry counts against the limit of held bytes. A discard
// has no bytes, but the guest must not fill our memory with overlay by it.
func (e *entry) charge() uint64 {
	if hasData(e.kind) || e.sectors == 0 {
		return uint64(e.size)
	}
	return uint64(e.size) + uint64(e.sectors/epoch.PageSectors+2)*overlayCost
}

// entries are all of them.
type entries struct {
	buf         []entry // a ring of a power of two
	first, next uint64  // indices
	used        uint64  // charge of all
	count       uint64  // of those that are not done
}

func newEntries() *entries { return &entries{buf: make([]entry, 64)} }

func (n *entries) at(i uint64) *entry { return &n.buf[i&uint64(len(n.buf)-1)] }

// push adds the newest.
func (n *entries) push(e entry) (uint64, *entry) {
	if n.next-n.first == uint64(len(n.buf)) {
		grown := make([]entry, 2*len(n.buf))
		for i := n.first; i < n.next; i++ {
			grown[i&uint64(len(grown)-1)] = *n.at(i)
		}
		n.buf = grown
	}
	i := n.next
	n.next++
	at := n.at(i)
	*at = e
	n.used += e.charge()
	if !e.done {
		n.count++
	}
	return i, at
}

// finish marks an entry as durable, and drops what is durable at the front.
func (n *entries) finish(i uint64) {
	if e := n.at(i); !e.done {
		e.done = true
		n.count--
	}
	n.trim()
}

// trim drops what is done at the front.
func (n *entries) trim() {
	for n.first < n.next && n.at(n.first).done {
		n.used -= n.at(n.first).charge()
		n.first++
	}
}

// cut forgets every entry from index on.
func (n *entries) cut(index uint64) {
	index = max(index, n.first)
	for i := index; i < n.next; i++ {
		e := n.at(i)
		if !e.done {
			n.count--
		}
		n.used -= e.charge()
	}
	n.next = index
}
