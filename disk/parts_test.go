package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"understudy/clock"
	"understudy/disk/disktest"
	"understudy/epoch"
	"understudy/exclusion"
)

func TestPagesOfSegments(t *testing.T) {
	seg := func(page epoch.GFN, at, length int) Segment {
		return Segment{Data: make([]byte, length), Page: page, At: at}
	}
	const none = epoch.NoPage
	for name, c := range map[string]struct {
		segments []Segment
		want     []epoch.GFN
	}{
		"one page":            {[]Segment{seg(7, 0, 4096)}, []epoch.GFN{7}},
		"three in a row":      {[]Segment{seg(7, 0, 3*4096)}, []epoch.GFN{7, 8, 9}},
		"scattered":           {[]Segment{seg(7, 0, 4096), seg(3, 0, 8192)}, []epoch.GFN{7, 3, 4}},
		"offset":              {[]Segment{seg(7, 512, 8192)}, []epoch.GFN{none, none}},
		"a page in pieces":    {[]Segment{seg(7, 0, 512), seg(7, 512, 3584), seg(1, 0, 4096)}, []epoch.GFN{7, 1}},
		"pieces out of order": {[]Segment{seg(7, 512, 3584), seg(7, 0, 512)}, []epoch.GFN{none}},
		"two pages' halves":   {[]Segment{seg(7, 0, 2048), seg(8, 2048, 2048)}, []epoch.GFN{none}},
		"shifted":             {[]Segment{seg(9, 0, 512), seg(7, 0, 8192)}, []epoch.GFN{none, none}},
		"large offset":        {[]Segment{seg(7, 8192, 4096)}, []epoch.GFN{9}},
		"empty ones":          {[]Segment{seg(1, 0, 0), seg(7, 0, 4096), seg(1, 0, 0)}, []epoch.GFN{7}},
		"too short":           {[]Segment{seg(7, 0, 2048)}, []epoch.GFN{none}},
	} {
		walk := pageWalk{segments: c.segments}
		var got []epoch.GFN
		for range c.want {
			got = append(got, walk.next())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// The overlay, and what a batch of writes comes to, against maps of sectors.
func TestNewestWins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := newOverlay()
		owner := map[uint64]uint64{}
		var batch []batched
		content := map[uint64]uint32{}
		for i := range rapid.IntRange(1, 40).Draw(t, "writes") {
			sector, n := rapid.Uint64Range(0, 60).Draw(t, "sector"), rapid.Uint32Range(1, 30).Draw(t, "sectors")
			o.put(sector, n, uint64(i))
			batch = append(batch, batched{uint64(i), entry{sector: sector, sectors: n, kind: epoch.WriteData}})
			for s := sector; s < sector+uint64(n); s++ {
				owner[s], content[s] = uint64(i), uint32(i)
			}
			if k := rapid.IntRange(0, i).Draw(t, "remove"); rapid.Bool().Draw(t, "really") {
				e := batch[k].e
				o.remove(e.sector, e.sectors, uint64(k))
				for s := e.sector; s < e.sector+uint64(e.sectors); s++ {
					if owner[s] == uint64(k) {
						delete(owner, s)
					}
				}
			}
		}
		for s := uint64(0); s < 100; {
			n, i, ok := o.run(s, uint32(100-s))
			for end := s + uint64(n); s < end; s++ {
				if want, have := owner[s]; have != ok || ok && want != i {
					t.Fatalf("sector %d: entry %d %v, want %d %v", s, i, ok, want, have)
				}
			}
		}
		if len(o.blocks)+len(o.free) != len(o.slots) {
			t.Fatalf("%d slots, %d used, %d free", len(o.slots), len(o.blocks), len(o.free))
		}
		end := uint64(0)
		for _, p := range newest(nil, batch) {
			if p.sector < end || p.sectors == 0 {
				t.Fatalf("piece %+v after sector %d", p, end)
			}
			end = p.end()
			for s := p.sector; s < end; s++ {
				if from, ok := content[s]; !ok || from != p.from {
					t.Fatalf("sector %d from write %d, want %d", s, p.from, from)
				}
				delete(content, s)
			}
		}
		if len(content) > 0 {
			t.Fatalf("%d sectors are in no piece", len(content))
		}
	})
}

