package rebuild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/epoch"
)

// This file fills pages: claims come in from above, sorted by place on the disk;
// each run of adjacent blocks is read at once, checked page by page, and put
// into the image (or stashed, once the image is not ours to write).

const (
	maxClaims = 4 * maxRead / epoch.PageSize // filled in one go
	// retryRead is how long Run waits after a disk could not be read.
	retryRead = time.Second
)

// errLazy is what FillAll says once a Filler was taken.
var errLazy = errors.New("the image's missing pages are the hypervisor's to fill now")

// Run fills references in the background until ctx ends, which is no error. It
// ends with a *BadError when the image is whole (Committed) and a page cannot be
// filled, and with another error when the image cannot be written. A disk that
// cannot be read is tried again. It does nothing while a Filler is out. One Run
// at a time.
func (t *Table) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, t.wake)
	defer stop()
	var work []claim
	for {
		var err error
		if work, err = t.next(ctx, work[:0]); err != nil || ctx.Err() != nil {
			return err
		}
		sortClaims(work)
		for rest := work; len(rest) > 0 && ctx.Err() == nil; {
			n := min(len(rest), maxClaims)
			before := t.Through()
			err := t.fill(t.claim(rest[:n]))
			rest = rest[n:]
			if after := t.Through(); after != before && t.cfg.Notify != nil {
				t.cfg.Notify(after)
			}
			if failed := (*writeError)(nil); errors.As(err, &failed) {
				return err
			}
			if err != nil {
				t.cfg.Log.Warn("a disk cannot be read to fill pages that were left out of a checkpoint; it is tried again", "err", err, "again_in", retryRead)
				t.giveBack(rest)
				rest = nil
				select {
				case <-ctx.Done():
				case <-time.After(retryRead):
				}
			}
		}
	}
}

// next waits for work and takes all there is.
func (t *Table) next(ctx context.Context, work []claim) ([]claim, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ctx.Err() == nil {
		if t.whole && t.bad > 0 {
			return nil, t.badError()
		}
		if len(t.todo) > 0 && !t.lazy {
			work, t.todo = append(work, t.todo...), t.todo[:0]
			return work, nil
		}
		t.changed.Wait()
	}
	return work, nil
}

// giveBack puts claims that were not looked at among the work again.
func (t *Table) giveBack(rest []claim) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.todo = append(t.todo, rest...)
}

// FillAll fills every page that is missing. It fails if a page cannot be filled.
// progress, if not nil, is called now and then with the pages filled so far and
// those there were.
func (t *Table) FillAll(ctx context.Context, progress func(done, total uint64)) error {
	stop := context.AfterFunc(ctx, t.wake)
	defer stop()
	total := uint64(t.Len())
	var work []claim
	for {
		left, waiting := 0, false
		t.mu.Lock()
		work = work[:0]
		for ctx.Err() == nil && t.bad == 0 && !t.lazy {
			left = t.missing
			for i := range t.entries {
				switch t.entries[i].state {
				case statePending:
					work = append(work, t.claimOf(uint32(i+1)))
				case stateReading, stateWriting:
					waiting = true
				}
			}
			if len(work) > 0 || !waiting {
				break
			}
			waiting = false
			t.changed.Wait()
		}
		err := t.badError()
		if t.lazy {
			err = errLazy
		}
		t.mu.Unlock()
		if err = cmp.Or(ctx.Err(), err); err != nil {
			return fmt.Errorf("fill the pages that were left out: %w", err)
		}
		if progress != nil {
			progress(total-min(total, uint64(left)), total)
		}
		if len(work) == 0 {
			return nil
		}
		sortClaims(work)
		for rest := work; len(rest) > 0 && ctx.Err() == nil; {
			n := min(len(rest), maxClaims)
			if err := t.fill(t.claim(rest[:n])); err != nil {
				return err
			}
			rest = rest[n:]
			if progress != nil && len(rest) > 0 {
				progress(total-min(total, uint64(t.Len())), total)
			}
		}
	}
}

// BeforeOverwrite returns once no reference that is not filled names one of
// these sectors any more: each that did is in the image, or its content is
// stashed for the hypervisor, or it was found bad. It waits for the disk. After
// an error the sectors must not be overwritten.
func (t *Table) BeforeOverwrite(disk epoch.DiskID, sector uint64, sectors uint32) error {
	err := t.fillThose(func(visit func(name uint32)) { t.overlapping(disk, sector, uint64(sectors), visit) })
	if err != nil {
		return fmt.Errorf("save what references name before disk %d, sectors %d+%d, is overwritten: %w", disk, sector, sectors, err)
	}
	return nil
}

