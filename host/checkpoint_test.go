package host

// A host and its guest's checkpoint files: a real manager, a real primary and a
// simulated guest; the log, the gate and the disks are in memory.

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/backup"
	"understudy/checkpoint"
	"understudy/clock"
	"understudy/disk"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/hypervisor"
	"understudy/hypervisor/sim"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memoryLog is an ownership log of one guest, and grants every lease.
type memoryLog struct {
	mu      sync.Mutex
	state   ownership.Guest
	news    chan struct{}
	unknown int  // outcomes that are not told
	leased  bool // takeovers wait for the owner's lease, unless it is fenced
}

func (l *memoryLog) deny(leased bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leased = leased
}

func (l *memoryLog) Lease() time.Duration { return time.Second }

func (l *memoryLog) Renew(context.Context, string, epoch.Generation) (clock.Instant, error) {
	return clock.Boot{}.Now().Add(time.Second), nil
}

func (l *memoryLog) Propose(_ context.Context, c ownership.Command) (ownership.Guest, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leased && c.Kind == ownership.Takeover && l.state.Fenced != l.state.Owner {
		return l.state, ownership.ErrNotProposed
	}
	next, err := ownership.Apply(l.state, c)
	if err == nil && next != l.state {
		l.state = next
		close(l.news)
		l.news = make(chan struct{})
	}
	if l.unknown > 0 {
		l.unknown--
		return ownership.Guest{}, errors.New("no answer")
	}
	return next, err
}

func (l *memoryLog) now() ownership.Guest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

func (l *memoryLog) Read(context.Context, string) (ownership.Guest, error) {
	return l.now(), nil
}