func TestDirtyPages(t *testing.T) {
	d := newDirtyPages(10000)
	d.mark(5, 4000, 100)
	d.mark(9999, 0, 8192) // its end is outside the image
	d.mark(20000, 0, 1)
	d.mark(7, 0, 0)
	d.mark(100, 4096, 1)
	set := epoch.NewPageSet(10000)
	d.collect(set)
	for _, p := range []epoch.GFN{5, 6, 9999, 101} {
		if !set.Contains(p) {
			t.Errorf("page %d is missing", p)
		}
	}
	if set.Count() != 4 {
		t.Errorf("%d pages", set.Count())
	}
	set.Clear()
	if d.collect(set); !set.Empty() {
		t.Error("collected twice")
	}
}

// A former owner that is silent keeps its lock: nobody writes beside it.
func TestAfterATakeoverTheLockIsWaitedFor(t *testing.T) {
	for _, unfenced := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := disktest.NewMedia(256, true)
			former := m.Open()
			must(t, former.Acquire(t.Context(), 1))
			s, err := NewSet(SetConfig{
				Pages: 64, Disks: []DiskConfig{{Store: m.Open()}}, HeldBytes: MinHeldBytes,
				Clock: clock.Go{Start: time.Now()}, Unfenced: unfenced, Log: quietLog,
			})
			must(t, err)
			d := s.Disk(0)
			must(t, s.StandBy(t.Context()))
			data := bytes.Repeat([]byte{'k'}, 512)
			must(t, s.Commit(1, []epoch.DiskWrite{{Seq: 4, Kind: epoch.WriteData, Sector: 3, Sectors: 1, Data: data}}, nil))
			must(t, s.Activate(t.Context(), nil))
			s.Own(2)
			must(t, s.Allow(forever))
			s.Pass()
			time.Sleep(time.Minute)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			read := request(OpRead, 0, 8, 0)
			err = errors.Join(do(ctx, d, read), do(ctx, d, request(OpWrite, 5, 1, 'n')), do(ctx, d, request(OpFlush, 0, 0, 0)))
			if unfenced {
				must(t, err)
				must(t, do(ctx, d, read))
				if read.Buffer[3*512] != 'k' || read.Buffer[5*512] != 'n' {
					t.Fatal("the guest does not see what is kept")
				}
			} else if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("beside another host's lock: %v", err)
			}
			if !s.Status().Disks[0].Waiting || !bytes.Equal(m.Bytes(), make([]byte, 256*512)) {
				t.Fatal("something was written beside another host's lock")
			}
			must(t, former.Release())
			must(t, do(t.Context(), d, request(OpWrite, 6, 1, 'o')))
			must(t, s.Drain(t.Context()))
			got := m.Durable()
			if got[3*512] != 'k' || got[6*512] != 'o' || unfenced && got[5*512] != 'n' {
				t.Fatal("what was kept did not reach the disk with the lock")
			}
			must(t, s.Close())
		})
	}
}

func TestQuiesceLetsGoAndOwnTakesBack(t *testing.T) {
	m := disktest.NewMedia(64, true)
	s, other := newSet(t, SetConfig{}, m.Open()), m.Open()
	own(s, 1)
	s.Hold()
	must(t, do(soon(t), s.Disk(0), request(OpWrite, 0, 1, 'a')))
	must(t, s.Seal(1))
	must(t, do(soon(t), s.Disk(0), request(OpRead, 0, 8, 0))) // it is the writer now
	must(t, s.Quiesce(soon(t)))
	s.Release(1)
	must(t, other.Acquire(soon(t), 1))
	if m.Bytes()[0] != 0 {
		t.Fatal("written after Quiesce")
	}
	must(t, other.Release())
	s.Own(1)
	must(t, s.Drain(soon(t)))
	if m.Durable()[0] != 'a' {
		t.Fatal("not written after all")
	}
}

func TestRequestsInFlightGoOnAtTheOtherHost(t *testing.T) {
	m := disktest.NewMedia(64, true)
	a, b := newSet(t, SetConfig{}, m.Open(), disktest.NewMedia(64, true).Open()), newSet(t, SetConfig{}, m.Open(), disktest.NewMedia(64, true).Open())
	own(a, 1)
	a.Hold()
	must(t, a.Disk(0).Attach(&front{inFlight: []byte("first")}))
	must(t, a.Disk(1).Attach(&front{inFlight: []byte("second")}))
	early, late := &front{}, &front{}
	must(t, b.Disk(0).Attach(early))
	must(t, b.StandBy(soon(t)))
	must(t, a.Seal(1))
	writes, state := a.Sealed(1)
	must(t, b.Commit(1, writes, state))
	must(t, b.Activate(soon(t), nil))
	must(t, b.Disk(1).Attach(late))
	if string(early.got) != "first" || string(late.got) != "second" {
		t.Fatalf("resubmitted %q and %q", early.got, late.got)
	}
}

