package simulation

// The shell around primary.Core: what primary/primary.go, capture.go, link.go
// and log.go do, without the goroutines.

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
)

type primaryShell struct {
	d          *daemon
	w          *world
	guest      *guest
	core       *primary.Core
	generation epoch.Generation
	wake       int // number of the timer that is set
	ended      bool

	dialing  int // number of the attempt under way; 0: none
	attempts int
	link     *link
	known    []epoch.Position
	pending  bits
	inflight []flight
	until    clock.Instant // the lease, as the core has heard of it
	from     clock.Instant // when this primary began
	verify   bool
}

type link struct {
	e       *end
	at      epoch.Position   // of the last epoch sent
	sent    []epoch.Position // the last acknowledged, then those in flight
	expects map[epoch.Number]memory
}

type flight struct {
	number epoch.Number
	set    bits
}

func newPrimary(d *daemon, st ownership.Guest, running bool) *primaryShell {
	cfg := primary.DefaultConfig("web", d.h.id, lease)
	cfg.SyncStep, cfg.SyncEnough = 8, 4
	p := &primaryShell{d: d, w: d.w, guest: d.guest, core: primary.NewCore(cfg, st, running),
		generation: st.Generation, pending: everyPage, from: d.clock(), verify: d.w.faults.verifyAll}
	return p
}

func (p *primaryShell) protected() bool { return !p.ended && p.core.Mode() == primary.ModeProtected }

func (p *primaryShell) start() {
	p.d.after(0, p.renew)
	p.d.after(0, func() { p.post(primary.LogApplied{State: p.w.ledger.views[p.d.h.index]}) })
	p.post(primary.Tick{})
}

// post feeds an event, and what follows from it at once, to the core.
func (p *primaryShell) post(ev primary.Event) {
	for queue := []primary.Event{ev}; len(queue) > 0 && !p.ended && p.d.alive; queue = queue[1:] {
		before := p.core.Mode()
		if p.w.tell {
			if _, tick := queue[0].(primary.Tick); !tick {
				p.w.say(p.d.h.name, "  %s", show(queue[0]))
			}
		}
		for _, a := range p.core.Step(p.d.clock(), queue[0]) {
			if p.w.tell {
				p.w.say(p.d.h.name, "    -> %s", show(a))
			}
			if p.w.faults.strike(p.d) {
				return // the daemon died between two actions
			}
			if next := p.do(a); next != nil {
				queue = append(queue, next)
			}
		}
		if now := p.core.Mode(); now != before {
			p.w.oracle.visits[now.String()]++
			p.w.say(p.d.h.name, "  = %v", now)
		}
	}
	if !p.ended && p.d.alive {
		p.wake++
		n := p.wake
		p.d.after(p.d.wait(p.core.NextWake()), func() {
			if n == p.wake && !p.ended {
				p.post(primary.Tick{})
			}
		})
	}
}

// later posts an event that comes from another goroutine.
func (p *primaryShell) later(ev primary.Event) {
	p.d.after(0, func() { p.post(ev) })
}