// ReadPages reads pages of the image as they were at the last commit, filling
// those that are missing first. It fails with a *BadError if one cannot be
// filled. Its length is a multiple of epoch.PageSize.
func (t *Table) ReadPages(first epoch.GFN, dst []byte) error {
	count := uint64(len(dst)) / epoch.PageSize
	if uint64(first) > t.cfg.Pages || count > t.cfg.Pages-uint64(first) {
		return fmt.Errorf("read pages %d+%d of an image of %d", first, count, t.cfg.Pages)
	}
	err := t.fillThose(func(visit func(name uint32)) {
		if t.missing == 0 || t.lazy {
			return
		}
		for _, name := range t.of[first : first+epoch.GFN(count)] {
			if name != 0 {
				visit(name)
			}
		}
	})
	if err != nil {
		return err
	}
	return t.read(first, dst)
}

// read reads pages of which none is missing but those that are bad or, once the
// image is the hypervisor's, were never ours to fill. The image is not touched
// where a page is missing: that would make it zeros (RULES 18).
func (t *Table) read(first epoch.GFN, dst []byte) error {
	for len(dst) > 0 {
		t.mu.Lock()
		run := 0
		for run < len(dst)/epoch.PageSize && t.of[int(first)+run] == 0 {
			run++
		}
		t.mu.Unlock()
		if run > 0 {
			if err := t.cfg.Read(first, dst[:run*epoch.PageSize]); err != nil {
				return err
			}
		} else {
			run = 1
			if err := t.content(first, dst[:epoch.PageSize], false); err != nil {
				return err
			}
		}
		first, dst = first+epoch.GFN(run), dst[run*epoch.PageSize:]
	}
	return nil
}

// fillThose fills the entries that each visits, and waits for those that
// somebody else is filling.
func (t *Table) fillThose(each func(visit func(name uint32))) error {
	for {
		var mine []claim
		t.mu.Lock()
		for {
			others := false
			each(func(name uint32) {
				switch e := t.at(name); {
				case e.stash != nil && e.state == statePending && t.lazy:
				case e.state == statePending:
					e.state = stateReading
					mine = append(mine, t.claimOf(name))
				case e.state == stateReading || e.state == stateWriting:
					others = true
				}
			})
			if len(mine) > 0 {
				break
			}
			if !others {
				t.mu.Unlock()
				return nil
			}
			t.changed.Wait()
		}
		t.mu.Unlock()
		sortClaims(mine)
		if err := t.fill(mine); err != nil {
			return err
		}
	}
}

func sortClaims(claims []claim) {
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.ref.Disk, b.ref.Disk), cmp.Compare(a.ref.Sector, b.ref.Sector), cmp.Compare(a.ref.Page, b.ref.Page))
	})
}

// claim takes those of the claims that are still pending, in place.
func (t *Table) claim(claims []claim) []claim {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lazy { // they stay pending; StandBy makes them work again
		return nil
	}
	mine := claims[:0]
	for _, c := range claims {
		if e := t.holds(c); e != nil && e.state == statePending {
			e.state = stateReading
			mine = append(mine, t.claimOf(c.name))
		}
	}
	return mine
}

// fill fills claimed entries, sorted by place. Those that cannot be read are
// pending again, and the first error is returned after all others were filled.
func (t *Table) fill(claims []claim) (failed error) {
	buffer := t.buffers.Get().(*[]byte)
	defer t.buffers.Put(buffer)
	alone := 0 // claims that are read one by one, since reading them at once failed
	for len(claims) > 0 {
		n, size := adjacent(claims)
		if alone > 0 {
			n, size, alone = 1, epoch.PageSize, alone-1
		}
		group, content, ref := claims[:n], (*buffer)[:size], claims[0].ref
		if group[0].stash != nil {
			content = group[0].stash
		} else if err := t.cfg.Blocks.ReadSectors(ref.Disk, ref.Sector, content); err != nil {
			if n > 1 {
				alone = n
				continue
			}
			t.release(group)
			failed = cmp.Or(failed, fmt.Errorf("read disk %d, sectors %d+%d: %w", ref.Disk, ref.Sector, epoch.PageSectors, err))
			claims = claims[1:]
			continue
		}
		if err := t.settle(group, content); err != nil {
			t.release(claims)
			return err
		}
		claims = claims[n:]
	}
	return failed
}

