// Package sim is a simulated guest behind the hypervisor interfaces: memory
// pages, devices, a disk and network traffic, run by a goroutine of this
// process. Its whole state is in its image and its device state, so a copy
// restored elsewhere goes on exactly from there. It needs no root and no QEMU.
//
// Data flows through the package in this order:
//
//	sim.go     what a guest is (Config) and who makes one (Driver)
//	host.go    the registry that stands for one host: it can be killed
//	machine.go the running of a guest: steps, pause, resume, end
//	kernel.go  what the guest does in a step; layout.go says where it keeps it
//	stream.go  the guest's network service; frame.go is its wire format
//	disk.go    the guest's use of its disk
//	guest.go, standby.go, state.go   the hypervisor's view of it
//	nic.go     the network it is plugged into; link.go joins it to a real gate
//	session.go, client.go            the client that checks what the guest says
//	faults.go  what a test can make go wrong
package sim

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"github.com/zeebo/xxh3"

	"understudy/epoch"
	"understudy/hypervisor"
)

// Limits of a simulated machine, in pages of epoch.PageSize bytes.
const (
	MinPages = systemPages + 1
	MaxPages = 1 << 20 // 4 GiB
)

// Pattern says which pages of its heap a guest writes.
type Pattern uint8

const (
	// PatternRandom spreads the writes evenly over the heap.
	PatternRandom Pattern = iota
	// PatternSequential walks through the heap.
	PatternSequential
	// PatternHot sends seven writes of eight to one eighth of the heap.
	PatternHot
)

// Config describes one simulated guest on one host.
type Config struct {
	Name string           // names the guest on its hosts
	MAC  net.HardwareAddr // the guest's address, 6 bytes
	// Pages is the size of the image, from MinPages to MaxPages.
	Pages uint64
	// Seed makes the guest's life repeatable: same seed, same host name, same
	// inputs (frames, disk, and the clock if there is an Interval), same image. Zero draws one from the system's random source at
	// every Start.
	Seed uint64

	// DirtyPages is how many heap pages are written in each step.
	DirtyPages int
	Pattern    Pattern
	// LineEvery is the number of steps between two lines of a stream.
	LineEvery int
	// RetransmitAfter is how many steps the guest waits for an
	// acknowledgement before it sends a line again. An acknowledgement takes
	// at least as long as the guest's output is held for its commit; a client
	// that misses a line asks for it at once.
	RetransmitAfter int
	// DiskEvery is the number of steps between two records on the disk.
	DiskEvery int

	// Interval is the time between two steps. Zero means that the guest has no
	// goroutine of its own and moves only when Guest.Step is called.
	Interval time.Duration
	// NIC is the guest's network card on this host; nil means none.
	NIC NIC
	// Disk is the guest's disk as this host reaches it; nil means none.
	Disk Disk
	// Faults is what a test makes go wrong; nil means nothing.
	Faults *Faults
}

// DefaultConfig is a guest of 16 MiB that takes a step, says a line and writes
// 16 pages every 2 ms. It has no network card and no disk.
func DefaultConfig(name string) Config {
	return Config{
		Name:            name,
		MAC:             MACFor(name),
		Pages:           4096,
		DirtyPages:      16,
		LineEvery:       1,
		RetransmitAfter: 50,
		DiskEvery:       4,
		Interval:        2 * time.Millisecond,
	}
}

// MACFor derives a locally administered unicast address from a name.
func MACFor(name string) net.HardwareAddr {
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], xxh3.HashString(name))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// Validate says what is wrong with a configuration.
func (c Config) Validate() error {
	switch {
	case c.Name == "" || len(c.Name) > maxName:
		return fmt.Errorf("sim: name %q: want 1 to %d bytes", c.Name, maxName)
	case len(c.MAC) != 6 || c.MAC[0]&1 != 0:
		return fmt.Errorf("sim: guest %s: MAC %q: want a unicast address of 6 bytes", c.Name, c.MAC)
	case c.Pages < MinPages || c.Pages > MaxPages:
		return fmt.Errorf("sim: guest %s: %d pages: want %d to %d", c.Name, c.Pages, uint64(MinPages), uint64(MaxPages))
	case c.DirtyPages < 0 || uint64(c.DirtyPages) > c.Pages:
		return fmt.Errorf("sim: guest %s: %d dirty pages a step in an image of %d pages", c.Name, c.DirtyPages, c.Pages)
	case c.Pattern > PatternHot:
		return fmt.Errorf("sim: guest %s: unknown write pattern %d", c.Name, c.Pattern)
	case c.LineEvery < 1 || c.RetransmitAfter < 1 || c.DiskEvery < 1:
		return fmt.Errorf("sim: guest %s: LineEvery %d, RetransmitAfter %d and DiskEvery %d must be at least 1 step",
			c.Name, c.LineEvery, c.RetransmitAfter, c.DiskEvery)
	case c.Interval < 0:
		return fmt.Errorf("sim: guest %s: interval %v is negative", c.Name, c.Interval)
	case c.Disk != nil && c.Disk.Blocks() == 0:
		return fmt.Errorf("sim: guest %s: its disk has no blocks", c.Name)
	}
	return nil
}

