// Package clock reads the clock that leases are measured by. It is
// CLOCK_BOOTTIME, which goes on while the machine is suspended (Go's own
// monotonic clock stands still then, and a lease would seem to live on).
package clock

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Instant is a point in time: the time since this machine booted, suspend
// included (clock_gettime(2), CLOCK_BOOTTIME). Instants of different machines,
// or of different boots, cannot be compared.
type Instant time.Duration

// Add returns the instant d later.
func (t Instant) Add(d time.Duration) Instant { return t + Instant(d) }

// Sub returns the time from u to t.
func (t Instant) Sub(u Instant) time.Duration { return time.Duration(t - u) }

// Before reports whether t is earlier than u.
func (t Instant) Before(u Instant) bool { return t < u }

func (t Instant) String() string { return time.Duration(t).String() }

// Clock tells the time. Boot is the real one; tests bring their own.
type Clock interface {
	Now() Instant
}

// Boot is the machine's CLOCK_BOOTTIME.
type Boot struct{}

// Now returns the time since boot, suspend included.
func (Boot) Now() Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// The kernel cannot refuse a valid clock and a valid pointer.
		panic(fmt.Sprintf("clock_gettime(CLOCK_BOOTTIME): %v", err))
	}
	return Instant(ts.Nano())
}

// Go is a Clock over Go's own time, for tests inside a testing/synctest
// bubble, where time.Now is the bubble's fake clock.
type Go struct{ Start time.Time }

// Now returns the time since Start.
func (c Go) Now() Instant { return Instant(time.Since(c.Start)) }
