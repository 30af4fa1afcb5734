package primary

// This file saves the guest to a checkpoint file while it runs:
//
//	every page, copied while the guest runs ─> those written meanwhile, again
//	and again until few are left ─> in a pause: the last ones, the device
//	state, the disks' condition ─> the guest runs on
//
// Pages are copied and written by the goroutine that asks. What must happen
// between two events of the main loop (collecting dirty pages, the pause) is an
// errand that the loop runs for it. Saving takes nothing away from protection:
// collected pages still belong to the next epoch as well.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy/epoch"
)

// Saver takes a guest's pages (package checkpoint). A page that comes again
// replaces what came before. It keeps nothing of data.
type Saver interface {
	Pages(first epoch.GFN, data []byte) error
}

// Moment is the guest at one point in time, with the pages that a Saver has.
type Moment struct {
	Device    []byte
	Writes    []epoch.DiskWrite // accepted from the guest and not on its disks yet
	DiskState []byte            // its requests in flight
	Pause     time.Duration     // that the guest stood still
	Rounds    int               // copies of dirty pages before that
	Last      uint64            // pages copied in the pause
}

const (
	saveFew    = 512 // pages that may be left for the pause: some 0.5 ms
	saveRounds = 8   // and if they do not get fewer, that is how often it is tried
	savePiece  = 1 << 20
)

// saving is a save under way.
type saving struct {
	mu    sync.Mutex
	dirty *epoch.PageSet // collected since they were copied last
}

// note adds what was collected.
func (s *saving) note(set *epoch.PageSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty.Union(set)
}

// take moves what was collected to set.
func (s *saving) take(set *epoch.PageSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set.Clear()
	set.Union(s.dirty)
	s.dirty.Clear()
}

// Save gives every page of the guest to s, and then stops the guest for as long
// as the last ones and the device state take. at is called meanwhile: what it
// does belongs to that very moment. One save at a time.
func (p *Primary) Save(ctx context.Context, s Saver, at func() error) (m Moment, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save guest %s: %w", p.cfg.Guest, err)
		}
	}()
	sv := &saving{dirty: epoch.NewPageSet(p.Guest.Pages())}
	sv.dirty.Fill()
	if err := p.errand(ctx, func(context.Context) error {
		if p.saving != nil {
			return errors.New("it is being saved already")
		}
		p.saving = sv
		return nil
	}); err != nil {
		return m, err
	}
	defer func() {
		// Also when ctx has ended; only a primary that has ended is not asked.
		_ = p.errand(context.WithoutCancel(ctx), func(context.Context) error { p.saving = nil; return nil })
	}()
	set, buf := epoch.NewPageSet(p.Guest.Pages()), make([]byte, savePiece)
	for left := ^uint64(0); m.Rounds < saveRounds && left > saveFew; m.Rounds++ {
		if err := p.errand(ctx, p.collectPending); err != nil {
			return m, err
		}
		sv.take(set)
		left = set.Count()
		if err := p.copyTo(ctx, s, set, buf); err != nil {
			return m, err
		}
	}
	err = p.errand(ctx, func(ctx context.Context) error { return p.saveRest(ctx, s, sv, set, buf, at, &m) })
	return m, err
}

// errand has the loop run f between two events.
func (p *Primary) errand(ctx context.Context, f func(ctx context.Context) error) error {
	done := make(chan error, 1)
	select {
	case p.errands <- func(ctx context.Context) { done <- f(ctx) }:
	case <-p.over:
		return errors.New("this host is not the guest's primary any more")
	case <-ctx.Done():
		return ctx.Err()
	}
	return <-done
}

// collectPending collects dirty pages for the next epoch, and so for the save.
func (p *Primary) collectPending(context.Context) error {
	set := p.takeSet()
	defer p.putSet(set)
	err := p.collect(set)
	p.pending.Union(set)
	return err
}

func (p *Primary) copyTo(ctx context.Context, s Saver, set *epoch.PageSet, buf []byte) error {
	for first, count := range set.Runs {
		for count > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(count, uint64(len(buf))/epoch.PageSize)
			data := buf[:n*epoch.PageSize]
			if err := p.Guest.ReadPages(first, data); err != nil {
				return err
			}
			if err := s.Pages(first, data); err != nil {
				return err
			}
			first, count = first+epoch.GFN(n), count-n
		}
	}
	return nil
}

// saveRest is the pause.
func (p *Primary) saveRest(ctx context.Context, s Saver, sv *saving, set *epoch.PageSet, buf []byte, at func() error, m *Moment) (err error) {
	began := p.Clock.Now()
	if err := p.Guest.Pause(ctx); err != nil {
		return err
	}
	defer func() {
		if p.core.running {
			err = errors.Join(err, p.Guest.Resume(context.WithoutCancel(ctx)))
		}
		m.Pause = p.Clock.Now().Sub(began)
	}()
	if m.Device, err = p.Guest.AppendDeviceState(ctx, nil); err != nil {
		return err
	}
	if err := p.collectPending(ctx); err != nil {
		return err
	}
	sv.take(set)
	m.Last = set.Count()
	if err := p.copyTo(ctx, s, set, buf); err != nil {
		return err
	}
	if m.Writes, m.DiskState, err = p.Disks.Snapshot(); err != nil {
		return err
	}
	return at()
}
