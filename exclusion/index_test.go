package exclusion

import (
	"bytes"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
)

// filled returns a page that is full of one value.
func filled(v byte) []byte {
	page := make([]byte, epoch.PageSize)
	for i := range page {
		page[i] = v
	}
	return page
}

// readOf plays a read that nothing disturbs.
func readOf(ix *Index, disk epoch.DiskID, sector uint64, page epoch.GFN, content []byte) {
	ix.ReadLanded(ix.ReadBegins(), disk, sector, page, content)
}

func dirty(ix *Index) []epoch.GFN {
	set := epoch.NewPageSet(ix.cfg.Pages)
	ix.Redirtied(set)
	var pages []epoch.GFN
	for first, count := range set.Runs {
		for p := first; p < first+epoch.GFN(count); p++ {
			pages = append(pages, p)
		}
	}
	return pages
}

func wantDirty(t *testing.T, ix *Index, want ...epoch.GFN) {
	t.Helper()
	got := dirty(ix)
	if len(got) != len(want) {
		t.Fatalf("pages %v are dirty again, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("pages %v are dirty again, want %v", got, want)
		}
	}
}

// TestWhatIsLearntOfTraffic tells what the guest's disk did, and asks whether
// the page that took part is left out then.
func TestWhatIsLearntOfTraffic(t *testing.T) {
	const page = epoch.GFN(3)
	x, y := filled(1), filled(2)
	for _, c := range []struct {
		name string
		play func(ix *Index)
		want Reason
	}{
		{"nothing", func(*Index) {}, Unknown},
		{"a read", func(ix *Index) { readOf(ix, 0, 8, page, x) }, Mapped},
		{"a read that is not aligned", func(ix *Index) { readOf(ix, 0, 13, page, x) }, Mapped},
		{"a read into another page", func(ix *Index) { readOf(ix, 0, 8, 5, x) }, Indexed},
		{"a read into no page", func(ix *Index) { readOf(ix, 0, 8, epoch.NoPage, x) }, Indexed},
		{"a read of something else", func(ix *Index) { readOf(ix, 0, 8, page, y) }, Changed},
		{"a read, then its last sector is overwritten", func(ix *Index) {
			readOf(ix, 0, 8, page, x)
			ix.Accepted(0, 15, 1, false)
		}, Overwritten},
		{"a read, then the sectors around it are overwritten", func(ix *Index) {
			readOf(ix, 0, 8, page, x)
			ix.Accepted(0, 7, 1, false)
			ix.Accepted(0, 16, 9, false)
		}, Mapped},
		{"a read, then the same sectors of another disk are overwritten", func(ix *Index) {
			readOf(ix, 0, 8, page, x)
			ix.Accepted(1, 0, 100, false)
		}, Mapped},
		{"a read, then all of the disk is discarded", func(ix *Index) {
			readOf(ix, 0, 8, page, x)
			ix.Accepted(0, 0, 1<<32-1, false)
		}, Overwritten},
		{"a read of two blocks, one overwritten", func(ix *Index) {
			readOf(ix, 0, 8, page, x)
			readOf(ix, 0, 800, 4, x)
			ix.Accepted(0, 8, 8, false)
		}, Indexed},
		{"overwritten, and flushed again", func(ix *Index) {
			readOf(ix, 0, 8, page, y)
			ix.Accepted(0, 8, 8, false)
			ix.Flushed(0, 8, page, x)
		}, Mapped},
		{"a write accepted beside a read", func(ix *Index) {
			r := ix.ReadBegins()
			ix.Accepted(0, 10, 1, false)
			ix.ReadLanded(r, 0, 8, page, x)
		}, Unknown},
		{"a write elsewhere beside a read", func(ix *Index) {
			r := ix.ReadBegins()
			ix.Accepted(0, 16, 1, false)
			ix.ReadLanded(r, 0, 8, page, x)
		}, Mapped},
		{"a passing write under way as the read began", func(ix *Index) {
			w := ix.Accepted(0, 8, 8, true)
			r := ix.ReadBegins()
			ix.Landed(w)
			ix.ReadLanded(r, 0, 8, page, x)
		}, Unknown},
		{"a passing write over before the read began", func(ix *Index) {
			ix.Landed(ix.Accepted(0, 8, 8, true))
			readOf(ix, 0, 8, page, x)
		}, Mapped},
		{"a passing write", func(ix *Index) {
			w := ix.Accepted(0, 8, 8, true)
			ix.WriteDone(w, 0, 8, page, x)
			ix.Landed(w)
		}, Mapped},
		{"two passing writes at once, the first done last", func(ix *Index) {
			w1, w2 := ix.Accepted(0, 8, 8, true), ix.Accepted(0, 8, 8, true)
			ix.WriteDone(w2, 0, 8, page, y)
			ix.Landed(w2)
			ix.WriteDone(w1, 0, 8, page, x)
			ix.Landed(w1)
		}, Unknown},
		{"two passing writes at once, the last done last", func(ix *Index) {
			w1, w2 := ix.Accepted(0, 8, 8, true), ix.Accepted(0, 8, 8, true)
			ix.WriteDone(w1, 0, 8, page, y)
			ix.Landed(w1)
			ix.WriteDone(w2, 0, 8, page, x)
			ix.Landed(w2)
		}, Unknown},
		{"a read that took longer than is remembered", func(ix *Index) {
			r := ix.ReadBegins()
			for range recentTraffic {
				ix.ReadBegins()
			}
			ix.ReadLanded(r, 0, 8, page, x)
		}, Unknown},
		{"a read beside a write that takes longer than is remembered", func(ix *Index) {
			ix.Accepted(0, 8, 8, true)
			for range recentTraffic {
				ix.ReadBegins()
			}
			readOf(ix, 0, 8, page, x)
		}, Unknown},
		{"a read after a write that took longer than is remembered", func(ix *Index) {
			w := ix.Accepted(0, 8, 8, true)
			for range recentTraffic {
				ix.ReadBegins()
			}
			ix.Landed(w)
			readOf(ix, 0, 8, page, x)
		}, Mapped},
		{"a read, and another host had the disk", func(ix *Index) {
			readOf(ix, 0, 8, page, x)
			ix.Forget()
		}, Unknown},
		{"a read that another host's turn came beside", func(ix *Index) {
			r := ix.ReadBegins()
			ix.Forget()
			ix.ReadLanded(r, 0, 8, page, x)
		}, Unknown},
		{"a read of what is not verified", func(ix *Index) {
			ix.SetVerified(0, 0, 1000, false)
			readOf(ix, 0, 8, page, x)
		}, Unverified},
		{"a read of what is verified but for a sector", func(ix *Index) {
			ix.SetVerified(0, 0, 1000, false)
			ix.SetVerified(0, 0, 15, true)
			readOf(ix, 0, 8, page, x)
		}, Unverified},
		{"a read of what is verified since", func(ix *Index) {
			ix.SetVerified(0, 0, 1000, false)
			readOf(ix, 0, 8, page, x)
			ix.SetVerified(0, 0, 16, true)
		}, Mapped},
		{"a disk that does not exist", func(ix *Index) {
			readOf(ix, 200, 8, page, x)
			ix.SetVerified(200, 0, 8, false)
		}, Unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			ix := NewIndex(Config{Pages: 8, Key: 9})
			c.play(ix)
			out, ok := ix.Encoding(1).Exclude(page, x, false)
			if want := c.want == Mapped || c.want == Indexed; ok != want {
				t.Errorf("left out: %v (%+v), want %v", ok, out, want)
			}
			if ok && (out.Kind != epoch.ExcludeBlock || out.Ref.Page != page || out.Ref.Print != epoch.PrintKey(9).Of(x)) {
				t.Errorf("left out for %+v", out)
			}
			s := ix.Stats()
			if got := map[Reason]uint64{Mapped: s.Mapped, Indexed: s.Indexed, Unknown: s.Unknown, Changed: s.Changed, Overwritten: s.Overwritten, Unverified: s.Unverified}; got[c.want] != 1 {
				t.Errorf("%+v, want one %q", s, c.want)
			}
			// A file is restored from this host's disks, whatever the other host's are.
			if _, found := ix.Find(page, x); found != (ok || c.want == Unverified) {
				t.Errorf("for a checkpoint file: %v", found)
			}
			if _, _, found := ix.FindPrint(page, epoch.PrintKey(9).Of(x)); found != (ok || c.want == Unverified) {
				t.Errorf("for a checkpoint file, by its fingerprint: %v", found)
			}
		})
	}
}

