package epoch

import "testing"

func held(c *deltaCache) (bytes uint64) {
	for _, s := range c.slabs {
		bytes += uint64(cap(s))
	}
	return bytes + 8*uint64(cap(c.tags)) + 4*uint64(cap(c.slots)) + 24*uint64(cap(c.slabs))
}

func TestDeltaCacheKeepsItsBound(t *testing.T) {
	page := make([]byte, PageSize)
	for _, limit := range []uint64{0, 1, cacheWays*cacheEntry - 1, cacheWays * cacheEntry, 300_000, 3 << 20, 1<<23 + 12345} {
		const pages = 4000
		c := newDeltaCache(pages, limit)
		if limit < cacheWays*cacheEntry {
			if c != nil {
				t.Errorf("a cache of %d bytes holds pages", limit)
			}
			continue
		}
		for range 6 {
			c.nextEpoch()
			for f := GFN(0); f < pages; f++ {
				if c.find(f) == nil {
					c.add(f, page)
				}
			}
		}
		if got := held(c); got > limit {
			t.Errorf("a cache bounded to %d bytes holds %d", limit, got)
		}
		if got := held(c); got < limit*8/10 {
			t.Errorf("a cache bounded to %d bytes makes use of %d only", limit, got)
		}
	}
}

func TestDeltaCacheTakesMemoryAsItFills(t *testing.T) {
	c := newDeltaCache(1<<20, 1<<30)
	if held(c) != 0 {
		t.Errorf("an empty cache holds %d bytes", held(c))
	}
	for i := range GFN(100) {
		c.add(i*7919, make([]byte, PageSize)) // scattered frames, one slab
	}
	if len(c.slabs) != 1 {
		t.Errorf("100 pages take %d slabs, want 1", len(c.slabs))
	}
}

// A working set larger than the cache keeps what fits; one that has moved on
// makes room.
func TestDeltaCacheKeepsPartOfALargeWorkingSet(t *testing.T) {
	const size = 800
	c := newDeltaCache(1<<20, size*cacheEntry)
	page := make([]byte, PageSize)
	walk := func(from GFN, count uint64) (hits int) {
		c.nextEpoch()
		for f := from; f < from+GFN(count); f++ {
			if c.find(f) != nil {
				hits++
			} else {
				c.add(f, page)
			}
		}
		return hits
	}
	walk(0, 2*size)
	if hits := walk(0, 2*size); hits < size*9/10 {
		t.Errorf("%d hits in a set of %d twice the cache", hits, 2*size)
	}
	for range keepFor + 2 {
		walk(100_000, size)
	}
	if hits := walk(100_000, size); hits < size*9/10 {
		t.Errorf("%d hits after the working set of %d moved", hits, size)
	}
}

func TestDeltaCacheForgetsAndDrops(t *testing.T) {
	c := newDeltaCache(100, 1<<20)
	c.drop(3) // before anything was remembered
	page := make([]byte, PageSize)
	page[0] = 9
	c.add(3, page)
	c.add(4, page)
	if got := c.find(3); got == nil || got[0] != 9 {
		t.Fatal("page 3 is not remembered")
	}
	c.drop(3)
	if c.find(3) != nil || c.find(4) == nil {
		t.Error("dropping page 3 dropped another, or nothing")
	}
	c.forget()
	if c.find(4) != nil {
		t.Error("page 4 outlived forget")
	}
}
