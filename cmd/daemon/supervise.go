package daemon

// Whoever started the daemon (systemd, for one) is told how it does:
//
//	guests' loops, voter → alive? → a sign of life
//	guests' states, log  → statusLine → a line for people
//
// A sign of life is given only when every loop has come round: a daemon that
// hangs is killed and started again by its supervisor, and adopts its guests. The
// daemon is said to be ready after the first such round, and after it has adopted
// what a former one has left.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status"
)

// Supervisor is who started the daemon (sdnotify.Notifier). What cannot be told
// changes nothing.
type Supervisor interface {
	// Interval is the longest time without Alive; 0: nobody watches.
	Interval() time.Duration
	Ready() error
	Status(line string) error
	Alive() error
	Stopping() error
}

// lively is a loop that can be asked whether it comes round; it says nil, or
// what is stuck once ctx ends.
type lively interface {
	Alive(ctx context.Context) error
}

// supervised is what a Supervisor is told of.
type supervised struct {
	guests, voter, endpoint lively

	settled func() bool // nothing waits to be adopted; nil: nothing ever does
	states  func() []host.GuestStatus
	leader  func() ownership.HostID
	slog    *slog.Logger
}

const (
	// superviseEvery is how often the line for people is made anew.
	superviseEvery = 5 * time.Second
	// superviseRounds is how many rounds the interval of a supervisor has at
	// least: one that comes late is not yet the end.
	superviseRounds = 4
	// adoptionTime is how long guests that are left here keep the daemon from being
	// ready: without a majority they cannot be adopted.
	adoptionTime = 10 * time.Second
)

// supervise tells s until ctx ends.
func supervise(ctx context.Context, s Supervisor, of supervised) {
	pace := superviseEvery
	if i := s.Interval(); i > 0 {
		pace = min(pace, i/superviseRounds)
	}
	told := teller{slog: of.slog}
	defer told.try(s.Stopping)
	round := time.NewTicker(pace)
	defer round.Stop()
	var look sync.WaitGroup // one at a time; it may wait for a lock that never comes
	defer look.Wait()
	looked := make(chan error, 1)
	ready := sync.OnceFunc(func() { told.try(s.Ready) })
	settle := sync.OnceFunc(func() {
		if of.settled != nil {
			awaitAdoption(ctx, of.settled, adoptionTime)
		}
	})
	begin := func() {
		look.Go(func() {
			settle()
			line, err := of.look(ctx, max(pace, s.Interval()/2))
			if line != "" {
				told.try(func() error { return s.Status(line) })
			}
			looked <- err
		})
	}
	begin()
	late := 0
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-looked:
			if err == nil {
				ready()
				told.try(s.Alive)
			} else if ctx.Err() == nil {
				of.slog.Error("no sign of life is given to the supervisor: this daemon hangs", "err", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-round.C:
			}
			late = 0
			begin()
		case <-round.C:
			if late++; late == superviseRounds {
				of.slog.Error("no sign of life is given to the supervisor: the guests' states cannot be read", "for", pace*superviseRounds)
			}
		}
	}
}

// look asks every loop, each for at most patience. A voter that is stuck is no
// reason to end a daemon that runs a guest: the other two decide without it, and
// the end would cost the guest more.
func (of supervised) look(ctx context.Context, patience time.Duration) (line string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := errors.Join(of.guests.Alive(ctx), of.endpoint.Alive(ctx)); err != nil {
		return "", err
	}
	guests := of.states()
	line = statusLine(guests, of.leader())
	if err := of.voter.Alive(ctx); err != nil {
		if !slices.ContainsFunc(guests, func(g host.GuestStatus) bool { return g.Primary != nil }) {
			return line, err
		}
		if !errors.Is(err, context.Canceled) {
			of.slog.Warn("restart this daemon when none of its guests needs it", "err", err)
		}
		line = "TROUBLE: the ownership log does not answer here; " + line
	}
	return line, nil
}

// answers is the endpoint of this host's Unix socket, asked as any client would.
type answers struct{ *status.Client }

// Alive returns an error if no answer comes until ctx ends.
func (a answers) Alive(ctx context.Context) error {
	for {
		err := a.Get(ctx, "/api/v1/cluster", new(status.Cluster))
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the status endpoint does not answer: %w", err)
		case <-time.After(100 * time.Millisecond): // the daemon is starting, or has no descriptor left
		}
	}
}

// statusLine is what an operator wants to read first, in one line: what is not
// as it should be, then guest by guest.
func statusLine(guests []host.GuestStatus, leader ownership.HostID) string {
	var bad, good []string
	if leader == "" {
		bad = append(bad, "TROUBLE: no leader of the ownership log is known, so nothing can be decided")
	}
	for _, g := range guests {
		text, ok := guestLine(g)
		if ok {
			good = append(good, text)
		} else {
			bad = append(bad, text)
		}
	}
	if len(guests) == 0 {
		good = append(good, "votes, runs no guest")
	}
	if leader != "" {
		good = append(good, "log led by "+string(leader))
	}
	return strings.Join(append(bad, good...), "; ")
}

func guestLine(g host.GuestStatus) (text string, ok bool) {
	p, b := g.Primary, g.Backup
	switch {
	case p != nil && g.Protected == host.ProtectedYes:
		return fmt.Sprintf("%s runs here, protected by %s", g.Name, p.Backup), true
	case p != nil && p.Mode == primary.ModeSyncing && p.Pages > 0:
		return fmt.Sprintf("%s runs here, NOT PROTECTED: synchronising, %d%%", g.Name, 100*(p.Pages-min(p.Pages, p.Remaining))/p.Pages), false
	case p != nil:
		return fmt.Sprintf("%s runs here, NOT PROTECTED: %s", g.Name, p.Mode), false
	case b != nil && b.InSync:
		return fmt.Sprintf("%s stands by here, in sync with %s", g.Name, g.Log.Owner), true
	case b != nil:
		return fmt.Sprintf("%s stands by here, not in sync", g.Name), false
	case g.Role == "":
		return g.Name + " is starting", true
	case g.Problem != "":
		return fmt.Sprintf("%s is %s: %s", g.Name, g.Role, g.Problem), false
	}
	return fmt.Sprintf("%s is %s", g.Name, g.Role), true
}

// teller complains once of a supervisor that cannot be told.
type teller struct {
	slog *slog.Logger
	once sync.Once
}

func (t *teller) try(tell func() error) {
	if err := tell(); err != nil {
		t.once.Do(func() { t.slog.Warn("the supervisor hears nothing of this daemon", "err", err) })
	}
}
