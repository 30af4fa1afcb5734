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

	// For the estimate: the last report, and what had been sent by then.
	reportAt   time.Time
	sentThen   uint64
	throughput float64 // bytes per second, 0 until known
}

// room reports whether a message of that cost may be sent now.
func (c *credit) room(cost uint64) bool { return c.sent-c.consumed+cost <= c.window }

// report takes in a credit frame.
func (c *credit) report(total uint64, now time.Time) error {
	if total < c.consumed || total > c.sent {
		return fmt.Errorf("%w: the peer reports %d bytes consumed; it was at %d, and %d were sent", ErrBadFrame, total, c.consumed, c.sent)
	}
	// The sample counts only if all that was consumed since the last report had
	// been sent before it: otherwise this side, not the path, was slow.
	if took := now.Sub(c.reportAt); !c.reportAt.IsZero() && total <= c.sentThen && took > 0 {
		rate := float64(total-c.consumed) / took.Seconds()
		if c.throughput == 0 {
			c.throughput = rate
		} else {
			c.throughput += (rate - c.throughput) / 8
		}
	}
	c.consumed, c.reportAt, c.sentThen = total, now, c.sent
	return nil
}
