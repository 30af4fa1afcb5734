package daemon

// This file says where a guest's bubbles stand on this host (package bubble): a
// second driver of the same guest, whose directories are within the first one's,
// whose network is isolated, and whose disks are fronts of their own over what the
// backup's disks held at the commit.
//
//	vhost ── disk.Scratch (writes stay here) ── disk.Fork ── held writes, store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy/bubble"
	"understudy/bubble/isolate"
	"understudy/config"
	"understudy/disk"
	"understudy/disk/vhost"
	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu"
	"understudy/hypervisor/sim"
)

const (
	// bubbleAside bounds what is kept of the disks as they were, bubbleWrites what
	// the bubble's guest may write to each, in bytes.
	bubbleAside  = 256 << 20
	bubbleWrites = 128 << 20
	// bubbleMargin is memory that a bubble leaves to others.
	bubbleMargin = 128 << 20
)

func newGround(o Options, self config.Host, g config.Guest, disks *served) bubble.Ground {
	switch g.Hypervisor {
	case config.Sim:
		return simGround{o, self, g}
	case config.Xen:
		return nil // nowhere
	}
	c := qemuConfig(o.Config, self, g, o.Helper)
	main := c.RunDir
	c.RunDir = filepath.Join(main, "bubble")
	c.ImageDir = filepath.Join(c.RunDir, "memory")
	c.Idle = true // who protects guests comes first
	return &qemuGround{o: o, g: g, c: c, guests: filepath.Dir(main), name: isolate.Name(g.Name, main), disks: disks}
}

// qemuGround is for bubbles of a QEMU guest.
type qemuGround struct {
	o      Options
	g      config.Guest
	c      qemu.Config // the bubble's
	guests string      // directory of all guests on this host
	name   string      // of the network
	disks  *served     // nil: none
}

// Begin makes a bubble's surroundings.
func (q *qemuGround) Begin(_ context.Context, address string) (_ bubble.Place, err error) {
	if err := q.room(); err != nil {
		return nil, err
	}
	if address == "" {
		address = q.g.BubbleAddress
	}
	network := isolate.Config{Name: q.name, TAPs: len(q.g.NICs)}
	if address != "" {
		if network.Address, err = netip.ParsePrefix(address); err != nil {
			return nil, fmt.Errorf("the host's address in the bubble: %w", err)
		}
	}
	p := &qemuPlace{ground: q}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.network, err = isolate.New(network); err != nil {
		return nil, err
	}
	c := q.c
	c.NICs = nil
	for i, n := range q.c.NICs {
		n.TAP = p.network.TAPs()[i]
		c.NICs = append(c.NICs, n)
	}
	if p.driver, err = qemu.NewDriver(c, q.o.Slog.With("bubble", q.name)); err != nil {
		return nil, err
	}
	if err := p.driver.Prepare(); err != nil {
		return nil, err
	}
	return p, p.serve(c)
}

// Clean removes what bubbles of a former process have left.
func (q *qemuGround) Clean(ctx context.Context) error {
	driver, err := qemu.NewDriver(q.c, q.o.Slog)
	if err == nil {
		err = driver.Clean(ctx)
	}
	return errors.Join(err, isolate.Clean(q.name), os.RemoveAll(q.c.RunDir))
}

