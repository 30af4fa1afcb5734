package simulation

// The end of a daemon in good order, and the one that goes on after it: what
// cmd/daemon/upgrade.go, host/handover.go and host/left.go do.
//
//	upgrade ─ a new daemon is ready ─ the leadership goes to another voter ─>
//	   the guest is asked for ─┬─ left, or there is none: close ─> passOn ─> up
//	                           └─ not in time: stay, as it was
//	close: the gate is shut, what is left is noted on the host, everything is closed
//	passOn: the new daemon opens everything; if it fails, the old one begins anew
//
// What has to hold of it, beside the guarantees (oracle: promises.go):
//
//	H1 A protected guest is left only when its last epoch is acknowledged and its
//	   backup has promised to wait.
//	H2 The promise is kept for as long as it says, and no longer.
//	H3 One daemon of a host acts at a time: the new one not before everything is
//	   its own, the old one not after, unless the new one has ended.
//	H4 A daemon acts on leases that it has asked for itself.
//	H5 What is left is gone on from once, in the generation in which it was left,
//	   and with all that was dirty.

import (
	"time"

	"understudy/backup"
	"understudy/epoch"
	"understudy/ownership"
	"understudy/primary"
)

// The times of cmd/daemon/upgrade.go, successor.go and backup.go, in the same
// order, shortened as the lease is.
const (
	patience     = 2 * lease // of primary.Config
	handoverTime = lease * 3 / 2
	guestsTime   = lease * 8 / 5
	declineTime  = lease / 4
)

// leaving is a daemon on its way to its end.
type leaving struct {
	next *daemon // takes its place; nil: another one is started later
	up   bool    // next takes part: nobody looks after it any more
}

// upgrade begins the end of the daemon. alone: it got a signal, and whoever
// supervises it starts another one; else the new one is started first.
func (d *daemon) upgrade(alone bool) {
	w := d.w
	if d.leaving != nil {
		return
	}
	l := &leaving{}
	if !alone {
		l.next = newDaemon(d.h)
		w.upgrade = l
		if w.at(d, stepSuccessor) || d.leaving != nil {
			return
		}
		if !l.next.alive || w.chance(w.faults.successorFails/4) {
			w.say(d.h.name, "the new daemon refuses, or ends before it is ready")
			return
		}
		w.say(d.h.name, "a new daemon is ready")
	}
	d.leaving, w.upgrade = l, l
	if w.breach == successorEarly && l.next != nil {
		d.h.others = append(d.h.others, d)
		d.h.daemon = l.next
		l.next.open()
		return
	}
	if w.ledger.reign != nil && w.chance(0.5) { // it leads
		if w.at(d, stepLeadership) {
			return
		}
		w.ledger.elect(w.between(5*time.Millisecond, 60*time.Millisecond))
	}
	d.after(w.between(0, 5*time.Millisecond), func() { d.askToLeave(l) })
}

func (d *daemon) askToLeave(l *leaving) {
	p := d.primary
	switch {
	case p != nil:
		p.post(primary.Asked{Request: primary.RequestHandover})
		if !p.ended && p.core.Leaving() != primary.RequestHandover {
			d.stay(l, "it is being handed to its backup, or stopped")
			return
		}
		d.after(handoverTime, func() {
			if d.leaving != l || p.ended {
				return
			}
			if d.w.at(d, stepTooLong) {
				return
			}
			p.post(primary.Remain{Why: "it took too long"})
			if d.leaving == l && !p.ended {
				d.stay(l, "it took too long")
			}
		})
	case d.role == "booting" || d.role == "recovering" || d.role == "yielding":
		d.stay(l, "this host is "+d.role)
	default:
		d.depart(l)
	}
}

// stay gives the end up: the guest goes on here. A daemon that got a signal ends
// all the same.
func (d *daemon) stay(l *leaving, why string) {
	if d.leaving != l {
		return
	}
	d.w.say(d.h.name, "the upgrade is given up: %s", why)
	if l.next == nil {
		d.depart(l)
		return
	}
	died := d.w.at(d, stepStay)
	l.next.alive = false
	d.leaving = nil
	if died || d.role != "left" {
		return
	}
	d.manage()
}

// handedOver: the guest stands still for the next daemon, or for this one.
func (d *daemon) handedOver(left primary.Left) {
	d.as("left")
	d.left = &left
	switch l := d.leaving; {
	case l == nil:
		d.after(0, d.manage)
	case d.w.chance(d.w.faults.othersStay): // another guest of this host cannot be left
		d.after(d.w.between(0, handoverTime), func() { d.stay(l, "another guest stays") })
	default:
		d.after(d.w.between(0, 3*time.Millisecond), func() { d.depart(l) })
	}
}

// depart ends the roles that are left, and then the daemon.
func (d *daemon) depart(l *leaving) {
	if d.leaving != l {
		return
	}
	if b := d.backup; b != nil {
		b.leave(func() { d.close(l) })
		return
	}
	if p := d.primary; p != nil { // it was not left, and will be found
		p.ended = true
		p.disconnect()
	}
	d.close(l)
}

// close closes everything.
func (d *daemon) close(l *leaving) {
	h, w := d.h, d.w
	if !d.alive {
		return
	}
	if w.breach != gateLeftOpen {
		d.gate.shut()
		d.gate.discard()
	}
	if d.left != nil && d.guest != nil {
		for page := range pages { // a guest is not let go of before it has all of its memory
			_ = d.guest.touch(page) // what cannot be had is missing: it is not adopted
		}
		if w.at(d, stepClose) {
			return
		}
		if d.left.Protected() {
			h.left, d.guest.still = d.left, true
		}
	}
	d.after(0, func() { // as soon as the host is awake
		h.killDaemon(false)
		if w.breach == gateLeftOpen {
			h.others = append(h.others, d)
		}
		if l.next == nil {
			w.after(w.between(5*time.Millisecond, lease/2), h.boot)
			return
		}
		w.after(w.between(500*time.Microsecond, 3*time.Millisecond), func() { h.passOn(l) })
	})
}

