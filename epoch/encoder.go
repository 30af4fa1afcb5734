package epoch

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/s2"
)

// Data flows through an Encoder page by page, each of which becomes part of
// one record in the open chunk:
//
//	Begin → Pages: zero? → left out? reference, or copy
//	               → in the delta cache? patch, or XOR → packed? → raw
//	      → Writes → DeviceState → DiskState → End
//	chunk full → checksum → sink
//
// What concerns disks is in encode_disk.go.
//
// The delta cache holds exactly what the receiver will hold once it has
// applied every epoch up to the open one. That is true only as long as every
// epoch that was begun is applied; so whatever ends an epoch early also ends
// the cache.

// Effort says how much work the encoder spends on a page.
type Effort uint8

const (
	// EffortNone finds zero pages and sends all others raw. Sent pages are not
	// remembered, and remembered ones are forgotten as they are sent again.
	EffortNone Effort = iota
	// EffortDelta also sends what changed of pages it remembers, and
	// compresses the device state.
	EffortDelta
	// EffortFull also compresses: pages without a delta, and large deltas.
	EffortFull
)

func (e Effort) String() string {
	switch e {
	case EffortNone:
		return "none"
	case EffortDelta:
		return "delta"
	case EffortFull:
		return "full"
	}
	return fmt.Sprintf("effort(%d)", uint8(e))
}

const (
	// DefaultChunkBytes is the size of a chunk if none is configured.
	DefaultChunkBytes = 256 << 10
	// MinChunkBytes and MaxChunkBytes bound EncoderConfig.ChunkBytes.
	MinChunkBytes = 16 << 10
	MaxChunkBytes = 16 << 20

	// worthwhile is the largest encoding of a page that is not sent raw: below
	// 7/8 of it, the gain pays for the receiver's work.
	worthwhile = PageSize * 7 / 8
	// largePatch is the size from which EffortFull tries to beat a patch. An
	// s2 block costs about seven times the work of a patch (BenchmarkDelta).
	largePatch = PageSize / 8
)

// EncoderConfig bounds an Encoder.
type EncoderConfig struct {
	// DeltaCacheBytes bounds the memory for remembering sent pages, index
	// included; 0 switches deltas off.
	DeltaCacheBytes uint64
	// ChunkBytes is the largest chunk given to the sink; 0 means
	// DefaultChunkBytes. It is kept between MinChunkBytes and MaxChunkBytes.
	ChunkBytes int
}

// EpochStats counts what became of one epoch. Bytes are of memory where they
// say raw, of the stream where they say wire.
type EpochStats struct {
	Pages          uint64 // all pages of the epoch, the sum of the next seven
	ZeroPages      uint64 // all bytes zero
	SamePages      uint64 // equal to what the receiver holds
	DeltaPages     uint64 // sent as their difference
	PackedPages    uint64 // compressed
	RawPages       uint64 // sent as they are
	ReferencePages uint64 // sent as the name of a disk block
	CopyPages      uint64 // sent as the name of another page
	RawBytes       uint64 // Pages × PageSize
	DeviceBytes    uint64 // of device state
	Writes         uint64 // the guest's disk writes, all kinds but WriteSync
	WriteBytes     uint64 // data of the guest's disk writes
	WritePageBytes uint64 // how much of WriteBytes and SyncBytes travelled as the name of a page
	SyncBytes      uint64 // data of the disks' synchronisation
	WireBytes      uint64 // header, chunks and trailer
}

// Encoder turns pages into the chunks of epochs. It is not safe for concurrent
// use, and allocates nothing per page.
type Encoder struct {
	pages  uint64
	effort Effort
	cache  *deltaCache // nil: off
	last   Position    // where the cache's content is true

	open  bool
	err   error // what ended the open epoch early
	sink  func(chunk []byte) error
	head  Header
	part  part // what came last
	next  GFN  // lowest page that may still come
	sum   digest
	trail Trailer
	stats EpochStats
	leave Excluder // nil: no page is left out
	seq   uint64   // of the last write

	chunk []byte // the open chunk
	run   openRun
	xor   []byte // PageSize
	pack  []byte // s2.MaxEncodedLen(maxCount)
}

// openRun is the run at the end of the open chunk that the next page, or the
// next piece of a write, may prolong.
type openRun struct {
	kind  recordType // 0: none
	at    int        // of the record's head in the chunk
	first uint64     // the head's frame
	count int
	body  uint64 // what the run's pages are adjacent in: disk and sector, or page
}

