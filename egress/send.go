package egress

import (
	"errors"
	"fmt"

	"understudy/clock"
)

// send writes what may leave to the network until the gate is closed.
func (g *Gate) send() {
	for {
		select {
		case <-g.kick:
		case <-g.done:
			return
		}
		for {
			more, err := g.sendBatch()
			if err != nil {
				g.fail("network", err)
				return
			}
			if !more {
				break
			}
		}
	}
}

// sendBatch writes the next frames that may leave. The look at the clock and
// the writes are one step under out (RULES 8): a process that is stopped
// between them finds the kernel's gate shut, because nobody could renew it
// meanwhile.
func (g *Gate) sendBatch() (more bool, err error) {
	g.out.Lock()
	defer g.out.Unlock()
	g.mu.Lock()
	g.writing = g.writing[:0]
	if g.mode != ModeShut {
		g.writing = g.ring.view(g.writing, batch)
	}
	first := g.ring.first
	g.mu.Unlock()
	if len(g.writing) == 0 {
		return false, nil
	}
	if !g.inTime() {
		g.count.late.Add(1)
		return false, nil // Allow will send them
	}
	g.note(Note{What: NoteLeave, Position: first, Frames: len(g.writing)})
	done, bytes, lost := 0, 0, 0
	for _, frame := range g.writing {
		err = g.network.WriteFrame(frame)
		switch {
		case passedOn(err):
			lost++
			err = nil
		case err == nil:
			bytes += len(frame)
		}
		if err != nil {
			break // this frame and those behind it stay held
		}
		done++
	}
	g.mu.Lock()
	g.ring.drop(done)
	g.mu.Unlock()
	g.count.sent.Add(uint64(done - lost))
	g.count.sentBytes.Add(uint64(bytes))
	g.count.lost.Add(uint64(lost))
	signal(g.room)
	if g.first != nil && done > lost {
		first := g.first
		g.first = nil
		first()
	}
	return err == nil, err
}

// OnFirst lets f be called, once, when the network has taken the next frame of
// the guest, announcements not counted; nil: nobody is told any more. f is called
// under the gate's locks: it must not wait, nor call the gate.
func (g *Gate) OnFirst(f func()) {
	g.out.Lock()
	defer g.out.Unlock()
	g.first = f
}

// passedOn reports whether err means a lost frame on a link that goes on.
func passedOn(err error) bool {
	return errors.Is(err, ErrNotTaken) || errors.Is(err, ErrFrameSize)
}

// inTime reports whether a frame may leave now. Its caller holds out.
func (g *Gate) inTime() bool { return g.clock.Now().Before(g.until.Add(-g.guard)) }

// Allow lets frames leave until the lease ends at until, less the guard time:
// the only thing that opens the gate in time. Frames that were due while no
// lease held leave now. After an error the former end stands.
func (g *Gate) Allow(until clock.Instant) error {
	g.out.Lock()
	defer g.out.Unlock()
	g.note(Note{What: NoteAllow, Until: until})
	if err := g.refresh(until); err != nil {
		return err
	}
	g.until = until
	signal(g.kick)
	return nil
}

// refresh sets the kernel's gate to shut before until; its caller holds out.
// The kernel counts from when it was told, not from when the clock was read. A
// process that was stopped in between has set a limit that lasts too long: it
// sets another one, or takes it back, before it lets go of the lock without
// which nothing is written (RULES 8). Each turn takes half a guard or more, so
// the lease bounds the turns.
func (g *Gate) refresh(until clock.Instant) error {
	if g.limit == nil || g.shut.Load() {
		return nil
	}
	// The kernel's gate shuts between the last write and the lease's end.
	end := until.Add(-g.guard / 2)
	for {
		now := g.clock.Now()
		if !now.Before(end) {
			if err := g.limit.Shut(); err != nil {
				return fmt.Errorf("taking back an egress lease that has ended: %w", err)
			}
			return nil
		}
		if err := g.limit.Open(end.Sub(now)); err != nil {
			return fmt.Errorf("renewing the egress lease: %w", err)
		}
		if g.clock.Now().Sub(now) < g.guard/2 {
			return nil
		}
	}
}

// receive moves frames from the network to the guest until the gate is closed.
func (g *Gate) receive() {
	buf := make([]byte, MaxFrame+1)
	for {
		err := g.network.Wait()
		if err == nil {
			err = g.receiveBatch(buf)
		}
		if err != nil {
			g.fail("network", err)
			return
		}
	}
}

func (g *Gate) receiveBatch(buf []byte) error {
	g.in.Lock()
	defer g.in.Unlock()
	for range batch {
		n, err := g.network.ReadFrame(buf)
		if errors.Is(err, ErrEmpty) {
			return nil
		}
		if err != nil {
			return err
		}
		if g.shut.Load() {
			g.count.inRefused.Add(1)
			continue
		}
		switch err := g.guest.WriteFrame(buf[:n]); {
		case passedOn(err):
			g.count.inLost.Add(1)
		case err != nil:
			return err
		default:
			g.count.in.Add(1)
			g.count.inBytes.Add(uint64(n))
		}
	}
	return nil
}