// passOn gives everything to the new daemon, and looks after it until it takes
// part. If it does not, the old one begins a new life.
func (h *host) passOn(l *leaving) {
	w, next := h.w, l.next
	if !h.up || h.daemon != nil {
		return // the host has lost its power since
	}
	if !next.alive {
		h.goOnAfter()
		return
	}
	h.daemon = next
	next.died = func() {
		if !l.up {
			w.after(w.between(0, 3*time.Millisecond), h.goOnAfter)
		}
	}
	if w.at(next, stepPassOn) {
		return
	}
	next.open()
	if w.chance(w.faults.successorFails) {
		next.after(w.between(0, guestsTime/4), func() {
			if !l.up {
				w.say(h.name, "the new daemon fails")
				h.killDaemon(false)
			}
		})
	}
	next.comesUp(l)
	w.after(guestsTime, func() {
		if l.up || !next.alive || h.daemon != next {
			return
		}
		w.say(h.name, "the new daemon did not come up")
		if w.breach == formerGoesOn {
			h.others = append(h.others, next)
			h.daemon = nil
			h.goOnAfter()
			return
		}
		h.killDaemon(false)
	})
}

// comesUp tells the old daemon that this one takes part, as soon as the guest that
// was left is gone on with, or adopted, or ended; or that takes too long.
func (d *daemon) comesUp(l *leaving) {
	found, until := d.h.guest != nil, d.w.now+guestsTime/2
	var look func()
	look = func() {
		if found && (d.role == "" || d.role == "recovering") && d.w.now < until {
			d.after(5*time.Millisecond, look)
			return
		}
		if !d.w.at(d, stepUp) {
			d.after(0, func() { l.up = true }) // as soon as it is awake
		}
	}
	d.after(d.w.between(0, 10*time.Millisecond), look)
}

// goOnAfter begins another life of the old daemon, whose new one has ended.
func (h *host) goOnAfter() {
	if !h.up || h.daemon != nil {
		return
	}
	d := newDaemon(h)
	h.daemon = d
	if h.w.at(d, stepKept) {
		return
	}
	h.w.say(h.name, "the old daemon goes on")
	d.open()
}

// takeLeft takes what a former daemon here has left of its guest, which is no
// longer true once anybody has had it.
func (d *daemon) takeLeft() *primary.Left {
	left := d.h.left
	if d.w.breach != leftTwice {
		d.h.left = nil
	}
	return left
}

// goesOn reports whether the guest found here is gone on with as it was left.
func (d *daemon) goesOn(left *primary.Left, g *guest, st ownership.Guest) bool {
	return left != nil && (g.still || d.w.breach == leftTwice) && left.Continues(st, d.h.id)
}

// leaveAs is what is left of the guest.
func (p *primaryShell) leaveAs() primary.Left {
	left := primary.Left{Generation: p.generation}
	l := p.link
	if l == nil {
		return left
	}
	at := l.sent[0]
	leaves := p.core.Leaves(l.sent)
	if p.w.breach == leftUnacked && len(l.sent) > 1 {
		at, leaves = l.sent[len(l.sent)-1], true
	}
	if !leaves {
		return left
	}
	p.restore()
	p.d.set.Void()
	own := epoch.NewPageSet(pages)
	p.d.set.CollectDirty(own)
	p.pending |= p.guest.dirty | bitsOf(own)
	p.guest.dirty = 0
	left.Backup, left.At, left.PrintKey, left.Dirty = p.d.h.peer.id, at, p.d.key, epoch.NewPageSet(pages)
	for page := range pages {
		if p.pending&(1<<page) != 0 && p.w.breach != leftClean {
			left.Dirty.Add(epoch.GFN(page))
		}
	}
	return left
}

// goOn makes the primary that of a guest which was left.
func (p *primaryShell) goesOn(left *primary.Left) {
	if left == nil || !p.core.Continue(*left) {
		return
	}
	p.w.oracle.goesOnFrom(p, left)
	if h := p.d.h; p.w.breach == leftTwice && h.daemon == p.d {
		p.d.after(p.w.between(0, 60*time.Millisecond), func() { p.w.faults.daemonOf(h) })
	}
	p.continues = true
	p.known, p.pending = []epoch.Position{left.At}, bitsOf(left.Dirty)
	p.d.set.Equal()
	if p.w.breach == leaseAssumed {
		p.d.gate.allow(p.d.clock().Add(lease))
	}
}

// leave is this process's end for its image, which the log is told of.
func (b *backupShell) leave(done func()) {
	b.ended, b.d.backup = true, nil
	for _, a := range b.core.Step(b.d.clock(), backup.Leaving{}) {
		switch a := a.(type) {
		case backup.Drop:
			b.drop()
		case backup.Propose:
			if b.w.at(b.d, stepDecline) {
				return
			}
			told, last := false, done
			end := func() {
				if !told {
					told = true
					last()
				}
			}
			done = func() {}
			b.w.ledger.propose(b.d, a.Command, declineTime, func(ownership.Guest, error) { end() })
		}
	}
	done()
}

// handover reports whether a step is one of a daemon's end, or of its successor's
// beginning.
func (s step) handover() bool { return s >= stepSuccessor && s <= stepContinue }
