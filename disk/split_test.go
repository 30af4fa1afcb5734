package disk

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/clock"
	"understudy/disk/disktest"
	"understudy/epoch"
)

// splitMedia is a store whose requests the caller carries out, which here is the
// test.
type splitMedia struct{ *disktest.Store }

func (splitMedia) Aligned(p []byte) bool { return len(p)%epoch.SectorSize == 0 }
func (splitMedia) StartRead(sector uint64, _ uint32) (int, int64, bool) {
	return 1, int64(sector * epoch.SectorSize), true
}
func (splitMedia) StartWrite(sector uint64, _ uint32) (int, int64, bool) {
	return 1, int64(sector * epoch.SectorSize), true
}
func (splitMedia) EndWrite()               {}
func (splitMedia) StartSync() (int, bool)  { return 1, true }
func (splitMedia) EndSync(err error) error { return err }

// learnt is an index that keeps what it is told of reads and writes.
type learnt struct {
	noIndex
	mu     sync.Mutex
	begun  int
	reads  map[uint64][]byte // by sector
	pages  map[uint64]epoch.GFN
	writes int
}

func (l *learnt) ReadBegins() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun++
	return uint64(l.begun)
}

func (l *learnt) ReadLanded(_ uint64, _ epoch.DiskID, sector uint64, page epoch.GFN, content []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads[sector], l.pages[sector] = slices.Clone(content), page
}

func (l *learnt) WriteDone(uint64, epoch.DiskID, uint64, epoch.GFN, []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writes++
}

// told is how much it was told of.
func (l *learnt) told() (reads, writes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.reads), l.writes
}

// direct makes a guest's request of a length that is worth a direct transfer.
func direct(op Op, sector uint64, fill byte) *Request {
	r := request(op, sector, directBytes/epoch.SectorSize, fill)
	r.Buffer = nil
	r.Segments[0].Page = epoch.GFN(sector / epoch.PageSectors)
	return r
}

// splitSet is a Set of one such disk, of a guest that is not protected.
func splitSet(t *testing.T) (*Set, *disktest.Media, *disktest.Store, *learnt) {
	t.Helper()
	m, index := disktest.NewMedia(1024, true), &learnt{reads: map[uint64][]byte{}, pages: map[uint64]epoch.GFN{}}
	store := m.Open()
	s, err := NewSet(SetConfig{
		Pages: testPages, Disks: []DiskConfig{{Store: splitMedia{store}}}, HeldBytes: MinHeldBytes,
		Clock: clock.Go{Start: time.Now()}, Index: index, Log: quietLog,
	})
	must(t, err)
	own(s, 1)
	s.Pass()
	t.Cleanup(func() { must(t, s.Close()) })
	synctest.Wait()
	return s, m, store, index
}

// What the index learns of a direct write is what is on the disk, and not what is
// in the guest by then.
func TestTheIndexLearnsOfADirectWriteFromTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, m, store, index := splitSet(t)
		d, r := s.Disk(0), direct(OpWrite, 64, 'd')
		tr, ok := d.Begin(r)
		if !ok || !tr.Direct || tr.Data != nil {
			t.Fatalf("%+v, %v: want a direct transfer", tr, ok)
		}
		must(t, store.WriteAt(r.Segments[0].Data, r.Sector))
		for i := range r.Segments[0].Data {
			r.Segments[0].Data[i] = 'g' // the guest uses its memory for something else
		}
		must(t, d.End(r, nil))
		if reads, writes := index.told(); reads+writes != 0 {
			t.Fatal("the index was told of a direct write as it ended")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		const pages = directBytes / epoch.PageSize
		if reads, _ := index.told(); reads != pages {
			t.Fatalf("the index knows of %d pages, want %d", reads, pages)
		}
		all := m.Bytes()
		index.mu.Lock()
		defer index.mu.Unlock()
		for sector, content := range index.reads {
			if !bytes.Equal(content, all[sector*epoch.SectorSize:][:epoch.PageSize]) || content[0] != 'd' {
				t.Errorf("the index was told that sector %d holds %q…", sector, content[:4])
			}
			if want := epoch.GFN(sector / epoch.PageSectors); index.pages[sector] != want {
				t.Errorf("sector %d is said to be in page %d, want %d", sector, index.pages[sector], want)
			}
		}
	})
}

