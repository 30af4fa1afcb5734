package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/klauspost/compress/s2"
	"github.com/zeebo/xxh3"

	"understudy/epoch"
	"understudy/hypervisor"
)

// A checkpoint file is a preface, eight sections without gaps between them, a
// table of the sections and a trailer. Every number is little endian, every
// reserved byte is zero and checked. Only the trailer makes it a checkpoint:
// what has none was never finished.
//
// Preface, 32 bytes:
//
//	offset size field
//	0      8    magic "UNDRCKPT"
//	8      4    version of the format, 1
//	12     4    reserved
//	16     16   salt, random: binds records and leaves to their file
//
// Sections, in this order: 1 records, 2 leaves, 3 machine, 4 device state,
// 5 disk state, 6 directory, 7 summary, 8 head. 3 to 5 are one s2 block each
// (or nothing, for nothing), 7 and 8 are JSON of at most 64 KiB. Table: 8 × 48
// bytes:
//
//	offset size field
//	0      4    section
//	4      4    reserved
//	8      8    offset in the file
//	16     8    bytes in the file
//	24     8    bytes decoded
//	32     16   xxh3-128 of the bytes in the file; 0 for records and leaves
//
// Trailer, 64 bytes:
//
//	offset size field
//	0      8    magic "UNDRCEND"
//	8      4    version of the format, 1
//	12     4    sections, 8
//	16     8    offset of the table
//	24     8    size of the file
//	32     16   reserved
//	48     16   id: xxh3-128 of the preface, the table and bytes 0 to 47 of this
//
// Record, at a multiple of 16 from the start of the file, padded with zeros to
// one; holds 1 to 16 pages, in any order:
//
//	offset size field
//	0      8    checksum: xxh3-64 of all that follows, seeded with the salt and the offset
//	8      4    bytes of the body
//	12     1    pages
//	13     1    1: the body is an s2 block; 0: it is the pages as they are
//	14     2    reserved
//	16          body
//
// Directory: for each 4096 pages of the image one leaf:
//
//	offset size field
//	0      4    bytes of the packed entries; 0: every page of the leaf is zero
//	4      4    fingerprints
//	8      8    checksum: xxh3-64 of the leaf, seeded with the salt and its number
//
// Leaf: an s2 block of 8 bytes per page, then 16 bytes of fingerprint for each
// page of kind 1 or 2. Leaves follow each other without gaps. Entry of a page:
//
//	bits   0 zero   1 record           2 disk block   3 parent
//	0…3    0        1                  2              3: as in the parent
//	4…7    0        page's place in it 0              0
//	8…23   0        its size / 16      disk           0
//	24…63  0        its offset / 16    sector         0

const (
	// FormatVersion is the version of checkpoint files written and read here.
	FormatVersion = 1

	prefaceMagic = "UNDRCKPT"
	trailerMagic = "UNDRCEND"
	prefaceSize  = 32
	sectionSize  = 48
	trailerSize  = 64
	maxJSON      = 64 << 10

	unit       = 16 // records begin at multiples of it
	recordHead = 16
	// recordPages is a bargain: more pages pack better, fewer are quicker to
	// read for the sake of one of them.
	recordPages = 16
	maxRecord   = recordHead + recordPages*epoch.PageSize

	leafPages   = 4096
	entrySize   = 8
	printSize   = len(epoch.Fingerprint{})
	dirSize     = 16
	maxFileSize = 1 << 44 // 40 bits of units
)

type section uint32

const (
	sectionRecords section = iota + 1
	sectionLeaves
	sectionMachine
	sectionDevice
	sectionDisk
	sectionDirectory
	sectionSummary
	sectionHead
	sections = int(sectionHead)
)

