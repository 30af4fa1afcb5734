//go:build xen

package daemon

// This file makes a Xen guest of its [[guest]] section: a driver over Xen's
// libraries, which live as long as the guest's gate.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"understudy/config"
	"understudy/host"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu"
	"understudy/hypervisor/qemu/qmp"
	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/xenctl"
)

// newXen makes what a Xen guest needs. Its disks and network devices are served by
// us (devices), and libxl knows of none.
func newXen(o Options, self config.Host, g config.Guest, record recorder) (_ hypervisor.Driver, _ host.Gate, _ *served, err error) {
	ways, outside, disks, err := xenDevices(o, self, g, record)
	if err != nil {
		return nil, nil, nil, err
	}
	gate := ways.orOne()
	defer func() {
		if err == nil {
			return
		}
		err = errors.Join(err, gate.Close())
		if disks != nil {
			err = errors.Join(err, disks.Close())
		}
	}()
	h, err := xenctl.OpenHost(context.Background(), deviceModel)
	if err != nil {
		return nil, nil, nil, err
	}
	c := xenConfig(g)
	c.Devices = outside
	driver, err := xen.NewDriver(c, h, o.Slog)
	if err != nil {
		return nil, nil, nil, errors.Join(err, h.Close())
	}
	return driver, onXen{gate, h}, disks, nil
}

// deviceModel connects to a QEMU that is an HVM domain's device model.
func deviceModel(ctx context.Context, path string) (xen.Monitor, error) {
	c, err := qmp.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// onXen is a guest's gate, which is closed when nobody needs the guest's driver any
// more.
type onXen struct {
	host.Gate
	xen *xenctl.Host
}

func (x onXen) inner() host.Gate { return x.Gate }

// Close closes the gate and the libraries.
func (x onXen) Close() error { return errors.Join(x.Gate.Close(), x.xen.Close()) }

// checkXen finds out whether this host's Xen can run and protect a guest.
func checkXen(ctx context.Context, r *qemu.Report, g config.Guest) {
	add := func(name string, err error, detail, remedy string) bool {
		c := qemu.Check{Name: name, Status: qemu.StatusOK, Detail: detail}
		var refusal *hypervisor.Refusal
		switch {
		case errors.As(err, &refusal):
			c.Status, c.Detail, c.Remedy = qemu.StatusFail, refusal.What, refusal.Remedy
		case err != nil:
			c.Status, c.Detail, c.Remedy = qemu.StatusFail, err.Error(), remedy
		}
		r.Checks = append(r.Checks, c)
		return err == nil
	}
	h, err := xenctl.OpenHost(ctx, deviceModel)
	if !add("Xen", err, "this is its first domain", "boot Xen, start xenstored and xenconsoled, and run this as root of the first domain") {
		return
	}
	defer func() { _ = h.Close() }()
	major, minor, err := h.Control().Version()
	add("version", err, fmt.Sprintf("Xen %d.%d", major, minor), "install the libraries of the hypervisor's version")
	_, err = h.Domains(ctx)
	add("libraries", err, "they speak with the hypervisor", "install the libraries of the hypervisor's very version: they are locked to it")
	able, err := h.Control().Abilities()
	if err == nil && !able.HAP {
		err = &hypervisor.Refusal{What: "the hypervisor has no nested paging here, so that writes cannot be logged", Remedy: "use a processor with EPT or NPT, and switch it on in the firmware"}
	}
	add("log-dirty", err, "writes of PVH and HVM domains can be logged", "install the libraries of the hypervisor's version")
	if err == nil && able.Free < uint64(g.Memory) {
		err = &hypervisor.Refusal{What: fmt.Sprintf("Xen has %d MiB free, the guest has %d", able.Free>>20, uint64(g.Memory)>>20), Remedy: "give the first domain less (dom0_mem), or the guest"}
	}
	add("memory", err, fmt.Sprintf("%d MiB free", able.Free>>20), "")
	_, err = xen.NewDriver(xenConfig(g), h, slog.New(slog.DiscardHandler))
	add("configuration", err, "consistent", "correct the guest's configuration")
}
