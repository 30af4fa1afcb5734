package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
)

// rapidTB is what the helpers need of a test; rapid's T is not one.
type rapidTB struct {
	testing.TB
	t *rapid.T
}

func (r rapidTB) Helper()                   {}
func (r rapidTB) Fatal(args ...any)         { r.t.Fatal(args...) }
func (r rapidTB) Fatalf(f string, a ...any) { r.t.Fatalf(f, a...) }
func (r rapidTB) Errorf(f string, a ...any) { r.t.Errorf(f, a...) }
func (r rapidTB) Error(args ...any)         { r.t.Error(args...) }
func (r rapidTB) Context() context.Context  { return r.TB.Context() }

// TestRestoredIsWhatWasSaved: a guest of random pages runs, writes memory and
// disk, is saved in random rounds and in up to four files of a series; then
// files and disk may be damaged. What comes back, on either way, is the guest at
// that file, or an error; and without damage there is none.
func TestRestoredIsWhatWasSaved(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tb := rapidTB{t, rt}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		blocks := rapid.IntRange(1, 30).Draw(rt, "blocks")
		d := newDisk(blocks, rng)
		pages := rapid.SampledFrom([]int{1, 2, 15, 16, 17, 63, 64, 65, 66, 100, 150, 200}).Draw(rt, "pages")
		if rapid.IntRange(0, 30).Draw(rt, "large") == 30 {
			pages += leafPages
		}
		m := mixed(pages, d, rng)
		series := rapid.IntRange(1, 4).Draw(rt, "files")

		var parent *File
		var path string
		var files []*File
		defer func() {
			for _, f := range files {
				_ = f.Close()
			}
		}()
		for i := range series {
			path = filepath.Join(dir, fmt.Sprint(i))
			opts := Options{Parent: parent, MaxWaste: rapid.SampledFrom([]int{1, 20, 100}).Draw(rt, "waste"), Workers: rapid.IntRange(1, 3).Draw(rt, "workers")}
			if rapid.Bool().Draw(rt, "finder") {
				opts.Finder = d
			}
			w, err := Create(path, testHead(uint64(pages)), opts)
			if err != nil {
				rt.Fatal(err)
			}
			dirty := epoch.NewPageSet(uint64(pages))
			if i == 0 || rapid.Bool().Draw(rt, "all dirty") {
				dirty.Fill()
			}
			live(m, d, dirty, rng, 20) // since the last file
			for range rapid.IntRange(0, 4).Draw(rt, "rounds") {
				if rng.IntN(2) == 0 {
					if err := w.Stale(dirty); err != nil {
						rt.Fatal(err)
					}
				}
				if err := round(w, m, dirty, rng); err != nil {
					rt.Fatal(err)
				}
				dirty.Clear()
				live(m, d, dirty, rng, rng.IntN(40))
			}
			finish(tb, w, m, d, dirty)
			if parent, err = Open(path); err != nil {
				rt.Fatal(err)
			}
			files = append(files, parent)
		}
		if err := tryAll(tb, path, m, d); err != nil {
			rt.Fatal(err)
		}

		switch rapid.IntRange(0, 2).Draw(rt, "damage") {
		case 0:
			d.overwrite(rng.IntN(blocks), rng)
		case 1:
			victim := filepath.Join(dir, fmt.Sprint(rng.IntN(series)))
			b, err := os.ReadFile(victim)
			if err != nil {
				rt.Fatal(err)
			}
			b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
			if err := os.WriteFile(victim, b, 0o600); err != nil {
				rt.Fatal(err)
			}
		case 2:
			victim := filepath.Join(dir, fmt.Sprint(rng.IntN(series)))
			b, err := os.ReadFile(victim)
			if err == nil {
				err = os.WriteFile(victim, b[:rng.IntN(len(b))], 0o600)
			}
			if err != nil {
				rt.Fatal(err)
			}
		}
		err = tryAll(tb, path, m, d)
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrStale) && !errors.Is(err, ErrVersion) {
			rt.Fatalf("an error of no known sort: %v", err)
		}
	})
}

