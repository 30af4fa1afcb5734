package epoch

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
)

// Data flows through a Decoder as it does through the session:
//
//	Begin (is it the next epoch of this image?) → Chunk … (records → Stage)
//	→ End (is it whole?) → Stage
//
// Nothing is applied to the image here: the stage is handed out only after
// End has found the epoch whole. Deltas are resolved against the committed
// image while decoding, so one epoch must be applied before the next one is
// decoded. What concerns disks is in decode_disk.go.

// DecoderConfig bounds a Decoder.
type DecoderConfig struct {
	// MaxStageBytes bounds the memory of one staged epoch; an epoch that needs
	// more is refused with ErrTooLarge. The memory is kept for later epochs.
	// 0 means StageLimit with 256 MiB of disk writes.
	MaxStageBytes uint64
}

// Decoder turns the chunks of epochs back into pages. It is not safe for
// concurrent use, and allocates nothing per page once it has held an epoch as
// large. After any error it refuses everything until Begin or Reset.
type Decoder struct {
	pages uint64
	base  func(first GFN, dst []byte) error
	stage *Stage

	state decoderState
	err   error // what the epoch was refused for
	head  Header
	part  part // what came last
	next  GFN  // lowest page that may still come
	sum   digest
	seen  Trailer // what has come so far

	seq    uint64 // of the last write of the guest
	data   []byte // of the last write, in the stage
	filled int    // how much of data has come

	scratch []byte // PageSize
}

type decoderState uint8

const (
	decoderIdle    decoderState = iota // no epoch
	decoderOpen                        // between Begin and End
	decoderRefused                     // after an error
	decoderWhole                       // End has verified the epoch
)

// NewDecoder returns a decoder for an image of the given pages. base reads
// pages of the image as it is after the last applied epoch, references
// included; it must fill dst.
// It panics if the image is empty or larger than MaxPages.
func NewDecoder(pages uint64, cfg DecoderConfig, base func(first GFN, dst []byte) error) *Decoder {
	if pages == 0 || pages > MaxPages {
		panic("epoch: decoder for an empty image, or one larger than MaxPages")
	}
	limit := cfg.MaxStageBytes
	if limit == 0 {
		limit = StageLimit(pages, 256<<20)
	}
	return &Decoder{pages: pages, base: base, stage: newStage(limit), scratch: make([]byte, PageSize)}
}

// StageLimit returns a MaxStageBytes that is enough for every page of an image,
// the largest device state and disk state, and disk writes with that many bytes
// of data; the memory of small writes among large ones can take twice as much.
func StageLimit(pages, writeBytes uint64) uint64 {
	return pages*(PageSize+runBytes) + MaxDeviceState + MaxDiskState + 2*writeBytes + 2*stageSlab
}

// Begin opens an epoch that should be the next one after at, made by the owner
// of generation. Whatever the decoder held before is discarded. All errors are
// *RefusedError; the caller may tell by the reason what to do next.
func (d *Decoder) Begin(header []byte, at Position, generation Generation) (Header, error) {
	d.Reset()
	h, err := ParseHeader(header)
	if err == nil {
		err = d.admit(h, at, generation)
	}
	if err != nil {
		return Header{}, d.refuse(err)
	}
	d.state, d.head = decoderOpen, h
	d.part, d.next, d.seen = partPages, 0, Trailer{}
	d.seq, d.data, d.filled = 0, nil, 0
	d.sum.begin(h)
	return h, nil
}

// admit refuses every header but that of the next epoch.
func (d *Decoder) admit(h Header, at Position, generation Generation) error {
	switch {
	case h.Generation != generation:
		return refuse(ErrGeneration, h.Number, "made in generation %d, the session is of generation %d", h.Generation, generation)
	case h.Parent.Image != at.Image:
		return refuse(ErrForeign, h.Number, "for image %v, this is image %v", h.Parent.Image, at.Image)
	case h.Pages != d.pages:
		return refuse(ErrForeign, h.Number, "for an image of %d pages, this one has %d", h.Pages, d.pages)
	case h.Number <= at.Number:
		return refuse(ErrReplayed, h.Number, "this image is at epoch %d already", at.Number)
	case h.Parent.Number != at.Number:
		return refuse(ErrGap, h.Number, "this image is at epoch %d and needs the next one", at.Number)
	case h.Parent.Running != at.Running:
		return refuse(ErrForeign, h.Number, "its parent's running hash is %v, epoch %d of this image has %v", h.Parent.Running, at.Number, at.Running)
	}
	return nil
}

