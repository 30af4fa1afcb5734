package host

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"understudy/hypervisor/sim"
	"understudy/ownership"
)

// busyLog does not answer the daemon before asked: before the operator has read
// it, too, or, if it is kept, before the test lets it.
type busyLog struct {
	*memoryLog
	kept  bool
	asked atomic.Bool
}

// operator marks the context of an operator's request.
type operator struct{}

func (l *busyLog) Read(ctx context.Context, guest string) (ownership.Guest, error) {
	if ctx.Value(operator{}) != nil {
		if !l.kept {
			defer l.asked.Store(true)
		}
	} else if !l.asked.Load() {
		return ownership.Guest{}, errors.New("no leader")
	}
	return l.memoryLog.Read(ctx, guest)
}

// TestAGuestThatIsStartedIsNotTheOneThatWasLeftBehind: a guest was taken over,
// ran and was stopped elsewhere while the daemon here was down; what that daemon
// left is of the past, and must not go on when the guest is started here.
func TestAGuestThatIsStartedIsNotTheOneThatWasLeftBehind(t *testing.T) {
	s := newScene(t)
	left, err := sim.ReadBoot(s.guest())
	s.must(err)
	s.end()

	s.log.mu.Lock()
	s.log.state = ownership.Guest{Generation: 7, Revision: 20, Owner: "b", Phase: ownership.PhaseActive, Desired: ownership.Stopped}
	s.log.mu.Unlock()
	s.cfg.Log = &busyLog{memoryLog: s.log}
	s.run()
	_, err = s.host.Start(context.WithValue(t.Context(), operator{}, true), "web")
	s.must(err)
	s.role("primary")
	s.counts(1)
	now, err := sim.ReadBoot(s.guest())
	s.must(err)
	if now.ID == left.ID {
		t.Errorf("the guest %+v goes on as %+v: it was lost when another host took it over", left, now)
	}
}

// TestAGuestWhoseHeldWritesAreGoneIsNotAdopted: the daemon died, and what it held
// for the guest is not there any more. The guest was told of those writes.
func TestAGuestWhoseHeldWritesAreGoneIsNotAdopted(t *testing.T) {
	s := newScene(t)
	left, err := sim.ReadBoot(s.guest())
	s.must(err)
	s.end()

	s.disk.missing = true
	s.run()
	s.role("primary")
	s.counts(1)
	now, err := sim.ReadBoot(s.guest())
	s.must(err)
	if now.ID == left.ID {
		t.Errorf("the guest %+v goes on as %+v, with its writes lost", left, now)
	}
}
