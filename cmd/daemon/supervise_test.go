package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/backup"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

// systemd hears what a Supervisor is told, and keeps an eye on the time.
type systemd struct {
	watchdog time.Duration
	mu       sync.Mutex
	heard    []string
	alive    time.Time
	longest  time.Duration // between two signs of life
}

func (s *systemd) Interval() time.Duration { return s.watchdog }
func (s *systemd) Ready() error            { return s.hear("ready") }
func (s *systemd) Stopping() error         { return s.hear("stopping") }
func (s *systemd) Status(l string) error   { return s.hear(l) }

func (s *systemd) Alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.alive.IsZero() {
		s.longest = max(s.longest, time.Since(s.alive))
	}
	s.alive = time.Now()
	return nil
}

// hear notes what is new.
func (s *systemd) hear(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.heard, what) {
		s.heard = append(s.heard, what)
	}
	return nil
}

func (s *systemd) told() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.heard, "\n")
}

// silence is how long no sign of life has come.
func (s *systemd) silence() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.alive)
}

// loop is lively until it is stuck.
type loop struct {
	name  string
	mu    sync.Mutex
	stuck bool
}

func (l *loop) Alive(ctx context.Context) error {
	l.mu.Lock()
	stuck := l.stuck
	l.mu.Unlock()
	if !stuck {
		return nil
	}
	<-ctx.Done()
	return fmt.Errorf("%s is stuck: %w", l.name, ctx.Err())
}

func (l *loop) set(stuck bool) { l.mu.Lock(); l.stuck = stuck; l.mu.Unlock() }

var (
	protected = host.GuestStatus{Name: "web", Role: "primary", Protected: host.ProtectedYes, Primary: &primary.Status{Mode: primary.ModeProtected, Backup: "beta"}}
	alone     = host.GuestStatus{Name: "web", Role: "primary", Protected: host.ProtectedNo, Primary: &primary.Status{Mode: primary.ModeAlone}}
	syncing   = host.GuestStatus{Name: "db", Role: "primary", Protected: host.ProtectedNo, Primary: &primary.Status{Mode: primary.ModeSyncing, Pages: 1000, Remaining: 550}}
	standby   = host.GuestStatus{Name: "mail", Role: "backup", Log: ownership.Guest{Owner: "beta"}, Backup: &backup.Status{InSync: true}}
	stale     = host.GuestStatus{Name: "mail", Role: "backup", Log: ownership.Guest{Owner: "beta"}, Backup: &backup.Status{}}
)

// supervision is a daemon that is supervised, all of it played.
type supervision struct {
	*systemd
	states  []host.GuestStatus
	settled func() bool

	guests, voter, endpoint *loop
	log                     bytes.Buffer
	end                     func()
}

func newSupervision(watchdog time.Duration, all ...host.GuestStatus) *supervision {
	return &supervision{systemd: &systemd{watchdog: watchdog}, states: all,
		guests: &loop{name: "web"}, voter: &loop{name: "the voter"}, endpoint: &loop{name: "the endpoint"}}
}

func (s *supervision) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		supervise(ctx, s, supervised{guests: s.guests, voter: s.voter, endpoint: s.endpoint, slog: slog.New(slog.NewTextHandler(&s.log, nil)), settled: s.settled,
			states: func() []host.GuestStatus { return s.states }, leader: func() ownership.HostID { return "witness" }})
	})
	s.end = func() { cancel(); running.Wait() }
}

// TestADaemonThatLivesSaysSo: as often as it is wanted, with a margin.
func TestADaemonThatLivesSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSupervision(time.Minute, protected, standby)
		s.start()
		time.Sleep(10 * time.Minute)
		s.end()
		if s.longest == 0 || s.longest > 15*time.Second {
			t.Errorf("signs of life up to %v apart, wanted every minute", s.longest)
		}
		if got, want := s.told(), "web runs here, protected by beta; mail stands by here, in sync with beta; log led by witness\nready\nstopping"; got != want {
			t.Errorf("told:\n%s\nwant:\n%s", got, want)
		}
	})
}

