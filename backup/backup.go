package backup

// This file is the shell around the core, and holds the backup's loop:
//
//	wait for an event → core.Step → carry out its actions, in order
//
// A session's goroutine (session.go) receives and stages an epoch and then
// waits for the loop's word; the loop acknowledges and applies. So commits and
// the decision to take over are one serial sequence.

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"understudy/bubble"
	"understudy/clock"
	"understudy/crashpoint"
	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
	"understudy/protocol"
	"understudy/rebuild"
)

// The messages that mark a takeover in the log; the demo makes its timeline of
// them.
const (
	LogAsking  = "asking the ownership log"
	LogGranted = "granted by the ownership log"
	LogRunning = "the guest runs here"
)

// Ownership is the ownership log as this host sees it (package failover).
type Ownership interface {
	Propose(ctx context.Context, c ownership.Command) (ownership.Guest, error)
	Watch(ctx context.Context, guest string) <-chan ownership.Guest
}

// Opened is a session whose Hello has been read.
type Opened struct {
	Session protocol.Session
	Hello   protocol.Hello
}

// Deps are what a Backup works with.
type Deps struct {
	Driver   hypervisor.Driver
	Disks    Disks // nil: the guest has none that can be written
	Log      Ownership
	Sessions <-chan Opened
	Clock    clock.Clock
	Slog     *slog.Logger
	// State is the log as this host last saw it.
	State ownership.Guest
	// Events is told what happens to the guest; nil: nobody is.
	Events Events
}

// Backup keeps one guest's image on this host, ready to run.
type Backup struct {
	cfg Config
	Deps
	core    *Core
	events  chan Event
	fed     chan sessionEvent
	asked   chan struct{} // Alive
	forces  chan *forcing // Force
	forcing *forcing      // who waits; the loop's
	looping chan struct{} // closed when the loop begins
	over    chan struct{} // closed when Run returns
	workers sync.WaitGroup
	lazy    atomic.Bool // cfg.Lazy, which may change

	standby hypervisor.Standby
	table   *rebuild.Table // what the image lacks
	filling func()         // ends the table's filler, and waits
	decoder *epoch.Decoder
	image   epoch.Incarnation
	state   []byte // device state of the last checkpoint committed

	greeted *Opened
	session *session
	stats   stats
	said    sayings
	taken   hypervisor.Guest
	outcome Outcome

	forks  chan forking
	forked atomic.Pointer[bubble.Fork]     // see fork.go; the loop begins and ends it
	spec   atomic.Pointer[hypervisor.Spec] // of the image; nil: there is none
}

// New returns a backup; Run starts it.
func New(cfg Config, d Deps) *Backup {
	if d.Disks == nil {
		d.Disks = noDisks{}
	}
	b := &Backup{cfg: cfg, Deps: d, core: NewCore(cfg, d.State),
		events: make(chan Event, 16), fed: make(chan sessionEvent), forks: make(chan forking),
		asked: make(chan struct{}), forces: make(chan *forcing), looping: make(chan struct{}), over: make(chan struct{})}
	b.lazy.Store(cfg.Lazy)
	return b
}

// Result is how a backup ended. With OutcomeTookOver it holds the guest, which
// runs, and the log's state that granted it.
type Result struct {
	Outcome Outcome
	Guest   hypervisor.Guest
	State   ownership.Guest
}

// Run is the backup's main loop.
func (b *Backup) Run(ctx context.Context) (Result, error) {
	defer close(b.over)
	ctx, cancel := context.WithCancel(ctx)
	defer b.workers.Wait()
	defer cancel()
	defer b.endFork(errBackupEnds)
	b.start(func() {
		for state := range b.Log.Watch(ctx, b.cfg.Guest) {
			b.send(ctx, LogApplied{state})
		}
	})
	if err := b.Disks.StandBy(ctx); err != nil {
		return Result{Outcome: OutcomeDetached}, fmt.Errorf("the disks of %s cannot stand by: %w", b.cfg.Guest, err)
	}
	close(b.looping)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for b.outcome == 0 {
		var ev Event
		select {
		case <-ctx.Done():
			b.leave(ctx)
			return Result{Outcome: OutcomeDetached}, b.destroy()
		case <-timer.C:
			ev = Tick{}
		case ev = <-b.events:
		case <-b.asked:
			continue
		case f := <-b.forces:
			ev = b.force(f)
		case o := <-b.Sessions:
			b.greeted = &o
			ev = Greeted{o.Hello}
		case s := <-b.fed:
			if s.from != b.session {
				continue // its session was closed meanwhile
			}
			if lost, ok := s.ev.(SessionLost); ok {
				b.drop(lost.Err.Error())
			}
			ev = s.ev
		case f := <-b.forks:
			f.done <- b.begin(f)
			continue
		}
		b.step(ctx, ev)
		timer.Reset(b.core.NextWake().Sub(b.Clock.Now()))
	}
	b.drop("the backup ends")
	if b.outcome == OutcomeTookOver {
		b.endFilling()
		return Result{Outcome: b.outcome, Guest: b.taken, State: b.core.Log()}, nil
	}
	return Result{Outcome: b.outcome, State: b.core.Log()}, b.destroy()
}

