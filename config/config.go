// Package config reads the one file that describes a pair of hosts, their
// witness and their guests. The same file is on every host; a daemon is told
// by name which of the hosts it is.
//
// Data flows through the package in the order of its files: the types
// (config.go, units.go) are filled from TOML (parse.go), what was left out gets
// its default (defaults.go), then everything is checked at once (validate.go).
// render.go is the way back, for `understudy init`. The package imports nothing
// of this project.
package config

import (
	"path/filepath"
	"slices"
)

// Config is the whole file.
type Config struct {
	// Cluster names the three hosts together. Certificates are made out to it,
	// so that hosts of different clusters refuse each other.
	Cluster string `toml:"cluster"`
	// Profile chooses the times below that are not given: "standard" or "fast".
	Profile Profile `toml:"profile"`
	// Lease is how long an owner may go on without hearing from the ownership
	// log. It bounds the time to fail over from a silent host from below.
	Lease Duration `toml:"lease"`
	// Heartbeat is how often hosts say that they are there, at most a third of
	// the lease.
	Heartbeat Duration `toml:"heartbeat"`
	// Dirs are the directories on every host that does not have its own.
	Dirs
	// API is the status endpoint on every host that does not have its own.
	API API `toml:"api"`
	// Drills are the settings of all drills.
	Drills Drills `toml:"drills"`
	// Fencing is how a host is made sure to be off.
	Fencing Fencing `toml:"fencing"`
	// Hosts are the three voters.
	Hosts []Host `toml:"host"`
	// Guests are the protected virtual machines.
	Guests []Guest `toml:"guest"`
	// Drill are the drills that are known by name.
	Drill []Drill `toml:"drill"`
}

// Dirs are absolute paths of directories.
type Dirs struct {
	// State is kept over restarts of the machine: the ownership log.
	State string `toml:"state_dir"`
	// Run is kept over restarts of the daemon: sockets, guests' memory. It
	// belongs on a tmpfs with room for the memory of all guests.
	Run string `toml:"run_dir"`
	// TLS holds ca.pem, <host>.pem and <host>-key.pem, all PEM.
	TLS string `toml:"tls_dir"`
}

// Profile is a set of times that fit together.
type Profile string

const (
	// Standard has a lease of 1 s: quiet on a busy host.
	Standard Profile = "standard"
	// Fast has a lease of 300 ms, for hosts with a network of their own and
	// processors to spare.
	Fast Profile = "fast"
)

// Host is one of the three voters.
type Host struct {
	Name string `toml:"name"`
	// Address is where the other hosts reach it, host:port.
	Address string `toml:"address"`
	// Witness hosts vote and run no guest.
	Witness bool `toml:"witness"`
	// Dirs override those of the cluster on this host.
	Dirs
	// API overrides the cluster's on this host, key by key.
	API API `toml:"api"`
	// Fencing overrides how this host is fenced by the others, key by key.
	Fencing Fencing `toml:"fencing"`
}

// Hypervisor is what runs a guest.
type Hypervisor string

const (
	// QEMU runs a guest in a stock QEMU.
	QEMU Hypervisor = "qemu"
	// Xen runs a guest as a domain of the Xen host that the daemon is the first
	// domain of.
	Xen Hypervisor = "xen"
	// Sim is the simulated guest: no root, no QEMU, for tests and trying out.
	Sim Hypervisor = "sim"
)

// How Xen virtualises a guest.
const (
	// TypePVH is a Xen domain without a device model, whose kernel is started directly.
	TypePVH = "pvh"
	// TypeHVM is a PC, whose firmware starts the kernel.
	TypeHVM = "hvm"
)

