package rebuild

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"understudy/epoch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const key = epoch.PrintKey(7)

// drive is a disk, in memory.
type drive struct {
	mu    sync.Mutex
	bytes []byte
	fail  error
	reads int
	// reading, if not nil, is called with each read, before it reads.
	reading func(sector uint64)
}

func newDrive(sectors int, r *rand.Rand) *drive {
	d := &drive{bytes: make([]byte, sectors*epoch.SectorSize)}
	for i := range sectors {
		d.put(uint64(i), byte(1+r.IntN(200)))
	}
	return d
}

// put fills a sector with a value.
func (d *drive) put(sector uint64, v byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.bytes[sector*epoch.SectorSize:][:epoch.SectorSize]
	for i := range s {
		s[i] = v
	}
}

func (d *drive) ReadSectors(_ epoch.DiskID, sector uint64, dst []byte) error {
	if d.reading != nil {
		d.reading(sector)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads++
	if d.fail != nil {
		return d.fail
	}
	copy(dst, d.bytes[sector*epoch.SectorSize:])
	return nil
}

func (d *drive) at(sector uint64) []byte {
	page := make([]byte, epoch.PageSize)
	if err := d.ReadSectors(0, sector, page); err != nil {
		panic(err)
	}
	return page
}

// ref returns a reference to what the drive holds now.
func (d *drive) ref(page epoch.GFN, sector uint64) epoch.Reference {
	return epoch.Reference{Page: page, Sector: sector, Print: key.Of(d.at(sector))}
}

// image is a guest's memory. It has no lock: two writers of one page, or a
// writer beside a reader, are the race detector's to find.
type image []byte

func (m image) page(p epoch.GFN) []byte { return m[p*epoch.PageSize:][:epoch.PageSize] }

func (m image) write(first epoch.GFN, data []byte) error {
	copy(m[first*epoch.PageSize:], data)
	return nil
}

func (m image) read(first epoch.GFN, dst []byte) error {
	copy(dst, m[first*epoch.PageSize:])
	return nil
}

func newTable(pages int, d *drive) (*Table, image) {
	m := make(image, pages*epoch.PageSize)
	return New(Config{Pages: uint64(pages), Key: key, Blocks: d, Write: m.write, Read: m.read}), m
}

// background runs the filler until the returned function is called.
func background(t interface{ Errorf(string, ...any) }, table *Table) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := table.Run(ctx); err != nil {
			t.Errorf("the background filler ended: %v", err)
		}
	})
	return func() { cancel(); done.Wait() }
}

// TestTheImageIsTheOracles plays epochs that bring pages, references and writes
// over referenced blocks, with the background filler beside them, and ends with
// a takeover: eager, lazy while the guest overwrites blocks, or lazy, failed,
// and eager. The image is that of the oracle every time.
func TestTheImageIsTheOracles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))
		const pages, sectors = 24, 96
		d := newDrive(sectors, r)
		table, m := newTable(pages, d)
		truth := make(image, len(m))
		stop := background(t, table)
		defer func() { stop() }()

		overwrite := func() {
			sector := uint64(r.IntN(sectors))
			count := min(1+r.IntN(20), sectors-int(sector))
			if err := table.BeforeOverwrite(0, sector, uint32(count)); err != nil {
				t.Fatal(err)
			}
			for i := range count {
				d.put(sector+uint64(i), byte(r.IntN(200)))
			}
		}
		for n := epoch.Number(1); n <= 30; n++ {
			for range r.IntN(3) {
				overwrite()
			}
			var refs []epoch.Reference
			for p := range epoch.GFN(pages) {
				switch r.IntN(6) {
				case 0:
					table.Supersede(p, 1)
					for i := range m.page(p) {
						m.page(p)[i] = byte(n)
					}
					copy(truth.page(p), m.page(p))
				case 1:
					ref := d.ref(p, uint64(min(r.IntN(12)*8+r.IntN(2)*3, sectors-8)))
					if r.IntN(2) == 0 { // runs of adjacent ones
						ref = d.ref(p, min(uint64(p)*8, sectors-8))
					}
					refs = append(refs, ref)
					copy(truth.page(p), d.at(ref.Sector))
				}
			}
			for _, ref := range refs {
				table.Supersede(ref.Page, 1)
			}
			table.Add(refs, n)
			if got := table.Through(); got > n {
				t.Fatalf("filled through epoch %d at epoch %d", got, n)
			}
			if r.IntN(3) == 0 {
				first := r.IntN(pages)
				got := make([]byte, (1+r.IntN(pages-first))*epoch.PageSize)
				if err := table.ReadPages(epoch.GFN(first), got); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, truth[first*epoch.PageSize:][:len(got)]) {
					t.Fatalf("epoch %d: pages %d+%d differ as they are read", n, first, len(got)/epoch.PageSize)
				}
			}
		}
		end := r.IntN(3)
		if end > 0 {
			lazily(t, r, table, m, overwrite, end == 2)
		}
		if end != 1 {
			if err := table.FillAll(t.Context(), func(done, total uint64) {
				if done > total {
					t.Errorf("%d of %d pages are filled", done, total)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		if n := table.Len(); n != 0 || table.Through() != 30 || table.Bad() != nil {
			t.Fatalf("%d pages are missing, filled through epoch %d, bad: %v", n, table.Through(), table.Bad())
		}
		stop()
		if !bytes.Equal(m, truth) {
			for p := range epoch.GFN(pages) {
				if !bytes.Equal(m.page(p), truth.page(p)) {
					t.Errorf("page %d begins with %d, want %d", p, m.page(p)[0], truth.page(p)[0])
				}
			}
		}
	})
}

// lazily lets a hypervisor fetch the missing pages, all or half of them, while
// the guest overwrites blocks.
func lazily(t *rapid.T, r *rand.Rand, table *Table, m image, overwrite func(), half bool) {
	filler := table.Filler()
	set := epoch.NewPageSet(table.cfg.Pages)
	filler.Missing(set)
	var pages []epoch.GFN
	for first, count := range set.Runs {
		for p := first; p < first+epoch.GFN(count); p++ {
			pages = append(pages, p)
		}
	}
	if half {
		pages = pages[:len(pages)/2]
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	for part := range slices.Chunk(pages, 1+len(pages)/2) {
		workers.Go(func() {
			content := make([]byte, epoch.PageSize)
			for _, p := range part {
				if err := filler.Content(p, content); err != nil {
					t.Errorf("page %d: %v", p, err)
				}
				copy(m.page(p), content)
				filler.Filled(p)
			}
		})
	}
	for range r.IntN(10) {
		overwrite()
	}
	workers.Wait()
	if half {
		table.StandBy()
	}
}
