// Package demo tells the mission's story with real parts: a guest under load
// with one client connection, its host lost to SIGKILL, the guest going on at
// the standby; then the lost host comes back and becomes the standby.
//
//	demo.go     the story, round by round, and its checks
//	stage.go    where it happens, in a world of package world: namespaces and
//	            QEMU, or loopback and the simulated guest
//	report.go   what is printed in the end
package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"understudy/config"
	"understudy/demo/world"
	"understudy/host"
)

// Options say which demo.
type Options struct {
	Guest   config.Hypervisor // qemu or sim
	Repeat  int               // how many hosts are lost, one after the other
	Seed    uint64            // spreads the kills over the epoch
	Profile config.Profile
	// Daemon is the understudyd program.
	Daemon string
	// Kernel and Initrd are the guest's (make guest); Image is what its disk
	// begins as.
	Kernel, Initrd, Image string
	// Disk is the mode of the guest's disk, "" for none; Rebuild says when pages
	// that were left out of checkpoints come back.
	Disk    config.DiskMode
	Rebuild config.Rebuild
	Memory  config.Size
	Machine string
	// Epoch fixes the length of an epoch; 0 is adaptive.
	Epoch config.Epoch
	// Accel is QEMU's accelerator, "" for auto.
	Accel string
	// VerifyAll compares all memory of both sides at every checkpoint.
	VerifyAll bool
	// Say tells what is going on, for people.
	Say func(format string, a ...any)
	// Prefix begins the names of what the demo makes on the machine; "" is usdemo.
	Prefix string
	// KeepLogs leaves the daemons' logs in this directory.
	KeepLogs string
}

// stage is where the story happens: one of the worlds, with the one guest.
type stage interface {
	StartAll(ctx context.Context) error
	Start(ctx context.Context, host string) error
	Kill(host string) error
	Close() error
	Lease() time.Duration
	Status(ctx context.Context, host, guest string) (host.GuestStatus, error)
	Operate(ctx context.Context, host, guest, operation string, result any) error
	Protected(ctx context.Context, guest, want string, limit time.Duration) (string, error)
	Log(host string, since time.Time) []world.Entry

	// connect opens the client's one connection to the guest.
	connect(ctx context.Context) (*world.Client, error)
	// load makes the guest busy; check asks it whether its memory is whole,
	// and boot for its boot id, on connections of their own.
	load(ctx context.Context) error
	check(ctx context.Context) error
	boot(ctx context.Context) (string, error)
	// useDisk makes the guest write and read files all the time, and keeps what
	// it acknowledges; fsck judges the file system while the guest is quiet.
	useDisk(ctx context.Context) (*world.DiskClient, error)
	fsck(ctx context.Context, owner string) error
}

const guest = "web"

// Time limits of the story; generous, since machines are slow and shared.
const (
	protectTime = 2 * time.Minute
	resumeTime  = 30 * time.Second
)

// Run tells the story. The report is complete also when a check failed; the
// error says why the story could not be told to its end.
func Run(ctx context.Context, o Options) (rep Report, err error) {
	rep = Report{Guest: string(o.Guest), Profile: string(o.Profile), Seed: o.Seed, Started: time.Now()}
	w, err := newStage(o)
	if err != nil {
		return rep, fmt.Errorf("demo: %w", err)
	}
	rep.Lease = w.Lease()
	defer func() { err = errors.Join(err, w.Close()) }()
	s := &story{o: o, w: w, report: &rep, dice: rand.New(rand.NewPCG(o.Seed, 0))}
	err = s.tell(ctx)
	rep.finish()
	return rep, err
}

// story is the demo under way.
type story struct {
	o      Options
	w      stage
	report *Report
	dice   *rand.Rand
	client *world.Client
	disk   *world.DiskClient // nil: there is no disk
	bootID string
}

func (s *story) tell(ctx context.Context) error {
	s.o.Say("starting host a, host b and the witness")
	if err := s.w.StartAll(ctx); err != nil {
		return err
	}
	s.o.Say("waiting for the guest to boot, and for its first synchronisation")
	began := time.Now()
	owner, err := s.w.Protected(ctx, guest, "", protectTime)
	if err != nil {
		return err
	}
	s.report.FirstProtection = time.Since(began)
	s.o.Say("protected after %.1f s: host %s runs the guest, host %s stands by", time.Since(began).Seconds(), owner, world.Other(owner))

	if s.client, err = s.w.connect(ctx); err != nil {
		return fmt.Errorf("connect the client: %w", err)
	}
	defer s.client.Close()
	if err := s.client.Wait(ctx, 1, resumeTime); err != nil {
		return err
	}
	if s.bootID, err = s.w.boot(ctx); err != nil {
		return fmt.Errorf("ask for the boot id: %w", err)
	}
	if err := s.w.load(ctx); err != nil {
		return fmt.Errorf("make the guest busy: %w", err)
	}
	s.o.Say("one client is connected; the guest dirties memory; boot id %s", s.bootID)
	if err := s.useDisk(ctx); err != nil {
		return err
	}
	defer func() {
		if s.disk != nil {
			_ = s.disk.Close()
		}
	}()
	for i := range s.o.Repeat {
		if owner, err = s.round(ctx, i, owner); err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
	}
	return nil
}

