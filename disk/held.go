package disk

import (
	"encoding/binary"
	"fmt"

	"understudy/epoch"
)

// This file is the held log: the writes that were accepted and are not durable
// on a store yet, in the order of their acceptance over all disks. Their bytes
// are copied once, into the journal's ring (journal.go), and read, sent and
// flushed from there. Entries are named by an index that only grows:
//
//	first ── being flushed ── Set.released ── held ── next
//
// An entry that is durable is marked done, in the journal too, and goes when
// every one before it is done.

// entry is one held write.
type entry struct {
	seq     uint64
	pos     uint64 // in the ring
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

// held is the log. The Set's lock protects it.
type held struct {
	j     *journal
	limit uint64 // of charge
	tail  uint64 // position of the next record
	used  uint64 // charge of all entries
	count uint64 // entries not done

	buf         []entry // a ring of a power of two
	first, next uint64  // indices
}

func newHeld(j *journal, limit uint64) *held {
	return &held{j: j, limit: limit, buf: make([]entry, 64)}
}

func (h *held) at(i uint64) *entry { return &h.buf[i&uint64(len(h.buf)-1)] }

// data returns an entry's bytes, in the ring.
func (h *held) data(e *entry) []byte {
	return h.j.place(e.pos)[e.header:e.size]
}

// page returns the guest page that the i-th page of the entry's data was copied
// from.
func (h *held) page(e *entry, i uint32) epoch.GFN {
	if i >= e.pages {
		return epoch.NoPage
	}
	return epoch.GFN(binary.NativeEndian.Uint64(h.j.place(e.pos)[recordFixed+8*i:]))
}

func (h *held) setPage(e *entry, i uint32, page epoch.GFN) {
	binary.NativeEndian.PutUint64(h.j.place(e.pos)[recordFixed+8*i:], uint64(page))
}

// head is the position of the oldest entry.
func (h *held) head() uint64 {
	if h.first == h.next {
		return h.tail
	}
	return h.at(h.first).pos
}

// slot returns the position at which a record of a size fits, if it does.
func (h *held) slot(size uint32) (pos uint64, ok bool) {
	ring := uint64(len(h.j.ring))
	if h.first == h.next && h.tail%ring != 0 {
		// Starting over keeps a quiet guest's writes in warm memory.
		return roundUp(h.tail, ring), true
	}
	pos = h.tail
	if left := ring - pos%ring; left < uint64(size) {
		pos += left
	}
	return pos, pos+uint64(size)-h.head() <= ring
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// room reports whether an entry, laid out, can be added.
func (h *held) room(e *entry) bool {
	_, ok := h.slot(e.size)
	return ok && (h.used+e.charge() <= h.limit || h.first == h.next)
}

// add adds an entry that there is room for. The caller then writes its data and
// pages, and calls seal.
func (h *held) add(e entry) (index uint64, at *entry) {
	pos, _ := h.slot(e.size)
	if pos != h.tail {
		h.j.skip(h.tail)
	}
	if h.first == h.next {
		h.j.word(wordHead).Store(pos)
	}
	e.pos = pos
	h.tail = pos + uint64(e.size)
	h.j.word(wordSeq).Store(max(h.j.word(wordSeq).Load(), e.seq))
	index, at = h.push(e)
	h.j.begin(at)
	return index, at
}

// push notes an entry whose record is at e.pos, or will be.
func (h *held) push(e entry) (uint64, *entry) {
	if h.next-h.first == uint64(len(h.buf)) {
		grown := make([]entry, 2*len(h.buf))
		for i := h.first; i < h.next; i++ {
			grown[i&uint64(len(grown)-1)] = *h.at(i)
		}
		h.buf = grown
	}
	i := h.next
	h.next++
	at := h.at(i)
	*at = e
	h.used += e.charge()
	if !e.done {
		h.count++
	}
	return i, at
}

func (h *held) seal(e *entry) { h.j.seal(e) }

// finish marks an entry as durable, and drops what is durable at the front.
func (h *held) finish(i uint64) {
	e := h.at(i)
	if e.done {
		return
	}
	e.done = true
	h.j.done(e.pos).Store(1)
	h.count--
	for h.first < h.next && h.at(h.first).done {
		h.used -= h.at(h.first).charge()
		h.first++
	}
	h.j.word(wordHead).Store(h.head())
}

// cut forgets every entry from index on.
func (h *held) cut(index uint64) {
	index = max(index, h.first)
	for i := index; i < h.next; i++ {
		e := h.at(i)
		if !e.done {
			h.count--
		}
		h.used -= e.charge()
		// A record that is forgotten must not be found again.
		h.j.done(e.pos).Store(1)
	}
	// The tail does not go back: positions are not given out twice.
	h.next = index
	h.j.word(wordHead).Store(h.head())
}

// recover reads what a former process left and hands each write that is not done
// to each, in order.
func (h *held) recover(each func(index uint64, e *entry) error) error {
	ring := uint64(len(h.j.ring))
	start := h.j.word(wordHead).Load()
	if start%epoch.SectorSize != 0 {
		return fmt.Errorf("the journal of held writes begins at byte %d, which is no record's: it is damaged", start)
	}
	pos := start
	for pos-start < ring {
		e, wrap, ok := h.j.load(pos)
		if !ok {
			break
		}
		if wrap {
			pos = roundUp(pos+1, ring)
			continue
		}
		i, at := h.push(e)
		h.tail = pos + uint64(e.size)
		if !e.done {
			if err := each(i, at); err != nil {
				return err
			}
		}
		pos = h.tail
	}
	h.tail = max(h.tail, start)
	for h.first < h.next && h.at(h.first).done {
		h.used -= h.at(h.first).charge()
		h.first++
	}
	h.j.word(wordHead).Store(h.head())
	return nil
}