// TestOutstandingReferences follows references until they are filled, void or
// overtaken.
func TestOutstandingReferences(t *testing.T) {
	ix := NewIndex(Config{Pages: 8, Key: 9, MaxOutstanding: 3})
	for p := range epoch.GFN(5) {
		readOf(ix, 0, uint64(p)*8, p, filled(byte(p+1)))
	}
	exclude := func(e epoch.Excluder, p epoch.GFN) bool {
		_, ok := e.Exclude(p, filled(byte(p+1)), false)
		return ok
	}
	e := ix.Encoding(1)
	for p := range epoch.GFN(4) {
		if got := exclude(e, p); got != (p < 3) {
			t.Fatalf("page %d left out: %v; three may be outstanding", p, got)
		}
	}
	ix.Materialised(0)
	if n := ix.Outstanding(); n != 3 {
		t.Fatalf("%d outstanding", n)
	}
	ix.Materialised(1)
	wantDirty(t, ix)
	if n := ix.Outstanding(); n != 0 || ix.Stats().Full != 1 {
		t.Fatalf("%d outstanding, %+v", n, ix.Stats())
	}

	// A passing write over one, by one sector; a held write over another.
	e = ix.Encoding(2)
	for p := range epoch.GFN(3) {
		exclude(e, p)
	}
	ix.Landed(ix.Accepted(0, 15, 1, true))
	ix.Accepted(0, 16, 1, false)
	wantDirty(t, ix, 1)
	wantDirty(t, ix)
	if n := ix.Outstanding(); n != 2 {
		t.Fatalf("%d outstanding", n)
	}

	// The backup's copy turns out to differ.
	ix.SetVerified(0, 0, 4, false)
	wantDirty(t, ix, 0)
	ix.SetVerified(0, 0, 4, true)

	// The session is lost in the middle of an epoch.
	e = ix.Encoding(3)
	ix.Void()
	if exclude(e, 3) {
		t.Fatal("left out of an epoch that is lost")
	}
	wantDirty(t, ix, 2)
	if !exclude(ix.Encoding(3), 3) {
		t.Fatal("not left out of the next one")
	}

	// Another image begins at 1.
	ix.Encoding(1)
	wantDirty(t, ix, 3)
	if n := ix.Outstanding(); n != 0 {
		t.Fatalf("%d outstanding", n)
	}
}

