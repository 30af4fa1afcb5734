package rebuild

import (
	"fmt"

	"understudy/epoch"
	"understudy/hypervisor"
)

// This file is the table once the image belongs to a machine that is loaded or
// runs: the hypervisor asks for pages as they are touched, and for the rest
// behind them; nothing is written into the image from here.
//
//	Filler → Missing → Content (stash, or disk and fingerprint) → Filled
//	disk about to overwrite a block → BeforeOverwrite → stash
//
// The stash is bounded by what the image itself lacks: a stashed page takes the
// memory that the image will take for it.

// Filler takes the image out of the table's hands: when it returns no fill
// writes to it any more. StandBy gives it back.
func (t *Table) Filler() hypervisor.Filler {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lazy = true
	for t.writing > 0 {
		t.changed.Wait()
	}
	return filler{t}
}

// StandBy takes the image back after a load that failed: the machine is gone,
// and what is missing is filled by Run and by who needs it.
func (t *Table) StandBy() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.lazy {
		return
	}
	t.lazy = false
	t.todo = t.todo[:0]
	for i := range t.entries {
		if t.entries[i].state == statePending {
			t.todo = append(t.todo, t.claimOf(uint32(i+1)))
		}
	}
	t.changed.Broadcast()
}

type filler struct{ t *Table }

// Missing implements hypervisor.Filler. Pages whose block was found to be
// something else are among them: whoever touches one is told so.
func (f filler) Missing(set *epoch.PageSet) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	for i := range f.t.entries {
		if e := &f.t.entries[i]; e.state != stateFree {
			set.Add(e.ref.Page)
		}
	}
}

// Content implements hypervisor.Filler. It reads ahead: the pages behind the
// one asked for are stashed if their blocks lie behind its block.
func (f filler) Content(page epoch.GFN, dst []byte) error {
	if uint64(page) >= f.t.cfg.Pages || len(dst) != epoch.PageSize {
		return fmt.Errorf("content of page %d of an image of %d pages, into %d bytes", page, f.t.cfg.Pages, len(dst))
	}
	return f.t.content(page, dst, true)
}

// Filled implements hypervisor.Filler.
func (f filler) Filled(page epoch.GFN) {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if uint64(page) < f.t.cfg.Pages && f.t.of[page] != 0 {
		f.t.remove(f.t.of[page])
	}
}

// readAhead bounds what Content reads, in pages: 64 KiB.
const readAhead = 16

// content gets a page from the stash, from the disk, or, if it is not missing,
// from the image. It makes no claim: if the block is overwritten beside the
// read, it has been stashed before, and the second attempt finds it there.
func (t *Table) content(page epoch.GFN, dst []byte, ahead bool) error {
	for attempt := 1; ; attempt++ {
		c, n, err := t.look(page, dst, ahead)
		switch {
		case err != nil:
			return err
		case n == 0 && c.name != 0:
			return nil // stashed
		case n == 0:
			return t.cfg.Read(page, dst)
		}
		data, buffer := dst, (*[]byte)(nil)
		if n > 1 {
			buffer = t.buffers.Get().(*[]byte)
			data = (*buffer)[:n*epoch.PageSize]
		}
		err = t.cfg.Blocks.ReadSectors(c.ref.Disk, c.ref.Sector, data)
		good := err == nil && t.cfg.Key.Of(data[:epoch.PageSize]) == c.ref.Print
		if good && n > 1 {
			copy(dst, data)
			t.stashBehind(c, data)
		}
		if buffer != nil {
			t.buffers.Put(buffer)
		}
		switch {
		case good:
			return nil
		case err != nil && n == 1:
			return fmt.Errorf("page %d: read disk %d, sectors %d+%d: %w", page, c.ref.Disk, c.ref.Sector, epoch.PageSectors, err)
		case err == nil && attempt > 1 && t.spoiled(c):
			return &BadError{Ref: c.ref, Epoch: t.epochOf(c)}
		}
		ahead = false // once more, alone
	}
}

// look finds out where a page's content is to be had: n == 0 and a claim: it
// was stashed, and is in dst now; n == 0 and none: in the image; else on the
// disk, with that of n-1 pages behind it.
func (t *Table) look(page epoch.GFN, dst []byte, ahead bool) (c claim, n int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := t.of[page]
	if name == 0 {
		return claim{}, 0, nil
	}
	e := t.at(name)
	switch {
	case e.state == stateBad:
		return claim{}, 0, &BadError{Ref: e.ref, Epoch: e.epoch}
	case e.stash != nil:
		copy(dst, e.stash)
		return t.claimOf(name), 0, nil
	}
	n = 1
	for ahead && n < readAhead && uint64(page)+uint64(n) < t.cfg.Pages && t.of[page+epoch.GFN(n)] != 0 {
		b := t.at(t.of[page+epoch.GFN(n)])
		if b.stash != nil || b.state != statePending || b.ref.Disk != e.ref.Disk || b.ref.Sector != e.ref.Sector+uint64(n)*epoch.PageSectors {
			break
		}
		n++
	}
	return t.claimOf(name), n, nil
}

// stashBehind keeps what was read behind a page for when it is asked for.
func (t *Table) stashBehind(c claim, data []byte) {
	for i := 1; i < len(data)/epoch.PageSize; i++ {
		page := data[i*epoch.PageSize:][:epoch.PageSize]
		print := t.cfg.Key.Of(page)
		t.mu.Lock()
		if name := t.of[int(c.ref.Page)+i]; name != 0 {
			if e := t.at(name); e.state == statePending && e.stash == nil && e.ref.Print == print {
				e.stash = append([]byte(nil), page...)
			}
		}
		t.mu.Unlock()
	}
}

// spoiled marks the entry of a claim as bad, unless it is gone, stashed, or
// being read by somebody who will see for himself.
func (t *Table) spoiled(c claim) bool {
	t.mu.Lock()
	e := t.holds(c)
	bad := e != nil && e.stash == nil && e.state == statePending
	t.mu.Unlock()
	if bad {
		t.spoil(c)
	}
	return bad
}

func (t *Table) epochOf(c claim) epoch.Number {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.holds(c); e != nil {
		return e.epoch
	}
	return 0
}
