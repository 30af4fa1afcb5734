// Package rebuild keeps account of the pages of an image that were left out of
// its checkpoints, and brings them back from the disks that they are on: at the
// backup, at a takeover, and when a checkpoint file is restored.
//
//	epoch applied: Supersede (what newer content replaces), Add (what was left out)
//	        │
//	        ▼            Run, FillAll: all, in the order of the disk
//	     entries ─fill─> ReadPages:     those that are about to be read
//	        │            BeforeOverwrite: those whose block is about to go
//	        │              read → fingerprint → still wanted? → image
//	        ▼
//	     Filler: once the image may be run, the hypervisor asks for pages and
//	     puts them in; what BeforeOverwrite has to save is stashed in memory
//
// It is the second half of guarantee 4: a reference is filled before its block
// is overwritten, and a block that is not what it should be is an error that is
// seen.
//
// Locking. One mutex guards the entries; it is never held over a read of a disk
// or a write of the image. Whoever fills an entry claims it first: stateReading
// lets everybody else take the entry away (the fill then finds it gone and drops
// what it read), stateWriting makes them wait. So newer content is never
// overwritten by an older fill: Supersede returns when no write of those pages
// is under way, and none can begin after it.
package rebuild

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"understudy/epoch"
)

// Blocks reads disks as of the last commit.
type Blocks interface {
	// ReadSectors fills dst, a multiple of epoch.SectorSize bytes, with what the
	// disk holds from sector on. It may be called from several goroutines.
	ReadSectors(disk epoch.DiskID, sector uint64, dst []byte) error
}

// Config says what a Table works with.
type Config struct {
	Pages  uint64         // size of the image
	Key    epoch.PrintKey // of the fingerprints in references
	Blocks Blocks
	// Write puts whole pages into the image, Read gets them. They may be called
	// from several goroutines, Write never twice for one page at a time.
	Write func(first epoch.GFN, data []byte) error
	Read  func(first epoch.GFN, dst []byte) error
	// Limit is the number of references that are not filled from which on Room
	// waits; 0: one for each page. One page has at most one, of about 80 bytes.
	Limit int
	// Notify, if not nil, is called by Run when Through has advanced.
	Notify func(through epoch.Number)
	Log    *slog.Logger // nil: none
}

// Table is the account. Its methods may be called from several goroutines;
// those that tell of an epoch (Supersede, Add) come from one, in order.
type Table struct {
	cfg Config

	mu      sync.Mutex
	changed sync.Cond // of mu: an entry changed its state, or went
	of      []uint32  // for each page its entry's name; 0: none
	entries []entry
	free    []uint32 // names of entries not in use
	heads   []uint32 // chains of entries by the aligned block they begin in
	seed    uint64
	todo    []claim // for Run: what became pending, in no order
	ages    []age   // entries per epoch, ascending; the first has some
	newest  epoch.Number
	missing int // entries
	writing int // entries in stateWriting
	bad     int // entries in stateBad
	whole   bool
	lazy    bool // a Filler was taken: the image is not ours to write
	buffers sync.Pool
}

// entry is a page that is not in the image. Its name is its index plus one; 0
// is none.
type entry struct {
	ref        epoch.Reference
	epoch      epoch.Number
	stash      []byte // its content, if it was read and could not be put into the image
	next, prev uint32 // in its chain
	use        uint32 // how often this entry has been given back
	state      state
}

type state uint8

const (
	stateFree state = iota
	statePending
	stateReading
	stateWriting
	stateBad // the block is not what the reference says
)

// age counts the entries of one epoch.
type age struct {
	epoch epoch.Number
	left  int
}

// claim names an entry as it was when the claim was made.
type claim struct {
	name, use uint32
	ref       epoch.Reference
	stash     []byte
}

// maxRead bounds one read of a disk, in bytes.
const maxRead = 1 << 20