// Chunk decodes the next chunk. It does not keep it.
func (d *Decoder) Chunk(chunk []byte) error {
	if err := d.ready(); err != nil {
		return err
	}
	d.sum.write(chunk)
	d.seen.Chunks++
	d.seen.Bytes += uint64(len(chunk))
	for at := 0; at < len(chunk); {
		n, err := d.record(chunk[at:])
		if err != nil {
			return d.refuse(d.locate(err, at))
		}
		at += n
	}
	return nil
}

// record decodes the record b begins with and returns its length.
func (d *Decoder) record(b []byte) (int, error) {
	if len(b) < headSize {
		return 0, d.malformed("%d bytes where a record should begin", len(b))
	}
	if d.part == partEnd {
		return 0, d.malformed("%d bytes follow the end record", len(b))
	}
	t, frame, n := parseHead(b)
	size, err := d.size(t, n)
	if err != nil {
		return 0, err
	}
	if size > len(b) {
		return 0, d.malformed("a record of type %d and %d bytes, of which %d are here", t, size, len(b))
	}
	if err := d.inOrder(t); err != nil {
		return 0, err
	}
	d.seen.Records++
	body := b[headSize:size]
	switch t {
	case recordState, recordPackedState:
		err = d.device(t == recordPackedState, frame, body)
	case recordDiskState, recordPackedDiskState:
		err = d.disks(t == recordPackedDiskState, frame, body)
	case recordEnd:
		if frame != 0 {
			return 0, d.malformed("an end record with frame %d, want 0", frame)
		}
	case recordWrite:
		err = d.write(frame, n, body)
	case recordRawData, recordZeroData, recordPackedData, recordPageData:
		err = d.piece(t, frame, n, body)
	case recordReference:
		if err = d.claim(frame, uint64(n)); err == nil {
			err = d.references(GFN(frame), body)
		}
	case recordCopy:
		if err = d.claim(frame, 1); err == nil {
			err = d.copied(GFN(frame), body)
		}
	case recordZero, recordRaw:
		if err = d.claim(frame, uint64(n)); err == nil {
			err = d.run(t, GFN(frame), uint64(n), body)
		}
	default:
		if err = d.claim(frame, 1); err == nil {
			err = d.page(t, GFN(frame), body)
		}
	}
	return size, err
}

// size returns the length of a record, its head included, and refuses types
// and numbers that cannot be.
func (d *Decoder) size(t recordType, n int) (int, error) {
	size, least, most := headSize, 1, maxCount
	switch t {
	case recordZero:
	case recordRaw:
		size += n * PageSize
	case recordPacked:
		size, most = size+n, PageSize
	case recordPatch:
		size, least, most = size+checkSize+n, 0, PageSize
	case recordXOR:
		size, most = size+checkSize+n, PageSize
	case recordState, recordPackedState, recordDiskState, recordPackedDiskState, recordPackedData:
		size += n
	case recordEnd:
		least, most = 0, 0
	case recordReference:
		size += extentSize + n*len(Fingerprint{})
	case recordCopy:
		size, least, most = size+copySize+checkSize, 0, 0
	case recordWrite:
		size, most = size+writeSize, int(WriteSync)
	case recordRawData:
		size, most = size+n*SectorSize, MaxWriteSectors
	case recordZeroData:
		most = MaxWriteSectors
	case recordPageData:
		size, most = size+pageDataSize+n*pageDataCheck, MaxWriteSectors/PageSectors
	default:
		return 0, d.malformed("a record of unknown type %d", t)
	}
	if n < least || n > most {
		return 0, d.malformed("a record of type %d with n = %d, want %d to %d", t, n, least, most)
	}
	return size, nil
}

// inOrder refuses a record whose place in the epoch is past, and anything that
// comes while a write wants data.
func (d *Decoder) inOrder(t recordType) error {
	p, _ := t.part() // size knows the type
	if p < d.part {
		return d.malformed("a record of type %d (%v) after %v", t, p, d.part)
	}
	if (p != partWrites || t == recordWrite) && d.filled < len(d.data) {
		return d.malformed("a record of type %d while a write wants %d more bytes of data", t, len(d.data)-d.filled)
	}
	d.part = p
	return nil
}

