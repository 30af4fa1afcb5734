package store

// This file hashes a disk in chunks for a synchronisation: both hosts hash the
// same chunks of their own copies, and only those that differ travel. A chunk
// that lies in a hole of the file is known to be zero and not read.

import (
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// chunkSectors is the number of sectors of a chunk; the last may have fewer.
const chunkSectors = epoch.HashChunk / epoch.SectorSize

// Source is a disk that can be read.
type Source interface {
	Sectors() uint64
	ReadAt(p []byte, sector uint64) error
}

// Chunks returns the number of chunks of a disk.
func Chunks(sectors uint64) uint64 { return (sectors + chunkSectors - 1) / chunkSectors }

// chunk returns the first sector and the number of sectors of chunk i.
func chunk(s Source, i uint64) (sector, sectors uint64, err error) {
	if i >= Chunks(s.Sectors()) {
		return 0, 0, fmt.Errorf("chunk %d of %d: %w", i, Chunks(s.Sectors()), ErrRange)
	}
	sector = i * chunkSectors
	return sector, min(chunkSectors, s.Sectors()-sector), nil
}

// HashChunk returns the hash of a chunk's bytes: xxh3-128.
func HashChunk(bytes []byte) epoch.Hash { return xxh3.Hash128(bytes).Bytes() }

func hashOfZeroes() epoch.Hash { return HashChunk(make([]byte, epoch.HashChunk)) }

// HashChunks hashes len(dst) chunks of any disk from chunk first on.
func HashChunks(s Source, first uint64, dst []epoch.Hash) error {
	buffer := alignedBuffer(epoch.HashChunk, epoch.PageSize)
	for i := range dst {
		sector, n, err := chunk(s, first+uint64(i))
		if err != nil {
			return err
		}
		if err := s.ReadAt(buffer[:n*epoch.SectorSize], sector); err != nil {
			return err
		}
		dst[i] = HashChunk(buffer[:n*epoch.SectorSize])
	}
	return nil
}

// HashChunks hashes len(dst) chunks from chunk first on. It does not read holes.
func (f *File) HashChunks(first uint64, dst []epoch.Hash) error {
	buffer := f.pool.get()
	defer f.pool.put(buffer)
	data := int64(-1) // there is none between where we looked and here
	for i := range dst {
		sector, n, err := chunk(f, first+uint64(i))
		if err != nil {
			return fmt.Errorf("hash disk %s: %w", f.cfg.Path, err)
		}
		offset, length := int64(sector*epoch.SectorSize), int64(n*epoch.SectorSize)
		if data < offset {
			data = f.nextData(offset)
		}
		if data >= offset+length && n == chunkSectors {
			dst[i] = f.zeroHash()
			continue
		}
		if err := f.ReadAt(buffer[:length], sector); err != nil {
			return err
		}
		dst[i] = HashChunk(buffer[:length])
	}
	return nil
}

// NextData returns the first sector from this one on that is not in a hole of the
// file, as far as the system says; Sectors if there is none.
func (f *File) NextData(sector uint64) uint64 {
	return min(f.sectors, max(sector, uint64(f.nextData(int64(sector*epoch.SectorSize)))/epoch.SectorSize))
}

// nextData returns where data begins at or after offset (lseek(2), SEEK_DATA);
// offset itself where the system does not say.
func (f *File) nextData(offset int64) int64 {
	raw, err := f.data.SyscallConn()
	if err != nil {
		return offset
	}
	at := offset
	err = raw.Control(func(fd uintptr) {
		n, serr := unix.Seek(int(fd), offset, unix.SEEK_DATA)
		switch {
		case errors.Is(serr, unix.ENXIO):
			at = int64(f.sectors * epoch.SectorSize)
		case serr == nil:
			at = n
		}
	})
	if err != nil {
		return offset
	}
	return at
}
