package host

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"understudy/clock"
	"understudy/egress"
	"understudy/events"
	"understudy/hypervisor/sim"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
)

// again returns the guest web as p.up makes it, for a host that has given it up.
func (p *pair) again(d *daemon) Guest {
	p.Helper()
	inner, outer := egress.NewPipe(256)
	network, _ := egress.NewPipe(256)
	gate, err := egress.NewGate(egress.Config{Guest: outer, Network: network, Clock: clock.Boot{}, MAC: pairMAC, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		p.Fatal(err)
	}
	link := sim.NewLink(inner, egress.ErrEmpty)
	p.Cleanup(func() { _ = link.Close() })
	cfg := sim.DefaultConfig("web")
	cfg.Pages, cfg.Interval, cfg.MAC, cfg.NIC = 1024, 2*time.Millisecond, pairMAC, link // twice as large
	driver, err := sim.NewDriver(d.machine, cfg)
	if err != nil {
		p.Fatal(err)
	}
	g := d.host.cfg.Guests[0]
	g.Driver, g.Gate = driver, gate
	return g
}

// status is that of the only guest.
func (d *daemon) status(t *testing.T) GuestStatus {
	t.Helper()
	all := d.host.Status()
	if len(all) != 1 {
		t.Fatalf("%d guests", len(all))
	}
	return all[0]
}

// TestGuestsComeAndGo while the daemons of both hosts run: a guest that runs is
// not removed, neither from its owner nor from its backup; one that was stopped
// is, comes back with more memory, boots and is protected.
func TestGuestsComeAndGo(t *testing.T) {
	p := &pair{T: t, log: &memoryLog{news: make(chan struct{})}, wire: map[ownership.HostID]*egress.Pipe{},
		doors: map[ownership.HostID]chan protocol.Session{"a": make(chan protocol.Session), "b": make(chan protocol.Session)}}
	a, b := p.up("a", "b"), p.up("b", "a")
	inOrder(t, a.record, 0, events.KindProtected)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	for d, want := range map[*daemon]string{a: "understudy stop web", b: "is the backup in sync"} {
		if err := d.host.Remove(ctx, "web"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a guest that runs was removed, or nobody is told how: %v", err)
		}
		if err := d.host.Add(p.again(d)); err == nil || !strings.Contains(err.Error(), "is here already") {
			t.Errorf("added twice: %v", err)
		}
	}
	if st := a.status(t); st.Protected != ProtectedYes {
		t.Errorf("after all that it is %+v", st)
	}

	// New settings reach the role that is played, and the one that follows.
	g := a.host.cfg.Guests[0]
	settings := g.Primary
	g.Primary = func(l time.Duration) primary.Config {
		c := settings(l)
		c.Window = 5
		return c
	}
	if err := a.host.Change(ctx, g, true); err != nil {
		t.Fatal(err)
	}
	if err := b.host.Change(ctx, b.host.cfg.Guests[0], true); err != nil {
		t.Fatal(err)
	}
	until(t, "protected again", func() bool { return a.status(t).Protected == ProtectedYes })
	if err := a.host.Change(ctx, Guest{Name: "db"}, false); err == nil {
		t.Error("a guest that is not here was changed")
	}

	if _, err := a.host.Stop(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	for _, d := range []*daemon{a, b} {
		until(t, "stopped", func() bool { return d.status(t).Role == "stopped" })
		if err := d.host.Remove(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		if left := d.host.Status(); len(left) != 0 {
			t.Errorf("left: %+v", left)
		}
		if err := d.host.Remove(ctx, "web"); err == nil {
			t.Error("removed twice")
		}
	}
	since := newest(a.record)
	for _, d := range []*daemon{b, a} {
		if err := d.host.Add(p.again(d)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "taken on", func() bool { return a.status(t).Role == "stopped" })
	if _, err := a.host.Start(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	inOrder(t, a.record, since, events.KindProtected)
	if st := a.status(t); st.Primary.Pages != 1024 {
		t.Errorf("it has %d pages, not its new memory", st.Primary.Pages)
	}
}

// TestAGuestWithoutAHomeHereBootsWhenItBecomesOne: nobody has booted the guest yet,
// and the host that waits for it becomes its home.
func TestAGuestWithoutAHomeHereBootsWhenItBecomesOne(t *testing.T) {
	p := &pair{T: t, log: &memoryLog{news: make(chan struct{})}, wire: map[ownership.HostID]*egress.Pipe{},
		doors: map[ownership.HostID]chan protocol.Session{"a": make(chan protocol.Session), "b": make(chan protocol.Session)}}
	b := p.up("b", "a")
	until(t, "it waits", func() bool { return b.status(t).Role == "waiting" })
	g := b.host.cfg.Guests[0]
	g.Home = "b"
	if err := b.host.Change(t.Context(), g, false); err != nil {
		t.Fatal(err)
	}
	inOrder(t, b.record, 0, events.KindBooted)
}

// TestAGuestThatIsStartedAtTheLastMomentStays: what the log says once the manager
// has ended is what counts.
func TestAGuestThatIsStartedAtTheLastMomentStays(t *testing.T) {
	s := newScene(t)
	left, err := sim.ReadBoot(s.guest())
	s.must(err)
	s.end()
	s.cfg.Log = &lateLog{memoryLog: s.log}
	s.run()
	s.role("primary")
	if err := s.host.Remove(context.WithValue(t.Context(), operator{}, true), "web"); err == nil || !strings.Contains(err.Error(), "stays") {
		t.Fatalf("removed: %v", err)
	}
	s.role("primary")
	now, err := sim.ReadBoot(s.guest())
	s.must(err)
	if now.ID != left.ID {
		t.Errorf("the guest %+v was booted anew as %+v", left, now)
	}
}

// lateLog tells an operator once that the guest is stopped.
type lateLog struct {
	*memoryLog
	asked int
}

func (l *lateLog) Read(ctx context.Context, guest string) (ownership.Guest, error) {
	st, err := l.memoryLog.Read(ctx, guest)
	if ctx.Value(operator{}) != nil {
		if l.asked++; l.asked == 1 {
			st.Desired = ownership.Stopped
		}
	}
	return st, err
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func newest(l *events.Log) uint64 {
	for _, e := range l.Newest(1, events.Filter{}) {
		return e.Seq
	}
	return 0
}
