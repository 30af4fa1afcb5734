package transport

// Flow control of the sending side, and what it tells about the path. The
// receiver grants a window once and reports the cost of all it has consumed;
// both sides count the same costs, so a report can be checked. Since a report
// means "delivered and taken", reports also measure the path's throughput.

import (
	"fmt"
	"time"
)

// credit is used under the lock of its session's sending side.
type credit struct {
	window   uint64 // what the peer grants
	sent     uint64 // cost of all messages queued so far
	consumed uint64 // cost of all messages the peer has consumed

	// For the estimate: what had been sent by the last report, and where the
	// present sample began.
	sentThen   uint64
	beganAt    time.Time
	began      uint64  // consumed then
	throughput float64 // bytes per second, 0 until known
}

// minSample is the shortest time a sample of the throughput spans: reports come
// in bursts, and the time between two of a burst means nothing.
const minSample = 5 * time.Millisecond

// room reports whether a message of that cost may be sent now.
func (c *credit) room(cost uint64) bool { return c.sent-c.consumed+cost <= c.window }

// report takes in a credit frame.
func (c *credit) report(total uint64, now time.Time) error {
	if total < c.consumed || total > c.sent {
		return fmt.Errorf("%w: the peer reports %d bytes consumed; it was at %d, and %d were sent", ErrBadFrame, total, c.consumed, c.sent)
	}
	// A sample counts only if all that was consumed between two reports had
	// been sent before the first: else this side, not the path, was slow.
	took := now.Sub(c.beganAt)
	switch {
	case c.beganAt.IsZero() || total > c.sentThen:
		c.beganAt, c.began = now, total
	case took >= minSample:
		rate := float64(total-c.began) / took.Seconds()
		if c.throughput == 0 {
			c.throughput = rate
		}
		c.throughput += (rate - c.throughput) / 8
		c.beganAt, c.began = now, total
	}
	c.consumed, c.sentThen = total, c.sent
	return nil
}
