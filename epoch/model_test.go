package epoch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

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
