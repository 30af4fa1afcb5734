package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
)

// scanDisk is a disk that was never traced.
type scanDisk struct{ *disk }

func (d scanDisk) Sectors() uint64 { return d.sectors() }

func (d scanDisk) ReadAt(p []byte, sector uint64) error { return d.ReadSectors(2, sector, p) }

// NextData takes blocks of zeros for holes.
func (d scanDisk) NextData(sector uint64) uint64 {
	for block := int(sector / epoch.PageSectors); block*epoch.PageSectors < int(d.sectors()); block++ {
		if !isZero(d.block(block)) {
			return max(sector, uint64(block*epoch.PageSectors))
		}
	}
	return d.sectors()
}

// Every page whose content is on a disk is found there, at its first place, and no
// other; a file made so is the guest, and every page of it is given once.
func TestAScanFindsWhatIsOnDisks(t *testing.T) {
	dir := t.TempDir()
	files := 0
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		d := newDisk(rapid.IntRange(2, 700).Draw(rt, "blocks"), rng)
		for i := range len(d.bytes) / epoch.PageSize {
			switch rng.IntN(4) {
			case 0:
				clear(d.block(i))
			case 1:
				copy(d.block(i), d.block(rng.IntN(i+1)))
			}
		}
		scan := NewScan(testKey)
		var last, total uint64
		if err := scan.Disk(t.Context(), 2, scanDisk{d}, func(a, b uint64) { last, total = a, b }); err != nil {
			rt.Fatal(err)
		}
		if last > total {
			rt.Errorf("%d of %d blocks read", last, total)
		}
		scan.Sort()
		want := map[epoch.Fingerprint]uint64{}
		for i := len(d.bytes)/epoch.PageSize - 1; i >= 0; i-- {
			if !isZero(d.block(i)) {
				want[testKey.Of(d.block(i))] = uint64(i * epoch.PageSectors)
			}
		}
		m := mixed(rapid.IntRange(1, 300).Draw(rt, "pages"), d, rng)
		for page := range epoch.GFN(m.Pages()) {
			print := testKey.Of(m.page(page))
			sector, is := want[print]
			ref, _, ok := scan.FindPrint(page, print)
			if ok != is || is && ref != (epoch.Reference{Page: page, Disk: 2, Sector: sector, Print: print}) {
				rt.Fatalf("page %d is found: %v at %+v, want %v at %d", page, ok, ref, is, sector)
			}
		}
		files++
		path := filepath.Join(dir, string(rune('a'+files%26))+".ckpt")
		w, err := Create(path, testHead(m.Pages()), Options{Finder: scan, Replace: true})
		if err != nil {
			rt.Fatal(err)
		}
		info := finish(t, w, m, d, all(m.Pages()))
		if c := info.Summary.Pages; c.Mapped != 0 || c.Sum() != m.Pages() {
			rt.Errorf("the pages are %+v", c)
		}
		f, err := Open(path)
		if err != nil {
			rt.Fatal(err)
		}
		got, seen := newImage(int(m.Pages())), make([]int, m.Pages())
		err = f.Pages(t.Context(), d, func(first epoch.GFN, data []byte) error {
			for i := range len(data) / epoch.PageSize {
				seen[int(first)+i]++
			}
			return got.WritePages(first, data)
		}, func(first epoch.GFN, count uint64) error {
			for i := range count {
				seen[uint64(first)+i]++
			}
			return nil
		}, nil)
		if err != nil || !bytes.Equal(got.bytes, m.bytes) {
			rt.Fatalf("the pages of the file are others, error %v", err)
		}
		for page, n := range seen {
			if n != 1 {
				rt.Fatalf("page %d was given %d times", page, n)
			}
		}
		if err := f.Close(); err != nil {
			rt.Fatal(err)
		}
	})
}

func TestAScanThatCannotBeMade(t *testing.T) {
	d := newDisk(8, rand.New(rand.NewPCG(1, 1)))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	scan := NewScan(testKey)
	if err := scan.Disk(gone, 2, scanDisk{d}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if err := scan.Disk(t.Context(), epoch.MaxDisks, scanDisk{d}, nil); err == nil {
		t.Error("a disk with a number that no disk has")
	}
	if err := scan.Disk(t.Context(), 2, torn{scanDisk{d}}, nil); err == nil || !strings.Contains(err.Error(), "disk 2: bad block") {
		t.Errorf("error %v", err)
	}
	scan.most = 3
	if err := scan.Disk(t.Context(), 2, scanDisk{d}, nil); err != nil || len(scan.rows) != 3 {
		t.Errorf("it knows %d blocks, error %v", len(scan.rows), err)
	}
}

type torn struct{ scanDisk }

func (torn) ReadAt([]byte, uint64) error { return errors.New("bad block") }

// A page that cannot be had ends the reading of a file.
func TestAPageThatCannotBeHad(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	d := newDisk(4, rng)
	m := newImage(64)
	copy(m.page(9), d.block(1))
	path := filepath.Join(t.TempDir(), "f")
	save(t, path, m, d, Options{})
	f := mustOpen(t, path)
	none := func(epoch.GFN, []byte) error { return nil }
	zero := func(epoch.GFN, uint64) error { return nil }
	if err := f.Pages(t.Context(), nil, none, zero, nil); err == nil || !strings.Contains(err.Error(), "disk 2 is not there") {
		t.Errorf("without its disks: %v", err)
	}
	full := errors.New("no space left")
	if err := f.Pages(t.Context(), d, none, func(epoch.GFN, uint64) error { return full }, nil); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
	d.overwrite(1, rng)
	if err := f.Pages(t.Context(), d, none, zero, nil); !errors.Is(err, ErrStale) {
		t.Errorf("on another disk: %v", err)
	}
}
