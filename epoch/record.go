package epoch

import (
	"encoding/binary"
	"slices"

	"github.com/zeebo/xxh3"
)

// An epoch travels as one header, any number of chunks, and one trailer. The
// carrier (a session, a checkpoint file) keeps the three apart and keeps the
// lengths; a chunk is a sequence of whole records. Every number is little
// endian, every reserved byte is zero and checked.
//
// Header, 72 bytes:
//
//	offset size field
//	0      4    magic "UEPH"
//	4      1    version of the format, 2
//	5      1    kind: 1 sync, 2 checkpoint
//	6      2    reserved
//	8      8    number of this epoch: the parent's number + 1
//	16     8    generation
//	24     8    size of the image in pages, 1 … 2^36
//	32     16   parent position: image
//	48     8    parent position: number
//	56     16   parent position: running hash
//
// Record, an 8-byte head and what the type says:
//
//	offset size field
//	0      1    type
//	1      5    frame
//	6      2    n
//	8           body
//
//	type            frame             n              body
//	1 zero run      first page        pages, ≥ 1     none: all bytes of these pages are zero
//	2 raw run       first page        pages, ≥ 1     n × 4096 bytes
//	3 packed page   page              bytes, ≥ 1     an s2 block of 4096 bytes
//	4 patched page  page              bytes, ≥ 0     check (4 bytes), then n bytes of patch (patch.go)
//	5 xored page    page              bytes, ≥ 1     check (4 bytes), then an s2 block of 4096 bytes
//	6 device state  offset, in bytes  bytes, ≥ 1     n bytes of the state
//	7 end           0                 0              none: nothing follows
//	8 packed state  offset, in bytes  bytes, ≥ 1     an s2 block of 1 … 65535 bytes of the state
//	16 references   first page        pages, ≥ 1     disk's first sector (7 bytes), disk (1), n × 16 bytes of fingerprints
//	17 copied page  page              0              source page (8), check (4)
//	32 disk write   disk              kind, 1 … 5    seq (8), first sector (8), sectors (4)
//	33 raw data     sector            sectors, ≥ 1   n × 512 bytes
//	34 zero data    sector            sectors, ≥ 1   none
//	35 packed data  sector            bytes, ≥ 1     an s2 block of whole sectors, 1 … 127 of them
//	36 page data    sector            pages, ≥ 1     first source page (8), n × 8 bytes of checks
//	40 disk state   offset, in bytes  bytes, ≥ 1     n bytes of the state
//	41 packed disk state              bytes, ≥ 1     an s2 block of 1 … 65535 bytes of the state
//
// Records come in this order: pages (1 to 5, 16, 17), disk writes (32 to 36),
// device state (6, 8), disk state (40, 41), end.
//
// Pages come in ascending order, each at most once. Types 4 and 5 build on the
// page's content after the parent epoch: a patch replaces words of it, an s2
// block of type 5 is XORed with it; check is the low 32 bits of the xxh3-64 of
// the resulting page, so that a wrong base is seen. n of types 3, 4 and 5 is
// at most 4096. Pieces of the device state (types 6 and 8) come in order,
// without gaps, at most 64 MiB in all; a checkpoint has at least one, a sync
// none. The offset is that in the state itself. A record of
// unknown type is refused.
//
// References say that page first+i has the content of the 8 sectors from
// first sector + 8i on, whose keyed fingerprint is the i-th (Fingerprint). A
// copied page has the content that its source, a lower page, has after this
// epoch; the source is no reference of this epoch.
//
// A write's kinds are those of WriteKind. Kinds 1 and 5 (data) have 1 … 8192
// sectors, and data records follow that give each of them once, in order; the
// sector of a data record counts from the write's first. Kinds 2 and 3 have 1 …
// 32768 sectors and no data, kind 4 has sector 0 and no sectors. seq ascends,
// from 1; it is 0 for kind 5 alone. Page data is the content of n adjacent pages
// as they are after this epoch, none of them a reference of this epoch; their
// checks are the xxh3-64 of each. Disk state is at most 1 MiB, without gaps, and
// may be missing.
//
// Trailer, 112 bytes:
//
//	offset size field
//	0      4    magic "UEPT"
//	4      1    version of the format, 2
//	5      3    reserved
//	8      8    number of chunks
//	16     8    bytes of all chunks
//	24     8    number of records
//	32     8    pages the epoch changes, references included
//	40     8    bytes of device state
//	48     8    pages that are references
//	56     8    disk writes
//	64     8    bytes of their data
//	72     8    bytes of disk state
//	80     16   checksum: xxh3-128 of the header and every chunk, in order
//	96     16   resulting running hash: xxh3-128(parent's running hash ‖ header ‖ checksum)

