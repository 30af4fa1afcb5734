package daemon

// This file turns a [[guest]] section into a driver, a gate and the settings of
// its two roles.

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"understudy/backup"
	"understudy/clock"
	"understudy/config"
	"understudy/egress"
	"understudy/epoch"
	"understudy/host"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu"
	"understudy/hypervisor/sim"
	"understudy/ownership"
	"understudy/primary"
)

func newGuest(o Options, self config.Host, g config.Guest, record recorder) (host.Guest, error) {
	var driver hypervisor.Driver
	var gate host.Gate
	var disks *served
	var err error
	switch g.Hypervisor {
	case config.QEMU:
		driver, gate, disks, err = newQEMU(o, self, g, record)
	case config.Xen:
		driver, gate, disks, err = newXen(o, self, g, record)
	case config.Sim:
		driver, gate, err = newSim(o, self, g, record)
	default:
		err = fmt.Errorf("hypervisor %q is not known", g.Hypervisor)
	}
	if err != nil {
		return host.Guest{}, err
	}
	made := host.Guest{
		Name: g.Name, Home: ownership.HostID(g.Host), Driver: driver, Gate: gate,
		LeftFile: leftFile(o, self, g), LeftPages: imagePages(g),
		FailbackAfter: failbackAfter(g), OnStop: onStops[g.OnStop],
		Disks: disks.orNone(), History: disks.history(), Copies: disks.copied(), Shared: shared(g), Hypervisor: string(g.Hypervisor),
		Bubbles: newGround(o, self, g, disks),
	}
	made.Primary, made.Backup = rolesOf(ownership.HostID(self.Name), g, disks)
	return made, nil
}

// rolesOf makes the settings of a guest's two roles.
func rolesOf(me ownership.HostID, g config.Guest, disks *served) (func(time.Duration) primary.Config, func(time.Duration) backup.Config) {
	return func(lease time.Duration) primary.Config {
			c := primaryConfig(g, me, lease)
			c.Disks, c.PrintKey = disks.shape()
			return c
		}, func(lease time.Duration) backup.Config {
			c := backup.DefaultConfig(g.Name, me, lease, uint64(g.Memory)+sideBlocks)
			c.MaxStage = epoch.StageLimit((uint64(g.Memory)+sideBlocks)/epoch.PageSize, uint64(g.Protection.HeldWrites)+syncRoom)
			c.Disks, _ = disks.shape()
			c.Lazy = g.Protection.Rebuild == config.RebuildLazy
			return c
		}
}

// shared reports whether a disk is one for both hosts.
func shared(g config.Guest) bool {
	return slices.ContainsFunc(g.Disks, func(d config.Disk) bool { return d.Mode == config.Shared })
}

// onStops are what package host calls them.
var onStops = map[config.OnStop]host.OnStop{config.OnStopHandover: host.OnStopHandover, config.OnStopLeave: host.OnStopLeave, config.OnStopStop: host.OnStopStop}

// failbackAfter is 0 where an operator brings the guest back.
func failbackAfter(g config.Guest) time.Duration {
	if g.Failback != config.FailbackAuto {
		return 0
	}
	return g.FailbackAfter.Std()
}

// leftFile is where a guest's daemon leaves word to the next one; only a guest that
// outlives its daemon has one.
func leftFile(o Options, self config.Host, g config.Guest) string {
	if g.Hypervisor != config.QEMU {
		return ""
	}
	return filepath.Join(guestDir(o.Config, self, g), "left")
}

// imagePages is how many pages a guest's image may have.
func imagePages(g config.Guest) uint64 {
	return uint64(g.Memory)/epoch.PageSize + sideBlocks/epoch.PageSize
}

// sideBlocks is room for a machine's other RAM blocks in one epoch.
const sideBlocks = 64 << 20

// syncRoom is room for what one epoch brings of a disk's synchronisation.
const syncRoom = 64 << 20

func primaryConfig(g config.Guest, self ownership.HostID, lease time.Duration) primary.Config {
	p := g.Protection
	c := primary.DefaultConfig(g.Name, self, lease)
	c.Window, c.Floor, c.Target, c.Ceiling = p.Window, p.Floor.Std(), p.Target.Std(), p.Ceiling.Std()
	if fixed, ok := p.Epoch.Fixed(); ok {
		c.Floor, c.Target, c.Ceiling = fixed, fixed, fixed
	}
	c.DetachAfter = p.DetachAfter.Std()
	if slices.ContainsFunc(g.Disks, func(d config.Disk) bool { return d.Unfenced }) {
		c.TakeBackAfter = 0 // what the other host replays could come late
	}
	c.Encoder = epoch.EncoderConfig{DeltaCacheBytes: uint64(p.DeltaCache)}
	c.Effort = primary.Compression(p.Compression)
	c.Patience = p.HandoverPatience.Std()
	c.VerifyEvery, c.VerifyAll = p.VerifyEvery.Std(), p.VerifyAll
	return c
}

// newQEMU makes what a QEMU guest needs: its frames come over a pair of
// datagram sockets and leave through a TAP with a time limit in the kernel.
func newQEMU(o Options, self config.Host, g config.Guest, record recorder) (hypervisor.Driver, host.Gate, *served, error) {
	c := qemuConfig(o.Config, self, g, o.Helper)
	driver, err := qemu.NewDriver(c, o.Slog)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := driver.Prepare(); err != nil {
		return nil, nil, nil, err
	}
	var all gates
	for i, n := range g.NICs {
		one, err := qemuGate(o, driver, c, g, n, i, record.gate(i))
		if err != nil {
			return nil, nil, nil, errors.Join(fmt.Errorf("network device %s: %w", n.MAC, err), all.Close())
		}
		all = append(all, one)
	}
	disks, err := newDisks(o, self, g, driver, c)
	if err != nil {
		return nil, nil, nil, errors.Join(err, all.Close())
	}
	return driver, all.orOne(), disks, nil
}

