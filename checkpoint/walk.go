package checkpoint

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"understudy/epoch"
)

// A walk goes over every page that is not zero, as quickly as it can be done:
//
//	leaves, two at a time → records, each unpacked once → visit
//	      └─ references → sorted by disk and sector, adjacent ones read together
//	         → visit
//
// It serves Verify, which wants to know of every fault, and Restore, which ends
// at the first.

// walkers is how many goroutines a walk has.
const walkers = 2

// readBytes bounds one read of a disk.
const readBytes = 1 << 20

// walk is one walk over a file.
type walk struct {
	file   *File
	blocks Blocks // nil: references are not read
	// visit takes pages that have been checked; by one goroutine at a time.
	visit func(first epoch.GFN, data []byte) error
	// fault takes note of what is wrong; an error of it ends the walk.
	fault    func(Damage) error
	progress Progress

	mu   sync.Mutex // of what follows, and of the calls of the functions above
	done uint64
	err  error
	refs []reference
	seen Checked
}

// reference is a page whose content is on a disk.
type reference struct {
	page  epoch.GFN
	at    Place
	print epoch.Fingerprint
}

// run makes the walk.
func (w *walk) run(ctx context.Context) error {
	var next atomic.Uint64
	w.parallel(func(k *walker) bool {
		number := next.Add(1) - 1
		if number >= uint64(len(w.file.leaves)) {
			return false
		}
		return w.step(w.leaf(ctx, number, &k.records))
	})
	if w.err != nil {
		return w.err
	}
	sortReferences(w.refs)
	w.seen.References = uint64(len(w.refs))
	if w.blocks == nil {
		w.advance(uint64(len(w.refs)))
		return w.err
	}
	runs := w.runs()
	next.Store(0)
	w.parallel(func(k *walker) bool {
		i := next.Add(1) - 1
		if i >= uint64(len(runs)) {
			return false
		}
		return w.step(w.read(ctx, runs[i], k))
	})
	return w.err
}

// walker is one goroutine's own.
type walker struct {
	records cacheShard // no other goroutine's records push these out
	buf     []byte     // of readBytes
}

// parallel calls step in every goroutine until it returns false.
func (w *walk) parallel(step func(*walker) bool) {
	var group sync.WaitGroup
	for range walkers {
		group.Go(func() {
			var k walker
			for step(&k) {
				continue
			}
		})
	}
	group.Wait()
}

// step notes an error; it reports whether to go on.
func (w *walk) step(err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return w.err == nil
}

func (w *walk) advance(pages uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done += pages
	if w.progress != nil {
		w.progress(w.done, w.file.head.Pages)
	}
}

func (w *walk) report(d Damage) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fault(d)
}

func (w *walk) hand(first epoch.GFN, data []byte) error {
	if w.visit == nil || len(data) == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.visit(first, data)
}

// leaf visits the pages of one leaf, but for references, which it collects.
func (w *walk) leaf(ctx context.Context, number uint64, records *cacheShard) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	first := epoch.GFN(number * leafPages)
	count := min(leafPages, w.file.head.Pages-uint64(first))
	var refs []reference
	var seen Checked
	var run pageRun
	for page := first; page < first+epoch.GFN(count); page++ {
		r, err := w.file.resolve(page)
		if err != nil {
			// The leaf is damaged, here or in a parent: so are all its pages.
			w.advance(count)
			return w.report(Damage{Page: first, Pages: count, Err: err})
		}
		switch r.entry.kind() {
		case kindZero:
			seen.Zero++
		case kindBlock:
			refs = append(refs, reference{page, r.entry.place(), r.print})
		case kindRecord:
			seen.Stored++
			if !run.prolong(page, &r) {
				// Its record may not be at hand. The run goes first: the
				// record to come may take its buffer.
				if err := w.hand(run.first, run.data()); err != nil {
					return err
				}
				run = pageRun{first: page, pages: 1, at: r}
				if run.record, err = records.open(&r); err != nil {
					run.pages = 0
				}
			}
			if err == nil {
				_, err = r.in(page, run.record)
			}
			if err != nil {
				run.pages = max(run.pages-1, 0) // without this one
				if err := w.report(Damage{Page: page, Pages: 1, Err: err}); err != nil {
					return err
				}
			}
		}
	}
	if err := w.hand(run.first, run.data()); err != nil {
		return err
	}
	w.mu.Lock()
	w.refs = append(w.refs, refs...)
	w.seen.Zero += seen.Zero
	w.seen.Stored += seen.Stored
	w.mu.Unlock()
	w.advance(count - uint64(len(refs)))
	return nil
}