// claim refuses pages outside the image, out of order or given twice.
func (d *Decoder) claim(first, count uint64) error {
	if first >= d.pages || count > d.pages-first {
		return d.malformed("pages %d+%d are outside the image of %d", first, count, d.pages)
	}
	if GFN(first) < d.next {
		return d.malformed("page %d comes after page %d, or twice; pages must ascend", first, d.next-1)
	}
	d.next = GFN(first + count)
	d.seen.PageCount += count
	return nil
}

// run stages a zero or a raw run.
func (d *Decoder) run(t recordType, first GFN, count uint64, body []byte) error {
	if t == recordZero {
		if !d.stage.zero(first, count) {
			return d.tooLarge()
		}
		return nil
	}
	for len(body) > 0 {
		dst, ok := d.stage.take(first, uint64(len(body)/PageSize))
		if !ok {
			return d.tooLarge()
		}
		n := copy(dst, body)
		first, body = first+GFN(n/PageSize), body[n:]
	}
	return nil
}

// page stages a page that is compressed, or builds on its former content.
func (d *Decoder) page(t recordType, f GFN, body []byte) error {
	dst, ok := d.stage.take(f, 1)
	if !ok {
		return d.tooLarge()
	}
	if t == recordPacked {
		return d.unpack(f, dst, body)
	}
	check, body := binary.LittleEndian.Uint32(body), body[checkSize:]
	if err := d.former(f, dst); err != nil {
		return err
	}
	if t == recordPatch {
		if err := applyPatch(dst, body); err != nil {
			return d.malformed("page %d: %v", f, err)
		}
	} else {
		if err := d.unpack(f, d.scratch, body); err != nil {
			return err
		}
		subtle.XORBytes(dst, dst, d.scratch)
	}
	if got := pageCheck(dst); got != check {
		return refuse(ErrBase, d.head.Number, "page %d comes out with check %08x, the sender has %08x", f, got, check)
	}
	return nil
}

// former reads a page of the image as it is before this epoch.
func (d *Decoder) former(f GFN, dst []byte) error {
	if err := d.base(f, dst); err != nil {
		return &RefusedError{Reason: ErrBase, Epoch: d.head.Number, Detail: fmt.Sprintf("reading the former content of page %d", f), Cause: err}
	}
	return nil
}

// unpack decompresses one page.
func (d *Decoder) unpack(f GFN, dst, body []byte) error {
	n, err := s2.DecodedLen(body)
	if err == nil && n != PageSize {
		return d.malformed("page %d decompresses to %d bytes, want %d", f, n, PageSize)
	}
	if err == nil {
		_, err = s2.Decode(dst, body)
	}
	if err != nil {
		return d.malformed("decompressing page %d: %v", f, err)
	}
	return nil
}

// device stages a piece of the device state.
func (d *Decoder) device(packed bool, offset uint64, body []byte) error {
	if d.head.Kind != KindCheckpoint {
		return d.malformed("a device state in an epoch of kind %v", d.head.Kind)
	}
	return d.append("device state", packed, offset, body, &d.seen.DeviceBytes, MaxDeviceState, &d.stage.device)
}

// disks stages a piece of the disk state.
func (d *Decoder) disks(packed bool, offset uint64, body []byte) error {
	return d.append("disk state", packed, offset, body, &d.seen.DiskBytes, MaxDiskState, &d.stage.disks)
}

// append stages a piece of a state: seen bytes of at most limit have come, and
// are in into.
func (d *Decoder) append(what string, packed bool, offset uint64, body []byte, seen *uint64, limit uint64, into *[]byte) error {
	n := len(body)
	if packed {
		var err error
		if n, err = s2.DecodedLen(body); err != nil || n < 1 || n > maxCount {
			return d.malformed("%s at offset %d decompresses to %d bytes, want 1 to %d", what, offset, n, maxCount)
		}
	}
	switch {
	case offset != *seen:
		return d.malformed("%s at offset %d, want %d", what, offset, *seen)
	case offset+uint64(n) > limit:
		return refuse(ErrTooLarge, d.head.Number, "its %s is above %d bytes", what, limit)
	}
	dst, ok := d.stage.takeState(into, n)
	if !ok {
		return d.tooLarge()
	}
	*seen += uint64(n)
	if !packed {
		copy(dst, body)
	} else if _, err := s2.Decode(dst, body); err != nil {
		return d.malformed("decompressing %s at offset %d: %v", what, offset, err)
	}
	return nil
}

