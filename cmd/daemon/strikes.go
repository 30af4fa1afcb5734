package daemon

// A drill strikes this host: whom that hits, and who undoes it. See package
// strike; its agent is `understudyd strike`.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy/config"
	"understudy/events"
	"understudy/hypervisor/qemu"
	"understudy/strike"
)

// strikes are those on this host.
type strikes struct {
	config  func() *config.Config // the one that runs
	self    config.Host
	dir     string
	command []string // of the agent
	record  *events.Log
	slog    *slog.Logger

	ctx    context.Context // the daemon's: its end undoes what is done
	agents *sync.WaitGroup
}

// newStrikes returns the host's strikes; command runs the agent, nil for none.
func newStrikes(ctx context.Context, o Options, self config.Host, running func() *config.Config, agents *sync.WaitGroup) *strikes {
	return &strikes{config: running, self: self, dir: strike.Dir(o.Config.DirsOf(self).State), command: o.Strike,
		record: o.record, slog: o.Slog, ctx: ctx, agents: agents}
}

// Allowed: the host lets itself be struck.
func (s *strikes) Allowed() bool { return s.config().Drills.StrikesAllowed() && len(s.command) > 0 }

// Strikes are those that are not undone yet.
func (s *strikes) Strikes() ([]strike.Struck, error) {
	all, err := strike.List(s.dir)
	out := make([]strike.Struck, 0, len(all))
	for _, r := range all {
		out = append(out, r.Struck)
	}
	return out, err
}

// Strike strikes shortly after it has returned.
func (s *strikes) Strike(ctx context.Context, guest string, spec strike.Spec) (strike.Struck, error) {
	if !s.Allowed() {
		return strike.Struck{}, fmt.Errorf("host %s does not let itself be struck: strikes = false in [drills] of its configuration", s.self.Name)
	}
	g, ok := s.config().Guest(guest)
	if !ok || g.Host != s.self.Name && g.Backup != s.self.Name {
		return strike.Struck{}, fmt.Errorf("no guest %q on host %s: see the [[guest]] sections of the configuration", guest, s.self.Name)
	}
	if err := spec.Check(); err != nil {
		return strike.Struck{}, err
	}
	t, err := s.target(ctx, g, spec.Kind)
	if err != nil {
		return strike.Struck{}, err
	}
	r, err := strike.Plan(spec, t)
	if err != nil {
		return strike.Struck{}, err
	}
	wait, err := strike.Begin(s.ctx, s.dir, r, s.command)
	if err != nil {
		return strike.Struck{}, err
	}
	s.record.Add(events.Event{Kind: events.KindStruck, Guest: guest, Reason: events.Reason(r.Kind), Duration: r.Undo.Sub(r.At),
		Text: fmt.Sprintf("strike %s: %s at %s, undone at %s", r.ID, r.Kind, clockTime(r.At), clockTime(r.Undo))})
	s.slog.Warn("this host is struck by a drill", "id", r.ID, "kind", r.Kind, "guest", guest, "at", r.At, "undo", r.Undo)
	s.agents.Go(func() {
		if err := wait(); err != nil {
			s.slog.Error("a strike did not go as it should; its agent has said why, the next start of the daemon undoes what is left", "id", r.ID, "err", err)
			return
		}
		tellUndone(s.record, []strike.Record{r})
	})
	return r.Struck, nil
}

func clockTime(t time.Time) string { return t.UTC().Format("15:04:05.000") + "Z" }

// target is whom a strike for a guest hits.
func (s *strikes) target(ctx context.Context, g config.Guest, kind strike.Kind) (strike.Target, error) {
	t := strike.Target{Guest: g.Name}
	for _, other := range s.config().Guests {
		if other.Name != g.Name && (other.Host == s.self.Name || other.Backup == s.self.Name) {
			t.Also = append(t.Also, other.Name)
		}
	}
	var err error
	if g.Hypervisor == config.QEMU {
		if t.Machines, err = qemu.Machines(qemuConfig(s.config(), s.self, g, nil).ImageDir); err != nil {
			return t, fmt.Errorf("find the machine of guest %q: %w", g.Name, err)
		}
	}
	if kind != strike.Cut {
		return t, nil
	}
	own, err := resolve(ctx, s.self.Address)
	if err != nil {
		return t, err
	}
	t.Port = own[0]
	for _, h := range s.config().Hosts {
		if h.Name == s.self.Name {
			continue
		}
		at, err := resolve(ctx, h.Address)
		if err != nil {
			return t, fmt.Errorf("cut off from host %s: %w", h.Name, err)
		}
		t.Peers = append(t.Peers, at...)
	}
	return t, nil
}

// resolve returns what an address of the configuration stands for.
func resolve(ctx context.Context, address string) ([]netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return nil, err
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err == nil && len(found) == 0 {
		err = errors.New("it has no address")
	}
	if err != nil {
		return nil, fmt.Errorf("find the address of %q: %w", host, err)
	}
	out := make([]netip.AddrPort, 0, len(found))
	for _, a := range found {
		out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(number)))
	}
	return out, nil
}

// undoStrikes undoes what former strikes have left, before anything else is
// begun: a machine that is frozen cannot be adopted.
func undoStrikes(state string, log *slog.Logger) []strike.Record {
	undone, err := strike.Undo(strike.Dir(state), strike.Real{})
	if err != nil {
		log.Error("a strike on this host is not undone", "dir", filepath.Clean(strike.Dir(state)), "err", err)
	}
	return undone
}

func tellUndone(l *events.Log, undone []strike.Record) {
	for _, r := range undone {
		l.Add(events.Event{Kind: events.KindStrikeUndone, Guest: r.Guest, Reason: events.Reason(r.Kind), Duration: time.Since(r.At),
			Text: fmt.Sprintf("strike %s (%s) of %s is undone", r.ID, r.Kind, clockTime(r.At))})
	}
}

// StrikeMain is the agent of a strike: args is the path of its record. It returns
// the exit status. Descriptor 3 is a pipe to the daemon that has started it.
func StrikeMain(args []string) int {
	told := os.NewFile(3, "the daemon")
	if len(args) != 1 || told == nil {
		fmt.Fprintln(os.Stderr, "understudyd strike: this is for the daemon to call")
		return 2
	}
	unix.CloseOnExec(3) // a daemon that it starts has no use for it
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := strike.Agent(ctx, args[0], told, strike.Real{}); err != nil {
		fmt.Fprintln(os.Stderr, "understudyd strike:", err)
		return 1
	}
	return 0
}
