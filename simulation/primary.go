package simulation

// The shell around primary.Core: what primary/primary.go, capture.go, link.go
// and log.go do, without the goroutines.

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/clock"
	"understudy/disk"
	"understudy/epoch"
	"understudy/ownership"
	"understudy/primary"
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

	continues bool // with a guest that was left
}

type link struct {
	e       *end
	at      epoch.Position   // of the last epoch sent
	sent    []epoch.Position // the last acknowledged, then those in flight
	expects map[epoch.Number]memory
	busy    time.Duration // until when the sender is
}

type flight struct {
	number epoch.Number
	set    bits
}

func newPrimary(d *daemon, st ownership.Guest, running bool) *primaryShell {
	cfg := primary.DefaultConfig("web", d.h.id, lease)
	cfg.SyncStep, cfg.SyncEnough, cfg.Patience, cfg.PrintKey = 8, 4, patience, d.key
	if d.w.disk.unfenced {
		cfg.TakeBackAfter = 0
	}
	p := &primaryShell{d: d, w: d.w, guest: d.guest, core: primary.NewCore(cfg, st, running),
		generation: st.Generation, pending: everyPage, from: d.clock(), verify: d.w.faults.verifyAll}
	return p
}

func (p *primaryShell) protected() bool { return !p.ended && p.core.Mode() == primary.ModeProtected }

