package primary

import (
	"testing"
	"time"

	"understudy/clock"
	"understudy/ownership"
)

// TestASuspendedHostLooksAtItsLeaseSoon: timers stand still while a host is
// suspended and its lease runs out. When it wakes up, the guest must not run on
// for what was left of a timer set to the end of that lease.
func TestASuspendedHostLooksAtItsLeaseSoon(t *testing.T) {
	const lease = 300 * time.Millisecond
	state := ownership.Guest{Generation: 1, Revision: 1, Owner: "a", Phase: ownership.PhaseActive, Desired: ownership.Running}
	c := NewCore(DefaultConfig("web", "a", lease), state, true)
	now := clock.Instant(time.Hour)
	c.Step(now, LeaseRenewed{Generation: 1, Until: now.Add(lease)})
	if wait := c.NextWake().Sub(now); wait > lease/8 {
		t.Errorf("the next look is %v away, the lease is %v", wait, lease)
	}
	paused := false
	for _, a := range c.Step(now.Add(time.Minute), Tick{}) {
		_, is := a.(PauseGuest)
		paused = paused || is
	}
	if !paused {
		t.Error("the guest runs on, a minute after its lease")
	}
}
