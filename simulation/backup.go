package simulation

// The shell around backup.Core: what backup/backup.go and session.go do.

import (
	"errors"
	"slices"
	"time"

	"understudy/backup"
	"understudy/epoch"
	"understudy/ownership"
	"understudy/protocol"
)

// image is what a backup holds.
type image struct {
	id      epoch.Incarnation
	memory  memory
	at      epoch.Position
	device  state
	whole   bool
	bad     bool // the primary has been told that it differs
	corrupt bool // damaged by a fault
}

type backupShell struct {
	d     *daemon
	w     *world
	core  *backup.Core
	image *image
	// loaded is what the waiting machine has been given.
	loaded struct {
		memory memory
		at     state
	}
	wake   int
	ended  bool
	busy   bool // the loop works, or stands still in the middle of it
	events []backup.Event

	greeted *opened
	session *fed
}

type opened struct {
	e     *end
	hello hello
}

// fed is the session that feeds the image.
type fed struct {
	e          *end
	generation epoch.Generation
	at         epoch.Position
	stage      *sent
	waiting    []sent // behind the staged one
}

func newBackup(d *daemon, st ownership.Guest) *backupShell {
	cfg := backup.DefaultConfig("web", d.h.id, lease, pages*epoch.PageSize)
	return &backupShell{d: d, w: d.w, core: backup.NewCore(cfg, st)}
}

func (b *backupShell) start() {
	b.d.after(0, func() { b.post(backup.LogApplied{State: b.w.ledger.views[b.d.h.index]}) })
	b.post(backup.Tick{})
}

// post feeds an event, and what follows from it at once, to the core.
func (b *backupShell) post(ev backup.Event) {
	b.events = append(b.events, ev)
	if !b.busy {
		b.busy = true
		b.work(nil)
	}
}

// work carries out what is left to do. Somebody who stands still in the middle
// of it goes on there.
func (b *backupShell) work(todo []backup.Action) {
	for !b.ended && b.d.alive {
		for i, a := range todo {
			if b.w.tell {
				b.w.say(b.d.h.name, "    -> %s", show(a))
			}
			if s, ok := b.stepOf(a); ok && b.w.at(b.d, s) {
				return // the daemon died between two actions
			}
			if b.d.isFrozen() {
				rest := slices.Clone(todo[i:])
				b.w.after(b.d.frozen-b.w.now, func() { b.d.awake(func() { b.goOn(rest) }) }) // before all that comes meanwhile
				return
			}
			if next := b.do(a); next != nil {
				b.events = slices.Insert(b.events, 0, next)
			}
			if b.ended || !b.d.alive {
				return
			}
		}
		if len(b.events) == 0 {
			break
		}
		ev := b.events[0]
		b.events = b.events[1:]
		if b.w.tell {
			if _, tick := ev.(backup.Tick); !tick {
				b.w.say(b.d.h.name, "  %s", show(ev))
			}
		}
		todo = b.core.Step(b.d.clock(), ev)
	}
	b.busy = false
	if !b.ended && b.d.alive {
		b.wake++
		n := b.wake
		b.d.after(b.d.wait(b.core.NextWake()), func() {
			if n == b.wake && !b.ended {
				b.post(backup.Tick{})
			}
		})
	}
}

// goOn carries out an action that its host stood still before, and the rest.
func (b *backupShell) goOn(rest []backup.Action) {
	if b.ended || !b.d.alive {
		return
	}
	if next := b.do(rest[0]); next != nil {
		b.events = slices.Insert(b.events, 0, next)
	}
	b.work(rest[1:])
}

// stepOf says which step an action is.
func (b *backupShell) stepOf(a backup.Action) (step, bool) {
	switch a := a.(type) {
	case backup.Refuse:
		return stepRefuse, b.greeted != nil
	case backup.Discard:
		return stepDiscard, true
	case backup.Load:
		return stepLoad, true
	case backup.Reset:
		return stepReset, true
	case backup.Propose:
		if a.Command.Kind == ownership.Return {
			return stepProposeReturn, true
		}
		return stepProposeTakeover, true
	case backup.Run:
		return stepRun, true
	}
	return 0, false
}