func (s section) String() string {
	names := [...]string{"", "records", "leaves", "machine", "device state", "disk state", "directory", "summary", "head"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("section(%d)", uint32(s))
}

// most returns the largest decoded size of a section, 0 if only the file bounds
// it.
func (s section) most() uint64 {
	switch s {
	case sectionMachine:
		return hypervisor.MaxSpec
	case sectionDevice:
		return epoch.MaxDeviceState
	case sectionDisk:
		return MaxDiskState
	case sectionDirectory:
		return MaxPages / leafPages * dirSize
	case sectionSummary, sectionHead:
		return maxJSON
	}
	return 0
}

// packs reports whether a section is an s2 block.
func (s section) packs() bool {
	return s == sectionMachine || s == sectionDevice || s == sectionDisk
}

type tableEntry struct {
	offset, stored, size uint64
	sum                  [16]byte
}

type table [sections]tableEntry

func (t *table) of(s section) *tableEntry { return &t[s-1] }

type salt [16]byte

// seed binds a checksum to its file and to a place in it.
func (s salt) seed(place uint64) uint64 {
	return binary.LittleEndian.Uint64(s[:]) ^ binary.LittleEndian.Uint64(s[8:])*0x9e3779b97f4a7c15 ^ place
}

func appendPreface(dst []byte, s salt) []byte {
	dst = append(dst, prefaceMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, FormatVersion)
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	return append(dst, s[:]...)
}

// parsePreface looks at the first prefaceSize bytes of a file.
func parsePreface(b []byte) (s salt, err error) {
	if len(b) != prefaceSize || string(b[:8]) != prefaceMagic {
		return s, fmt.Errorf("%w: it does not begin as a checkpoint file does", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != FormatVersion {
		return s, fmt.Errorf("%w: version %d, want %d", ErrVersion, v, FormatVersion)
	}
	if binary.LittleEndian.Uint32(b[12:]) != 0 {
		return s, fmt.Errorf("%w: reserved bytes of its preface are not zero", ErrDamaged)
	}
	return salt(b[16:]), nil
}

// appendTail appends the table and the trailer, which ends a file.
func appendTail(dst, preface []byte, t *table, offset uint64) ([]byte, ID) {
	from := len(dst)
	for i, e := range t {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(i+1))
		dst = binary.LittleEndian.AppendUint32(dst, 0)
		dst = binary.LittleEndian.AppendUint64(dst, e.offset)
		dst = binary.LittleEndian.AppendUint64(dst, e.stored)
		dst = binary.LittleEndian.AppendUint64(dst, e.size)
		dst = append(dst, e.sum[:]...)
	}
	dst = append(dst, trailerMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, FormatVersion)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(sections))
	dst = binary.LittleEndian.AppendUint64(dst, offset)
	dst = binary.LittleEndian.AppendUint64(dst, offset+tailSize)
	dst = append(dst, make([]byte, 16)...)
	id := tailID(preface, dst[from:])
	return append(dst, id[:]...), id
}

const tailSize = uint64(sections*sectionSize + trailerSize)

// tailID names a file by its preface and its tail, without the id itself.
func tailID(preface, tail []byte) ID {
	return xxh3.Hash128(slices.Concat(preface, tail)).Bytes()
}

// parseTail looks at the last tailSize bytes of a file of the given size.
func parseTail(preface, b []byte, size uint64) (t table, id ID, err error) {
	bad := func(format string, args ...any) (table, ID, error) {
		return t, id, fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
	}
	if uint64(len(b)) != tailSize {
		return bad("a tail of %d bytes", len(b))
	}
	end := b[sections*sectionSize:]
	if string(end[:8]) != trailerMagic {
		return bad("it does not end as a checkpoint file does: it was cut off, or never finished")
	}
	if v := binary.LittleEndian.Uint32(end[8:]); v != FormatVersion {
		return t, id, fmt.Errorf("%w: a trailer of version %d, want %d", ErrVersion, v, FormatVersion)
	}
	id = ID(end[48:])
	if id != tailID(preface, b[:len(b)-len(id)]) {
		return bad("the checksum of its trailer does not hold")
	}
	// What follows holds for every file this program wrote; it is for those it
	// did not write.
	offset := binary.LittleEndian.Uint64(end[16:])
	if n := binary.LittleEndian.Uint32(end[12:]); int(n) != sections {
		return bad("it counts %d sections, want %d", n, sections)
	}
	if got := binary.LittleEndian.Uint64(end[24:]); got != size || offset != size-tailSize {
		return bad("its trailer is that of a file of %d bytes, it has %d", got, size)
	}
	if [16]byte(end[32:48]) != [16]byte{} {
		return bad("reserved bytes of its trailer are not zero")
	}
	at := uint64(prefaceSize)
	for i := range t {
		row, s := b[i*sectionSize:(i+1)*sectionSize], section(i+1)
		e := tableEntry{
			offset: binary.LittleEndian.Uint64(row[8:]),
			stored: binary.LittleEndian.Uint64(row[16:]),
			size:   binary.LittleEndian.Uint64(row[24:]),
			sum:    [16]byte(row[32:]),
		}
		switch {
		case binary.LittleEndian.Uint32(row) != uint32(s) || binary.LittleEndian.Uint32(row[4:]) != 0:
			return bad("row %d of its table is not that of section %v", i, s)
		case e.offset != at || e.stored > offset-at:
			return bad("section %v lies at %d+%d, want it at %d and inside the %d bytes before the table", s, e.offset, e.stored, at, offset)
		case s.most() > 0 && e.size > s.most():
			return bad("section %v has %d bytes, want at most %d", s, e.size, s.most())
		case !s.packs() && e.size != e.stored:
			return bad("section %v has %d bytes in the file and %d outside", s, e.stored, e.size)
		case s.packs() && (e.stored == 0) != (e.size == 0), s.packs() && e.stored > uint64(s2.MaxEncodedLen(int(e.size))):
			return bad("section %v has %d bytes in the file for %d outside", s, e.stored, e.size)
		}
		t[i] = e
		at += e.stored
	}
	if at != offset {
		return bad("%d bytes between its sections and its table", offset-at)
	}
	return t, id, nil
}

type kind uint8

const (
	kindZero kind = iota
	kindRecord
	kindBlock
	kindParent

	// Only in memory, only in a writer:
	kindOpen   kind = 14 // in a record that is not written yet
	kindAbsent kind = 15 // not given yet
)

// entry says where a page's content is.
type entry uint64

func recordEntry(slot int, size, offset uint64) entry {
	return entry(kindRecord) | entry(slot)<<4 | entry(size/unit)<<8 | entry(offset/unit)<<24
}

func blockEntry(at Place) entry {
	return entry(kindBlock) | entry(at.Disk)<<8 | entry(at.Sector)<<24
}

func (e entry) kind() kind     { return kind(e & 15) }
func (e entry) slot() int      { return int(e >> 4 & 15) }
func (e entry) size() uint64   { return uint64(e>>8&0xffff) * unit }
func (e entry) offset() uint64 { return uint64(e>>24) * unit }
func (e entry) place() Place   { return Place{Disk: epoch.DiskID(e >> 8), Sector: uint64(e >> 24)} }

// printed reports whether the leaf holds a fingerprint for such a page.
func (e entry) printed() bool { return e.kind() == kindRecord || e.kind() == kindBlock }

// layRecord completes a record whose body is b[recordHead:], but for its
// checksum, and returns it padded. b has room for that.
func layRecord(b []byte, pages int, packed bool) []byte {
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-recordHead))
	b[12], b[13], b[14], b[15] = byte(pages), 0, 0, 0
	if packed {
		b[13] = 1
	}
	for len(b)%unit != 0 {
		b = append(b, 0)
	}
	return b
}

