package epoch

// deltaCache remembers the content of pages the encoder has sent, within a
// fixed amount of memory:
//
//	find: frame → set → the way whose tag names the frame → slot → bytes
//	put:  the same way, or an empty one, or the one unused for longest
//
// It is set-associative: frame modulo the number of sets gives the set, and a
// cache as large as the image therefore never evicts. A page used in this
// epoch or the one before is not evicted for a new one: a working set larger
// than the cache keeps as much of itself as fits, where plain LRU would keep
// nothing that is still there when it comes round again.
//
// Slots are handed out densely and their memory comes in slabs, so a cache
// that is never filled never costs its bound.
type deltaCache struct {
	sets  uint64
	tags  []uint64 // (frame+1)<<stampBits | epoch stamp of last use; 0: empty
	slots []uint32 // slot of each way plus 1; 0: none yet. A way keeps its slot
	slabs [][]byte // slot s is page s%slabPages of slab s/slabPages
	used  uint32   // slots handed out
	stamp uint64   // of the current epoch
}

const (
	cacheWays = 8
	stampBits = 24
	stampMask = 1<<stampBits - 1
	keepFor   = 1 // epochs after its last use in which a page is not evicted
	slabPages = 256
	// cacheEntry is what one page costs: content, tag, slot and its share of
	// the table of slabs.
	cacheEntry = PageSize + 8 + 4 + 3
)

// newDeltaCache returns a cache for an image of the given pages, bounded to
// limit bytes, or nil if that is too little to be of use.
func newDeltaCache(pages, limit uint64) *deltaCache {
	sets := min(limit/(cacheEntry*cacheWays), (pages+cacheWays-1)/cacheWays)
	sets = min(sets, (1<<32-1)/cacheWays)
	if sets == 0 {
		return nil
	}
	return &deltaCache{sets: sets}
}

// nextEpoch makes everything in the cache one epoch older.
func (c *deltaCache) nextEpoch() { c.stamp = (c.stamp + 1) & stampMask }

// forget empties the cache. It keeps the memory for what comes.
func (c *deltaCache) forget() { clear(c.tags) }

// find returns the remembered content of a page, to be read or changed in
// place, or nil.
func (c *deltaCache) find(f GFN) []byte {
	if c.tags == nil {
		return nil
	}
	at := uint64(f) % c.sets * cacheWays
	for i, tag := range c.tags[at : at+cacheWays] {
		if tag>>stampBits == uint64(f)+1 {
			c.tags[at+uint64(i)] = tag&^stampMask | c.stamp
			return c.content(c.slots[at+uint64(i)] - 1)
		}
	}
	return nil
}

// drop forgets one page.
func (c *deltaCache) drop(f GFN) {
	if c.tags == nil {
		return
	}
	at := uint64(f) % c.sets * cacheWays
	for i, tag := range c.tags[at : at+cacheWays] {
		if tag>>stampBits == uint64(f)+1 {
			c.tags[at+uint64(i)] = 0
		}
	}
}

// add remembers a page that find did not find, if there is a place for it.
func (c *deltaCache) add(f GFN, page []byte) {
	if c.tags == nil {
		c.tags = make([]uint64, c.sets*cacheWays)
		c.slots = make([]uint32, c.sets*cacheWays)
		c.slabs = make([][]byte, 0, (c.sets*cacheWays+slabPages-1)/slabPages)
	}
	at := uint64(f) % c.sets * cacheWays
	victim, oldest := at, uint64(0)
	for i, tag := range c.tags[at : at+cacheWays] {
		if tag == 0 {
			victim, oldest = at+uint64(i), stampMask
			break
		}
		if age := (c.stamp - tag) & stampMask; age > oldest {
			victim, oldest = at+uint64(i), age
		}
	}
	if oldest <= keepFor {
		return
	}
	if c.slots[victim] == 0 {
		c.used++
		c.slots[victim] = c.used
	}
	copy(c.content(c.slots[victim]-1), page)
	c.tags[victim] = (uint64(f)+1)<<stampBits | c.stamp
}

// content returns the bytes of a slot.
func (c *deltaCache) content(slot uint32) []byte {
	i := int(slot / slabPages)
	if i == len(c.slabs) {
		pages := min(slabPages, c.sets*cacheWays-uint64(slot))
		c.slabs = append(c.slabs, make([]byte, pages*PageSize))
	}
	at := int(slot%slabPages) * PageSize
	return c.slabs[i][at : at+PageSize : at+PageSize]
}