func (p *primaryShell) do(a primary.Action) primary.Event {
	gate := p.d.gate
	switch a := a.(type) {
	case primary.SyncStep:
		return p.capture(a.Number, epoch.KindSync, false)
	case primary.Capture:
		return p.capture(a.Number, epoch.KindCheckpoint, a.Final)
	case primary.Forget:
		for len(p.inflight) > 0 && p.inflight[0].number <= a.Through {
			p.inflight = p.inflight[1:]
		}
	case primary.Restore:
		if p.w.breach != restoreMissing {
			p.restore()
		}
	case primary.Refill:
		p.restore()
		if p.w.breach != refillMissing {
			p.pending = everyPage
		}
	case primary.Release:
		gate.release(a.Through)
	case primary.Hold:
		if p.w.breach == holdLate && p.core.Mode() == primary.ModeEntering {
			return nil
		}
		gate.enter(gateHold)
	case primary.Pass:
		gate.enter(gatePass)
	case primary.Shut:
		if p.w.breach != shutMissing {
			gate.shut()
		}
	case primary.PauseGuest:
		if p.w.breach != pauseMissing {
			p.guest.pause()
		}
	case primary.ResumeGuest:
		p.guest.resume()
	case primary.Propose:
		switch {
		case a.Command.Kind == ownership.InSync && p.w.images[a.Command.Backup.Image].bad:
			p.w.violated("image %v is proposed as in sync, and known to differ", a.Command.Backup.Image)
		case p.w.breach == passEarly && a.Command.Kind == ownership.OutOfSync:
			gate.enter(gatePass)
		case p.w.breach == holdLate && a.Command.Kind == ownership.InSync:
			p.d.after(3*time.Millisecond, func() { gate.enter(gateHold) })
		}
		p.w.ledger.propose(p.d, a.Command, max(2*lease, 2*time.Second), func(st ownership.Guest, err error) {
			p.post(primary.Proposed{Command: a.Command, State: st, Err: err})
		})
	case primary.UseGeneration:
		p.generation = a.Generation
	case primary.Connect:
		p.connect()
	case primary.Disconnect:
		p.disconnect()
	case primary.Warn:
	case primary.End:
		p.ended = true
		p.disconnect()
		p.d.primaryEnded(a.Outcome)
	}
	return nil
}

// capture takes an epoch and sends it.
func (p *primaryShell) capture(n epoch.Number, kind epoch.Kind, final bool) primary.Event {
	g, failed := p.guest, func(err error) primary.Event { return primary.CaptureFailed{Number: n, Err: err} }
	check := kind == epoch.KindCheckpoint
	if check {
		g.pause()
		defer func() {
			if !final {
				g.resume()
			}
		}()
		if g.gone {
			return failed(errors.New("there is no guest"))
		}
		if p.w.chance(p.w.faults.captureFails / 2) {
			final = false
			return failed(errors.New("the device state was not saved"))
		}
		if err := p.d.gate.seal(n); err != nil {
			final = false
			return failed(err)
		}
	}
	set := p.pending | g.dirty
	p.pending, g.dirty = 0, 0
	if p.w.chance(p.w.faults.captureFails / 2) {
		p.pending, final = everyPage, false
		return failed(errors.New("the dirty pages were not collected"))
	}
	if !check {
		p.pending, set = set, 0
		for i, left := 0, 4; i < pages && left > 0; i++ {
			if p.pending&(1<<i) != 0 {
				set |= 1 << i
				left--
			}
		}
		p.pending &^= set
	}
	if !(p.w.breach == forgetOnSend && check) {
		p.inflight = append(p.inflight, flight{n, set})
	}
	p.sendEpoch(n, kind, set)
	if p.w.breach == releaseOnSend {
		p.d.gate.release(n)
	}
	left := uint64(0)
	for i := range pages {
		left += uint64(p.pending >> i & 1)
	}
	stalled := check && p.w.chance(p.w.faults.captureFails/4)
	if l := p.link; stalled {
		p.d.after(0, func() { l.e.fail(errors.New("the backup takes nothing")) })
	}
	return primary.Captured{Number: n, Kind: kind, Remaining: left, Stalled: stalled,
		Cost: primary.Cost{Pause: time.Millisecond, Held: len(p.d.gate.held)}}
}

func (p *primaryShell) sendEpoch(n epoch.Number, kind epoch.Kind, set bits) {
	l := p.link
	if l == nil {
		p.w.violated("%s captured epoch %d with no session", p.d.h.name, n)
	}
	if n != l.at.Number+1 { // an epoch before it failed: the sender gives up
		p.d.after(0, func() { l.e.fail(fmt.Errorf("epoch %d on top of %v", n, l.at)) })
		return
	}
	m := sent{generation: p.generation, kind: kind, parent: l.at, at: p.w.position(l.at), set: set,
		values: p.guest.memory, device: p.guest.at, whole: p.guest.memory, verify: p.verify && kind == epoch.KindCheckpoint}
	if m.verify {
		l.expects[n] = p.guest.memory
	}
	l.at = m.at
	l.sent = append(l.sent, m.at)
	l.e.send(m)
}

