package primary

// This file saves the guest to a checkpoint file while it runs:
//
//	every page, copied while the guest runs, but for those that are known to be
//	on a disk since they were looked at (sweep.go) ─> those written meanwhile, again
//	and again until few are left ─> in a pause: the last ones, the device
//	state, the disks' condition ─> the guest runs on
//
// Pages are copied and written by the goroutine that asks. What must happen
// between two events of the main loop (collecting dirty pages, the pause) is an
// errand that the loop runs for it. Saving takes nothing away from protection:
// collected pages still belong to the next epoch as well.
//
// A guest that is to stop with its save does not run on: it stands still from
// that pause on, is stopped as on request (a last epoch, its acknowledgement,
// its disks drained), and before the log records the stop the file is completed
// (will.go), so that a file that cannot be had costs a pause and not the guest.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
)

// Saver takes a guest's pages (package checkpoint). A page that comes again
// replaces what came before.
type Saver interface {
	// Known says of pages what they hold, for the next Image alone. It changes
	// only after Image.
	Known(known epoch.Known) error
	// Image takes the pages of a set out of an image, which it reads.
	Image(ctx context.Context, image hypervisor.Image, set *epoch.PageSet) error
	// Stale adds to set pages that must be given again although the guest has
	// not written them.
	Stale(set *epoch.PageSet) error
}

// Moment is the guest at one point in time, with the pages that a Saver has.
type Moment struct {
	Device    []byte
	Writes    []epoch.DiskWrite // accepted from the guest and not on its disks yet
	DiskState []byte            // its requests in flight
	Pause     time.Duration     // that the guest stood still; unknown where it did not run on
	Rounds    int               // copies of dirty pages before that
	Last      uint64            // pages copied in the pause
}

const (
	saveFew    = 512 // pages that may be left for the pause: some 0.5 ms
	saveRounds = 8   // and if they do not get fewer, that is how often it is tried
)

// saving is a save under way.
type saving struct {
	Saver
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
func (s *saving) take(set *epoch.PageSet) error {
	s.mu.Lock()
	set.Clear()
	set.Union(s.dirty)
	s.dirty.Clear()
	s.mu.Unlock()
	return s.Stale(set)
}

// Save gives every page of the guest to s, and then stops the guest for as long
// as the last ones and the device state take. at is called meanwhile: what it
// does belongs to that very moment. One save at a time.
func (p *Primary) Save(ctx context.Context, s Saver, at func(Moment) error) (Moment, error) {
	m, err := p.save(ctx, s, at, nil)
	if err != nil {
		err = fmt.Errorf("save guest %s: %w", p.cfg.Guest, err)
	}
	return m, err
}

// SaveAndStop is Save for a guest that is not to run on. It is stopped as by
// RequestStop; complete is called once all that the guest wrote is on its disks
// and before the log says that it is stopped. If complete fails, or ctx ends
// before it is called, the guest runs on. When SaveAndStop returns nil the stop is
// being recorded.
func (p *Primary) SaveAndStop(ctx context.Context, s Saver, complete func(ctx context.Context, m Moment) error) (Moment, error) {
	w := newWill()
	m, err := p.save(ctx, s, func(m Moment) error {
		w.last = func(last context.Context) (err error) {
			if err := ctx.Err(); err != nil {
				return err // await has yet to see it
			}
			// What was held has reached the disks since.
			if m.Writes, m.DiskState, err = p.Disks.Snapshot(); err != nil {
				return err
			}
			return complete(last, m)
		}
		return nil
	}, w)
	if err == nil {
		err = p.await(ctx, w)
	}
	if err != nil {
		err = fmt.Errorf("save and stop guest %s: %w", p.cfg.Guest, err)
	}
	return m, err
}

func (p *Primary) save(ctx context.Context, s Saver, at func(Moment) error, w *will) (m Moment, err error) {
	sv := &saving{Saver: s, dirty: epoch.NewPageSet(p.Guest.Pages())}
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
	set := epoch.NewPageSet(p.Guest.Pages())
	if m.Rounds, err = p.saveAll(ctx, sv, set); err != nil {
		return m, err
	}
	for left := ^uint64(0); m.Rounds < saveRounds && left > saveFew; m.Rounds++ {
		if err := p.errand(ctx, p.collectPending); err != nil {
			return m, err
		}
		if err := sv.take(set); err != nil {
			return m, err
		}
		left = set.Count()
		if err := s.Image(ctx, p.Guest, set); err != nil {
			return m, err
		}
	}
	err = p.errand(ctx, func(ctx context.Context) error { return p.saveRest(ctx, sv, set, at, w, &m) })
	return m, err
}

// saveAll is the first round, of every page. What is known of pages holds as of
// the collection that it begins with; what is written from there on comes again.
func (p *Primary) saveAll(ctx context.Context, sv *saving, set *epoch.PageSet) (rounds int, err error) {
	var known epoch.Known
	if err := p.errand(ctx, func(ctx context.Context) error {
		err := p.collectPending(ctx)
		if err == nil {
			known = p.freeze()
		}
		return err
	}); err != nil {
		return 0, err
	}
	defer p.thaw()
	if err := sv.take(set); err != nil {
		return 0, err
	}
	if err := sv.Known(known); err != nil {
		return 0, err
	}
	return 1, sv.Image(ctx, p.Guest, set)
}

// ErrEnded is the error of what was asked of a primary whose Run has returned.
var ErrEnded = errors.New("this host is not the guest's primary any more")

// errand has the loop run f between two events.
func (p *Primary) errand(ctx context.Context, f func(ctx context.Context) error) error {
	done := make(chan error, 1)
	select {
	case p.errands <- func(ctx context.Context) { done <- f(ctx) }:
	case <-p.over:
		return ErrEnded
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

// saveRest is the pause.
func (p *Primary) saveRest(ctx context.Context, sv *saving, set *epoch.PageSet, at func(Moment) error, w *will, m *Moment) (err error) {
	began := p.Clock.Now()
	if err := p.Guest.Pause(ctx); err != nil {
		return err
	}
	defer func() {
		if err == nil && w != nil {
			p.stopWith(ctx, w)
			return
		}
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
	if err := sv.take(set); err != nil {
		return err
	}
	m.Last = set.Count()
	if err := sv.Image(ctx, p.Guest, set); err != nil {
		return err
	}
	if m.Writes, m.DiskState, err = p.Disks.Snapshot(); err != nil {
		return err
	}
	return at(*m)
}
