package primary

import (
	"time"

	"understudy/clock"
	"understudy/epoch"
)

// effort chooses how hard the encoder works. It compares, epoch by epoch, the
// time the sender spent encoding with the time it waited for the network. A
// network that is waited for deserves more work per byte; an encoder that is
// waited for, less. Only the sender uses it.
type effort struct {
	clock           clock.Clock
	level           epoch.Effort
	encoding, wire  time.Duration // of this epoch
	since           clock.Instant
	lean, fat       int // epochs in a row that asked for less, for more
	started, onWire bool
}

// patience is how many epochs in a row must agree before the level changes, so
// that one slow epoch does not.
const patience = 8

// start begins an epoch.
func (e *effort) start(c clock.Clock) *effort {
	if !e.started {
		e.started, e.level = true, epoch.EffortFull
	}
	e.clock, e.since = c, c.Now()
	e.encoding, e.wire, e.onWire = 0, 0, false
	return e
}

// pause and resume bracket a wait for the network.
func (e *effort) pause()  { e.encoding += e.lap() }
func (e *effort) resume() { e.wire += e.lap() }

func (e *effort) lap() time.Duration {
	now := e.clock.Now()
	d := now.Sub(e.since)
	e.since = now
	return d
}

// effort returns the level for this epoch.
func (e *effort) effort(c Compression) epoch.Effort {
	switch c {
	case CompressNone:
		return epoch.EffortNone
	case CompressDelta:
		return epoch.EffortDelta
	case CompressFull:
		return epoch.EffortFull
	}
	return e.level
}

// done ends an epoch and learns from it. Tiny epochs teach nothing.
func (e *effort) done(s epoch.EpochStats) {
	e.encoding += e.lap()
	if s.WireBytes < 64<<10 {
		return
	}
	switch {
	case e.wire > e.encoding:
		e.fat, e.lean = e.fat+1, 0
	case e.wire*4 < e.encoding:
		e.lean, e.fat = e.lean+1, 0
	default:
		e.lean, e.fat = 0, 0
	}
	switch {
	case e.fat >= patience && e.level < epoch.EffortFull:
		e.level++
		e.fat = 0
	case e.lean >= patience && e.level > epoch.EffortDelta:
		e.level--
		e.lean = 0
	}
}