// TestCopies: a page that equals a lower one of the same epoch travels as its
// copy, unless that one is a reference.
func TestCopies(t *testing.T) {
	ix := NewIndex(Config{Pages: 100, Key: 9})
	x, y := filled(1), filled(2)
	readOf(ix, 0, 0, 50, y)
	e := ix.Encoding(1)
	for _, c := range []struct {
		page   epoch.GFN
		bytes  []byte
		kind   epoch.ExcludeKind
		source epoch.GFN
	}{{10, x, 0, 0}, {11, y, epoch.ExcludeBlock, 0}, {12, x, epoch.ExcludeCopy, 10}, {13, y, epoch.ExcludeBlock, 0}, {14, x, epoch.ExcludeCopy, 10}} {
		out, _ := e.Exclude(c.page, c.bytes, false)
		if out.Kind != c.kind || out.Source != c.source {
			t.Errorf("page %d: %+v", c.page, out)
		}
	}
	if out, ok := ix.Encoding(2).Exclude(20, x, false); ok {
		t.Errorf("a copy of a page of another epoch: %+v", out)
	}
	// A page with a difference to send is looked at only if traffic named it.
	e = ix.Encoding(3)
	if _, ok := e.Exclude(30, y, true); ok || ix.Stats().Skipped != 1 {
		t.Errorf("looked at: %+v", ix.Stats())
	}
	readOf(ix, 0, 0, 31, y)
	if _, ok := e.Exclude(31, y, true); !ok {
		t.Error("not looked at, though it was read since")
	}
	if _, ok := e.Exclude(1000, y, false); ok {
		t.Error("a page outside of the image is left out")
	}
	if _, ok := ix.Find(31, make([]byte, epoch.PageSize)); ok {
		t.Error("a page of zeros has a reference")
	}
}

