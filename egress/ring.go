package egress

import (
	"encoding/binary"
	"sort"

	"understudy/epoch"
)

// ring holds frames in the order in which the guest sent them, in one piece of
// memory that is used round and round: add at the tail, take from the head.
// Positions count records from the beginning of time, so that "everything up to
// here" is one number; the records before `free` may leave.
//
// A record is the frame's length (4 bytes, little endian), the frame, and
// padding to 8 bytes. A length of skip sends the reader back to the start.
type ring struct {
	buf        []byte
	head, tail int   // offsets of the first record and of the next
	used       int64 // bytes from head to tail, skipped ones included
	bytes      int64 // bytes of frames
	first      uint64
	next       uint64 // position of the next record
	free       uint64 // position of the first record that may not leave
	seals      []seal // ascending in both fields
}

// seal says that the records before pos belong to epochs up to n.
type seal struct {
	n   epoch.Number
	pos uint64
}

const (
	recordHeader = 4
	recordRoom   = recordHeader + MaxFrame + 1 + 7 // what slot needs at the tail
	skip         = ^uint32(0)
	// minRing is the smallest ring that can always take a frame once empty.
	minRing = 2 * recordRoom
)

func newRing(size int) *ring { return &ring{buf: make([]byte, size&^7)} }

// slot returns room for one frame at the tail, or nil when the ring is full.
func (r *ring) slot() []byte {
	if r.frames() == 0 {
		// Starting over keeps a quiet guest's frames in warm memory.
		r.head, r.tail, r.used = 0, 0, 0
	}
	if len(r.buf)-r.tail < recordRoom && (r.tail > r.head || r.used == 0) {
		if r.head < recordRoom {
			return nil
		}
		if len(r.buf)-r.tail >= recordHeader {
			binary.LittleEndian.PutUint32(r.buf[r.tail:], skip)
		}
		r.used += int64(len(r.buf) - r.tail)
		r.tail = 0
	}
	if r.used > 0 && r.tail <= r.head && r.head-r.tail < recordRoom {
		return nil
	}
	return r.buf[r.tail+recordHeader : r.tail+recordHeader+MaxFrame+1]
}

// add makes a record of the n bytes that were put into slot.
func (r *ring) add(n int) {
	binary.LittleEndian.PutUint32(r.buf[r.tail:], uint32(n))
	size := recordSize(n)
	r.tail += size
	r.used += int64(size)
	r.bytes += int64(n)
	r.next++
}

func recordSize(n int) int { return (recordHeader + n + 7) &^ 7 }

func (r *ring) frames() int { return int(r.next - r.first) }

// seal notes that all records so far belong to epochs up to n. Of two seals at
// one position the lower number is enough.
func (r *ring) seal(n epoch.Number) {
	if k := len(r.seals); k > 0 && r.seals[k-1].pos == r.next || r.next == r.free {
		return
	}
	r.seals = append(r.seals, seal{n, r.next})
}

// release lets the records of epochs up to n leave.
func (r *ring) release(n epoch.Number) {
	k := sort.Search(len(r.seals), func(i int) bool { return r.seals[i].n > n })
	if k == 0 {
		return
	}
	r.free = r.seals[k-1].pos
	r.seals = r.seals[:copy(r.seals, r.seals[k:])]
}

// releaseAll lets every record leave.
func (r *ring) releaseAll() {
	r.free = r.next
	r.unseal()
}

// unseal makes the records that may not leave wait for the next seal.
func (r *ring) unseal() { r.seals = r.seals[:0] }

// view appends to batch up to max records that may leave. They stay in place
// until drop.
func (r *ring) view(batch [][]byte, max int) [][]byte {
	at := r.head
	for pos := r.first; pos < r.free && len(batch) < max; pos++ {
		var frame []byte
		frame, at = r.record(at)
		batch = append(batch, frame)
	}
	return batch
}

// record returns the frame at offset at and the offset behind it.
func (r *ring) record(at int) (frame []byte, after int) {
	if len(r.buf)-at < recordHeader || binary.LittleEndian.Uint32(r.buf[at:]) == skip {
		at = 0
	}
	n := int(binary.LittleEndian.Uint32(r.buf[at:]))
	return r.buf[at+recordHeader : at+recordHeader+n], at + recordSize(n)
}

// drop forgets the first n records.
func (r *ring) drop(n int) {
	for range n {
		frame, after := r.record(r.head)
		if after-recordSize(len(frame)) != r.head {
			r.used -= int64(len(r.buf) - r.head)
		}
		r.used -= int64(recordSize(len(frame)))
		r.bytes -= int64(len(frame))
		r.head = after
		r.first++
	}
}

// discard forgets everything.
func (r *ring) discard() {
	r.first, r.free = r.next, r.next
	r.head, r.tail, r.used, r.bytes = 0, 0, 0, 0
	r.unseal()
}