const (
	// FormatVersion is the version of the record format written and read here.
	FormatVersion = 2
	// HeaderSize is the size of an encoded Header in bytes.
	HeaderSize = 72
	// TrailerSize is the size of an encoded Trailer in bytes.
	TrailerSize = 112
	// MaxPages bounds the size of an image: 2^36 pages, 256 TiB.
	MaxPages = 1 << 36
	// MaxDeviceState bounds an epoch's device state, in bytes.
	MaxDeviceState = 64 << 20
	// MaxDiskState bounds an epoch's disk state, in bytes.
	MaxDiskState = 1 << 20

	headerMagic  = "UEPH"
	trailerMagic = "UEPT"
)

type recordType uint8

const (
	recordZero            recordType = 1
	recordRaw             recordType = 2
	recordPacked          recordType = 3
	recordPatch           recordType = 4
	recordXOR             recordType = 5
	recordState           recordType = 6
	recordEnd             recordType = 7
	recordPackedState     recordType = 8
	recordReference       recordType = 16
	recordCopy            recordType = 17
	recordWrite           recordType = 32
	recordRawData         recordType = 33
	recordZeroData        recordType = 34
	recordPackedData      recordType = 35
	recordPageData        recordType = 36
	recordDiskState       recordType = 40
	recordPackedDiskState recordType = 41
)

const (
	headSize  = 8
	checkSize = 4
	maxCount  = 1<<16 - 1 // of a record head's n

	extentSize    = 8         // a reference record's disk and sector
	copySize      = 8         // a copy record's source
	writeSize     = 8 + 8 + 4 // a write record's body
	pageDataSize  = 8         // a page data record's source
	pageDataCheck = 8         // and what follows for each page
)

// part is the place of a record in the order of an epoch's records.
type part uint8

const (
	partPages part = iota
	partWrites
	partDevice
	partDisk
	partEnd
)

func (p part) String() string {
	return [...]string{"pages", "disk writes", "device state", "disk state", "the end"}[p]
}

// part returns where records of a type belong, and false for unknown types.
func (t recordType) part() (part, bool) {
	switch t {
	case recordZero, recordRaw, recordPacked, recordPatch, recordXOR, recordReference, recordCopy:
		return partPages, true
	case recordWrite, recordRawData, recordZeroData, recordPackedData, recordPageData:
		return partWrites, true
	case recordState, recordPackedState:
		return partDevice, true
	case recordDiskState, recordPackedDiskState:
		return partDisk, true
	case recordEnd:
		return partEnd, true
	}
	return 0, false
}

// putHead writes a record's head to the first headSize bytes of dst. frame is
// below 2^40 and n below 2^16: images are bounded by MaxPages.
func putHead(dst []byte, t recordType, frame uint64, n int) {
	binary.LittleEndian.PutUint64(dst, uint64(t)|frame<<8|uint64(n)<<48)
}

func parseHead(b []byte) (t recordType, frame uint64, n int) {
	v := binary.LittleEndian.Uint64(b)
	return recordType(v), v << 16 >> 24, int(v >> 48)
}

// pageCheck is the check of records that build on a base.
func pageCheck(page []byte) uint32 { return uint32(xxh3.Hash(page)) }

// Header opens an epoch.
type Header struct {
	Kind       Kind
	Number     Number     // the parent's number + 1
	Parent     Position   // what the epoch builds on
	Generation Generation // of the owner that made it
	Pages      uint64     // size of the image in pages
}

// AppendTo appends the HeaderSize bytes of h to dst.
func (h Header) AppendTo(dst []byte) []byte {
	dst = append(slices.Grow(dst, HeaderSize), headerMagic...)
	dst = append(dst, FormatVersion, byte(h.Kind), 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.Number))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.Generation))
	dst = binary.LittleEndian.AppendUint64(dst, h.Pages)
	dst = append(dst, h.Parent.Image[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.Parent.Number))
	return append(dst, h.Parent.Running[:]...)
}

// ParseHeader reads a header. It refuses, with a *RefusedError, any bytes that
// AppendTo would not have written for a valid Header.
func ParseHeader(b []byte) (Header, error) {
	if err := checkFrame("header", b, HeaderSize, headerMagic); err != nil {
		return Header{}, err
	}
	if b[6] != 0 || b[7] != 0 {
		return Header{}, refuse(ErrMalformed, 0, "reserved bytes of the header are %#x, want zero", b[6:8])
	}
	h := Header{
		Kind:       Kind(b[5]),
		Number:     Number(binary.LittleEndian.Uint64(b[8:])),
		Generation: Generation(binary.LittleEndian.Uint64(b[16:])),
		Pages:      binary.LittleEndian.Uint64(b[24:]),
		Parent: Position{
			Image:   Incarnation(b[32:48]),
			Number:  Number(binary.LittleEndian.Uint64(b[48:])),
			Running: Hash(b[56:72]),
		},
	}
	if err := h.check(); err != nil {
		return Header{}, err
	}
	return h, nil
}

