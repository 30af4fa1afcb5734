package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"understudy/epoch"
	"understudy/hypervisor"
)

// Pending supplies the pages of a lazy restore, from the file or from a disk,
// in whatever order they are asked for. The disks are in use by then: before
// one of its blocks is overwritten, what refers to it is read and set aside
// (RULES 17).
//
//	page touched → Content, which reads ahead → Filled
//	the rest → Sweep, in the order of the disk, up to 1 MiB at a time → Filled
//	block about to be overwritten → Overwrite → set aside → Content → Filled
type Pending struct {
	file   *File
	blocks Blocks

	once sync.Once // for refs, which a write to a disk and Sweep need in order
	refs []reference
	fail error // of making refs

	onlyReferences bool // the records are in the image

	mu      sync.Mutex
	missing *epoch.PageSet
	left    uint64
	spare   [][]byte             // of ahead, to use again
	buffers sync.Pool            // of *reading
	aside   map[epoch.GFN][]byte // their blocks are gone, or about to go
	ahead   map[epoch.GFN][]byte // read with others, until they are filled
	done    chan struct{}
}

var _ hypervisor.Sweeper = (*Pending)(nil)

// newPending makes the Pending of a file: of all of it, or, after a walk that has
// put its records into the image, of what that walk has left.
func newPending(file *File, blocks Blocks, walked *walk) (*Pending, error) {
	p := &Pending{
		file: file, blocks: blocks,
		missing: epoch.NewPageSet(file.head.Pages),
		aside:   map[epoch.GFN][]byte{},
		ahead:   map[epoch.GFN][]byte{},
		done:    make(chan struct{}),
	}
	p.buffers.New = func() any { return new(reading) }
	var err error
	if walked != nil {
		p.onlyReferences = true
		if walked.left {
			p.refs = walked.refs
		}
		for i := range p.refs {
			p.missing.Add(p.refs[i].page)
		}
	} else {
		err = file.each(func(page epoch.GFN, r *resolved) {
			if k := r.entry.kind(); k == kindBlock || k == kindRecord {
				p.missing.Add(page)
			}
		})
	}
	if p.left = p.missing.Count(); p.left == 0 {
		close(p.done)
	}
	return p, err
}

// each goes through the index in order.
func (f *File) each(visit func(page epoch.GFN, r *resolved)) error {
	for page := range epoch.GFN(f.head.Pages) {
		r, err := f.resolve(page)
		if err != nil {
			return err
		}
		visit(page, &r)
	}
	return nil
}

// Missing adds to set every page that is not in the image yet.
func (p *Pending) Missing(set *epoch.PageSet) {
	p.mu.Lock()
	defer p.mu.Unlock()
	set.Union(p.missing)
}

// Content puts a page's content into dst and checks its fingerprint.
func (p *Pending) Content(page epoch.GFN, dst []byte) error {
	if uint64(page) >= p.file.head.Pages || len(dst) != epoch.PageSize {
		return fmt.Errorf("checkpoint file %s has no page %d of %d bytes", p.file.path, page, len(dst))
	}
	if p.setAside(page, dst) {
		return nil
	}
	r, err := p.file.resolve(page)
	if err != nil {
		return err
	}
	switch r.entry.kind() {
	case kindZero:
		clear(dst)
		return nil
	case kindRecord:
		return r.content(page, dst)
	}
	b := p.buffers.Get().(*reading)
	defer p.buffers.Put(b)
	run, err := p.behind(b.refs[:0], reference{page, r.entry.place(), r.print})
	if err != nil {
		return err
	}
	if len(run) > 1 && p.readRun(run, b.data[:len(run)*epoch.PageSize], dst) {
		return nil
	}
	err = p.read(&run[0], dst)
	if err != nil && p.setAside(page, dst) {
		return nil // the block was overwritten while it was read
	}
	return err
}

// readAhead bounds what Content reads, in pages: 64 KiB.
const readAhead = 16

// reading is what one Content works with.
type reading struct {
	refs [readAhead]reference
	data [readAhead * epoch.PageSize]byte
}

// behind appends to run a page's reference and those of the pages behind it whose
// blocks lie behind its block as well and are yet to be read.
func (p *Pending) behind(run []reference, first reference) ([]reference, error) {
	run = append(run, first)
	for next := first.page + 1; len(run) < readAhead && uint64(next) < p.file.head.Pages; next++ {
		r, err := p.file.resolve(next)
		if err != nil {
			return nil, err
		}
		at := Place{first.at.Disk, first.at.Sector + uint64(len(run))*epoch.PageSectors}
		if r.entry.kind() != kindBlock || r.entry.place() != at || !p.unread(next) {
			break
		}
		run = append(run, reference{next, at, r.print})
	}
	return run, nil
}

// readRun reads adjacent blocks at once: the first into dst, the others, which are
// likely to be asked for next, are kept. It reports whether the first one is
// what it should be. Those that are not will be told of when they are asked for.
func (p *Pending) readRun(run []reference, data, dst []byte) bool {
	if p.blocks.ReadSectors(run[0].at.Disk, run[0].at.Sector, data) != nil {
		return false
	}
	for i := range run {
		content := data[i*epoch.PageSize:][:epoch.PageSize]
		switch good := p.file.head.Key.Of(content) == run[i].print; {
		case i == 0 && !good:
			return false
		case i == 0:
			copy(dst, content)
		case good:
			p.keepAhead(run[i].page, content)
		}
	}
	return true
}

