package main

// This file is where trials happen: a world with one guest, a client and a load
// on it, and what can be done to its hosts.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"understudy/clock"
	"understudy/config"
	"understudy/crashpoint/history"
	"understudy/demo/world"
	"understudy/host"
	"understudy/lab"
	"understudy/ownership"
)

const web = "web"

// Time limits; generous, since machines are slow and shared.
const (
	soon = 30 * time.Second
	late = 2 * time.Minute
)

// setup says what the worlds are like.
type setup struct {
	daemon                string // built with the tag crashpoints
	kernel, initrd, image string
	mode                  config.DiskMode
	memory                config.Size
	prefix                string
	logs                  string // where daemons' logs are kept, "" for nowhere
}

// stage is one world.
type stage struct {
	*world.QEMU
	control *control
	dir     string // of the sockets and histories
	wire    *world.Wire

	client        *world.Client
	disk          *world.DiskClient
	boot          string
	owner, backup string

	frozen, cut map[string]bool
	patients    *patients
	disguise    disguise
	full        []string // files that fill a file system

	checker *history.Checker
	read    map[string]int // lines of each history that were checked
	heard   time.Time      // up to where frames were checked
	later   []history.Line // not checked yet
}

// newStage brings up the three hosts; the guest boots.
func newStage(ctx context.Context, o setup) (_ *stage, err error) {
	s := &stage{checker: history.NewChecker(), read: map[string]int{}, heard: time.Now(), frozen: map[string]bool{}, cut: map[string]bool{},
		patients: &patients{ails: map[string]ail{}, hit: map[string]int{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := sweepMounts(o.prefix); err != nil {
		return nil, fmt.Errorf("remove what a former run left: %w", err)
	}
	if s.dir, err = os.MkdirTemp("/dev/shm", o.prefix+"-control-"); err != nil {
		return nil, err
	}
	if s.control, err = newControl(s.dir, world.Hosts()...); err != nil {
		return nil, err
	}
	s.QEMU, err = world.NewQEMU(world.QEMUOptions{
		Options: world.Options{Daemon: o.daemon, Profile: config.Standard, Prefix: o.prefix, KeepLogs: o.logs,
			Arguments: s.arguments,
			Guests: []world.Guest{{Name: web, Home: world.HostA, Memory: o.memory, Machine: "q35", Disk: o.mode,
				Unfenced: o.mode == config.Shared}}},
		Kernel: o.kernel, Initrd: o.initrd, Image: o.image, Mount: s.patients.mount,
	})
	if err != nil {
		return nil, err
	}
	if s.wire, err = world.Listen(s.Lab, world.HostA, world.HostB); err != nil {
		return nil, err
	}
	if err := s.StartAll(ctx); err != nil {
		return nil, err
	}
	return s, s.settle(ctx)
}

func (s *stage) close() error {
	s.hangUp()
	var errs []error
	if s.QEMU != nil {
		errs = append(errs, s.thawAll())
	}
	if s.wire != nil {
		s.wire.Close()
	}
	if s.QEMU != nil {
		errs = append(errs, s.Close())
	}
	if s.control != nil {
		errs = append(errs, s.control.close())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

func (s *stage) host(r role) string {
	switch r {
	case owner:
		return s.owner
	case standby:
		return s.backup
	}
	return world.Witness
}

// settle waits for the beginning, and the end, of every trial: the guest is
// protected, and the witness leads.
func (s *stage) settle(ctx context.Context) (err error) {
	if s.owner, err = s.Protected(ctx, web, "", late); err != nil {
		return err
	}
	s.backup = world.Other(s.owner)
	if s.boot == "" {
		if err := s.connect(ctx); err != nil {
			return err
		}
	}
	limit, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	for {
		if r, err := s.Report(limit, s.owner); err == nil && r.Leader == world.Witness {
			return nil
		}
		if world.Sleep(limit, 20*time.Millisecond) != nil {
			return fmt.Errorf("the witness does not lead the ownership log within %v", soon)
		}
	}
}

func (s *stage) hangUp() {
	if s.client != nil {
		s.client.Close()
		s.client = nil
	}
	if s.disk != nil {
		_ = s.disk.Close()
		s.disk = nil
	}
}

// connect opens the client's connection to a guest that has booted anew, and
// puts it under load.
func (s *stage) connect(ctx context.Context) (err error) {
	s.hangUp()
	if s.boot, err = s.Boot(ctx, web); err != nil {
		return fmt.Errorf("no boot of the guest answers: %w", err)
	}
	if s.client, err = s.Connect(ctx, web); err != nil {
		return err
	}
	if err := s.Load(ctx, web); err != nil {
		return err
	}
	return s.useDisk(ctx)
}

func (s *stage) useDisk(ctx context.Context) (err error) {
	if s.disk != nil {
		_ = s.disk.Close()
	}
	if s.disk, err = s.LoadDisk(ctx, web); err != nil {
		return err
	}
	return s.disk.Wait(ctx, 20, soon)
}

// whole checks all that can be checked of a guest that goes on: its lines, its
// boot id, its memory, on both hosts too, its disk and what it acknowledged.
func (s *stage) whole(ctx context.Context) error {
	if err := s.client.More(ctx, 20, soon); err != nil {
		return err
	}
	boot, err := s.Boot(ctx, web)
	if err != nil {
		return err
	}
	if boot != s.boot {
		return fmt.Errorf("the guest was rebooted: boot id %s, was %s", boot, s.boot)
	}
	if err := s.Check(ctx, web); err != nil {
		return fmt.Errorf("the guest's memory: %w", err)
	}
	if err := s.disk.Wait(ctx, s.disk.Last()+20, soon); err != nil {
		return err
	}
	if err := s.disk.Verify(ctx); err != nil {
		return fmt.Errorf("the guest's disk: %w", err)
	}
	if err := s.Fsck(ctx, web, s.owner); err != nil {
		return fmt.Errorf("the guest's file system: %w", err)
	}
	var v struct {
		Identical bool   `json:"identical"`
		Pages     uint64 `json:"pages"`
	}
	if err := s.Operate(ctx, s.owner, web, "verify", &v); err != nil {
		return fmt.Errorf("compare the memory of both hosts: %w", err)
	}
	if !v.Identical {
		return fmt.Errorf("the memory of the two hosts differs within %d pages", v.Pages)
	}
	if err := s.client.Err(); err != nil {
		return fmt.Errorf("the client: %w", err)
	}
	return s.useDisk(ctx)
}

// judge checks the histories up to now, and returns what is new of breaches.
func (s *stage) judge() ([]history.Breach, error) {
	known := len(s.checker.Result().Breaches)
	now, stamp := clock.Boot{}.Now(), time.Now()
	// What is being written down may come late.
	until := now.Add(-200 * time.Millisecond)
	for _, h := range []string{world.HostA, world.HostB} {
		path := filepath.Join(s.dir, web+"."+h+".history")
		lines, err := history.Read(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s.later = append(s.later, lines[s.read[h]:]...)
		s.read[h] = len(lines)
	}
	var ready, rest []history.Line
	for _, l := range s.later {
		if l.At <= until {
			ready = append(ready, l)
		} else {
			rest = append(rest, l)
		}
	}
	s.later = rest
	s.checker.Lines(ready)
	heard, err := s.wire.Since(s.MAC(web), s.heard)
	if err != nil {
		return nil, err
	}
	var frames []history.Frame
	last := s.heard
	for _, f := range heard {
		if at := now.Add(f.At.Sub(stamp)); at <= until {
			frames = append(frames, history.Frame{Host: f.Host, At: at})
			if f.At.After(last) {
				last = f.At
			}
		}
	}
	s.heard = last
	s.checker.Frames(frames)
	return s.checker.Result().Breaches[known:], nil
}

// What can be done to a host.

func (s *stage) killDaemon(host string) error { return s.KillDaemon(host) }

// killHost cuts a host's power: nobody there sees another die, as a daemon would
// that outlives its QEMU for a moment, and could surrender the guest.
func (s *stage) killHost(host string) error {
	return errors.Join(s.Lab.Host(host).Signal(syscall.SIGSTOP), s.Kill(host))
}

func (s *stage) killBoth() error { return errors.Join(s.killHost(s.owner), s.killHost(s.backup)) }

func (s *stage) killQEMU(host string) error {
	machines, err := s.Machines(host)
	for _, pid := range machines {
		if e := syscall.Kill(pid, syscall.SIGKILL); e != nil && !errors.Is(e, syscall.ESRCH) {
			err = errors.Join(err, e)
		}
	}
	return err
}

func (s *stage) freeze(host string) error {
	s.frozen[host] = true
	return s.Lab.Host(host).Signal(syscall.SIGSTOP)
}

func (s *stage) thawAll() error {
	var errs []error
	for h := range s.frozen {
		errs = append(errs, s.Lab.Host(h).Signal(syscall.SIGCONT))
		delete(s.frozen, h)
	}
	return errors.Join(errs...)
}

func (s *stage) sever(host string, d lab.Direction) error {
	s.cut[host] = true
	return s.Lab.Host(host).Cut(d)
}

func (s *stage) cutBoth(host string) error { return s.sever(host, lab.Both) }
func (s *stage) cutOut(host string) error  { return s.sever(host, lab.FromHost) }
func (s *stage) cutIn(host string) error   { return s.sever(host, lab.ToHost) }

func (s *stage) restoreAll() error {
	var errs []error
	for h := range s.cut {
		errs = append(errs, s.Lab.Host(h).Restore())
		delete(s.cut, h)
	}
	return errors.Join(errs...)
}

// fillState leaves no room for a host's log of ownership.
func (s *stage) fillState(host string) error {
	h, _ := s.Config.Host(host)
	path, err := fill(h.State)
	s.full = append(s.full, path)
	return err
}

func (s *stage) emptyAll() error {
	var errs []error
	for _, path := range s.full {
		errs = append(errs, os.Remove(path))
	}
	s.full = nil
	return errors.Join(errs...)
}

// sicken has a host's disk suffer.
func sicken(a ail) func(s *stage, host string) error {
	return func(s *stage, host string) error {
		s.patients.give(filepath.Base(s.DiskPath(web, host)), a)
		return nil
	}
}

// healAll wants to have been of use.
func (s *stage) healAll() error {
	if s.patients.heal() == 0 {
		return errors.New("no call suffered from what the disk was given")
	}
	return nil
}

// startDead starts whose daemons are not there.
func (s *stage) startDead(ctx context.Context) error {
	var errs []error
	for _, h := range world.Hosts() {
		if !s.Up(h) {
			errs = append(errs, s.Start(ctx, h))
		}
	}
	return errors.Join(errs...)
}

// What leads to points.

func cutOwner(_ context.Context, s *stage) error     { return s.cutBoth(s.owner) }
func loseOwner(_ context.Context, s *stage) error    { return s.killHost(s.owner) }
func loseBackup(_ context.Context, s *stage) error   { return s.killHost(s.backup) }
func switchover(ctx context.Context, s *stage) error { return s.ask(ctx, s.owner, "switchover") }
func stop(ctx context.Context, s *stage) error       { return s.ask(ctx, s.owner, "stop") }

// ask asks without waiting for what comes of it.
func (s *stage) ask(ctx context.Context, host, operation string) error {
	go func() { // ends with the operation, or its time
		call, cancel := context.WithTimeout(ctx, soon)
		defer cancel()
		_ = s.Operate(call, host, web, operation, nil) // a fault is meant to come between
	}()
	return nil
}

func bounceOwner(ctx context.Context, s *stage) error {
	if err := s.Kill(s.owner); err != nil {
		return err
	}
	return s.Start(ctx, s.owner)
}

// bounceBackup has the backup come back with nothing.
func bounceBackup(ctx context.Context, s *stage) error {
	if err := s.Kill(s.backup); err != nil {
		return err
	}
	return s.Start(ctx, s.backup)
}

// restartAlone starts the owner's daemon anew while there is no backup that
// could take the guest over.
func restartAlone(ctx context.Context, s *stage) error {
	if err := s.Kill(s.backup); err != nil {
		return err
	}
	if _, err := s.Await(ctx, web, "recorded as unprotected", soon, func(name string, g host.GuestStatus) bool {
		return name == s.owner && !g.Log.InSync && g.Protected == host.ProtectedNo
	}); err != nil {
		return err
	}
	if err := s.KillDaemon(s.owner); err != nil {
		return err
	}
	return s.Start(ctx, s.owner)
}

func (s *stage) desired(ctx context.Context, want ownership.Desired) error {
	_, err := s.Await(ctx, web, string(want), soon, func(_ string, g host.GuestStatus) bool { return g.Log.Desired == want })
	return err
}

func stopAndStart(ctx context.Context, s *stage) error {
	if err := s.ask(ctx, s.owner, "stop"); err != nil {
		return err
	}
	if err := s.desired(ctx, ownership.Stopped); err != nil {
		return err
	}
	return s.ask(ctx, s.owner, "start")
}