func (b *backupShell) do(a backup.Action) backup.Event {
	switch a := a.(type) {
	case backup.Prepare:
		return b.prepare(a.Fresh)
	case backup.Refuse:
		if o := b.greeted; o != nil {
			b.greeted = nil
			o.e.send(refusal{a.Reason})
			b.d.after(20*time.Millisecond, o.e.close)
		}
	case backup.Commit:
		b.commit()
	case backup.Discard, backup.Drop:
		b.drop()
	case backup.Load:
		b.loaded.memory, b.loaded.at = b.image.memory, b.image.device
		fails := b.w.chance(b.w.faults.loadFails)
		b.d.after(b.w.between(2*time.Millisecond, 15*time.Millisecond), func() {
			var err error
			if fails {
				err = errors.New("the machine did not take the state")
			}
			if !b.w.at(b.d, stepLoaded) {
				b.post(backup.Loaded{Err: err})
			}
		})
	case backup.Reset:
	case backup.Propose:
		b.w.ledger.propose(b.d, a.Command, 10*time.Second, func(st ownership.Guest, err error) {
			b.post(backup.Proposed{Command: a.Command, State: st, Err: err})
		})
	case backup.Run:
		if b.w.chance(b.w.faults.loadFails / 2) {
			return backup.Ran{Err: errors.New("the machine did not run")}
		}
		b.w.oracle.takesOver(b.d.h, b.image, b.loaded.memory, b.loaded.at)
		g := continued(b.d.h, b.loaded.memory, b.loaded.at)
		b.d.h.guest, b.d.guest = g, g
		g.resume()
		b.image = nil
		if b.w.at(b.d, stepActivate) {
			return nil
		}
		return backup.Ran{}
	case backup.Warn:
	case backup.End:
		b.ended = true
		b.drop()
		b.d.backupEnded(a.Outcome, b.w.ledger.views[b.d.h.index])
	}
	return nil
}

// accept takes a session whose Hello was read.
func (b *backupShell) accept(o opened) {
	b.greeted = &o
	b.post(backup.Greeted{Hello: o.hello})
}

func (b *backupShell) prepare(fresh bool) backup.Event {
	o := b.greeted
	b.greeted = nil
	b.drop()
	if fresh {
		im := &image{id: b.w.newImage()}
		im.at.Image = im.id
		b.image, b.w.images[im.id] = im, im
	}
	at, whole := b.core.At()
	if fresh {
		at, whole = b.image.at, false
	}
	if b.w.at(b.d, stepWelcome) {
		return nil
	}
	o.e.send(protocol.Welcome{Version: protocol.Version, At: at, Whole: whole})
	s := &fed{e: o.e, generation: o.hello.Generation, at: at}
	b.session = s
	o.e.down = func(err error) {
		if b.session == s {
			b.drop()
			b.post(backup.SessionLost{Err: err})
		}
	}
	o.e.recv = func(m any) {
		x, ok := m.(sent)
		switch {
		case b.w.breach == acksWhileAsking && ok && b.session != s && !b.ended && b.image != nil && x.parent == b.image.at:
			b.w.oracle.acknowledged(b.image, x)
			b.apply(x) // and acknowledges
			s.e.send(ack{at: x.at})
		case b.session == s && ok:
			s.waiting = append(s.waiting, x)
			b.stage(s)
		}
	}
	return backup.Prepared{At: at, Whole: whole}
}

func (w *world) newImage() epoch.Incarnation {
	w.positions++
	var id epoch.Incarnation
	id[0] = 0xff
	for i := range 8 {
		id[1+i] = byte(w.positions >> (8 * i))
	}
	return id
}

// stage offers the next whole epoch to the core.
func (b *backupShell) stage(s *fed) {
	if s.stage != nil || len(s.waiting) == 0 {
		return
	}
	x := s.waiting[0]
	s.waiting = s.waiting[1:]
	if x.parent != s.at || x.generation != s.generation {
		if !s.e.s.twisted {
			b.w.violated("an honest primary sent %v generation %d on top of %v generation %d", x.parent, x.generation, s.at, s.generation)
		}
		s.e.fail(errors.New("the epoch does not follow the one before"))
		return
	}
	s.stage, s.at = &x, x.at
	b.d.after(b.w.between(0, time.Millisecond), func() {
		if b.session == s && !b.ended && !b.w.at(b.d, stepStage) && b.session == s {
			b.post(backup.Staged{At: x.at, Kind: x.kind})
		}
	})
}

// commit acknowledges the staged epoch and applies it.
func (b *backupShell) commit() {
	s := b.session
	x := *s.stage
	if b.w.at(b.d, stepAck) {
		return
	}
	b.w.oracle.acknowledged(b.image, x)
	if !x.verify {
		s.e.send(ack{at: x.at})
	}
	if b.w.at(b.d, stepApply) {
		return
	}
	b.apply(x)
	if b.w.at(b.d, stepCommit) {
		return
	}
	if x.verify {
		s.e.send(ack{at: x.at, hashed: true, image: b.image.memory})
	}
	s.stage = nil
	b.stage(s)
}

func (b *backupShell) apply(x sent) {
	im := b.image
	for i := range pages {
		if x.set&(1<<i) != 0 {
			im.memory[i] = x.values[i]
		}
	}
	im.at, im.whole = x.at, x.kind == epoch.KindCheckpoint
	if im.whole {
		im.device = x.device
		b.w.oracle.committed(b.d.h, im, x)
	}
}

func (b *backupShell) drop() {
	s := b.session
	if s == nil {
		return
	}
	b.session = nil
	s.e.down = func(error) {}
	if b.w.breach != acksWhileAsking {
		s.e.close()
	}
}
