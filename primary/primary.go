package primary

// This file is the shell around the core, and holds the main loop:
//
//	wait for an event → core.Step → carry out its actions, in order
//
// What the loop waits for comes from goroutines that Run owns and ends: the
// lease renewer and the log watcher (log.go), the link to the backup (link.go),
// the guest's events. A capture runs inline (capture.go), because the pause is
// what everything else has to wait for.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"understudy/clock"
	"understudy/crashpoint"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/hypervisor"
	"understudy/ownership"
	"understudy/protocol"
)

// Gate is the guest's way out (package egress): frames are held until the epoch
// they belong to is released, and leave only while a lease allows it.
type Gate interface {
	// Seal is called while the guest stands still: every frame it has emitted
	// so far belongs to epoch n or an earlier one.
	Seal(n epoch.Number) error
	// Release lets the frames of every epoch up to through leave, in order.
	Release(through epoch.Number)
	// Hold makes every frame that was not released wait for the next epoch
	// that is sealed.
	Hold()
	// Pass lets every frame leave at once.
	Pass()
	// Shut lets nothing out and nothing in.
	Shut()
	// Allow lets frames leave until the given instant and not later.
	Allow(until clock.Instant) error
	// Announce tells the network that the guest is here.
	Announce(addrs ...netip.Addr) error
	Held() (frames int, bytes int64)
	// Pressure tells that held output nears its limit.
	Pressure() <-chan struct{}
}

// Ownership is the ownership log as this host sees it (package failover).
type Ownership interface {
	// Renew asks for the lease of a guest; the instant returned counts from
	// before the request was sent.
	Renew(ctx context.Context, guest string, g epoch.Generation) (clock.Instant, error)
	// Propose returns the state after c, or *ownership.Refused, or another
	// error if the outcome is unknown.
	Propose(ctx context.Context, c ownership.Command) (ownership.Guest, error)
	// Watch sends the guest's applied state now and after every change, until
	// ctx ends; a slow reader misses states, never the newest.
	Watch(ctx context.Context, guest string) <-chan ownership.Guest
}

// Dial opens a session to the backup and names it.
type Dial func(ctx context.Context) (protocol.Session, ownership.HostID, error)

// Deps are what a Primary works with.
type Deps struct {
	Guest hypervisor.Guest
	Gate  Gate
	Disks Disks // nil: the guest has none that can be written
	// Blocks is what is known to be on the disks, for saves; nil: nothing.
	Blocks Blocks
	Log    Ownership
	Dial   Dial
	Clock  clock.Clock
	Slog   *slog.Logger
	// State is the log as it was when this host became, or found itself, the
	// owner. Running says that the guest runs already.
	State   ownership.Guest
	Running bool
	// Left is what a former process has left of the guest, which it stands still
	// since; nil, or of no use: every page counts as dirty.
	Left *Left
	// Events is told what happens to the guest; nil: nobody is.
	Events Events
	// Observe, if not nil, is told what each checkpoint cost, after the guest
	// runs again. The loop waits for it.
	Observe func(Cost)
}

// Primary runs one guest of this host and keeps its backup up to date.
type Primary struct {
	cfg Config
	Deps
	core *Core

	events  chan Event                     // from goroutines without a link
	linked  chan linkEvent                 // from the link
	errands chan func(ctx context.Context) // what others want done between two events
	over    chan struct{}                  // closed when Run returns
	workers sync.WaitGroup

	generation atomic.Uint64 // under which leases are renewed
	dialing    context.CancelFunc
	link       *link
	known      []epoch.Position // what a new session may continue from
	encoder    *epoch.Encoder
	effort     effort
	memory     slabs
	devices    chan []byte // spare buffers for device states

	pending  *epoch.PageSet // dirty, and in no epoch in flight
	inflight []flight       // captured, not acknowledged, ascending
	spare    []*epoch.PageSet
	saving   *saving
	seen     *exclusion.Seen // nil: nothing is looked at ahead of a save
	will     *will           // of a guest that is stopping
	stalled  bool            // the capture under way had to wait for a backup that took nothing

	verifies    verifier
	verifyEvery chan time.Duration          // the newest setting that its goroutine has not seen
	compression atomic.Pointer[Compression] // cfg.Effort, for the sender
	stats       stats
	said        sayings
	outcome     Outcome
	left        Left // with OutcomeHandedOver
}