// qemuConfig is what package qemu wants to know of a guest. Its memory is beside
// its sockets, in the run directory, which is on a tmpfs.
func qemuConfig(all *config.Config, self config.Host, g config.Guest, helper []string) qemu.Config {
	dir := guestDir(all, self, g)
	c := qemu.Config{
		Name: g.Name, Memory: uint64(g.Memory), CPUs: g.CPUs, Machine: g.Machine, CPU: g.CPU, Accel: g.Accel,
		Kernel: g.Kernel, Initrd: g.Initrd, Append: g.Append, User: g.User,
		RunDir: dir, ImageDir: filepath.Join(dir, "memory"), Helper: helper,
		FreePageReporting: g.FreePageReporting,
	}
	for _, d := range g.Disks {
		if d.Served() {
			c.Served = append(c.Served, qemu.ServedDisk{Queues: d.Queues})
			continue
		}
		c.Disks = append(c.Disks, qemu.Disk{Path: d.Path, Format: diskFormat(d.Path), ReadOnly: d.Mode == config.ReadOnly, Snapshot: d.Mode == config.Snapshot})
	}
	for _, n := range g.NICs {
		c.NICs = append(c.NICs, qemu.NIC{MAC: n.MAC.String()})
	}
	return c
}

func guestDir(all *config.Config, self config.Host, g config.Guest) string {
	return filepath.Join(all.DirsOf(self).Run, "guests", g.Name)
}

// diskFormat goes by the file's name: what is in it may be the guest's doing.
func diskFormat(path string) string {
	if filepath.Ext(path) == ".qcow2" {
		return "qcow2"
	}
	return "raw"
}

// qemuGate makes the way out of one network device.
func qemuGate(o Options, driver *qemu.Driver, c qemu.Config, g config.Guest, n config.NIC, i int, record egress.Recorder) (_ *egress.Gate, err error) {
	guestSide, hostSide := c.NICSockets(i)
	var undo []func() error
	defer func() {
		if err != nil {
			for _, f := range undo {
				err = errors.Join(err, f())
			}
		}
	}()
	frames, err := egress.OpenGuestSocket(egress.SocketConfig{Local: hostSide, Remote: guestSide, UID: -1, GID: -1})
	if err != nil {
		return nil, err
	}
	undo = append(undo, frames.Close)
	if err := driver.Grant(hostSide); err != nil {
		return nil, err
	}
	tap, err := openTAP(o, egress.TAPConfig{Name: n.Tap, Bridge: n.Bridge}, tapName(g.Name, i))
	if err != nil {
		return nil, err
	}
	undo = append(undo, tap.Close)
	o.keeping.add(tapName(g.Name, i), tap.Keep)
	limit, err := egress.NewKernelGate(n.Tap)
	if err != nil {
		return nil, err
	}
	undo = append(undo, limit.Close)
	return egress.NewGate(egress.Config{Guest: frames, Network: tap, Limit: limit, Clock: clock.Boot{},
		MAC: n.MAC.Hardware(), HeldBytes: int(g.Protection.HeldOutput), Log: o.Slog.With("guest", g.Name), Recorder: record})
}

// openTAP makes the TAP, or takes the former daemon's.
func openTAP(o Options, c egress.TAPConfig, name string) (*egress.TAP, error) {
	if f := o.inherited.take(name); f != nil {
		return egress.InheritTAP(f, c)
	}
	return egress.OpenTAP(c)
}

// newSim makes a simulated guest, which lives inside this process.
func newSim(o Options, self config.Host, g config.Guest, record recorder) (hypervisor.Driver, host.Gate, error) {
	c := sim.DefaultConfig(g.Name)
	c.Pages = uint64(g.Memory) / epoch.PageSize
	var all gates
	var link *sim.Link
	if len(g.NICs) > 1 {
		return nil, nil, errors.New("a simulated guest has one network device")
	}
	for _, n := range g.NICs {
		local := filepath.Join(o.Config.DirsOf(self).Run, g.Name+".port")
		if err := prepareDir(filepath.Dir(local), 0o755); err != nil {
			return nil, nil, err
		}
		network, err := egress.OpenSegment(egress.SocketConfig{Local: local, Remote: n.Segment, UID: -1, GID: -1})
		if err != nil {
			return nil, nil, err
		}
		inner, outer := egress.NewPipe(1024)
		gate, err := egress.NewGate(egress.Config{Guest: outer, Network: network, Clock: clock.Boot{},
			MAC: n.MAC.Hardware(), HeldBytes: int(g.Protection.HeldOutput), Log: o.Slog.With("guest", g.Name), Recorder: record.gate(0)})
		if err != nil {
			return nil, nil, errors.Join(err, network.Close(), outer.Close())
		}
		all = append(all, gate)
		link = sim.NewLink(inner, egress.ErrEmpty)
		c.MAC, c.NIC = n.MAC.Hardware(), link
	}
	gate := linked{all.orOne(), link}
	driver, err := sim.NewDriver(sim.NewHost(self.Name), c)
	if err != nil {
		return nil, nil, errors.Join(err, gate.Close())
	}
	return driver, gate, nil
}

// linked is a gate and the simulated guest's end of the way to it, if any.
type linked struct {
	host.Gate
	link *sim.Link
}

func (l linked) inner() host.Gate { return l.Gate }

// Close closes both.
func (l linked) Close() error {
	err := l.Gate.Close()
	if l.link != nil {
		err = errors.Join(err, l.link.Close())
	}
	return err
}
