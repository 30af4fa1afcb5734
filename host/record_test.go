package host

// What the record of a host says: of a failover on the new owner, and of the life
// of a guest on one host.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/backup"
	"understudy/clock"
	"understudy/egress"
	"understudy/events"
	"understudy/hypervisor/sim"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
	"understudy/protocol/protocoltest"
)

func newRecord(t *testing.T, self ownership.HostID) *events.Log {
	t.Helper()
	l, err := events.Open(events.Config{Host: self, BootID: "this one", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// inOrder waits until the record has events of these kinds, in this order, with
// others between them, and returns them.
func inOrder(t *testing.T, l *events.Log, since uint64, want ...events.Kind) []events.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var found []events.Event
	var all strings.Builder
	for e := range l.Follow(ctx, since, events.Filter{}) {
		fmt.Fprintf(&all, "%d %s %s%v %s\n", e.Seq, e.Kind, e.Reason, e.Change, e.Text)
		if e.Kind == want[len(found)] {
			if found = append(found, e); len(found) == len(want) {
				return found
			}
		}
	}
	t.Fatalf("%d of %q within 20 s:\n%s", len(found), want, &all)
	return nil
}

// pair is two hosts with a log that grants whatever may be granted.
type pair struct {
	*testing.T
	log    *memoryLog
	doors  map[ownership.HostID]chan protocol.Session // of those who listen
	wire   map[ownership.HostID]*egress.Pipe          // a host's network
	fence  chan error                                 // Config.Fence; nil: none
	shared bool                                       // Guest.Shared
	home   time.Duration                              // Guest.FailbackAfter
	drills func(ctx context.Context) string           // Config.Drilling
}

func newPair(t *testing.T) *pair {
	return &pair{T: t, log: &memoryLog{news: make(chan struct{})}, wire: map[ownership.HostID]*egress.Pipe{},
		doors: map[ownership.HostID]chan protocol.Session{"a": make(chan protocol.Session), "b": make(chan protocol.Session)}}
}

// daemon is one of the two hosts, while it is up.
type daemon struct {
	record  *events.Log
	machine *sim.Host
	host    *Host
	end     func() // of the daemon; the machine goes on
}

var pairMAC = sim.MACFor("web")

func (p *pair) up(self, peer ownership.HostID) *daemon {
	p.Helper()
	d := &daemon{record: newRecord(p.T, self), machine: sim.NewHost(string(self))}
	guestEnd, inner := egress.NewPipe(256)
	network, outer := egress.NewPipe(256)
	p.wire[self] = outer
	gate, err := egress.NewGate(egress.Config{Guest: guestEnd, Network: network, Clock: clock.Boot{}, MAC: pairMAC, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		p.Fatal(err)
	}
	link := sim.NewLink(inner, egress.ErrEmpty)
	cfg := sim.DefaultConfig("web")
	cfg.Pages, cfg.Interval, cfg.MAC, cfg.NIC = 512, 2*time.Millisecond, pairMAC, link
	driver, err := sim.NewDriver(d.machine, cfg)
	if err != nil {
		p.Fatal(err)
	}
	d.host, err = New(Config{
		Self: self, Log: p.log, Clock: clock.Boot{}, Slog: slog.New(slog.DiscardHandler), AdoptLater: true, Events: d.record, Drilling: p.drills,
		Accept: func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
			select {
			case s := <-p.doors[self]:
				return s, peer, nil
			case <-ctx.Done():
				return nil, "", ctx.Err()
			}
		},
		Guests: []Guest{{
			Name: "web", Home: "a", Peer: peer, FailbackAfter: p.home, Shared: p.shared, Hypervisor: "sim", Driver: driver, Gate: gate,
			Primary: func(l time.Duration) primary.Config {
				c := primary.DefaultConfig("web", self, l)
				c.CaptureBytes, c.SyncStep = 8<<20, 512
				return c
			},
			Backup: func(l time.Duration) backup.Config { return backup.DefaultConfig("web", self, l, 4<<20) },
			Dial: func(ctx context.Context) (protocol.Session, error) {
				here, there := protocoltest.Pair()
				select {
				case p.doors[peer] <- there:
					return here, nil
				case <-time.After(20 * time.Millisecond):
					return nil, errors.New("nobody listens")
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			},
		}},
	})
	if err != nil {
		p.Fatal(err)
	}
	if p.fence != nil {
		d.host.cfg.FenceAfter = func(ownership.HostID) (time.Duration, bool) { return 50 * time.Millisecond, true }
		d.host.cfg.Fence = func(ctx context.Context, _ ownership.HostID) error {
			select {
			case err := <-p.fence:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = d.host.Run(ctx) })
	d.end = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		_ = link.Close()
	})
	p.Cleanup(func() {
		d.end()
		d.machine.Kill()
	})
	return d
}

// TestAFailoverIsToldInOrder on the new owner: what a drill makes its RTO of.
func TestAFailoverIsToldInOrder(t *testing.T) {
	p := newPair(t)
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindBooted, events.KindUnprotected, events.KindProtected)

	// A client whose network is at b alone.
	link := sim.NewLink(p.wire["b"], egress.ErrEmpty)
	client, err := sim.NewClient(sim.ClientConfig{Guest: pairMAC, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0x99}, NIC: link})
	if err != nil {
		t.Fatal(err)
	}
	calling, hangUp := context.WithCancel(t.Context())
	var called sync.WaitGroup
	called.Go(func() { _ = client.Run(calling) })
	defer func() { hangUp(); called.Wait(); _ = link.Close() }()

	a.end() // nothing of it says goodbye
	a.machine.Kill()
	inOrder(t, b.record, 0, events.KindTakeoverAsked, events.KindTakeoverGranted, events.KindTakeoverRunning, events.KindFirstOutput)
	again := p.up("a", "b")
	told := inOrder(t, b.record, 0, events.KindTakeoverAsked, events.KindTakeoverGranted, events.KindTakeoverRunning,
		events.KindActivated, events.KindFirstOutput, events.KindProtected)
	for i, e := range told {
		if e.Guest != "web" || e.Host != "b" || e.BootID != "this one" || i > 0 && e.Boot < told[i-1].Boot {
			t.Errorf("told %+v", e)
		}
		if e.Generation != 2 && i > 0 {
			t.Errorf("told %+v, in generation 2", e)
		}
	}
	asked, running, first := told[0], told[2], told[4]
	if asked.Reason != events.ReasonOwnerSilent || asked.Peer != "a" || asked.Epoch == 0 || asked.Duration < 200*time.Millisecond {
		t.Errorf("asked: %+v", asked)
	}
	if running.Epoch != asked.Epoch || running.Duration <= 0 || first.Duration <= 0 || first.Duration > 10*time.Second {
		t.Errorf("running: %+v, first output: %+v", running, first)
	}
	if d, exact := asked.Until(first); !exact || d < running.Duration {
		t.Errorf("from asked to the first output %v, exact: %v", d, exact)
	}
	role := inOrder(t, b.record, asked.Seq, events.KindRoleChanged)[0]
	if role.Change != (events.Change{From: "backup", To: "primary"}) || role.Duration <= 0 {
		t.Errorf("told %+v", role)
	}
	if role = inOrder(t, again.record, 0, events.KindRoleChanged)[0]; role.Change != (events.Change{To: "backup"}) {
		t.Errorf("told %+v", role)
	}
	for e := range b.record.Follow(t.Context(), 0, events.Filter{Kinds: []events.Kind{events.KindOwnerChanged}}) {
		if e.Change.To == "b" {
			if e.Change.From != "a" || e.Generation != 2 {
				t.Errorf("told %+v", e)
			}
			break
		}
	}
	if n := len(b.record.Since(0, events.Filter{Kinds: []events.Kind{events.KindFirstOutput}}, 0)); n != 1 {
		t.Errorf("%d first outputs of one takeover", n)
	}
	if st := b.host.Status()[0]; st.Takeovers != 1 || st.Earlier != nil || st.Primary == nil {
		t.Errorf("one takeover, and it goes on: %+v", st)
	}
	if _, err := b.host.Stop(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	inOrder(t, b.record, asked.Seq, events.KindStopped, events.KindRoleChanged)
	if st := b.host.Status()[0]; st.Takeovers != 1 || st.Primary != nil || st.Earlier == nil || st.Earlier.Commits == 0 {
		t.Errorf("what the stopped guest's primary has done is forgotten: %+v", st)
	}
}

// TestALifeIsToldInOrder: adopted, stopped, started, and what was in the way.
func TestALifeIsToldInOrder(t *testing.T) {
	s := newScene(t)
	s.end()
	s.cfg.Events = newRecord(t, "a")
	record := s.cfg.Events.(*events.Log)
	slow := &busyLog{memoryLog: s.log}
	s.cfg.Log = slow
	s.run()
	problem := inOrder(t, record, 0, events.KindProblem)[0]
	if problem.Text != "read the ownership log: no leader" {
		t.Errorf("told %+v", problem)
	}
	slow.asked.Store(true)
	told := inOrder(t, record, 0, events.KindProblem, events.KindRoleChanged, events.KindAdopted, events.KindRoleChanged, events.KindProblemOver, events.KindUnprotected)
	if told[1].Change.To != "recovering" || told[3].Change != (events.Change{From: "recovering", To: "primary"}) || told[2].Generation != 2 {
		t.Errorf("told %+v", told)
	}
	if n := len(record.Since(0, events.Filter{Kinds: []events.Kind{events.KindProblem}}, 0)); n != 1 {
		t.Errorf("one problem was told %d times", n)
	}
	at := record.Newest(1, events.Filter{})[0].Seq
	s.stop()
	inOrder(t, record, at, events.KindStopAsked, events.KindStopped, events.KindRoleChanged)
	_, err := s.host.Start(t.Context(), "web")
	s.must(err)
	told = inOrder(t, record, at, events.KindStarted, events.KindBooted, events.KindRoleChanged, events.KindUnprotected)
	if told[0].Generation != 3 || told[1].Generation != 4 || told[2].Change.To != "primary" || told[1].Duration <= 0 {
		t.Errorf("told %+v", told)
	}
	at = told[3].Seq
	_, err = s.save("f", SaveRequest{Stop: true})
	s.must(err)
	s.role("stopped")
	_, err = s.restore("f", true)
	s.must(err)
	inOrder(t, record, at, events.KindStopped, events.KindRestored, events.KindRoleChanged)
}

// asks asks for the status whenever a role or a problem is told.
type asks struct {
	*events.Log
	host  func() *Host
	wrong chan string
}

func (a asks) Add(e events.Event) {
	st := a.host().Status()[0]
	switch {
	case e.Kind == events.KindRoleChanged && st.Role != e.Change.To,
		e.Kind == events.KindProblem && st.Problem != e.Text,
		e.Kind == events.KindProblemOver && st.Problem != "":
		select {
		case a.wrong <- fmt.Sprintf("told %+v while the status says %+v", e, st):
		default:
		}
	}
	a.Log.Add(e)
}

// Who hears that this host plays another part, or of a problem, and asks for
// the status, finds it there.
func TestTheStatusKnowsWhatIsTold(t *testing.T) {
	s := newScene(t)
	s.end()
	told := asks{Log: newRecord(t, "a"), host: func() *Host { return s.host }, wrong: make(chan string, 1)}
	s.cfg.Events = told
	slow := &busyLog{memoryLog: s.log}
	s.cfg.Log = slow
	s.run()
	inOrder(t, told.Log, 0, events.KindProblem)
	slow.asked.Store(true)
	at := inOrder(t, told.Log, 0, events.KindRoleChanged, events.KindRoleChanged, events.KindProblemOver)[2].Seq
	s.stop()
	inOrder(t, told.Log, at, events.KindRoleChanged)
	select {
	case wrong := <-told.wrong:
		t.Error(wrong)
	default:
	}
}
