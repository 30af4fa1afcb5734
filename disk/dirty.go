package disk

import (
	"math/bits"
	"sync/atomic"

	"understudy/epoch"
)

// This file remembers the guest pages that were written through our own mapping,
// which the hypervisor's dirty tracking does not see (RULES 15). Marks come
// from the front ends' goroutines after they have written, the capture collects
// them while they are stopped.

// dirtyPages is a bitmap of pages under a bitmap of its words, so that a capture
// of a large guest looks only where something is.
type dirtyPages struct {
	pages   uint64
	words   []atomic.Uint64 // a bit for each page
	summary []atomic.Uint64 // a bit for each word
}

func newDirtyPages(pages uint64) dirtyPages {
	words := (pages + 63) / 64
	return dirtyPages{pages: pages, words: make([]atomic.Uint64, words), summary: make([]atomic.Uint64, (words+63)/64)}
}

// mark notes the pages that length bytes, at the offset at of page, are in.
// Pages outside the image are no one's.
func (d *dirtyPages) mark(page epoch.GFN, at, length int) {
	if length <= 0 || at < 0 {
		return
	}
	first := uint64(page) + uint64(at)/epoch.PageSize
	last := uint64(page) + uint64(at+length-1)/epoch.PageSize
	for p := first; p <= last && p < d.pages; p++ {
		set(&d.words[p/64], p%64)
		set(&d.summary[p/4096], p/64%64)
	}
}

// set sets a bit, and leaves the cache line alone if it is set.
func set(w *atomic.Uint64, bit uint64) {
	if w.Load()&(1<<bit) == 0 {
		w.Or(1 << bit)
	}
}

// collect moves the marks into set.
func (d *dirtyPages) collect(set *epoch.PageSet) {
	for i := range d.summary {
		if d.summary[i].Load() == 0 {
			continue
		}
		for s := d.summary[i].Swap(0); s != 0; s &= s - 1 {
			w := uint64(i)*64 + uint64(bits.TrailingZeros64(s))
			for b := d.words[w].Swap(0); b != 0; b &= b - 1 {
				set.Add(epoch.GFN(w*64 + uint64(bits.TrailingZeros64(b))))
			}
		}
	}
}
