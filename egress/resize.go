package egress

import "fmt"

// Resize changes the room for held frames to so many bytes, at least
// MinHeldBytes, while the gate is at work. Frames that are held stay in order and
// in their epochs. A room that does not take what is held is refused, and nothing
// changes; since a guest that sends keeps some of it full, it may be asked for
// again.
func (g *Gate) Resize(bytes int) error {
	if bytes < MinHeldBytes {
		return fmt.Errorf("egress gate: %d bytes for held frames: want at least %d", bytes, MinHeldBytes)
	}
	g.out.Lock() // a batch that is being written lies in the ring
	defer g.out.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.ring.buf) == bytes&^7 {
		return nil
	}
	ring, ok := g.ring.resized(bytes)
	if !ok {
		return fmt.Errorf("egress gate: %d frames are held, which %d bytes do not take just now", g.ring.frames(), bytes)
	}
	g.ring = ring
	g.pressed = false
	signal(g.room)
	signal(g.kick)
	return nil
}

// resized returns a ring of another size with the same records at the same
// positions, or false if it does not take them.
func (r *ring) resized(size int) (*ring, bool) {
	n := newRing(size)
	n.first, n.next = r.first, r.first
	at := r.head
	for pos := r.first; pos < r.next; pos++ {
		var frame []byte
		frame, at = r.record(at)
		slot := n.slot()
		if slot == nil {
			return nil, false
		}
		copy(slot, frame)
		n.add(len(frame))
	}
	n.free, n.seals = r.free, r.seals
	return n, true
}