// TestADaemonThatHangsIsNotKeptAlive: whichever loop it is; and it is again as
// soon as it goes on.
func TestADaemonThatHangsIsNotKeptAlive(t *testing.T) {
	for _, c := range []struct {
		name  string
		which func(s *supervision) *loop
		guest host.GuestStatus
		lives bool
	}{
		{"a guest", func(s *supervision) *loop { return s.guests }, protected, false},
		{"the endpoint", func(s *supervision) *loop { return s.endpoint }, protected, false},
		{"the voter where no guest runs", func(s *supervision) *loop { return s.voter }, standby, false},
		{"the voter where a guest runs", func(s *supervision) *loop { return s.voter }, alone, true},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSupervision(time.Minute, c.guest)
				s.start()
				defer s.end()
				time.Sleep(time.Minute)
				c.which(s).set(true)
				time.Sleep(3 * time.Minute)
				if lives := s.silence() < time.Minute; lives != c.lives {
					t.Errorf("no sign of life for %v", s.silence())
				}
				if c.lives && !strings.Contains(s.told(), "TROUBLE: the ownership log does not answer here; web runs here, NOT PROTECTED: alone") {
					t.Errorf("told:\n%s", s.told())
				}
				c.which(s).set(false)
				time.Sleep(time.Minute)
				if s.silence() > 15*time.Second {
					t.Errorf("it goes on, and gives no sign of life for %v", s.silence())
				}
			})
		})
	}
}

// TestADaemonThatHangsIsNotReady: it is once it does not any more.
func TestADaemonThatHangsIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSupervision(0, protected)
		s.endpoint.set(true)
		s.start()
		time.Sleep(time.Minute)
		if s.told() != "" {
			t.Errorf("told of a daemon that nobody can ask:\n%s", s.told())
		}
		s.endpoint.set(false)
		time.Sleep(4 * superviseEvery)
		if !strings.Contains(s.told(), "ready") {
			t.Errorf("told:\n%s", s.told())
		}
		s.end()
	})
}

// TestADaemonIsReadyOnceItHasAdopted what was left here, or cannot for long.
func TestADaemonIsReadyOnceItHasAdopted(t *testing.T) {
	for _, c := range []struct {
		name  string
		after time.Duration
	}{{"soon", 3 * time.Second}, {"never", time.Hour}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSupervision(0, protected)
				adopted := time.Now().Add(c.after)
				s.settled = func() bool { return !time.Now().Before(adopted) }
				s.start()
				defer s.end()
				want := min(c.after, adoptionTime)
				time.Sleep(want - time.Second)
				if strings.Contains(s.told(), "ready") {
					t.Errorf("ready before a guest is adopted:\n%s", s.told())
				}
				time.Sleep(2 * time.Second)
				if !strings.Contains(s.told(), "ready") {
					t.Errorf("not ready %v later:\n%s", time.Second, s.told())
				}
			})
		})
	}
}

// TestASupervisorThatCannotBeToldIsComplainedOfOnce.
func TestASupervisorThatCannotBeToldIsComplainedOfOnce(t *testing.T) {
	var log bytes.Buffer
	told := teller{slog: slog.New(slog.NewTextHandler(&log, nil))}
	for range 3 {
		told.try(func() error { return errors.New("no such file") })
	}
	if n := strings.Count(log.String(), "hears nothing"); n != 1 {
		t.Errorf("complained %d times:\n%s", n, log.String())
	}
}

func TestWhatAnOperatorReadsFirst(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		guests []host.GuestStatus
		leader ownership.HostID
		want   string
	}{
		{nil, "alpha", "votes, runs no guest; log led by alpha"},
		{nil, "", "TROUBLE: no leader of the ownership log is known, so nothing can be decided; votes, runs no guest"},
		{[]host.GuestStatus{protected, syncing}, "alpha", "db runs here, NOT PROTECTED: synchronising, 45%; web runs here, protected by beta; log led by alpha"},
		{[]host.GuestStatus{alone, stale}, "alpha", "web runs here, NOT PROTECTED: alone; mail stands by here, not in sync; log led by alpha"},
		{[]host.GuestStatus{{Name: "web"}, {Name: "db", Role: "stopped"}, {Name: "x", Role: "booting", Problem: "no kernel"}}, "beta",
			"x is booting: no kernel; web is starting; db is stopped; log led by beta"},
	} {
		if got := statusLine(c.guests, c.leader); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}