// A disk that is another host's is not read again.
func TestNothingIsLearntOfAnothersDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, store, index := splitSet(t)
		d, r := s.Disk(0), direct(OpWrite, 64, 'd')
		if _, ok := d.Begin(r); !ok {
			t.Fatal("not begun")
		}
		must(t, store.WriteAt(r.Segments[0].Data, r.Sector))
		must(t, d.End(r, nil))
		must(t, s.Quiesce(t.Context()))
		time.Sleep(time.Second)
		synctest.Wait()
		if reads, _ := index.told(); reads != 0 {
			t.Errorf("%d pages were learnt of a disk that was let go", reads)
		}
	})
}

// Reads into the guest's memory that are under way when it becomes protected are
// over before the first epoch is sealed, and there are no more of them.
func TestHoldWaitsForDirectReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _, _ := splitSet(t)
		d, r := s.Disk(0), direct(OpRead, 64, 0)
		if tr, ok := d.Begin(r); !ok || !tr.Direct {
			t.Fatal("no direct read of an unprotected guest")
		}
		s.Hold()
		if s.Settled() || s.Seal(1) == nil {
			t.Fatal("settled while a read goes into the guest's memory")
		}
		if next := direct(OpRead, 64, 0); d.Direct(next) {
			t.Error("a protected guest's read would be a direct one")
		} else if _, ok := d.Begin(next); ok {
			t.Error("a protected guest's read without a buffer was begun")
		}
		must(t, d.End(r, nil))
		d.Landed(r)
		synctest.Wait()
		if !s.Settled() {
			t.Fatal("not settled")
		}
		must(t, s.Seal(1))
		marks := epoch.NewPageSet(testPages)
		s.CollectDirty(marks)
		if want := uint64(directBytes / epoch.PageSize); marks.Count() != want {
			t.Errorf("%d pages are reported as written, want %d", marks.Count(), want)
		}
	})
}

// A pause waits for direct transfers, so that a slow disk makes none.
func TestASlowDiskHasNoDirectTransfers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _, _ := splitSet(t)
		d, r := s.Disk(0), direct(OpRead, 0, 0)
		if _, ok := d.Begin(r); !ok {
			t.Fatal("not begun")
		}
		time.Sleep(slowTransfer + time.Millisecond)
		must(t, d.End(r, nil))
		if d.Direct(direct(OpWrite, 0, 0)) {
			t.Error("direct transfers of a disk that has just been slow")
		}
		time.Sleep(slowTime + time.Millisecond)
		if !d.Direct(direct(OpWrite, 0, 0)) {
			t.Error("no direct transfers any more")
		}
	})
}

// What is small, or not aligned, is copied.
func TestWhatIsNotWorthADirectTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _, _ := splitSet(t)
		d := s.Disk(0)
		crooked := direct(OpWrite, 0, 0)
		data := crooked.Segments[0].Data
		crooked.Segments = []Segment{{Data: data[:100]}, {Data: data[100:], At: 100}}
		many := direct(OpWrite, 0, 0)
		many.Sectors, many.Segments = directPieces+1, slices.Repeat([]Segment{{Data: data[:512]}}, directPieces+1)
		for name, r := range map[string]*Request{
			"small": request(OpWrite, 0, directBytes/epoch.SectorSize-1, 0), "crooked": crooked, "many": many, "flush": request(OpFlush, 0, 0, 0),
		} {
			if d.Direct(r) {
				t.Errorf("%s: a direct transfer", name)
			}
		}
	})
}