func (l *memoryLog) Watch(ctx context.Context, _ string) <-chan ownership.Guest {
	out := make(chan ownership.Guest)
	go func() {
		defer close(out)
		for {
			l.mu.Lock()
			state, news := l.state, l.news
			l.mu.Unlock()
			select {
			case out <- state:
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

// openGate lets everything out.
type openGate struct{}

func (openGate) Seal(epoch.Number) error      { return nil }
func (openGate) Release(epoch.Number)         {}
func (openGate) Hold()                        {}
func (openGate) Pass()                        {}
func (openGate) Shut()                        {}
func (openGate) Allow(clock.Instant) error    { return nil }
func (openGate) Announce(...netip.Addr) error { return nil }
func (openGate) Held() (int, int64)           { return 0, 0 }
func (openGate) Pressure() <-chan struct{}    { return nil }
func (openGate) Discard()                     {}
func (openGate) OnFirst(func())               {}
func (openGate) Close() error                 { return nil }

// oneDisk is a disk whose stamp is all there is to it. It is Disks and History.
type oneDisk struct {
	Disks
	mu        sync.Mutex
	stamp     string
	pins      map[string]string // name → stamp
	committed []epoch.DiskWrite
	state     []byte
	did       []string
	fails     string // what fails
	missing   bool   // what was held for the guest
	locked    func() // is called when a rollback has locked the disk
	writes    []epoch.DiskWrite
}

func (d *oneDisk) do(what string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.did = append(d.did, what)
	if d.fails == what {
		return errors.New(what + " failed")
	}
	return nil
}

func (d *oneDisk) has(what string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, done := range d.did {
		if done == what {
			return true
		}
	}
	return false
}

func (d *oneDisk) Own(epoch.Generation)          {}
func (d *oneDisk) Pass()                         {}
func (d *oneDisk) Hold()                         {}
func (d *oneDisk) Shut()                         {}
func (d *oneDisk) Allow(clock.Instant) error     { return nil }
func (d *oneDisk) Pressure() <-chan struct{}     { return nil }
func (d *oneDisk) CollectDirty(*epoch.PageSet)   {}
func (d *oneDisk) Void()                         {}
func (d *oneDisk) Drain(context.Context) error   { return d.do("drain") }
func (d *oneDisk) StandBy(context.Context) error { return nil }
func (d *oneDisk) Status() disk.Status {
	return disk.Status{Recovered: disk.Recovered{Missing: d.missing}}
}
func (d *oneDisk) Excluded() exclusion.Stats               { return exclusion.Stats{} }
func (d *oneDisk) Close() error                            { return nil }
func (d *oneDisk) SetFiller(func(epoch.GFN, uint64) error) {}
func (d *oneDisk) ReadSectors(epoch.DiskID, uint64, []byte) error {
	return errors.New("nothing refers to it")
}
func (d *oneDisk) Snapshot() ([]epoch.DiskWrite, []byte, error) {
	return d.writes, []byte("in flight"), nil
}
func (d *oneDisk) Finder() (checkpoint.Finder, epoch.PrintKey)           { return nil, 5 }
func (d *oneDisk) Sync() error                                           { return d.do("sync") }
func (d *oneDisk) Unpin(context.Context, epoch.Generation, string) error { return d.do("unpin") }

func (d *oneDisk) Activate(context.Context, func(epoch.DiskID, uint64, uint32) error) error {
	return d.do("activate")
}

func (d *oneDisk) Commit(_ epoch.Number, writes []epoch.DiskWrite, state []byte) error {
	d.committed, d.state = writes, state
	return d.do("commit")
}

func (d *oneDisk) Mark(pins string) ([]checkpoint.Disk, error) {
	m := checkpoint.Disk{Name: "/srv/web.img", Store: "shared", Sectors: 64}
	d.mu.Lock()
	m.Stamp = d.stamp
	if pins != "" {
		m.Pin = "pin"
		d.pins = map[string]string{"pin": d.stamp}
	}
	d.mu.Unlock()
	return []checkpoint.Disk{m}, d.do("mark")
}

func (d *oneDisk) Conditions() ([]checkpoint.DiskCondition, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := checkpoint.DiskCondition{Name: "/srv/web.img", Sectors: 64, Stamp: d.stamp}
	for name := range d.pins {
		c.Pins = append(c.Pins, name)
	}
	return []checkpoint.DiskCondition{c}, nil
}

func (d *oneDisk) Blocks([]checkpoint.Disk) (checkpoint.Blocks, func(), error) {
	return d, func() {}, nil
}

func (d *oneDisk) Rollback(ctx context.Context, _ epoch.Generation, marked []checkpoint.Disk, still func(context.Context) error) error {
	if d.locked != nil {
		d.locked()
	}
	if err := still(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	d.stamp = d.pins[marked[0].Pin]
	d.mu.Unlock()
	return d.do("rollback")
}

// Whole has it that a rollback which failed was begun.
func (d *oneDisk) Whole() error {
	if d.fails == "rollback" && d.has("rollback") {
		return errors.New("half rolled back")
	}
	return nil
}

func (d *oneDisk) write(stamp string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stamp = stamp
}

// scene is one host with one guest that boots, and a disk.
type scene struct {
	*testing.T
	log    *memoryLog
	disk   *oneDisk
	faults *sim.Faults
	cfg    Config
	host   *Host
	dir    string
	end    func() // of the daemon
}

func newScene(t *testing.T) *scene {
	s := &scene{T: t, log: &memoryLog{news: make(chan struct{})}, disk: &oneDisk{stamp: "one"}, faults: &sim.Faults{}, dir: t.TempDir()}
	cfg := sim.DefaultConfig("web")
	cfg.Pages, cfg.Interval, cfg.Faults = 512, 500*time.Microsecond, s.faults
	machine := sim.NewHost("a")
	driver, err := sim.NewDriver(machine, cfg)
	s.must(err)
	s.cfg = Config{
		AdoptLater: true, Self: "a", Log: s.log, Clock: clock.Boot{}, Slog: slog.New(slog.DiscardHandler),
		Accept: func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
			<-ctx.Done()
			return nil, "", ctx.Err()
		},
		Guests: []Guest{{
			Name: "web", Home: "a", Peer: "b", Hypervisor: "sim", Driver: driver, Gate: openGate{}, Disks: s.disk, History: s.disk,
			Primary: func(l time.Duration) primary.Config { return primary.DefaultConfig("web", "a", l) },
			Backup:  func(l time.Duration) backup.Config { return backup.DefaultConfig("web", "a", l, 4<<20) },
			Dial:    func(context.Context) (protocol.Session, error) { return nil, errors.New("nobody") },
		}},
	}
	s.run()
	t.Cleanup(func() {
		s.end()
		machine.Kill()
	})
	s.counts(20)
	return s
}

// run starts a daemon.
func (s *scene) run() {
	var err error
	s.host, err = New(s.cfg)
	s.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.host.Run(ctx) })
	s.end = func() {
		cancel()
		running.Wait()
	}
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// guest is the running guest, nil if there is none.
func (s *scene) guest() hypervisor.Guest {
	m := s.host.managers["web"]
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.primary == nil {
		return nil
	}
	return m.primary.Guest
}

// counter is the running guest's, 0 if there is none.
func (s *scene) counter() uint64 {
	if g := s.guest(); g != nil {
		if b, err := sim.ReadBoot(g); err == nil {
			return b.Counter
		}
	}
	return 0
}

func (s *scene) until(what string, done func() bool) {
	s.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(200 * time.Microsecond) {
		if time.Now().After(end) {
			s.Fatalf("%s: not within 20 s: %+v", what, s.host.Status())
		}
	}
}

// counts waits until the guest has taken so many steps.
func (s *scene) counts(steps uint64) {
	s.Helper()
	s.until("the guest goes on", func() bool { return s.counter() >= steps })
}

func (s *scene) role(want string) {
	s.Helper()
	s.until("role "+want, func() bool { return s.host.Status()[0].Role == want })
}

func (s *scene) save(name string, req SaveRequest) (SaveResult, error) {
	req.File = filepath.Join(s.dir, name)
	return s.host.SaveCheckpoint(s.Context(), "web", req, nil)
}

func (s *scene) restore(name string, eager bool) (RestoreResult, error) {
	return s.host.RestoreCheckpoint(s.Context(), "web", RestoreRequest{File: filepath.Join(s.dir, name), Eager: eager}, nil)
}

func (s *scene) stop() {
	s.Helper()
	_, err := s.host.Stop(s.Context(), "web")
	s.must(err)
	s.role("stopped")
}

func (s *scene) refused(err error, want string) {
	s.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		s.Errorf("got %v, want an error with %q", err, want)
	}
}

func TestAGuestGoesOnFromWhereItWasPinned(t *testing.T) {
	s := newScene(t)
	s.disk.writes = []epoch.DiskWrite{{Seq: 9, Kind: epoch.WriteZeroes, Sector: 8, Sectors: 4}}
	saved, err := s.save("f", SaveRequest{Pin: true})
	s.must(err)
	at := s.counter()
	if len(saved.Pins) != 1 || saved.Pins[0] != filepath.Join(s.dir, "f.pin") || saved.Pause <= 0 {
		t.Errorf("saved: %+v", saved)
	}
	s.disk.write("two")
	s.counts(at + 100)
	_, err = s.restore("f", false)
	s.refused(err, "is not stopped: it runs on host a; stop it first")
	s.stop()

	found, err := s.host.VerifyCheckpoint(t.Context(), "web", filepath.Join(s.dir, "f"), nil)
	if err != nil || !found.Well() || !found.Pinned {
		t.Errorf("verify: %+v, %v", found, err)
	}
	back, err := s.restore("f", false)
	s.must(err)
	if !back.RolledBack || !back.Lazy || back.Log.Generation != 2 || back.Log.Owner != "a" {
		t.Errorf("restored: %+v", back)
	}
	if b, err := sim.ReadBoot(s.mustGuest()); err != nil || b.Boots != 1 || b.Counter > at+90 {
		t.Errorf("the guest is at step %d of boot %d, it was saved before step %d of its first", b.Counter, b.Boots, at)
	}
	if len(s.disk.committed) != 1 || s.disk.committed[0].Seq != 9 || string(s.disk.state) != "in flight" {
		t.Errorf("the disks were given %+v, %q", s.disk.committed, s.disk.state)
	}
	s.counts(at + 10)
	s.role("primary")
	s.must(s.host.RemoveCheckpoint(t.Context(), "web", filepath.Join(s.dir, "f"), false))
	if !s.disk.has("unpin") {
		t.Error("the pin was not ended")
	}
}

func TestADiskHalfRolledBackIsNotBootedFrom(t *testing.T) {
	s := newScene(t)
	_, err := s.save("f", SaveRequest{Pin: true})
	s.must(err)
	s.disk.write("two")
	s.stop()
	s.disk.fails = "rollback"
	_, err = s.restore("f", false)
	s.refused(err, "restore again to resume that: rollback failed")
	s.role("stopped")
	_, err = s.host.Start(t.Context(), "web")
	s.refused(err, `guest "web" is not booted: half rolled back`)
	s.disk.mu.Lock()
	s.disk.fails, s.disk.stamp = "", "three"
	s.disk.mu.Unlock()
	back, err := s.restore("f", false)
	if err != nil || !back.RolledBack {
		t.Errorf("%+v, %v", back, err)
	}
}

// TestAGuestStartedElsewhereKeepsItsDisk: the other host may be asked to start it
// while this one is asked to restore it.
func TestAGuestStartedElsewhereKeepsItsDisk(t *testing.T) {
	s := newScene(t)
	_, err := s.save("f", SaveRequest{Pin: true})
	s.must(err)
	s.disk.write("two")
	s.stop()
	s.disk.locked = func() {
		now := s.log.now()
		_, err := s.log.Propose(t.Context(), ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Start, Host: "b",
			Generation: now.Generation, Revision: now.Revision})
		s.must(err)
	}
	_, err = s.restore("f", false)
	s.refused(err, "was started or given away meanwhile")
	s.role("backup")
	if s.disk.has("rollback") {
		t.Error("its disk was rolled back")
	}
}

// mustGuest waits for the guest that runs.
func (s *scene) mustGuest() hypervisor.Guest {
	s.until("a guest", func() bool { return s.guest() != nil })
	return s.guest()
}

func TestAGuestStopsWithItsSaveAndLosesNoStep(t *testing.T) {
	s := newScene(t)
	saved, err := s.save("f", SaveRequest{Stop: true})
	s.must(err)
	s.role("stopped")
	if !saved.Stopped || s.log.now().Desired != ownership.Stopped || !s.disk.has("drain") {
		t.Errorf("saved: %+v, the log says %s, the disk %q", saved, s.log.now().Desired, s.disk.did)
	}
	for _, eager := range []bool{true, false} {
		back, err := s.restore("f", eager)
		s.must(err)
		if back.RolledBack || back.Lazy == eager {
			t.Errorf("restored: %+v", back)
		}
		b, err := sim.ReadBoot(s.mustGuest())
		s.must(err)
		s.counts(b.Counter + 50)
		s.stop()
	}
	// Written to since, by another life of the guest.
	s.disk.write("two")
	_, err = s.restore("f", false)
	s.refused(err, "disk 0 (/srv/web.img): the disk is not as it was when the checkpoint was taken: its stamp is two, it was one")
	s.role("stopped")
	if g := s.log.now(); g.Generation != 3 || g.Desired != ownership.Stopped {
		t.Errorf("after a refusal the log says %+v", g)
	}
}

// TestAFileThatCannotBeHadCostsNoGuest: it runs on, also if it was to stop.
func TestAFileThatCannotBeHadCostsNoGuest(t *testing.T) {
	for _, c := range []struct {
		fails string
		req   SaveRequest
	}{
		{"mark", SaveRequest{}}, {"mark", SaveRequest{Stop: true}}, {"sync", SaveRequest{Pin: true}}, {"sync", SaveRequest{Stop: true}},
	} {
		s := newScene(t)
		s.disk.fails = c.fails
		_, err := s.save("f", c.req)
		s.refused(err, c.fails+" failed")
		s.counts(s.counter() + 50)
		if c.req.Pin && !s.disk.has("unpin") {
			t.Error("the pin of a save that failed was left")
		}
		if left, _ := filepath.Glob(filepath.Join(s.dir, "*")); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		s.disk.mu.Lock()
		s.disk.fails = ""
		s.disk.mu.Unlock()
		_, err = s.save("f", SaveRequest{Stop: true})
		s.must(err)
		s.role("stopped")
	}
}

// TestAGuestThatIsNotRestoredStaysStopped: it is not booted on disks that are
// meant for another memory.
func TestAGuestThatIsNotRestoredStaysStopped(t *testing.T) {
	s := newScene(t)
	_, err := s.save("f", SaveRequest{Stop: true})
	s.must(err)
	for _, c := range []struct{ fails, want string }{
		{"commit", "the guest's last writes: commit failed"},
		{"activate", "run the restored guest: activate the disks: activate failed"},
		{"load", "loading the device state"},
	} {
		s.role("stopped")
		s.disk.mu.Lock()
		s.disk.fails = c.fails
		s.disk.mu.Unlock()
		if c.fails == "load" {
			s.faults.FailLoad(1)
		}
		_, err := s.restore("f", false)
		s.refused(err, c.want)
		s.role("stopped")
		if s.log.now().Desired != ownership.Stopped {
			t.Errorf("%s: the log says %+v", c.fails, s.log.now())
		}
	}
	// The answer of the log may be lost.
	s.log.mu.Lock()
	s.log.unknown = 1
	s.log.mu.Unlock()
	before := s.log.now().Generation
	back, err := s.restore("f", false)
	if err != nil || back.Log.Generation != before+1 {
		t.Errorf("%+v, %v", back, err)
	}
	if b, err := sim.ReadBoot(s.mustGuest()); err != nil || b.Boots != 1 {
		t.Errorf("the guest was booted %d times: %v", b.Boots, err)
	}
}

func TestAFileOfAnotherGuestIsRefused(t *testing.T) {
	s := newScene(t)
	make := func(name string, head checkpoint.Head) {
		head.Pages, head.Key, head.Machine, head.Created = 512, 1, []byte("{}"), time.Now()
		w, err := checkpoint.Create(filepath.Join(s.dir, name), head, checkpoint.Options{})
		s.must(err)
		s.must(w.Zero(0, 512))
		s.must(w.Final(checkpoint.Final{DeviceState: []byte("x"), Disks: []checkpoint.Disk{{Name: "d", Store: "shared", Sectors: 64, Stamp: "one"}}}))
		_, err = w.Commit(nil)
		s.must(err)
	}
	make("db", checkpoint.Head{Guest: "db", Hypervisor: "sim"})
	make("qemu", checkpoint.Head{Guest: "web", Hypervisor: "qemu"})
	make("machine", checkpoint.Head{Guest: "web", Hypervisor: "sim"})
	s.stop()
	for name, want := range map[string]string{
		"db": `is a checkpoint of guest "db" on sim, not of "web" on sim`, "qemu": `on qemu, not of "web" on sim`,
		"machine": "standby for guest web", "none": "no such file",
	} {
		_, err := s.restore(name, false)
		s.refused(err, want)
		s.role("stopped")
	}
	_, err := s.host.RestoreCheckpoint(t.Context(), "web", RestoreRequest{File: "relative"}, nil)
	s.refused(err, "absolute")
	_, err = s.host.SaveCheckpoint(t.Context(), "web", SaveRequest{File: "/x"}, nil)
	s.refused(err, "is not run by host a (its role here: stopped)")
}

// TestAnOperatorWhoGoesAwayStopsNothing: while the disks of a guest that is to
// stop with its save cannot be drained, it stands still; given up, it runs on.
func TestAnOperatorWhoGoesAwayStopsNothing(t *testing.T) {
	s := newScene(t)
	s.disk.fails = "drain"
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.host.SaveCheckpoint(ctx, "web", SaveRequest{File: filepath.Join(s.dir, "f"), Stop: true}, nil)
		ended <- err
	}()
	s.until("the disks are to be drained", func() bool { return s.disk.has("drain") })
	at := s.counter()
	time.Sleep(5 * time.Millisecond)
	if now := s.counter(); now != at {
		t.Errorf("the guest went on from step %d to %d after its save", at, now)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	s.counts(at + 50)
	s.disk.mu.Lock()
	s.disk.fails = ""
	s.disk.mu.Unlock()
	s.stop()
}