// New returns a table for an image that lacks nothing.
func New(cfg Config) *Table {
	if cfg.Pages == 0 || cfg.Pages > epoch.MaxPages {
		panic(fmt.Sprintf("rebuild: table for an image of %d pages", cfg.Pages))
	}
	if cfg.Limit <= 0 {
		cfg.Limit = int(min(cfg.Pages, math.MaxInt32))
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	size := 16
	for size < cfg.Limit {
		size *= 2
	}
	t := &Table{cfg: cfg, of: make([]uint32, cfg.Pages), heads: make([]uint32, size), seed: rand.Uint64()}
	t.changed.L = &t.mu
	t.buffers.New = func() any { b := make([]byte, maxRead); return &b }
	return t
}

// Supersede forgets what was left out of these pages: newer content is about to
// be written to them. When it returns no fill touches them any more. It waits
// for a write of the image at most, never for a disk.
func (t *Table) Supersede(first epoch.GFN, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.missing == 0 || uint64(first) >= t.cfg.Pages {
		return
	}
	end := first + epoch.GFN(min(count, t.cfg.Pages-uint64(first)))
	for f := first; f < end; f++ {
		if t.of[f] != 0 {
			t.supersede(f)
		}
	}
}

// supersede takes away the entry of a page. It may let go of the lock.
func (t *Table) supersede(f epoch.GFN) {
	for t.of[f] != 0 && t.at(t.of[f]).state == stateWriting {
		t.changed.Wait()
	}
	if name := t.of[f]; name != 0 {
		t.remove(name)
	}
}

// Add notes the references of epoch n, after everything else of it has been
// applied. It is called for every epoch, in ascending order, also for one
// without references. A reference replaces an older one of the same page. It
// panics if a page is outside of the image: what comes from a peer is bounded
// where it is decoded.
func (t *Table) Add(refs []epoch.Reference, n epoch.Number) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n = max(n, t.newest)
	t.newest = n
	for _, r := range refs {
		if uint64(r.Page) >= t.cfg.Pages {
			panic(fmt.Sprintf("rebuild: %v, in an image of %d pages", r, t.cfg.Pages))
		}
		t.supersede(r.Page)
		t.insert(r, n)
	}
	if len(refs) > 0 {
		t.compact()
		t.changed.Broadcast()
	}
}

// compact drops what is kept of entries that are gone, once it is most of what
// is kept: a disk that hangs must not make the account grow with every epoch.
func (t *Table) compact() {
	if len(t.todo) > 2*t.missing+1024 {
		t.todo = slices.DeleteFunc(t.todo, func(c claim) bool { return t.holds(c) == nil })
	}
	if len(t.ages) > 2*t.missing+64 {
		t.ages = slices.DeleteFunc(t.ages, func(a age) bool { return a.left == 0 })
	}
}

// insert makes a pending entry.
func (t *Table) insert(r epoch.Reference, n epoch.Number) {
	if len(t.free) == 0 {
		t.entries = append(t.entries, entry{})
		t.free = append(t.free, uint32(len(t.entries)))
	}
	name := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	e, head := t.at(name), t.head(r.Disk, r.Sector/epoch.PageSectors)
	*e = entry{ref: r, epoch: n, next: *head, use: e.use, state: statePending}
	if *head != 0 {
		t.at(*head).prev = name
	}
	*head, t.of[r.Page] = name, name
	if k := len(t.ages); k == 0 || t.ages[k-1].epoch != n {
		t.ages = append(t.ages, age{epoch: n})
	}
	t.ages[len(t.ages)-1].left++
	t.missing++
	t.todo = append(t.todo, t.claimOf(name))
}

// remove takes an entry out: its page is in the image, or about to be.
func (t *Table) remove(name uint32) {
	e := t.at(name)
	if e.next != 0 {
		t.at(e.next).prev = e.prev
	}
	if e.prev != 0 {
		t.at(e.prev).next = e.next
	} else {
		*t.head(e.ref.Disk, e.ref.Sector/epoch.PageSectors) = e.next
	}
	t.of[e.ref.Page] = 0
	i, _ := slices.BinarySearchFunc(t.ages, e.epoch, func(a age, n epoch.Number) int {
		return int(min(max(int64(a.epoch)-int64(n), -1), 1))
	})
	t.ages[i].left--
	for len(t.ages) > 0 && t.ages[0].left == 0 {
		t.ages = t.ages[1:]
	}
	t.missing--
	switch e.state {
	case stateBad:
		t.bad--
	case stateWriting:
		t.writing--
	}
	*e = entry{use: e.use + 1}
	t.free = append(t.free, name)
	if t.missing == 0 {
		t.todo = t.todo[:0]
	}
	t.changed.Broadcast()
}

