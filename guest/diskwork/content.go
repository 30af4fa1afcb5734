package diskwork

// What a file of the work holds. Every sector of 512 bytes speaks for itself:
//
//	0   4  magic
//	4   4  number of the file
//	8   8  version of the file
//	16  4  number of this sector
//	20  4  sectors of the file
//	24     words that follow from the fields above
//	504 8  xxh3 of all before
//
// so that a sector that was lost, torn, taken from another file, another place or
// another time shows, also to a guest that has forgotten what it wrote. All
// numbers are little endian.

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"
)

const (
	sectorSize = 512
	headerSize = 24
	magic      = 0x5452574b // "KWRT"
)

// fill makes data, a multiple of 512 bytes, the content of version of file and
// returns its checksum.
func fill(data []byte, file int, version uint64) (sum uint64) {
	sectors := len(data) / sectorSize
	for i := range sectors {
		s := data[i*sectorSize:][:sectorSize]
		binary.LittleEndian.PutUint32(s, magic)
		binary.LittleEndian.PutUint32(s[4:], uint32(file))
		binary.LittleEndian.PutUint64(s[8:], version)
		binary.LittleEndian.PutUint32(s[16:], uint32(i))
		binary.LittleEndian.PutUint32(s[20:], uint32(sectors))
		word := version*0x9e3779b97f4a7c15 ^ uint64(file)<<32 ^ uint64(i)
		for at := headerSize; at < sectorSize-8; at += 8 {
			// splitmix64: no two sectors alike, and nothing compresses.
			word += 0x9e3779b97f4a7c15
			z := (word ^ word>>30) * 0xbf58476d1ce4e5b9
			z = (z ^ z>>27) * 0x94d049bb133111eb
			binary.LittleEndian.PutUint64(s[at:], z^z>>31)
		}
		binary.LittleEndian.PutUint64(s[sectorSize-8:], xxh3.Hash(s[:sectorSize-8]))
	}
	return xxh3.Hash(data)
}

// seen is what a file was found to hold: whole sectors of versions low to high.
type seen struct {
	low, high uint64
	sum       uint64
}

// inspect checks every sector of data, the whole content of file.
func inspect(file int, data []byte) (seen, error) {
	if len(data) == 0 || len(data)%sectorSize != 0 {
		return seen{}, fmt.Errorf("%d bytes long, not a positive multiple of %d", len(data), sectorSize)
	}
	found := seen{low: ^uint64(0), sum: xxh3.Hash(data)}
	sectors := len(data) / sectorSize
	for i := range sectors {
		s := data[i*sectorSize:][:sectorSize]
		if binary.LittleEndian.Uint64(s[sectorSize-8:]) != xxh3.Hash(s[:sectorSize-8]) {
			if empty(s) {
				return seen{}, fmt.Errorf("sector %d of %d is all zeros", i, sectors)
			}
			return seen{}, fmt.Errorf("sector %d of %d has a wrong checksum", i, sectors)
		}
		version := binary.LittleEndian.Uint64(s[8:])
		is := [4]uint32{binary.LittleEndian.Uint32(s), binary.LittleEndian.Uint32(s[4:]), binary.LittleEndian.Uint32(s[16:]), binary.LittleEndian.Uint32(s[20:])}
		if want := [4]uint32{magic, uint32(file), uint32(i), uint32(sectors)}; is != want {
			return seen{}, fmt.Errorf("sector %d of %d is sector %d of %d of file %d, version %d", i, sectors, is[2], is[3], is[1], version)
		}
		found.low, found.high = min(found.low, version), max(found.high, version)
	}
	return found, nil
}

func empty(s []byte) bool {
	for _, b := range s {
		if b != 0 {
			return false
		}
	}
	return true
}

// known is what is known of a file: a version whose write was acknowledged.
type known struct {
	version, sum uint64
	// exact says that nothing was written since: not even a piece of the next
	// version may be there.
	exact bool
}

// judge says what is wrong with a file that was found to hold found. torn says
// that it is overwritten in place, so that a crash may leave some sectors of the
// version that was being written beside those of the one before.
func judge(found seen, k known, torn bool) error {
	switch {
	case found.low < k.version:
		return fmt.Errorf("holds version %d, but the write of version %d was acknowledged", found.low, k.version)
	case found.high != found.low && !torn:
		return fmt.Errorf("holds versions %d to %d, but it is only ever replaced as a whole", found.low, found.high)
	case found.high-found.low > 1:
		return fmt.Errorf("holds versions %d to %d, but each is on the disk before the next is written", found.low, found.high)
	case k.exact && found.high > k.version:
		return fmt.Errorf("holds version %d, but %d was the last one written", found.high, k.version)
	case k.version != 0 && found.low == k.version && found.high == k.version && found.sum != k.sum:
		return fmt.Errorf("version %d has checksum %016x, it was written with %016x", k.version, found.sum, k.sum)
	}
	return nil
}
