package rebuild

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/epoch"
)

func newStory(t *testing.T) (*drive, *Table, image) {
	t.Helper()
	d := newDrive(256, rand.New(rand.NewPCG(1, 1)))
	table, m := newTable(32, d)
	return d, table, m
}

// TestThrough follows what the acknowledgement says is materialised.
func TestThrough(t *testing.T) {
	d, table, _ := newStory(t)
	want := func(n epoch.Number, left int) {
		t.Helper()
		if got := table.Through(); got != n || table.Len() != left {
			t.Fatalf("filled through epoch %d with %d missing, want %d with %d", got, table.Len(), n, left)
		}
	}
	want(0, 0)
	table.Add(nil, 1)
	want(1, 0)
	table.Add([]epoch.Reference{d.ref(1, 8), d.ref(2, 16)}, 2)
	table.Add([]epoch.Reference{d.ref(3, 24)}, 3)
	table.Add(nil, 4)
	want(1, 3)
	if err := table.ReadPages(3, make([]byte, epoch.PageSize)); err != nil {
		t.Fatal(err)
	}
	want(1, 2)
	table.Supersede(0, 2)
	want(1, 1)
	table.Add([]epoch.Reference{d.ref(2, 32)}, 5) // a newer one of the same page
	want(4, 1)
	if err := table.BeforeOverwrite(0, 39, 1); err != nil {
		t.Fatal(err)
	}
	want(5, 0)
}

// TestABlockThatIsSomethingElse: the reference is bad, by name, until newer
// content comes; whoever needs the page is told.
func TestABlockThatIsSomethingElse(t *testing.T) {
	d, table, m := newStory(t)
	table.Add([]epoch.Reference{d.ref(4, 32), d.ref(5, 40), d.ref(6, 48)}, 1)
	d.put(41, 255)
	d.put(50, 255)
	reads := d.reads
	err := table.FillAll(t.Context(), nil)
	var bad *BadError
	if !errors.As(err, &bad) || bad.Ref.Page != 5 || bad.Ref.Sector != 40 || bad.Epoch != 1 {
		t.Fatalf("%v", err)
	}
	if !strings.Contains(err.Error(), "page 5 was left out of epoch 1 for disk 0, sectors 40 to 47") {
		t.Errorf("%v", err)
	}
	if got := d.reads - reads; got != 3 {
		t.Errorf("%d reads, want one for all and one more for each that differed", got)
	}
	page := make([]byte, epoch.PageSize)
	if err := table.ReadPages(4, page); err != nil || !bytes.Equal(page, d.at(32)) {
		t.Errorf("the good one among them: %v", err)
	}
	if err := table.ReadPages(4, make([]byte, 2*epoch.PageSize)); !errors.As(err, &bad) {
		t.Errorf("reading a bad page: %v", err)
	}
	if err := table.BeforeOverwrite(0, 40, 8); err != nil {
		t.Errorf("overwriting what is lost anyway: %v", err)
	}
	if table.Through() != 0 {
		t.Errorf("filled through epoch %d", table.Through())
	}
	table.Supersede(5, 1)
	if !errors.As(table.Bad(), &bad) || bad.Ref.Page != 6 {
		t.Errorf("%v", table.Bad())
	}
	table.Add([]epoch.Reference{d.ref(6, 48)}, 2)
	if err := table.Bad(); err != nil {
		t.Errorf("after newer content came: %v", err)
	}
	if err := table.FillAll(t.Context(), nil); err != nil || !bytes.Equal(m.page(6), d.at(48)) || table.Through() != 2 {
		t.Errorf("%v", err)
	}
	if err := table.ReadPages(31, make([]byte, 2*epoch.PageSize)); err == nil {
		t.Error("pages outside of the image are read")
	}
}

// TestATornReadIsReadAgain: what differs once may be a writer beside the read.
func TestATornReadIsReadAgain(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		d, table, m := newStory(t)
		want := d.at(8)
		table.Add([]epoch.Reference{d.ref(1, 8)}, 1)
		v := d.bytes[9*epoch.SectorSize]
		d.put(9, v+1)
		d.reading = func(uint64) { d.reading = func(uint64) { d.put(9, v) } }
		got := make([]byte, epoch.PageSize)
		if lazy {
			if err := table.Filler().Content(1, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("on demand: %v", err)
			}
		} else if err := table.FillAll(t.Context(), nil); err != nil || !bytes.Equal(m.page(1), want) {
			t.Errorf("%v", err)
		}
	}
}

// TestRunEndsOnABadPageOfAWholeImageOnly: while the image is being synchronised
// a newer epoch brings the page.
func TestRunEndsOnABadPageOfAWholeImageOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, table, _ := newStory(t)
		ended := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { ended <- table.Run(ctx) }()
		table.Add([]epoch.Reference{d.ref(4, 32)}, 1)
		table.Add([]epoch.Reference{{Page: 6, Sector: 72}}, 2)
		synctest.Wait()
		if len(ended) != 0 || table.Bad() == nil {
			t.Fatal("a bad page of an image that is not whole yet")
		}
		table.Committed(true)
		var bad *BadError
		if err := <-ended; !errors.As(err, &bad) {
			t.Fatalf("ended: %v", err)
		}
	})
}

