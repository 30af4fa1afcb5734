// Package demo tells the mission's story with real parts: a guest under load
// with one client connection, its host lost to SIGKILL, the guest going on at
// the standby; then the lost host comes back and becomes the standby.
//
//	Run (this file)       the story, round by round, and its checks
//	world.go              what both worlds share: configuration, daemons, logs
//	qemu.go, sim.go       the two worlds: namespaces and QEMU, or loopback and
//	                      the simulated guest
//	client.go             the client that counts lines
//	report.go             what is printed in the end
package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"understudy/config"
	"understudy/host"
	"understudy/ownership"
)

// Options say which demo.
type Options struct {
	Guest   config.Hypervisor // qemu or sim
	Repeat  int               // how many hosts are lost, one after the other
	Seed    uint64            // spreads the kills over the epoch
	Profile config.Profile
	// Daemon is the understudyd program.
	Daemon string
	// Kernel and Initrd are the guest's (make guest).
	Kernel, Initrd string
	Memory         config.Size
	Machine        string
	// Epoch fixes the length of an epoch; 0 is adaptive.
	Epoch config.Epoch
	// Say tells what is going on, for people.
	Say  func(format string, a ...any)
	Slog *slog.Logger
	// KeepLogs leaves the daemons' logs in this directory.
	KeepLogs string
}

// world is where the story happens.
type world interface {
	// start starts a host's daemon, kill ends everything on a host at once.
	start(ctx context.Context, host string) error
	kill(host string) error
	// connect opens the client's one connection to the guest.
	connect(ctx context.Context) (connection, error)
	// load makes the guest busy; check asks it whether its memory is whole,
	// and boot for its boot id, on connections of their own.
	load(ctx context.Context) error
	check(ctx context.Context) error
	boot(ctx context.Context) (string, error)
	status(ctx context.Context, host string) (host.GuestStatus, error)
	operate(ctx context.Context, host, operation string, result any) error
	// timeline returns what a host's daemon logged since a point in time.
	timeline(host string, since time.Time) []entry
	close() error
}

// hosts of the demo; the third one is the witness.
const (
	hostA   = "a"
	hostB   = "b"
	witness = "w"
	guest   = "web"
)

// Time limits of the story; generous, since machines are slow and shared.
const (
	protectTime = 2 * time.Minute
	resumeTime  = 30 * time.Second
)

// Run tells the story. The report is complete also when a check failed; the
// error says why the story could not be told to its end.
func Run(ctx context.Context, o Options) (rep Report, err error) {
	lease := time.Second
	if o.Profile == config.Fast {
		lease = 300 * time.Millisecond
	}
	rep = Report{Lease: lease, Guest: string(o.Guest), Profile: string(o.Profile), Seed: o.Seed, Started: time.Now()}
	var w world
	switch o.Guest {
	case config.QEMU:
		w, err = newQEMUWorld(ctx, o)
	case config.Sim:
		w, err = newSimWorld(o)
	default:
		err = fmt.Errorf("demo: guest %q: want qemu or sim", o.Guest)
	}
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	s := &story{o: o, w: w, report: &rep, dice: rand.New(rand.NewPCG(o.Seed, 0))}
	err = s.tell(ctx)
	rep.finish()
	return rep, err
}

// story is the demo under way.
type story struct {
	o      Options
	w      world
	report *Report
	dice   *rand.Rand
	client connection
	bootID string
}

func (s *story) tell(ctx context.Context) error {
	s.o.Say("starting host a, host b and the witness")
	for _, h := range []string{witness, hostA, hostB} {
		if err := s.w.start(ctx, h); err != nil {
			return err
		}
	}
	s.o.Say("waiting for the guest to boot, and for its first synchronisation")
	began := time.Now()
	owner, err := s.protected(ctx, "")
	if err != nil {
		return err
	}
	s.report.FirstProtection = time.Since(began)
	s.o.Say("protected after %.1f s: host %s runs the guest, host %s stands by", time.Since(began).Seconds(), owner, other(owner))

	if s.client, err = s.w.connect(ctx); err != nil {
		return fmt.Errorf("connect the client: %w", err)
	}
	defer s.client.close()
	if err := s.client.wait(ctx, 1, resumeTime); err != nil {
		return err
	}
	if s.bootID, err = s.w.boot(ctx); err != nil {
		return fmt.Errorf("ask for the boot id: %w", err)
	}
	if err := s.w.load(ctx); err != nil {
		return fmt.Errorf("make the guest busy: %w", err)
	}
	s.o.Say("one client is connected; the guest dirties memory; boot id %s", s.bootID)
	for i := range s.o.Repeat {
		if owner, err = s.round(ctx, i, owner); err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
	}
	return nil
}