// step feeds one event, and what its actions bring about, to the core.
func (b *Backup) step(ctx context.Context, ev Event) {
	for queue := []Event{ev}; len(queue) > 0; queue = queue[1:] {
		granted := b.core.granted
		actions := b.core.Step(b.Clock.Now(), queue[0])
		b.tell(queue[0], granted)
		for _, a := range actions {
			if next := b.do(ctx, a); next != nil {
				queue = append(queue, next)
			}
		}
	}
	b.stats.update(b.core, b.session, b.Clock.Now())
}

// do carries out one action. It returns the event that the action led to, if
// that is known at once.
func (b *Backup) do(ctx context.Context, a Action) Event {
	switch a := a.(type) {
	case Prepare:
		return b.prepare(ctx, a.Fresh)
	case Refuse:
		b.refuse(ctx, a.Reason)
	case Agree:
		b.agree(ctx, a.For)
	case Commit:
		return b.commit(ctx)
	case GiveUp:
		b.giveUp(a.Err)
	case Drop:
		b.drop(a.Why)
	case Load:
		b.endFork(bubble.ErrTakeover)
		at, _ := b.core.At()
		b.Slog.Info("loading the standby", "at", at, "device_state", len(b.state))
		b.start(func() { b.send(ctx, Loaded{b.load(ctx)}) })
	case Reset:
		b.table.StandBy()
		if err := b.standby.Reset(ctx); err != nil {
			b.Slog.Error("no fresh machine for the standby", "err", err)
		}
	case Activate:
		table, fill := b.table, b.standby.Fill
		b.start(func() { b.send(ctx, Activated{b.activate(ctx, a, table, fill)}) })
	case Propose:
		b.tellProposal(a.Command)
		b.start(func() { b.propose(ctx, a.Command) })
	case Run:
		guest, err := b.run(ctx)
		return Ran{guest, err}
	case Answer:
		b.answer(a.Err)
	case Warn:
		b.Slog.Warn(a.Text)
	case End:
		b.outcome = a.Outcome
	}
	return nil
}

// prepare answers the greeted session with a Welcome and starts to receive.
func (b *Backup) prepare(ctx context.Context, fresh bool) Event {
	o := b.greeted
	b.drop("a newer session")
	if fresh {
		if err := b.renew(ctx, o.Hello); err != nil {
			b.Slog.Error("no image for the standby", "err", err)
			return Prepared{Err: fmt.Errorf("backup %s cannot stand by: %w", b.cfg.Self, err)}
		}
	}
	at, whole := b.core.At()
	if fresh {
		at, whole = epoch.Position{Image: b.image}, false
	}
	w, err := protocol.EncodeWelcome(protocol.Welcome{Version: protocol.Version, At: at, Whole: whole, Boot: b.Disks.BootFiles()})
	if err == nil {
		err = o.Session.Send(ctx, protocol.KindWelcome, w)
	}
	if err != nil {
		return Prepared{Err: fmt.Errorf("welcome: %w", err)}
	}
	b.greeted = nil
	b.Slog.Info("session from the primary", "primary", o.Hello.Host, "generation", o.Hello.Generation, "fresh", fresh, "at", at)
	b.session = b.feed(ctx, o.Session, o.Hello.Generation, at)
	return Prepared{At: at, Whole: whole}
}

// renew makes a new, empty image and a machine that waits on it.
func (b *Backup) renew(ctx context.Context, hello protocol.Hello) error {
	if err := b.destroy(); err != nil {
		return err
	}
	if !slices.Equal(hello.Disks, b.cfg.Disks) {
		return fmt.Errorf("its disks are %+v, here they are %+v: make the configurations and the sizes equal", hello.Disks, b.cfg.Disks)
	}
	if err := b.Disks.StandBy(ctx); err != nil {
		return err
	}
	s, err := b.Driver.Standby(ctx, hello.Spec)
	if err != nil {
		return err
	}
	b.standby, b.state, b.image = s, nil, epoch.NewIncarnation()
	b.spec.Store(&hello.Spec)
	b.table = rebuild.New(rebuild.Config{Pages: s.Pages(), Key: hello.PrintKey, Blocks: b.Disks, Read: s.ReadPages, Write: s.WritePages,
		Limit: b.cfg.MaxReferences, Log: b.Slog})
	b.decoder = epoch.NewDecoder(s.Pages(), epoch.DecoderConfig{MaxStageBytes: b.cfg.MaxStage}, b.table.ReadPages)
	b.fill(ctx, b.table)
	return nil
}

