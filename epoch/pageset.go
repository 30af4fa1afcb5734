package epoch

import (
	"fmt"
	"math/bits"
)

// PageSet is a set of guest frames, one bit per page of an image of fixed
// size. The zero value is an empty set over an image of no pages; use
// NewPageSet. It is not safe for concurrent use.
type PageSet struct {
	words []uint64
	pages uint64
}

// NewPageSet returns an empty set for an image of the given number of pages.
func NewPageSet(pages uint64) *PageSet {
	return &PageSet{words: make([]uint64, (pages+63)/64), pages: pages}
}

// Pages returns the size of the image in pages, not the size of the set.
func (s *PageSet) Pages() uint64 { return s.pages }

// Add puts one frame into the set. It panics if the frame is outside the
// image: frames that come from outside must be bounded where they are read.
func (s *PageSet) Add(f GFN) {
	s.check(f, 1)
	s.words[f/64] |= 1 << (f % 64)
}

// AddRange puts count frames, starting at first, into the set.
func (s *PageSet) AddRange(first GFN, count uint64) {
	if count == 0 {
		return
	}
	s.check(first, count)
	s.apply(first, count, func(w *uint64, mask uint64) { *w |= mask })
}

// RemoveRange takes count frames, starting at first, out of the set.
func (s *PageSet) RemoveRange(first GFN, count uint64) {
	if count == 0 {
		return
	}
	s.check(first, count)
	s.apply(first, count, func(w *uint64, mask uint64) { *w &^= mask })
}

// Contains reports whether a frame is in the set.
func (s *PageSet) Contains(f GFN) bool {
	return uint64(f) < s.pages && s.words[f/64]&(1<<(f%64)) != 0
}

// Count returns how many frames are in the set.
func (s *PageSet) Count() uint64 {
	var n int
	for _, w := range s.words {
		n += bits.OnesCount64(w)
	}
	return uint64(n)
}

// Empty reports whether the set has no frame.
func (s *PageSet) Empty() bool {
	for _, w := range s.words {
		if w != 0 {
			return false
		}
	}
	return true
}

// Clear takes every frame out of the set.
func (s *PageSet) Clear() { clear(s.words) }

// Fill puts every frame of the image into the set.
func (s *PageSet) Fill() { s.AddRange(0, s.pages) }

// Union puts every frame of t into s. Both must be sets over images of the
// same size.
func (s *PageSet) Union(t *PageSet) {
	if s.pages != t.pages {
		panic(fmt.Sprintf("epoch: union of page sets over %d and %d pages", s.pages, t.pages))
	}
	for i, w := range t.words {
		s.words[i] |= w
	}
}

// Runs calls yield for each run of adjacent frames in ascending order, until
// yield returns false. It is made to be ranged over:
//
//	for first, count := range set.Runs { … }
//
// It allocates nothing. The set must not be changed while it runs.
func (s *PageSet) Runs(yield func(first GFN, count uint64) bool) {
	var start, length uint64
	for i := 0; i < len(s.words); i++ {
		w := s.words[i]
		if w == 0 || w == ^uint64(0) && length > 0 && start+length == uint64(i)*64 {
			if w != 0 {
				length += 64
			}
			continue
		}
		for w != 0 {
			lo := bits.TrailingZeros64(w)
			n := bits.TrailingZeros64(^(w >> lo))
			at := uint64(i)*64 + uint64(lo)
			if length > 0 && start+length == at {
				length += uint64(n)
			} else {
				if length > 0 && !yield(GFN(start), length) {
					return
				}
				start, length = at, uint64(n)
			}
			if lo+n >= 64 {
				break
			}
			w &^= (1<<n - 1) << lo
		}
	}
	if length > 0 {
		yield(GFN(start), length)
	}
}

// TakeInto moves up to limit frames, lowest first, from s into dst and returns
// how many were moved. Both must be sets over images of the same size.
func (s *PageSet) TakeInto(dst *PageSet, limit uint64) uint64 {
	if s.pages != dst.pages {
		panic(fmt.Sprintf("epoch: frames moved between page sets over %d and %d pages", s.pages, dst.pages))
	}
	var moved, end uint64 // every frame of s below end has been moved
	for first, count := range s.Runs {
		count = min(count, limit-moved)
		if count == 0 {
			break
		}
		dst.AddRange(first, count)
		moved, end = moved+count, uint64(first)+count
	}
	s.RemoveRange(0, end)
	return moved
}

// apply runs op on each word that count frames from first touch, with the mask
// of those frames in that word.
func (s *PageSet) apply(first GFN, count uint64, op func(w *uint64, mask uint64)) {
	lo, hi := uint64(first), uint64(first)+count // half open
	for lo < hi {
		end := min(hi, (lo/64+1)*64)
		mask := ^uint64(0) >> (64 - (end - lo)) << (lo % 64)
		op(&s.words[lo/64], mask)
		lo = end
	}
}

func (s *PageSet) check(first GFN, count uint64) {
	if uint64(first) >= s.pages || count > s.pages-uint64(first) {
		panic(fmt.Sprintf("epoch: frames %d+%d outside an image of %d pages", first, count, s.pages))
	}
}