// keepAhead copies a page's content for as long as it is missing.
func (p *Pending) keepAhead(page epoch.GFN, content []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.missing.Contains(page) || p.ahead[page] != nil {
		return
	}
	var b []byte
	if n := len(p.spare); n > 0 {
		b, p.spare = p.spare[n-1], p.spare[:n-1]
	}
	p.ahead[page] = append(b[:0], content...)
}

// keepAside keeps a page's content for good, if it is still missing.
func (p *Pending) keepAside(page epoch.GFN, content []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.missing.Contains(page) {
		p.aside[page] = content
	}
}

// unread reports whether a page's block is yet to be read.
func (p *Pending) unread(page epoch.GFN) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.missing.Contains(page) && p.aside[page] == nil && p.ahead[page] == nil
}

func (p *Pending) setAside(page epoch.GFN, dst []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.aside[page]
	if !ok {
		b, ok = p.ahead[page]
	}
	copy(dst, b)
	return ok
}

// read reads a reference's block.
func (p *Pending) read(r *reference, dst []byte) error {
	err := p.blocks.ReadSectors(r.at.Disk, r.at.Sector, dst)
	if err == nil && p.file.head.Key.Of(dst) != r.print {
		err = fmt.Errorf("%w: its content is another", ErrStale)
	}
	if err != nil {
		return fmt.Errorf("checkpoint file %s: %w", p.file.path, r.wrong(p.file, err))
	}
	return nil
}

// sweepers is how many goroutines of a Sweep read disks: the guest runs beside it.
const sweepers = 2

// Sweep supplies all that is missing, references in the order of their disks.
func (p *Pending) Sweep(ctx context.Context, put func(first epoch.GFN, content []byte) error) error {
	p.once.Do(p.index)
	if p.fail != nil {
		return p.fail
	}
	w := &walk{file: p.file, blocks: p.blocks, refs: p.refs, visit: put, fault: func(Damage) error { return nil }}
	runs := w.runs()
	var group sync.WaitGroup
	w.start(&group, sweepers, len(runs), func(i int, k *walker) error {
		if !p.lacks(runs[i]) {
			return nil
		}
		return w.read(ctx, runs[i], k)
	})
	if !p.onlyReferences {
		w.start(&group, 1, len(p.file.leaves), func(i int, k *walker) error { return w.leaf(ctx, uint64(i), &k.records) })
	}
	group.Wait()
	return w.err
}

// lacks reports whether one of the references is not in the image yet.
func (p *Pending) lacks(refs []reference) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(refs, func(r reference) bool { return p.missing.Contains(r.page) })
}

// Filled says that a page is in the image now.
func (p *Pending) Filled(page epoch.GFN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.missing.Contains(page) {
		return
	}
	p.missing.RemoveRange(page, 1)
	if b := p.ahead[page]; b != nil {
		delete(p.ahead, page)
		p.spare = append(p.spare, b)
	}
	// What was set aside stays: another goroutine may be about to ask.
	if p.left--; p.left == 0 {
		close(p.done)
	}
}

// Remaining returns how many pages are not in the image yet.
func (p *Pending) Remaining() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left
}

// Done is closed when every page is in the image: file and disks are not
// needed any more.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Overwrite is called before sectors of a disk are changed, and returns once
// nothing that is missing needs their old content. After an error they must not
// be changed yet; unless it wraps ErrStale: then the content was lost before, the
// guest's page with it, and Content says the same.
func (p *Pending) Overwrite(disk epoch.DiskID, sector uint64, sectors uint32) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	p.once.Do(p.index)
	if p.fail != nil {
		return p.fail
	}
	// References are PageSectors long: the first that can overlap begins less
	// than that before the sectors.
	end := sector + uint64(sectors)
	i := sort.Search(len(p.refs), func(i int) bool {
		at := p.refs[i].at
		return at.Disk > disk || at.Disk == disk && at.Sector+epoch.PageSectors > sector
	})
	var errs []error
	for ; i < len(p.refs) && p.refs[i].at.Disk == disk && p.refs[i].at.Sector < end; i++ {
		r := &p.refs[i]
		if !p.wanted(r.page) {
			continue
		}
		b := make([]byte, epoch.PageSize)
		if err := p.read(r, b); err != nil {
			// Another write may have set it aside, or it was filled, meanwhile.
			if p.wanted(r.page) {
				errs = append(errs, err)
			}
			continue
		}
		p.keepAside(r.page, b)
	}
	return errors.Join(errs...)
}

// wanted reports whether a page's block is still needed. What was read ahead is
// set aside now: it may be asked for once more after it was filled.
func (p *Pending) wanted(page epoch.GFN) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b := p.ahead[page]; b != nil && p.aside[page] == nil {
		p.aside[page] = b
		delete(p.ahead, page)
	}
	return p.missing.Contains(page) && p.aside[page] == nil
}

// index lists the references by place.
func (p *Pending) index() {
	if !p.onlyReferences {
		p.fail = p.file.each(func(page epoch.GFN, r *resolved) {
			if r.entry.kind() == kindBlock {
				p.refs = append(p.refs, reference{page, r.entry.place(), r.print})
			}
		})
	}
	sortReferences(p.refs)
}
