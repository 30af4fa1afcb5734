package host

import (
	"path/filepath"
	"testing"
	"time"

	"understudy/hypervisor/sim"
	"understudy/ownership"
)

// TestWhatBecomesOfAGuestWhenItsDaemonIsToldToStop, as its OnStop says.
func TestWhatBecomesOfAGuestWhenItsDaemonIsToldToStop(t *testing.T) {
	boots := func(s *scene) uint64 {
		b, err := sim.ReadBoot(s.mustGuest())
		s.must(err)
		return b.Boots
	}
	changed := func(s *scene, on OnStop) {
		g := s.cfg.Guests[0]
		g.OnStop, g.LeftFile, g.LeftPages = on, filepath.Join(s.dir, "left"), 1024
		s.cfg.Guests[0] = g
		s.end()
		s.run()
		s.role("primary")
		s.counts(s.counter() + 10)
	}
	t.Run("it is stopped", func(t *testing.T) {
		s := newScene(t)
		changed(s, OnStopStop)
		s.must(s.host.GoDown(t.Context(), time.Minute, time.Minute))
		if state, err := s.log.Read(t.Context(), "web"); err != nil || state.Desired != ownership.Stopped {
			t.Errorf("the log says %+v, %v", state, err)
		}
		if m := s.host.managers["web"]; s.host.Status()[0].Role != "stopped" || m.roleNow() != "stopped" {
			t.Errorf("%+v", s.host.Status()[0])
		}
		s.end()
		s.run()
		s.role("stopped") // until an operator starts it
	})
	t.Run("it is left", func(t *testing.T) {
		s := newScene(t)
		changed(s, OnStopLeave)
		before := boots(s)
		s.must(s.host.GoDown(t.Context(), time.Minute, time.Minute))
		if p := s.host.Status()[0].Primary; p == nil || !p.Running {
			t.Errorf("it was told something: %+v", p)
		}
		s.end()
		s.run()
		s.role("primary")
		if now := boots(s); now != before {
			t.Errorf("boot %d, then %d: it was not adopted", before, now)
		}
	})
	t.Run("it is handed over", func(t *testing.T) {
		s := newScene(t)
		changed(s, OnStopHandover)
		before := boots(s)
		g := s.mustGuest()
		s.must(s.host.GoDown(t.Context(), time.Minute, time.Minute))
		at, err := sim.ReadBoot(g)
		s.must(err)
		time.Sleep(5 * time.Millisecond) // ten of its steps
		if now, err := sim.ReadBoot(g); err != nil || now.Counter != at.Counter {
			t.Errorf("it went on from step %d to %d, %v", at.Counter, now.Counter, err)
		}
		s.end()
		s.run()
		s.counts(at.Counter + 10)
		if now := boots(s); now != before {
			t.Errorf("boot %d, then %d", before, now)
		}
	})
	t.Run("what is configured anew counts", func(t *testing.T) {
		s := newScene(t)
		g := s.cfg.Guests[0]
		g.OnStop = OnStopStop
		s.must(s.host.Change(t.Context(), g, false))
		s.must(s.host.GoDown(t.Context(), time.Minute, time.Minute))
		s.role("stopped")
	})
}

// lateDriver has something of a former daemon, and its log is read late.
type lateDriver struct{ *sim.Driver }

func (lateDriver) Left() bool { return true }

// TestWhatWasLeftIsAdoptedBeforeTheHostIsSettled.
func TestWhatWasLeftIsAdoptedBeforeTheHostIsSettled(t *testing.T) {
	s := newScene(t)
	s.until("nothing was left", s.host.Settled)
	s.end()
	s.cfg.Guests[0].Driver = lateDriver{s.cfg.Guests[0].Driver.(*sim.Driver)}
	late := &busyLog{memoryLog: s.log}
	s.cfg.Log = late
	s.run()
	s.until("it looks for what is left", func() bool {
		m := s.host.managers["web"]
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.looked
	})
	if s.host.Settled() {
		t.Error("a guest is left here, the log cannot be read, and the host calls itself settled")
	}
	late.asked.Store(true)
	s.until("adopted", s.host.Settled)
	s.role("primary")
}
