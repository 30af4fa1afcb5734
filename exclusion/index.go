// Package exclusion decides which pages need not travel: those whose content
// is on a disk that the backup can read, and those that equal another page of
// the same epoch. It is pure: no goroutine, no clock, no I/O.
//
// Knowledge flows into an Index from the disks as they serve the guest, and out
// of it as an epoch is encoded:
//
//	write accepted ─────────> extents it overlaps are dead, at once
//	read landed ───┐ alone? ┌> extent (disk, sector) → fingerprint
//	write done ────┴────────┤        ↑ page → extent (a hint), fingerprint → extent
//	nobody writes it: Keep ─┘
//	Encoding(n).Exclude(page, bytes): hint, content index → Valid (rule.go)
//	       └─> reference, noted as outstanding ──> Materialised(n): forgotten
//	                                          ├──> overwritten while not held: page dirty again
//	                                          └──> Void: pages dirty again
package exclusion

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"understudy/epoch"
)

// Config bounds an Index.
type Config struct {
	// Pages is the size of the guest's image.
	Pages uint64
	// Key is the key of the fingerprints in references; the backup must know it.
	Key epoch.PrintKey
	// MaxBlocks bounds the extents that are known; 0: one for each page of the
	// image. Each costs 52 bytes.
	MaxBlocks int
	// MaxOutstanding bounds the references that the backup has yet to fill; 0:
	// one for each page of the image. Each costs 44 bytes.
	MaxOutstanding int
}

// Index is what is known to be on a guest's disks. Its methods may be called
// from several goroutines. It allocates nothing after NewIndex but one word per
// Encoding, and in Forget.
//
// Three promises of its callers make it true, and nothing in here can check
// them:
//
//   - Accepted is called for every change of a disk, from whatever source,
//     before any of it reaches the disk and before the guest is told.
//   - Content is a private copy of the very bytes that came from or went to the
//     store; never guest memory, which another vCPU may change between the
//     disk's access and ours.
//   - ReadLanded is called only for sectors that all came from the store: none
//     of them was in a held write as the read began.
type Index struct {
	cfg Config

	mu          sync.Mutex
	recent      recent
	blocks      blocks
	hints       []uint32 // for each page: name of a slot, freshHint
	outstanding outstanding
	redirtied   *epoch.PageSet
	redirty     bool // redirtied is not empty
	named       *epoch.PageSet
	unverified  [epoch.MaxDisks]unverified
	copies      copies
	life        uint64 // changes as what was emitted is void
	counts      [reasons]uint64
}

// freshHint marks a hint that came since its page was last encoded.
const freshHint = 1 << 31

// maxBound bounds MaxBlocks and MaxOutstanding, whose names have 31 bits.
const maxBound = 1<<30 - 1

// NewIndex returns an index that knows nothing, of disks that are verified. It
// panics if the image is empty or larger than epoch.MaxPages.
func NewIndex(cfg Config) *Index {
	if cfg.Pages == 0 || cfg.Pages > epoch.MaxPages {
		panic(fmt.Sprintf("exclusion: index for an image of %d pages", cfg.Pages))
	}
	bound := func(n int) int {
		if n <= 0 {
			n = int(min(cfg.Pages, maxBound))
		}
		return min(n, maxBound)
	}
	cfg.MaxBlocks, cfg.MaxOutstanding = bound(cfg.MaxBlocks), bound(cfg.MaxOutstanding)
	ix := &Index{
		cfg:       cfg,
		recent:    newRecent(),
		blocks:    newBlocks(cfg.MaxBlocks),
		hints:     make([]uint32, cfg.Pages),
		redirtied: epoch.NewPageSet(cfg.Pages),
		named:     epoch.NewPageSet(cfg.Pages),
		copies:    newCopies(cfg.Pages),
	}
	ix.outstanding = newOutstanding(cfg.MaxOutstanding, ix.blocks.seed)
	return ix
}

// Accepted says that a write, discard or write-zeroes has been accepted. From
// here on nothing is known of those sectors. passing: it reaches the disk
// without waiting for any acknowledgement; then pages whose outstanding
// reference it overlaps become dirty again, and Landed must be called when it
// is over: until then nothing is learnt of those sectors.
func (ix *Index) Accepted(disk epoch.DiskID, sector uint64, sectors uint32, passing bool) (ticket uint64) {
	from, to := span(sector, uint64(sectors))
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ticket = ix.recent.accept(disk, from, to, passing)
	if from == to {
		return ticket
	}
	ix.blocks.overwrite(disk, from, to)
	if passing {
		ix.overwritten(disk, from, to)
	}
	return ticket
}

// overwritten makes the pages dirty again whose outstanding references name one
// of these sectors.
func (ix *Index) overwritten(disk epoch.DiskID, from, to uint64) {
	before := ix.outstanding.live
	ix.outstanding.overwritten(disk, from, to, ix.redirtied)
	ix.redirty = ix.redirty || ix.outstanding.live != before
}

