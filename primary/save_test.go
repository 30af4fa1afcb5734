package primary

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
)

// copySaver keeps what it is given.
type copySaver struct {
	memory []byte
	given  []uint64 // pages, each time
	stale  []epoch.GFN
	known  epoch.Known
	blocks *everyBlock // where known pages are taken from
	spared uint64      // pages that were not read
	during func()      // Image, the guest going on
}

func newCopySaver(r *rig) *copySaver {
	return &copySaver{memory: make([]byte, r.guest.Pages()*epoch.PageSize)}
}

func (s *copySaver) Image(_ context.Context, image hypervisor.Image, set *epoch.PageSet) error {
	s.given = append(s.given, set.Count())
	for first, count := range set.Runs {
		for page := first; page < first+epoch.GFN(count); page++ {
			dst := s.memory[uint64(page)*epoch.PageSize:][:epoch.PageSize]
			if s.known.Has(page) {
				copy(dst, s.blocks.content(s.known.Prints[page]))
				s.spared++
			} else if err := image.ReadPages(page, dst); err != nil {
				return err
			}
		}
	}
	s.known = epoch.Known{}
	if s.during != nil {
		s.during()
		s.during = nil
	}
	time.Sleep(20 * time.Millisecond) // the guest goes on meanwhile
	return nil
}

func (s *copySaver) Known(known epoch.Known) error {
	s.known = known
	return nil
}

func (s *copySaver) Stale(set *epoch.PageSet) error {
	for _, f := range s.stale {
		set.Add(f)
	}
	return nil
}

// same reports whether the guest's memory is what was saved.
func (s *copySaver) same(r *rig) bool {
	now := make([]byte, len(s.memory))
	r.must(r.guest.ReadPages(0, now))
	return bytes.Equal(now, s.memory)
}

func TestASaveIsOneMomentAndTakesNothingFromProtection(t *testing.T) {
	for _, protected := range []bool{true, false} {
		inBubble(t, verifyAll, func(r *rig) {
			r.start(protected)
			if protected {
				r.wait("protected", 5*time.Second, r.protected)
			} else {
				r.wait("running", 5*time.Second, r.runs)
			}
			s := newCopySaver(r)
			s.stale = []epoch.GFN{1000}
			called := false
			m, err := r.p.Save(r.t.Context(), s, func(m Moment) error {
				called = true
				if !s.same(r) {
					r.t.Error("what was saved is not the guest at that moment")
				}
				if len(m.Device) == 0 {
					r.t.Error("no device state")
				}
				return nil
			})
			if err != nil || !called || m.Pause <= 0 || m.Rounds == 0 {
				r.t.Fatalf("%+v, %v", m, err)
			}
			if s.given[0] != r.guest.Pages() || m.Last == 0 || m.Last > r.guest.Pages()/2 || s.given[len(s.given)-1] != m.Last {
				r.t.Errorf("pages saved in each round: %v, in the pause %d", s.given, m.Last)
			}
			if !r.runs() {
				r.t.Error("the guest does not run on")
			}
			if protected {
				at := r.commits()
				r.wait("commits go on", 5*time.Second, func() bool { return r.commits() > at+10 })
				if n := r.sessions(); n != 1 {
					r.t.Errorf("%d sessions", n)
				}
			}
			r.stop()
		})
	}
}

func TestAGuestStopsWithItsSave(t *testing.T) {
	for _, protected := range []bool{true, false} {
		inBubble(t, nil, func(r *rig) {
			r.start(protected)
			r.wait("running", 5*time.Second, func() bool { return r.runs() && r.protected() == protected })
			s := newCopySaver(r)
			_, err := r.p.SaveAndStop(r.t.Context(), s, func(context.Context, Moment) error {
				time.Sleep(3 * rigLease) // a slow disk: leases are renewed meanwhile
				if !s.same(r) {
					r.t.Error("the guest moved between its save and its stop")
				}
				if r.log.now().Desired != ownership.Running {
					r.t.Error("the stop was recorded before the file was complete")
				}
				return nil
			})
			r.must(err)
			r.wait("stopped", 5*time.Second, func() bool { return r.log.now().Desired == ownership.Stopped })
			if r.runs() || !s.same(r) {
				r.t.Error("the guest ran on after its save")
			}
			r.stop()
		})
	}
}

// TestAGuestWhoseSaveFailsIsNotStopped: not by a file that cannot be completed,
// not by a client that went away; and an operator can still stop it.
func TestAGuestWhoseSaveFailsIsNotStopped(t *testing.T) {
	full := errors.New("disk full")
	for _, protected := range []bool{true, false} {
		inBubble(t, nil, func(r *rig) {
			r.start(protected)
			r.wait("running", 5*time.Second, func() bool { return r.runs() && r.protected() == protected })
			_, err := r.p.SaveAndStop(r.t.Context(), newCopySaver(r), func(context.Context, Moment) error { return full })
			if !errors.Is(err, full) {
				r.t.Errorf("got %v", err)
			}
			r.wait("it runs on", 5*time.Second, r.runs)
			if protected {
				at := r.commits()
				r.wait("commits go on", 5*time.Second, func() bool { return r.protected() && r.commits() > at+10 })
			}
			gone, cancel := context.WithCancel(r.t.Context())
			cancel()
			for range 200 { // wherever the loop notices
				if _, err := r.p.SaveAndStop(gone, newCopySaver(r), nil); !errors.Is(err, context.Canceled) {
					r.t.Errorf("got %v", err)
				}
			}
			r.wait("it runs on", 5*time.Second, r.runs)
			if r.log.now().Desired != ownership.Running {
				r.t.Error("the log says that it is stopped")
			}
			r.must(r.p.Ask(r.t.Context(), RequestStop))
			r.wait("stopped", 5*time.Second, func() bool { return r.log.now().Desired == ownership.Stopped })
			r.stop()
		})
	}
}
