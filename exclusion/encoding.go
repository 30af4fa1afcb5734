package exclusion

import (
	"encoding/binary"

	"understudy/epoch"
)

// This file is the side of an Index that the encoder of an epoch sees:
//
//	Encoding → Exclude, page by page → … acknowledgement → Materialised, or Void

// encoding decides on the pages of one epoch.
type encoding struct {
	ix     *Index
	epoch  epoch.Number
	life   uint64 // of the index as the epoch was begun
	serial uint64 // of this encoding
}

// Encoding returns what decides on the pages of epoch n. Each reference it
// emits is outstanding from then on until Materialised(n), Void, or a passing
// write over its block. Numbers ascend; one that goes back belongs to another
// image, and what was outstanding for the former one is void.
//
// Copies are found among the pages of the same epoch alone. Of an unchanged
// page it would have to be known that it was not written since its fingerprint
// was taken; of a page of this epoch the captured bytes are what was hashed.
// That the bytes themselves are equal is not looked up again, they are gone by
// then: it is trusted to 128 bits of a hash whose key the guest does not know,
// exactly as references are. A page that travels as a reference is never a
// source, so a copy never waits for a disk.
func (ix *Index) Encoding(n epoch.Number) epoch.Excluder {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if n < ix.outstanding.newest() {
		ix.void()
	}
	ix.copies.serial++
	return &encoding{ix: ix, epoch: n, life: ix.life, serial: ix.copies.serial}
}

// Exclude implements epoch.Excluder. A page that can travel as a difference
// costs a look at its hint; every other one fingerprint.
func (e *encoding) Exclude(page epoch.GFN, content []byte, delta bool) (epoch.Exclusion, bool) {
	ix := e.ix
	if uint64(page) >= ix.cfg.Pages || delta && !ix.promising(page) {
		return epoch.Exclusion{}, false
	}
	print := ix.cfg.Key.Of(content)
	ix.mu.Lock()
	defer ix.mu.Unlock()
	name, reason := ix.match(page, Candidate{Page: print, Room: ix.outstanding.room(), Lapsed: e.life != ix.life})
	if reason == Mapped || reason == Indexed {
		s := ix.blocks.at(name)
		s.used = true
		ix.hints[page] = name
		r := epoch.Reference{Page: page, Disk: s.disk, Sector: s.sector, Print: print}
		ix.outstanding.add(r, e.epoch)
		ix.counts[reason]++
		return epoch.Exclusion{Kind: epoch.ExcludeBlock, Ref: r}, true
	}
	ix.hints[page] &^= freshHint
	if source, ok := ix.copies.find(page, print, e.serial); ok && reason != Lapsed {
		ix.counts[Copied]++
		return epoch.Exclusion{Kind: epoch.ExcludeCopy, Source: source}, true
	}
	ix.counts[reason]++
	return epoch.Exclusion{}, false
}

// promising reports whether traffic has named a block for the page since it was
// last encoded.
func (ix *Index) promising(page epoch.GFN) bool {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	if ix.hints[page]&freshHint != 0 {
		return true
	}
	ix.counts[Skipped]++
	return false
}

// match looks for a block that a page may be left out for, and returns its
// slot's name with Mapped or Indexed, or the reason why there is none. c has what
// does not depend on the block.
func (ix *Index) match(page epoch.GFN, c Candidate) (uint32, Reason) {
	hint := ix.hints[page] &^ freshHint
	refused := ix.valid(hint, c)
	if refused == Holds {
		return hint, Mapped
	}
	name := ix.blocks.find(&c.Page)
	if name == 0 || name == hint {
		return 0, refused
	}
	if refused = ix.valid(name, c); refused == Holds {
		return name, Indexed
	}
	return 0, refused
}

// valid applies the rule to a slot, 0 for none.
func (ix *Index) valid(name uint32, c Candidate) Reason {
	if name != 0 && int(name) <= len(ix.blocks.slots) {
		s := ix.blocks.at(name)
		c.OnDisk, c.Overwritten, c.Block = true, !s.live, s.print
		c.Verified = c.Verified || !ix.unverified[s.disk].any(span(s.sector, epoch.PageSectors))
	}
	return Valid(c)
}

// inFile is a page of a checkpoint file: it is filled from this host's own disks,
// whatever another host's copies are, and nobody has to note it.
func inFile(print epoch.Fingerprint) Candidate {
	return Candidate{Page: print, Verified: true, Room: true}
}

