package simulation

// What the oracle knows of handovers: what a backup has promised, how long it has
// been without a session, and in what state a guest was left.

import (
	"time"

	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
)

// promiseSlack is what a clock, a timer or a busy loop may be off by.
const promiseSlack = 100 * time.Millisecond

// promises are those of one host's backup.
type promises struct {
	to     *end          // the session on which it was given
	until  time.Duration // it waits,
	lie    bool          // or only says so
	lost   *backupShell  // has no session, and is in sync
	ask    time.Duration // when it has to have asked for a takeover
	leftAt state         // of the guest that this host left
}

// promised: a backup has answered that it waits so long.
func (o *oracle) promised(b *backupShell, wait time.Duration) {
	p := &o.promises[b.d.h.index]
	if p.to, p.until = b.session.e, b.w.now+wait; wait > protocol.MaxPatience {
		b.w.violated("rule H2: %s promises to wait %v", b.d.h.name, wait)
	}
	p.lie = b.w.faults.backupLies
}

// released: the primary has taken its bid back, or has come back.
func (o *oracle) freed(h *host) { o.promises[h.index] = promises{leftAt: o.promises[h.index].leftAt} }

// alone: a backup has lost its session.
func (o *oracle) alone(b *backupShell) {
	p := &o.promises[b.d.h.index]
	p.lost = nil
	if b.core.InSync() && !b.asked {
		p.lost, p.ask = b, max(b.w.now+lease/4, p.until)+promiseSlack
	}
}

// asks: a backup asks for a takeover by itself.
func (o *oracle) asks(b *backupShell, c ownership.Command) {
	p := &o.promises[b.d.h.index]
	b.asked, p.lost = true, nil
	if left := p.until - b.w.now; c.Kind == ownership.Takeover && left > time.Millisecond && b.core.Log().Phase != ownership.PhaseSurrendered && !p.lie {
		b.w.violated("rule H2: %s asks for a takeover, and has promised to wait for another %v", b.d.h.name, left)
	}
}

// patient checks, after every event, that no backup waits for longer than it has
// promised.
func (o *oracle) patient(w *world, h *host) {
	p := &o.promises[h.index]
	b := p.lost
	if b == nil || w.now < p.ask {
		return
	}
	d := h.daemon
	switch {
	case d == nil || d.backup != b || b.asked || b.session != nil || b.greeted != nil || !b.core.InSync():
		p.lost = nil
	case w.now < d.frozen+promiseSlack: // its timers come only now
		p.ask = d.frozen + promiseSlack
	case h.suspended > 0 && w.now < h.suspended+time.Second+promiseSlack: // its timers go on only then
		p.ask = h.suspended + time.Second + promiseSlack
	case b.busy: // it stood still in the middle of something
		p.ask = w.now + promiseSlack
	default:
		w.violated("rule H2: %s is in sync, has no session, and had promised to wait until %v", h.name, p.until)
	}
}

// leaves: the guest of a primary is left to the next daemon.
func (o *oracle) leaves(p *primaryShell, left primary.Left) {
	h, w := p.d.h, p.w
	o.promises[h.index].leftAt = p.guest.at
	if p.guest.running {
		w.violated("rule H1: the guest of %s runs, and is left to the next daemon", h.name)
	}
	if !left.Protected() {
		return
	}
	if held, ok := o.held[left.At.Image]; !ok || held != p.guest.at {
		w.violated("rule H1: %s leaves its guest at %v, the backup holds %v", h.name, p.guest.at, held)
	}
	promise := o.promises[h.peer.index]
	if promise.lie || p.link == nil || p.link.e.s.twisted || p.link.e.other != promise.to && promise.to != nil {
		return
	}
	if promise.until == 0 {
		w.violated("rule H1: %s leaves its guest, and the backup has not promised to wait", h.name)
	}
}

// goesOnFrom: the guest is gone on with as it was left.
func (o *oracle) goesOnFrom(p *primaryShell, left *primary.Left) {
	h := p.d.h
	if at := o.promises[h.index].leftAt; p.guest.at != at {
		p.w.violated("rule H5: %s goes on with its guest at %v as it was left at %v", h.name, p.guest.at, at)
	}
	if g := p.w.ledger.state.Generation; left.Generation > g {
		p.w.violated("rule H5: %s goes on in generation %d, the log's is %d", h.name, left.Generation, g)
	}
}

// oneActs: of the daemons of a host at most one has an open gate.
func (o *oracle) oneActs(w *world, h *host) {
	for _, x := range h.others {
		if x.gate.open() && h.daemon != nil && h.daemon.gate.open() {
			w.violated("rule H3: two daemons of %s have their gates open", h.name)
		}
	}
}

// The words of a handover on a session.
type (
	bid     struct{ wait time.Duration }
	promise struct{ wait time.Duration }
)

// heard is what a receiver makes of a patience that was sent.
func heard(wait time.Duration) (time.Duration, error) {
	return protocol.ParsePatience(protocol.AppendPatience(nil, wait))
}