// flight is one epoch that was captured and not yet acknowledged.
type flight struct {
	number epoch.Number
	pages  *epoch.PageSet
	sealed clock.Instant
}

// New returns a primary; Run starts it.
func New(cfg Config, d Deps) (*Primary, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("primary of %s: %w", cfg.Guest, err)
	}
	if d.Disks == nil {
		d.Disks = noDisks{}
	}
	p := &Primary{
		cfg: cfg, Deps: d,
		core:    NewCore(cfg, d.State, d.Running),
		events:  make(chan Event, 16),
		linked:  make(chan linkEvent, 16),
		errands: make(chan func(ctx context.Context)),
		over:    make(chan struct{}),
		devices: make(chan []byte, maxWindow),
		encoder: epoch.NewEncoder(d.Guest.Pages(), cfg.Encoder),
		pending: epoch.NewPageSet(d.Guest.Pages()),
		memory:  slabs{count: cfg.CaptureBytes / slabBytes},
		seen:    newSeen(cfg, d),

		verifyEvery: make(chan time.Duration, 1),
	}
	p.compression.Store(&cfg.Effort)
	p.verifyEvery <- cfg.VerifyEvery
	p.generation.Store(uint64(d.State.Generation))
	p.pending.Fill()
	if d.Left != nil {
		p.goOn(*d.Left)
	}
	p.verifies.every = cfg.VerifyAll
	return p, nil
}

// Run is the primary's main loop. It returns when its part is over, with the
// guest paused or gone, or, when ctx ends, with the guest as it is.
func (p *Primary) Run(ctx context.Context) (Outcome, error) {
	defer close(p.over)
	defer p.memory.free()
	ctx, cancel := context.WithCancel(ctx)
	defer p.workers.Wait()
	defer cancel()
	defer p.disconnect(errors.New("the primary ends"))
	p.Disks.Own(p.State.Generation)
	p.start(ctx, p.renew)
	p.start(ctx, p.watch)
	p.start(ctx, p.listen)
	p.start(ctx, p.verifyRegularly)
	if p.seen != nil {
		p.start(ctx, p.sweep)
	}

	timer := time.NewTimer(0)
	defer timer.Stop()
	for p.outcome == 0 {
		var ev Event
		select {
		case <-ctx.Done():
			return OutcomeDetached, nil
		case <-timer.C:
			ev = Tick{}
		case ev = <-p.events:
		case f := <-p.errands:
			f(ctx)
			timer.Reset(p.core.NextWake().Sub(p.Clock.Now()))
			continue
		case l := <-p.linked:
			if l.from != nil && l.from != p.link {
				continue // of a link that was closed meanwhile
			}
			ev = p.linkEvent(l)
		}
		p.step(ctx, ev)
		timer.Reset(p.core.NextWake().Sub(p.Clock.Now()))
	}
	return p.outcome, nil
}

// step feeds one event, and what its actions bring about, to the core.
func (p *Primary) step(ctx context.Context, ev Event) {
	for queue := []Event{ev}; len(queue) > 0; queue = queue[1:] {
		before := p.core.Mode()
		actions := p.core.Step(p.Clock.Now(), queue[0])
		p.tell(queue[0], before)
		for _, a := range actions {
			if next := p.do(ctx, a); next != nil {
				queue = append(queue, next)
			}
		}
		if now := p.core.Mode(); now != before {
			p.Slog.Info("protection", "was", before, "is", now, "epoch", p.core.acked)
			p.stats.mode(now, p.Clock.Now())
			if !now.commits() {
				p.verifies.fail(ErrNotProtected)
			}
		}
	}
	p.stats.runs(p.core.running)
}

