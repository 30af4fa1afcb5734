package cell

// This file is what a suspend takes from a program of the guest. The guest cannot tell:
// all of a PVH domain's clocks stand still while it does not run. So the first domain
// watches the page's ticks, in a process that does nothing else.

import (
	"fmt"
	"time"
)

// Gap is a time without a tick, in nanoseconds of the first domain's CLOCK_MONOTONIC.
type Gap struct {
	From, To int64
}

// Watcher makes gaps of looks at the ticks. Its zero value has not looked yet.
type Watcher struct {
	Gaps []Gap

	ticks  uint64
	before int64 // when the look began before the one that saw them first
	last   int64 // when the last one began
}

// least is how long a gap is at least: less is the guest's own sleep.
const least = int64(8 * time.Millisecond)

// Look notes how many ticks there were at a moment between began and ended. A gap lasts
// from before its last tick to after the next: whoever looks late, or is held up while it
// looks, tells of no less.
func (w *Watcher) Look(began, ended int64, ticks uint64) {
	defer func() { w.last = began }()
	switch {
	case w.last == 0:
		w.before = began
	case ticks == w.ticks:
		return
	default:
		if ended-w.before >= least {
			w.Gaps = append(w.Gaps, Gap{w.before, ended})
		}
		w.before = w.last
	}
	w.ticks = ticks
}

// Match returns the gap of each epoch: the one in which it stood still.
func Match(epochs []Epoch, gaps []Gap) ([]time.Duration, error) {
	var all []time.Duration
	for i, e := range epochs {
		for len(gaps) > 0 && gaps[0].To < e.Stood {
			gaps = gaps[1:]
		}
		if len(gaps) == 0 {
			return nil, fmt.Errorf("epoch %d of %d: the guest stood still at %d, and has not been seen to tick since, or did at that moment", i, len(epochs), e.Stood)
		}
		if gaps[0].From > e.Stood {
			return nil, fmt.Errorf("epoch %d of %d: the guest ticked when it stood still, at %d: the next gap is from %d to %d", i, len(epochs), e.Stood, gaps[0].From, gaps[0].To)
		}
		all = append(all, time.Duration(gaps[0].To-gaps[0].From))
	}
	return all, nil
}