func (p *primaryShell) restore() {
	for _, f := range p.inflight {
		p.pending |= f.set
	}
	p.inflight = p.inflight[:0]
}

func (p *primaryShell) connect() {
	p.attempts++
	n := p.attempts
	p.dialing = n
	greeting := hello{Version: protocol.Version, Guest: "web", Host: p.d.h.id, Generation: p.generation, Known: slices.Clone(p.known)}
	failed := func(err error) {
		if !p.ended {
			if p.dialing == n {
				p.dialing = 0
			}
			p.post(primary.LinkDown{Err: err})
		}
	}
	p.w.dial(p.d, func(e *end, err error) {
		if err != nil {
			failed(err)
			return
		}
		e.down = failed
		e.recv = func(m any) {
			switch m := m.(type) {
			case protocol.Welcome:
				if p.dialing != n || p.ended { // given up meanwhile
					e.down = func(error) {}
					e.close()
					failed(errors.New("no session is wanted any more"))
					return
				}
				p.adopt(e, m)
			case refusal:
				e.down = func(error) {}
				e.close()
				failed(errors.New("refused: " + m.reason))
			}
		}
		e.send(greeting)
	})
}

func (p *primaryShell) adopt(e *end, m protocol.Welcome) {
	p.dialing = 0
	resumed := slices.Contains(p.known, m.At)
	if !resumed && (m.At.Number != 0 || m.At.Running != epoch.Hash{}) {
		e.down = func(error) {}
		e.close()
		p.post(primary.LinkDown{Err: fmt.Errorf("the backup stands at %v, which is not known here", m.At)})
		return
	}
	l := &link{e: e, at: m.At, sent: []epoch.Position{m.At}, expects: map[epoch.Number]memory{}}
	p.link, p.known = l, append(p.known[:0], m.At)
	e.down = func(err error) {
		if p.link == l {
			p.disconnect()
			p.post(primary.LinkDown{Err: err})
		}
	}
	e.recv = func(m any) {
		if p.link == l {
			p.receive(l, m)
		}
	}
	p.post(primary.LinkUp{Peer: p.d.h.peer.id, At: m.At, Resumed: resumed})
}

func (p *primaryShell) receive(l *link, m any) {
	a, ok := m.(ack)
	if !ok || len(l.sent) < 2 || l.sent[1] != a.at {
		l.e.fail(fmt.Errorf("not the next acknowledgement: %s", show(m)))
		return
	}
	l.sent = l.sent[1:]
	n := a.at.Number
	want, asked := l.expects[n]
	delete(l.expects, n)
	if asked && want != a.image {
		p.w.images[a.at.Image].bad = true
		p.post(primary.Mismatch{Number: n})
		return
	}
	p.post(primary.Acked{Number: n})
}

func (p *primaryShell) disconnect() {
	p.dialing = 0
	l := p.link
	if l == nil {
		return
	}
	p.link = nil
	l.e.down = func(error) {}
	l.e.close()
	p.known = append(p.known[:0], l.sent...)
	if p.core.Spoilt() {
		p.known = nil
	}
}

// renew keeps the lease.
func (p *primaryShell) renew() {
	if p.ended {
		return
	}
	g := p.generation
	p.w.ledger.renew(p.d, g, func(until clock.Instant, err error) {
		if p.ended {
			return
		}
		if err != nil {
			p.d.after(lease/8, p.renew)
			return
		}
		p.d.gate.allow(until)
		p.until = max(p.until, until)
		p.post(primary.LeaseRenewed{Generation: g, Until: until})
		p.d.after(lease/4, p.renew)
	})
}

func show(v any) string {
	s := fmt.Sprintf("%T%+v", v, v)
	if len(s) > 260 {
		s = s[:260] + "…"
	}
	return s
}