// room refuses a bubble that could take memory which a guest's image has yet to
// grow into: all of them may grow to their full size.
func (q *qemuGround) room() error {
	need := uint64(q.g.Memory)
	images, err := filepath.Glob(filepath.Join(q.guests, "*", "memory", "*.ram"))
	if err != nil {
		return err
	}
	bubbles, err := filepath.Glob(filepath.Join(q.guests, "*", "bubble", "memory", "*.ram"))
	if err != nil {
		return err
	}
	for _, path := range append(images, bubbles...) {
		info, err := os.Stat(path)
		if err != nil {
			continue // gone meanwhile
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			need += uint64(max(0, info.Size()-st.Blocks*512))
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(q.guests, &fs); err != nil {
		return fmt.Errorf("look for memory for a bubble: %w", err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); fs.Blocks != 0 && free < need {
		return fmt.Errorf("%s has %v free, and a bubble of %v beside images that may still grow needs %v: make the tmpfs larger (mount -o remount,size=…)",
			q.guests, config.Size(free), q.g.Memory, config.Size(need))
	}
	need += bubbleAside + bubbleWrites*uint64(len(q.c.Served)) + bubbleMargin
	if free, err := memoryAvailable(); err != nil || free < need {
		return errors.Join(fmt.Errorf("this host has %v of memory available, and a bubble of %v needs %v", config.Size(free), q.g.Memory, config.Size(need)), err)
	}
	return nil
}

// memoryAvailable is what the kernel could hand out (proc_meminfo(5)), in bytes.
func memoryAvailable() (uint64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

// qemuPlace is one bubble's surroundings.
type qemuPlace struct {
	ground  *qemuGround
	network *isolate.Network
	driver  *qemu.Driver
	disks   []*disk.Scratch
	fronts  []*vhost.Server
	forked  *disk.Fork
}

// serve opens the sockets of the bubble's disks, which show nothing yet.
func (p *qemuPlace) serve(c qemu.Config) error {
	q := p.ground
	for i := range c.Served {
		d := disk.NewScratch(epoch.DiskID(i), q.disks.Disk(epoch.DiskID(i)).Info(), bubbleWrites)
		path := c.DiskSocket(i)
		front, err := vhost.Listen(vhost.Config{Path: path, Backend: d, Queues: c.Served[i].Queues, QueueSize: c.Served[i].QueueSize,
			Log: q.o.Slog.With("bubble", q.name)})
		if err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
		p.disks, p.fronts = append(p.disks, d), append(p.fronts, front)
		if err := p.driver.Grant(path); err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
	}
	return nil
}

// Driver makes the bubble's machine.
func (p *qemuPlace) Driver() hypervisor.Driver { return p.driver }

// ForkDisks shows the disks as of the last commit.
func (p *qemuPlace) ForkDisks() (bubble.Disks, error) {
	if p.ground.disks == nil {
		return nil, nil
	}
	f, err := p.ground.disks.Fork(bubbleAside)
	if err != nil {
		return nil, err
	}
	p.forked = f
	for i, d := range p.disks {
		id := epoch.DiskID(i)
		d.Over(func(sector uint64, dst []byte) error { return f.ReadSectors(id, sector, dst) })
	}
	return f, nil
}

// Loaded has the requests that were in flight begun anew.
func (p *qemuPlace) Loaded() error {
	for i, front := range p.fronts {
		if state := p.forked.InFlight(epoch.DiskID(i)); len(state) > 0 {
			if err := front.Resubmit(state); err != nil {
				return fmt.Errorf("disk %d of the bubble: submit the requests in flight anew: %w", i, err)
			}
		}
	}
	return nil
}

// Check runs a command in the bubble's network.
func (p *qemuPlace) Check(ctx context.Context, argv, env []string) bubble.Check {
	return p.network.Check(ctx, argv, env)
}

// Written is what the bubble's guest wrote.
func (p *qemuPlace) Written() (bytes uint64) {
	for _, d := range p.disks {
		bytes += d.Written()
	}
	return bytes
}

// Name is the network's.
func (p *qemuPlace) Name() string { return p.ground.name }

// Close removes it all.
func (p *qemuPlace) Close() error {
	var errs []error
	for _, f := range p.fronts {
		errs = append(errs, f.Close())
	}
	if p.driver != nil {
		errs = append(errs, p.driver.Clean(context.Background()))
	}
	if p.network != nil {
		errs = append(errs, p.network.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(p.ground.c.RunDir))...)
}

// simGround is for bubbles of a simulated guest, which live in this process. Its
// network does not reach there: a check runs on the host.
type simGround struct {
	o    Options
	self config.Host
	g    config.Guest
}

func (s simGround) Begin(context.Context, string) (bubble.Place, error) {
	c := sim.DefaultConfig(s.g.Name)
	c.Pages = uint64(s.g.Memory) / epoch.PageSize
	for _, n := range s.g.NICs {
		c.MAC = n.MAC.Hardware()
	}
	driver, err := sim.NewDriver(sim.NewHost(s.self.Name+"-bubble"), c)
	return simPlace{driver}, err
}

func (simGround) Clean(context.Context) error { return nil }

type simPlace struct{ driver *sim.Driver }

func (p simPlace) Driver() hypervisor.Driver        { return p.driver }
func (p simPlace) ForkDisks() (bubble.Disks, error) { return nil, nil }
func (p simPlace) Loaded() error                    { return nil }
func (p simPlace) Written() uint64                  { return 0 }
func (p simPlace) Name() string                     { return "" }
func (p simPlace) Close() error                     { return nil }
func (p simPlace) Check(ctx context.Context, argv, env []string) bubble.Check {
	return bubble.RunCheck(ctx, argv, env, nil)
}