// Find returns a reference that is true now, for a page of a checkpoint file.
// Nothing is noted: whoever keeps the reference sees to it that the block is not
// overwritten (RULES 20).
func (ix *Index) Find(page epoch.GFN, content []byte) (epoch.Reference, bool) {
	if uint64(page) >= ix.cfg.Pages || isZero(content) {
		return epoch.Reference{}, false
	}
	print := ix.cfg.Key.Of(content)
	ix.mu.Lock()
	defer ix.mu.Unlock()
	name, reason := ix.match(page, inFile(print))
	if reason != Mapped && reason != Indexed {
		return epoch.Reference{}, false
	}
	s := ix.blocks.at(name)
	s.used = true
	return epoch.Reference{Page: page, Disk: s.disk, Sector: s.sector, Print: print}, true
}

// Materialised says that the backup has filled every reference of the epochs up
// to n.
func (ix *Index) Materialised(n epoch.Number) {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.outstanding.through(n)
}

// Void says that no reference emitted so far counts. The pages of those that
// are outstanding become dirty again, and the encodings begun before leave no
// page out any more.
func (ix *Index) Void() {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	ix.void()
}

func (ix *Index) void() {
	ix.redirty = ix.redirty || ix.outstanding.live > 0
	ix.outstanding.void(ix.redirtied)
	ix.life++
}

// Outstanding returns how many references the backup has yet to fill.
func (ix *Index) Outstanding() int {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	return ix.outstanding.live
}

// Stats counts what became of the pages that an encoder asked about, by reason,
// since the index was made, and what the index knows.
type Stats struct {
	Mapped      uint64 `json:"mapped"`      // left out: traced traffic named the block
	Indexed     uint64 `json:"indexed"`     // left out: the content index found a block
	Copied      uint64 `json:"copied"`      // left out: equal to another page of the epoch
	Skipped     uint64 `json:"skipped"`     // sent as a difference, not looked at
	Unknown     uint64 `json:"unknown"`     // sent: on no disk as far as known
	Changed     uint64 `json:"changed"`     // sent: differs from its block
	Overwritten uint64 `json:"overwritten"` // sent: its block has been overwritten
	Unverified  uint64 `json:"unverified"`  // sent: the backup's copy of the block is not verified
	Full        uint64 `json:"full"`        // sent: too many references outstanding
	Lapsed      uint64 `json:"lapsed"`      // of epochs that were given up

	Blocks      int    `json:"blocks"`      // extents whose content is known
	MaxBlocks   int    `json:"max_blocks"`  // their bound
	Evicted     uint64 `json:"evicted"`     // extents forgotten at that bound
	Outstanding int    `json:"outstanding"` // references the backup has yet to fill
}

// Stats returns the counts.
func (ix *Index) Stats() Stats {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	n := &ix.counts
	return Stats{
		Mapped: n[Mapped], Indexed: n[Indexed], Copied: n[Copied], Skipped: n[Skipped],
		Unknown: n[Unknown], Changed: n[Changed], Overwritten: n[Overwritten],
		Unverified: n[Unverified], Full: n[Full], Lapsed: n[Lapsed],
		Blocks: ix.blocks.alive, MaxBlocks: ix.cfg.MaxBlocks, Evicted: ix.blocks.evicted,
		Outstanding: ix.outstanding.live,
	}
}

// copies remembers which page of the epoch that is being encoded has which
// content: one entry for each value of some bits of the fingerprint, the first
// page that came.
type copies struct {
	entries []copyEntry
	serial  uint64 // of the encoding begun last
}

type copyEntry struct {
	print  epoch.Fingerprint
	page   epoch.GFN
	serial uint64
}

// maxCopies bounds the entries: 2 MiB.
const maxCopies = 1 << 16

func newCopies(pages uint64) copies {
	size := uint64(16)
	for size < min(pages, maxCopies) {
		size *= 2
	}
	return copies{entries: make([]copyEntry, size)}
}

// find returns a lower page of the same epoch with this content, or remembers
// this one.
func (c *copies) find(page epoch.GFN, print epoch.Fingerprint, serial uint64) (epoch.GFN, bool) {
	e := &c.entries[binary.LittleEndian.Uint64(print[8:])%uint64(len(c.entries))]
	if e.serial != serial {
		*e = copyEntry{print: print, page: page, serial: serial}
		return 0, false
	}
	if e.print == print && e.page < page {
		return e.page, true
	}
	return 0, false
}
