package primary

import (
	"errors"
	"testing"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

// TestAFailedCaptureLeavesTheEpochInFlightSealed: Hold makes what was sealed and
// not released part of a later epoch. The sender reads the writes of an epoch in
// flight when it encodes it, beside the loop: were Hold asked for then, the backup
// would acknowledge an epoch without its writes.
func TestAFailedCaptureLeavesTheEpochInFlightSealed(t *testing.T) {
	const lease = time.Second
	for _, lost := range []bool{false, true} {
		now, image := clock.Instant(time.Hour), epoch.NewIncarnation()
		state := ownership.Guest{Generation: 1, Revision: 1, Owner: "a", Phase: ownership.PhaseActive, Desired: ownership.Running}
		c := NewCore(DefaultConfig("web", "a", lease), state, true)
		c.mode, c.linked, c.image, c.firstWhole = ModeProtected, true, image, 1
		c.log.InSync, c.log.Backup = true, ownership.Backup{Host: "b", Image: image, Epoch: 1}
		c.sealed, c.acked, c.capturing = 7, 5, true // 6 is in flight, 7 is being captured
		c.sealedAt[6%maxWindow] = now
		c.Step(now, LeaseRenewed{Generation: 1, Until: now.Add(lease)})
		did := func(actions []Action) (hold bool, captured epoch.Number) {
			for _, a := range actions {
				switch a := a.(type) {
				case Hold:
					hold = true
				case Capture:
					captured = a.Number
				}
			}
			return hold, captured
		}
		if hold, n := did(c.Step(now, CaptureFailed{Number: 7, Err: errors.New("no device state")})); hold || n != 0 {
			t.Fatalf("with epoch 6 in flight: hold %v, capture of epoch %d", hold, n)
		}
		now = max(now, c.againAt)
		if hold, n := did(c.Step(now, Tick{})); hold || n != 0 {
			t.Fatalf("a moment later, with epoch 6 in flight: hold %v, capture of epoch %d", hold, n)
		}
		if lost {
			// The backup may have epoch 6, its next welcome says so: what comes of
			// that is told in testdata/capture-fails-link-lost.story.
			if hold, n := did(c.Step(now, LinkDown{Err: errors.New("reset")})); hold || n != 0 {
				t.Errorf("the session is lost with epoch 6 in flight: hold %v, capture of epoch %d", hold, n)
			}
			continue
		}
		if hold, n := did(c.Step(now, Acked{Number: 6})); !hold || n != 7 {
			t.Errorf("epoch 6 is acknowledged: hold %v, capture of epoch %d; want what was sealed to be held anew, and epoch 7", hold, n)
		}
	}
}