// Guest is one protected virtual machine.
type Guest struct {
	Name string `toml:"name"`
	// Host is where the guest starts first; Backup is where it goes on.
	Host   string `toml:"host"`
	Backup string `toml:"backup"`
	// Failback says who brings a guest that was taken over back to Host: an
	// operator, or the daemon by itself once Host has protected it for
	// FailbackAfter without a break.
	Failback      Failback `toml:"failback"`
	FailbackAfter Duration `toml:"failback_after"`

	// OnStop says what becomes of the guest where it runs when the daemon is told to
	// stop.
	OnStop OnStop `toml:"on_stop"`

	Hypervisor Hypervisor `toml:"hypervisor"`
	// Memory is the guest's RAM, a multiple of 4 KiB.
	Memory Size `toml:"memory"`
	CPUs   int  `toml:"cpus"`
	// NICs are the network devices, in the order the guest sees them.
	NICs []NIC `toml:"nic"`
	// Protection is how the guest is protected.
	Protection Protection `toml:"protection"`

	// Type is how Xen virtualises the guest: TypePVH, TypeHVM.
	Type string `toml:"type"`

	// What follows is for QEMU only, but for Kernel, Initrd, Append and Disks.

	// Machine is QEMU's machine type: pc, q35 or microvm, or a versioned one
	// like pc-q35-7.2.
	Machine string `toml:"machine"`
	// CPU is QEMU's name of a processor model; empty takes one that both hosts
	// have.
	CPU string `toml:"cpu"`
	// Accel is "kvm", "tcg", or "auto": KVM where it works.
	Accel string `toml:"accel"`
	// Kernel, Initrd and Append boot a kernel directly, without a disk.
	Kernel string `toml:"kernel"`
	Initrd string `toml:"initrd"`
	Append string `toml:"append"`
	Disks  []Disk `toml:"disk"`
	// User runs the QEMU process.
	User string `toml:"user"`
	// FreePageReporting lets the guest give memory that it does not use back to
	// the host, by a virtio-balloon; such memory is not copied either. The
	// guest's kernel has to know of it (Linux 5.7: PAGE_REPORTING).
	FreePageReporting bool `toml:"free_page_reporting"`
	// BubbleAddress is the host's own address, with its prefix length, in the
	// network of a bubble of the guest: one of the guest's network that nobody has.
	BubbleAddress string `toml:"bubble_address"`
}

// Failback says who brings a guest back to its own host.
type Failback string

const (
	FailbackManual Failback = "manual"
	FailbackAuto   Failback = "auto"
)

// OnStop says what a daemon that is told to stop does with a guest that it runs.
type OnStop string

const (
	// OnStopHandover leaves the guest to the next daemon of the host, standing still
	// after a last epoch; its backup waits for HandoverPatience.
	OnStopHandover OnStop = "handover"
	// OnStopLeave leaves it as it is, without a word: its backup takes it over, or
	// the next daemon adopts it, whichever comes first.
	OnStopLeave OnStop = "leave"
	// OnStopStop commits a last epoch and ends the guest. It stays stopped.
	OnStopStop OnStop = "stop"
)

// DiskMode says what becomes of a guest's writes to a disk.
type DiskMode string

const (
	// Shared is one file or device that both hosts reach.
	Shared DiskMode = "shared"
	// Replicated is a copy of its own on each host, kept equal.
	Replicated DiskMode = "replicated"
	// Snapshot keeps writes in a copy that ends with the guest.
	Snapshot DiskMode = "snapshot"
	// ReadOnly refuses writes.
	ReadOnly DiskMode = "readonly"
)

// Disk is one of a guest's disks.
type Disk struct {
	// Path is the image's file or block device; Paths overrides it on the
	// hosts it names. A name that ends in .qcow2 is a qcow2 image, every other
	// is raw; a shared disk is raw.
	Path  string            `toml:"path"`
	Paths map[string]string `toml:"paths"`
	Mode  DiskMode          `toml:"mode"`
	// Size (replicated) makes a missing copy: an empty file of that size.
	Size Size `toml:"size"`
	// Queues is how many request queues the guest sees (shared, replicated).
	Queues int `toml:"queues"`
	// Unfenced (shared) lets a backup take over from a silent host before that
	// host is known to have let go of the disk. What may yet arrive from there
	// is kept apart until then.
	Unfenced bool `toml:"unfenced"`
}

// PathOn returns the disk's path on a host.
func (d Disk) PathOn(host string) string {
	if p := d.Paths[host]; p != "" {
		return p
	}
	return d.Path
}

// QCOW2 reports whether a path is that of a qcow2 image: by its name, since what
// is in it may be the guest's doing.
func (d Disk) QCOW2(path string) bool { return filepath.Ext(path) == ".qcow2" }

// Served reports whether the disk is served by the daemon, so that its writes
// obey output commit.
func (d Disk) Served() bool { return d.Mode == Shared || d.Mode == Replicated }

// Exclusion switches leaving pages out.
type Exclusion string

const (
	ExclusionOn  Exclusion = "on"
	ExclusionOff Exclusion = "off"
)

// Rebuild says when pages that were left out of checkpoints come back.
type Rebuild string

