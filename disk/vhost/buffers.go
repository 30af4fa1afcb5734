package vhost

// This file is the memory that reads go through on their way to the guest: a
// pool with a limit for the whole device. A buffer is taken under a ring's
// lock and never waited for there.

import (
	"math/bits"
	"sync"
)

const smallestBuffer = 12 // bits: 4 KiB

// budget is the pool.
type budget struct {
	limit int

	mu     sync.Mutex
	cond   sync.Cond
	used   int
	cached int
	free   [32][][]byte // by the logarithm of the size
}

func newBudget(limit int) *budget {
	b := &budget{limit: limit}
	b.cond.L = &b.mu
	return b
}

// class is the logarithm of the size of the buffers for n bytes.
func class(n int) int { return max(bits.Len(uint(n-1)), smallestBuffer) }

// take returns a buffer of n bytes, or nil if there is no room now. A lone
// request always gets one.
func (b *budget) take(n int) []byte {
	c := class(n)
	size := 1 << c
	b.mu.Lock()
	defer b.mu.Unlock()
	if last := len(b.free[c]) - 1; last >= 0 {
		p := b.free[c][last]
		b.free[c] = b.free[c][:last]
		b.cached -= size
		b.used += size
		return p[:n]
	}
	if b.used > 0 && b.used+size > b.limit {
		return nil
	}
	if b.used+b.cached+size > b.limit { // buffers of other sizes make way
		clear(b.free[:])
		b.cached = 0
	}
	b.used += size
	return make([]byte, n, size)
}

// force returns a buffer of n bytes, whatever the limit.
func (b *budget) force(n int) []byte {
	if p := b.take(n); p != nil {
		return p
	}
	size := 1 << class(n)
	b.mu.Lock()
	b.used += size
	b.mu.Unlock()
	return make([]byte, n, size)
}

// give returns a buffer.
func (b *budget) give(p []byte) {
	size := cap(p)
	c := class(size)
	b.mu.Lock()
	b.used -= size
	if b.used+b.cached+size <= b.limit {
		b.free[c] = append(b.free[c], p[:0])
		b.cached += size
	}
	b.mu.Unlock()
	b.cond.Broadcast()
}

// room waits until a buffer of n bytes may be had, or give reports true;
// whoever makes that so calls wake.
func (b *budget) room(n int, give func() bool) {
	size := 1 << class(n)
	b.mu.Lock()
	for b.used > 0 && b.used+size > b.limit && len(b.free[class(n)]) == 0 && !give() {
		b.cond.Wait()
	}
	b.mu.Unlock()
}

func (b *budget) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cond.Broadcast()
}
