package diskspeed

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets that are an eighth of a power of two of
// nanoseconds wide: a quantile is at most 12.5% too large.
type histogram struct {
	buckets [64 * 8]uint32
	count   uint64
}

func bucketOf(d time.Duration) int {
	n := uint64(max(d, 8))
	top := bits.Len64(n) - 1 // at least 3
	return top*8 + int(n>>(top-3)&7)
}

// upper is the largest duration of a bucket.
func upper(bucket int) time.Duration {
	top, part := bucket/8, uint64(bucket%8)
	return time.Duration((8+part+1)<<(top-3) - 1)
}

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(d)]++
	h.count++
}

func (h *histogram) merge(other *histogram) {
	for i, n := range &other.buckets {
		h.buckets[i] += n
	}
	h.count += other.count
}

// quantile is the duration that the given part of all does not exceed.
func (h *histogram) quantile(part float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	rank, sum := uint64(part*float64(h.count-1))+1, uint64(0)
	for i, n := range &h.buckets {
		if sum += uint64(n); sum >= rank {
			return upper(i)
		}
	}
	return 0
}
