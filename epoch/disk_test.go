package epoch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/zeebo/xxh3"
)

// sameWrites compares decoded writes with those that were encoded.
func sameWrites(got, want []DiskWrite) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d writes, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if g.Seq != w.Seq || g.Disk != w.Disk || g.Kind != w.Kind || g.Sector != w.Sector || g.Sectors != w.Sectors || g.Pages != nil {
			return fmt.Errorf("write %d is %+v, want %+v", i, g, w)
		}
		if !bytes.Equal(g.Data, w.Data) {
			return fmt.Errorf("the data of write %d differs", i)
		}
	}
	return nil
}

// A large write whose pages are known and unchanged costs only their names.
func TestWritesTravelByTheNameOfAPage(t *testing.T) {
	r, memory, _ := encoderRig(t)
	const n = encodePages
	w := DiskWrite{Seq: 1, Kind: WriteData, Sectors: n * PageSectors, Data: memory}
	for f := range GFN(n) {
		w.Pages = append(w.Pages, f)
	}
	equal := func(page GFN, piece []byte) bool { return bytes.Equal(memory[page*PageSize:][:PageSize], piece) }
	s, err := r.encodeWith(r.header(KindSync), memory, NewPageSet(n), nil, disks{writes: []DiskWrite{w}, equal: equal})
	if err != nil {
		t.Fatal(err)
	}
	if want := uint64(HeaderSize + TrailerSize + headSize + writeSize + headSize + pageDataSize + n*pageDataCheck + headSize); s.stats.WireBytes != want {
		t.Errorf("%d bytes on the wire, want %d", s.stats.WireBytes, want)
	}
	if err := r.decode(s); err != nil {
		t.Fatal(err)
	}
	if err := sameWrites(r.dec.Stage().Writes(), []DiskWrite{w}); err != nil {
		t.Error(err)
	}

	// The receiver's image is another one: seen, and nothing is handed out.
	r.image[17*PageSize]++
	if err := r.decode(s); !errors.Is(err, ErrBase) || r.dec.Stage() != nil {
		t.Errorf("%v, want %v", err, ErrBase)
	}
}

// The encoder names no zero page, but the format may: a page of this epoch is
// read as this epoch leaves it.
func TestNamesMeanThePageAfterTheEpoch(t *testing.T) {
	r, _, _ := encoderRig(t)
	word := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	zero, page := make([]byte, PageSize), bytes.Repeat([]byte{9}, PageSize)
	if _, err := r.dec.Begin(r.header(KindSync).AppendTo(nil), r.at, r.gen); err != nil {
		t.Fatal(err)
	}
	if err := r.dec.Chunk(bytes.Join([][]byte{
		record(recordZero, 3, 2),
		record(recordRaw, 5, 1, page...),
		record(recordCopy, 8, 0, binary.LittleEndian.AppendUint32(word(4), pageCheck(zero))...),
		record(recordCopy, 9, 0, binary.LittleEndian.AppendUint32(word(5), pageCheck(page))...),
		writeRecord(0, WriteData, 1, 0, 3*PageSectors),
		record(recordPageData, 0, 3, bytes.Join([][]byte{word(3), word(xxh3.Hash(zero)), word(xxh3.Hash(zero)), word(xxh3.Hash(page))}, nil)...),
	}, nil)); err != nil {
		t.Fatal(err)
	}
	if got := r.dec.stage.Writes()[0].Data; !bytes.Equal(got, bytes.Join([][]byte{zero, zero, page}, nil)) {
		t.Error("the write's data differs")
	}
}

// A page that travelled as a reference is no base of a delta; a copied one is.
func TestReferencesLeaveTheDeltaCache(t *testing.T) {
	r, memory, all := encoderRig(t)
	var asked int
	leave := excluder(func(f GFN, page []byte, delta bool) (Exclusion, bool) {
		if asked++; !delta {
			t.Errorf("page %d: no delta", f)
		}
		switch {
		case f%2 == 1:
			return Exclusion{Kind: ExcludeBlock, Ref: Reference{Page: f, Sector: uint64(f) * PageSectors}}, true
		case f == 4:
			copy(memory[4*PageSize:5*PageSize], memory[2*PageSize:]) // page is this one
			return Exclusion{Kind: ExcludeCopy, Source: 2}, true
		}
		return Exclusion{}, false
	})
	s, err := r.encodeWith(r.header(KindSync), memory, all, nil, disks{leave: leave})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.decode(s); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(r.image)
	if err := r.commit(s.to); err != nil {
		t.Fatal(err)
	}
	if asked != encodePages || s.stats.ReferencePages != encodePages/2 || s.stats.CopyPages != 1 || s.stats.SamePages != encodePages/2-1 {
		t.Errorf("asked %d times; %+v", asked, s.stats)
	}
	for f := 1; f < encodePages; f += 2 {
		if !bytes.Equal(r.image[f*PageSize:][:PageSize], before[f*PageSize:][:PageSize]) {
			t.Errorf("Apply has written page %d, a reference", f)
		}
	}
	memory[4*PageSize]++
	s = r.mustCommit(t, KindSync, memory, all)
	if s.stats.RawPages != encodePages/2 || s.stats.DeltaPages != 1 || s.stats.SamePages != encodePages/2-1 || s.stats.ReferencePages != 0 {
		t.Errorf("%+v, want the references raw, the copy as a delta, and no excluder any more", s.stats)
	}
}

type excluder func(GFN, []byte, bool) (Exclusion, bool)

