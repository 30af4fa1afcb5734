package store

// This file is the format of a pin: the old content of what was written on a
// disk since a moment. Numbers are little-endian.
//
//	header   4096 bytes  0 magic · 8 version u32 · 12 block u32 · 16 sectors u64 ·
//	                     24 limit u64 · 32 stamp · 48 name · 4080 xxh3-128 of the
//	                     bytes before
//	records  40 bytes    0 magic u32 · 4 kind u32 · 8 sector u64 · 16 sectors u32 ·
//	                     20 length u32 · 24 xxh3-128 of (name, bytes before, content)
//	         length bytes of old content (kind data; zero and broken have none)
//
// Each record was durable before the write that it was made for; so a record
// that a crash has torn is one whose write was never made.

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"

	"understudy/epoch"
)

const (
	pinVersion   = 1
	pinHeader    = 4096
	pinRecord    = 40
	pinBlock     = 4096      // what is kept together, in bytes
	pinPiece     = 256 << 10 // most content of one record, in bytes
	pinBatch     = 4 << 20   // most that is appended between two syncs, in bytes
	pinTornMost  = pinBatch + 2*pinPiece
	pinMagic     = "USTRYPIN"
	recordMagic  = 0x43455250 // "PREC"
	blockSectors = pinBlock / epoch.SectorSize
)

type recordKind uint32

const (
	recordData   recordKind = 1
	recordZero   recordKind = 2 // the old content was zero
	recordBroken recordKind = 3 // from here on old content is missing
)

// ErrPin is wrapped by what is wrong with a pin file.
var ErrPin = errors.New("not a whole pin")

// ErrPinBroken says that a pin has stopped keeping old content.
var ErrPinBroken = errors.New("the pin is broken: writes went on without their old content being kept")

// PinID names a pin.
type PinID [16]byte

func (id PinID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes the name in hexadecimal.
func (id PinID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (id *PinID) UnmarshalText(text []byte) error {
	return parseHex16((*[16]byte)(id), text, "pin's name")
}

// PinHead is what a pin says of itself.
type PinHead struct {
	ID      PinID
	Stamp   Stamp  // the disk's, at the moment that is pinned
	Sectors uint64 // the disk's
	Limit   uint64 // most bytes of old content; 0: no limit
}

func (h PinHead) encode() []byte {
	b := make([]byte, pinHeader)
	copy(b, pinMagic)
	binary.LittleEndian.PutUint32(b[8:], pinVersion)
	binary.LittleEndian.PutUint32(b[12:], pinBlock)
	binary.LittleEndian.PutUint64(b[16:], h.Sectors)
	binary.LittleEndian.PutUint64(b[24:], h.Limit)
	copy(b[32:], h.Stamp[:])
	copy(b[48:], h.ID[:])
	sum := xxh3.Hash128(b[:pinHeader-16]).Bytes()
	copy(b[pinHeader-16:], sum[:])
	return b
}

func decodePinHead(b []byte) (h PinHead, err error) {
	if len(b) != pinHeader || string(b[:8]) != pinMagic {
		return h, fmt.Errorf("%w: its header is that of something else", ErrPin)
	}
	if xxh3.Hash128(b[:pinHeader-16]).Bytes() != [16]byte(b[pinHeader-16:]) {
		return h, fmt.Errorf("%w: its header's checksum does not hold", ErrPin)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != pinVersion {
		return h, fmt.Errorf("%w: version %d, this program knows %d", ErrPin, v, pinVersion)
	}
	if size := binary.LittleEndian.Uint32(b[12:]); size != pinBlock {
		return h, fmt.Errorf("%w: blocks of %d bytes, this program knows %d", ErrPin, size, pinBlock)
	}
	h.Sectors = binary.LittleEndian.Uint64(b[16:])
	h.Limit = binary.LittleEndian.Uint64(b[24:])
	h.Stamp, h.ID = Stamp(b[32:48]), PinID(b[48:64])
	if h.Sectors == 0 || h.Sectors > epoch.MaxSectors || h.ID == (PinID{}) {
		return h, fmt.Errorf("%w: a disk of %d sectors", ErrPin, h.Sectors)
	}
	return h, nil
}

// oldContent is one record: the sectors' old content is data, or zero (nil).
type oldContent struct {
	kind    recordKind
	sector  uint64
	sectors uint32
	data    []byte
}

// appendRecordHead appends the record's head, which its content follows.
func appendRecordHead(dst []byte, id PinID, r oldContent, h *xxh3.Hasher) []byte {
	start := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, recordMagic)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(r.kind))
	dst = binary.LittleEndian.AppendUint64(dst, r.sector)
	dst = binary.LittleEndian.AppendUint32(dst, r.sectors)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(r.data)))
	sum := recordSum(id, dst[start:], r.data, h)
	return append(dst, sum[:]...)
}

func recordSum(id PinID, head, data []byte, h *xxh3.Hasher) [16]byte {
	h.Reset()
	_, _ = h.Write(id[:]) // a hash does not fail
	_, _ = h.Write(head)
	_, _ = h.Write(data)
	return h.Sum128().Bytes()
}

