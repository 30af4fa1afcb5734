// Package checkpoint keeps a guest in a file: its memory, its device state and
// what its disks must look like, as small and as quickly as that can be done. A
// file may name a parent and then holds only what changed since, so that a
// series of files is a history to go back to.
//
// Data flows through the package in two directions. Saving, while the guest
// runs and for the last time while it stands still:
//
//	Writer (writer.go) → workers (work.go): zero? as before? on a disk? a copy?
//	→ records of up to 16 packed pages → Commit (commit.go): index, sections,
//	trailer, one rename
//
// and back:
//
//	Open (reader.go) → index leaves and records as they are needed (load.go)
//	→ Inspect (inspect.go), Verify (verify.go), Restore (restore.go) with all
//	pages at once, or with a Pending (pending.go) that supplies each page when
//	the guest first touches it
//
// format.go has the format, byte by byte; PROTOCOL.md repeats its tables. The
// epoch's record format is not reused: its pages ascend, come once, and can only
// be read from the front, while here pages come again in later rounds, are packed
// by several goroutines, and are read in the order of the guest's faults.
package checkpoint

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
)

// Limits of a checkpoint file.
const (
	// MaxPages bounds the image: 2^32 pages, 16 TiB.
	MaxPages = 1 << 32
	// MaxDiskState bounds Final.DiskState, in bytes.
	MaxDiskState = 64 << 20
	// MaxChain bounds how many files a file may build on, itself included.
	MaxChain = 64

	maxName = 255 // bytes of a name in the head
)

var (
	// ErrDamaged is in the chain of every error that says that a file is not
	// what was written.
	ErrDamaged = errors.New("the checkpoint file is damaged")
	// ErrVersion is in the chain of the error for a file of another version.
	ErrVersion = errors.New("the checkpoint file is of a version this program does not read")
	// ErrStale is in the chain of every error that says that a disk is not as
	// it was when the checkpoint was taken.
	ErrStale = errors.New("the disk is not as it was when the checkpoint was taken")
)

// ID names a checkpoint file by its content.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes the id in hexadecimal.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (id *ID) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(id) {
		return fmt.Errorf("checkpoint id: want %d hexadecimal digits, got %d", 2*len(id), len(text))
	}
	if _, err := hex.Decode(id[:], text); err != nil {
		return fmt.Errorf("checkpoint id %q: %w", text, err)
	}
	return nil
}

// Head says what a file is a checkpoint of.
type Head struct {
	Guest      string           `json:"guest"`      // 1 to 255 bytes
	Hypervisor string           `json:"hypervisor"` // adapter: 1 to 255 bytes
	Created    time.Time        `json:"created"`
	Generation epoch.Generation `json:"generation"`
	Pages      uint64           `json:"pages"` // size of the image
	// Key is the key of all fingerprints of a series of files.
	Key epoch.PrintKey `json:"print_key"`
	// Parent is what an incremental file builds on. Create fills it in.
	Parent *Parent `json:"parent,omitempty"`
	// Disks are the guest's disks at the checkpoint, in ascending order of
	// their ID. Final fills them in.
	Disks []Disk `json:"disks"`
	// Machine is hypervisor.Spec.Machine. It has a section of its own.
	Machine []byte `json:"-"`
}

// Parent names the file that an incremental file builds on.
type Parent struct {
	// File is a path relative to the directory of the file that names it, in
	// that directory or below it.
	File string `json:"file"`
	ID   ID     `json:"id"`
}

// Disk says what one of the guest's disks was at the checkpoint.
type Disk struct {
	ID      epoch.DiskID `json:"id"`
	Name    string       `json:"name"`  // as configured, at most 255 bytes
	Store   string       `json:"store"` // kind: "shared", "replicated", StoreBoot; at most 255 bytes
	Sectors uint64       `json:"sectors"`
	// Stamp changes with every write to the disk; at most 255 bytes.
	Stamp string `json:"stamp"`
	// Pin, if not empty, names the pin under which the disk keeps the old
	// content of every sector written since; at most 255 bytes.
	Pin string `json:"pin,omitempty"`
}

// check refuses a head that makes no sense in itself.
func (h *Head) check() error {
	for _, s := range []struct{ what, is string }{{"guest", h.Guest}, {"hypervisor", h.Hypervisor}} {
		if s.is == "" || len(s.is) > maxName {
			return fmt.Errorf("a %s name of %d bytes, want 1 to %d", s.what, len(s.is), maxName)
		}
	}
	if h.Pages == 0 || h.Pages > MaxPages {
		return fmt.Errorf("an image of %d pages, want 1 to %d", h.Pages, uint64(MaxPages))
	}
	if len(h.Machine) > hypervisor.MaxSpec {
		return fmt.Errorf("a machine description of %d bytes, want at most %d", len(h.Machine), hypervisor.MaxSpec)
	}
	if p := h.Parent; p != nil && (!filepath.IsLocal(p.File) || len(p.File) > 4*maxName) {
		return fmt.Errorf("its parent is %q: want a path inside its own directory", p.File)
	}
	return checkDiskList(h.Disks)
}