func (x excluder) Exclude(f GFN, page []byte, delta bool) (Exclusion, bool) { return x(f, page, delta) }

func TestEncoderRefusesMisuseOfDisks(t *testing.T) {
	page := bytes.Repeat([]byte{1}, PageSize)
	leave := func(x Exclusion) func(e *Encoder) error {
		return func(e *Encoder) error {
			e.SetExcluder(excluder(func(GFN, []byte, bool) (Exclusion, bool) { return x, true }))
			return e.Pages(5, page)
		}
	}
	writes := func(ws ...DiskWrite) func(e *Encoder) error {
		return func(e *Encoder) error { return e.Writes(ws, nil) }
	}
	for name, call := range map[string]func(e *Encoder) error{
		"left out for no reason":          leave(Exclusion{}),
		"a reference of another page":     leave(Exclusion{Kind: ExcludeBlock, Ref: Reference{Page: 4}}),
		"a reference to no disk":          leave(Exclusion{Kind: ExcludeBlock, Ref: Reference{Page: 5, Disk: MaxDisks}}),
		"a reference behind every disk":   leave(Exclusion{Kind: ExcludeBlock, Ref: Reference{Page: 5, Sector: MaxSectors - 7}}),
		"a copy of itself":                leave(Exclusion{Kind: ExcludeCopy, Source: 5}),
		"a copy of a higher page":         leave(Exclusion{Kind: ExcludeCopy, Source: 6}),
		"a write of no kind":              writes(DiskWrite{Seq: 1}),
		"a write without data":            writes(DiskWrite{Seq: 1, Kind: WriteData, Sectors: 8}),
		"a discard with data":             writes(DiskWrite{Seq: 1, Kind: WriteDiscard, Sectors: 8, Data: page}),
		"a write too large":               writes(DiskWrite{Seq: 1, Kind: WriteData, Sectors: MaxWriteSectors + 1}),
		"a write without a number":        writes(DiskWrite{Kind: WriteBarrier}),
		"writes descend":                  writes(DiskWrite{Seq: 2, Kind: WriteBarrier}, DiskWrite{Seq: 1, Kind: WriteBarrier}),
		"a synchronisation with a number": writes(DiskWrite{Seq: 1, Kind: WriteSync, Sectors: 8, Data: page}),
		"writes descend between calls": func(e *Encoder) error {
			w := []DiskWrite{{Seq: 2, Kind: WriteBarrier}}
			return errors.Join(e.Writes(w, nil), e.Writes(w, nil))
		},
		"a page after the writes":       func(e *Encoder) error { return errors.Join(e.Writes(nil, nil), e.Pages(5, page)) },
		"a page after the device state": func(e *Encoder) error { return errors.Join(e.DeviceState(page), e.Pages(5, page)) },
		"a write after the device state": func(e *Encoder) error {
			return errors.Join(e.DeviceState(page), e.Writes(nil, nil))
		},
		"a device state after the disk state": func(e *Encoder) error {
			return errors.Join(e.DiskState(page), e.DeviceState(page))
		},
		"disk state twice":    func(e *Encoder) error { return errors.Join(e.DiskState(page), e.DiskState(page)) },
		"an empty disk state": func(e *Encoder) error { return e.DiskState(nil) },
		"a giant disk state":  func(e *Encoder) error { return e.DiskState(make([]byte, MaxDiskState+1)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(encodePages, EncoderConfig{}, DecoderConfig{})
			if err := r.enc.Begin(r.header(KindCheckpoint), func([]byte) error { return nil }); err != nil {
				t.Fatal(err)
			}
			if err := call(r.enc); !errors.Is(err, ErrMisuse) {
				t.Errorf("%v, want %v", err, ErrMisuse)
			}
			if _, _, _, err := r.enc.End(); err == nil {
				t.Error("the epoch ended well")
			}
		})
	}
}

// The largest write comes through whole, by the smallest chunks, and its memory
// is not kept for ever.
func TestLargestWrites(t *testing.T) {
	r := newRig(1, EncoderConfig{ChunkBytes: MinChunkBytes}, DecoderConfig{MaxStageBytes: StageLimit(1, 8*MaxWriteSectors*SectorSize)})
	data := make([]byte, MaxWriteSectors*SectorSize)
	fillRandom(rand.New(rand.NewPCG(1, 3)), data)
	var writes []DiskWrite
	for seq := range uint64(8) {
		writes = append(writes, DiskWrite{Seq: seq + 1, Kind: WriteData, Sector: MaxSectors - MaxWriteSectors, Sectors: MaxWriteSectors, Data: data})
	}
	for effort := EffortNone; effort <= EffortFull; effort++ {
		r.enc.SetEffort(effort)
		s, err := r.encodeWith(r.header(KindSync), r.image, NewPageSet(1), nil, disks{writes: writes, state: data[:MaxDiskState]})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.decode(s); err != nil {
			t.Fatal(err)
		}
		stage := r.dec.Stage()
		if err := sameWrites(stage.Writes(), writes); err != nil || !bytes.Equal(stage.DiskState(), data[:MaxDiskState]) {
			t.Fatalf("%v, or the disk state differs", err)
		}
		if want := uint64(8*len(data) + MaxDiskState); stage.Bytes() != want {
			t.Errorf("%d bytes staged, want %d", stage.Bytes(), want)
		}
		r.dec.Reset()
		kept := 0
		for _, slab := range r.dec.stage.data.slabs {
			kept += len(slab)
		}
		if kept > keepData {
			t.Errorf("%d bytes are kept", kept)
		}
	}
}