// NewEncoder returns an encoder for an image of the given pages, with
// EffortDelta. It panics if the image is empty or larger than MaxPages.
func NewEncoder(pages uint64, cfg EncoderConfig) *Encoder {
	if pages == 0 || pages > MaxPages {
		panic(fmt.Sprintf("epoch: encoder for an image of %d pages", pages))
	}
	size := cfg.ChunkBytes
	if size == 0 {
		size = DefaultChunkBytes
	}
	return &Encoder{
		pages:  pages,
		effort: EffortDelta,
		cache:  newDeltaCache(pages, cfg.DeltaCacheBytes),
		chunk:  make([]byte, 0, min(max(size, MinChunkBytes), MaxChunkBytes)),
		xor:    make([]byte, PageSize),
		pack:   make([]byte, s2.MaxEncodedLen(maxCount)),
	}
}

// SetEffort changes the work spent on each page from here on.
func (e *Encoder) SetEffort(effort Effort) { e.effort = effort }

// Begin opens the epoch h. Each chunk goes to sink as soon as it is full; sink
// must not keep it, and an error of it ends the epoch. If h does not build on
// the epoch this encoder ended last, the delta cache is forgotten.
func (e *Encoder) Begin(h Header, sink func(chunk []byte) error) error {
	if e.open && e.err == nil {
		return refuse(ErrMisuse, h.Number, "epoch %d is still open; End or Abort it first", e.head.Number)
	}
	if err := h.check(); err != nil {
		return err
	}
	if h.Pages != e.pages {
		return refuse(ErrForeign, h.Number, "an image of %d pages, this encoder is for %d", h.Pages, e.pages)
	}
	if h.Parent != e.last {
		e.Forget()
	}
	if e.cache != nil {
		e.cache.nextEpoch()
	}
	e.open, e.err, e.sink, e.head = true, nil, sink, h
	e.part, e.next, e.trail, e.stats, e.leave, e.seq = partPages, 0, Trailer{}, EpochStats{}, nil, 0
	e.chunk, e.run = e.chunk[:0], openRun{}
	e.sum.begin(h)
	return nil
}

// Pages encodes a run of pages, starting at first; len(data) is a multiple of
// PageSize. Runs come in ascending order and must not overlap. Any error ends
// the epoch.
func (e *Encoder) Pages(first GFN, data []byte) error {
	if err := e.ready(); err != nil {
		return err
	}
	count := uint64(len(data) / PageSize)
	switch {
	case e.part != partPages:
		return e.fail(refuse(ErrMisuse, e.head.Number, "pages after %v", e.part))
	case len(data)%PageSize != 0:
		return e.fail(refuse(ErrMisuse, e.head.Number, "%d bytes at page %d are no whole pages", len(data), first))
	case uint64(first) > e.pages || count > e.pages-uint64(first):
		return e.fail(refuse(ErrMisuse, e.head.Number, "pages %d+%d are outside the image of %d", first, count, e.pages))
	case first < e.next:
		return e.fail(refuse(ErrMisuse, e.head.Number, "page %d comes after page %d; pages must ascend", first, e.next-1))
	}
	for f := first; len(data) > 0; f, data = f+1, data[PageSize:] {
		if err := e.page(f, data[:PageSize:PageSize]); err != nil {
			return e.fail(err)
		}
	}
	e.next = first + GFN(count)
	e.stats.Pages += count
	return nil
}

// page encodes one page in the cheapest form the effort allows.
func (e *Encoder) page(f GFN, page []byte) error {
	if isZero(page) {
		e.stats.ZeroPages++
		e.drop(f)
		return e.prolong(recordZero, uint64(f), nil)
	}
	var base []byte
	if e.cache != nil && e.effort > EffortNone {
		base = e.cache.find(f)
	}
	if e.leave != nil {
		if x, ok := e.leave.Exclude(f, page, base != nil); ok {
			return e.exclude(f, page, base, x)
		}
	}
	switch {
	case base != nil:
		return e.delta(f, page, base)
	case e.effort == EffortNone:
		e.drop(f)
	case e.cache != nil:
		e.cache.add(f, page)
	}
	return e.whole(f, page)
}

// drop forgets what is remembered of a page.
func (e *Encoder) drop(f GFN) {
	if e.cache != nil {
		e.cache.drop(f)
	}
}

