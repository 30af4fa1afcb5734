package disk

import (
	"encoding/binary"
	"fmt"

	"understudy/epoch"
)

// This file is the held log: the writes that were accepted and are not durable
// on a store yet (entries.go). Their bytes are copied once, into the journal's
// ring (journal.go), and read, sent and flushed from there. What is durable is
// marked in the journal, too.

// held is the log. The Set's lock protects it.
type held struct {
	*entries
	j     *journal
	limit uint64 // of charge
	tail  uint64 // position of the next record
}

func newHeld(j *journal, limit uint64) *held {
	return &held{entries: newEntries(), j: j, limit: limit}
}

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

func (h *held) seal(e *entry) { h.j.seal(e) }

// finish marks an entry as durable, and drops what is durable at the front.
func (h *held) finish(i uint64) {
	e := h.at(i)
	if e.done {
		return
	}
	h.j.done(e.pos).Store(1)
	h.entries.finish(i)
	h.j.word(wordHead).Store(h.head())
}

// cut forgets every entry from index on. The tail does not go back: positions are
// not given out twice.
func (h *held) cut(index uint64) {
	for i := max(index, h.first); i < h.next; i++ {
		// A record that is forgotten must not be found again.
		h.j.done(h.at(i).pos).Store(1)
	}
	h.entries.cut(index)
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
	h.trim()
	h.j.word(wordHead).Store(h.head())
	return nil
}
