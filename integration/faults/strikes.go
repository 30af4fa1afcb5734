package main

// This file is what can be done to hosts: what strikes, what mends, and what
// leads to points.

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"understudy/demo/world"
	"understudy/host"
	"understudy/lab"
	"understudy/ownership"
)

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

// startDead starts whose daemons are not there, all at once.
func (s *stage) startDead(ctx context.Context) error {
	var all sync.WaitGroup
	errs := make([]error, len(world.Hosts()))
	for i, h := range world.Hosts() {
		if !s.Up(h) {
			all.Go(func() { errs[i] = s.Start(ctx, h) })
		}
	}
	all.Wait()
	return errors.Join(errs...)
}

// What leads to points.

func cutOwner(_ context.Context, s *stage) error     { return s.cutBoth(s.owner) }
func loseOwner(_ context.Context, s *stage) error    { return s.killHost(s.owner) }
func loseBackup(_ context.Context, s *stage) error   { return s.killHost(s.backup) }
func switchover(ctx context.Context, s *stage) error { return s.ask(ctx, s.owner, "switchover") }
func stop(ctx context.Context, s *stage) error       { return s.ask(ctx, s.owner, "stop") }

// hunt kills every QEMU on a host as soon as it is seen, until endHunt.
func (s *stage) hunt(ctx context.Context, host string) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan error, 1)
	s.endHunt = func() error {
		cancel()
		s.endHunt = nil
		return <-over
	}
	go func() { // ends with endHunt
		for ctx.Err() == nil {
			if err := s.killQEMU(host); err != nil {
				over <- err
				return
			}
			_ = world.Sleep(ctx, 2*time.Millisecond) // its end is the loop's
		}
		over <- nil
	}()
}

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
