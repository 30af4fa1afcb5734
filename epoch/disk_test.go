package epoch

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
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

const (
	modelPages   = 64
	modelSectors = 40 * PageSectors
	modelDisks   = 2
)

// model is a guest with disks, and what the backup makes of its epochs: the
// image with the references it has not filled, and a copy of the disks that is
// fed by the writes of committed epochs.
type model struct {
	*rig
	random  *rand.Rand
	memory  []byte
	dirty   *PageSet
	disks   [modelDisks][]byte // as they are before the open epoch's writes
	key     PrintKey
	seq     uint64
	writes  []DiskWrite // accepted, not committed
	refused int         // 1 in so many pages is not left out

	refs   []Reference // of the open epoch
	copies uint64

	copied  [modelDisks][]byte // the backup's
	pending map[GFN]Reference  // the backup's, not filled
}

func newModel(t *rapid.T) *model {
	m := &model{
		random: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2)),
		rig: newRig(modelPages, EncoderConfig{
			DeltaCacheBytes: rapid.SampledFrom([]uint64{0, 20 * cacheEntry, 1 << 20}).Draw(t, "cache"),
			ChunkBytes:      rapid.SampledFrom([]int{1, 20000, 0}).Draw(t, "chunk"),
		}, DecoderConfig{}),
		dirty: NewPageSet(modelPages), key: PrintKey(rapid.Uint64().Draw(t, "key")), pending: map[GFN]Reference{},
		refused: rapid.IntRange(1, 20).Draw(t, "refused"),
	}
	m.memory = make([]byte, len(m.image))
	for i := range m.disks {
		m.disks[i] = make([]byte, modelSectors*SectorSize)
		fillRandom(m.random, m.disks[i])
		m.copied[i] = bytes.Clone(m.disks[i])
	}
	// The backup fills what is asked for.
	m.dec.base = func(first GFN, dst []byte) error {
		for i := range GFN(len(dst) / PageSize) {
			if err := m.fill(first + i); err != nil {
				return err
			}
		}
		copy(dst, m.image[first*PageSize:])
		return nil
	}
	return m
}

// fill fills a page from the backup's disk if it is a reference.
func (m *model) fill(f GFN) error {
	r, ok := m.pending[f]
	if !ok {
		return nil
	}
	delete(m.pending, f)
	page := m.image[f*PageSize:][:PageSize]
	copy(page, m.copied[r.Disk][r.Sector*SectorSize:])
	if m.key.Of(page) != r.Print {
		return fmt.Errorf("%v: another fingerprint", r)
	}
	return nil
}

// run lets the guest run: it computes, reads, copies pages, and writes.
func (m *model) run(steps int) {
	for range steps {
		f := GFN(m.random.IntN(modelPages))
		count := 1 + m.random.Uint64N(min(8, modelPages-uint64(f)))
		dst := m.memory[f*PageSize:][:count*PageSize]
		switch m.random.IntN(5) {
		case 0, 1: // a read
			d := m.random.IntN(modelDisks)
			sector := m.random.IntN(modelSectors - int(count)*PageSectors)
			copy(dst, m.disks[d][sector*SectorSize:])
		case 2:
			from := GFN(m.random.IntN(modelPages - int(count)))
			copy(dst, m.memory[from*PageSize:][:count*PageSize])
		case 3:
			for i := range count {
				scribble(m.random, dst[i*PageSize:][:PageSize])
			}
		case 4:
			m.accept()
			continue
		}
		m.dirty.AddRange(f, count)
	}
}

// accept makes one write to a disk.
func (m *model) accept() {
	w := DiskWrite{Disk: DiskID(m.random.IntN(modelDisks)), Kind: WriteKind(1 + m.random.IntN(5))}
	if w.Kind != WriteSync {
		m.seq += 1 + m.random.Uint64N(3)
		w.Seq = m.seq
	}
	if w.Kind != WriteBarrier {
		w.Sectors = 1 + m.random.Uint32N(30*PageSectors)
		w.Sector = m.random.Uint64N(modelSectors - uint64(w.Sectors) + 1)
	}
	w.Data = make([]byte, w.dataBytes())
	for at := 0; at < len(w.Data); at += PageSize {
		page := NoPage
		piece := w.Data[at:min(at+PageSize, len(w.Data))]
		switch m.random.IntN(4) {
		case 0: // zeros
		case 1:
			copy(piece, bytes.Repeat([]byte("a letter\n"), PageSize))
		case 2:
			fillRandom(m.random, piece)
		case 3:
			if page = GFN(m.random.IntN(modelPages)); len(w.Pages) > 0 && m.random.IntN(2) == 0 {
				page = (w.Pages[len(w.Pages)-1] + 1) % modelPages
			}
			copy(piece, m.memory[page*PageSize:])
		}
		if len(piece) == PageSize {
			w.Pages = append(w.Pages, page)
		}
	}
	m.writes = append(m.writes, w)
}

// Exclude leaves out what is on a disk, or in a lower page.
func (m *model) Exclude(f GFN, page []byte, _ bool) (Exclusion, bool) {
	if m.random.IntN(m.refused) == 0 {
		return Exclusion{}, false
	}
	for d, disk := range m.disks {
		for at := 0; at+PageSize <= len(disk); at += SectorSize {
			if bytes.Equal(disk[at:at+PageSize], page) {
				r := Reference{Page: f, Disk: DiskID(d), Sector: uint64(at / SectorSize), Print: m.key.Of(page)}
				m.refs = append(m.refs, r)
				return Exclusion{Kind: ExcludeBlock, Ref: r}, true
			}
		}
	}
	for source := range f {
		if bytes.Equal(m.memory[source*PageSize:][:PageSize], page) && !m.refers(source) {
			m.copies++
			return Exclusion{Kind: ExcludeCopy, Source: source}, true
		}
	}
	return Exclusion{}, false
}