// do carries out one action. It returns the event that the action led to, if
// that is known at once.
func (p *Primary) do(ctx context.Context, a Action) Event {
	var err error
	switch a := a.(type) {
	case SyncStep:
		return p.syncStep(a.Number)
	case Capture:
		return p.capture(ctx, a)
	case Forget:
		p.forget(a.Through)
	case Restore:
		p.restore()
		p.Disks.Void()
		if _, compare := p.Disks.Unsynced(); compare > 0 {
			p.Disks.SyncAll() // answers were lost with the session
		}
		p.link.compare()
	case Refill:
		crashpoint.At(crashpoint.SyncBegun)
		p.restore()
		p.pending.Fill()
		p.Disks.Void()
		p.Disks.SyncAll()
		p.link.compare()
	case Release:
		p.Gate.Release(a.Through)
		p.Disks.Release(a.Through)
		crashpoint.At(crashpoint.Released)
	case Hold:
		crashpoint.At(crashpoint.HoldBegun)
		p.Gate.Hold()
		p.Disks.Hold()
	case Pass:
		p.Gate.Pass()
		p.Disks.Pass()
	case Shut:
		p.Gate.Shut()
		if p.core.Mode() == ModeYielded {
			p.Disks.Shut() // else what is released still has to reach them, see propose
		}
	case PauseGuest:
		p.Slog.Warn("guest paused", "why", a.Why)
		err = p.Guest.Pause(ctx)
		p.tellPaused()
	case ResumeGuest:
		err = p.Guest.Resume(ctx)
		p.tellResumed()
	case Propose:
		last := p.will
		p.said.proposed = a.Command
		p.start(ctx, func(ctx context.Context) { p.propose(ctx, a.Command, last) })
	case UseGeneration:
		p.generation.Store(uint64(a.Generation))
		p.Disks.Own(a.Generation)
	case Connect:
		p.connect(ctx)
	case Disconnect:
		p.disconnect(errors.New(a.Why))
	case Bid:
		if l := p.link; l != nil {
			p.start(ctx, func(ctx context.Context) { l.bid(ctx, a) })
		}
	case Warn:
		p.Slog.Warn(a.Text)
	case End:
		p.outcome = a.Outcome
		if a.Outcome == OutcomeHandedOver {
			p.leaveAs()
		}
	}
	if err != nil {
		p.Slog.Error("a step of the guest's protection failed", "action", fmt.Sprintf("%T", a), "err", err)
	}
	return nil
}

// start runs a goroutine that Run waits for.
func (p *Primary) start(ctx context.Context, f func(ctx context.Context)) {
	p.workers.Add(1)
	go func() {
		defer p.workers.Done()
		f(ctx)
	}()
}

// send hands an event to the loop, unless the loop has ended.
func (p *Primary) send(ctx context.Context, ev Event) {
	select {
	case p.events <- ev:
	case <-ctx.Done():
	}
}

// listen forwards what the guest does by itself, and that what is held of its
// output nears a limit.
func (p *Primary) listen(ctx context.Context) {
	guest := p.Guest.Events()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.Gate.Pressure():
			p.send(ctx, HeldFull{})
		case <-p.Disks.Pressure():
			p.send(ctx, HeldFull{})
		case ev, ok := <-guest:
			if !ok {
				guest = nil
				ev = hypervisor.Event{Kind: hypervisor.EventExited, Detail: "its event stream ended"}
			}
			p.send(ctx, GuestDid{ev})
		}
	}
}

// ErrBusy marks a guest that is on its way elsewhere already.
var ErrBusy = errors.New("it cannot be asked for now")

// Ask hands an operator's request to the primary. Once it has returned nil, what
// was asked for is under way, or the log tells why it will not be: a new
// generation, or the primary's end (Over). The error is ErrBusy if something else
// is under way, and ErrEnded after the primary's end.
func (p *Primary) Ask(ctx context.Context, r Request) error {
	return p.errand(ctx, func(loop context.Context) error {
		p.step(loop, Asked{Request: r})
		switch leave := p.core.leave; {
		case p.outcome != 0:
			return ErrEnded
		case p.core.Mode() == ModeYielded:
			return fmt.Errorf("%w: the guest is on its way to another host", ErrBusy)
		case leave != 0 && leave != r:
			return fmt.Errorf("%w: %s", ErrBusy, underWay[leave])
		}
		return nil
	})
}

// underWay says what a request is doing.
var underWay = [...]string{RequestSwitchover: "the guest is being handed to its backup", RequestStop: "the guest is being stopped",
	RequestHandover: "the guest is being left to the next daemon of this host"}

// Over is closed when Run has returned.
func (p *Primary) Over() <-chan struct{} { return p.over }