// TestBlocksEqualTheOracle compares the table of extents with a list, at its
// bound and below.
func TestBlocksEqualTheOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bound := rapid.IntRange(1, 40).Draw(t, "bound")
		b := newBlocks(bound)
		type extent struct {
			disk   epoch.DiskID
			sector uint64
		}
		oracle, kept := map[extent]epoch.Fingerprint{}, map[extent]bool{}
		for range 200 {
			disk, sector := epoch.DiskID(rapid.IntRange(0, 1).Draw(t, "disk")), uint64(rapid.IntRange(0, 60).Draw(t, "sector"))
			switch op := rapid.IntRange(0, 12).Draw(t, "op"); {
			case op > 3:
				print := epoch.Fingerprint{byte(rapid.IntRange(0, 5).Draw(t, "print"))}
				x := extent{disk, sector}
				if op > 10 {
					had := len(kept)
					if b.keep(disk, sector, print) != (had < bound/4) {
						t.Fatalf("the table of %d says wrongly whether it has room to keep more than %d", bound, had)
					}
					if had == bound/4 {
						continue
					}
					kept[x] = true
				} else {
					b.put(disk, sector, print)
					if oracle[x] != print { // it is not what it was kept for
						delete(kept, x)
					}
				}
				oracle[x] = print
			case op == 0:
				b.forget()
				for x := range oracle {
					if !kept[x] {
						delete(oracle, x)
					}
				}
			default:
				to := sector + uint64(rapid.IntRange(1, 30).Draw(t, "sectors"))
				b.overwrite(disk, sector, to)
				for x := range oracle {
					if x.disk == disk && x.sector < to && sector < x.sector+8 {
						delete(oracle, x)
						delete(kept, x)
					}
				}
			}
			alive, still := 0, 0
			for i := range b.slots {
				s := &b.slots[i]
				if !s.live {
					continue
				}
				alive++
				if kept[extent{s.disk, s.sector}] {
					still++
				}
				if want, ok := oracle[extent{s.disk, s.sector}]; !ok || want != s.print {
					t.Fatalf("disk %d sector %d is %v, want %v (%v)", s.disk, s.sector, s.print, want, ok)
				}
				if name := b.find(&s.print); name == 0 || b.at(name).print != s.print || !b.at(name).live {
					t.Fatalf("the content of disk %d sector %d is not found", s.disk, s.sector)
				}
			}
			if alive != b.alive || alive > bound || alive < len(oracle) && len(b.slots) < bound {
				t.Fatalf("%d extents, counted %d, want %d; bound %d", alive, b.alive, len(oracle), bound)
			}
			if still != len(kept) || b.kept != len(kept) {
				t.Fatalf("%d extents that were kept are there, counted %d, want %d", still, b.kept, len(kept))
			}
			for p := range byte(6) {
				if name := b.find(&epoch.Fingerprint{p}); name != 0 && !b.at(name).live {
					t.Fatalf("content %d is found on a dead block", p)
				}
			}
		}
	})
}

