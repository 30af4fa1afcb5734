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
	busy       bool // the loop works, or stands still in the middle of it
	events     []primary.Event
	mode       primary.Mode

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
	p.events = append(p.events, ev)
	if !p.busy {
		p.busy = true
		p.work(nil)
	}
}

// work carries out what is left to do. Somebody who stands still in the middle
// of it goes on there.
func (p *primaryShell) work(todo []primary.Action) {
	for !p.ended && p.d.alive {
		for i, a := range todo {
			if p.w.tell {
				p.w.say(p.d.h.name, "    -> %s", show(a))
			}
			if s, ok := stepOf(a); ok && p.w.at(p.d, s) {
				return // the daemon died between two actions
			}
			if p.d.isFrozen() {
				rest := slices.Clone(todo[i:])
				p.w.after(p.d.frozen-p.w.now, func() { p.d.awake(func() { p.goOn(rest) }) }) // before all that comes meanwhile
				return
			}
			if next := p.do(a); next != nil {
				p.events = slices.Insert(p.events, 0, next)
			}
			if p.ended || !p.d.alive {
				return
			}
		}
		if now := p.core.Mode(); now != p.mode {
			p.mode = now
			p.w.oracle.visits[now.String()]++
			p.w.say(p.d.h.name, "  = %v", now)
		}
		if len(p.events) == 0 {
			break
		}
		ev := p.events[0]
		p.events = p.events[1:]
		if p.w.tell {
			if _, tick := ev.(primary.Tick); !tick {
				p.w.say(p.d.h.name, "  %s", show(ev))
			}
		}
		todo = p.core.Step(p.d.clock(), ev)
	}
	p.busy = false
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

// goOn carries out an action that its host stood still before, and the rest.
func (p *primaryShell) goOn(rest []primary.Action) {
	if p.ended || !p.d.alive {
		return
	}
	if next := p.do(rest[0]); next != nil {
		p.events = slices.Insert(p.events, 0, next)
	}
	p.work(rest[1:])
}

// stepOf says which step an action is.
func stepOf(a primary.Action) (step, bool) {
	switch a := a.(type) {
	case primary.SyncStep:
		return stepSyncStep, true
	case primary.Capture:
		if a.Final {
			return stepLastEpoch, true
		}
		return stepPause, true
	case primary.Forget:
		return stepForget, true
	case primary.Restore:
		return stepRestore, true
	case primary.Refill:
		return stepRefill, true
	case primary.Release:
		return stepRelease, true
	case primary.Hold:
		return stepHold, true
	case primary.Pass:
		return stepPass, true
	case primary.Shut:
		return stepShut, true
	case primary.PauseGuest:
		return stepPauseGuest, true
	case primary.ResumeGuest:
		return stepResumeGuest, true
	case primary.Propose:
		s, ok := proposals[a.Command.Kind]
		return s, ok
	case primary.Connect:
		return stepConnect, true
	}
	return 0, false
}

var proposals = map[ownership.Kind]step{
	ownership.InSync: stepProposeInSync, ownership.OutOfSync: stepProposeOutOfSync, ownership.Activated: stepProposeActivated,
	ownership.Surrender: stepProposeSurrender, ownership.Reclaim: stepProposeReclaim, ownership.Stop: stepProposeStop,
}

var applications = map[ownership.Kind]step{
	ownership.Start: stepAppliedStart, ownership.Adopt: stepAppliedAdopt, ownership.InSync: stepAppliedInSync,
	ownership.OutOfSync: stepAppliedOutOfSync, ownership.Takeover: stepAppliedTakeover, ownership.Activated: stepAppliedActivated,
	ownership.Return: stepAppliedReturn, ownership.Surrender: stepAppliedSurrender, ownership.Reclaim: stepAppliedReclaim,
	ownership.Stop: stepAppliedStop,
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
		p.w.oracle.visits[p.core.Mode().String()]++
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
		if p.w.at(p.d, stepSeal) {
			final = true // nobody is there to resume it
			return nil
		}
		if err := p.d.gate.seal(n); err != nil {
			final = false
			return failed(err)
		}
		if p.w.at(p.d, stepCollect) {
			final = true
			return nil
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
	if check && p.w.at(p.d, stepCapture) {
		final = true
		return nil
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
	if p.w.at(p.d, stepSend) {
		return
	}
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
		if p.w.at(p.d, stepHello) {
			return
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
	if p.w.at(p.d, stepLinked) || p.link != l {
		return
	}
	p.post(primary.LinkUp{Peer: p.d.h.peer.id, At: m.At, Resumed: resumed})
}

func (p *primaryShell) receive(l *link, m any) {
	a, ok := m.(ack)
	if !ok || len(l.sent) < 2 || l.sent[1] != a.at {
		l.e.fail(fmt.Errorf("not the next acknowledgement: %s", show(m)))
		return
	}
	if p.w.at(p.d, stepAckReceived) || p.link != l {
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
	if p.w.at(p.d, stepLeaseAsk) {
		return
	}
	p.w.ledger.renew(p.d, g, func(until clock.Instant, err error) {
		if p.ended {
			return
		}
		if err != nil {
			p.d.after(lease/8, p.renew)
			return
		}
		if p.w.at(p.d, stepLeaseReceived) {
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