// whole sends a page without a base.
func (e *Encoder) whole(f GFN, page []byte) error {
	if e.effort >= EffortFull {
		if packed := s2.Encode(e.pack, page); len(packed) <= worthwhile {
			e.stats.PackedPages++
			return e.single(recordPacked, uint64(f), len(packed), nil, packed)
		}
	}
	e.stats.RawPages++
	return e.prolong(recordRaw, uint64(f), page)
}

// delta sends a page whose former content base is in the cache, and makes base
// its new content.
func (e *Encoder) delta(f GFN, page, base []byte) error {
	if err := e.room(headSize + checkSize + worthwhile); err != nil {
		return err
	}
	at := len(e.chunk)
	body := at + headSize + checkSize
	out, ok := appendPatch(e.chunk[:body], page, base, worthwhile)
	patch := out[body:]
	if e.effort >= EffortFull && (!ok || len(patch) > largePatch) {
		subtle.XORBytes(e.xor, page, base)
		if packed := s2.Encode(e.pack, e.xor); len(packed) <= worthwhile && (!ok || len(packed) < len(patch)) {
			copy(base, page)
			e.stats.DeltaPages++
			return e.single(recordXOR, uint64(f), len(packed), page, packed)
		}
	}
	if !ok {
		copy(base, page)
		return e.whole(f, page)
	}
	if len(patch) == 0 {
		e.stats.SamePages++
	} else {
		e.stats.DeltaPages++
		copy(base, page)
	}
	putHead(out[at:], recordPatch, uint64(f), len(patch))
	binary.LittleEndian.PutUint32(out[at+headSize:], pageCheck(page))
	e.chunk, e.run = out, openRun{}
	e.trail.Records++
	return nil
}

// single appends a record that no other prolongs; checked is the page, for
// records that carry its check ahead of the body.
func (e *Encoder) single(t recordType, frame uint64, n int, checked, body []byte) error {
	size := headSize + len(body)
	if checked != nil {
		size += checkSize
	}
	if err := e.room(size); err != nil {
		return err
	}
	e.chunk = e.chunk[:len(e.chunk)+headSize]
	putHead(e.chunk[len(e.chunk)-headSize:], t, frame, n)
	if checked != nil {
		e.chunk = binary.LittleEndian.AppendUint32(e.chunk, pageCheck(checked))
	}
	e.chunk = append(e.chunk, body...)
	e.run = openRun{}
	e.trail.Records++
	return nil
}

// prolong adds a page to the open run, or opens a new one.
func (e *Encoder) prolong(t recordType, frame uint64, body []byte) error {
	if e.run.kind == t && e.run.first+uint64(e.run.count) == frame && e.run.count < maxCount && len(e.chunk)+len(body) <= cap(e.chunk) {
		e.run.count++
	} else {
		if err := e.room(headSize + len(body)); err != nil {
			return err
		}
		e.run = openRun{kind: t, at: len(e.chunk), first: frame, count: 1}
		e.chunk = e.chunk[:len(e.chunk)+headSize]
		e.trail.Records++
	}
	putHead(e.chunk[e.run.at:], t, e.run.first, e.run.count)
	e.chunk = append(e.chunk, body...)
	return nil
}

// DeviceState encodes the state of vCPUs and devices, of 1 to MaxDeviceState
// bytes. It is called once per checkpoint, after the last of Pages and Writes,
// and not at all in an epoch of KindSync. Any error ends the epoch.
func (e *Encoder) DeviceState(state []byte) error {
	if err := e.ready(); err != nil {
		return err
	}
	switch {
	case e.head.Kind != KindCheckpoint:
		return e.fail(refuse(ErrMisuse, e.head.Number, "a device state in an epoch of kind %v", e.head.Kind))
	case e.part >= partDevice:
		return e.fail(refuse(ErrMisuse, e.head.Number, "a device state after %v", e.part))
	case len(state) == 0 || len(state) > MaxDeviceState:
		return e.fail(refuse(ErrMisuse, e.head.Number, "a device state of %d bytes, want 1 to %d", len(state), MaxDeviceState))
	}
	e.part = partDevice
	e.trail.DeviceBytes = uint64(len(state))
	return e.pieces(recordState, recordPackedState, state)
}