// round loses the owner once, and sees the pair whole again.
func (s *story) round(ctx context.Context, i int, owner string) (string, error) {
	r := Round{Number: i + 1, Lost: owner, Taker: other(owner)}
	if err := s.client.wait(ctx, s.client.last().number+20, resumeTime); err != nil {
		return owner, err
	}
	// Anywhere in the epoch: up to two of the longest.
	spread := time.Duration(s.dice.Int64N(int64(200 * time.Millisecond)))
	sleep(ctx, spread)
	before, err := s.w.status(ctx, owner)
	if err != nil {
		return owner, err
	}
	if before.Primary != nil {
		r.Pause, r.Lag = before.Primary.Pause, before.Primary.Lag
		r.RawBytes, r.WireBytes = before.Primary.Totals.RawBytes, before.Primary.Totals.WireBytes
		r.LastCommit = -before.Primary.EpochAge
	}
	killed := time.Now()
	last := s.client.last()
	if err := s.w.kill(owner); err != nil {
		return owner, err
	}
	s.o.Say("round %d: SIGKILL to everything on host %s, after line %d", r.Number, owner, last.number)

	werr := s.client.wait(ctx, last.number+20, resumeTime)
	r.gap(s.client, killed)
	r.mark(s.w.timeline(r.Taker, killed), killed)
	r.check("the connection lives and goes on", werr)
	r.check("no line is lost, repeated or taken back", s.client.err())
	boot, err := s.w.boot(ctx)
	if err == nil && boot != s.bootID {
		err = fmt.Errorf("boot id %s, was %s", boot, s.bootID)
	}
	r.check("the guest was not rebooted", err)
	r.check("the guest's memory is whole", s.w.check(ctx))
	s.o.Say("round %d: host %s runs the guest; first line %.0f ms after the kill", r.Number, r.Taker, ms(r.FirstPacket))

	if err := s.w.start(ctx, owner); err != nil {
		return owner, err
	}
	began := time.Now()
	now, err := s.protected(ctx, r.Taker)
	r.Reprotected = time.Since(began)
	r.check("the lost host is back as the backup, without an operator", err)
	if err == nil {
		r.check("both hosts' memory is identical", s.verify(ctx, now))
		s.o.Say("round %d: protected again after %.1f s, the other way round", r.Number, r.Reprotected.Seconds())
	}
	r.check("no line is lost, repeated or taken back until now", s.client.err())
	s.report.Rounds = append(s.report.Rounds, r)
	if !r.Passed() {
		return now, fmt.Errorf("%s", r.failures())
	}
	return now, err
}

func (s *story) verify(ctx context.Context, owner string) error {
	var v struct {
		Identical bool   `json:"identical"`
		Pages     uint64 `json:"pages"`
	}
	call, cancel := context.WithTimeout(ctx, protectTime)
	defer cancel()
	if err := s.w.operate(call, owner, "verify", &v); err != nil {
		return err
	}
	if !v.Identical {
		return fmt.Errorf("memory differs within %d pages", v.Pages)
	}
	return nil
}

// protected waits until a host (want, or any) says that the guest is protected.
func (s *story) protected(ctx context.Context, want string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, protectTime)
	defer cancel()
	var said string
	for {
		said = ""
		for _, h := range []string{hostA, hostB} {
			st, err := s.w.status(ctx, h)
			if err != nil {
				said += fmt.Sprintf("%s: %v; ", h, err)
				continue
			}
			if st.Protected == host.ProtectedYes && st.Log.Owner == ownership.HostID(h) && (want == "" || want == h) {
				return h, nil
			}
			said += fmt.Sprintf("%s: %s, owner %s, protected: %s %s; ", h, st.Role, st.Log.Owner, st.Protected, st.Problem)
		}
		if sleep(ctx, 20*time.Millisecond) != nil {
			return "", fmt.Errorf("not protected (%w): %s", ctx.Err(), said)
		}
	}
}

func other(h string) string {
	if h == hostA {
		return hostB
	}
	return hostA
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