// TestADiskThatCannotBeRead is tried again; the others' blocks do not wait for
// it, and neither do those beside the bad sector.
func TestADiskThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, table, _ := newStory(t)
		flaky := &flaky{drive: d, bad: 20}
		var through []epoch.Number
		table.cfg.Blocks, table.cfg.Notify = flaky, func(n epoch.Number) { through = append(through, n) }
		table.Add([]epoch.Reference{d.ref(1, 8), d.ref(2, 16), d.ref(3, 24), d.ref(4, 100)}, 1)
		if err := table.FillAll(t.Context(), nil); !errors.Is(err, errSector) || table.Len() != 1 {
			t.Errorf("%v, %d left", err, table.Len())
		}
		if err := table.BeforeOverwrite(0, 20, 1); !errors.Is(err, errSector) {
			t.Errorf("overwriting what could not be saved: %v", err)
		}
		if err := table.BeforeOverwrite(0, 24, 1); err != nil {
			t.Errorf("%v", err)
		}
		stop := background(t, table)
		defer stop()
		time.Sleep(10*time.Second + time.Millisecond) // of the bubble's clock
		if n := flaky.failures(); n < 10 || n > 20 || table.Len() != 1 {
			t.Errorf("%d failures in 10 s, %d left", n, table.Len())
		}
		flaky.mend()
		time.Sleep(time.Second)
		synctest.Wait()
		if table.Len() != 0 || table.Through() != 1 || len(through) != 1 || through[0] != 1 {
			t.Errorf("%d left, through %d, told of %v", table.Len(), table.Through(), through)
		}
	})
}

var errSector = errors.New("input/output error")

// flaky cannot read one sector.
type flaky struct {
	*drive
	mu     sync.Mutex
	bad    uint64
	failed int
}

func (f *flaky) ReadSectors(disk epoch.DiskID, sector uint64, dst []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bad >= sector && f.bad < sector+uint64(len(dst)/epoch.SectorSize) {
		f.failed++
		return errSector
	}
	return f.drive.ReadSectors(disk, sector, dst)
}

func (f *flaky) failures() int { f.mu.Lock(); defer f.mu.Unlock(); return f.failed }
func (f *flaky) mend()         { f.mu.Lock(); defer f.mu.Unlock(); f.bad = 1 << 50 }

// TestWhoWaitsForWhom holds a read of the disk, then a write of the image, and
// sees who goes on.
func TestWhoWaitsForWhom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, table, m := newStory(t)
		table.cfg.Limit = 2
		refs := []epoch.Reference{d.ref(1, 8), d.ref(2, 16)}
		reading, writing := make(chan struct{}), make(chan struct{})
		d.reading = func(uint64) { <-reading }
		table.cfg.Write = func(first epoch.GFN, data []byte) error {
			<-writing
			return m.write(first, data)
		}
		table.Add(refs, 1)
		stop := background(t, table)
		defer stop()
		synctest.Wait() // the filler stands in the read

		finished := func(f func()) chan struct{} {
			done := make(chan struct{})
			go func() { defer close(done); f() }()
			synctest.Wait()
			return done
		}
		waits := func(done chan struct{}, want bool, what string) {
			t.Helper()
			synctest.Wait()
			select {
			case <-done:
				if want {
					t.Errorf("%s did not wait", what)
				}
			default:
				if !want {
					t.Errorf("%s waits", what)
				}
			}
		}
		room := finished(func() {
			if err := table.Room(t.Context()); err != nil {
				t.Error(err)
			}
		})
		waits(room, true, "an epoch while there are as many references as may be")
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := table.Room(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		cancel()
		waits(finished(func() { table.Supersede(1, 1) }), false, "newer content while the disk is read")
		copy(m.page(1), bytes.Repeat([]byte{9}, epoch.PageSize))
		waits(room, false, "an epoch after one was superseded")
		overwrite := finished(func() {
			if err := table.BeforeOverwrite(0, 16, 8); err != nil {
				t.Error(err)
			}
		})
		waits(overwrite, true, "a write over a block that is being read")
		waits(finished(func() {
			if err := table.BeforeOverwrite(0, 24, 8); err != nil {
				t.Error(err)
			}
		}), false, "a write elsewhere")

		close(reading)
		waits(overwrite, true, "a write over a block that is being filled")
		newer := finished(func() { table.Supersede(2, 1) })
		waits(newer, true, "newer content while the image is written")
		filler := finished(func() { table.Filler() })
		waits(filler, true, "the hypervisor while the image is written")
		close(writing)
		waits(overwrite, false, "a write over a block that is filled")
		waits(newer, false, "newer content after the fill")
		waits(filler, false, "the hypervisor after the fill")
		if m.page(1)[0] != 9 {
			t.Error("a fill has overwritten newer content")
		}
	})
}