// TestUnverifiedEqualsTheOracle compares the intervals with one bool a sector.
func TestUnverifiedEqualsTheOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var u unverified
		var oracle [64]bool
		for range 50 {
			from, n := rapid.IntRange(0, 60).Draw(t, "from"), rapid.IntRange(0, 20).Draw(t, "n")
			to, verified := min(from+n, 64), rapid.Bool().Draw(t, "verified")
			u.set(uint64(from), uint64(to), verified)
			for i := from; i < to; i++ {
				oracle[i] = !verified
			}
			for i, want := range oracle {
				if got := u.any(uint64(i), uint64(i+1)); got != want {
					t.Fatalf("sector %d is not verified: %v, want %v; %v", i, got, want, u)
				}
			}
			for i := 1; i < len(u); i++ {
				if u[i].from <= u[i-1].to || u[i].from >= u[i].to {
					t.Fatalf("%v", u)
				}
			}
		}
	})
}

// TestUnverifiedIsBounded: at its bound it knows less, never anything untrue.
func TestUnverifiedIsBounded(t *testing.T) {
	var u unverified
	for i := range uint64(maxIntervals + 10) {
		u.set(10*i, 10*i+5, false)
	}
	if len(u) > maxIntervals {
		t.Fatalf("%d intervals", len(u))
	}
	for i := range uint64(maxIntervals + 10) {
		if !u.any(10*i, 10*i+5) {
			t.Fatalf("%d counts as verified", 10*i)
		}
	}
	u.set(1, 2, true)
	if !u.any(1, 2) || len(u) > maxIntervals {
		t.Error("an interval was split at the bound")
	}
	u.set(0, 1<<40, true)
	if len(u) != 0 {
		t.Errorf("%d intervals are left", len(u))
	}
}

// TestTrafficBesideAnEncoder is for the race detector: the disks report while
// the encoder asks and acknowledgements come.
func TestTrafficBesideAnEncoder(t *testing.T) {
	ix := NewIndex(Config{Pages: 64, Key: 9, MaxBlocks: 40, MaxOutstanding: 20})
	var done sync.WaitGroup
	for disk := range epoch.DiskID(2) {
		done.Go(func() {
			for i := range uint64(500) {
				page := epoch.GFN(i * 7 % 64)
				readOf(ix, disk, i*8%400, page, filled(byte(1+i%5)))
				w := ix.Accepted(disk, i*3%400, uint32(i%17), true)
				ix.WriteDone(w, disk, i*3%400, page, filled(byte(1+i%5)))
				ix.Landed(w)
				ix.SetVerified(disk, i%100, i%100+10, i%2 == 0)
			}
		})
	}
	set := epoch.NewPageSet(64)
	for n := epoch.Number(1); n <= 50; n++ {
		e := ix.Encoding(n)
		for p := range epoch.GFN(64) {
			e.Exclude(p, filled(byte(1+p%5)), p%3 == 0)
		}
		if ix.Redirtied(set); n%10 == 0 {
			ix.Void()
		}
		ix.Materialised(n - 1)
	}
	done.Wait()
	ix.Void()
	if ix.Outstanding() != 0 || ix.Stats().Outstanding != 0 {
		t.Errorf("%d outstanding", ix.Outstanding())
	}
}

// TestAGuestMayBeSmallerThanItsIndex: the index is made before the guest is
// known, with room for its largest image.
func TestAGuestMayBeSmallerThanItsIndex(t *testing.T) {
	ix := NewIndex(Config{Pages: 100, Key: 1})
	page := bytes.Repeat([]byte{7, 1}, epoch.PageSize/2)
	ix.ReadLanded(ix.ReadBegins(), 0, 8, 3, page)
	if _, out := ix.Encoding(1).Exclude(3, page, false); !out {
		t.Fatal("the page was not left out")
	}
	ix.Void()
	set := epoch.NewPageSet(50)
	ix.Redirtied(set)
	if !set.Contains(3) || set.Count() != 1 {
		t.Errorf("%d pages are to be sent again, want page 3", set.Count())
	}
}

