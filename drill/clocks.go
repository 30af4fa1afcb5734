package drill

// The hosts' clocks against the drill's own: each is asked some times, and the
// quickest answer counts. What a host's record says is converted by it, with half
// of that round trip as the error.

import (
	"context"
	"slices"
	"time"

	"understudy/events"
	"understudy/ownership"
)

// trips is how often a clock is asked.
const trips = 8

// measured is a reading of a host's clocks, at a time of the drill's.
type measured struct {
	reading Reading
	at      time.Duration
	error   time.Duration
	trips   int
}

// measure asks a host for its clocks.
func measure(ctx context.Context, c Cluster, at ownership.HostID, began time.Time) (best measured, err error) {
	for range trips {
		call, cancel := context.WithTimeout(ctx, askTime)
		asked := time.Since(began)
		var got Reading
		got, err = c.Clock(call, at)
		cancel()
		if err != nil {
			return best, err
		}
		heard := time.Since(began)
		if !got.Asked.IsZero() && !got.Heard.IsZero() { // without what it took to connect
			asked, heard = got.Asked.Sub(began), got.Heard.Sub(began)
		}
		if half := (heard - asked) / 2; best.trips == 0 || half < best.error {
			best.reading, best.at, best.error = got, asked+half, half
		}
		best.trips++
	}
	return best, nil
}

// offset is the measurement as the report has it.
func (m measured) offset(h ownership.HostID, began time.Time) Offset {
	return Offset{Host: h, Offset: m.reading.Time.Sub(began.Add(m.at)), Error: m.error, Trips: m.trips}
}

// wallTime converts a host's wall clock.
func (m measured) wallTime(t, began time.Time) (at, give time.Duration) {
	if m.trips == 0 {
		return t.Sub(began), 0
	}
	return m.at + t.Sub(m.reading.Time), m.error
}

// event converts an event's time: by the boot clock if that is the same boot's,
// else by the wall clock.
func (m measured) event(e events.Event, began time.Time) (at, give time.Duration) {
	if m.trips > 0 && e.BootID != "" && e.BootID == m.reading.BootID {
		return m.at + e.Boot.Sub(m.reading.Boot), m.error
	}
	return m.wallTime(e.At, began)
}

// median is the middle of all, 0 of none.
func median(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}