// End verifies that the epoch is whole: every count, the checksum and the
// running hash. It returns the position the image has once Stage is applied.
func (d *Decoder) End(trailer []byte) (Position, error) {
	if err := d.ready(); err != nil {
		return Position{}, err
	}
	t, err := ParseTrailer(trailer)
	if err == nil {
		err = d.verify(t)
	}
	if err != nil {
		return Position{}, d.refuse(d.ofThisEpoch(err))
	}
	d.state = decoderWhole
	return Position{Image: d.head.Parent.Image, Number: d.head.Number, Running: t.Running}, nil
}

// verify compares the trailer with what has come.
func (d *Decoder) verify(t Trailer) error {
	n := d.head.Number
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"chunks", d.seen.Chunks, t.Chunks},
		{"bytes of chunks", d.seen.Bytes, t.Bytes},
		{"records", d.seen.Records, t.Records},
		{"pages", d.seen.PageCount, t.PageCount},
		{"bytes of device state", d.seen.DeviceBytes, t.DeviceBytes},
		{"references", d.seen.References, t.References},
		{"disk writes", d.seen.Writes, t.Writes},
		{"bytes of disk writes", d.seen.WriteBytes, t.WriteBytes},
		{"bytes of disk state", d.seen.DiskBytes, t.DiskBytes},
	} {
		switch {
		case c.got < c.want:
			return refuse(ErrIncomplete, n, "%d %s have come, its trailer counts %d", c.got, c.what, c.want)
		case c.got > c.want:
			return refuse(ErrCorrupt, n, "%d %s have come, its trailer counts %d", c.got, c.what, c.want)
		}
	}
	checksum, running := d.sum.end()
	switch {
	case checksum != t.Checksum:
		return refuse(ErrCorrupt, n, "its checksum is %v, its trailer says %v", checksum, t.Checksum)
	case running != t.Running:
		return refuse(ErrCorrupt, n, "its running hash is %v, its trailer says %v", running, t.Running)
	case d.part != partEnd:
		return refuse(ErrIncomplete, n, "it has no end record")
	case d.head.Kind == KindCheckpoint && d.seen.DeviceBytes == 0:
		return refuse(ErrIncomplete, n, "a checkpoint without a device state")
	}
	return nil
}

// Stage returns the epoch that End has verified, until the next Begin or
// Reset; at any other time it returns nil.
func (d *Decoder) Stage() *Stage {
	if d.state != decoderWhole {
		return nil
	}
	return d.stage
}

// Reset discards whatever has come of an epoch.
func (d *Decoder) Reset() {
	d.state, d.err, d.head, d.data = decoderIdle, nil, Header{}, nil
	d.stage.reset()
}

// ready reports why nothing can be added to the epoch.
func (d *Decoder) ready() error {
	switch d.state {
	case decoderOpen:
		return nil
	case decoderRefused:
		return d.err
	}
	return refuse(ErrMisuse, d.head.Number, "no epoch is open; Begin one first")
}

// refuse poisons the decoder.
func (d *Decoder) refuse(err error) error {
	d.stage.reset()
	d.state, d.err = decoderRefused, err
	return err
}

// locate says in which record of the current chunk an error was found.
func (d *Decoder) locate(err error, at int) error {
	var refused *RefusedError
	if errors.As(err, &refused) {
		refused.Detail = fmt.Sprintf("chunk %d, byte %d: %s", d.seen.Chunks, at, refused.Detail)
	}
	return err
}

// ofThisEpoch names the epoch in an error about its trailer, which does not.
func (d *Decoder) ofThisEpoch(err error) error {
	var refused *RefusedError
	if errors.As(err, &refused) {
		refused.Epoch = d.head.Number
	}
	return err
}

func (d *Decoder) malformed(format string, args ...any) error {
	return refuse(ErrMalformed, d.head.Number, format, args...)
}

func (d *Decoder) tooLarge() error {
	return refuse(ErrTooLarge, d.head.Number, "it needs more than the %d bytes that may be staged", d.stage.limit)
}