// Landed says that a passing write is over: the store has all of it, or it
// failed and nothing more of it will reach the store. It must be called exactly
// once for each ticket of a passing write, after its calls of WriteDone. Without
// it two writes of the same sectors under way at once, or a read beside a write,
// would leave the index believing in one of two contents.
func (ix *Index) Landed(ticket uint64) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.recent.landed(ticket)
}

// ReadBegins is called before a read of the store begins.
func (ix *Index) ReadBegins() (ticket uint64) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return ix.recent.begin()
}

// ReadLanded says that a read has put PageSize bytes from sector on into page:
// content, as the store gave it. NoPage as the page: the content is on the disk,
// and that is all.
func (ix *Index) ReadLanded(ticket uint64, disk epoch.DiskID, sector uint64, page epoch.GFN, content []byte) {
	ix.insert(ticket, disk, sector, page, content)
}

// WriteDone says that PageSize bytes of a passing write, whose ticket Accepted
// gave, have reached the store: content, from page.
func (ix *Index) WriteDone(ticket uint64, disk epoch.DiskID, sector uint64, page epoch.GFN, content []byte) {
	ix.insert(ticket, disk, sector, page, content)
}

func (ix *Index) insert(ticket uint64, disk epoch.DiskID, sector uint64, page epoch.GFN, content []byte) {
	zero := isZero(content)
	var print epoch.Fingerprint
	if !zero {
		print = ix.cfg.Key.Of(content)
	}
	from, to := span(sector, epoch.PageSectors)
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if !zero && ix.recent.alone(ticket, disk, from, to) {
		ix.know(disk, sector, page, print)
	}
}

// Flushed says that PageSize bytes of a held write have reached the store:
// content, from page. The caller knows, and keeps true by a lock of its own
// until this returns, that no newer write has been accepted over these sectors
// and that no other is under way.
func (ix *Index) Flushed(disk epoch.DiskID, sector uint64, page epoch.GFN, content []byte) {
	if isZero(content) {
		return
	}
	print := ix.cfg.Key.Of(content)
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.know(disk, sector, page, print)
}

// Keep says that PageSize bytes from sector on are content, of a disk that
// nobody writes to: Forget leaves it, and no other extent gets its place. At most
// a quarter of MaxBlocks can be kept; it reports false when that many are. Zeros
// need no place. Accepted ends it.
func (ix *Index) Keep(disk epoch.DiskID, sector uint64, content []byte) bool {
	if disk >= epoch.MaxDisks {
		return false
	}
	if isZero(content) {
		return true
	}
	print := ix.cfg.Key.Of(content)
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return ix.blocks.keep(disk, sector, print)
}

// know notes what is on a disk. Zeros are not worth a place: zero pages travel
// for nothing.
func (ix *Index) know(disk epoch.DiskID, sector uint64, page epoch.GFN, print epoch.Fingerprint) {
	if disk >= epoch.MaxDisks {
		return
	}
	name := ix.blocks.put(disk, sector, print)
	if uint64(page) < ix.cfg.Pages {
		ix.hints[page] = name | freshHint
		ix.named.Add(page)
	}
}

// SetVerified says whether the other host's copy of the sectors from..to is
// known to equal ours (the replicated store). Pages with an outstanding
// reference to what is not become dirty again.
func (ix *Index) SetVerified(disk epoch.DiskID, from, to uint64, verified bool) {
	if disk >= epoch.MaxDisks || from >= to {
		return
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.unverified[disk].set(from, to, verified)
	if !verified {
		ix.overwritten(disk, from, to)
	}
}

// Forget drops all that is known of the disks but what Keep was told: somebody
// else may have written to them. What is outstanding stays so.
func (ix *Index) Forget() {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.blocks.forget()
	clear(ix.hints)
	ix.recent.floor = ix.recent.last // what is under way now began before
}

// Redirtied moves into set the pages that must be sent again. The image it is
// over may be smaller than Config.Pages says, which is known before the guest is.
func (ix *Index) Redirtied(set *epoch.PageSet) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.redirty {
		move(set, ix.redirtied)
		ix.redirty = false
	}
}

// Named moves into set the pages for which traffic has named a block since the
// last call: they may hold what is on a disk. set may be as Redirtied says.
func (ix *Index) Named(set *epoch.PageSet) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	move(set, ix.named)
}

// move moves pages to a set that may be over a smaller image.
func move(to, from *epoch.PageSet) {
	for first, count := range from.Runs {
		if uint64(first) < to.Pages() {
			to.AddRange(first, min(count, to.Pages()-uint64(first)))
		}
	}
	from.Clear()
}

// span returns the sectors of a request as from..to, without overflow.
func span(sector, sectors uint64) (from, to uint64) {
	return sector, sector + min(sectors, math.MaxUint64-sector)
}

// isZero reports whether a page is all zeros; mostly its first word decides.
func isZero(page []byte) bool {
	return len(page) >= 8 && binary.LittleEndian.Uint64(page) == 0 && bytes.Equal(page[8:], page[:len(page)-8])
}
