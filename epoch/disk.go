package epoch

import (
	"fmt"

	"github.com/zeebo/xxh3"
)

// This file holds the words for what an epoch says of disks: references (a page
// that travels as the name of a disk block with its content) and writes (what
// the guest wrote in the epoch, which may reach the disk only after its
// commit).

// SectorSize is the unit in which disks are addressed, in bytes (virtio 1.2,
// 5.2: "always in units of 512 bytes").
const SectorSize = 512

// PageSectors is the number of sectors a page has.
const PageSectors = PageSize / SectorSize

// MaxDisks bounds the disks of a guest.
const MaxDisks = 16

// MaxSectors bounds the size of a disk: 2^40 sectors, 512 TiB.
const MaxSectors = 1 << 40

// MaxWriteSectors bounds one DiskWrite that carries data: 4 MiB.
const MaxWriteSectors = 4 << 20 / SectorSize

// MaxZeroSectors bounds one DiskWrite of kind WriteZeroes or WriteDiscard: 16 MiB.
const MaxZeroSectors = 16 << 20 / SectorSize

// DiskID is a disk's index among the guest's disks, as configured.
type DiskID uint8

// BootFile is a file that the guest was started with, as one host has it. Pages
// that hold a piece of it can be left out as for a disk that nobody writes to.
type BootFile struct {
	Disk    DiskID `json:"disk"`    // that references to it name
	Sectors uint64 `json:"sectors"` // whole ones
	Sum     Hash   `json:"sum"`     // of all its bytes
}

// Fingerprint is a keyed 128-bit hash of a page's content. Who does not know
// the key cannot choose two pages with the same one.
type Fingerprint [16]byte

// PrintKey is the key of fingerprints. It is drawn at random for each image and
// each series of checkpoint files, and never shown to the guest.
type PrintKey uint64

// Of returns the fingerprint of a page's content.
func (k PrintKey) Of(page []byte) Fingerprint { return xxh3.Hash128Seed(page, uint64(k)).Bytes() }

// Reference says that a page has the content of PageSectors sectors of a disk,
// from Sector on, and what the fingerprint of that content is.
type Reference struct {
	Page   GFN
	Disk   DiskID
	Sector uint64
	Print  Fingerprint
}

func (r Reference) String() string {
	return fmt.Sprintf("page %d = disk %d sector %d", r.Page, r.Disk, r.Sector)
}

// WriteKind says what a DiskWrite does.
type WriteKind uint8

const (
	// WriteData replaces sectors by Data.
	WriteData WriteKind = 1
	// WriteZeroes makes sectors zero and keeps their space.
	WriteZeroes WriteKind = 2
	// WriteDiscard makes sectors zero and may give their space back.
	WriteDiscard WriteKind = 3
	// WriteBarrier separates the writes to a disk: what comes before it is
	// durable before anything after it is begun (a flush of the guest).
	WriteBarrier WriteKind = 4
	// WriteSync is data of a disk's synchronisation: it is not the guest's,
	// has no place in the order of writes, and is for the replicated store
	// only.
	WriteSync WriteKind = 5
)

func (k WriteKind) String() string {
	switch k {
	case WriteData:
		return "write"
	case WriteZeroes:
		return "write zeroes"
	case WriteDiscard:
		return "discard"
	case WriteBarrier:
		return "barrier"
	case WriteSync:
		return "synchronisation"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// DiskWrite is one change of a disk.
type DiskWrite struct {
	// Seq numbers the guest's writes over all its disks, from 1, ascending, for
	// as long as the guest has one owner. It is 0 for WriteSync.
	Seq     uint64
	Disk    DiskID
	Kind    WriteKind
	Sector  uint64
	Sectors uint32 // 0 for a barrier; bounded by MaxWriteSectors or MaxZeroSectors
	// Data has Sectors × SectorSize bytes for WriteData and WriteSync.
	Data []byte
	// Pages names, for each whole PageSize of Data, the guest page that those
	// bytes were copied from, whole, or NoPage. nil: none is known.
	Pages []GFN
}

// dataBytes is the size that Data must have.
func (w *DiskWrite) dataBytes() int {
	if w.Kind == WriteData || w.Kind == WriteSync {
		return int(w.Sectors) * SectorSize
	}
	return 0
}

// check refuses a write that makes no sense, its data aside; last is the Seq
// of the guest's write before it.
func (w *DiskWrite) check(last uint64) error {
	most := uint32(MaxWriteSectors)
	switch w.Kind {
	case WriteData, WriteSync:
	case WriteZeroes, WriteDiscard:
		most = MaxZeroSectors
	case WriteBarrier:
		most = 0
	default:
		return fmt.Errorf("a disk write of unknown %v", w.Kind)
	}
	switch {
	case w.Disk >= MaxDisks:
		return fmt.Errorf("a %v to disk %d, want one below %d", w.Kind, w.Disk, MaxDisks)
	case w.Kind == WriteSync && w.Seq != 0:
		return fmt.Errorf("a %v with number %d, want 0", w.Kind, w.Seq)
	case w.Kind != WriteSync && w.Seq <= last:
		return fmt.Errorf("a %v with number %d after %d; writes must ascend", w.Kind, w.Seq, last)
	case w.Sectors > most || w.Sectors == 0 && most > 0:
		return fmt.Errorf("a %v of %d sectors, want at most %d, and none for a barrier alone", w.Kind, w.Sectors, most)
	case w.Sector > MaxSectors-uint64(w.Sectors) || w.Kind == WriteBarrier && w.Sector != 0:
		return fmt.Errorf("a %v to sectors %d+%d, outside every disk", w.Kind, w.Sector, w.Sectors)
	}
	return nil
}

// checkExtent refuses pages that no disk can have, sector being the first's.
func checkExtent(disk DiskID, sector, pages uint64) error {
	if disk >= MaxDisks || sector > MaxSectors-pages*PageSectors {
		return fmt.Errorf("disk %d, sectors %d+%d: outside every disk", disk, sector, pages*PageSectors)
	}
	return nil
}

// NoPage is the GFN of no page.
const NoPage = GFN(MaxPages)

// HashChunk is the piece of a disk that one hash of a synchronisation covers,
// in bytes.
const HashChunk = 64 << 10

// MaxHashes bounds DiskHashes.Hashes.
const MaxHashes = 4096

// DiskHashes are the hashes of adjacent chunks of a disk. A disk's last chunk
// may be short.
type DiskHashes struct {
	Disk   DiskID
	First  uint64 // chunk
	Hashes []Hash
}

// DiskDiffers answers DiskHashes: bit i of Bits says that chunk First+i has
// other content here.
type DiskDiffers struct {
	Disk  DiskID
	First uint64
	Count int
	Bits  []byte // (Count+7)/8 bytes, lowest bit first
}

// ExcludeKind says how a page is left out of an epoch.
type ExcludeKind uint8

const (
	// ExcludeBlock: the page travels as a Reference.
	ExcludeBlock ExcludeKind = iota + 1
	// ExcludeCopy: the page equals another page of the image, after this epoch.
	ExcludeCopy
)

// Exclusion says what travels in a page's place.
type Exclusion struct {
	Kind ExcludeKind
	Ref  Reference // ExcludeBlock
	// Source is lower than the page itself and no reference of this epoch
	// (ExcludeCopy).
	Source GFN
}

// Excluder decides on the pages of one epoch, in ascending order, as they are
// encoded (package exclusion). Zero pages are not asked about.
type Excluder interface {
	// Exclude looks at a page's captured content. delta says that the encoder
	// has what it needs to send only the page's difference.
	Exclude(page GFN, content []byte, delta bool) (Exclusion, bool)
}
