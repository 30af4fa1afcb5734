package epoch

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files of testdata anew")

func goldenHeader() Header {
	return Header{
		Kind:   KindCheckpoint,
		Number: 0x0102030405060708,
		Parent: Position{
			Image:   Incarnation{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf},
			Number:  0x0102030405060707,
			Running: Hash{0xb0, 0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xbb, 0xbc, 0xbd, 0xbe, 0xbf},
		},
		Generation: 0x1112131415161718,
		Pages:      0x0000000a01020304,
	}
}

func goldenTrailer() Trailer {
	return Trailer{
		Chunks: 0x0102030405060708, Bytes: 0x1112131415161718, Records: 0x2122232425262728,
		PageCount: 0x3132333435363738, DeviceBytes: 0x4142434445464748, References: 0x5152535455565758,
		Writes: 0x6162636465666768, WriteBytes: 0x7172737475767778, DiskBytes: 0x8182838485868788,
		Checksum: Hash{0xc0, 0xc1}, Running: Hash{0xd0, 0xd1},
	}
}

func TestHeaderAndTrailerComeBack(t *testing.T) {
	h, err := ParseHeader(goldenHeader().AppendTo(nil))
	if err != nil || h != goldenHeader() {
		t.Errorf("header %+v, %v", h, err)
	}
	trailer, err := ParseTrailer(goldenTrailer().AppendTo(nil))
	if err != nil || trailer != goldenTrailer() {
		t.Errorf("trailer %+v, %v", trailer, err)
	}
}

