package transport

// Buffers for messages: taken when a message is queued or announced, given back
// when it was written or released. The pool keeps no more bytes than its limit;
// what is beyond it goes to the garbage collector.

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// minBuffer is the smallest buffer, in bytes; sizes are powers of two from it.
const minBuffer = 512

// buffer is a reusable piece of memory.
type buffer struct {
	data  []byte // its length is the class's size
	used  int    // bytes filled; the owner's business
	class int
	// turn counts its lives, so that releasing a message twice is harmless.
	turn atomic.Uint64
}

type bufferPool struct {
	mu    sync.Mutex
	free  [][]*buffer // by class
	kept  int         // bytes in free
	limit int
}

// newBufferPool makes a pool for buffers of up to largest bytes that keeps up
// to limit bytes.
func newBufferPool(largest, limit int) *bufferPool {
	return &bufferPool{free: make([][]*buffer, classOf(largest)+1), limit: limit}
}

func classOf(size int) int {
	if size <= minBuffer {
		return 0
	}
	return bits.Len(uint(size-1)) - bits.Len(uint(minBuffer-1))
}

// get returns a buffer with room for a payload of size bytes and a frame header.
// size must not be more than the
// pool's largest.
func (p *bufferPool) get(size int) *buffer {
	class := classOf(size)
	p.mu.Lock()
	if n := len(p.free[class]); n > 0 {
		b := p.free[class][n-1]
		p.free[class] = p.free[class][:n-1]
		p.kept -= len(b.data)
		p.mu.Unlock()
		b.used = 0
		return b
	}
	p.mu.Unlock()
	return &buffer{data: make([]byte, headerSize+minBuffer<<class), class: class}
}

// put gives a buffer back, if turn is still the one it was handed out with.
func (p *bufferPool) put(b *buffer, turn uint64) {
	if !b.turn.CompareAndSwap(turn, turn+1) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kept+len(b.data) <= p.limit {
		p.kept += len(b.data)
		p.free[b.class] = append(p.free[b.class], b)
	}
}