// signRecord gives a record the checksum it has at an offset.
func signRecord(b []byte, s salt, offset uint64) {
	binary.LittleEndian.PutUint64(b, xxh3.HashSeed(b[8:], s.seed(offset)))
}

// openRecord checks a record read from offset and unpacks it into dst, which
// has room for recordPages; it returns the pages.
func openRecord(dst, b []byte, s salt, offset uint64) ([]byte, error) {
	if len(b) < recordHead || len(b) > maxRecord || len(b)%unit != 0 {
		return nil, fmt.Errorf("%w: a record of %d bytes", ErrDamaged, len(b))
	}
	if binary.LittleEndian.Uint64(b) != xxh3.HashSeed(b[8:], s.seed(offset)) {
		return nil, fmt.Errorf("%w: the checksum of the record at byte %d does not hold", ErrDamaged, offset)
	}
	n, pages, packed := uint64(binary.LittleEndian.Uint32(b[8:])), int(b[12]), b[13]
	body := b[recordHead:]
	if n > uint64(len(body)) || uint64(len(body))-n >= unit || pages < 1 || pages > recordPages || packed > 1 || b[14] != 0 || b[15] != 0 {
		return nil, fmt.Errorf("%w: the head of the record at byte %d makes no sense", ErrDamaged, offset)
	}
	body, dst = body[:n], dst[:pages*epoch.PageSize]
	if packed == 0 {
		if len(body) != len(dst) {
			return nil, fmt.Errorf("%w: the record at byte %d has %d bytes for %d pages", ErrDamaged, offset, len(body), pages)
		}
		copy(dst, body)
		return dst, nil
	}
	err := unpack(dst, body)
	if err != nil {
		return nil, fmt.Errorf("%w: the record at byte %d: %w", ErrDamaged, offset, err)
	}
	return dst, nil
}

