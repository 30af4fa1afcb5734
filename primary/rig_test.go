package primary

// The rig of the shell's tests: a simulated guest, a gate and a log in memory,
// and for the other host either a real backup or a script.

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"understudy/backup"
	"understudy/clock"
	"understudy/epoch"
	"understudy/hypervisor/sim"
	"understudy/ownership"
	"understudy/protocol"
	"understudy/protocol/protocoltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const rigLease = time.Second

// rigGate notes what it is told.
type rigGate struct {
	mu       sync.Mutex
	mode     string
	sealed   epoch.Number
	released epoch.Number
	pressure chan struct{}
}

func (g *rigGate) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

func (g *rigGate) Seal(n epoch.Number) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n <= g.sealed { // as package egress has it
		return errors.New("sealed already")
	}
	g.sealed = n
	return nil
}
func (g *rigGate) Release(n epoch.Number)       { g.set(func() { g.released = n }) }
func (g *rigGate) Hold()                        { g.set(func() { g.mode, g.sealed = "hold", 0 }) }
func (g *rigGate) Pass()                        { g.set(func() { g.mode, g.sealed = "pass", 0 }) }
func (g *rigGate) Shut()                        { g.set(func() { g.mode = "shut" }) }
func (g *rigGate) Allow(clock.Instant) error    { return nil }
func (g *rigGate) Announce(...netip.Addr) error { return nil }
func (g *rigGate) Held() (int, int64)           { return 0, 0 }
func (g *rigGate) Pressure() <-chan struct{}    { return g.pressure }

func (g *rigGate) releasedTo() epoch.Number {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.released
}

// rigLog is the ownership log, and grants every renewal.
type rigLog struct {
	clock clock.Clock
	mu    sync.Mutex
	state ownership.Guest
	news  chan struct{}
}

func (l *rigLog) Renew(context.Context, string, epoch.Generation) (clock.Instant, error) {
	return l.clock.Now().Add(rigLease), nil
}

func (l *rigLog) Propose(ctx context.Context, c ownership.Command) (ownership.Guest, error) {
	l.mu.Lock()
	for c.Kind == ownership.Takeover && l.state.Revision == c.Revision {
		// The owner renews its lease for ever.
		news := l.news
		l.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
			return ownership.Guest{}, ctx.Err()
		}
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	next, err := ownership.Apply(l.state, c)
	if err == nil {
		l.state = next
		close(l.news)
		l.news = make(chan struct{})
	}
	return next, err
}

func (l *rigLog) Watch(ctx context.Context, _ string) <-chan ownership.Guest {
	out := make(chan ownership.Guest)
	go func() {
		defer close(out)
		for {
			l.mu.Lock()
			st, news := l.state, l.news
			l.mu.Unlock()
			select {
			case out <- st:
			case <-ctx.Done():
				return
			}
			select {
			case <-news:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (l *rigLog) now() ownership.Guest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// rig is one primary, with everything around it.
type rig struct {
	t      *testing.T
	p      *Primary
	cfg    Config
	guest  *sim.Guest
	faults *sim.Faults
	gate   *rigGate
	log    *rigLog
	backup *backup.Backup

	// dial makes the other side of each session; nil refuses.
	dial func() (protocol.Session, error)
	stop func() // ends the primary and the backup, and waits

	mu   sync.Mutex
	wire []*protocoltest.End // the primary's end of every session so far
	tap  func(kind uint8, payload []byte) error

	refuses bool // no new session
}

// inBubble runs a test of the shell under a fake clock.
func inBubble(t *testing.T, change func(*Config, *sim.Config), test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, change)
		test(r)
		r.stop()
	})
}

func newRig(t *testing.T, change func(*Config, *sim.Config)) *rig {
	r := &rig{t: t, faults: &sim.Faults{}, gate: &rigGate{pressure: make(chan struct{}, 1)}}
	ticks := clock.Go{Start: time.Now().Add(-time.Hour)}
	r.log = &rigLog{clock: ticks, news: make(chan struct{}), state: ownership.Guest{Generation: 1, Revision: 1, Owner: "a",
		Phase: ownership.PhaseActive, Desired: ownership.Running}}
	r.cfg = DefaultConfig("web", "a", rigLease)
	r.cfg.CaptureBytes, r.cfg.SyncStep, r.cfg.SyncEnough = 4*slabBytes, 512, 128
	machine := sim.DefaultConfig("web")
	machine.Pages, machine.Seed, machine.Faults = 1024, 7, r.faults
	if change != nil {
		change(&r.cfg, &machine)
	}
	driver, err := sim.NewDriver(sim.NewHost("a"), machine)
	r.must(err)
	g, err := driver.Start(t.Context())
	r.must(err)
	r.guest = g.(*sim.Guest)
	t.Cleanup(func() { _ = g.Destroy() })
	r.p, err = New(r.cfg, Deps{Guest: g, Gate: r.gate, Log: r.log, Clock: ticks, Slog: slog.New(slog.DiscardHandler),
		State: r.log.now(), Dial: func(context.Context) (protocol.Session, ownership.HostID, error) {
			r.mu.Lock()
			nobody := r.dial == nil || r.refuses
			r.mu.Unlock()
			if nobody {
				return nil, "", errors.New("nobody listens")
			}
			s, err := r.dial()
			return s, "b", err
		}})
	r.must(err)
	r.stop = func() { _ = g.Destroy() }
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// start runs the primary, and a real backup if withBackup says so.
func (r *rig) start(withBackup bool) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	if withBackup {
		machine := sim.DefaultConfig("web")
		machine.Pages = r.guest.Pages()
		driver, err := sim.NewDriver(sim.NewHost("b"), machine)
		r.must(err)
		sessions := make(chan backup.Opened)
		r.backup = backup.New(backup.DefaultConfig("web", "b", rigLease, machine.Pages*epoch.PageSize), backup.Deps{
			Driver: driver, Log: r.log, Sessions: sessions, Clock: r.log.clock, Slog: slog.New(slog.DiscardHandler), State: r.log.now()})
		running.Go(func() {
			if _, err := r.backup.Run(ctx); err != nil {
				r.t.Errorf("backup: %v", err)
			}
		})
		r.dial = func() (protocol.Session, error) {
			here, there := r.session()
			running.Go(func() {
				hello, err := hearHello(ctx, there)
				if err != nil {
					return
				}
				select {
				case sessions <- backup.Opened{Session: there, Hello: hello}:
				case <-ctx.Done():
				}
			})
			return here, nil
		}
	}
	running.Go(func() {
		if _, err := r.p.Run(ctx); err != nil {
			r.t.Errorf("primary: %v", err)
		}
	})
	r.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		_ = r.guest.Destroy()
	})
	r.t.Cleanup(r.stop)
}

