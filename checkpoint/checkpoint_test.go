package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/epoch"
	"understudy/exclusion"
	"understudy/hypervisor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ Finder = (*exclusion.Index)(nil)

const testKey = epoch.PrintKey(0x5eed)

// image is a guest's memory, and a standby's.
type image struct {
	bytes   []byte
	device  []byte
	missing hypervisor.Filler
	dead    bool
}

func newImage(pages int) *image { return &image{bytes: make([]byte, pages*epoch.PageSize)} }

func (m *image) Pages() uint64 { return uint64(len(m.bytes) / epoch.PageSize) }

func (m *image) page(f epoch.GFN) []byte {
	return m.bytes[f*epoch.PageSize : (f+1)*epoch.PageSize]
}

func (m *image) ReadPages(first epoch.GFN, dst []byte) error {
	copy(dst, m.bytes[first*epoch.PageSize:])
	return nil
}

func (m *image) WritePages(first epoch.GFN, data []byte) error {
	if uint64(first)*epoch.PageSize+uint64(len(data)) > uint64(len(m.bytes)) {
		return errors.New("outside the image")
	}
	copy(m.bytes[first*epoch.PageSize:], data)
	return nil
}

func (m *image) Load(_ context.Context, device []byte, missing hypervisor.Filler) error {
	m.device, m.missing = bytes.Clone(device), missing
	return nil
}

// touch brings every missing page in, in a random order.
func (m *image) touch(rng *rand.Rand) error {
	set := epoch.NewPageSet(m.Pages())
	m.missing.Missing(set)
	for _, i := range rng.Perm(int(m.Pages())) {
		if f := epoch.GFN(i); set.Contains(f) {
			if err := m.missing.Content(f, m.page(f)); err != nil {
				return err
			}
			m.missing.Filled(f)
		}
	}
	return nil
}

func (m *image) Reset(context.Context) error                   { return nil }
func (m *image) Run(context.Context) (hypervisor.Guest, error) { return nil, errors.New("no guest") }
func (m *image) Fill(epoch.GFN, uint64) error                  { return nil }
func (m *image) Destroy() error                                { m.dead = true; return nil }

// driver makes images as standbys.
type driver struct {
	hypervisor.Driver
	last *image
}

func (d *driver) Standby(_ context.Context, spec hypervisor.Spec) (hypervisor.Standby, error) {
	if spec.Pages > 1<<20 {
		return nil, errors.New("too large a machine")
	}
	d.last = newImage(int(spec.Pages))
	return d.last, nil
}

// disk is one disk, and knows what is on it.
type disk struct {
	mu    sync.Mutex
	bytes []byte
	index map[epoch.Fingerprint]uint64
	reads int
}

func newDisk(blocks int, rng *rand.Rand) *disk {
	d := &disk{bytes: make([]byte, blocks*epoch.PageSize), index: map[epoch.Fingerprint]uint64{}}
	for i := range blocks {
		scribble(d.bytes[i*epoch.PageSize:][:epoch.PageSize], rng)
		d.note(i)
	}
	return d
}

func (d *disk) block(i int) []byte { return d.bytes[i*epoch.PageSize:][:epoch.PageSize] }

func (d *disk) note(i int) {
	d.index[testKey.Of(d.block(i))] = uint64(i * epoch.PageSectors)
}

func (d *disk) overwrite(i int, rng *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.index, testKey.Of(d.block(i)))
	scribble(d.block(i), rng)
	d.note(i)
}

func (d *disk) sectors() uint64 { return uint64(len(d.bytes) / epoch.SectorSize) }

func (d *disk) list() []Disk {
	return []Disk{{ID: 2, Name: "root", Store: "shared", Sectors: d.sectors(), Stamp: "7"}}
}

func (d *disk) FindPrint(page epoch.GFN, print epoch.Fingerprint) (epoch.Reference, bool, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sector, ok := d.index[print]
	return epoch.Reference{Page: page, Disk: 2, Sector: sector, Print: print}, page%2 == 0, ok
}

func (d *disk) ReadSectors(id epoch.DiskID, sector uint64, dst []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if id != 2 || sector*epoch.SectorSize+uint64(len(dst)) > uint64(len(d.bytes)) {
		return fmt.Errorf("disk %d has no sectors %d+%d", id, sector, len(dst)/epoch.SectorSize)
	}
	d.reads++
	copy(dst, d.bytes[sector*epoch.SectorSize:])
	return nil
}

// scribble fills a page with something half of which packs well.
func scribble(page []byte, rng *rand.Rand) {
	for i := 0; i < len(page); i += 16 {
		binary.LittleEndian.PutUint64(page[i:], rng.Uint64())
		binary.LittleEndian.PutUint64(page[i+8:], uint64(i/64))
	}
}

// noise fills a page with something that does not pack.
func noise(page []byte, rng *rand.Rand) {
	for i := 0; i < len(page); i += 8 {
		binary.LittleEndian.PutUint64(page[i:], rng.Uint64())
	}
}

