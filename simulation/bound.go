package simulation

import "time"

// maxAtOnce bounds what happens at one instant of the world: events, steps of a
// core, requests that are asked again. A core that has always something to do
// does it without time passing, and would never come back here.
const maxAtOnce = 5_000

// busy counts what happens at one instant.
type busy struct {
	at    time.Duration
	count int
}

// happens is told of everything that could go on for ever while the clock stands
// still.
func (w *world) happens() {
	if w.busy.at != w.now {
		w.busy = busy{at: w.now}
	}
	if w.busy.count++; w.busy.count > maxAtOnce {
		w.violated("the world stands still: more than %d things happen at one instant: %s", maxAtOnce, w.standing())
	}
}