// checkDiskList refuses what cannot be a guest's disks.
func checkDiskList(disks []Disk) error {
	if len(disks) > epoch.MaxDisks {
		return fmt.Errorf("%d disks, want at most %d", len(disks), epoch.MaxDisks)
	}
	for i, d := range disks {
		switch {
		case i > 0 && d.ID <= disks[i-1].ID:
			return fmt.Errorf("disk %d comes after disk %d, want ascending numbers", d.ID, disks[i-1].ID)
		case d.ID >= epoch.MaxDisks:
			return fmt.Errorf("disk %d, want numbers below %d", d.ID, epoch.MaxDisks)
		case d.Sectors == 0 || d.Sectors > epoch.MaxSectors:
			return fmt.Errorf("disk %d of %d sectors, want 1 to %d", d.ID, d.Sectors, uint64(epoch.MaxSectors))
		case len(d.Name) > maxName || len(d.Store) > maxName || len(d.Stamp) > maxName || len(d.Pin) > maxName:
			return fmt.Errorf("disk %d has a name, store, stamp or pin above %d bytes", d.ID, maxName)
		}
	}
	return nil
}

// Place is where a page's content lies on a disk: epoch.PageSectors sectors.
type Place struct {
	Disk   epoch.DiskID
	Sector uint64
}

// Finder knows what is on the guest's disks now (exclusion.Index). Its method is
// called from several goroutines.
type Finder interface {
	// FindPrint says where content with this fingerprint lies, durably, on a
	// disk. mapped says that it was found through what was traced for this very
	// page, not among the content of all disks.
	FindPrint(page epoch.GFN, print epoch.Fingerprint) (ref epoch.Reference, mapped, ok bool)
}

// Constant is a Finder that knows when all it has found still holds: as long as
// Losses returns what it returned before. It spares Writer.Stale to ask again for
// every reference.
type Constant interface {
	Finder
	Losses() uint64
}

// Blocks reads the guest's disks as they were at the checkpoint. It may be
// called from several goroutines.
type Blocks interface {
	// ReadSectors fills dst, whole sectors of a disk.
	ReadSectors(disk epoch.DiskID, sector uint64, dst []byte) error
}

// Progress is told how much of a task is done, in pages. It is called by one
// goroutine at a time, done never falls, and the last call has done == total.
type Progress func(done, total uint64)

// Reason says how a page came into the file.
type Reason uint8

const (
	reasonAbsent Reason = iota // not given yet
	Hole                       // given as zero: never touched, or given back
	Zero                       // all bytes were found zero
	Mapped                     // a reference: the page-to-block map knew its block
	Content                    // a reference: its block was found by its content
	Copy                       // equal to a page stored already
	Packed                     // stored, compressed
	Raw                        // stored, not compressible
	Unchanged                  // as in the parent
	reasons
)

// Counts are an image's pages by reason; their sum is the image.
type Counts struct {
	Hole      uint64 `json:"hole"`
	Zero      uint64 `json:"zero"`
	Mapped    uint64 `json:"mapped"`
	Content   uint64 `json:"content"`
	Copy      uint64 `json:"copy"`
	Packed    uint64 `json:"packed"`
	Raw       uint64 `json:"raw"`
	Unchanged uint64 `json:"unchanged"`
}

func (c *Counts) of(r Reason) *uint64 {
	return [reasons]*uint64{
		Hole: &c.Hole, Zero: &c.Zero, Mapped: &c.Mapped, Content: &c.Content,
		Copy: &c.Copy, Packed: &c.Packed, Raw: &c.Raw, Unchanged: &c.Unchanged,
	}[r]
}

// Sum returns the number of all pages.
func (c *Counts) Sum() (sum uint64) {
	for r := Hole; r < reasons; r++ {
		sum += *c.of(r)
	}
	return sum
}

// Summary is what the writer tells of its work. It is part of the file.
type Summary struct {
	Pages Counts `json:"pages"`
	// Given counts pages handed to the writer, all rounds together; Repeated
	// those of them that came again as they were; Replaced the stored pages
	// that a later round made worthless.
	Given    uint64 `json:"given"`
	Repeated uint64 `json:"repeated"`
	Replaced uint64 `json:"replaced"`
	// Wasted is the share of the file that holds replaced pages, in bytes;
	// Compacted says that they were removed.
	Wasted    uint64 `json:"wasted_bytes"`
	Compacted bool   `json:"compacted"`
}