func (t *Table) at(name uint32) *entry { return &t.entries[name-1] }

func (t *Table) claimOf(name uint32) claim {
	e := t.at(name)
	return claim{name: name, use: e.use, ref: e.ref, stash: e.stash}
}

// holds returns the entry that a claim was made on, or nil if it is gone.
func (t *Table) holds(c claim) *entry {
	if e := t.at(c.name); e.use == c.use && e.state != stateFree {
		return e
	}
	return nil
}

// head returns the chain of the entries that begin in an aligned block. The
// seed keeps a guest from choosing blocks that share one.
func (t *Table) head(disk epoch.DiskID, block uint64) *uint32 {
	x := (block | uint64(disk)<<56) ^ t.seed
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return &t.heads[(x^x>>33)&uint64(len(t.heads)-1)]
}

// overlapping calls f with each entry whose block has one of these sectors.
func (t *Table) overlapping(disk epoch.DiskID, sector, sectors uint64, f func(name uint32)) {
	if t.missing == 0 || sectors == 0 {
		return
	}
	const n = epoch.PageSectors
	end := sector + min(sectors, math.MaxUint64-sector)
	visit := func(name uint32) {
		if e := t.at(name); e.state != stateFree && e.ref.Disk == disk && e.ref.Sector < end && sector < e.ref.Sector+n {
			f(name)
		}
	}
	first, last := (sector-min(sector, n-1))/n, (end-1)/n
	if last-first >= uint64(len(t.entries)) {
		for i := range t.entries {
			visit(uint32(i + 1))
		}
		return
	}
	for block := first; block <= last; block++ {
		for name := *t.head(disk, block); name != 0; name = t.at(name).next {
			visit(name)
		}
	}
}

// Len returns how many pages are not in the image.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.missing
}

// Through returns the newest epoch up to which every reference is filled or
// superseded.
func (t *Table) Through() epoch.Number {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.through()
}

func (t *Table) through() epoch.Number {
	if len(t.ages) > 0 {
		return t.ages[0].epoch - 1
	}
	return t.newest
}

// Room waits until fewer than Limit references are waiting to be filled.
func (t *Table) Room(ctx context.Context) error {
	stop := context.AfterFunc(ctx, t.wake)
	defer stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.missing-t.bad >= t.cfg.Limit && ctx.Err() == nil {
		t.changed.Wait()
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("wait for the disk to fill %d pages that were left out: %w", t.missing, err)
	}
	return nil
}

// wake makes everybody who waits look again.
func (t *Table) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed.Broadcast()
}

// Committed says whether the image is whole after the epoch applied last: a
// checkpoint that can be activated. From then on a page that cannot be filled
// ends Run with an error; while an image is being synchronised it does not, for
// a newer epoch brings the page.
func (t *Table) Committed(whole bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.whole = whole
	if t.bad > 0 {
		t.changed.Broadcast()
	}
}

// BadError says that a block is not what a reference to it says.
type BadError struct {
	Ref   epoch.Reference
	Epoch epoch.Number // of the reference
}

func (e *BadError) Error() string {
	return fmt.Sprintf("page %d was left out of epoch %d for disk %d, sectors %d to %d, but these hold something else now (a fingerprint differs): "+
		"the page cannot be rebuilt", e.Ref.Page, e.Epoch, e.Ref.Disk, e.Ref.Sector, e.Ref.Sector+epoch.PageSectors-1)
}

// Bad returns a *BadError for the first page whose block was found to be
// something else and that nothing has superseded, or nil.
func (t *Table) Bad() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.badError()
}

func (t *Table) badError() error {
	if t.bad == 0 {
		return nil
	}
	var first *entry
	for i := range t.entries {
		if e := &t.entries[i]; e.state == stateBad && (first == nil || e.ref.Page < first.ref.Page) {
			first = e
		}
	}
	return &BadError{Ref: first.ref, Epoch: first.epoch}
}
