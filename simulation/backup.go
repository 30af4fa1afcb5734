package simulation

// The shell around backup.Core: what backup/backup.go and session.go do.

import (
	"context"
	"errors"
	"slices"
	"time"

	"understudy/backup"
	"understudy/disk"
	"understudy/epoch"
	"understudy/ownership"
	"understudy/protocol"
	"understudy/rebuild"
)

type backupShell struct {
	d     *daemon
	w     *world
	core  *backup.Core
	image *image
	// loaded is what the waiting machine has been given.
	loaded struct {
		memory  memory
		at      state
		missing bits
		filler  filler
	}
	blocked bool // the loop waits for the disks
	rest    []backup.Action
	wake    int
	ended   bool
	asked   bool // for a takeover
	busy    bool // the loop works, or stands still in the middle of it
	events  []backup.Event

	greeted *opened
	session *fed
}

type opened struct {
	e     *end
	hello hello
	key   epoch.PrintKey // of hello
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
	if err := b.d.set.StandBy(ended); err != nil {
		b.d.after(5*time.Millisecond, b.start)
		return
	}
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
			if b.blocked {
				b.rest = slices.Clone(todo[i+1:])
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
		b.w.happens()
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
	if b.blocked {
		b.rest = rest[1:]
		return
	}
	b.work(rest[1:])
}

// stepOf says which step an action is.
func (b *backupShell) stepOf(a backup.Action) (step, bool) {
	switch a := a.(type) {
	case backup.Refuse:
		return stepRefuse, b.greeted != nil
	case backup.GiveUp:
		return stepGiveUp, true
	case backup.Load:
		return stepLoad, true
	case backup.Reset:
		return stepReset, true
	case backup.Propose:
		switch a.Command.Kind {
		case ownership.Return:
			return stepProposeReturn, true
		case ownership.OutOfSync:
			return stepProposeOutOfSync, true
		case ownership.Force:
			return stepProposeForce, true
		}
		return stepProposeTakeover, true
	case backup.Agree:
		return stepAgree, true
	case backup.Activate:
		return stepActivate, true
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
	case backup.Agree:
		b.agree(a.For)
	case backup.Commit:
		return b.commit()
	case backup.GiveUp:
		if s := b.session; s != nil {
			s.e.send(refusal{a.Err.Error()})
		}
		b.drop()
	case backup.Drop:
		b.drop()
	case backup.Load:
		b.asked = true
		b.load()
	case backup.Reset:
		if b.image != nil {
			b.image.table.StandBy()
			b.image.lazy = false
		}
	case backup.Propose:
		if k := a.Command.Kind; k == ownership.Takeover || k == ownership.Force {
			b.w.oracle.asks(b, a.Command)
		}
		if a.Command.Kind == ownership.Return {
			if err := b.d.set.StandBy(ended); err != nil {
				return backup.Proposed{Command: a.Command, Err: err}
			}
		}
		b.w.ledger.propose(b.d, a.Command, 10*time.Second, func(st ownership.Guest, err error) {
			b.post(backup.Proposed{Command: a.Command, State: st, Err: err})
		})
	case backup.Activate:
		b.d.set.PeerOff(a.PeerOff)
		b.activate(a.Generation)
	case backup.Run:
		return backup.Ran{Err: b.run()}
	case backup.Warn, backup.Answer:
	case backup.End:
		b.ended = true
		b.drop()
		b.d.backupEnded(a.Outcome, b.w.ledger.views[b.d.h.index])
	}
	return nil
}

// load puts the last commit into the waiting machine.
func (b *backupShell) load() {
	im := b.image
	var err error
	b.loaded.missing, b.loaded.filler = 0, nil
	if b.w.disk.lazy {
		b.loaded.filler, b.loaded.missing = im.table.Filler(), im.missing
		im.lazy = true
	} else {
		err = im.table.FillAll(context.Background(), nil) // nobody else fills
	}
	if bad := (*rebuild.BadError)(nil); errors.As(err, &bad) && b.shouldFill() {
		b.w.violated("guarantee 4: the image of %s cannot be filled: %v", b.d.h.name, err)
	}
	b.loaded.memory, b.loaded.at = im.memory, im.device
	if err == nil && b.w.chance(b.w.faults.loadFails) {
		err = errors.New("the machine did not take the state")
	}
	b.d.after(b.w.between(2*time.Millisecond, 15*time.Millisecond), func() {
		if !b.w.at(b.d, stepLoaded) {
			b.post(backup.Loaded{Err: err})
		}
	})
}

// diskWait bounds the wait for the former owner's locks.
const diskWait = 1500 * time.Millisecond

// activate makes the disks this host's, as the last commit left them.
func (b *backupShell) activate(g epoch.Generation) {
	overwrite := b.image.table.BeforeOverwrite
	if b.w.breach == overwriteUnfilled {
		overwrite = nil
	}
	b.d.set.Own(g)
	until := b.w.now + diskWait
	var try func()
	try = func() {
		if b.w.breach == replayMissing {
			_ = b.d.set.StandBy(ended)
			b.d.set.Own(g)
		}
		b.d.kick()
		err := b.d.set.Activate(ended, overwrite)
		if err != nil && b.w.now < until {
			b.d.after(b.w.between(time.Millisecond, 5*time.Millisecond), try)
			return
		}
		b.post(backup.Activated{Err: err})
	}
	b.d.after(0, try)
}

// run lets the loaded machine run.
func (b *backupShell) run() error {
	if b.w.chance(b.w.faults.loadFails / 2) {
		return errors.New("the machine did not run")
	}
	im := b.image
	b.w.oracle.takesOver(b.d.h, im, b.loaded.memory, b.loaded.missing, b.loaded.at)
	b.w.oracle.resubmitted(b.d, im)
	b.w.oracle.canBeFilled(b.d.h, im)
	g := continued(b.d.h, b.loaded.memory, b.loaded.at)
	g.missing, g.filler, g.truth, g.disk, g.known = b.loaded.missing, b.loaded.filler, im.truth, im.disk, im.known
	g.damaged = im.damaged
	g.request, b.d.replaying = b.d.resubmit, true
	b.d.h.guest, b.d.guest = g, g
	b.w.oracle.diskOf(g, b.d)
	if g.request != nil && (g.request.op == disk.OpWrite || g.request.op == disk.OpDiscard) {
		b.w.oracle.written(g, g.request.block, g.request.value)
	}
	g.resume()
	b.image = nil
	return nil
}

// accept takes a session whose Hello was read.
func (b *backupShell) accept(o opened) {
	b.greeted = &o
	b.post(backup.Greeted{Hello: o.hello})
}

func (b *backupShell) prepare(fresh bool) backup.Event {
	o := b.greeted
	b.drop()
	b.asked = false
	b.w.oracle.freed(b.d.h)
	if fresh {
		if err := b.d.set.StandBy(ended); err != nil {
			return backup.Prepared{Err: err}
		}
		im := &image{id: b.w.newImage()}
		im.at.Image = im.id
		im.open(b.d, o.key)
		b.image, b.w.images[im.id] = im, im
	}
	at, whole := b.core.At()
	if fresh {
		at, whole = b.image.at, false
	}
	if b.w.at(b.d, stepWelcome) {
		return nil
	}
	b.greeted = nil
	o.e.send(protocol.Welcome{Version: protocol.Version, At: at, Whole: whole})
	s := &fed{e: o.e, generation: o.hello.Generation, at: at}
	b.session = s
	o.e.down = func(err error) {
		if b.session == s {
			b.drop()
			b.post(backup.SessionLost{Err: err})
			if !b.ended && b.d.alive {
				b.w.oracle.alone(b)
			}
		}
	}
	o.e.recv = func(m any) {
		x, ok := m.(sent)
		if h, asks := m.(hashes); asks && b.session == s {
			d, err := b.d.set.Compare(h.h)
			if err != nil {
				s.e.fail(err)
				return
			}
			s.e.send(differs{d})
			return
		}
		if y, bids := m.(bid); bids && b.session == s {
			b.away(s, y.wait)
			return
		}
		if bad, is := m.(damaged); is && b.session == s {
			if x, ok = bad.m.(sent); !ok {
				s.e.fail(errChecksum)
				return
			}
			if err := b.damagedEpoch(s, x); b.w.breach != tornTaken {
				s.e.fail(err)
				return
			}
			x.values[b.w.dice.IntN(pages)]++
			x.set = everyPage
		}
		switch {
		case b.w.breach == acksWhileAsking && ok && b.session != s && !b.ended && b.image != nil && x.parent == b.image.at:
			b.w.oracle.acknowledged(b.image, x)
			b.apply(x) // and acknowledges
			s.e.send(ack{at: x.at})
		case b.session == s && ok:
			if b.w.chance(2 * b.w.faults.hostile) { // somebody is quicker
				s.e.s.twisted = true
				s.e.send(b.w.forged(ack{at: x.at}))
			}
			s.waiting = append(s.waiting, x)
			b.stage(s)
		}
	}
	return backup.Prepared{At: at, Whole: whole}
}

// away is the primary's word that it will be silent.
func (b *backupShell) away(s *fed, wait time.Duration) {
	wait, err := heard(wait)
	switch {
	case err != nil:
		s.e.fail(err)
		return
	case wait == 0:
		b.w.oracle.freed(b.d.h)
	case b.w.breach == promiseForgotten:
		b.agree(wait)
		return
	case b.w.breach == promiseEndless:
		wait *= endless
	}
	b.post(backup.Away{For: wait})
}

// endless is how much longer a backup waits than it says, if that is broken.
const endless = 40

// agree tells the primary that it is waited for.
func (b *backupShell) agree(wait time.Duration) {
	if b.session == nil {
		return
	}
	if b.w.breach == promiseEndless {
		wait /= endless
	}
	b.w.oracle.promised(b, wait)
	b.session.e.send(promise{wait})
	if b.w.faults.backupLies {
		b.post(backup.Away{})
	}
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
	if (x.parent != s.at || x.generation != s.generation) && b.w.breach != foreignTaken {
		if !s.e.s.twisted {
			b.w.violated("an honest primary sent %v generation %d on top of %v generation %d", x.parent, x.generation, s.at, s.generation)
		}
		s.e.fail(b.admits(s, &x))
		return
	}
	s.stage, s.at = &x, x.at
	b.d.after(b.w.between(0, time.Millisecond), func() {
		if b.session != s || b.ended || b.w.at(b.d, stepStage) || b.session != s {
			return
		}
		if err := b.makeRoom(&x); err != nil {
			s.e.fail(err)
			return
		}
		if b.session == s && b.d.alive {
			b.post(backup.Staged{At: x.at, Kind: x.kind})
		}
	})
}

// commit acknowledges the staged epoch and applies it.
func (b *backupShell) commit() backup.Event {
	s := b.session
	x := *s.stage
	im := b.image
	for i := range pages {
		if x.set&(1<<i) != 0 && b.w.breach != supersedeMissing {
			im.table.Supersede(epoch.GFN(i), 1)
			im.missing &^= 1 << i
		}
	}
	if err := im.table.Bad(); err != nil && x.kind == epoch.KindCheckpoint && b.w.breach != spoiltKept {
		if b.shouldFill() {
			b.w.violated("guarantee 4: the image of %s is not whole at %v: %v", b.d.h.name, x.at, err)
		}
		return backup.CommitFailed{Err: err}
	}
	if b.w.at(b.d, stepAck) {
		return nil
	}
	b.w.oracle.acknowledged(im, x)
	filled := min(im.table.Through(), x.at.Number)
	if !x.verify {
		s.e.send(ack{at: x.at, filled: filled})
	}
	if b.w.at(b.d, stepApply) {
		return nil
	}
	b.apply(x)
	if !b.d.alive || b.w.at(b.d, stepCommit) {
		return nil
	}
	if x.verify {
		var all [pages * epoch.PageSize]byte
		if err := im.table.ReadPages(0, all[:]); err != nil {
			s.e.fail(err)
			return nil
		}
		s.e.send(ack{at: x.at, filled: filled, hashed: true, image: im.memory})
	}
	s.stage = nil
	b.stage(s)
	return nil
}

// makeRoom does, before an epoch may be acknowledged, what its writes demand of
// the ones before it.
func (b *backupShell) makeRoom(x *sent) error {
	if len(x.writes) == 0 {
		return nil
	}
	if b.w.at(b.d, stepRoom) {
		return errDead
	}
	var size uint64
	for _, w := range x.writes {
		size += uint64(len(w.Data))
		switch w.Kind {
		case epoch.WriteData, epoch.WriteZeroes, epoch.WriteDiscard:
			if b.w.breach == ackUnfilled {
				continue
			}
			if err := b.image.table.BeforeOverwrite(w.Disk, w.Sector, w.Sectors); err != nil {
				return err
			}
		}
	}
	b.looks()
	return b.d.set.Room(ended, size)
}

func (b *backupShell) apply(x sent) {
	im := b.image
	var left bits
	for _, r := range x.refs {
		left |= 1 << r.Page
		im.from[r.Page] = int(r.Sector / epoch.PageSectors)
	}
	for i := range pages {
		if x.set&(1<<i) != 0 && left&(1<<i) == 0 {
			im.memory[i] = x.values[i]
		}
	}
	if err := b.d.set.Commit(x.at.Number, x.writes, x.disks); err != nil {
		b.w.violated("%s cannot keep the writes of %v: %v", b.d.h.name, x.at, err)
	}
	im.missing |= left
	im.table.Add(x.refs, x.at.Number)
	im.at, im.whole = x.at, x.kind == epoch.KindCheckpoint
	im.committed(im.whole)
	b.d.kick()
	im.truth = x.whole
	if im.whole {
		im.device, im.request, im.disk, im.known = x.device, x.request, x.disk, x.known
		b.w.oracle.committed(b.d.h, im, x)
	}
	b.fill(im)
}

func (b *backupShell) drop() {
	s := b.session
	if s == nil {
		return
	}
	b.session = nil
	if b.image != nil {
		b.image.committed(false)
	}
	s.e.down = func(error) {}
	if b.w.breach != acksWhileAsking {
		s.e.close()
	}
}
