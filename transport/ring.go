package transport

// The receiving order. Messages arrive on several connections, each of which
// keeps its own order; ring gives them back in the order of their numbers. It
// is the whole memory of a session's receiving side: what may wait in it is
// bounded by the window, and accept refuses what the peer has no credit for,
// before a byte is allocated for it.

import "fmt"

// arrived is a message that waits for its turn. A nil buffer is an empty slot.
type arrived struct {
	buf    *buffer
	length int
	kind   uint8
}

// ring is used under the lock of its session's receiving side.
type ring struct {
	slots    []arrived // a power of two of them
	next     uint64    // number of the message to hand out next
	lastOf   []uint64  // per lane: number after that of its last message
	window   uint64
	received uint64 // cost of all messages accepted
	consumed uint64 // cost of all messages handed out
}

func newRing(lanes int, window uint64) *ring {
	return &ring{slots: make([]arrived, 64), lastOf: make([]uint64, lanes), window: window}
}

// accept decides, from its header, whether a message may come now.
func (r *ring) accept(lane int, h header) error {
	cost := uint64(h.length) + messageCost
	switch {
	case h.sequence < r.lastOf[lane]:
		return fmt.Errorf("%w: message %d again, or out of order: connection %d was at %d", ErrBadFrame, h.sequence, lane, r.lastOf[lane])
	case h.sequence < r.next || r.slot(h.sequence).buf != nil:
		return fmt.Errorf("%w: message %d again, on connection %d", ErrBadFrame, h.sequence, lane)
	case h.sequence-r.next >= r.window/messageCost:
		return fmt.Errorf("%w: message %d while %d is the next: a gap wider than the window", ErrBadFrame, h.sequence, r.next)
	case r.received-r.consumed+cost > r.window:
		return fmt.Errorf("%w: message %d of %d bytes without credit for it", ErrBadFrame, h.sequence, h.length)
	}
	r.received += cost
	r.lastOf[lane] = h.sequence + 1
	return nil
}

// slot returns the slot of a message in the window, or an empty one if the ring
// does not reach that far yet.
func (r *ring) slot(sequence uint64) arrived {
	if sequence-r.next >= uint64(len(r.slots)) {
		return arrived{}
	}
	return r.slots[sequence&uint64(len(r.slots)-1)]
}

// put stores an accepted message and reports whether it is the next one.
func (r *ring) put(sequence uint64, a arrived) (isNext bool) {
	for sequence-r.next >= uint64(len(r.slots)) {
		r.grow()
	}
	r.slots[sequence&uint64(len(r.slots)-1)] = a
	return sequence == r.next
}

func (r *ring) grow() {
	bigger := make([]arrived, 2*len(r.slots))
	for i := range uint64(len(r.slots)) {
		at := r.next + i
		bigger[at&uint64(len(bigger)-1)] = r.slots[at&uint64(len(r.slots)-1)]
	}
	r.slots = bigger
}

// take hands out the next message, if it is there.
func (r *ring) take() (arrived, bool) {
	at := &r.slots[r.next&uint64(len(r.slots)-1)]
	a := *at
	if a.buf == nil {
		return arrived{}, false
	}
	*at = arrived{}
	r.next++
	r.consumed += uint64(a.length) + messageCost
	return a, true
}

// gap reports the message that cannot come any more: every connection has
// passed it. Messages that are accepted but not yet whole count as passed by
// their own connection only, so the caller asks after each put.
func (r *ring) gap() error {
	low := r.lastOf[0]
	for _, n := range r.lastOf[1:] {
		low = min(low, n)
	}
	if low <= r.next {
		return nil
	}
	// Every connection is past next. It is missing unless it is stored or still
	// being read, which is when one of them is exactly behind it.
	for _, n := range r.lastOf {
		if n == r.next+1 {
			return nil
		}
	}
	if r.slot(r.next).buf != nil {
		return nil
	}
	return fmt.Errorf("%w: message %d is missing: every connection is past it", ErrBadFrame, r.next)
}
