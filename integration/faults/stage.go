package main

// This file is where trials happen: a world with one guest, a client and a load
// on it.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"understudy/config"
	"understudy/crashpoint/history"
	"understudy/demo/world"
	"understudy/guest/client"
)

const web = "web"

// Time limits; generous, since machines are slow and shared.
const (
	soon = 30 * time.Second
	late = 2 * time.Minute
)

// What the guest does all the time: an epoch has pages and disk writes in it, and
// an emulated processor has time left for the checks.
var (
	memoryLoad = client.Dirty{Pages: 150, Every: 25 * time.Millisecond, Random: true, AreaMiB: 16}
	diskLoad   = client.DiskWork{Files: 16, Size: 32 << 10, Workers: 2, Every: 15 * time.Millisecond}
)

// setup says what the worlds are like.
type setup struct {
	daemon                string // built with the tag crashpoints
	kernel, initrd, image string
	mode                  config.DiskMode
	memory                config.Size
	prefix                string
	logs                  string // where daemons' logs are kept, "" for nowhere
	verify                bool   // compare all memory at every checkpoint
}

// stage is one world.
type stage struct {
	*world.QEMU
	mode    config.DiskMode
	control *control
	dir     string // of the sockets and histories
	lock    *os.File
	wire    *world.Wire

	watch         *stopwatch // of the trial
	client        *world.Client
	disk          *world.DiskClient
	boot          string
	owner, backup string

	frozen, cut map[string]bool
	endHunt     func() error // nil: nothing is hunted
	patients    *patients
	disguise    disguise
	full        []string // files that fill a file system

	checker *history.Checker
	read    map[string]int64 // bytes of each history that were read
	heard   time.Time        // up to where frames were checked
	later   []history.Line   // not checked yet
}

// times are the settings that recovery is made of.
func (s *stage) times() times { return timesOf(s.Config, web) }

// newStage brings up the three hosts; the guest boots.
func newStage(ctx context.Context, o setup) (_ *stage, err error) {
	s := &stage{mode: o.mode, watch: newStopwatch(), checker: history.NewChecker(), read: map[string]int64{}, heard: time.Now(), frozen: map[string]bool{}, cut: map[string]bool{},
		patients: &patients{ails: map[string]ail{}, hit: map[string]int{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := sweepMounts(o.prefix); err != nil {
		return nil, fmt.Errorf("remove what a former run left: %w", err)
	}
	if o.logs != "" {
		if err := os.MkdirAll(o.logs, 0o755); err != nil {
			return nil, err
		}
	}
	if s.dir, s.lock, err = newControlDir(o.prefix); err != nil {
		return nil, err
	}
	if s.control, err = newControl(s.dir, world.Hosts()...); err != nil {
		return nil, err
	}
	s.QEMU, err = world.NewQEMU(world.QEMUOptions{
		Options: world.Options{Daemon: o.daemon, Profile: config.Standard, Prefix: o.prefix, KeepLogs: o.logs,
			Arguments: s.arguments,
			Guests: []world.Guest{{Name: web, Home: world.HostA, Memory: o.memory, Machine: "q35", Disk: o.mode,
				Unfenced: o.mode == config.Shared, Protection: config.Protection{VerifyAll: o.verify}}}},
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
	if s.endHunt != nil {
		errs = append(errs, s.endHunt())
	}
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
	if s.lock != nil {
		errs = append(errs, os.RemoveAll(s.dir), s.lock.Close())
	}
	return errors.Join(errs...)
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
	s.watch.lap("settle: protected")
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
			s.watch.lap("settle: the witness leads")
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
	if err := s.LoadWith(ctx, web, memoryLoad); err != nil {
		return err
	}
	return s.useDisk(ctx)
}

func (s *stage) useDisk(ctx context.Context) (err error) {
	if s.disk != nil {
		_ = s.disk.Close()
	}
	if s.disk, err = s.LoadDiskWith(ctx, web, diskLoad); err != nil {
		return err
	}
	return s.disk.Wait(ctx, 5, soon)
}
