package config

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// Problem is one thing that is wrong, at a key like guest.web.nic[0].mac.
type Problem struct{ Key, Text string }

func (p Problem) String() string { return p.Key + ": " + p.Text }

// Invalid is the error of a configuration that can be read but makes no sense.
type Invalid struct{ Problems []Problem }

// maxTold bounds how many problems an error message lists.
const maxTold = 50

func (e *Invalid) Error() string {
	if len(e.Problems) == 1 {
		return e.Problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d problems:", len(e.Problems))
	for i, p := range e.Problems {
		if i == maxTold {
			fmt.Fprintf(&b, "\n  and %d more", len(e.Problems)-i)
			break
		}
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}

// Validate checks every value and how they fit together, and returns nil or a
// *Invalid that lists all that is wrong.
func (c *Config) Validate() error {
	v := &validator{}
	v.cluster(c)
	v.hosts(c)
	v.apis(c)
	v.fencing(c)
	v.guests(c)
	v.drillList(c)
	if len(v.problems) > 0 {
		return &Invalid{v.problems}
	}
	return nil
}

type validator struct{ problems []Problem }

func (v *validator) add(key, format string, args ...any) {
	v.problems = append(v.problems, Problem{key, fmt.Sprintf(format, args...)})
}

// between checks low ≤ value ≤ high.
func between[T int | Size | Duration](v *validator, key string, value, low, high T) {
	if value < low || value > high {
		v.add(key, "%v is not between %v and %v", value, low, high)
	}
}

// oneOf checks that value is one of known.
func oneOf[T ~string](v *validator, key string, value T, known ...T) {
	for _, k := range known {
		if value == k {
			return
		}
	}
	v.add(key, "%.40q is none of %q", value, known)
}

// names are used in paths, in certificates and on the wire.
var names = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

func (v *validator) name(key, name string) {
	if len(name) > maxName || !names.MatchString(name) {
		v.add(key, "%.40q is no name: 1 to %d lower case letters, digits and inner dashes", name, maxName)
	}
}

// path checks an absolute path. QEMU's options are lists with commas.
func (v *validator) path(key, p string) {
	switch {
	case len(p) > maxPath:
		v.add(key, "the path has %d bytes, at most %d", len(p), maxPath)
	case !path.IsAbs(p) || path.Clean(p) != p:
		v.add(key, "%.80q is not an absolute path without \".\", \"..\" and doubled or trailing slashes", p)
	case strings.ContainsRune(p, ',') || strings.ContainsFunc(p, isControl):
		v.add(key, "the path %.80q has a comma or a control character", p)
	}
}

func isControl(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }

func (v *validator) dirs(prefix string, d Dirs, optional bool) {
	for _, one := range []struct{ key, value string }{
		{"state_dir", d.State}, {"run_dir", d.Run}, {"tls_dir", d.TLS},
	} {
		if !optional || one.value != "" {
			v.path(prefix+one.key, one.value)
		}
	}
}

func (v *validator) cluster(c *Config) {
	v.name("cluster", c.Cluster)
	oneOf(v, "profile", c.Profile, Standard, Fast)
	between(v, "lease", c.Lease, minLease, maxLease)
	if c.Heartbeat < minHeartbeat || c.Heartbeat > c.Lease/heartbeatsAtLeast {
		v.add("heartbeat", "%s is not between %s and a third of the lease of %s", c.Heartbeat, minHeartbeat, c.Lease)
	}
	v.dirs("", c.Dirs, false)
}

func (v *validator) hosts(c *Config) {
	witnesses := 0
	seenName, seenAddress := map[string]bool{}, map[string]bool{}
	if len(c.Hosts) != voters {
		v.add("host", "there are %d hosts; a decision needs a majority of exactly %d: two hosts and a witness, or three hosts", len(c.Hosts), voters)
	}
	for i, h := range c.Hosts[:min(len(c.Hosts), voters)] {
		key := fmt.Sprintf("host[%d].", i)
		v.name(key+"name", h.Name)
		if seenName[h.Name] {
			v.add(key+"name", "there is another host %q", h.Name)
		}
		seenName[h.Name] = true
		if reason := checkAddress(h.Address); reason != "" {
			v.add(key+"address", "%.80q: %s", h.Address, reason)
		} else if seenAddress[h.Address] {
			v.add(key+"address", "%s is the address of another host", h.Address)
		}
		seenAddress[h.Address] = true
		v.dirs(key, h.Dirs, true)
		if h.Witness {
			witnesses++
		}
	}
	if witnesses > 1 {
		v.add("host", "%d of the hosts are witnesses; at most one may be, a guest needs two others", witnesses)
	}
}

// hostnames are names as RFC 1123 has them.
var hostnames = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)

// checkAddress returns what is wrong with an address that others dial, or "".
func checkAddress(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "want host:port or [IPv6]:port"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "the port is not a number between 1 and 65535"
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return "the other hosts cannot reach it there"
		}
		return ""
	}
	if len(host) > 253 || !hostnames.MatchString(host) {
		return "the host is neither an IP address nor a name"
	}
	return ""
}