// refers reports whether the open epoch brings a page as a reference.
func (m *model) refers(f GFN) bool {
	return slices.ContainsFunc(m.refs, func(r Reference) bool { return r.Page == f })
}

// write writes to disks.
func (m *model) write(disks *[modelDisks][]byte, writes []DiskWrite) {
	for _, w := range writes {
		dst := disks[w.Disk][w.Sector*SectorSize:][:w.Sectors*SectorSize]
		clear(dst)
		copy(dst, w.Data)
	}
}

// Random epochs of a guest that reads, writes and copies: after each commit
// the image, its references filled, equals the memory, and the backup's copy of
// the disks equals the disks.
func TestEveryEpochBringsReferencesCopiesAndWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		for n := range rapid.IntRange(1, 8).Draw(t, "epochs") {
			m.enc.SetEffort(Effort(rapid.IntRange(0, 2).Draw(t, "effort")))
			m.run(rapid.IntRange(0, 20).Draw(t, "steps"))
			kind, device := KindSync, []byte(nil)
			if rapid.Bool().Draw(t, "checkpoint") {
				kind, device = KindCheckpoint, []byte("registers")
			}
			state := bytes.Repeat([]byte("in flight"), rapid.IntRange(0, 10000).Draw(t, "disk state"))
			if len(state) == 0 {
				state = nil
			}
			m.refs, m.copies = nil, 0
			s, err := m.encodeWith(m.header(kind), m.memory, m.dirty, device, disks{leave: m, writes: m.writes, state: state,
				equal: func(page GFN, piece []byte) bool {
					return !m.refers(page) && bytes.Equal(m.memory[page*PageSize:][:PageSize], piece)
				}})
			if err != nil {
				t.Fatalf("encoding epoch %d: %v", n, err)
			}
			m.checkStats(t, s.stats)
			if rapid.IntRange(0, 9).Draw(t, "lost") == 0 {
				continue // the pages stay dirty and the writes are held
			}
			if err := m.decode(s); err != nil {
				t.Fatalf("decoding epoch %d: %v", n, err)
			}
			m.take(t, state)
			if err := m.commit(s.to); err != nil {
				t.Fatal(err)
			}
			m.dirty.Clear()
			m.write(&m.disks, m.writes)
			m.writes = nil
			if rapid.Bool().Draw(t, "fill") {
				m.fillAll(t)
			}
			m.compare(t, n)
		}
		m.fillAll(t)
		m.compare(t, -1)
		for i := range m.disks {
			if !bytes.Equal(m.disks[i], m.copied[i]) {
				t.Fatalf("disk %d differs", i)
			}
		}
	})
}

// compare compares the image with the memory, but for pages that are not
// filled, or not sent.
func (m *model) compare(t *rapid.T, n int) {
	for f := range GFN(modelPages) {
		if _, ok := m.pending[f]; !ok && !m.dirty.Contains(f) && !bytes.Equal(m.image[f*PageSize:][:PageSize], m.memory[f*PageSize:][:PageSize]) {
			t.Fatalf("after epoch %d page %d differs", n, f)
		}
	}
}

func (m *model) fillAll(t *rapid.T) {
	for f := range GFN(modelPages) {
		if err := m.fill(f); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *model) checkStats(t *rapid.T, st EpochStats) {
	if st.ZeroPages+st.SamePages+st.DeltaPages+st.PackedPages+st.RawPages+st.ReferencePages+st.CopyPages != st.Pages || st.Pages != m.dirty.Count() {
		t.Fatalf("stats do not add up to %d: %+v", m.dirty.Count(), st)
	}
	var count, data, sync uint64
	for _, w := range m.writes {
		if w.Kind == WriteSync {
			sync += uint64(len(w.Data))
			continue
		}
		count, data = count+1, data+uint64(len(w.Data))
	}
	if st.ReferencePages != uint64(len(m.refs)) || st.CopyPages != m.copies || st.Writes != count || st.WriteBytes != data ||
		st.SyncBytes != sync || st.WritePageBytes > data+sync {
		t.Fatalf("%+v, want %d references, %d copies, %d writes of %d and %d bytes", st, len(m.refs), m.copies, count, data, sync)
	}
}

// take checks what the stage says of disks, and does what a backup does with it
// beside Apply.
func (m *model) take(t *rapid.T, state []byte) {
	stage := m.dec.Stage()
	if !slices.Equal(stage.References(), m.refs) {
		t.Fatalf("references %v, want %v", stage.References(), m.refs)
	}
	if err := sameWrites(stage.Writes(), m.writes); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(stage.DiskState(), state) {
		t.Fatal("disk state differs")
	}
	brought := NewPageSet(modelPages)
	stage.EachRun(func(first GFN, count uint64) {
		brought.AddRange(first, count)
		for i := range GFN(count) {
			delete(m.pending, first+i)
		}
	})
	for _, r := range stage.References() {
		if brought.Contains(r.Page) {
			t.Fatalf("page %d is written and referenced", r.Page)
		}
		brought.Add(r.Page)
		m.pending[r.Page] = r
	}
	if brought.Count() != m.dirty.Count() || stage.PageCount() != m.dirty.Count() {
		t.Fatalf("%d pages staged, counted as %d, %d were dirty", brought.Count(), stage.PageCount(), m.dirty.Count())
	}
	if len(stage.Writes()) > 0 { // what they overwrite is filled before
		m.fillAll(t)
	}
	m.write(&m.copied, stage.Writes())
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