// TestOnDemand: the hypervisor's side, with what the disk overwrites meanwhile.
func TestOnDemand(t *testing.T) {
	d, table, m := newStory(t)
	var refs []epoch.Reference
	for p := range epoch.GFN(20) {
		refs = append(refs, d.ref(p, uint64(p)*8))
	}
	refs = append(refs, d.ref(25, 200))
	table.Add(refs, 1)
	before := bytes.Clone(d.bytes)
	f := table.Filler()
	set := epoch.NewPageSet(32)
	if f.Missing(set); set.Count() != 21 || !set.Contains(25) {
		t.Fatalf("%d are missing", set.Count())
	}
	if err := table.FillAll(t.Context(), nil); !errors.Is(err, errLazy) {
		t.Errorf("%v", err)
	}
	content := make([]byte, epoch.PageSize)
	get := func(p epoch.GFN, sector int) {
		t.Helper()
		if err := f.Content(p, content); err != nil || !bytes.Equal(content, before[sector*epoch.SectorSize:][:epoch.PageSize]) {
			t.Fatalf("page %d: wrong content, %v", p, err)
		}
	}
	reads := d.reads
	value := d.bytes[41*epoch.SectorSize]
	d.put(41, value+1) // a writer is beside what is read ahead
	get(3, 24)
	d.put(41, value)
	get(5, 40)
	reads++
	get(4, 32) // read with it
	if d.reads != reads+1 {
		t.Errorf("%d reads for two pages side by side", d.reads-reads)
	}
	if m.page(3)[0] != 0 {
		t.Error("the table wrote into the hypervisor's image")
	}
	// The guest overwrites a block that two pages still need.
	if err := table.BeforeOverwrite(0, 200, 8); err != nil {
		t.Fatal(err)
	}
	if err := table.BeforeOverwrite(0, 0, 8); err != nil {
		t.Fatal(err)
	}
	for s := range uint64(8) {
		d.put(s, 255)
		d.put(200+s, 255)
	}
	get(0, 0)
	get(25, 200)
	get(25, 200) // may be asked again
	f.Filled(0)
	f.Filled(0)
	if table.Len() != 20 {
		t.Errorf("%d missing", table.Len())
	}
	// Without its block saved a page cannot be had, and that is seen.
	d.put(152, 255)
	var bad *BadError
	if err := f.Content(19, content); !errors.As(err, &bad) || bad.Ref.Page != 19 {
		t.Errorf("%v", err)
	}
	if err := table.ReadPages(19, content); !errors.As(err, &bad) {
		t.Errorf("%v", err)
	}
	if err := f.Content(1000, content); err == nil {
		t.Error("a page outside of the image has content")
	}
	// The load failed: the table has the image again, and fills from the stash.
	table.Supersede(19, 1)
	table.StandBy()
	table.StandBy()
	if err := table.FillAll(t.Context(), nil); err != nil || !bytes.Equal(m.page(25), before[200*epoch.SectorSize:][:epoch.PageSize]) {
		t.Errorf("%v", err)
	}
}

// TestAnImageThatRefusesAPage ends the background filler.
func TestAnImageThatRefusesAPage(t *testing.T) {
	d, table, _ := newStory(t)
	gone := errors.New("gone")
	table.cfg.Write = func(epoch.GFN, []byte) error { return gone }
	table.Add([]epoch.Reference{d.ref(1, 8)}, 1)
	if err := table.Run(t.Context()); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
	if table.Len() != 1 {
		t.Errorf("%d missing", table.Len())
	}
}

// TestTheAccountIsBounded: a filler that hangs does not make it grow.
func TestTheAccountIsBounded(t *testing.T) {
	d, table, _ := newStory(t)
	stuck, ref := d.ref(31, 8), d.ref(1, 16)
	table.Add([]epoch.Reference{stuck}, 1)
	for n := epoch.Number(2); n < 20000; n++ {
		table.Add([]epoch.Reference{ref}, n)
	}
	if len(table.todo) > 2000 || len(table.ages) > 200 || len(table.entries) > 3 {
		t.Errorf("%d claims, %d ages, %d entries for 2 missing pages", len(table.todo), len(table.ages), len(table.entries))
	}
	if table.Through() != 0 || table.Len() != 2 {
		t.Errorf("through %d, %d missing", table.Through(), table.Len())
	}
}

// BenchmarkFill measures FillAll from memory: 64 MiB of pages whose blocks are
// adjacent, or are anywhere.
func BenchmarkFill(b *testing.B) {
	const pages = 16384
	r := rand.New(rand.NewPCG(1, 1))
	d := newDrive(pages*epoch.PageSectors, r)
	for _, c := range []struct {
		name  string
		order []int
	}{{"adjacent", nil}, {"anywhere", r.Perm(pages)}} {
		b.Run(c.name, func(b *testing.B) {
			table, _ := newTable(pages, d)
			refs := make([]epoch.Reference, pages)
			for p := range refs {
				at := p
				if c.order != nil {
					at = c.order[p]
				}
				refs[p] = d.ref(epoch.GFN(p), uint64(at)*epoch.PageSectors)
			}
			b.SetBytes(pages * epoch.PageSize)
			b.ReportAllocs()
			for n := epoch.Number(1); b.Loop(); n++ {
				table.Add(refs, n)
				if err := table.FillAll(b.Context(), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