func TestHeaderAndTrailerAreStrict(t *testing.T) {
	header := func(b []byte) error { _, err := ParseHeader(b); return err }
	trailer := func(b []byte) error { _, err := ParseTrailer(b); return err }
	set := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return b }
	}
	for _, c := range []struct {
		name   string
		parse  func([]byte) error
		change func([]byte) []byte
		want   Reason
	}{
		{"header empty", header, func([]byte) []byte { return nil }, ErrMalformed},
		{"header short", header, func(b []byte) []byte { return b[:HeaderSize-1] }, ErrMalformed},
		{"header long", header, func(b []byte) []byte { return append(b, 0) }, ErrMalformed},
		{"header magic", header, set(3, 'T'), ErrMalformed},
		{"header version", header, set(4, 1), ErrVersion},
		{"header kind 0", header, set(5, 0), ErrMalformed},
		{"header kind 3", header, set(5, 3), ErrMalformed},
		{"header reserved", header, set(7, 1), ErrMalformed},
		{"header number", header, set(8, 9), ErrMalformed},
		{"header number 0 after the last", header, func(b []byte) []byte {
			clear(b[8:16])
			copy(b[48:56], bytes.Repeat([]byte{0xff}, 8))
			return b
		}, ErrMalformed},
		{"header without pages", header, func(b []byte) []byte { clear(b[24:32]); return b }, ErrMalformed},
		{"header of a giant", header, set(29, 1), ErrMalformed},
		{"header without image", header, func(b []byte) []byte { clear(b[32:48]); return b }, ErrMalformed},
		{"trailer empty", trailer, func([]byte) []byte { return nil }, ErrMalformed},
		{"trailer short", trailer, func(b []byte) []byte { return b[:TrailerSize-1] }, ErrMalformed},
		{"trailer long", trailer, func(b []byte) []byte { return append(b, 0) }, ErrMalformed},
		{"trailer magic", trailer, set(3, 'H'), ErrMalformed},
		{"trailer version", trailer, set(4, 0), ErrVersion},
		{"trailer reserved", trailer, set(6, 1), ErrMalformed},
	} {
		b := goldenHeader().AppendTo(nil)
		if c.name[0] == 't' {
			b = goldenTrailer().AppendTo(nil)
		}
		err := c.parse(c.change(b))
		var refused *RefusedError
		if !errors.Is(err, c.want) || !errors.As(err, &refused) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// goldenEpoch is one epoch with every record type in it: the memory before and
// after, and how it is encoded. What s2 makes of a page may change with its
// version, so only the epoch without s2 is compared byte by byte.
func goldenEpoch() (before, after []byte, dirty *PageSet) {
	const pages = 16
	before = make([]byte, pages*PageSize)
	for i := range before[:8*PageSize] {
		before[i] = byte(i / 8)
	}
	after = bytes.Clone(before)
	clear(after[2*PageSize : 4*PageSize]) // zero run
	after[4*PageSize+100]++               // patch
	after[4*PageSize+3000]++              //
	for i := 0; i < PageSize; i += 8 {    // large delta
		after[6*PageSize+i]++
	}
	for i := range PageSize { // new page, compressible
		after[9*PageSize+i] = byte(i % 5)
	}
	for i := 12 * PageSize; i < 14*PageSize; i++ { // on the disk
		after[i] = byte(i % 7)
	}
	copy(after[14*PageSize:], after[9*PageSize:10*PageSize]) // copy
	dirty = NewPageSet(pages)
	dirty.AddRange(2, 5) // page 5 is written with what it held
	dirty.AddRange(9, 1)
	dirty.AddRange(12, 3)
	return before, after, dirty
}

// goldenDisks is what the golden epoch says of disks: every kind of write, and
// of data.
func goldenDisks(after []byte) disks {
	data := bytes.Join([][]byte{after[6*PageSize : 8*PageSize], make([]byte, PageSize), after[9*PageSize:][:PageSize], []byte("tail")}, nil)
	data = append(data, make([]byte, SectorSize-4)...)
	return disks{
		leave: goldenExcluder{},
		writes: []DiskWrite{
			{Kind: WriteSync, Disk: 2, Sector: 64, Sectors: 1, Data: bytes.Repeat([]byte{1}, SectorSize)},
			{Seq: 0x0102030405060708, Kind: WriteData, Disk: 15, Sector: 0x1122334455, Sectors: uint32(len(data) / SectorSize),
				Data: data, Pages: []GFN{6, 7, NoPage, NoPage}},
			{Seq: 0x0102030405060709, Kind: WriteBarrier, Disk: 15},
			{Seq: 0x010203040506070b, Kind: WriteZeroes, Sector: 3, Sectors: 5},
			{Seq: 0x010203040506070c, Kind: WriteDiscard, Disk: 1, Sectors: MaxZeroSectors},
		},
		equal: func(page GFN, piece []byte) bool { return bytes.Equal(after[page*PageSize:][:PageSize], piece) },
		state: []byte("disk state"),
	}
}

// goldenExcluder leaves out pages 12 to 14.
type goldenExcluder struct{}

func (goldenExcluder) Exclude(f GFN, page []byte, _ bool) (Exclusion, bool) {
	switch f {
	case 12, 13:
		ref := Reference{Page: f, Disk: 3, Sector: 0xa0a1a2a3a4 + 8*uint64(f-12), Print: PrintKey(9).Of(page)}
		return Exclusion{Kind: ExcludeBlock, Ref: ref}, true
	case 14:
		return Exclusion{Kind: ExcludeCopy, Source: 9}, true
	}
	return Exclusion{}, false
}

// goldenState is a device state, long enough to be packed at EffortFull.
func goldenState(effort Effort) []byte {
	if effort == EffortFull {
		return bytes.Repeat([]byte("device state"), 100)
	}
	return []byte("device state")
}

func encodeGolden(t *testing.T, effort Effort) (*rig, sent, []byte) {
	t.Helper()
	before, after, dirty := goldenEpoch()
	r := newRig(dirty.Pages(), EncoderConfig{DeltaCacheBytes: 1 << 20}, DecoderConfig{})
	// Only pages 2 … 6 are in the cache, and no s2 block is in the history.
	known := NewPageSet(dirty.Pages())
	known.AddRange(0, 8)
	s, err := r.encode(r.header(KindSync), before, known, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.decode(s); err != nil {
		t.Fatal(err)
	}
	if err := r.commit(s.to); err != nil {
		t.Fatal(err)
	}
	r.enc.SetEffort(effort)
	s, err = r.encodeWith(r.header(KindCheckpoint), after, dirty, goldenState(effort), goldenDisks(after))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.chunks) != 1 {
		t.Fatalf("%d chunks, want 1", len(s.chunks))
	}
	return r, s, after
}

func TestGoldenEpochs(t *testing.T) {
	for _, c := range []struct {
		file   string
		effort Effort
		exact  bool
		want   EpochStats
	}{
		{"none.epoch", EffortNone, true, EpochStats{Pages: 9, ZeroPages: 2, RawPages: 4}},
		{"delta.epoch", EffortDelta, true, EpochStats{Pages: 9, ZeroPages: 2, SamePages: 1, DeltaPages: 1, RawPages: 2}},
		{"full.epoch", EffortFull, false, EpochStats{Pages: 9, ZeroPages: 2, SamePages: 1, DeltaPages: 2, PackedPages: 1}},
	} {
		t.Run(c.file, func(t *testing.T) {
			r, s, after := encodeGolden(t, c.effort)
			whole := bytes.Join([][]byte{s.header, s.chunks[0], s.trailer}, nil)
			path := filepath.Join("testdata", c.file)
			if *update {
				if err := os.WriteFile(path, whole, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			golden, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if c.exact && !bytes.Equal(whole, golden) {
				t.Error("the bytes written have changed: a new FormatVersion, or a mistake")
			}
			if got := s.stats; got.Pages != c.want.Pages || got.ZeroPages != c.want.ZeroPages || got.SamePages != c.want.SamePages ||
				got.DeltaPages != c.want.DeltaPages || got.PackedPages != c.want.PackedPages || got.RawPages != c.want.RawPages || got.ReferencePages != 2 || got.CopyPages != 1 ||
				got.Writes != 4 || got.WriteBytes != 4*PageSize+SectorSize || got.WritePageBytes != 2*PageSize || got.SyncBytes != SectorSize {
				t.Errorf("stats %+v, want %+v", got, c.want)
			}
			s.header = golden[:HeaderSize]
			s.chunks[0] = golden[HeaderSize : len(golden)-TrailerSize]
			s.trailer = golden[len(golden)-TrailerSize:]
			if err := r.decode(s); err != nil {
				t.Fatalf("a stored epoch is not understood any more: %v", err)
			}
			if got := r.dec.Stage().DeviceState(); !bytes.Equal(got, goldenState(c.effort)) {
				t.Errorf("device state %q", got)
			}
			stage, want := r.dec.Stage(), goldenDisks(after)
			if err := sameWrites(stage.Writes(), want.writes); err != nil || string(stage.DiskState()) != "disk state" {
				t.Errorf("%v, disk state %q", err, stage.DiskState())
			}
			for i, ref := range stage.References() {
				page := after[(12+i)*PageSize:][:PageSize]
				if x, _ := want.leave.Exclude(GFN(12+i), page, false); x.Ref != ref {
					t.Errorf("%v, want %v", ref, x.Ref)
				}
				copy(r.image[(12+i)*PageSize:], page) // as the receiver does some day
			}
			if err := r.commit(s.to); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.image, after) {
				t.Error("the image differs")
			}
		})
	}
}

func TestGoldenLayout(t *testing.T) {
	for name, b := range map[string][]byte{"header.bin": goldenHeader().AppendTo(nil), "trailer.bin": goldenTrailer().AppendTo(nil)} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, golden) {
			t.Errorf("%s: the bytes written have changed: a new FormatVersion, or a mistake", name)
		}
	}
}