func (p *primaryShell) start() {
	p.d.set.Own(p.generation)
	p.d.kick()
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
			if s, ok := p.stepOf(a); ok && p.w.at(p.d, s) {
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
		p.w.happens()
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
func (p *primaryShell) stepOf(a primary.Action) (step, bool) {
	switch a := a.(type) {
	case primary.SyncStep:
		return stepSyncStep, true
	case primary.Capture:
		switch {
		case a.Final && p.core.Leaving() == primary.RequestHandover:
			return stepLeaveEpoch, true
		case a.Final:
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
	case primary.Bid:
		if a.For == 0 {
			return stepUnbid, true
		}
		return stepBid, true
	case primary.End:
		return stepLeft, a.Outcome == primary.OutcomeHandedOver
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
	ownership.Stop: stepAppliedStop, ownership.Pause: stepAppliedProtection, ownership.Unprotect: stepAppliedProtection,
	ownership.Protect: stepAppliedProtection, ownership.Force: stepAppliedForce,
	ownership.Fence: stepAppliedFence, ownership.Unfence: stepAppliedFence,
}

// later posts an event that comes from another goroutine.
func (p *primaryShell) later(ev primary.Event) {
	p.d.after(0, func() { p.post(ev) })
}

func (p *primaryShell) do(a primary.Action) primary.Event {
	gate, set := p.d.gate, p.d.set
	defer p.d.kick()
	switch a := a.(type) {
	case primary.SyncStep:
		return p.capture(a.Number, epoch.KindSync, false)
	case primary.Capture:
		if a.Final && p.w.breach == lastEpochMissing {
			p.guest.pause()
			p.later(primary.Acked{Number: a.Number})
			return primary.Captured{Number: a.Number, Kind: epoch.KindCheckpoint}
		}
		if a.Final && p.w.breach == leftUnacked && p.core.Leaving() == primary.RequestHandover {
			p.later(primary.Acked{Number: a.Number})
		}
		return p.capture(a.Number, epoch.KindCheckpoint, a.Final)
	case primary.Forget:
		for len(p.inflight) > 0 && p.inflight[0].number <= a.Through {
			p.inflight = p.inflight[1:]
		}
		set.Synced(a.Through)
	case primary.Restore:
		if p.w.breach != restoreMissing {
			p.restore()
		}
		if p.w.breach == pauseForgetsDirty {
			p.pending, p.guest.dirty = 0, 0
		}
		set.Void()
		if _, compare := set.Unsynced(); compare > 0 {
			set.SyncAll()
		}
		p.compare()
	case primary.Refill:
		p.restore()
		if p.w.breach != refillMissing {
			p.pending = everyPage
		}
		set.Void()
		set.SyncAll()
		p.compare()
	case primary.Release:
		gate.release(a.Through)
		set.Release(a.Through)
	case primary.Hold:
		if p.w.breach == holdLate && p.core.Mode() == primary.ModeEntering {
			return nil
		}
		gate.enter(gateHold)
		set.Hold()
	case primary.Pass:
		gate.enter(gatePass)
		set.Pass()
	case primary.Shut:
		if p.w.breach != shutMissing {
			gate.shut()
			if p.core.Mode() == primary.ModeYielded {
				set.Shut()
			}
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
		p.propose(a.Command)
	case primary.UseGeneration:
		p.generation = a.Generation
		set.Own(a.Generation)
	case primary.Connect:
		p.connect()
	case primary.Disconnect:
		p.disconnect()
	case primary.Bid:
		p.bid(a.For)
	case primary.Warn:
	case primary.End:
		p.ended = true
		p.w.oracle.visits[p.core.Mode().String()]++
		var left primary.Left
		if a.Outcome == primary.OutcomeHandedOver {
			if g := p.guest; p.w.chance(0.5) && g.request == nil && !g.gone && !g.off {
				// A read that was in flight lands while the guest stands still.
				g.request = &request{op: disk.OpRead, block: p.w.dice.IntN(blocks), page: p.w.somePage()}
				g.submit()
			}
			left = p.leaveAs()
			p.w.oracle.leaves(p, left)
		}
		p.disconnect()
		p.d.primaryEnded(a.Outcome, left)
	}
	return nil
}

// capture takes an epoch and sends it.
func (p *primaryShell) capture(n epoch.Number, kind epoch.Kind, final bool) primary.Event {
	g, failed := p.guest, func(err error) primary.Event { return primary.CaptureFailed{Number: n, Err: err} }
	check := kind == epoch.KindCheckpoint
	if check {
		if !p.d.set.Settled() {
			return primary.Postponed{Number: n}
		}
		g.pause()
		defer func() {
			if !final {
				g.resume()
			}
		}()
		if g.gone {
			return failed(errors.New("there is no guest"))
		}
		if p.w.chance(p.w.faults.captureFails/2) || final && p.w.chance(p.w.faults.resist) {
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
		if err := p.d.set.Seal(n); err != nil {
			final = false
			return failed(err)
		}
		if p.w.at(p.d, stepCollect) {
			final = true
			return nil
		}
	}
	own := epoch.NewPageSet(pages)
	p.d.set.CollectDirty(own)
	set := p.pending | g.dirty
	if p.w.breach != ownWritesUnseen {
		set |= bitsOf(own)
	}
	p.pending, g.dirty = 0, 0
	for page := range pages { // what is copied has to be there
		if err := g.touch(page); err != nil {
			p.pending, final = set, false
			return failed(err)
		}
	}
	if p.w.chance(p.w.faults.captureFails / 2) {
		final = false
		if p.w.breach != scanUnfinished {
			p.pending = everyPage
		}
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
	p.enqueue(n, kind, set)
	if p.w.breach == releaseOnSend {
		p.d.gate.release(n)
		p.d.set.Release(n)
	}
	left := p.pending.count()
	stalled := check && p.w.chance(p.w.faults.captureFails/4)
	if l := p.link; stalled {
		p.d.after(0, func() { l.e.fail(errors.New("the backup takes nothing")) })
	}
	differ, compare := p.d.set.Unsynced()
	left += differ / epoch.PageSize
	return primary.Captured{Number: n, Kind: kind, Sent: set.count(), Remaining: left, Comparing: compare > 0, Stalled: stalled,
		Cost: primary.Cost{Pause: time.Millisecond, Held: len(p.d.gate.held)}}
}

// enqueue hands a copy of the guest to the sender, which works beside it.
func (p *primaryShell) enqueue(n epoch.Number, kind epoch.Kind, set bits) {
	l := p.link
	if l == nil {
		p.w.violated("%s captured epoch %d with no session", p.d.h.name, n)
	}
	g := p.guest
	m := sent{generation: p.generation, kind: kind, set: set, values: g.memory, device: g.at, whole: g.memory, disk: g.disk, known: g.known,
		request: g.request, verify: p.verify && kind == epoch.KindCheckpoint}
	l.busy = max(l.busy, p.w.now) + p.w.between(0, time.Millisecond)
	p.d.after(l.busy-p.w.now, func() {
		if p.link == l && !p.ended {
			p.sendEpoch(l, m, n)
		}
	})
}

// encode adds what leaves pages out, and what the disk says of the epoch.
func (p *primaryShell) encode(m *sent, n epoch.Number) error {
	set, limit := p.d.set, uint64(epoch.HashChunk)
	excluder := set.Encoding(n)
	if m.kind == epoch.KindCheckpoint {
		limit = 0
		writes, state := set.Sealed(n)
		if len(state) == 0 {
			return fmt.Errorf("the writes of epoch %d are not sealed any more", n)
		}
		m.disks = bytes.Clone(state)
		if p.w.breach == flushedEarly && len(writes) > 0 {
			flushedUpTo(m.disks, writes[len(writes)-1].Seq)
		}
		for _, x := range writes {
			x.Data, x.Pages = bytes.Clone(x.Data), slices.Clone(x.Pages)
			m.writes = append(m.writes, x)
		}
	}
	sync, err := set.SyncWrites(n, limit)
	if err != nil {
		return err
	}
	m.writes = append(slices.Clip(sync), m.writes...)
	var page [epoch.PageSize]byte
	for i := range pages {
		if m.set&(1<<i) == 0 || m.values[i] == 0 {
			continue
		}
		pageOf(page[:], m.values[i])
		if x, ok := excluder.Exclude(epoch.GFN(i), page[:], false); ok && x.Kind == epoch.ExcludeBlock {
			p.w.oracle.referenced(p.d, x.Ref, m.values[i])
			m.refs = append(m.refs, x.Ref)
			p.w.say(p.d.h.name, "      page %d, %d, is left out of epoch %d for block %d", i, m.values[i], n, x.Ref.Sector/epoch.PageSectors)
		}
	}
	if p.w.breach == referenceHeld {
		p.referenceHeld(m)
	}
	if len(m.refs) > 0 && p.w.at(p.d, stepReference) {
		return errDead
	}
	return nil
}

// referenceHeld leaves pages out for writes that only the held log has.
func (p *primaryShell) referenceHeld(m *sent) {
	var page [epoch.PageSize]byte
	for i := range pages {
		for b, v := range p.guest.disk {
			if v != 0 && m.set&(1<<i) != 0 && m.values[i] == v && !slices.ContainsFunc(m.refs, func(r epoch.Reference) bool { return r.Page == epoch.GFN(i) }) {
				pageOf(page[:], v)
				m.refs = append(m.refs, epoch.Reference{Page: epoch.GFN(i), Sector: uint64(b) * epoch.PageSectors, Print: p.d.key.Of(page[:])})
			}
		}
	}
}

// compare sends hashes of the disk, if there is anything to compare.
func (p *primaryShell) compare() {
	l := p.link
	p.d.after(p.w.between(0, time.Millisecond), func() {
		for p.link == l && !p.ended {
			if _, compare := p.d.set.Unsynced(); compare == 0 {
				return
			}
			h, more, err := p.d.set.NextHashes(1)
			if err != nil {
				l.e.fail(err)
				return
			}
			if len(h.Hashes) > 0 {
				l.e.send(hashes{h})
			}
			if !more {
				return
			}
		}
	})
}

// propose carries a command to the log, after the disks have done what they owe
// before.
func (p *primaryShell) propose(c ownership.Command) {
	const limit = max(2*lease, 2*time.Second)
	t := p.w.twisted // it is the proposal's
	until := p.w.now + limit
	var try func()
	try = func() {
		if p.ended {
			return
		}
		var err error
		switch c.Kind {
		case ownership.Surrender:
			if p.w.breach == surrenderUndrained {
				break
			}
			err = p.d.set.Quiesce(ended)
		case ownership.Stop:
			if p.w.breach == stopUndrained {
				break
			}
			err = p.d.set.DrainByHand()
		}
		switch {
		case err != nil && p.w.now < until:
			p.d.kick()
			p.d.after(time.Millisecond, try)
			return
		case err != nil:
			p.post(primary.Proposed{Command: c, Err: err})
			return
		}
		if (c.Kind == ownership.Surrender || c.Kind == ownership.Stop) && p.w.at(p.d, stepDrained) {
			return
		}
		p.w.twisted = t
		p.w.ledger.propose(p.d, c, limit, func(st ownership.Guest, err error) {
			p.post(primary.Proposed{Command: c, State: st, Err: err})
		})
	}
	try()
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
		if err := p.d.set.Allow(until); err != nil {
			p.w.violated("the disks refuse a lease: %v", err)
		}
		p.d.kick()
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
