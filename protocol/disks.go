package protocol

import (
	"encoding/binary"
	"fmt"

	"understudy/epoch"
)

// The messages beside the epochs that concern disks:
//
//	primary ── Hashes (of adjacent chunks of a replicated disk) ──> backup
//	        <── Differs (which of them differ there) ──
//
// Hashes and Differs name chunks of epoch.HashChunk bytes. Both may come at any
// time between two messages of an epoch.

// Stores of a DiskSpec.
const (
	// StoreShared: both hosts reach the same file or block device.
	StoreShared = "shared"
	// StoreReplicated: each host has its own copy.
	StoreReplicated = "replicated"
)

// DiskSpec is what both sides must agree on about one disk.
type DiskSpec struct {
	Sectors uint64 `json:"sectors"` // size, 1 … epoch.MaxSectors
	Store   string `json:"store"`   // StoreShared or StoreReplicated
}

// checkDisks refuses disks that no guest can have.
func checkDisks(disks []DiskSpec) error {
	if len(disks) > epoch.MaxDisks {
		return fmt.Errorf("hello: %d disks (at most %d)", len(disks), epoch.MaxDisks)
	}
	for i, d := range disks {
		switch {
		case d.Sectors == 0 || d.Sectors > epoch.MaxSectors:
			return fmt.Errorf("hello: disk %d has %d sectors, want 1 to %d", i, d.Sectors, uint64(epoch.MaxSectors))
		case d.Store != StoreShared && d.Store != StoreReplicated:
			return fmt.Errorf("hello: disk %d has a store of kind %.40q, want %q or %q", i, d.Store, StoreShared, StoreReplicated)
		}
	}
	return nil
}

const (
	// chunksHead is the size of what Hashes and Differs begin with: first chunk
	// u64, disk u8.
	chunksHead = 8 + 1
	// differsHead is the size of that and of the count u16 in Differs.
	differsHead = chunksHead + 2
	// maxChunks is the number of chunks of the largest disk.
	maxChunks = epoch.MaxSectors * epoch.SectorSize / epoch.HashChunk
)

// AppendDiskHashes appends a Hashes: first chunk u64, disk u8, then 16 bytes
// for each chunk. h has 1 to epoch.MaxHashes of them.
func AppendDiskHashes(dst []byte, h epoch.DiskHashes) []byte {
	dst = appendChunks(dst, h.Disk, h.First)
	for _, hash := range h.Hashes {
		dst = append(dst, hash[:]...)
	}
	return dst
}

// ParseDiskHashes reads a Hashes. It keeps nothing of b.
func ParseDiskHashes(b []byte) (epoch.DiskHashes, error) {
	const size = len(epoch.Hash{})
	if len(b) < chunksHead || (len(b)-chunksHead)%size != 0 || len(b) > chunksHead+epoch.MaxHashes*size {
		return epoch.DiskHashes{}, fmt.Errorf("hashes: %d bytes, want %d and %d for each of at most %d chunks", len(b), chunksHead, size, epoch.MaxHashes)
	}
	n := (len(b) - chunksHead) / size
	disk, first, err := parseChunks("hashes", b, n)
	if err != nil {
		return epoch.DiskHashes{}, err
	}
	h := epoch.DiskHashes{Disk: disk, First: first, Hashes: make([]epoch.Hash, n)}
	for i := range h.Hashes {
		copy(h.Hashes[i][:], b[chunksHead+i*size:])
	}
	return h, nil
}

// AppendDiskDiffers appends a Differs: first chunk u64, disk u8, count u16,
// then the bits. d has 1 to epoch.MaxHashes chunks, and no bit set behind them.
func AppendDiskDiffers(dst []byte, d epoch.DiskDiffers) []byte {
	dst = appendChunks(dst, d.Disk, d.First)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(d.Count))
	return append(dst, d.Bits...)
}

// ParseDiskDiffers reads a Differs. It keeps nothing of b.
func ParseDiskDiffers(b []byte) (epoch.DiskDiffers, error) {
	if len(b) < differsHead {
		return epoch.DiskDiffers{}, fmt.Errorf("differs: %d bytes, want at least %d", len(b), differsHead)
	}
	n, bits := int(binary.LittleEndian.Uint16(b[chunksHead:])), b[differsHead:]
	if n > epoch.MaxHashes || len(bits) != (n+7)/8 {
		return epoch.DiskDiffers{}, fmt.Errorf("differs: %d bytes of bits for %d chunks (at most %d)", len(bits), n, epoch.MaxHashes)
	}
	disk, first, err := parseChunks("differs", b, n)
	if err != nil {
		return epoch.DiskDiffers{}, err
	}
	if n%8 != 0 && bits[len(bits)-1]>>(n%8) != 0 {
		return epoch.DiskDiffers{}, fmt.Errorf("differs: bits behind the last of %d chunks", n)
	}
	return epoch.DiskDiffers{Disk: disk, First: first, Count: n, Bits: append([]byte(nil), bits...)}, nil
}

func appendChunks(dst []byte, disk epoch.DiskID, first uint64) []byte {
	return append(binary.LittleEndian.AppendUint64(dst, first), byte(disk))
}

// parseChunks reads which n chunks of which disk a message is about.
func parseChunks(what string, b []byte, n int) (epoch.DiskID, uint64, error) {
	first, disk := binary.LittleEndian.Uint64(b), b[8]
	switch {
	case disk >= epoch.MaxDisks:
		return 0, 0, fmt.Errorf("%s: of disk %d, want one below %d", what, disk, epoch.MaxDisks)
	case n == 0:
		return 0, 0, fmt.Errorf("%s: of no chunk", what)
	case first > maxChunks-uint64(n):
		return 0, 0, fmt.Errorf("%s: chunks %d+%d are outside every disk", what, first, n)
	}
	return epoch.DiskID(disk), first, nil
}