// pieces sends a state in records of type raw or packed. Any error ends the
// epoch.
func (e *Encoder) pieces(raw, packed recordType, state []byte) error {
	piece := min(maxCount, cap(e.chunk)-headSize)
	for at := 0; at < len(state); at += piece {
		if err := e.piece(raw, packed, uint64(at), state[at:min(at+piece, len(state))]); err != nil {
			return e.fail(err)
		}
	}
	return nil
}

// piece sends at most maxCount bytes of a state or a write, compressed if the
// effort allows it and it is worth it.
func (e *Encoder) piece(raw, packed recordType, frame uint64, body []byte) error {
	if e.effort >= EffortDelta {
		if b := s2.Encode(e.pack, body); len(b) <= len(body)*7/8 {
			return e.single(packed, frame, len(b), nil, b)
		}
	}
	n := len(body)
	if raw == recordRawData {
		n /= SectorSize
	}
	return e.single(raw, frame, n, nil, body)
}

// End sends what is left, closes the epoch and returns its trailer and the
// position it leads to. After an error the epoch has ended as if by Abort.
func (e *Encoder) End() (Trailer, Position, EpochStats, error) {
	if err := e.ready(); err != nil {
		e.open = false
		return Trailer{}, Position{}, EpochStats{}, err
	}
	if e.head.Kind == KindCheckpoint && e.trail.DeviceBytes == 0 {
		return e.abandon(refuse(ErrMisuse, e.head.Number, "a checkpoint without a device state"))
	}
	if err := e.single(recordEnd, 0, 0, nil, nil); err != nil {
		return e.abandon(err)
	}
	if err := e.flush(); err != nil {
		return e.abandon(err)
	}
	e.trail.PageCount = e.stats.Pages
	e.trail.Checksum, e.trail.Running = e.sum.end()
	e.stats.RawBytes = e.stats.Pages * PageSize
	e.stats.DeviceBytes = e.trail.DeviceBytes
	e.stats.WireBytes = HeaderSize + e.trail.Bytes + TrailerSize
	e.last = Position{Image: e.head.Parent.Image, Number: e.head.Number, Running: e.trail.Running}
	e.open, e.sink = false, nil
	return e.trail, e.last, e.stats, nil
}

func (e *Encoder) abandon(err error) (Trailer, Position, EpochStats, error) {
	err = e.fail(err)
	e.open = false
	return Trailer{}, Position{}, EpochStats{}, err
}

// Abort ends the open epoch, if there is one: it will not be sent. The delta
// cache is forgotten.
func (e *Encoder) Abort() {
	if e.open {
		e.open, e.sink = false, nil
		e.Forget()
	}
}

// Forget empties the delta cache: the next epoch builds on nothing. It must be
// called when an epoch that End returned may not be applied by the receiver,
// or when the receiver's image is another one; Begin notices by itself if the
// parent is not the last epoch, and every error does the same.
func (e *Encoder) Forget() {
	e.last = Position{}
	if e.cache != nil {
		e.cache.forget()
	}
}

// ready reports why nothing can be added to the epoch.
func (e *Encoder) ready() error {
	if !e.open {
		return refuse(ErrMisuse, 0, "no epoch is open; Begin one first")
	}
	return e.err
}

// fail ends the open epoch early.
func (e *Encoder) fail(err error) error {
	e.err, e.sink = err, nil
	e.Forget()
	return err
}

// room makes sure that the open chunk can take n more bytes.
func (e *Encoder) room(n int) error {
	if cap(e.chunk)-len(e.chunk) >= n {
		return nil
	}
	return e.flush()
}

// flush gives the open chunk to the sink and opens the next one.
func (e *Encoder) flush() error {
	e.sum.write(e.chunk)
	e.trail.Chunks++
	e.trail.Bytes += uint64(len(e.chunk))
	if err := e.sink(e.chunk); err != nil {
		return fmt.Errorf("sending chunk %d of epoch %d: %w", e.trail.Chunks, e.head.Number, err)
	}
	e.chunk, e.run = e.chunk[:0], openRun{}
	return nil
}

// zeros is what a page or a piece of zeros is compared with and filled from.
// Nothing writes to it.
var zeros [256 << 10]byte

// isZero reports whether every byte of page, 8 of them or more, is zero. Its first word decides
// for most pages; bytes.Equal compares by vector instructions.
func isZero(page []byte) bool {
	return binary.LittleEndian.Uint64(page) == 0 && bytes.Equal(page, zeros[:len(page)])
}
