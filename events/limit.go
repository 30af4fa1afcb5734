package events

import (
	"time"

	"understudy/clock"
)

// A guest that cannot be started is tried again five times a second, and one
// that resets itself does so as often as it likes. The record is bounded: what
// comes too often must not push out what came once.
const (
	// burst is how many events of one guest and kind are recorded at once, and
	// refill the time after which there is one more. Some hundred drills in a
	// row fit.
	burst  = 128
	refill = 5 * time.Second
	// maxKeys bounds the pairs of guest and kind that are told apart. The guests
	// are those of the configuration, so it is only reached by mistake.
	maxKeys = 4096
)

// key is what is counted apart.
type key struct {
	guest string
	kind  Kind
}

// allowance is what one key has left: used is how far into the future its
// events have spent their time.
type allowance struct {
	used       clock.Instant
	suppressed uint64
}

type limiter map[key]allowance

// admit reports whether an event may be recorded now, and how many could not
// since the last that was.
func (l limiter) admit(now clock.Instant, k key) (suppressed uint64, ok bool) {
	a, known := l[k]
	if !known && len(l) >= maxKeys {
		k = key{}
		a = l[k]
	}
	if a.used.Before(now) {
		a.used = now
	}
	if a.used.Sub(now) > (burst-1)*refill {
		a.suppressed++
		l[k] = a
		return 0, false
	}
	suppressed = a.suppressed
	l[k] = allowance{used: a.used.Add(refill)}
	return suppressed, true
}
