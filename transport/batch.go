package transport

// What waits to be written: buffers that hold one or more whole frames. Headers
// are drafted here (kind, sequence, length) and sealed by the writer, since only
// it knows the lane, and so that the checksums are computed in parallel.

import "encoding/binary"

// appendFrame drafts a data frame behind what b holds. There must be room.
func (b *buffer) appendFrame(kind uint8, payload []byte) {
	frame := b.data[b.used : b.used+headerSize+len(payload)]
	frame[4] = kind
	binary.LittleEndian.PutUint32(frame[24:], uint32(len(payload)))
	copy(frame[headerSize:], payload)
	b.used += len(frame)
}

// stamp numbers the frame drafted at offset at.
func (b *buffer) stamp(at int, sequence uint64) {
	binary.LittleEndian.PutUint64(b.data[at+16:], sequence)
}

// batches is a queue of buffers. It grows as needed: credit bounds what is in
// it.
type batches struct {
	slots []*buffer // a power of two of them, or none
	first int
	count int
}

func (q *batches) push(b *buffer) {
	if q.count == len(q.slots) {
		bigger := make([]*buffer, max(16, 2*len(q.slots)))
		for i := range q.count {
			bigger[i] = q.slots[(q.first+i)&(len(q.slots)-1)]
		}
		q.slots, q.first = bigger, 0
	}
	q.slots[(q.first+q.count)&(len(q.slots)-1)] = b
	q.count++
}

func (q *batches) pop() *buffer {
	b := q.slots[q.first]
	q.slots[q.first] = nil
	q.first = (q.first + 1) & (len(q.slots) - 1)
	q.count--
	return b
}

// tail is the buffer queued last, nil if none waits.
func (q *batches) tail() *buffer {
	if q.count == 0 {
		return nil
	}
	return q.slots[(q.first+q.count-1)&(len(q.slots)-1)]
}