// pageRun is adjacent pages that are adjacent in one record as well.
type pageRun struct {
	first  epoch.GFN
	pages  int
	at     resolved // of the first
	record []byte
}

// prolong adds a page that follows.
func (p *pageRun) prolong(page epoch.GFN, r *resolved) bool {
	if p.pages == 0 || page != p.first+epoch.GFN(p.pages) || p.at.file != r.file ||
		p.at.entry.offset() != r.entry.offset() || p.at.entry.slot()+p.pages != r.entry.slot() {
		return false
	}
	p.pages++
	return true
}

func (p *pageRun) data() []byte {
	if p.pages == 0 {
		return nil
	}
	return p.record[p.at.entry.slot()*epoch.PageSize:][:p.pages*epoch.PageSize]
}

func sortReferences(refs []reference) {
	slices.SortFunc(refs, func(a, b reference) int {
		if c := cmp.Compare(a.at.key(), b.at.key()); c != 0 {
			return c
		}
		return cmp.Compare(a.page, b.page)
	})
}

// key orders places by disk, then by sector.
func (p Place) key() uint64 { return uint64(p.Disk)*epoch.MaxSectors + p.Sector }

// runs cuts the sorted references into pieces without gaps, each at most
// readBytes long on the disk.
func (w *walk) runs() (runs [][]reference) {
	from := 0
	for i := 1; i <= len(w.refs); i++ {
		if i < len(w.refs) {
			a, b, at := w.refs[from].at, w.refs[i].at, w.refs[i-1].at
			if a.Disk == b.Disk && b.Sector <= at.Sector+epoch.PageSectors && (b.Sector-a.Sector+epoch.PageSectors)*epoch.SectorSize <= readBytes {
				continue
			}
		}
		runs = append(runs, w.refs[from:i])
		from = i
	}
	return runs
}

// read reads a piece of a disk and visits the pages that refer to it.
func (w *walk) read(ctx context.Context, refs []reference, k *walker) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	first, last := refs[0].at, refs[len(refs)-1].at
	if k.buf == nil {
		k.buf = make([]byte, readBytes)
	}
	b := k.buf[:(last.Sector-first.Sector+epoch.PageSectors)*epoch.SectorSize]
	err := w.blocks.ReadSectors(first.Disk, first.Sector, b)
	for _, r := range refs {
		at := (r.at.Sector - first.Sector) * epoch.SectorSize
		page := b[at : at+epoch.PageSize]
		why := err
		if why == nil && w.file.head.Key.Of(page) != r.print {
			why = fmt.Errorf("%w: its content is another", ErrStale)
		}
		if why != nil {
			if err := w.report(w.onDisk(r, why)); err != nil {
				return err
			}
			continue
		}
		if err := w.hand(r.page, page); err != nil {
			return err
		}
	}
	w.advance(uint64(len(refs)))
	return nil
}

// onDisk names a reference that does not hold.
func (w *walk) onDisk(r reference, why error) Damage {
	at := r.at
	return Damage{Page: r.page, Pages: 1, Place: &at, Err: r.wrong(w.file, why)}
}

// wrong says what is wrong with a reference.
func (r *reference) wrong(f *File, why error) error {
	name := ""
	for _, d := range f.head.Disks {
		if d.ID == r.at.Disk {
			name = d.Name
		}
	}
	return fmt.Errorf("disk %d (%s) sector %d, which holds page %d of the guest: %w", r.at.Disk, name, r.at.Sector, r.page, why)
}