const (
	// RebuildLazy lets the guest run at once and fetches what it touches.
	RebuildLazy Rebuild = "lazy"
	// RebuildEager fetches everything before the guest runs.
	RebuildEager Rebuild = "eager"
)

// NIC is a network device.
type NIC struct {
	MAC MAC `toml:"mac"`
	// Bridge (QEMU, Xen) is the host's bridge that the device is joined to.
	Bridge string `toml:"bridge"`
	// Tap (QEMU, Xen) is the name of the TAP device on the host.
	Tap string `toml:"tap"`
	// Segment (simulated guest) is the path of the socket that stands for its
	// network.
	Segment string `toml:"segment"`
}

// Compression says how pages travel.
type Compression string

const (
	CompressionAuto  Compression = "auto"  // what link and processor can bear
	CompressionNone  Compression = "none"  // as they are
	CompressionDelta Compression = "delta" // the difference to what was sent before
	CompressionFull  Compression = "full"  // the difference, then a general codec
)

// Protection is how a guest is protected.
type Protection struct {
	// Epoch is "adaptive" or a fixed time from one checkpoint to the next.
	Epoch Epoch `toml:"epoch"`
	// Floor and Ceiling bound an adaptive epoch; Target is its length while
	// neither waiting output nor long pauses ask for another.
	Floor   Duration `toml:"floor"`
	Target  Duration `toml:"target"`
	Ceiling Duration `toml:"ceiling"`
	// Window is how many epochs may be on their way without acknowledgement.
	Window int `toml:"window"`
	// DeltaCache is the memory for pages as they were sent before.
	DeltaCache Size `toml:"delta_cache"`
	// HeldOutput bounds the guest's output that waits for a commit.
	HeldOutput Size `toml:"held_output"`
	// HeldWrites bounds the guest's disk writes that wait for a commit, or for
	// the disk after it.
	HeldWrites Size `toml:"held_writes"`
	// Exclusion leaves pages out of checkpoints that the backup can read from
	// a disk.
	Exclusion Exclusion `toml:"exclusion"`
	// Rebuild says when those pages come back at a takeover.
	Rebuild Rebuild `toml:"rebuild"`
	// Connections is how many connections a session to the backup has.
	Connections int         `toml:"connections"`
	Compression Compression `toml:"compression"`
	// DetachAfter is how long the guest's output waits for a silent backup
	// before the guest goes on unprotected.
	DetachAfter Duration `toml:"detach_after"`
	// HandoverPatience is how long the backup is asked to wait for the next daemon of
	// a host whose daemon is stopped or upgraded.
	HandoverPatience Duration `toml:"handover_patience"`
	// VerifyEvery is the time between two comparisons of all memory on both
	// sides; 0 is never.
	VerifyEvery Duration `toml:"verify_every"`
	// VerifyAll compares all memory at every checkpoint, which makes every
	// pause as long as reading all of it takes: for tests.
	VerifyAll bool `toml:"verify_all"`
}

// Host returns the host of that name.
func (c *Config) Host(name string) (Host, bool) {
	i := slices.IndexFunc(c.Hosts, func(h Host) bool { return h.Name == name })
	if i < 0 {
		return Host{}, false
	}
	return c.Hosts[i], true
}

// Guest returns the guest of that name.
func (c *Config) Guest(name string) (Guest, bool) {
	i := slices.IndexFunc(c.Guests, func(g Guest) bool { return g.Name == name })
	if i < 0 {
		return Guest{}, false
	}
	return c.Guests[i], true
}

// DirsOf returns the directories on h.
func (c *Config) DirsOf(h Host) Dirs {
	d := c.Dirs
	for _, one := range []struct {
		own string
		to  *string
	}{{h.State, &d.State}, {h.Run, &d.Run}, {h.TLS, &d.TLS}} {
		if one.own != "" {
			*one.to = one.own
		}
	}
	return d
}

// APIOf returns the status endpoint on h, with its files; ok is false if it has
// none.
func (c *Config) APIOf(h Host) (api API, ok bool) {
	api = c.API.with(h.API)
	or(&api.Anonymous, defaultAnonymous)
	return api, api.Listen != "" && api.Listen != apiOff
}

// Witness returns the host that votes and runs no guest, if there is one.
func (c *Config) Witness() (Host, bool) {
	i := slices.IndexFunc(c.Hosts, func(h Host) bool { return h.Witness })
	if i < 0 {
		return Host{}, false
	}
	return c.Hosts[i], true
}
