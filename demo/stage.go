package demo

import (
	"context"
	"errors"
	"fmt"

	"understudy/config"
	"understudy/demo/world"
	"understudy/hypervisor/sim"
)

func newStage(o Options) (stage, error) {
	if o.Prefix == "" {
		o.Prefix = "usdemo"
	}
	g := world.Guest{Name: guest, Home: world.HostA, Memory: o.Memory, Machine: o.Machine, Accel: o.Accel, Disk: o.Disk,
		Protection: config.Protection{Epoch: o.Epoch, VerifyAll: o.VerifyAll, Rebuild: o.Rebuild}}
	w := world.Options{Daemon: o.Daemon, Profile: o.Profile, Guests: []world.Guest{g}, KeepLogs: o.KeepLogs, Prefix: o.Prefix}
	switch o.Guest {
	case config.QEMU:
		q, err := world.NewQEMU(world.QEMUOptions{Options: w, Kernel: o.Kernel, Initrd: o.Initrd, Image: o.Image})
		return qemuStage{q}, err
	case config.Sim:
		w.Guests[0].Memory = simMemory
		s, err := world.NewSim(w)
		return &simStage{Sim: s}, err
	}
	return nil, fmt.Errorf("guest %q: want qemu or sim", o.Guest)
}

// simMemory is the simulated guest's: it writes to all of it all the time.
const simMemory = 16 * config.MiB

// qemuStage has a real guest.
type qemuStage struct{ *world.QEMU }

func (s qemuStage) connect(ctx context.Context) (*world.Client, error) { return s.Connect(ctx, guest) }
func (s qemuStage) load(ctx context.Context) error                     { return s.Load(ctx, guest) }
func (s qemuStage) check(ctx context.Context) error                    { return s.Check(ctx, guest) }
func (s qemuStage) boot(ctx context.Context) (string, error)           { return s.Boot(ctx, guest) }

func (s qemuStage) useDisk(ctx context.Context) (*world.DiskClient, error) {
	return s.LoadDisk(ctx, guest)
}
func (s qemuStage) fsck(ctx context.Context, owner string) error { return s.Fsck(ctx, guest, owner) }

// simStage has a simulated guest, which tells all that is asked of it in its
// lines.
type simStage struct {
	*world.Sim
	report func() sim.Report
}

func (s *simStage) connect(ctx context.Context) (c *world.Client, err error) {
	c, s.report, err = s.Connect(ctx, guest)
	return c, err
}

// load: it is always busy.
func (s *simStage) load(ctx context.Context) error { return ctx.Err() }

// check: its lines carry the sums of its state, and a standby loads nothing
// whose sums do not hold.
func (s *simStage) check(context.Context) error { return s.report().Err() }

func (s *simStage) boot(context.Context) (string, error) { return s.report().Boot, nil }

// The simulated guest has no disk in a world.
func (s *simStage) useDisk(context.Context) (*world.DiskClient, error) { return nil, errNoDisk }
func (s *simStage) fsck(context.Context, string) error                 { return errNoDisk }

var errNoDisk = errors.New("the simulated guest has no disk")