// useDisk begins, or begins anew, to use the disk.
func (s *story) useDisk(ctx context.Context) (err error) {
	if s.o.Disk == "" {
		return nil
	}
	if s.disk != nil {
		_ = s.disk.Close()
		s.disk = nil
	}
	if s.disk, err = s.w.useDisk(ctx); err != nil {
		return err
	}
	return s.disk.Wait(ctx, writesBefore, resumeTime)
}

// writesBefore is how many writes the guest has acknowledged before its host is
// lost, and how many more after that say that it goes on.
const writesBefore = 20

// checkDisk finds out whether the disk is as the guest left it.
func (s *story) checkDisk(ctx context.Context, r *Round, acked uint64) error {
	if s.disk == nil {
		return nil
	}
	r.Acked = acked
	r.check("writes to the disk go on", s.disk.Wait(ctx, acked+writesBefore, resumeTime))
	r.check("no acknowledged write is lost, and every checksum holds", s.disk.Verify(ctx))
	r.check("the file system is clean", s.w.fsck(ctx, r.Taker))
	return s.useDisk(ctx)
}

// round loses the owner once, and sees the pair whole again.
func (s *story) round(ctx context.Context, i int, owner string) (string, error) {
	r := Round{Number: i + 1, Lost: owner, Taker: world.Other(owner)}
	if err := s.client.Wait(ctx, s.client.Last().Number+20, resumeTime); err != nil {
		return owner, err
	}
	// Anywhere in the epoch: up to two of the longest.
	spread := time.Duration(s.dice.Int64N(int64(200 * time.Millisecond)))
	if err := world.Sleep(ctx, spread); err != nil {
		return owner, err
	}
	before, err := s.w.Status(ctx, owner, guest)
	if err != nil {
		return owner, err
	}
	if before.Primary != nil {
		r.Pause, r.Lag = before.Primary.Pause, before.Primary.Lag
		r.RawBytes, r.WireBytes = before.Primary.Totals.RawBytes, before.Primary.Totals.WireBytes
		r.LastCommit = -before.Primary.EpochAge
	}
	if x := before.Excluded; x != nil {
		r.Excluded = x.Mapped + x.Indexed + x.Copied
	}
	var acked uint64
	if s.disk != nil {
		acked = s.disk.Last()
	}
	killed := time.Now()
	last := s.client.Last()
	if err := s.w.Kill(owner); err != nil {
		return owner, err
	}
	s.o.Say("round %d: SIGKILL to everything on host %s, after line %d", r.Number, owner, last.Number)

	werr := s.client.Wait(ctx, last.Number+20, resumeTime)
	r.gap(s.client, killed)
	r.mark(s.w.Log(r.Taker, killed), killed)
	r.check("the connection lives and goes on", werr)
	r.check("no line is lost, repeated or taken back", s.client.Err())
	boot, err := s.w.boot(ctx)
	if err == nil && boot != s.bootID {
		err = fmt.Errorf("boot id %s, was %s", boot, s.bootID)
	}
	r.check("the guest was not rebooted", err)
	r.check("the guest's memory is whole", s.w.check(ctx))
	if err := s.checkDisk(ctx, &r, acked); err != nil {
		return owner, err
	}
	s.o.Say("round %d: host %s runs the guest; first line %.0f ms after the kill", r.Number, r.Taker, ms(r.FirstPacket))

	if err := s.w.Start(ctx, owner); err != nil {
		return owner, err
	}
	began := time.Now()
	now, err := s.w.Protected(ctx, guest, r.Taker, protectTime)
	r.Reprotected = time.Since(began)
	r.check("the lost host is back as the backup, without an operator", err)
	if err == nil {
		r.check("both hosts' memory is identical", s.verify(ctx, now))
		s.o.Say("round %d: protected again after %.1f s, the other way round", r.Number, r.Reprotected.Seconds())
	}
	r.check("no line is lost, repeated or taken back until now", s.client.Err())
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
	if err := s.w.Operate(call, owner, guest, "verify", &v); err != nil {
		return err
	}
	if !v.Identical {
		return fmt.Errorf("memory differs within %d pages", v.Pages)
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