// live lets the guest write pages, and now and then a block.
func live(m *image, d *disk, dirty *epoch.PageSet, rng *rand.Rand, writes int) {
	for range writes {
		f := epoch.GFN(rng.IntN(int(m.Pages())))
		dirty.Add(f)
		switch rng.IntN(6) {
		case 0:
			clear(m.page(f))
		case 1:
			copy(m.page(f), d.block(rng.IntN(len(d.bytes)/epoch.PageSize)))
		case 2:
			copy(m.page(f), m.page(epoch.GFN(rng.IntN(int(m.Pages())))))
		case 3:
			noise(m.page(f), rng)
		case 4:
			scribble(m.page(f), rng)
		case 5: // as before
		}
		if rng.IntN(10) == 0 {
			d.overwrite(rng.IntN(len(d.bytes)/epoch.PageSize), rng)
		}
	}
}

// round gives the writer the pages of a set, one way or another.
func round(w *Writer, m *image, set *epoch.PageSet, rng *rand.Rand) error {
	if rng.IntN(2) == 0 {
		if err := w.Known(knownOf(m, set, rng)); err != nil {
			return err
		}
		return w.Image(context.Background(), m, set, nil)
	}
	for first, count := range set.Runs {
		b := m.bytes[first*epoch.PageSize:][:count*epoch.PageSize]
		var err error
		if count == 1 && isZero(b) && rng.IntN(2) == 0 {
			err = w.Zero(first, count)
		} else {
			err = w.Pages(first, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// knownOf is what somebody could know of some pages of a set.
func knownOf(m *image, set *epoch.PageSet, rng *rand.Rand) epoch.Known {
	k := epoch.Known{Key: testKey, Pages: epoch.NewPageSet(m.Pages()), Prints: make([]epoch.Fingerprint, m.Pages())}
	for first, count := range set.Runs {
		for f := first; f < first+epoch.GFN(count); f++ {
			if rng.IntN(3) == 0 {
				k.Prints[f] = testKey.Of(m.page(f))
				k.Pages.Add(f)
			}
		}
	}
	return k
}

// TestOverwrittenBlocksAreSetAside: the guest runs from a lazy restore and
// writes to its disk while pages are still missing.
func TestOverwrittenBlocksAreSetAside(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		d := newDisk(30, rng)
		m := mixed(150, d, rng)
		tb := rapidTB{t, rt}
		path := filepath.Join(dir, "x")
		save(tb, path, m, d, Options{})
		f, err := Open(path)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		s, p, err := Restore(t.Context(), f, &driver{}, d, RestoreOptions{Lazy: true, leaveFew: true})
		if err != nil {
			rt.Fatal(err)
		}
		got := s.(*image)
		for p.Remaining() > 0 {
			if rng.IntN(4) == 0 {
				sector, n := rng.IntN(30*epoch.PageSectors), 1+rng.IntN(3*epoch.PageSectors)
				n = min(n, 30*epoch.PageSectors-sector)
				if err := p.Overwrite(2, uint64(sector), uint32(n)); err != nil {
					rt.Fatal(err)
				}
				noise(d.bytes[sector*epoch.SectorSize:(sector+n)*epoch.SectorSize], rng)
			}
			page := epoch.GFN(rng.IntN(150))
			if !p.missing.Contains(page) {
				continue
			}
			if err := p.Content(page, got.page(page)); err != nil {
				rt.Fatal(err)
			}
			p.Filled(page)
		}
		<-p.Done()
		if !bytes.Equal(got.bytes, m.bytes) {
			rt.Fatal("the guest came back as another")
		}
		if err := p.Overwrite(2, 0, 8); err != nil {
			rt.Fatal(err)
		}
	})
}
