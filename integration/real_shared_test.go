package integration

import (
	"syscall"
	"testing"
	"time"

	"understudy/backup"
	"understudy/config"
	"understudy/host"
)

// TestRealSharedDisk tells what is different when both hosts reach the same
// disk: a host that was not heard of any more may still write to it (RULES 12).
func TestRealSharedDisk(t *testing.T) {
	for _, c := range []struct {
		name     string
		unfenced bool
		tell     func(s *stage)
	}{
		{"a frozen host keeps its lock: the takeover is given back", false, theTakeoverIsGivenBack},
		{"unfenced, the disk does not wait, and nothing late destroys anything", true, theDiskGoesOn},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &stage{mode: config.Shared, unfenced: c.unfenced}
			defer func() {
				if s.real != nil {
					s.t = t
					s.hangUp()
					s.end(storyPrefix)
				}
			}()
			s.play(t, c.tell)
		})
	}
}

// freeze stops everything on the owner's host until thaw is called.
func (s *stage) freeze() (since time.Time, thaw func()) {
	s.t.Helper()
	frozen := s.Lab.Host(s.owner)
	since = time.Now()
	s.must(frozen.Signal(syscall.SIGSTOP))
	stopped := true
	thaw = func() {
		if stopped {
			stopped = false
			s.must(frozen.Signal(syscall.SIGCONT))
		}
	}
	s.t.Cleanup(func() {
		if stopped {
			_ = frozen.Signal(syscall.SIGCONT)
		}
	})
	return since, thaw
}

// theTakeoverIsGivenBack: nobody knows whether the frozen host will ever write
// again, and the operator has not said to go on without knowing.
func theTakeoverIsGivenBack(s *stage) {
	before := s.log(web, s.backup)
	since, thaw := s.freeze()
	s.until(web, "given back to the host that has the disk", func(name string, g host.GuestStatus) bool {
		return name == s.backup && g.Log.Generation > before.Generation+1 && g.Log.Owner == before.Owner
	})
	s.note("frozen with a shared disk: given back", time.Since(since))
	if _, ran := s.Logged(s.backup, backup.LogRunning, since); ran {
		s.t.Errorf("host %s ran the guest while host %s could still write to its disk", s.backup, s.owner)
	}
	thaw()
	began := time.Now()
	s.must(s.client.More(s.ctx, 20, soon))
	s.note("frozen with a shared disk: goes on after the thaw", time.Since(began))
	s.protected(web, s.owner)
}

func theDiskGoesOn(s *stage) {
	since, thaw := s.freeze()
	s.takenOver("frozen, unfenced", since)
	s.must(s.disk.Wait(s.ctx, s.disk.Last()+20, soon))
	thaw()
	s.again("frozen, unfenced", since)
	s.owner, s.backup = s.backup, s.owner
}