// unpack decodes an s2 block that must fill dst.
func unpack(dst, b []byte) error {
	n, err := s2.DecodedLen(b)
	if err == nil && n != len(dst) {
		return fmt.Errorf("it unpacks to %d bytes, want %d", n, len(dst))
	}
	if err == nil {
		_, err = s2.Decode(dst, b)
	}
	return err
}

// leaf is a piece of the index, as read.
type leaf struct {
	entries [leafPages]entry
	prints  [leafPages]epoch.Fingerprint // of printed entries
}

// appendLeaf appends a leaf of the given entries and prints, and its row of the
// directory to dir.
func appendLeaf(dst, dir []byte, number uint64, entries []entry, prints []epoch.Fingerprint, s salt, scratch *[]byte) (leaf, row []byte) {
	if !slices.ContainsFunc(entries, func(e entry) bool { return e != 0 }) {
		return dst, append(dir, make([]byte, dirSize)...)
	}
	raw := (*scratch)[:0]
	for _, e := range entries {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(e))
	}
	*scratch = raw
	from := len(dst)
	dst = slices.Grow(dst, s2.MaxEncodedLen(len(raw))+len(entries)*printSize)
	packed := len(s2.Encode(dst[from:cap(dst)], raw))
	dst = dst[:from+packed]
	count := 0
	for i, e := range entries {
		if e.printed() {
			dst = append(dst, prints[i][:]...)
			count++
		}
	}
	dir = binary.LittleEndian.AppendUint32(dir, uint32(packed))
	dir = binary.LittleEndian.AppendUint32(dir, uint32(count))
	return dst, binary.LittleEndian.AppendUint64(dir, xxh3.HashSeed(dst[from:], s.seed(number)))
}

var errLeaf = errors.New("its entries make no sense")

// parseLeaf reads a leaf of count pages whose directory row is row into l.
// raw is scratch of leafPages*entrySize bytes.
func parseLeaf(l *leaf, b, row, raw []byte, number uint64, count int, s salt) error {
	packed, prints := int(binary.LittleEndian.Uint32(row)), int(binary.LittleEndian.Uint32(row[4:]))
	if packed == 0 {
		return nil
	}
	if binary.LittleEndian.Uint64(row[8:]) != xxh3.HashSeed(b, s.seed(number)) {
		return fmt.Errorf("%w: the checksum of leaf %d of its index does not hold", ErrDamaged, number)
	}
	raw = raw[:count*entrySize]
	if err := unpack(raw, b[:packed]); err != nil {
		return fmt.Errorf("%w: leaf %d of its index: %w", ErrDamaged, number, err)
	}
	b = b[packed:]
	for i := range count {
		e := entry(binary.LittleEndian.Uint64(raw[i*entrySize:]))
		l.entries[i] = e
		if e.printed() {
			if len(b) < printSize {
				return fmt.Errorf("%w: leaf %d of its index has %d fingerprints, which is too few", ErrDamaged, number, prints)
			}
			l.prints[i] = epoch.Fingerprint(b)
			b = b[printSize:]
		}
	}
	if len(b) != 0 {
		return fmt.Errorf("%w: leaf %d of its index has %d fingerprints, which is too many", ErrDamaged, number, prints)
	}
	return nil
}

// checkRows refuses a directory whose leaves cannot be, and returns where each
// leaf begins in the leaves section, and where the last one ends.
func checkRows(dir []byte, size uint64) ([]uint64, error) {
	starts := make([]uint64, 0, len(dir)/dirSize+1)
	var at uint64
	for i := 0; i < len(dir); i += dirSize {
		packed, prints := binary.LittleEndian.Uint32(dir[i:]), binary.LittleEndian.Uint32(dir[i+4:])
		if int64(packed) > int64(s2.MaxEncodedLen(leafPages*entrySize)) || prints > leafPages || packed == 0 && binary.LittleEndian.Uint64(dir[i+8:])|uint64(prints) != 0 {
			return nil, fmt.Errorf("%w: row %d of its directory counts %d bytes and %d fingerprints", ErrDamaged, i/dirSize, packed, prints)
		}
		starts = append(starts, at)
		at += uint64(packed) + uint64(prints)*uint64(printSize)
	}
	if at != size {
		return nil, fmt.Errorf("%w: its directory counts %d bytes of leaves, there are %d", ErrDamaged, at, size)
	}
	return append(starts, at), nil
}