// Driver runs one configured guest on one host. It stands for the part of a
// daemon: when the daemon dies, a new Driver on the same Host can adopt.
type Driver struct {
	host *Host
	cfg  Config
}

var _ hypervisor.Driver = (*Driver)(nil)

// NewDriver returns the driver of the guest that cfg describes on host.
func NewDriver(host *Host, cfg Config) (*Driver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Faults == nil {
		cfg.Faults = &Faults{}
	}
	return &Driver{host: host, cfg: cfg}, nil
}

// Start boots the guest from nothing, paused. Its concrete type is *Guest. It
// fails if a guest of this name is on the host already.
func (d *Driver) Start(ctx context.Context) (hypervisor.Guest, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start guest %s on %s: %w", d.cfg.Name, d.host.name, err)
	}
	m := newMachine(d.host, d.cfg, phasePaused)
	start, err := d.host.add(m)
	if err != nil {
		return nil, fmt.Errorf("start guest %s on %s: %w", d.cfg.Name, d.host.name, err)
	}
	g := m.take()
	m.boot(d.bootSeed(start))
	return g, nil
}

// bootSeed makes every boot differ from every other, and still repeatable.
func (d *Driver) bootSeed(start uint64) uint64 {
	if d.cfg.Seed == 0 {
		var b [8]byte
		rand.Read(b[:]) //nolint:errcheck // never fails, see crypto/rand
		return binary.LittleEndian.Uint64(b[:])
	}
	return mix(mix(d.cfg.Seed, xxh3.HashString(d.host.name)), start)
}

// Adopt takes on the guest that a former Driver of this host left, paused and
// with every page dirty. The former Driver's handle is worth nothing any more.
func (d *Driver) Adopt(ctx context.Context) (hypervisor.Guest, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("adopt guest %s on %s: %w", d.cfg.Name, d.host.name, err)
	}
	m, err := d.host.guest(d.cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("adopt guest %s on %s: %w", d.cfg.Name, d.host.name, err)
	}
	if m.cfg.Pages != d.cfg.Pages {
		return nil, &hypervisor.Refusal{
			What:   fmt.Sprintf("guest %s on %s has %d pages, the configuration says %d", d.cfg.Name, d.host.name, m.cfg.Pages, d.cfg.Pages),
			Remedy: "set the former size, or end the guest with Clean",
		}
	}
	return m.adopt(d.cfg)
}

// Standby prepares an empty image on this host for the guest that spec
// describes. Its concrete type is *Standby. A machine that this driver is not
// configured for is refused with *hypervisor.Refusal.
func (d *Driver) Standby(ctx context.Context, spec hypervisor.Spec) (hypervisor.Standby, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("standby for guest %s on %s: %w", d.cfg.Name, d.host.name, err)
	}
	if err := checkSpec(d.cfg, spec); err != nil {
		return nil, fmt.Errorf("standby for guest %s on %s: %w", d.cfg.Name, d.host.name, err)
	}
	m := newMachine(d.host, d.cfg, phaseWaiting)
	if _, err := d.host.add(m); err != nil {
		return nil, fmt.Errorf("standby for guest %s on %s: %w", d.cfg.Name, d.host.name, err)
	}
	return &Standby{handle: m.take().handle}, nil
}

// Clean ends every machine of this guest on this host, standbys included.
func (d *Driver) Clean(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("clean guest %s on %s: %w", d.cfg.Name, d.host.name, err)
	}
	for _, m := range d.host.all(d.cfg.Name) {
		m.end(errGone, nil)
	}
	return nil
}

// systemPages are the pages that are not heap: the header and one for each
// connection.
const systemPages = 1 + maxConns

const maxName = 64

// pageOf returns the bytes of one page of an image.
func pageOf(image []byte, f epoch.GFN) []byte {
	at := uint64(f) * epoch.PageSize
	return image[at : at+epoch.PageSize : at+epoch.PageSize]
}