func testHead(pages uint64) Head {
	return Head{
		Guest: "web", Hypervisor: "test", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Generation: 3, Pages: pages, Key: testKey, Machine: bytes.Repeat([]byte("machine "), 100),
	}
}

func all(pages uint64) *epoch.PageSet {
	set := epoch.NewPageSet(pages)
	set.Fill()
	return set
}

// finish is the last round.
func finish(t testing.TB, w *Writer, m *image, d *disk, dirty *epoch.PageSet) Info {
	t.Helper()
	if err := w.Stale(dirty); err != nil {
		t.Fatal(err)
	}
	if err := w.Image(t.Context(), m, dirty, nil); err != nil {
		t.Fatal(err)
	}
	final := Final{DeviceState: []byte("the device state"), DiskState: []byte("in flight")}
	if d != nil {
		final.Disks = d.list()
	}
	if err := w.Final(final); err != nil {
		t.Fatal(err)
	}
	var last, end uint64
	info, err := w.Commit(func(done, total uint64) {
		if done < last || done > total {
			t.Errorf("progress of %d of %d after %d", done, total, last)
		}
		last, end = done, total
	})
	if err != nil {
		t.Fatal(err)
	}
	if last != end || end != m.Pages() {
		t.Errorf("the last progress was %d of %d", last, end)
	}
	if got := info.Summary.Pages.Sum(); got != m.Pages() {
		t.Fatalf("the file counts %d pages of %d: %+v", got, m.Pages(), info.Summary)
	}
	return info
}

// save is a save in one round.
func save(t testing.TB, path string, m *image, d *disk, opts Options) Info {
	t.Helper()
	if d != nil {
		opts.Finder = d
	}
	w, err := Create(path, testHead(m.Pages()), opts)
	if err != nil {
		t.Fatal(err)
	}
	return finish(t, w, m, d, all(m.Pages()))
}

// open opens a file for as long as the test runs.
func mustOpen(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// mustEqual restores a file both ways and compares.
func mustEqual(t testing.TB, f *File, m *image, blocks Blocks) {
	t.Helper()
	for _, lazy := range []bool{false, true} {
		var d driver
		var last, total uint64
		s, pending, err := Restore(t.Context(), f, &d, blocks, RestoreOptions{Lazy: lazy, leaveFew: true, Progress: func(a, b uint64) { last, total = a, b }})
		if err != nil {
			t.Fatalf("lazy %t: %v", lazy, err)
		}
		got := s.(*image)
		if lazy {
			if err := got.touch(rand.New(rand.NewPCG(1, 2))); err != nil {
				t.Fatal(err)
			}
			<-pending.Done()
		} else if last != m.Pages() || total != m.Pages() {
			t.Errorf("the last progress was %d of %d, want %d", last, total, m.Pages())
		}
		if string(got.device) != "the device state" {
			t.Errorf("the device state is %q", got.device)
		}
		for i := range epoch.GFN(m.Pages()) {
			if !bytes.Equal(got.page(i), m.page(i)) {
				t.Fatalf("lazy %t: page %d came back as another", lazy, i)
			}
		}
	}
}

// mixed is an image with pages of every sort.
func mixed(pages int, d *disk, rng *rand.Rand) *image {
	m := newImage(pages)
	for i := range pages {
		page := m.page(epoch.GFN(i))
		switch rng.IntN(6) {
		case 0: // zero
		case 1, 2:
			copy(page, d.block(rng.IntN(len(d.bytes)/epoch.PageSize)))
		case 3:
			noise(page, rng)
		case 4:
			copy(page, m.page(epoch.GFN(rng.IntN(i+1))))
		case 5:
			scribble(page, rng)
		}
	}
	return m
}

func TestSavedGuestComesBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	d := newDisk(300, rng)
	m := mixed(leafPages+77, d, rng)
	path := filepath.Join(t.TempDir(), "web.ckpt")
	info := save(t, path, m, d, Options{})
	c := info.Summary.Pages
	if c.Zero == 0 || c.Mapped == 0 || c.Content == 0 || c.Packed+c.Raw == 0 || c.Copy == 0 || c.Unchanged != 0 {
		t.Errorf("the pages of the file are %+v", c)
	}
	f := mustOpen(t, path)
	mustEqual(t, f, m, d)
	report, err := f.Verify(t.Context(), d, nil)
	if err != nil || report.Err() != nil {
		t.Fatal(err, report.Err())
	}
	if sum := report.Zero + report.Stored + report.References; sum != m.Pages() || report.References != c.Mapped+c.Content {
		t.Errorf("verify looked at %+v", report)
	}
	if h := f.Head(); h.Guest != "web" || h.Generation != 3 || !h.Created.Equal(testHead(1).Created) || len(h.Disks) != 1 || h.Disks[0].Stamp != "7" {
		t.Errorf("the head is %+v", h)
	}
	if state, err := f.DiskState(); err != nil || string(state) != "in flight" {
		t.Errorf("the disk state is %q, %v", state, err)
	}
	if spec, err := f.Spec(); err != nil || !bytes.Equal(spec.Machine, testHead(1).Machine) {
		t.Errorf("the machine is %q, %v", spec.Machine, err)
	}
	mustHold(t, filepath.Dir(path), 1)
}

