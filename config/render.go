package config

import (
	"encoding"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Render writes c as a file that Parse reads back to the same. Every key is
// told of; one that has its default is commented out, so that a later version
// with a better default is not held back by the file.
func (c *Config) Render() []byte {
	w := &writer{}
	w.text("# understudy: one file for all hosts. A daemon is told by name which host it is.",
		"# Check it after a change: understudy config check",
		"# Times are like \"25ms\" or \"1.5s\", sizes like \"512MiB\". What is commented out is the default.", "")
	w.key("cluster", c.Cluster, "the certificates are made out to it")
	w.option("profile", string(c.Profile), string(defaultProfile), `"standard": lease 1s; "fast": lease 300ms`)
	w.option("lease", c.Lease, c.Profile.lease(), "how long an owner goes on without a word from the ownership log")
	w.option("heartbeat", c.Heartbeat, c.Lease/heartbeatsALease, "at most a third of the lease")
	w.option("state_dir", c.State, defaultStateDir, "the ownership log: kept over restarts of the machine")
	w.option("run_dir", c.Run, defaultRunDir, "guests' memory: on a tmpfs with room for all of it")
	w.option("tls_dir", c.TLS, defaultTLSDir, "ca.pem, <host>.pem, <host>-key.pem")
	w.api(c.API)
	w.drills(c.Drills)
	w.fencing(c.Fencing, c.Lease)
	w.text("", "# Exactly three hosts vote. The witness runs no guest.")
	for _, h := range c.Hosts {
		w.host(h)
	}
	for _, g := range c.Guests {
		w.guest(g, c.Lease)
	}
	w.drillList(c.Drill)
	return []byte(w.b.String())
}

// Example is the configuration that `understudy init` begins with: two hosts,
// a witness and one QEMU guest that boots from a disk.
func Example() *Config {
	c := &Config{
		Cluster: "example",
		Hosts: []Host{
			{Name: "alpha", Address: "192.0.2.1:7070"},
			{Name: "beta", Address: "192.0.2.2:7070"},
			{Name: "witness", Address: "192.0.2.3:7070", Witness: true},
		},
		Guests: []Guest{{
			Name: "web", Host: "alpha", Backup: "beta",
			Memory: 2 * GiB, CPUs: 2,
			Disks: []Disk{{Path: "/srv/understudy/web.img", Mode: Replicated}},
			NICs:  []NIC{{MAC: MAC{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}, Bridge: "br0"}},
		}},
	}
	c.setDefaults()
	return c
}

func (w *writer) host(h Host) {
	w.text("", "[[host]]")
	w.key("name", h.Name, "")
	w.key("address", h.Address, "where the other hosts reach it")
	if h.Witness {
		w.key("witness", true, "")
	}
	for _, d := range []struct{ key, value string }{{"state_dir", h.State}, {"run_dir", h.Run}, {"tls_dir", h.TLS}} {
		if d.value != "" {
			w.key(d.key, d.value, "")
		}
	}
	w.hostAPI(h.API)
	w.hostFencing(h.Fencing)
}

func (w *writer) guest(g Guest, lease Duration) {
	// What the defaults would make of the guest with nothing but its name and,
	// for those that depend on others, these.
	d := Guest{Name: g.Name, Hypervisor: g.Hypervisor, NICs: make([]NIC, len(g.NICs))}
	d.Protection.Floor, d.Protection.Ceiling = g.Protection.Floor, g.Protection.Ceiling
	d.setDefaults(lease)
	plain := Guest{Hypervisor: g.Hypervisor}
	plain.Protection.Floor = g.Protection.Floor
	plain.setDefaults(lease)

	w.text("", "[[guest]]")
	w.key("name", g.Name, "")
	w.key("host", g.Host, "where it starts")
	w.key("backup", g.Backup, "where it goes on")
	w.option("failback", string(g.Failback), string(defaultFailback), `back to its host, once that has protected it long enough, by an operator or by itself: "manual", "auto"`)
	w.option("failback_after", g.FailbackAfter, defaultFailbackAfter, "protected that long without a break")
	w.option("on_stop", string(g.OnStop), string(defaultOnStop), `when the daemon that runs it is told to stop: "handover" to the next one, "leave" it to its backup, "stop" it`)
	w.option("hypervisor", string(g.Hypervisor), string(defaultHypervisor), `"qemu", "xen" or "sim"`)
	w.key("memory", g.Memory, "a multiple of 4KiB")
	w.key("cpus", g.CPUs, "")
	if g.Hypervisor == QEMU {
		w.option("machine", g.Machine, d.Machine, "pc, q35, microvm, or a versioned one")
		w.option("cpu", g.CPU, "", "a processor model of QEMU; none takes one that both hosts have")
		w.option("accel", g.Accel, d.Accel, `"kvm", "tcg", or "auto": KVM where it works`)
		w.option("kernel", g.Kernel, "", "boot a kernel directly")
		w.option("initrd", g.Initrd, "", "")
		w.option("append", g.Append, "", "the kernel's command line")
		w.option("user", g.User, d.User, "runs QEMU")
		w.option("free_page_reporting", g.FreePageReporting, false, "the guest gives memory that it does not use back to the host")
		w.option("bubble_address", g.BubbleAddress, "", "the host's own address in a bubble's network, like 192.0.2.1/24")
	}
	if g.Hypervisor == Xen {
		w.option("type", g.Type, d.Type, "how Xen virtualises it")
		w.option("kernel", g.Kernel, "", "on both hosts, and the same")
		w.option("initrd", g.Initrd, "", "")
		w.option("append", g.Append, "", "the kernel's command line")
	}
	for _, disk := range g.Disks {
		w.text("", "[[guest.disk]]")
		w.key("path", disk.Path, "file or block device on both hosts")
		for _, host := range slices.Sorted(maps.Keys(disk.Paths)) {
			w.key("paths."+host, disk.Paths[host], "there instead")
		}
		w.option("mode", string(disk.Mode), string(defaultDiskMode), `"shared", "replicated" (raw images); "snapshot": writes end with the guest; "readonly"`)
		if disk.Served() {
			w.option("size", disk.Size, Size(0), "make a missing copy of a replicated disk, of this size")
			if g.Hypervisor != Xen {
				w.option("queues", disk.Queues, defaultQueues, "")
			}
			w.option("unfenced", disk.Unfenced, false, "take over before the other host is known to have let go of a shared disk")
		}
	}
	for i, n := range g.NICs {
		w.text("", "[[guest.nic]]")
		w.key("mac", n.MAC, "")
		if g.Hypervisor == Sim {
			w.key("segment", n.Segment, "socket that stands for the network")
			continue
		}
		w.key("bridge", n.Bridge, "")
		w.option("tap", n.Tap, d.NICs[i].Tap, "")
	}
	p, dp := g.Protection, d.Protection
	w.text("", "[guest.protection]")
	w.option("epoch", p.Epoch, dp.Epoch, "from one checkpoint to the next; fixed like \"25ms\", or adaptive:")
	w.option("floor", p.Floor, defaultFloor, "never shorter")
	w.option("target", p.Target, dp.Target, "while neither waiting output nor long pauses ask for another")
	w.option("ceiling", p.Ceiling, plain.Protection.Ceiling, "never longer, at most half the lease")
	w.option("window", p.Window, dp.Window, "epochs on their way without acknowledgement")
	w.option("delta_cache", p.DeltaCache, dp.DeltaCache, "memory for pages as they were sent before")
	w.option("held_output", p.HeldOutput, dp.HeldOutput, "output that waits for a commit, at most")
	w.option("held_writes", p.HeldWrites, dp.HeldWrites, "disk writes that wait for a commit or the disk, at most")
	w.option("exclusion", string(p.Exclusion), string(dp.Exclusion), `leave out of checkpoints what the backup can read from a disk: "on", "off"`)
	w.option("rebuild", string(p.Rebuild), string(dp.Rebuild), `such pages come back while the guest runs: "lazy"; or before: "eager"`)
	w.option("connections", p.Connections, dp.Connections, "to the backup")
	w.option("compression", string(p.Compression), string(dp.Compression), `"auto", "none", "delta", "full"`)
	w.option("detach_after", p.DetachAfter, dp.DetachAfter, "then a guest goes on without its silent backup")
	w.option("handover_patience", p.HandoverPatience, dp.HandoverPatience, "the backup waits that long for the next daemon after a handover")
	w.option("verify_every", p.VerifyEvery, dp.VerifyEvery, "compare all memory of both sides; 0s is never")
	w.option("verify_all", p.VerifyAll, dp.VerifyAll, "and do so at every checkpoint: for tests, pauses get long")
}

// writer collects the lines of a file.
type writer struct{ b strings.Builder }

func (w *writer) text(lines ...string) {
	for _, line := range lines {
		w.b.WriteString(line + "\n")
	}
}

// key writes a key with its value and a comment.
func (w *writer) key(key string, value any, comment string) {
	line := fmt.Sprintf("%s = %s", key, tomlValue(value))
	if comment != "" {
		line = fmt.Sprintf("%-35s # %s", line, comment)
	}
	w.text(line)
}

// option writes a key, as a comment if its value is the default.
func (w *writer) option(key string, value, fallback any, comment string) {
	if value == fallback {
		key = "# " + key
	}
	w.key(key, value, comment)
}

func tomlValue(value any) string {
	switch v := value.(type) {
	case string:
		return tomlString(v)
	case encoding.TextMarshaler:
		text, err := v.MarshalText()
		if err != nil {
			return tomlString(err.Error()) // the units of this package never fail
		}
		return tomlString(string(text))
	}
	return fmt.Sprint(value) // int, bool
}

// tomlString writes a basic string (TOML 1.0), which has fewer escapes than Go.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
