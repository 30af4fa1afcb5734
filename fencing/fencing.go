// Package fencing makes sure that a host is off: it decides when a silent one is
// fenced (Core, pure), and runs the commands that do it and look after it (Run).
//
//	a takeover from a host is asked for and not done ── After ──> Run
//	    failed: once more after Retry
//	    done: the ownership log is told, by package host
//
// What the log makes of it is in package ownership: the host gets no lease, and
// nobody waits for one that it had, nor for its locks.
package fencing

import (
	"time"

	"understudy/clock"
)

// Retry is the pause after a fencing that failed.
const Retry = 10 * time.Second

// Core decides when a host is fenced, for one guest. The zero Core has seen
// nothing.
type Core struct {
	host  string
	since clock.Instant // a takeover from host is asked for; 0: none is
	next  clock.Instant // not before
}

// Step says whether host is to be fenced now. asked: a takeover from it is asked
// for, or granted and not done, and it is not known to be off.
func (c *Core) Step(now clock.Instant, host string, asked bool, after time.Duration) bool {
	switch {
	case !asked:
		*c = Core{}
		return false
	case c.since == 0 || c.host != host:
		*c = Core{host: host, since: now}
	}
	return !now.Before(c.since.Add(after)) && !now.Before(c.next)
}

// Failed notes that it did not work.
func (c *Core) Failed(now clock.Instant) { c.next = now.Add(Retry) }

// Since is when the takeover was first seen to be asked for.
func (c *Core) Since() clock.Instant { return c.since }
