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
//	leaves, two at a time → references → sorted by disk and sector, adjacent
//	   │                    ones read together, several reads at a time → visit
//	   └─ meanwhile: records, each unpacked once → visit
//
// It serves Verify, which wants to know of every fault, and Restore, which ends
// at the first.

// walkers is how many goroutines of a walk work, readers how many wait for a disk
// beside them.
const (
	walkers = 2
	readers = 3
)

// readBytes bounds one read of a disk.
const readBytes = 1 << 20

// walk is one walk over a file.
type walk struct {
	file   *File
	blocks Blocks // nil: references are not read
	few    int    // nor if there are more; 0: any number
	// visit takes pages that have been checked; by one goroutine at a time: a
	// file on tmpfs is not written by two.
	visit func(first epoch.GFN, data []byte) error
	// fault takes note of what is wrong; an error of it ends the walk.
	fault    func(Damage) error
	progress Progress

	visiting sync.Mutex

	mu   sync.Mutex // of what follows, and of the calls of fault and progress
	done uint64
	err  error
	refs []reference
	seen Checked
	left bool // references were not read

	stored []atomic.Bool // by leaf: it has pages in records; nil: not known
}

// reference is a page whose content is on a disk.
type reference struct {
	page  epoch.GFN
	at    Place
	print epoch.Fingerprint
}

// run makes the walk.
func (w *walk) run(ctx context.Context) error {
	if err := w.survey(ctx); err != nil {
		return err
	}
	var group sync.WaitGroup
	w.start(&group, walkers, len(w.stored), func(i int, k *walker) error { return w.leaf(ctx, uint64(i), &k.records) })
	w.seen.References = uint64(len(w.refs))
	w.left = w.blocks == nil || w.few > 0 && len(w.refs) > w.few
	if w.left {
		w.advance(uint64(len(w.refs)))
	} else {
		sortReferences(w.refs)
		runs := w.runs()
		w.start(&group, readers, len(runs), func(i int, k *walker) error { return w.read(ctx, runs[i], k) })
	}
	group.Wait()
	return w.err
}

// survey goes over the index alone, and leaves the references in w.refs.
func (w *walk) survey(ctx context.Context) error {
	var group sync.WaitGroup
	w.stored = make([]atomic.Bool, len(w.file.leaves))
	w.start(&group, walkers, len(w.stored), func(i int, _ *walker) error { return w.look(ctx, uint64(i)) })
	group.Wait()
	return w.err
}

// walker is one goroutine's own.
type walker struct {
	records cacheShard // no other goroutine's records push these out
	buf     []byte     // of readBytes
}

// start begins to do count things in so many goroutines of the group.
func (w *walk) start(group *sync.WaitGroup, goroutines, count int, do func(i int, k *walker) error) {
	next := new(atomic.Int64)
	for range min(goroutines, count) {
		group.Go(func() {
			var k walker
			for i := next.Add(1) - 1; i < int64(count); i = next.Add(1) - 1 {
				if !w.step(do(int(i), &k)) {
					return
				}
			}
		})
	}
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
	w.visiting.Lock()
	defer w.visiting.Unlock()
	return w.visit(first, data)
}

// pages returns the extent of a leaf.
func (w *walk) pages(number uint64) (first epoch.GFN, count uint64) {
	first = epoch.GFN(number * leafPages)
	return first, min(leafPages, w.file.head.Pages-uint64(first))
}

// look counts the pages of one leaf and collects its references.
func (w *walk) look(ctx context.Context, number uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	first, count := w.pages(number)
	var refs []reference
	var seen Checked
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
		}
	}
	w.stored[number].Store(seen.Stored > 0)
	w.mu.Lock()
	w.refs = append(w.refs, refs...)
	w.seen.Zero += seen.Zero
	w.seen.Stored += seen.Stored
	w.mu.Unlock()
	w.advance(seen.Zero)
	return nil
}

// leaf visits the pages of one leaf that are in records.
func (w *walk) leaf(ctx context.Context, number uint64, records *cacheShard) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(w.stored) > 0 && !w.stored[number].Load() {
		return nil
	}
	first, count := w.pages(number)
	var stored uint64
	var run pageRun
	for page := first; page < first+epoch.GFN(count); page++ {
		r, err := w.file.resolve(page)
		if err != nil {
			return fmt.Errorf("page %d, whose index was well a moment ago: %w", page, err)
		}
		if r.entry.kind() != kindRecord {
			continue
		}
		stored++
		if !run.prolong(page, &r) {
			// Its record may not be at hand. The run goes first: the record to
			// come may take its buffer.
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
	if err := w.hand(run.first, run.data()); err != nil {
		return err
	}
	w.advance(stored)
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
	var run adjacent
	for _, r := range refs {
		at := (r.at.Sector - first.Sector) * epoch.SectorSize
		why := err
		if why == nil && w.file.head.Key.Of(b[at:at+epoch.PageSize]) != r.print {
			why = fmt.Errorf("%w: its content is another", ErrStale)
		}
		if why != nil {
			if err := w.report(w.onDisk(r, why)); err != nil {
				return err
			}
			continue
		}
		if !run.prolong(r.page, at) {
			if err := w.hand(run.page, b[run.from:run.to]); err != nil {
				return err
			}
			run = adjacent{r.page, at, at + epoch.PageSize}
		}
	}
	if err := w.hand(run.page, b[run.from:run.to]); err != nil {
		return err
	}
	w.advance(uint64(len(refs)))
	return nil
}

// adjacent is pages in a row that lie so in a buffer as well.
type adjacent struct {
	page     epoch.GFN // the first
	from, to uint64    // in the buffer
}

// prolong adds a page that follows.
func (p *adjacent) prolong(page epoch.GFN, at uint64) bool {
	if p.from == p.to || at != p.to || page != p.page+epoch.GFN((p.to-p.from)/epoch.PageSize) {
		return false
	}
	p.to += epoch.PageSize
	return true
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
