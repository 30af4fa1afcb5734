// Package statustest has what tests of the status endpoint make up, on both sides
// of its package's border.
package statustest

import (
	"context"
	"iter"
	"sync"
)

// Record is a record of events that grows as a test adds to it, from number 1 on.
// E is status.Event, which the package under test itself cannot import from here.
type Record[E any] struct {
	seq func(E) uint64

	mu   sync.Mutex
	all  []E
	more chan struct{} // closed when one is added
}

// NewRecord makes an empty one. seq returns an event's number.
func NewRecord[E any](seq func(E) uint64) *Record[E] {
	return &Record[E]{seq: seq, more: make(chan struct{})}
}

// Add adds the event that next returns for the next number.
func (r *Record[E]) Add(next func(seq uint64) E) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, next(uint64(len(r.all)+1)))
	close(r.more)
	r.more = make(chan struct{})
}

// Since returns at most limit events after number seq, of all guests and kinds.
func (r *Record[E]) Since(seq uint64, _, _ string, limit int) []E {
	r.mu.Lock()
	defer r.mu.Unlock()
	rest := r.all[min(seq, uint64(len(r.all))):]
	return rest[:min(limit, len(rest))]
}

// Newest returns the newest events, at most limit, of all guests and kinds.
func (r *Record[E]) Newest(_, _ string, limit int) []E {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[max(0, len(r.all)-limit):]
}

// Follow yields the events after number seq, as they are added, until ctx ends.
func (r *Record[E]) Follow(ctx context.Context, seq uint64, guest, kind string) iter.Seq[E] {
	return func(yield func(E) bool) {
		for {
			r.mu.Lock()
			more := r.more
			r.mu.Unlock()
			for _, e := range r.Since(seq, guest, kind, 100) {
				if !yield(e) {
					return
				}
				seq = r.seq(e)
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}
}
