package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"understudy/epoch"
)

// A Scan finds pages on disks of which nobody has traced a request:
//
//	disk ─ ReadAt, 1 MiB at a time, but for its holes ─> every 4096 bytes that are
//	not zero: fingerprint, place ─> sorted by Sort ─> FindPrint
//
// It is a Finder, and says what was there when the disk was read. Who writes to the
// disks meanwhile is told by File.Verify, which compares every block.

// maxScan bounds what a Scan knows: 64 Mi blocks, 256 GiB of content, in 1.5 GiB of
// memory. What is behind is not found.
const maxScan = 64 << 20

// Scan knows what is on disks that were read whole.
type Scan struct {
	key  epoch.PrintKey
	rows []scanned
	most int
}

type scanned struct {
	print epoch.Fingerprint
	at    Place
}

var _ Constant = (*Scan)(nil)

// NewScan returns a Scan that knows nothing. key is Head.Key of the file to be made.
func NewScan(key epoch.PrintKey) *Scan { return &Scan{key: key, most: maxScan} }

// Key is the key of its fingerprints.
func (s *Scan) Key() epoch.PrintKey { return s.key }

// ScanSource is a disk that is read whole (store.File).
type ScanSource interface {
	Sectors() uint64
	// ReadAt reads whole sectors.
	ReadAt(p []byte, sector uint64) error
	// NextData returns the first sector from this one on that is not in a hole, or
	// Sectors.
	NextData(sector uint64) uint64
}

// Disk reads a disk. progress is told of blocks of 4096 bytes.
func (s *Scan) Disk(ctx context.Context, id epoch.DiskID, from ScanSource, progress Progress) error {
	if id >= epoch.MaxDisks {
		return fmt.Errorf("disk %d, want numbers below %d", id, epoch.MaxDisks)
	}
	buf := aligned(readBytes)
	blocks := from.Sectors() / epoch.PageSectors
	for block := uint64(0); block < blocks && len(s.rows) < s.most; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if block = max(block, from.NextData(block*epoch.PageSectors)/epoch.PageSectors); block >= blocks {
			break
		}
		b := buf[:min(readBytes, (blocks-block)*epoch.PageSize)]
		if err := from.ReadAt(b, block*epoch.PageSectors); err != nil {
			return fmt.Errorf("disk %d: %w", id, err)
		}
		s.take(id, block, b)
		block += uint64(len(b)) / epoch.PageSize
		if progress != nil {
			progress(block, blocks)
		}
	}
	return nil
}

func (s *Scan) take(id epoch.DiskID, block uint64, b []byte) {
	for ; len(b) > 0 && len(s.rows) < s.most; b, block = b[epoch.PageSize:], block+1 {
		if page := b[:epoch.PageSize]; !isZero(page) {
			s.rows = append(s.rows, scanned{s.key.Of(page), Place{id, block * epoch.PageSectors}})
		}
	}
}

// Sort is called after the last Disk and before the first FindPrint.
func (s *Scan) Sort() {
	// Stable: of equal blocks the first is found, so that a file of pages in a row
	// is read in a row.
	slices.SortStableFunc(s.rows, func(a, b scanned) int { return bytes.Compare(a.print[:], b.print[:]) })
	s.rows = slices.CompactFunc(s.rows, func(a, b scanned) bool { return a.print == b.print })
}

// FindPrint says where content with this fingerprint lies on a disk.
func (s *Scan) FindPrint(page epoch.GFN, print epoch.Fingerprint) (ref epoch.Reference, mapped, ok bool) {
	i, ok := slices.BinarySearchFunc(s.rows, print, func(r scanned, print epoch.Fingerprint) int { return bytes.Compare(r.print[:], print[:]) })
	if !ok {
		return epoch.Reference{}, false, false
	}
	at := s.rows[i].at
	return epoch.Reference{Page: page, Disk: at.Disk, Sector: at.Sector, Print: print}, false, true
}

// Losses is always the same: what is known does not change.
func (s *Scan) Losses() uint64 { return 0 }