// Losses changes with everything that may make FindPrint's answer untrue, and
// with nothing else.
func TestLosses(t *testing.T) {
	ix := NewIndex(Config{Pages: 8, Key: 1, MaxBlocks: 2})
	found := func(page epoch.GFN, v byte) bool {
		_, _, ok := ix.FindPrint(page, epoch.PrintKey(1).Of(filled(v)))
		return ok
	}
	learn := func(sector uint64, page epoch.GFN, v byte) func() {
		return func() { readOf(ix, 0, sector, page, filled(v)) }
	}
	for _, step := range []struct {
		name   string
		do     func()
		loses  bool
		learnt bool // page 1 still has its block
	}{
		{"a read", learn(8, 1, 'a'), false, true},
		{"another read", learn(16, 2, 'b'), false, true},
		{"the same read again", learn(8, 1, 'a'), false, true},
		{"a write elsewhere", func() { ix.Landed(ix.Accepted(0, 80, 8, true)) }, false, true},
		{"a write over another block", func() { ix.Landed(ix.Accepted(0, 16, 8, true)) }, true, true},
		{"sectors that the other host's copy may not have", func() { ix.SetVerified(0, 8, 9, false) }, false, true},
		{"a held write over part of it", func() { ix.Accepted(0, 15, 1, false) }, true, false},
		{"a read again", learn(8, 1, 'a'), false, true},
		{"one that fills the table", learn(24, 3, 'c'), false, true},
		{"all forgotten", ix.Forget, true, false},
		{"learnt anew", func() { learn(8, 1, 'a')(); learn(24, 3, 'c')() }, false, true},
		{"reads that push others out", func() { learn(32, 4, 'd')(); learn(40, 5, 'e')(); learn(48, 6, 'f')() }, true, false},
	} {
		before := ix.Losses()
		step.do()
		if lost := ix.Losses() != before; lost != step.loses {
			t.Errorf("%s: something is lost: %t", step.name, lost)
		}
		if found(1, 'a') != step.learnt {
			t.Errorf("%s: page 1 is found: %t", step.name, !step.learnt)
		}
	}
}

// TestWhatIsKept: what nobody writes to is found for as long as it is true.
func TestWhatIsKept(t *testing.T) {
	const boot = epoch.MaxDisks - 1
	ix := NewIndex(Config{Pages: 16, Key: 1, MaxBlocks: 8})
	if !ix.Keep(boot, 3, filled('k')) || !ix.Keep(boot, 11, filled('l')) || !ix.Keep(boot, 19, filled(0)) {
		t.Fatal("two of eight extents could not be kept, and a zero page")
	}
	if ix.Keep(boot, 27, filled('m')) || ix.Keep(epoch.MaxDisks, 0, filled('m')) {
		t.Fatal("more than a quarter of the table was kept, or an extent of no disk")
	}
	left := func(v byte) bool {
		e, ok := ix.Encoding(1).Exclude(5, filled(v), false)
		return ok && e.Kind == epoch.ExcludeBlock && e.Ref.Disk == boot
	}
	for _, step := range []struct {
		name string
		do   func()
		want bool // whether both are found
	}{
		{"kept", func() {}, true},
		{"the disks may have changed", ix.Forget, true},
		{"much else is read", func() {
			for i := range uint64(40) {
				readOf(ix, 0, 8*i, 3, filled(byte(100+i)))
			}
		}, true},
		{"the other host has another file", func() { ix.SetVerified(boot, 0, 1<<20, false) }, false},
		{"and the right one", func() { ix.SetVerified(boot, 0, 1<<20, true) }, true},
		{"the file is another one", func() { ix.Accepted(boot, 0, 1<<20, false) }, false},
		{"nothing brings it back", ix.Forget, false},
	} {
		step.do()
		if k, l := left('k'), left('l'); k != step.want || l != step.want {
			t.Errorf("%s: found %t and %t, want %t", step.name, k, l, step.want)
		}
	}
}