// mustHold finds what was left behind in a directory.
func mustHold(t testing.TB, dir string, files int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != files {
		t.Errorf("the directory has %v, want %d files", entries, files)
	}
}

// A guest runs while it is saved: what it writes comes again, and what it
// writes to its disk makes references stale.
func TestLaterRoundsWin(t *testing.T) {
	for _, waste := range []int{1, 100} {
		rng := rand.New(rand.NewPCG(5, 6))
		d := newDisk(200, rng)
		m := mixed(1000, d, rng)
		path := filepath.Join(t.TempDir(), "web.ckpt")
		w, err := Create(path, testHead(m.Pages()), Options{Finder: d, MaxWaste: waste})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Image(t.Context(), m, all(m.Pages()), nil); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			for range 500 {
				f := epoch.GFN(rng.IntN(int(m.Pages())))
				switch rng.IntN(5) {
				case 0:
					clear(m.page(f))
					if err := w.Zero(f, 1); err != nil {
						t.Fatal(err)
					}
					continue
				case 1:
					copy(m.page(f), d.block(rng.IntN(200)))
				case 2:
					scribble(m.page(f), rng)
				}
				if err := w.Pages(f, m.page(f)); err != nil {
					t.Fatal(err)
				}
			}
			d.overwrite(rng.IntN(200), rng)
			d.overwrite(rng.IntN(200), rng)
		}
		info := finish(t, w, m, d, epoch.NewPageSet(m.Pages()))
		if info.Summary.Replaced == 0 || info.Summary.Repeated == 0 || info.Summary.Compacted != (waste == 1) {
			t.Errorf("waste of %d%%: %+v", waste, info.Summary)
		}
		mustEqual(t, mustOpen(t, path), m, d)
		mustHold(t, filepath.Dir(path), 1)
	}
}

// A series of files is a history: each of them can be gone back to.
func TestSeriesIsAHistory(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	d := newDisk(200, rng)
	m := mixed(700, d, rng)
	dir := t.TempDir()
	var paths []string
	var history []*image
	var parent *File
	for generation := range 4 {
		path := filepath.Join(dir, fmt.Sprintf("web.%d", generation))
		w, err := Create(path, testHead(m.Pages()), Options{Finder: d, Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		dirty := epoch.NewPageSet(m.Pages())
		switch generation {
		case 0, 3: // the last one knows nothing of what has changed
			dirty.Fill()
		}
		for range 200 {
			f := epoch.GFN(rng.IntN(int(m.Pages())))
			dirty.Add(f)
			switch rng.IntN(3) {
			case 0:
				clear(m.page(f))
			case 1:
				scribble(m.page(f), rng)
			}
		}
		copy(m.page(5), d.block(0))
		dirty.Add(5)
		info := finish(t, w, m, d, dirty)
		if c := info.Summary.Pages; generation > 0 && c.Unchanged < m.Pages()/2 {
			t.Errorf("file %d found %+v", generation, c)
		}
		if len(info.Chain) != generation+1 {
			t.Errorf("file %d needs %+v", generation, info.Chain)
		}
		paths = append(paths, path)
		history = append(history, &image{bytes: bytes.Clone(m.bytes)})
		parent = mustOpen(t, path)
	}
	for i, path := range paths {
		mustEqual(t, mustOpen(t, path), history[i], d)
	}
	mustHold(t, dir, len(paths))

	// The guest writes to its disk: a child has its own copy of what its parent
	// took from there, and the parent says what it lacks.
	d.overwrite(0, rng)
	path := filepath.Join(dir, "web.4")
	w, err := Create(path, testHead(m.Pages()), Options{Finder: d, Parent: parent})
	if err != nil {
		t.Fatal(err)
	}
	finish(t, w, m, d, epoch.NewPageSet(m.Pages()))
	mustEqual(t, mustOpen(t, path), m, d)
	report, err := parent.Verify(t.Context(), d, nil)
	if err != nil || report.BadBlocks == 0 || report.BadPages != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	if got := report.Damages[0]; *got.Place != (Place{2, 0}) || !errors.Is(got.Err, ErrStale) || !strings.Contains(got.Err.Error(), "disk 2 (root) sector 0") {
		t.Errorf("%v", got.Err)
	}
	var dr driver
	if _, _, err := Restore(t.Context(), parent, &dr, d, RestoreOptions{}); !errors.Is(err, ErrStale) || !dr.last.dead {
		t.Errorf("restore: %v", err)
	}
}