func (v *validator) guests(c *Config) {
	if len(c.Guests) > maxGuests {
		v.add("guest", "there are %d guests, at most %d", len(c.Guests), maxGuests)
	}
	seen := guestSet{names: map[string]bool{}, macs: map[MAC]string{}, taps: map[string]string{}}
	for i, g := range c.Guests[:min(len(c.Guests), maxGuests)] {
		key := fmt.Sprintf("guest[%d].", i)
		v.name(key+"name", g.Name)
		if seen.names[g.Name] {
			v.add(key+"name", "there is another guest %q", g.Name)
		} else if names.MatchString(g.Name) && len(g.Name) <= maxName {
			key = "guest." + g.Name + "."
		}
		seen.names[g.Name] = true
		v.place(c, key, g)
		v.machine(key, g)
		v.nics(key, g, seen)
		v.protection(key+"protection.", g.Protection, c)
	}
}

// guestSet is what must not occur in two guests; the value is the key that has it.
type guestSet struct {
	names map[string]bool
	macs  map[MAC]string
	taps  map[string]string
}

// place checks where a guest runs.
func (v *validator) place(c *Config, key string, g Guest) {
	for _, one := range []struct{ key, host string }{{"host", g.Host}, {"backup", g.Backup}} {
		switch h, found := c.Host(one.host); {
		case one.host == "":
			v.add(key+one.key, "is missing")
		case !found:
			v.add(key+one.key, "there is no host %.40q", one.host)
		case h.Witness:
			v.add(key+one.key, "%s is the witness, which runs no guest", one.host)
		}
	}
	if g.Host != "" && g.Host == g.Backup {
		v.add(key+"backup", "is the guest's own host %s", g.Host)
	}
	oneOf(v, key+"failback", g.Failback, FailbackManual, FailbackAuto)
	between(v, key+"failback_after", g.FailbackAfter, minFailback, maxFailback)
	oneOf(v, key+"on_stop", g.OnStop, OnStopHandover, OnStopLeave, OnStopStop)
}

