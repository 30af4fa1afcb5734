package transport

// Pings, and the silence that ends a session. The pings themselves are written
// and answered by lane 0 (lane.go); any byte on any connection counts as heard.

import (
	"fmt"
	"time"
)

// heartbeatLoop sends a ping every interval and notices silence.
func (s *Session) heartbeatLoop() {
	now := time.Now()
	nextPing, wakeAt := now, now
	timer := time.NewTimer(0)
	defer timer.Stop()
	var forgiven, grace time.Time
	for {
		select {
		case <-s.done:
			return
		case <-timer.C:
		}
		now = time.Now()
		heard := s.LastHeard()
		if now.Sub(wakeAt) > s.cfg.HeartbeatInterval && !heard.Equal(forgiven) {
			// This process itself stood still (stopped, starved of a processor).
			// The peer's signs of life may lie in the socket buffers: give the
			// readers one interval, once, before the silence is the peer's.
			forgiven, grace = heard, now.Add(s.cfg.HeartbeatInterval)
		}
		deadline := heard.Add(s.cfg.HeartbeatTimeout)
		if heard.Equal(forgiven) && deadline.Before(grace) {
			deadline = grace
		}
		if !now.Before(deadline) {
			s.fail(fmt.Errorf("%w: nothing heard from %s for %v", ErrSilent, s.peer, now.Sub(heard).Round(time.Millisecond)))
			return
		}
		if !now.Before(nextPing) {
			nextPing = now.Add(s.cfg.HeartbeatInterval)
			s.sendMu.Lock()
			s.due.ping = true
			s.wakeLane(s.lanes[0])
			s.sendMu.Unlock()
		}
		wakeAt = nextPing
		if deadline.Before(wakeAt) {
			wakeAt = deadline
		}
		timer.Reset(wakeAt.Sub(now))
	}
}
