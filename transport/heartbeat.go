package transport

// Pings, and the silence that ends a session. The pings themselves are written
// and answered by lane 0 (lane.go); any byte on any connection counts as heard.
// watch decides, and knows the time only from its caller; heartbeatLoop acts.

import (
	"fmt"
	"time"
)

// watch decides when to ping and when the silence has lasted too long.
type watch struct {
	interval, timeout time.Duration

	nextPing time.Time
	wakeAt   time.Time // when to ask again
	// forgiven is the last sign of life before this process itself stood
	// still, and grace until when the silence since then is not the peer's.
	forgiven, grace time.Time
}

// ask is to be called at wakeAt, with the time of the last sign of life. It
// says whether to ping now and whether the peer counts as silent.
func (w *watch) ask(now, heard time.Time) (ping, silent bool) {
	if now.Sub(w.wakeAt) > w.interval && !heard.Equal(w.forgiven) {
		// We were woken late: stopped, or starved of a processor. The peer's
		// signs of life may lie in the socket buffers, so the readers get one
		// interval, once, to find them.
		w.forgiven, w.grace = heard, now.Add(w.interval)
	}
	deadline := heard.Add(w.timeout)
	if heard.Equal(w.forgiven) && deadline.Before(w.grace) {
		deadline = w.grace
	}
	if !now.Before(deadline) {
		return false, true
	}
	if ping = !now.Before(w.nextPing); ping {
		w.nextPing = now.Add(w.interval)
	}
	w.wakeAt = w.nextPing
	if deadline.Before(w.wakeAt) {
		w.wakeAt = deadline
	}
	return ping, false
}

// heartbeatLoop sends a ping every interval and notices silence.
func (s *Session) heartbeatLoop() {
	w := watch{interval: s.cfg.HeartbeatInterval, timeout: s.cfg.HeartbeatTimeout, nextPing: s.start, wakeAt: s.start}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-timer.C:
		}
		now, heard := time.Now(), s.LastHeard()
		ping, silent := w.ask(now, heard)
		if silent {
			// A peer that hears us although we do not hear it would wait for the
			// end of what it did not acknowledge; a reset reaches it at once.
			for _, l := range s.lanes {
				resetOnClose(l.conn)
			}
			s.fail(fmt.Errorf("%w: nothing heard from %s for %v", ErrSilent, s.peer, now.Sub(heard).Round(time.Millisecond)))
			return
		}
		if ping {
			s.sendMu.Lock()
			s.due.ping = true
			s.wakeLane(s.lanes[0])
			s.sendMu.Unlock()
		}
		timer.Reset(w.wakeAt.Sub(now))
	}
}
