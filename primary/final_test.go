package primary

import (
	"testing"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

// TestALastEpochThatCannotBeTakenIsNotTakenAtOnceAgain: while the disks have not
// settled, a last epoch is postponed; were it asked for again in the same
// instant, the loop would do nothing else any more.
func TestALastEpochThatCannotBeTakenIsNotTakenAtOnceAgain(t *testing.T) {
	const lease = time.Second
	now, image := clock.Instant(time.Hour), epoch.NewIncarnation()
	state := ownership.Guest{Generation: 1, Revision: 1, Owner: "a", Phase: ownership.PhaseActive, Desired: ownership.Running}
	c := NewCore(DefaultConfig("web", "a", lease), state, true)
	c.mode, c.linked, c.image, c.firstWhole = ModeProtected, true, image, 1
	c.log.InSync, c.log.Backup = true, ownership.Backup{Host: "b", Image: image, Epoch: 1}
	c.Step(now, LeaseRenewed{Generation: 1, Until: now.Add(lease)})
	c.capturing, c.sealed, c.acked = false, 1, 1
	last := func(actions []Action) (n epoch.Number) {
		for _, a := range actions {
			if x, ok := a.(Capture); ok && x.Final {
				n = x.Number
			}
		}
		return n
	}
	n := last(c.Step(now, Asked{Request: RequestSwitchover}))
	if n == 0 {
		t.Fatal("no last epoch for a switchover")
	}
	for _, ev := range []Event{Postponed{n}, CaptureFailed{Number: n}} {
		if last(c.Step(now, ev)) != 0 {
			t.Fatalf("after %T the last epoch is asked for again in the same instant", ev)
		}
		wake := c.NextWake()
		if n = last(c.Step(wake, Tick{})); n == 0 {
			t.Fatalf("after %T the last epoch is not asked for again at %v", ev, wake.Sub(now))
		}
		now = wake
	}
}