func TestAPeersNonsenseIsRefusedWhole(t *testing.T) {
	s := newSet(t, SetConfig{}, disktest.NewMedia(64, true).Open())
	must(t, s.StandBy(soon(t)))
	good := epoch.DiskWrite{Seq: 1, Kind: epoch.WriteZeroes, Sector: 0, Sectors: 8}
	for name, w := range map[string]epoch.DiskWrite{
		"disk":    {Seq: 2, Disk: 1, Kind: epoch.WriteBarrier},
		"kind":    {Seq: 2, Kind: 77, Sectors: 1},
		"range":   {Seq: 2, Kind: epoch.WriteDiscard, Sector: 60, Sectors: 5},
		"data":    {Seq: 2, Kind: epoch.WriteData, Sectors: 1, Data: make([]byte, 511)},
		"order":   {Seq: 1, Kind: epoch.WriteZeroes, Sectors: 1},
		"shared":  {Kind: epoch.WriteSync, Sectors: 1, Data: make([]byte, 512)},
		"barrier": {Seq: 2, Kind: epoch.WriteBarrier, Sectors: 1},
	} {
		if err := s.Commit(1, []epoch.DiskWrite{good, w}, nil); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := s.Commit(1, []epoch.DiskWrite{good}, []byte{stateVersion, 2}); !errors.Is(err, ErrState) {
		t.Errorf("state: %v", err)
	}
	if s.Status().Writes != 0 {
		t.Error("half applied")
	}
}

// Whoever is late finds the disks closed, and not memory that is gone.
func TestAClosedSetIsLeftAlone(t *testing.T) {
	m := disktest.NewMedia(64, true)
	primary, backup := newSet(t, SetConfig{}, m.Open()), newSet(t, SetConfig{}, m.Open())
	must(t, backup.StandBy(soon(t)))
	primary.Own(1)
	primary.Hold()
	must(t, primary.Seal(1))
	write := []epoch.DiskWrite{{Seq: 1, Kind: epoch.WriteData, Sectors: 1, Data: make([]byte, epoch.SectorSize)}}
	_, state := primary.Sealed(1)
	must(t, backup.Commit(1, write, state))
	must(t, primary.Close())
	must(t, backup.Close())

	if err := backup.Commit(2, write, state); !errors.Is(err, ErrClosed) {
		t.Errorf("commit: %v", err)
	}
	if err := backup.ReadSectors(0, 0, make([]byte, epoch.SectorSize)); !errors.Is(err, ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if w, state := primary.Sealed(1); w != nil || state != nil {
		t.Error("sealed writes of memory that is gone")
	}
	if _, _, err := primary.Snapshot(); !errors.Is(err, ErrClosed) {
		t.Errorf("snapshot: %v", err)
	}
	primary.Release(1)
	primary.Void()
	backup.Forget()
	_, _ = primary.Status(), backup.Status()
}

// What the index learns is on the disk, and what is held is not learnt.
func TestTheIndexLearnsWhatIsOnTheDisk(t *testing.T) {
	ix := exclusion.NewIndex(exclusion.Config{Pages: testPages, Key: 1})
	m := disktest.NewMedia(256, true)
	s := newSet(t, SetConfig{Index: ix}, m.Open())
	own(s, 1)
	s.Hold()
	d := s.Disk(0)
	w := request(OpWrite, 16, 8, 'p')
	w.Segments[0].Page = 9
	page := bytes.Clone(w.Segments[0].Data)
	must(t, do(soon(t), d, w))
	r := request(OpRead, 16, 8, 0)
	must(t, do(soon(t), d, r)) // lands from the held log
	if _, ok := ix.Find(9, page); ok {
		t.Fatal("a held write counts as on the disk")
	}
	must(t, s.Seal(1))
	s.Release(1)
	must(t, s.Drain(soon(t)))
	if ref, ok := ix.Find(9, page); !ok || ref.Sector != 16 {
		t.Fatalf("flushed: %v %v", ref, ok)
	}
	must(t, do(soon(t), d, request(OpDiscard, 23, 1, 0)))
	if _, ok := ix.Find(9, page); ok {
		t.Fatal("overwritten in part, and still known")
	}
	s.Pass()
	w.Sector = 40
	must(t, do(soon(t), d, w))
	if ref, ok := ix.Find(9, page); !ok || ref.Sector != 40 {
		t.Fatalf("written directly: %v %v", ref, ok)
	}
	must(t, do(soon(t), d, request(OpDiscard, 40, 1, 0)))
	direct := bytes.Repeat([]byte{'q'}, 4096)
	copyTo := m.Bytes()
	copy(copyTo[80*512:], direct)
	m.Set(copyTo)
	must(t, do(soon(t), d, request(OpRead, 80, 8, 0)))
	if ref, ok := ix.Find(3, direct); !ok || ref.Sector != 80 {
		t.Fatalf("read: %v %v", ref, ok)
	}
	set := epoch.NewPageSet(testPages)
	if s.CollectDirty(set); !set.Contains(0) {
		t.Fatal("the page that was read into is not dirty")
	}
}

func FuzzState(f *testing.F) {
	state := appendStateHead(nil, 2)
	putFlushed(state, 1, 77)
	for i, fr := range []*front{{inFlight: []byte("x")}, {}} {
		state, _ = appendInFlight(state, i, fr)
	}
	f.Add(state)
	f.Add([]byte{})
	f.Add([]byte{1, 2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseState(b, 2)
		if err != nil {
			return
		}
		if len(b) == 0 {
			return
		}
		again := appendStateHead(nil, 2)
		for i, st := range all {
			putFlushed(again, i, st.flushed)
			if again, err = appendInFlight(again, i, &front{inFlight: st.inFlight}); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(again, b) {
			t.Fatal("read and written again it is another")
		}
	})
}

// A journal may be damaged in any way.
func FuzzJournal(f *testing.F) {
	f.Add(uint32(0), uint64(1), uint32(4096), uint64(7))
	f.Add(uint32(64), uint64(1<<40), uint32(4096+8), uint64(1<<63))
	f.Add(uint32(4096+512+32), uint64(9), uint32(16), uint64(1<<62))
	dir := f.TempDir()
	s := newSet(f, SetConfig{JournalDir: dir}, disktest.NewMedia(4096, true).Open())
	own(s, 1)
	s.Hold()
	for i := range uint64(6) {
		must(f, do(context.Background(), s.Disk(0), request(OpWrite, i*5, 8, byte(i))))
		must(f, do(context.Background(), s.Disk(0), request(OpFlush, 0, 0, 0)))
	}
	image := bytes.Clone(s.held.j.mem[:journalHeader+12*(4096+1024)])
	size := int64(len(s.held.j.mem))
	path := filepath.Join(f.TempDir(), journalName)
	f.Fuzz(func(t *testing.T, at uint32, value uint64, at2 uint32, value2 uint64) {
		b := bytes.Clone(image)
		for _, c := range []struct {
			at    uint32
			value uint64
		}{{at, value}, {at2, value2}} {
			i := int(c.at) % (len(b) - 8)
			for k := range 8 {
				b[i+k] = byte(c.value >> (8 * k))
			}
		}
		must(t, os.WriteFile(path, b, 0o600))
		must(t, os.Truncate(path, size))
		s, err := NewSet(SetConfig{JournalDir: filepath.Dir(path), Disks: []DiskConfig{{Store: disktest.NewMedia(4096, true).Open()}}, Clock: clock.Boot{}, Log: quietLog})
		if err != nil {
			return
		}
		own(s, 1)
		s.Hold()
		contents(t, s.Disk(0))
		must(t, s.Seal(1))
		s.Sealed(1)
		must(t, s.Close())
	})
}

func BenchmarkAccept4K(b *testing.B) {
	s := newSet(b, SetConfig{HeldBytes: 256 << 20}, disktest.NewMedia(1<<16, true).Open())
	own(s, 1)
	s.Hold()
	d, r := s.Disk(0), request(OpWrite, 0, 8, 'x')
	n := epoch.Number(0)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r.Sector = uint64(i%4096) * 8
		if taken, err := d.Accept(r); err != nil || !taken {
			b.StopTimer()
			n++
			must(b, s.Seal(n))
			s.Release(n)
			must(b, s.Drain(context.Background()))
			b.StartTimer()
		}
	}
}

func BenchmarkDirectWrite4K(b *testing.B) {
	st := disktest.NewMedia(1<<16, true).Open()
	s := newSet(b, SetConfig{}, nullStore{st})
	own(s, 1)
	s.Pass()
	d, r := s.Disk(0), request(OpWrite, 0, 8, 'x')
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Do(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
}

// nullStore writes nothing.
type nullStore struct{ *disktest.Store }

func (nullStore) WriteAt([]byte, uint64) error { return nil }
