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
//	4      1    version of the format, 1
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
//	16 … 31 are kept for references (page ↔ disk block)
//	32 … 47 are kept for disk writes
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
// Trailer, 88 bytes:
//
//	offset size field
//	0      4    magic "UEPT"
//	4      1    version of the format, 1
//	5      3    reserved
//	8      8    number of chunks
//	16     8    bytes of all chunks
//	24     8    number of records
//	32     8    pages the epoch changes
//	40     8    bytes of device state
//	48     16   checksum: xxh3-128 of the header and every chunk, in order
//	64     16   resulting running hash: xxh3-128(parent's running hash ‖ header ‖ checksum)
//	80     8    reserved

const (
	// FormatVersion is the version of the record format written and read here.
	FormatVersion = 1
	// HeaderSize is the size of an encoded Header in bytes.
	HeaderSize = 72
	// TrailerSize is the size of an encoded Trailer in bytes.
	TrailerSize = 88
	// MaxPages bounds the size of an image: 2^36 pages, 256 TiB.
	MaxPages = 1 << 36
	// MaxDeviceState bounds an epoch's device state, in bytes.
	MaxDeviceState = 64 << 20

	headerMagic  = "UEPH"
	trailerMagic = "UEPT"
)

type recordType uint8

const (
	recordZero        recordType = 1
	recordRaw         recordType = 2
	recordPacked      recordType = 3
	recordPatch       recordType = 4
	recordXOR         recordType = 5
	recordState       recordType = 6
	recordEnd         recordType = 7
	recordPackedState recordType = 8
)

const (
	headSize  = 8
	checkSize = 4
	maxCount  = 1<<16 - 1 // of a record head's n
)

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
	PageCount   uint64 // pages the epoch changes, zero pages included
	DeviceBytes uint64 // bytes of device state
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
	dst = append(dst, t.Checksum[:]...)
	dst = append(dst, t.Running[:]...)
	return binary.LittleEndian.AppendUint64(dst, 0)
}

// ParseTrailer reads a trailer. It refuses, with a *RefusedError, any bytes
// that AppendTo would not have written.
func ParseTrailer(b []byte) (Trailer, error) {
	if err := checkFrame("trailer", b, TrailerSize, trailerMagic); err != nil {
		return Trailer{}, err
	}
	if b[5] != 0 || b[6] != 0 || b[7] != 0 || binary.LittleEndian.Uint64(b[80:]) != 0 {
		return Trailer{}, refuse(ErrMalformed, 0, "reserved bytes of the trailer are %#x and %#x, want zero", b[5:8], b[80:])
	}
	return Trailer{
		Chunks:      binary.LittleEndian.Uint64(b[8:]),
		Bytes:       binary.LittleEndian.Uint64(b[16:]),
		Records:     binary.LittleEndian.Uint64(b[24:]),
		PageCount:   binary.LittleEndian.Uint64(b[32:]),
		DeviceBytes: binary.LittleEndian.Uint64(b[40:]),
		Checksum:    Hash(b[48:64]),
		Running:     Hash(b[64:80]),
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