// check refuses a header that makes no sense in itself.
func (h Header) check() error {
	switch {
	case h.Kind != KindSync && h.Kind != KindCheckpoint:
		return refuse(ErrMalformed, h.Number, "unknown %v", h.Kind)
	case h.Number == 0 || h.Number-1 != h.Parent.Number:
		return refuse(ErrMalformed, h.Number, "its parent is epoch %d, want the one before it", h.Parent.Number)
	case h.Parent.Image.IsZero():
		return refuse(ErrMalformed, h.Number, "its parent names no image")
	case h.Pages == 0 || h.Pages > MaxPages:
		return refuse(ErrMalformed, h.Number, "an image of %d pages, want 1 to %d", h.Pages, uint64(MaxPages))
	}
	return nil
}

// Trailer closes an epoch. Everything in it can be computed from the header
// and the chunks, and the receiver compares all of it.
type Trailer struct {
	Chunks      uint64 // number of chunks
	Bytes       uint64 // bytes of all chunks
	Records     uint64 // number of records, the end record included
	PageCount   uint64 // pages the epoch changes, zero pages and references included
	DeviceBytes uint64 // bytes of device state
	References  uint64 // pages that are references
	Writes      uint64 // disk writes of every kind
	WriteBytes  uint64 // bytes of their data
	DiskBytes   uint64 // bytes of disk state
	Checksum    Hash   // over the header and every chunk
	Running     Hash   // the running hash of the position this epoch leads to
}

// AppendTo appends the TrailerSize bytes of t to dst.
func (t Trailer) AppendTo(dst []byte) []byte {
	dst = append(slices.Grow(dst, TrailerSize), trailerMagic...)
	dst = append(dst, FormatVersion, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, t.Chunks)
	dst = binary.LittleEndian.AppendUint64(dst, t.Bytes)
	dst = binary.LittleEndian.AppendUint64(dst, t.Records)
	dst = binary.LittleEndian.AppendUint64(dst, t.PageCount)
	dst = binary.LittleEndian.AppendUint64(dst, t.DeviceBytes)
	dst = binary.LittleEndian.AppendUint64(dst, t.References)
	dst = binary.LittleEndian.AppendUint64(dst, t.Writes)
	dst = binary.LittleEndian.AppendUint64(dst, t.WriteBytes)
	dst = binary.LittleEndian.AppendUint64(dst, t.DiskBytes)
	dst = append(dst, t.Checksum[:]...)
	return append(dst, t.Running[:]...)
}

// ParseTrailer reads a trailer. It refuses, with a *RefusedError, any bytes
// that AppendTo would not have written.
func ParseTrailer(b []byte) (Trailer, error) {
	if err := checkFrame("trailer", b, TrailerSize, trailerMagic); err != nil {
		return Trailer{}, err
	}
	if b[5] != 0 || b[6] != 0 || b[7] != 0 {
		return Trailer{}, refuse(ErrMalformed, 0, "reserved bytes of the trailer are %#x, want zero", b[5:8])
	}
	return Trailer{
		Chunks:      binary.LittleEndian.Uint64(b[8:]),
		Bytes:       binary.LittleEndian.Uint64(b[16:]),
		Records:     binary.LittleEndian.Uint64(b[24:]),
		PageCount:   binary.LittleEndian.Uint64(b[32:]),
		DeviceBytes: binary.LittleEndian.Uint64(b[40:]),
		References:  binary.LittleEndian.Uint64(b[48:]),
		Writes:      binary.LittleEndian.Uint64(b[56:]),
		WriteBytes:  binary.LittleEndian.Uint64(b[64:]),
		DiskBytes:   binary.LittleEndian.Uint64(b[72:]),
		Checksum:    Hash(b[80:96]),
		Running:     Hash(b[96:112]),
	}, nil
}

// checkFrame checks what headers and trailers begin with.
func checkFrame(what string, b []byte, size int, magic string) error {
	switch {
	case len(b) != size:
		return refuse(ErrMalformed, 0, "a %s of %d bytes, want %d", what, len(b), size)
	case string(b[:4]) != magic:
		return refuse(ErrMalformed, 0, "a %s that begins with %q, want %q", what, b[:4], magic)
	case b[4] != FormatVersion:
		return refuse(ErrVersion, 0, "a %s of version %d, this program speaks %d", what, b[4], FormatVersion)
	}
	return nil
}

// digest follows an epoch and yields its two hashes.
type digest struct {
	h      xxh3.Hasher
	header [HeaderSize]byte
	parent Hash
}

func (d *digest) begin(h Header) {
	h.AppendTo(d.header[:0])
	d.parent = h.Parent.Running
	d.h.Reset()
	d.write(d.header[:])
}

func (d *digest) write(b []byte) {
	_, _ = d.h.Write(b) // a hash's Write never fails
}

func (d *digest) end() (checksum, running Hash) {
	checksum = d.h.Sum128().Bytes()
	var b [len(Hash{}) + HeaderSize + len(Hash{})]byte
	n := copy(b[:], d.parent[:])
	n += copy(b[n:], d.header[:])
	copy(b[n:], checksum[:])
	return checksum, xxh3.Hash128(b[:]).Bytes()
}
