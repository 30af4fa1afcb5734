package primary

// This file looks at the pages that disk traffic has named a block for, so that a
// save need not:
//
//	traffic names pages ─> fresh ─ dirty pages are collected ─> ripe ─ read,
//	hashed, found on a disk ─> seen ─ written, as collect finds ─> not seen
//	                            └─ Save: frozen as dirty pages are collected
//
// A page that a disk was read into is dirty by that read (RULES 15), so it is worth
// a look only after the next collection. A protected guest has many of those; of a
// guest that is alone the sweep collects, seldom and only when there is something
// to look at. What it collects belongs to the next epoch as well. It keeps out of
// the disks' way, and its work is bounded: what it has not come to is read by the
// save.

import (
	"context"
	"fmt"
	"time"

	"understudy/epoch"
	"understudy/exclusion"
)

// Blocks is what is known to be on the guest's disks (exclusion.Index), under
// Config.PrintKey.
type Blocks interface {
	// Named moves into set the pages for which traffic has named a block since
	// the last call.
	Named(set *epoch.PageSet)
	// FindPrint says where content with this fingerprint lies.
	FindPrint(page epoch.GFN, print epoch.Fingerprint) (ref epoch.Reference, mapped, ok bool)
}

const (
	sweepEvery   = 250 * time.Millisecond
	sweepPages   = 4096        // at a time: 2 to 20 ms
	sweepRun     = 64          // pages read together
	sweepFew     = 256         // not worth a collection
	sweepCollect = time.Second // between two collections for the sweep's sake
)

// sweeper is the sweep's own state.
type sweeper struct {
	p           *Primary
	fresh, ripe *epoch.PageSet
	batch       *epoch.PageSet
	collection  uint64 // seen last, as Seen counts them
	collected   time.Time
	buf         []byte
}

// sweep ends with ctx.
func (p *Primary) sweep(ctx context.Context) {
	pages := p.Guest.Pages()
	s := sweeper{p: p, fresh: epoch.NewPageSet(pages), ripe: epoch.NewPageSet(pages), batch: epoch.NewPageSet(pages),
		buf: make([]byte, sweepRun*epoch.PageSize)}
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := s.step(ctx); err != nil && ctx.Err() == nil {
			p.Slog.Debug("pages were not looked at ahead of a save", "err", err)
		}
	}
}

func (s *sweeper) step(ctx context.Context) error {
	if now := s.p.seen.Begin(); now != s.collection {
		s.ripen(now)
	}
	s.p.Blocks.Named(s.fresh)
	if s.fresh.Count() >= sweepFew && time.Since(s.collected) >= sweepCollect {
		s.collected = time.Now()
		if err := s.p.errand(ctx, s.p.collectPending); err != nil {
			return err
		}
		s.ripen(s.p.seen.Begin())
	}
	s.batch.Clear()
	s.ripe.TakeInto(s.batch, sweepPages)
	for first, count := range s.batch.Runs {
		for count > 0 {
			n := min(count, sweepRun)
			if err := s.look(first, n); err != nil {
				return err
			}
			first, count = first+epoch.GFN(n), count-n
		}
	}
	return nil
}

// ripen is called after a collection.
func (s *sweeper) ripen(collection uint64) {
	s.ripe.Union(s.fresh)
	s.fresh.Clear()
	s.collection = collection
}

// look reads pages and says of those that are on a disk what they hold.
func (s *sweeper) look(first epoch.GFN, count uint64) error {
	ticket := s.p.seen.Begin()
	if err := s.p.Guest.ReadPages(first, s.buf[:count*epoch.PageSize]); err != nil {
		return fmt.Errorf("read pages %d+%d: %w", first, count, err)
	}
	for i := range count {
		page := first + epoch.GFN(i)
		print := s.p.cfg.PrintKey.Of(s.buf[i*epoch.PageSize:][:epoch.PageSize])
		if _, _, ok := s.p.Blocks.FindPrint(page, print); !ok {
			continue
		}
		if !s.p.seen.Add(ticket, page, print) { // pages were collected meanwhile: again
			s.ripe.Add(page)
		}
	}
	return nil
}

// newSeen returns what the sweep is to fill, nil if there is nothing to find.
func newSeen(cfg Config, d Deps) *exclusion.Seen {
	if d.Blocks == nil {
		return nil
	}
	return exclusion.NewSeen(d.Guest.Pages(), cfg.PrintKey)
}

// written makes void what is known of pages. It is called in the main loop.
func (p *Primary) written(set *epoch.PageSet) {
	if p.seen != nil {
		p.seen.Written(set)
	}
}

// freeze returns what is known of pages as dirty ones were collected last. It is
// called in the main loop.
func (p *Primary) freeze() epoch.Known {
	if p.seen == nil {
		return epoch.Known{}
	}
	return p.seen.Freeze()
}

func (p *Primary) thaw() {
	if p.seen != nil {
		p.seen.Thaw()
	}
}