// fill starts to fill references in the background.
func (b *Backup) fill(ctx context.Context, table *rebuild.Table) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	b.filling = func() { cancel(); <-done }
	go func() {
		defer close(done)
		if err := table.Run(ctx); err != nil && ctx.Err() == nil {
			b.send(ctx, Spoilt{err})
		}
	}()
}

// endFilling ends the background filler, and waits for it.
func (b *Backup) endFilling() {
	if b.filling != nil {
		b.filling()
		b.filling = nil
	}
}

// load puts the last commit into the waiting machine. With lazy rebuilding it
// is there before all of the image is.
func (b *Backup) load(ctx context.Context) error {
	var missing hypervisor.Filler
	if b.lazy.Load() {
		missing = b.table.Filler()
	} else if err := b.table.FillAll(ctx, nil); err != nil {
		return err
	}
	err := b.standby.Load(ctx, b.state, missing)
	crashpoint.At(crashpoint.Loaded)
	return err
}

// activate makes the disks this host's, as the last commit left them.
func (b *Backup) activate(ctx context.Context, a Activate, table *rebuild.Table, fill func(first epoch.GFN, count uint64) error) error {
	b.Disks.SetFiller(fill)
	b.Disks.PeerOff(a.PeerOff)
	b.Disks.Own(a.Generation)
	call, cancel := context.WithTimeout(ctx, b.cfg.DiskWait)
	defer cancel()
	if err := b.Disks.Activate(call, table.BeforeOverwrite); err != nil {
		return fmt.Errorf("activate the disks: %w", err)
	}
	crashpoint.At(crashpoint.DisksActivated)
	return nil
}

// run lets the loaded machine run.
func (b *Backup) run(ctx context.Context) (hypervisor.Guest, error) {
	guest, err := b.standby.Run(ctx)
	if err == nil {
		crashpoint.At(crashpoint.Running)
		b.taken, b.standby = guest, nil
		at, _ := b.core.At()
		b.Slog.Info(LogRunning, "at", at)
		b.tellRunning(at.Number)
	}
	return guest, err
}

// commit acknowledges the staged epoch and applies it. Both cannot fail any
// more except together with this host: the stage is verified and in memory.
func (b *Backup) commit(ctx context.Context) Event {
	s := b.session
	at, _ := b.core.At()
	stage := b.decoder.Stage()
	fork, heldUp := b.fork(s, stage)
	stage.EachRun(b.table.Supersede)
	for _, r := range stage.References() { // one that is true now may stand in for one that is not
		b.table.Supersede(r.Page, 1)
	}
	if err := b.table.Bad(); err != nil && s.kind == epoch.KindCheckpoint {
		return CommitFailed{fmt.Errorf("a page cannot be rebuilt: %w", err)}
	}
	ack := protocol.Ack{At: at, Materialised: min(b.table.Through(), at.Number)}
	if s.verify.Count == 0 {
		// Acknowledged is committed: the stage stays until it is applied, and
		// nothing between here and there can refuse it.
		s.ack(ctx, ack)
		crashpoint.At(crashpoint.AckSent)
	}
	if fork != nil {
		began := time.Now()
		b.spare(fork, stage)
		heldUp += time.Since(began)
	}
	if err := stage.Apply(b.standby.WritePages); err != nil {
		return CommitFailed{err} // our own image refused a write: it can no longer be trusted
	}
	// The disks first: a reference is true of them as of its own epoch, and what
	// they keep of an earlier one may lie over its block.
	if err := b.Disks.Commit(at.Number, stage.Writes(), stage.DiskState()); err != nil {
		return CommitFailed{err}
	}
	b.table.Add(stage.References(), at.Number)
	b.table.Committed(s.kind == epoch.KindCheckpoint)
	if d := stage.DeviceState(); len(d) > 0 {
		b.state = append(b.state[:0], d...)
	}
	if s.verify.Count > 0 {
		h, err := epoch.HashPages(b.table.ReadPages, s.verify.First, s.verify.Count)
		if err != nil {
			b.drop(err.Error())
			return SessionLost{err}
		}
		ack.HasHash, ack.Verified = true, h
		s.ack(ctx, ack)
		crashpoint.At(crashpoint.AckSent)
	}
	crashpoint.At(crashpoint.Applied)
	b.stats.commit(stage.PageCount())
	if fork != nil {
		fork.Committed(heldUp)
	}
	s.resume <- struct{}{}
	return nil
}