var (
	machines = regexp.MustCompile(`^(pc|q35|microvm|pc-(i440fx|q35)-[0-9]{1,2}\.[0-9]{1,2})$`)
	cpus     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(,[+-]?[a-z0-9][a-z0-9._=-]*)*$`)
	users    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	devices  = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)
)

func (v *validator) machine(key string, g Guest) {
	if g.Memory%pageSize != 0 {
		v.add(key+"memory", "%v is not a multiple of %v", g.Memory, pageSize)
	}
	between(v, key+"cpus", g.CPUs, 1, maxCPUs)
	oneOf(v, key+"hypervisor", g.Hypervisor, QEMU, Xen, Sim)
	switch g.Hypervisor {
	case Sim:
		v.simulated(key, g)
		return
	case Xen:
		v.domain(key, g)
		return
	}
	if g.Type != "" {
		v.add(key+"type", "is for Xen's guests (hypervisor = %q)", Xen)
	}
	between(v, key+"memory", g.Memory, minMemory, maxMemory)
	if !machines.MatchString(g.Machine) {
		v.add(key+"machine", "%.40q is none of pc, q35, microvm, pc-i440fx-N.N, pc-q35-N.N", g.Machine)
	}
	if g.CPU != "" && (len(g.CPU) > maxCPU || !cpus.MatchString(g.CPU)) {
		v.add(key+"cpu", "%.80q is not a processor model of QEMU, like EPYC or max,-avx512f", g.CPU)
	}
	oneOf(v, key+"accel", g.Accel, "auto", "kvm", "tcg")
	if a, err := netip.ParsePrefix(g.BubbleAddress); g.BubbleAddress != "" && (err != nil || a.Addr().IsUnspecified() || a.Addr().IsMulticast()) {
		v.add(key+"bubble_address", "%.60q is not an address with its prefix length, like 192.0.2.1/24", g.BubbleAddress)
	}
	switch {
	case !users.MatchString(g.User):
		v.add(key+"user", "%.40q is not the name of a user", g.User)
	case g.User == "root":
		v.add(key+"user", "QEMU must not run as root")
	}
	v.bootFrom(key, g)
}

// simulated checks a simulated guest.
func (v *validator) simulated(key string, g Guest) {
	between(v, key+"memory", g.Memory, minSimSize, maxMemory)
	for _, one := range []struct {
		key string
		set bool
	}{
		{"machine", g.Machine != ""}, {"cpu", g.CPU != ""}, {"accel", g.Accel != ""},
		{"kernel", g.Kernel != ""}, {"initrd", g.Initrd != ""}, {"append", g.Append != ""},
		{"user", g.User != ""}, {"disk", len(g.Disks) > 0}, {"free_page_reporting", g.FreePageReporting},
		{"bubble_address", g.BubbleAddress != ""}, {"type", g.Type != ""},
	} {
		if one.set {
			v.add(key+one.key, "is of no use to a simulated guest (hypervisor = %q)", Sim)
		}
	}
}

// domain checks a Xen guest.
func (v *validator) domain(key string, g Guest) {
	between(v, key+"memory", g.Memory, minMemory, maxMemory)
	switch g.Type {
	case TypePVH, TypeHVM:
	case "pv":
		v.add(key+"type", "a PV domain cannot be protected: Xen as Debian builds it cannot log its writes; make it %q", TypePVH)
	default:
		v.add(key+"type", "%.20q is not supported, %q and %q are", g.Type, TypePVH, TypeHVM)
	}
	for _, one := range []struct {
		key string
		set bool
	}{
		{"machine", g.Machine != ""}, {"cpu", g.CPU != ""}, {"accel", g.Accel != ""}, {"user", g.User != ""},
		{"free_page_reporting", g.FreePageReporting}, {"bubble_address", g.BubbleAddress != ""},
	} {
		if one.set {
			v.add(key+one.key, "is for QEMU, and of no use to a Xen guest (hypervisor = %q)", Xen)
		}
	}
	v.bootFrom(key, g)
	if g.Kernel == "" && len(g.Disks) > 0 {
		v.add(key+"kernel", "a Xen guest of type %q boots a kernel, not a disk", g.Type)
	}
	for i, d := range g.Disks {
		if !d.Served() {
			v.add(fmt.Sprintf("%sdisk[%d].mode", key, i), "a Xen guest's disk is %q or %q", Replicated, Shared)
		}
	}
}

// bootFrom checks kernel and disks.
func (v *validator) bootFrom(key string, g Guest) {
	if g.Kernel == "" && len(g.Disks) == 0 {
		v.add(key+"kernel", "there is neither a kernel nor a disk to boot from")
	}
	for _, one := range []struct{ key, value string }{{"kernel", g.Kernel}, {"initrd", g.Initrd}} {
		if one.value != "" {
			v.path(key+one.key, one.value)
		}
	}
	for _, one := range []struct{ key, value string }{{"initrd", g.Initrd}, {"append", g.Append}} {
		if one.value != "" && g.Kernel == "" {
			v.add(key+one.key, "goes with a kernel, and there is none: set kernel, or leave it out")
		}
	}
	if len(g.Append) > maxAppend || strings.ContainsFunc(g.Append, isControl) {
		v.add(key+"append", "is longer than %d bytes or has a control character", maxAppend)
	}
	if len(g.Disks) > maxDisks {
		v.add(key+"disk", "there are %d disks, at most %d", len(g.Disks), maxDisks)
	}
	for i, d := range g.Disks[:min(len(g.Disks), maxDisks)] {
		diskKey := fmt.Sprintf("%sdisk[%d].", key, i)
		v.disk(diskKey, d, g)
	}
}

// disk checks one disk, on both of the guest's hosts.
func (v *validator) disk(key string, d Disk, g Guest) {
	oneOf(v, key+"mode", d.Mode, Shared, Replicated, Snapshot, ReadOnly)
	for host, path := range d.Paths {
		if host != g.Host && host != g.Backup {
			v.add(key+"paths", "%.40q is neither of the guest's hosts %q and %q", host, g.Host, g.Backup)
		}
		v.path(key+"paths."+host, path)
	}
	if d.Path != "" || d.Paths[g.Host] == "" || d.Paths[g.Backup] == "" {
		v.path(key+"path", d.Path)
	}
	if !d.Served() {
		if (d.Mode == Snapshot || d.Mode == ReadOnly) && (d.Queues != 0 || d.Unfenced) {
			v.add(key+"queues", "queues and unfenced are for shared and replicated disks")
		}
		return
	}
	for _, path := range []string{d.PathOn(g.Host), d.PathOn(g.Backup)} {
		switch {
		case !d.QCOW2(path):
		case d.Mode == Shared:
			v.add(key+"path", "%.80q: a shared disk is a raw image or a block device (qemu-img convert -O raw)", path)
		case d.Size != 0:
			v.add(key+"size", "makes raw copies only; make %.80q with qemu-img create", path)
		}
	}
	if g.Hypervisor == Xen && d.Queues != 0 {
		v.add(key+"queues", "a Xen guest's disk has one ring: leave it out")
	} else if g.Hypervisor != Xen {
		between(v, key+"queues", d.Queues, 1, maxQueues)
	}
	if d.Size != 0 && d.Mode != Replicated {
		v.add(key+"size", "is for replicated disks: it makes a missing copy")
	}
	if d.Size%512 != 0 {
		v.add(key+"size", "%v is not a multiple of 512 bytes", d.Size)
	}
	if d.Unfenced && d.Mode != Shared {
		v.add(key+"unfenced", "is for shared disks: a replicated one is nobody else's")
	}
}

func (v *validator) nics(key string, g Guest, seen guestSet) {
	if len(g.NICs) > maxNICs {
		v.add(key+"nic", "there are %d network devices, at most %d", len(g.NICs), maxNICs)
	}
	for i, n := range g.NICs[:min(len(g.NICs), maxNICs)] {
		nicKey := fmt.Sprintf("%snic[%d].", key, i)
		switch other, twice := seen.macs[n.MAC]; {
		case n.MAC == MAC{}:
			v.add(nicKey+"mac", "is missing or zero")
		case n.MAC[0]&1 != 0:
			v.add(nicKey+"mac", "%s is a group address, a device has an individual one (even first byte)", n.MAC)
		case twice:
			v.add(nicKey+"mac", "%s is also that of %s", n.MAC, other)
		}
		seen.macs[n.MAC] = strings.TrimSuffix(nicKey, ".")
		if g.Hypervisor == Sim {
			v.path(nicKey+"segment", n.Segment)
			if n.Bridge != "" || n.Tap != "" {
				v.add(nicKey+"bridge", "a simulated guest has a segment, no bridge and no tap")
			}
			continue
		}
		if n.Segment != "" {
			v.add(nicKey+"segment", "is for simulated guests only")
		}
		v.device(nicKey+"bridge", n.Bridge)
		v.device(nicKey+"tap", n.Tap)
		if other, twice := seen.taps[n.Tap]; twice {
			v.add(nicKey+"tap", "%.20s is also that of %s", n.Tap, other)
		}
		seen.taps[n.Tap] = strings.TrimSuffix(nicKey, ".")
	}
}

func (v *validator) device(key, name string) {
	if len(name) > maxDevice || !devices.MatchString(name) {
		v.add(key, "%.40q is not a name of a network device of 1 to %d characters", name, maxDevice)
	}
}

func (v *validator) protection(key string, p Protection, c *Config) {
	longest, longestKey := p.Ceiling, "ceiling"
	if fixed, ok := p.Epoch.Fixed(); ok {
		longest, longestKey = Duration(fixed), "epoch"
		between(v, key+"epoch", longest, minEpoch, maxEpoch)
	}
	between(v, key+"floor", p.Floor, minEpoch, maxEpoch)
	between(v, key+"ceiling", p.Ceiling, minEpoch, maxEpoch)
	if p.Floor > p.Ceiling {
		v.add(key+"floor", "%s is above the ceiling of %s", p.Floor, p.Ceiling)
	} else if p.Target < p.Floor || p.Target > p.Ceiling {
		v.add(key+"target", "%s is not between the floor of %s and the ceiling of %s", p.Target, p.Floor, p.Ceiling)
	}
	// Output is released at the end of an epoch, and only under a lease.
	if longest > c.Lease/2 {
		v.add(key+longestKey, "%s is more than half of the lease of %s", longest, c.Lease)
	}
	between(v, key+"window", p.Window, 1, maxWindow)
	between(v, key+"delta_cache", p.DeltaCache, minDeltaCache, maxDeltaCache)
	between(v, key+"held_output", p.HeldOutput, minHeldOutput, maxHeldOutput)
	between(v, key+"held_writes", p.HeldWrites, minHeldWrites, maxHeldWrites)
	oneOf(v, key+"exclusion", p.Exclusion, ExclusionOn, ExclusionOff)
	oneOf(v, key+"rebuild", p.Rebuild, RebuildLazy, RebuildEager)
	between(v, key+"connections", p.Connections, 1, maxConnections)
	oneOf(v, key+"compression", p.Compression, CompressionAuto, CompressionNone, CompressionDelta, CompressionFull)
	if least := max(2*c.Heartbeat, longest); p.DetachAfter < least || p.DetachAfter > maxDetachAfter {
		v.add(key+"detach_after", "%s is not between %s (two heartbeats, one epoch) and %s", p.DetachAfter, least, maxDetachAfter)
	}
	between(v, key+"handover_patience", p.HandoverPatience, minHandover, maxHandover)
	if p.VerifyEvery != 0 {
		between(v, key+"verify_every", p.VerifyEvery, minVerify, maxVerify)
	}
}