// adjacent returns how many of the sorted claims one read serves, and its size
// in bytes.
func adjacent(claims []claim) (n, size int) {
	first := claims[0].ref
	n, size = 1, epoch.PageSize
	for n < len(claims) && claims[0].stash == nil {
		r := claims[n].ref
		// With gaps of less than a page reading on is cheaper than reading anew.
		if r.Disk != first.Disk || claims[n].stash != nil || r.Sector-first.Sector > uint64(size/epoch.SectorSize) {
			break
		}
		end := int(r.Sector-first.Sector)*epoch.SectorSize + epoch.PageSize
		if end > maxRead {
			break
		}
		n, size = n+1, max(size, end)
	}
	return n, size
}

// settle checks what was read for a group of claims and puts it where it
// belongs. Pages that are adjacent in the image, too, are written at once.
func (t *Table) settle(group []claim, content []byte) error {
	base := group[0].ref.Sector
	page := func(c claim) []byte {
		return content[int(c.ref.Sector-base)*epoch.SectorSize:][:epoch.PageSize]
	}
	for len(group) > 0 {
		first := group[0].ref
		run := 0
		for run < len(group) {
			r := group[run].ref
			if r.Page != first.Page+epoch.GFN(run) || r.Sector != first.Sector+uint64(run)*epoch.PageSectors || t.cfg.Key.Of(page(group[run])) != r.Print {
				break
			}
			run++
		}
		var err error
		if run > 0 {
			err = t.put(group[:run], content[int(first.Sector-base)*epoch.SectorSize:][:run*epoch.PageSize])
		} else {
			run, err = 1, t.again(group[:1])
		}
		if err != nil {
			return err
		}
		group = group[run:]
	}
	return nil
}

// again gives a claim whose block was not what it should be a second chance:
// perhaps a writer was beside the read.
func (t *Table) again(one []claim) error {
	r, page := one[0].ref, make([]byte, epoch.PageSize)
	if err := t.cfg.Blocks.ReadSectors(r.Disk, r.Sector, page); err != nil {
		return fmt.Errorf("read disk %d, sectors %d+%d, again: %w", r.Disk, r.Sector, epoch.PageSectors, err)
	}
	if t.cfg.Key.Of(page) == r.Print {
		return t.put(one, page)
	}
	t.spoil(one[0])
	return nil
}

// spoil marks an entry as bad.
func (t *Table) spoil(c claim) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.holds(c)
	if e == nil {
		return
	}
	e.state = stateBad
	t.bad++
	t.changed.Broadcast()
	t.cfg.Log.Warn("a page cannot be rebuilt: its block holds something else", "page", e.ref.Page, "epoch", e.epoch, "disk", e.ref.Disk, "sector", e.ref.Sector)
}

// put brings content into the image for a run of claims that are adjacent in it,
// but for those that were superseded.
func (t *Table) put(run []claim, data []byte) error {
	for len(run) > 0 {
		n := t.beginWrite(run)
		if n == 0 { // superseded, or stashed
			t.mu.Lock()
			if e := t.holds(run[0]); e != nil {
				if e.stash == nil {
					e.stash = slices.Clone(data[:epoch.PageSize])
				}
				t.pending(run[0].name)
			}
			t.mu.Unlock()
			run, data = run[1:], data[epoch.PageSize:]
			continue
		}
		err := t.cfg.Write(run[0].ref.Page, data[:n*epoch.PageSize])
		t.mu.Lock()
		for _, c := range run[:n] {
			if err == nil {
				t.remove(c.name)
			} else {
				t.writing--
				t.pending(c.name)
			}
		}
		t.mu.Unlock()
		if err != nil {
			return &writeError{run[0].ref.Page, n, err}
		}
		run, data = run[n:], data[n*epoch.PageSize:]
	}
	return nil
}

// beginWrite makes as many claims of a run stateWriting as still hold, from the
// first on, unless the image is not ours to write.
func (t *Table) beginWrite(run []claim) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for !t.lazy && n < len(run) {
		e := t.holds(run[n])
		if e == nil {
			break
		}
		e.state = stateWriting
		t.writing++
		n++
	}
	return n
}

// release makes the claims pending again that were not filled.
func (t *Table) release(claims []claim) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range claims {
		if e := t.holds(c); e != nil && e.state == stateReading {
			t.pending(c.name)
		}
	}
}

// pending makes an entry work for Run again.
func (t *Table) pending(name uint32) {
	t.at(name).state = statePending
	t.todo = append(t.todo, t.claimOf(name))
	t.changed.Broadcast()
}

// writeError says that the image refused a page.
type writeError struct {
	page  epoch.GFN
	count int
	err   error
}

func (e *writeError) Error() string {
	return fmt.Sprintf("fill pages %d+%d of the image: %v", e.page, e.count, e.err)
}

func (e *writeError) Unwrap() error { return e.err }