// script lets f play the backup on every session.
func (r *rig) script(f func(ctx context.Context, there *protocoltest.End, hello protocol.Hello)) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	r.dial = func() (protocol.Session, error) {
		here, there := r.session()
		running.Go(func() {
			if hello, err := hearHello(ctx, there); err == nil {
				f(ctx, there, hello)
			}
		})
		return here, nil
	}
	r.start(false)
	stop := r.stop
	r.stop = sync.OnceFunc(func() { cancel(); stop(); running.Wait() })
	r.t.Cleanup(r.stop)
}

// session is a new pair, the primary's end of it tapped.
func (r *rig) session() (here, there *protocoltest.End) {
	here, there = protocoltest.Pair()
	r.mu.Lock()
	defer r.mu.Unlock()
	here.OnSend = func(kind uint8, payload []byte) error {
		r.mu.Lock()
		tap := r.tap
		r.mu.Unlock()
		if tap == nil {
			return nil
		}
		return tap(kind, payload)
	}
	r.wire = append(r.wire, here)
	return here, there
}

// cut breaks the newest session.
func (r *rig) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.wire[len(r.wire)-1].Close()
}

// refuseDials lets no new session come up.
func (r *rig) refuseDials() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuses = true
}

// onWire lets f see, and refuse, whatever the primary sends from now on.
func (r *rig) onWire(f func(kind uint8, payload []byte) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tap = f
}

func (r *rig) sessions() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.wire)
}

// wait lets fake time pass until done holds.
func (r *rig) wait(what string, limit time.Duration, done func() bool) {
	r.t.Helper()
	end := time.Now().Add(limit)
	for !done() {
		if time.Now().After(end) {
			r.t.Fatalf("%s: not within %v: %+v", what, limit, r.p.Status())
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
	}
}

func (r *rig) protected() bool { return r.p.Status().Mode == ModeProtected }

func (r *rig) commits() uint64 { return r.p.Status().Totals.Commits }

// allSlabsBack checks that the capture memory is whole; the primary has ended,
// or nothing is in flight.
func (r *rig) allSlabsBack() {
	r.t.Helper()
	r.wait("all capture memory comes back", 10*time.Second, func() bool { return len(r.p.memory.ready) == r.p.memory.count })
}

// runs reports whether the guest's memory changes.
func (r *rig) runs() bool {
	hash := func() epoch.Hash {
		h, err := epoch.HashPages(r.guest.ReadPages, 0, r.guest.Pages())
		r.must(err)
		return h
	}
	before := hash()
	time.Sleep(100 * time.Millisecond)
	return hash() != before
}

func hearHello(ctx context.Context, s protocol.Session) (protocol.Hello, error) {
	var j protocol.Joiner
	for {
		m, err := s.Receive(ctx)
		if err != nil {
			return protocol.Hello{}, err
		}
		whole, done, err := j.Add(m.Payload)
		m.Release()
		if err != nil {
			return protocol.Hello{}, err
		}
		if done {
			return protocol.ParseHello(whole)
		}
	}
}
