//go:build xen

package daemon

// This file is a Xen guest's devices: the disks and the ways to the network are those
// of any guest, and what stands between them and a domain's drivers is made anew for
// each domain.
//
//	disk.Set ── blkif.Device ──┐
//	                           ├─ xenbus.Device ── xenstore ── the domain's drivers
//	egress.Gate ── netif.Link ─┘
//	               netif.Device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"time"

	"understudy/clock"
	"understudy/config"
	"understudy/disk/blkif"
	"understudy/egress"
	"understudy/egress/netif"
	"understudy/epoch"
	"understudy/hypervisor/qemu"
	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenbus"
)

// xenDevices makes the ways out of a Xen guest and the disks that it is served, and
// the back ends of both.
func xenDevices(o Options, self config.Host, g config.Guest, record recorder) (_ gates, _ xen.Devices, _ *served, err error) {
	x := &xenOutside{log: o.Slog.With("guest", g.Name)}
	var all gates
	for i, n := range g.NICs {
		link := netif.New()
		one, err := xenGate(o, g, n, i, link, record.gate(i))
		if err != nil {
			return nil, nil, nil, errors.Join(fmt.Errorf("network device %s: %w", n.MAC, err), link.Close(), all.Close())
		}
		all = append(all, one)
		x.nets = append(x.nets, xenNet{link, n.MAC.Hardware()})
	}
	// No disk has a socket: their front ends come and go with domains.
	if x.disks, err = newDisks(o, self, g, nil, qemu.Config{RunDir: guestDir(o.Config, self, g)}); err != nil {
		return nil, nil, nil, errors.Join(err, all.Close())
	}
	if n := x.diskCount(); n > maxXenDisks {
		return nil, nil, nil, errors.Join(fmt.Errorf("a Xen guest with %d disks: at most %d are supported", n, maxXenDisks), all.Close(), x.disks.Close())
	}
	return all, x, x.disks, nil
}

// xenGate makes the way out of one network device.
func xenGate(o Options, g config.Guest, n config.NIC, i int, link *netif.Link, record egress.Recorder) (_ *egress.Gate, err error) {
	tap, err := openTAP(o, egress.TAPConfig{Name: n.Tap, Bridge: n.Bridge}, tapName(g.Name, i))
	if err != nil {
		return nil, err
	}
	o.keeping.add(tapName(g.Name, i), tap.Keep)
	limit, err := egress.NewKernelGate(n.Tap)
	if err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	gate, err := egress.NewGate(egress.Config{Guest: link, Network: tap, Limit: limit, Clock: clock.Boot{},
		MAC: n.MAC.Hardware(), HeldBytes: int(g.Protection.HeldOutput), Log: o.Slog.With("guest", g.Name), Recorder: record})
	if err != nil {
		return nil, errors.Join(err, limit.Close(), tap.Close())
	}
	return gate, nil
}

// xenOutside is what a Xen guest has outside of its domains. It implements
// xen.Devices.
type xenOutside struct {
	disks *served // nil: none
	nets  []xenNet
	log   *slog.Logger
}

// xenNet is a network device.
type xenNet struct {
	link *netif.Link
	mac  net.HardwareAddr
}

// Where a guest finds its disks: xvda to xvdp.
const (
	firstXenDisk = 202 << 8
	xenDiskStep  = 16
	maxXenDisks  = 16
)

// Plug makes the devices of a domain. Of one that was restored the network is first: its
// clients wait for that, while its own programs have what they need most in its memory.
func (x *xenOutside) Plug(ctx context.Context, p xen.Plot, restored bool) (_ xen.Plugged, err error) {
	plugged := &xenPlugged{}
	defer func() {
		if err != nil {
			err = errors.Join(err, plugged.Unplug())
		}
	}()
	memory := xen.Lent{Grants: p.Grants, Frames: p.Frames, Memory: p.Memory}
	attach := func(c xenbus.Config) error {
		c.Store, c.Domain, c.Log = p.Store, p.Domain, x.log
		bus, err := xenbus.Attach(ctx, c)
		if err == nil {
			plugged.buses = append(plugged.buses, bus)
		}
		return err
	}
	for i, n := range x.nets {
		device := n.link.Device(netif.Config{Memory: memory, Pages: p.Frames.Pages(), Log: x.log,
			Bind: func(port uint32) (netif.Channel, error) { return p.Bind(port) }})
		plugged.nets = append(plugged.nets, device)
		keys := map[string]string{"handle": strconv.Itoa(i), "mac": n.mac.String()}
		if err := attach(xenbus.Config{Kind: xenbus.Network, Number: uint32(i), Backend: device, Front: keys, Back: keys}); err != nil {
			return nil, err
		}
	}
	var first []*xenbus.Device
	if restored {
		first = slices.Clone(plugged.buses)
	}
	for i := range x.diskCount() {
		device, err := blkif.New(blkif.Config{Backend: x.disks.Disk(epoch.DiskID(i)), Memory: memory, Log: x.log,
			Bind: func(port uint32) (blkif.Channel, error) { return p.Bind(port) }})
		if err != nil {
			return nil, err
		}
		plugged.disks = append(plugged.disks, device)
		if err := x.disks.Disk(epoch.DiskID(i)).Attach(device); err != nil {
			return nil, err
		}
		number := uint32(firstXenDisk + xenDiskStep*i)
		if err := attach(xenbus.Config{Kind: xenbus.Disk, Number: number, Backend: device, Behind: first,
			Front: map[string]string{"virtual-device": strconv.FormatUint(uint64(number), 10), "device-type": "disk"},
			Back:  map[string]string{"dev": "xvd" + string(rune('a'+i)), "mode": "w", "removable": "0"}}); err != nil {
			return nil, err
		}
	}
	return plugged, nil
}

// diskCount is how many disks a guest finds.
func (x *xenOutside) diskCount() int {
	if x.disks == nil {
		return 0
	}
	return len(x.disks.specs)
}

// xenPlugged is the devices of one domain. It implements xen.Plugged.
type xenPlugged struct {
	disks []*blkif.Device
	nets  []*netif.Device
	buses []*xenbus.Device
}

// Start serves.
func (x *xenPlugged) Start() {
	for _, d := range x.disks {
		d.Start()
	}
	for _, n := range x.nets {
		n.Start()
	}
}

// Stop returns when nothing of the domain is written any more.
func (x *xenPlugged) Stop() {
	for _, d := range x.disks {
		d.Stop()
	}
	for _, n := range x.nets {
		n.Stop()
	}
}

// CollectDirty adds what the network has written; of what the disks have, the Set is
// told.
func (x *xenPlugged) CollectDirty(set *epoch.PageSet) error {
	var errs []error
	for _, n := range x.nets {
		errs = append(errs, n.CollectDirty(set))
	}
	return errors.Join(errs...)
}

// xenstorePatience bounds what is said to xenstored at the end.
const xenstorePatience = 10 * time.Second

// Unplug ends serving and removes the nodes.
func (x *xenPlugged) Unplug() error { return x.end((*xenbus.Device).Remove) }

// Leave ends serving and leaves the nodes to a next process.
func (x *xenPlugged) Leave() error { return x.end((*xenbus.Device).Detach) }

func (x *xenPlugged) end(leave func(*xenbus.Device, context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), xenstorePatience)
	defer cancel()
	var errs []error
	for _, b := range x.buses {
		errs = append(errs, leave(b, ctx))
	}
	for _, d := range x.disks {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}
