package simulation

import (
	"errors"
	"time"

	"understudy/epoch"
	"understudy/protocol"
)

// session is a connection between two daemons: messages arrive in order or the
// session is dead, which the two ends learn at different times.
type session struct {
	w       *world
	ends    [2]*end
	twisted bool // a message came twice, or out of order
}

type end struct {
	s     *session
	d     *daemon
	other *end
	open  bool
	due   time.Duration // when the last message to this end arrives
	stuck []func()      // messages that wait for a blocked way
	recv  func(m any)
	down  func(err error)
	after []func() // what the next message overtakes
}

// The messages beside protocol.Hello, protocol.Welcome and refusal.
type (
	refusal struct{ reason string }
	sent    struct { // an epoch
		generation epoch.Generation
		kind       epoch.Kind
		parent, at epoch.Position
		set        bits
		values     memory // of the pages in set
		device     state
		refs       []epoch.Reference
		writes     []epoch.DiskWrite
		disks      []byte // state of the disks
		disk       content
		known      bits     // of the disk's blocks
		request    *request // of the guest, in flight: for the oracle
		whole      memory   // what the image must be afterwards: for the oracle
		verify     bool
	}
	hashes  struct{ h epoch.DiskHashes }
	differs struct{ d epoch.DiskDiffers }
	ack     struct {
		at     epoch.Position
		filled epoch.Number // every reference up to it is
		hashed bool
		image  memory
	}
)

var (
	errSilent  = errors.New("nothing heard from the peer")
	errRefused = errors.New("connection refused: no daemon")
)

// heartbeat draws how long silence lasts before it counts as a loss.
func (w *world) heartbeat() time.Duration {
	return w.between(60*time.Millisecond, 250*time.Millisecond)
}

// dial opens a session from d to its peer.
func (w *world) dial(d *daemon, done func(e *end, err error)) {
	peer := d.h.peer
	w.after(w.between(500*time.Microsecond, 4*time.Millisecond), func() {
		to := peer.daemon
		if to == nil && peer.up && !w.blocked[d.h.index][peer.index] && !w.blocked[peer.index][d.h.index] {
			d.after(0, func() { done(nil, errRefused) })
			return
		}
		if to == nil || !peer.up || w.blocked[d.h.index][peer.index] || w.blocked[peer.index][d.h.index] {
			d.after(w.between(5*time.Millisecond, 50*time.Millisecond), func() { done(nil, errSilent) })
			return
		}
		s := &session{w: w}
		for i, x := range []*daemon{d, to} {
			s.ends[i] = &end{s: s, d: x, open: true, recv: func(any) {}, down: func(error) {}}
			x.ends = append(x.ends, s.ends[i])
		}
		s.ends[0].other, s.ends[1].other = s.ends[1], s.ends[0]
		to.accept(s.ends[1])
		d.after(0, func() { done(s.ends[0], nil) })
	})
}

// send queues one message to the other end.
func (e *end) send(m any) {
	if !e.open {
		return
	}
	w, o := e.s.w, e.other
	delay := w.between(100*time.Microsecond, 2*time.Millisecond)
	if w.chance(w.faults.slowLink) {
		delay = w.between(5*time.Millisecond, 120*time.Millisecond)
	}
	t := w.twist()
	if t == faultKinds && w.chance(w.faults.hostile) {
		t = faultTorn + fault(w.dice.IntN(2))
	}
	if t == faultDelayed {
		delay = w.between(10*time.Millisecond, 2*lease)
	}
	bring := func(m any) {
		o.due = max(o.due, w.now+delay)
		w.after(o.due-w.now, func() { o.arrive(func() { o.recv(m) }) })
	}
	carry := func() { bring(m) }
	switch t {
	case faultTorn:
		e.s.twisted = true
		bring(damaged{m})
		return
	case faultForged:
		e.s.twisted = true
		bring(w.forged(m))
	case faultLost: // what comes after it does not come, either
		e.open = false
		e.lost()
		return
	case faultDuplicated:
		e.s.twisted = true
		carry()
	case faultReordered:
		e.s.twisted = true
		e.after = append(e.after, carry)
		return
	}
	carry()
	for _, late := range e.after {
		late()
	}
	e.after = nil
}

// lost ends the session at both ends, which learn it from the network.
func (e *end) lost() {
	for _, x := range []*end{e, e.other} {
		x.d.after(e.s.w.between(0, 3*time.Millisecond), func() {
			if x.open || x == e {
				x.open = false
				x.down(errors.New("connection reset"))
			}
		})
	}
}

// arrive lets something from the other end happen here, unless the way is
// blocked: then when it is free again.
func (e *end) arrive(do func()) {
	if e.s.w.blocked[e.other.d.h.index][e.d.h.index] || len(e.stuck) > 0 {
		e.stuck = append(e.stuck, do)
		return
	}
	e.d.after(0, func() {
		if e.open {
			do()
		}
	})
}

// free delivers what was stuck.
func (e *end) free() {
	stuck := e.stuck
	e.stuck = nil
	for _, do := range stuck {
		e.arrive(do)
	}
}

// close ends the session from this end; the other hears of it, if it can.
func (e *end) close() {
	if !e.open {
		return
	}
	e.open = false
	w, o := e.s.w, e.other
	o.due = max(o.due, w.now+w.between(100*time.Microsecond, 2*time.Millisecond))
	w.after(o.due-w.now, func() { o.arrive(func() { o.fail(errors.New("the peer closed the session")) }) })
}

// fail ends the session at this end, which is told.
func (e *end) fail(err error) {
	if e.open {
		e.close()
		e.down(err)
	}
}

// silent ends the session at this end after a heartbeat's time, if by then
// still says so.
func (e *end) silent(still func() bool) {
	e.s.w.after(e.s.w.heartbeat(), func() {
		if still() {
			e.d.after(0, func() {
				if e.s.w.breach == acksWhileAsking && e.d.backup != nil && e.open {
					e.down(errSilent) // and goes on to listen
					return
				}
				e.fail(errSilent)
			})
		}
	})
}

// block stops everything from one host to the other.
func (w *world) block(from, to int) {
	w.blocked[from][to] = true
	if d := w.hosts[to].daemon; d != nil {
		for _, e := range d.ends {
			if e.open {
				e.silent(func() bool { return w.blocked[from][to] && e.open })
			}
		}
	}
}

func (w *world) unblock(from, to int) {
	w.blocked[from][to] = false
	if d := w.hosts[to].daemon; d != nil {
		for _, e := range d.ends {
			e.free()
		}
	}
}

// breakSessions resets every connection between the hosts.
func (w *world) breakSessions() {
	for _, h := range w.hosts {
		if h.daemon == nil {
			continue
		}
		for _, e := range h.daemon.ends {
			if e.open {
				e.d.after(w.between(0, 3*time.Millisecond), func() {
					if e.open {
						e.open = false
						e.down(errors.New("connection reset"))
					}
				})
			}
		}
	}
}

// position makes the next position of an image's history.
func (w *world) position(parent epoch.Position) epoch.Position {
	w.positions++
	p := epoch.Position{Image: parent.Image, Number: parent.Number + 1}
	for i := range 8 {
		p.Running[i] = byte(w.positions >> (8 * i))
	}
	return p
}

// hello is protocol.Hello as it goes over a session.
type hello = protocol.Hello