// giveUp ends the session, and tells its primary why.
func (b *Backup) giveUp(err error) {
	b.Slog.Error("the image is given up", "err", err)
	b.tellGivenUp(err)
	b.endFork(bubble.ErrImageGone)
	if s := b.session; s != nil {
		s.complain(err)
	}
	b.drop(err.Error())
}

func (b *Backup) refuse(ctx context.Context, reason string) {
	if b.greeted == nil {
		return
	}
	b.Slog.Info("session refused", "primary", b.greeted.Hello.Host, "why", reason)
	s := b.greeted.Session
	b.greeted = nil
	// The peer may be gone already; it is told if it can be.
	call, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = s.Send(call, protocol.KindRefuse, []byte(reason[:min(len(reason), protocol.MaxReason)]))
	b.start(func() { // give the refusal time to arrive before the session ends
		t := time.NewTimer(time.Second)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		_ = s.Close()
	})
}

// drop closes the session and waits for its goroutine.
func (b *Backup) drop(why string) {
	s := b.session
	if s == nil {
		return
	}
	b.Slog.Info("session from the primary closed", "why", why)
	b.session = nil
	b.endBorrowed()
	s.close()
	b.decoder.Reset()
	// The primary may go on alone, and overwrite blocks that the image still
	// lacks: should its session resume, it sends those pages again.
	b.table.Committed(false)
}

// destroy frees the image and ends the waiting machine.
func (b *Backup) destroy() error {
	if b.standby == nil {
		return nil
	}
	b.endFork(bubble.ErrImageGone)
	b.endFilling()
	s := b.standby
	b.standby, b.state = nil, nil
	b.spec.Store(nil)
	if err := s.Destroy(); err != nil {
		return fmt.Errorf("destroy the standby of %s: %w", b.cfg.Guest, err)
	}
	return nil
}

func (b *Backup) propose(ctx context.Context, c ownership.Command) {
	call, cancel := context.WithTimeout(ctx, b.cfg.TakeoverWait)
	defer cancel()
	if c.Kind == ownership.OutOfSync {
		state, err := b.Log.Propose(call, c)
		b.Slog.Info("said that the image is gone", "image", c.Backup.Image, "err", err)
		b.send(ctx, Proposed{Command: c, State: state, Err: err})
		return
	}
	if c.Kind == ownership.Return {
		// Nothing here may wait for the disks any more: the former owner needs them.
		if err := b.Disks.StandBy(call); err != nil {
			b.send(ctx, Proposed{Command: c, Err: fmt.Errorf("let go of the disks: %w", err)})
			return
		}
	}
	if c.Kind == ownership.Takeover || c.Kind == ownership.Force {
		crashpoint.At(crashpoint.TakeoverAsked)
	} else {
		crashpoint.At(crashpoint.ReturnProposed)
	}
	b.Slog.Info(LogAsking, "command", c.Kind, "generation", c.Generation, "epoch", c.Backup.Epoch)
	state, err := b.Log.Propose(call, c)
	if err != nil {
		b.Slog.Warn("the ownership log has not taken what was asked for", "command", c.Kind, "err", err)
	} else {
		b.Slog.Info(LogGranted, "command", c.Kind, "generation", state.Generation)
		crashpoint.At(crashpoint.Granted)
	}
	b.send(ctx, Proposed{Command: c, State: state, Err: err})
}

// declineTime bounds the telling that an image is given up.
const declineTime = 500 * time.Millisecond

// leave carries out what this process's end demands, and waits for it.
func (b *Backup) leave(ctx context.Context) {
	for _, a := range b.core.Step(b.Clock.Now(), Leaving{}) {
		switch a := a.(type) {
		case Drop:
			b.drop(a.Why)
		case Propose:
			call, cancel := context.WithTimeout(context.WithoutCancel(ctx), declineTime)
			_, err := b.Log.Propose(call, a.Command)
			cancel()
			b.Slog.Info("said that the image is given up: the daemon goes down", "image", a.Command.Backup.Image, "err", err)
		}
	}
}

// start runs a goroutine that Run waits for.
func (b *Backup) start(f func()) {
	b.workers.Add(1)
	go func() {
		defer b.workers.Done()
		f()
	}()
}

func (b *Backup) send(ctx context.Context, ev Event) {
	select {
	case b.events <- ev:
	case <-ctx.Done():
	}
}
