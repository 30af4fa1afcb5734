package exclusion

import (
	"fmt"

	"understudy/epoch"
)

// This file is the rule by which a page may be left out for a disk block, as
// one pure function, and the words for what became of a page.

// Reason says why a page was left out of an epoch, or why it was not.
type Reason uint8

const (
	// Holds: the reference is true and may be sent. Valid returns it; it is
	// counted as Mapped or Indexed.
	Holds Reason = iota
	// Mapped: left out, for the block that traced traffic named for the page.
	Mapped
	// Indexed: left out, for a block that the content index found.
	Indexed
	// Copied: left out, since it equals a lower page of the same epoch.
	Copied
	// Skipped: not looked at. The encoder can send the page's difference, and
	// nothing came from or went to a disk since the page was last seen.
	Skipped
	// Unknown: no block with this content is known to be on a disk.
	Unknown
	// Changed: the page is no longer what its block holds.
	Changed
	// Overwritten: a write over the block has been accepted.
	Overwritten
	// Unverified: the other host's copy of the block is not known to be equal.
	Unverified
	// Full: as many references are outstanding as there may be.
	Full
	// Lapsed: the epoch that is being encoded will not be applied.
	Lapsed

	reasons // their number
)

func (r Reason) String() string {
	switch r {
	case Holds:
		return "holds"
	case Mapped:
		return "on disk, by traced traffic"
	case Indexed:
		return "on disk, by content"
	case Copied:
		return "equal to another page"
	case Skipped:
		return "sent as a difference"
	case Unknown:
		return "on no disk as far as known"
	case Changed:
		return "changed since it was on disk"
	case Overwritten:
		return "its block was overwritten"
	case Unverified:
		return "its block is not verified at the backup"
	case Full:
		return "too many references outstanding"
	case Lapsed:
		return "the epoch was given up"
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// Candidate is a page that might travel as a reference to a block, with all
// that decides whether it may. It is a snapshot: what it says must hold at the
// instant in which the reference is emitted and noted as outstanding.
type Candidate struct {
	// OnDisk: the block's content was seen on the real disk itself, by a read
	// that no write ran beside or by a write that is complete; not merely in a
	// write that is held.
	OnDisk bool
	// Overwritten: since then a write, discard or write-zeroes over any of the
	// block's sectors was accepted, in whatever epoch.
	Overwritten bool
	// Verified: the host that is to fill the page sees the same block: the
	// store is shared, or its own copy was compared or written since.
	Verified bool
	// Page and Block are the fingerprints of the page as captured for the epoch
	// and of the block's content.
	Page, Block epoch.Fingerprint
	// Room: one more reference may be outstanding.
	Room bool
	// Lapsed: the epoch is already known to be lost.
	Lapsed bool
}

// Valid says whether a reference may be emitted: Holds, or why not. It is the
// first half of guarantee 4 ("a page is referenced only if its block is already
// on the real disk and equals the page at that epoch") with RULES 16, 17, 19.
//
// Why this is enough, for epoch n in the protected state: nothing overlapping
// has been accepted when the reference is emitted, so whatever overwrites the
// block is accepted later than the pause of n and belongs to a later epoch; that
// write reaches the disk only after that epoch's acknowledgement, and before it
// gives this the backup fills the page (the second half, package rebuild). While
// writes are not held, overwriting the block makes the page dirty again, and the
// first whole checkpoint brings it. How a page came to have its content plays no
// part: the bytes decide.
func Valid(c Candidate) Reason {
	switch {
	case c.Lapsed:
		return Lapsed
	case !c.OnDisk:
		return Unknown
	case c.Page != c.Block:
		return Changed
	case c.Overwritten:
		return Overwritten
	case !c.Verified:
		return Unverified
	case !c.Room:
		return Full
	}
	return Holds
}
