// Package events is the record of what happened to each guest on this host: the
// timelines of drills, RTO and RPO, the dashboard and `understudy events` are
// made of it.
//
//	primary, backup, host, daemon ── Add ──> Log: ring ── writer ──> state/events/*.jsonl
//	                                          │                           │
//	                        Since, Newest, Follow <───────────────────────┘ what the ring has no more
//
// An Event is one fact, told when it became one, and only then: nothing is
// recorded per epoch or per frame. What a host is now is its status, not its
// record: the record may lack what came too often (Event.Suppressed), and ends
// with a host that lost power.
//
// The files, in the order of the way: events.go and kinds.go (what is said),
// line.go (how it is written), limit.go (how often), log.go (the ring, and Add),
// writer.go and files.go (the disk), read.go and filter.go (readers).
package events

import (
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

// Event is one entry of the record, and one line of JSON: the names of the
// fields are the format. A field may be added, never renamed, and none is used
// for anything else; a reader passes over those that it does not know. Fields
// that say nothing are left out.
type Event struct {
	// Seq numbers the events of one host, from 1; it goes on over restarts. A
	// gap means events that were lost, see Log.
	Seq uint64 `json:"seq"`
	// At is the wall clock, for people. Boot is CLOCK_BOOTTIME, in nanoseconds:
	// intervals are right whatever is done to the clock, within one boot of one
	// host, which BootID names.
	At     time.Time     `json:"time"`
	Boot   clock.Instant `json:"boot_ns"`
	BootID string        `json:"boot_id,omitempty"`

	Host  ownership.HostID `json:"host"`            // whose record this is
	Guest string           `json:"guest,omitempty"` // "" for what concerns the host
	Kind  Kind             `json:"kind"`
	Text  string           `json:"text"` // one sentence for people

	Generation epoch.Generation `json:"generation,omitempty"`
	Epoch      epoch.Number     `json:"epoch,omitempty"`
	// Change is what it was and what it is: owners, roles, modes, leaders, as
	// the Kind says.
	Change Change           `json:"change,omitzero"`
	Peer   ownership.HostID `json:"peer,omitempty"` // the other host
	Reason Reason           `json:"reason,omitempty"`
	// Duration is how long that lasted which ends with this event; Kind says
	// what. In nanoseconds.
	Duration time.Duration `json:"duration_ns,omitempty"`

	// Missed counts the events, of whatever kind, that a KindMissed stands for.
	Missed uint64 `json:"missed,omitempty"`
	// Suppressed counts events of this guest and Kind that were not recorded
	// before this one, because they came too often.
	Suppressed uint64 `json:"suppressed,omitempty"`
}

// Change is one thing before and after. An empty From or To means none.
type Change struct {
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Until returns the time from e to later. It is exact if both were told in one
// boot of one host; otherwise it is as good as the hosts' wall clocks.
func (e Event) Until(later Event) (d time.Duration, exact bool) {
	if e.Host == later.Host && e.BootID != "" && e.BootID == later.BootID {
		return later.Boot.Sub(e.Boot), true
	}
	return later.At.Sub(e.At), false
}

// About rounds d to three digits, for a Text; Duration has it as it is.
func About(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d.Abs()/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}