// scanPin reads a pin of size bytes: it calls each for every whole record, with
// the offset of its content, and returns where they end. What follows there is
// torn, and no more than a crash can tear.
func scanPin(r io.ReaderAt, size int64, each func(c oldContent, at int64) error) (PinHead, int64, error) {
	if size < pinHeader {
		return PinHead{}, 0, fmt.Errorf("%w: %d bytes, the header alone has %d", ErrPin, size, pinHeader)
	}
	buffer := make([]byte, pinPiece)
	if _, err := r.ReadAt(buffer[:pinHeader], 0); err != nil {
		return PinHead{}, 0, fmt.Errorf("read the pin's header: %w", err)
	}
	head, err := decodePinHead(buffer[:pinHeader])
	if err != nil {
		return PinHead{}, 0, err
	}
	at, hasher := int64(pinHeader), xxh3.New()
	for at < size {
		c, ok, err := readRecord(r, head, at, size, buffer, hasher)
		if err != nil {
			return head, at, err
		}
		if !ok {
			if size-at > pinTornMost {
				return head, at, fmt.Errorf("%w: the record at offset %d is damaged, %d bytes before the end", ErrPin, at, size-at)
			}
			return head, at, nil
		}
		if err := c.check(head); err != nil {
			return head, at, fmt.Errorf("record at offset %d: %w", at, err)
		}
		if err := each(c, at+pinRecord); err != nil {
			return head, at, err
		}
		at += pinRecord + int64(len(c.data))
	}
	return head, at, nil
}

// readRecord reads the record at an offset and reports whether it is whole.
func readRecord(r io.ReaderAt, head PinHead, at, size int64, buffer []byte, hasher *xxh3.Hasher) (c oldContent, ok bool, err error) {
	var b [pinRecord]byte
	if size-at < pinRecord {
		return c, false, nil
	}
	if _, err := r.ReadAt(b[:], at); err != nil {
		return c, false, fmt.Errorf("read the pin at offset %d: %w", at, err)
	}
	length := binary.LittleEndian.Uint32(b[20:])
	if binary.LittleEndian.Uint32(b[:]) != recordMagic || length > pinPiece || size-at-pinRecord < int64(length) {
		return c, false, nil
	}
	c = oldContent{
		kind:    recordKind(binary.LittleEndian.Uint32(b[4:])),
		sector:  binary.LittleEndian.Uint64(b[8:]),
		sectors: binary.LittleEndian.Uint32(b[16:]),
		data:    buffer[:length],
	}
	if _, err := r.ReadAt(c.data, at+pinRecord); err != nil {
		return c, false, fmt.Errorf("read the pin at offset %d: %w", at, err)
	}
	return c, recordSum(head.ID, b[:24], c.data, hasher) == [16]byte(b[24:]), nil
}

// check refuses a record whose checksum holds and that is impossible.
func (c oldContent) check(h PinHead) error {
	if c.kind == recordBroken {
		if len(c.data) != 0 {
			return fmt.Errorf("%w: content where there is none", ErrPin)
		}
		return nil
	}
	end := c.sector + uint64(c.sectors)
	switch {
	case c.kind != recordData && c.kind != recordZero:
		return fmt.Errorf("%w: kind %d", ErrPin, c.kind)
	case c.sectors == 0 || c.sectors > pinPiece/epoch.SectorSize || c.sector > h.Sectors || end > h.Sectors:
		return fmt.Errorf("%w: %d sectors from %d of %d", ErrPin, c.sectors, c.sector, h.Sectors)
	case c.sector%blockSectors != 0 || end%blockSectors != 0 && end != h.Sectors:
		return fmt.Errorf("%w: %d sectors from %d are not whole blocks", ErrPin, c.sectors, c.sector)
	case c.kind == recordData && len(c.data) != int(c.sectors)*epoch.SectorSize, c.kind == recordZero && len(c.data) != 0:
		return fmt.Errorf("%w: %d bytes for %d sectors", ErrPin, len(c.data), c.sectors)
	}
	return nil
}

// keptTable says for each block of a disk where in the pin its old content is. It
// needs 4 KiB for each 2 MiB of disk that something was kept of.
type keptTable map[uint64]*[keptPage]int64

const (
	keptPage = 512
	// keptPagesMost bounds the table: 1 GiB of memory.
	keptPagesMost = 256 << 10

	keptZero = 1 // in place of an offset; 0: nothing is kept
)

var errScattered = errors.New("what was written is too scattered for the table of what is kept")

func (t keptTable) get(block uint64) int64 {
	if page := t[block/keptPage]; page != nil {
		return page[block%keptPage]
	}
	return 0
}

// add notes a record whose content is at an offset.
func (t keptTable) add(c oldContent, at int64) error {
	if c.kind == recordBroken {
		return nil
	}
	first := c.sector / blockSectors
	last := (c.sector + uint64(c.sectors) - 1) / blockSectors
	for block := first; block <= last; block++ {
		page := t[block/keptPage]
		if page == nil {
			if len(t) >= keptPagesMost {
				return errScattered
			}
			page = new([keptPage]int64)
			t[block/keptPage] = page
		}
		if page[block%keptPage] != 0 {
			return fmt.Errorf("%w: block %d is kept twice", ErrPin, block)
		}
		page[block%keptPage] = keptZero
		if c.kind == recordData {
			page[block%keptPage] = at + int64(block-first)*pinBlock
		}
	}
	return nil
}
