package qemu

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// machine is what a command line is made for: the machine as both hosts must
// have it, and where its memory lies on this one.
type machine struct {
	Type  string // versioned
	Accel string // "kvm" or "tcg"
}

// The descriptors that QEMU is started with, in the order that os/exec passes
// them on: its listening QMP socket, the console's file if there is one, and the
// TAPs (tapFD).
const (
	qmpFD     = 3
	consoleFD = 4
)

// tapFD is the descriptor of a network card's TAP.
func (c *Config) tapFD(nic int) int {
	fd := consoleFD
	if c.Console != "" {
		fd++
	}
	for _, n := range c.NICs[:nic] {
		if n.TAP != nil {
			fd++
		}
	}
	return fd
}

// arguments returns QEMU's arguments for the guest, paused at its start, or
// waiting for its state if incoming is set.
func (c *Config) arguments(m machine, ramPath string, incoming bool) []string {
	a := c.shape(m)
	a = append(a,
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=on,prealloc=off", c.Memory, ramPath),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", qmpFD),
		"-mon", "chardev=qmp,mode=control",
		"-S",
		// Nothing vanishes by itself: who is to run next is decided elsewhere.
		"-action", "shutdown=pause,panic=pause,reboot=reset,watchdog=pause",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-msg", "timestamp=off",
	)
	if c.Kernel != "" {
		a = append(a, "-kernel", c.Kernel)
	}
	if c.Initrd != "" {
		a = append(a, "-initrd", c.Initrd)
	}
	for i, d := range c.Served {
		// QEMU connects again when the back end was started anew.
		a = append(a, "-chardev", fmt.Sprintf("socket,id=vdisk%d,path=%s,reconnect=1", i, d.Socket))
	}
	for i, d := range c.Disks {
		a = append(a, "-drive", fmt.Sprintf("if=none,id=disk%d,file=%s,format=%s,%s", i, d.Path, d.Format, d.mode()))
	}
	for i, n := range c.NICs {
		if n.TAP != nil {
			a = append(a, "-netdev", fmt.Sprintf("tap,id=net%d,fd=%d,vhost=off", i, c.tapFD(i)))
			continue
		}
		a = append(a, "-netdev", fmt.Sprintf("dgram,id=net%d,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s",
			i, n.GuestSocket, n.HostSocket))
	}
	if c.Console != "" {
		a = append(a, "-add-fd", fmt.Sprintf("fd=%d,set=%d", consoleFD, consoleFD),
			"-chardev", fmt.Sprintf("file,id=console,append=on,path=/dev/fdset/%d", consoleFD))
	}
	if incoming {
		a = append(a, "-incoming", "defer")
	}
	return a
}

// shape returns the arguments that must be equal on both hosts: all that
// decide what the guest sees.
func (c *Config) shape(m machine) []string {
	a := []string{
		"-no-user-config", "-nodefaults", "-display", "none",
		"-machine", m.Type + ",memory-backend=ram",
		"-accel", m.Accel,
		"-cpu", c.cpuArgument(),
		"-smp", strconv.Itoa(c.CPUs),
		"-m", fmt.Sprintf("size=%dM", c.Memory/mib),
		// The two sides' configuration sections would differ in capabilities.
		"-global", "migration.send-configuration=off",
	}
	if c.Append != "" {
		a = append(a, "-append", c.Append)
	}
	bus, served := "pci", "vhost-user-blk-pci"
	if m.Type == "microvm" {
		bus, served = "device", "vhost-user-blk"
	}
	if bus == "device" && len(c.Served) > 0 {
		// Else the guest speaks the protocol from before virtio 1.0.
		a = append(a, "-global", "virtio-mmio.force-legacy=off")
	}
	boots := 0
	boot := func() string {
		if c.Kernel != "" {
			return ""
		}
		boots++
		return fmt.Sprintf(",bootindex=%d", boots-1)
	}
	for i, d := range c.Served {
		// config-wce=off: how the guest's writes become durable is not the
		// guest's to switch; it flushes.
		dev := fmt.Sprintf("%s,chardev=vdisk%d,id=served%d,num-queues=%d,queue-size=%d,config-wce=off", served, i, i, d.Queues, d.QueueSize)
		if bus == "pci" {
			dev += ",disable-legacy=on"
		}
		if i == 0 {
			dev += boot()
		}
		a = append(a, "-device", dev)
	}
	for i, d := range c.Disks {
		dev := fmt.Sprintf("virtio-blk-%s,drive=disk%d", bus, i)
		if i == 0 {
			dev += boot()
		}
		if d.ReadOnly {
			dev += ",write-cache=off"
		}
		a = append(a, "-device", dev)
	}
	for i, n := range c.NICs {
		dev := fmt.Sprintf("virtio-net-%s,netdev=net%d,mac=%s", bus, i, strings.ToLower(n.MAC))
		if bus == "pci" {
			dev += ",romfile=" // nothing boots from the network
		}
		a = append(a, "-device", dev)
	}
	if c.Console != "" {
		a = append(a, "-serial", "chardev:console")
	}
	if c.FreePageReporting {
		a = append(a, "-device", fmt.Sprintf("virtio-balloon-%s,id=balloon,free-page-reporting=on,deflate-on-oom=on", bus))
	}
	return slices.Concat(a, c.ExtraArgs)
}

// cpuArgument names the model; a feature the host lacks is an error, not a
// guest that finds it gone after a failover.
func (c *Config) cpuArgument() string {
	if strings.Contains(c.CPU, "enforce") {
		return c.CPU
	}
	return c.CPU + ",enforce=on"
}

// mode is how a disk is opened. Neither takes a lock that another QEMU on the
// same file would trip over.
func (d Disk) mode() string {
	if d.ReadOnly {
		return "readonly=on"
	}
	return "snapshot=on"
}
