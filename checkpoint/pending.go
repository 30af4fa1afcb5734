package checkpoint

import (
	"errors"
	"fmt"
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
//	page touched → Content → Filled
//	block about to be overwritten → Overwrite → set aside → Content → Filled
type Pending struct {
	file   *File
	blocks Blocks

	once sync.Once // for refs: only a write to a disk needs them
	refs []reference
	fail error // of making refs

	mu      sync.Mutex
	missing *epoch.PageSet
	left    uint64
	aside   map[epoch.GFN][]byte
	done    chan struct{}
}

var _ hypervisor.Filler = (*Pending)(nil)

// newPending makes the Pending of a file, without its records if those are in the
// image already.
func newPending(file *File, blocks Blocks, onlyReferences bool) (*Pending, error) {
	p := &Pending{
		file: file, blocks: blocks,
		missing: epoch.NewPageSet(file.head.Pages),
		aside:   map[epoch.GFN][]byte{},
		done:    make(chan struct{}),
	}
	err := file.each(func(page epoch.GFN, r *resolved) {
		if k := r.entry.kind(); k == kindBlock || k == kindRecord && !onlyReferences {
			p.missing.Add(page)
			p.left++
		}
	})
	if p.left == 0 {
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
	ref := reference{page, r.entry.place(), r.print}
	err = p.read(&ref, dst)
	if err != nil && p.setAside(page, dst) {
		return nil // the block was overwritten while it was read
	}
	return err
}

func (p *Pending) setAside(page epoch.GFN, dst []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.aside[page]
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

// Filled says that a page is in the image now.
func (p *Pending) Filled(page epoch.GFN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.missing.Contains(page) {
		return
	}
	p.missing.RemoveRange(page, 1)
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
		p.mu.Lock()
		if p.missing.Contains(r.page) {
			p.aside[r.page] = b
		}
		p.mu.Unlock()
	}
	return errors.Join(errs...)
}

// wanted reports whether a page's block is still needed.
func (p *Pending) wanted(page epoch.GFN) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.missing.Contains(page) && p.aside[page] == nil
}

// index lists the references by place.
func (p *Pending) index() {
	p.fail = p.file.each(func(page epoch.GFN, r *resolved) {
		if r.entry.kind() == kindBlock {
			p.refs = append(p.refs, reference{page, r.entry.place(), r.print})
		}
	})
	sortReferences(p.refs)
}
