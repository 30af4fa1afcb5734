// Package qemu runs guests under stock QEMU (7.2 or later), unpatched, as
// hypervisor.Driver asks.
//
// Data flows like this: a Config (config.go) becomes a command line (args.go)
// and a process that outlives us (process.go), known by a record on disk
// (record.go). A guest's image is its main memory, one named file on tmpfs
// that QEMU and we both map (ram.go), followed by the machine's other RAM
// blocks, which are found inside QEMU (blocks.go). A Guest (guest.go) is
// paused, scanned (package dirty), read, saved (state.go) and resumed. What
// the other host must have equal travels as a spec (spec.go); a Standby
// (standby.go) holds the image and a second QEMU on it, and is given the last
// device state in a migration stream composed by package stream.
package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"understudy/epoch"
	"understudy/hypervisor"
)

// Config describes one guest on one host. Both hosts' configurations must
// describe the same machine; paths and sockets may differ.
type Config struct {
	// Name names the guest on this host: letters, digits, '-', '_' and '.',
	// at most 63 bytes.
	Name string
	// Memory is the guest's main memory in bytes, whole MiB, 16 MiB to 1 TiB.
	Memory uint64
	// CPUs is the number of virtual processors, 1 to 255.
	CPUs int
	// Machine is "pc", "q35" or "microvm", or a versioned form of the first
	// two ("pc-q35-7.2"). Unversioned names are resolved by the QEMU of the
	// host that starts the guest; the standby uses what that came to.
	Machine string
	// CPU is a processor model of QEMU's, with its features; "" is qemu64.
	// "host" is refused, since two hosts need not be equal, and "max" is
	// taken under TCG only.
	CPU string
	// Accel is "kvm", "tcg", or "auto" (or ""): KVM where a trial guest runs
	// under it in time, TCG elsewhere.
	Accel string

	// Kernel, Initrd and Append boot a kernel directly. The files must be
	// equal on both hosts, for the guest reads them again when it reboots.
	Kernel string
	Initrd string
	Append string

	// Served are the guest's own disks, given to it in this order and before
	// Disks. This process serves them.
	Served []ServedDisk
	// Disks are given to the guest in this order, as virtio-blk.
	Disks []Disk
	// NICs are given to the guest in this order, as virtio-net.
	NICs []NIC
	// Console is a file that what the guest writes to its first serial port is
	// appended to, "" for no serial port. What is written there is not held
	// back until a commit.
	Console string

	// RunDir holds sockets and the records of running machines. It is made if
	// it is missing. Its file system must not outlive a reboot (use /run).
	RunDir string
	// ImageDir is a directory on a tmpfs for memory files. It is made if it is
	// missing; "" is /dev/shm/understudy-<Name>.
	ImageDir string
	// Reserve takes a memory file's whole size from the tmpfs at once, so
	// that the host cannot run out of it later.
	Reserve bool
	// FreePageReporting gives the guest a virtio-balloon by which it tells of
	// memory that it does not use, some 2 s after it was freed. The host has it
	// back, and it need not be copied to the other host, until the guest uses it
	// again. Equal on both hosts; not together with Reserve.
	FreePageReporting bool
	// User is the account that QEMU runs as when we are root; "" is nobody.
	// It needs no right but to read kernel, initrd and disks.
	User string

	// QEMU is the program, "" for qemu-system-x86_64 on the PATH.
	QEMU string
	// Idle gives the QEMU processes the processor only when nobody else wants it
	// (SCHED_IDLE, sched(7)).
	Idle bool
	// Helper is the command line, program first, of a process that calls
	// dirty.HelperMain with the arguments that are appended.
	Helper []string
	// ExtraArgs are further arguments for QEMU. Only what is known to survive
	// a failover is taken (extra.go).
	ExtraArgs []string
}

// ServedDisk is a disk that this process serves over vhost-user (package
// disk/vhost). QEMU connects to its socket when a machine is started, and
// again within a second when the connection was lost. The disk's size, serial
// number and features are the back end's to say; both hosts must say the same.
//
// The back end must listen, and answer, before Start, Standby, Adopt and
// Standby.Reset are called: the first two and the last wait for it, and a
// socket that accepts but does not answer keeps QEMU from answering us. A
// socket on which nobody listens holds Adopt up in nothing.
type ServedDisk struct {
	// Socket is the path that the back end listens on. "" is
	// RunDir/disk/<index>.sock. It may differ between the hosts. QEMU's account
	// must be able to connect to it: see Driver.Prepare and Driver.Grant.
	Socket string
	// Queues is the number of request queues, 1 to 16; 0 is 1. Equal on both
	// hosts, and not more than the back end has.
	Queues int
	// QueueSize is the number of entries of a queue, a power of two, 16 to
	// 1024; 0 is 128. Equal on both hosts.
	QueueSize int
}

// Disk is a disk image that QEMU itself serves. Nothing the guest writes to it
// reaches the other host, so that a writable one is refused.
type Disk struct {
	// Path is the image on this host, equal on both hosts.
	Path string
	// Format is "raw" or "qcow2"; "" is raw.
	Format string
	// ReadOnly lets the guest read only.
	ReadOnly bool
	// Snapshot lets the guest write to a temporary file of this host. It is
	// LOST at a failover: the guest then sees the image's own bytes where it
	// has written. For machines that can bear that, and for tests.
	Snapshot bool
}

// NIC is a virtual network card whose frames pass through two datagram
// sockets, one datagram a frame.
type NIC struct {
	// MAC is the card's address, equal on both hosts.
	MAC string
	// GuestSocket is the path that QEMU binds: frames for the guest are sent
	// there. "" is RunDir/net/<index>.guest. QEMU's account must be able to
	// create it; RunDir/net is prepared so.
	GuestSocket string
	// HostSocket is the path that the gate binds: the guest's frames are sent
	// there. "" is RunDir/net/<index>.host. QEMU's account must be able to
	// write to it.
	HostSocket string
	// TAP, if not nil, takes the sockets' place: an open TAP device, without a
	// header of the kernel's before each frame. It stays the caller's.
	TAP *os.File
}

const (
	mib = 1 << 20

	minMemory = 16 * mib
	maxMemory = 1 << 40
	maxCPUs   = 255
	maxDisks  = 24
	maxNICs   = 8

	maxQueues        = 16
	minQueueSize     = 16
	maxQueueSize     = 1024 // VIRTQUEUE_MAX_SIZE of QEMU
	defaultQueueSize = 128  // what QEMU takes by itself

	// maxSocketPath is what sockaddr_un has room for (unix(7)).
	maxSocketPath = 107

	defaultQEMU = "qemu-system-x86_64"
	defaultCPU  = "qemu64"
	defaultUser = "nobody"
)

// Accelerators.
const (
	AccelAuto = "auto"
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

// withDefaults returns the configuration with every optional field filled in.
func (c Config) withDefaults() *Config {
	if c.QEMU == "" {
		c.QEMU = defaultQEMU
	}
	if c.CPU == "" {
		c.CPU = defaultCPU
	}
	if c.Accel == "" {
		c.Accel = AccelAuto
	}
	if c.ImageDir == "" {
		c.ImageDir = "/dev/shm/understudy-" + c.Name
	}
	if c.User == "" && os.Geteuid() == 0 {
		c.User = defaultUser
	}
	c.NICs = slices.Clone(c.NICs)
	for i := range c.NICs {
		if n := &c.NICs[i]; n.GuestSocket == "" {
			n.GuestSocket = filepath.Join(c.netDir(), strconv.Itoa(i)+".guest")
		}
		if n := &c.NICs[i]; n.HostSocket == "" {
			n.HostSocket = filepath.Join(c.netDir(), strconv.Itoa(i)+".host")
		}
	}
	c.Served = slices.Clone(c.Served)
	for i := range c.Served {
		d := &c.Served[i]
		if d.Socket == "" {
			d.Socket = filepath.Join(c.diskDir(), strconv.Itoa(i)+".sock")
		}
		if d.Queues == 0 {
			d.Queues = 1
		}
		if d.QueueSize == 0 {
			d.QueueSize = defaultQueueSize
		}
	}
	c.Disks = slices.Clone(c.Disks)
	for i := range c.Disks {
		if c.Disks[i].Format == "" {
			c.Disks[i].Format = "raw"
		}
	}
	return &c
}

// NICSockets returns the two socket paths of NIC i, defaults filled in.
func (c Config) NICSockets(i int) (guest, host string) {
	n := c.withDefaults().NICs[i]
	return n.GuestSocket, n.HostSocket
}

// DiskSocket returns the socket path of served disk i, its default filled in.
func (c Config) DiskSocket(i int) string { return c.withDefaults().Served[i].Socket }

func (c Config) netDir() string  { return filepath.Join(c.RunDir, "net") }
func (c Config) diskDir() string { return filepath.Join(c.RunDir, "disk") }

// Validate checks the configuration by itself; what depends on the host is
// checked by CheckHost and at start. What QEMU could run but nobody could
// protect is a *hypervisor.Refusal. All that is wrong is reported at once.
func (c Config) Validate() error { return c.withDefaults().validate() }

func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if !validGuestName(c.Name) {
		bad("name %q: want 1 to 63 letters, digits, '-', '_' or '.', the first a letter or digit", c.Name)
	}
	if c.Memory < minMemory || c.Memory > maxMemory || c.Memory%mib != 0 {
		bad("memory of %d bytes: want whole MiB from %d to %d", c.Memory, uint64(minMemory), uint64(maxMemory))
	}
	if c.CPUs < 1 || c.CPUs > maxCPUs {
		bad("%d processors: want 1 to %d", c.CPUs, maxCPUs)
	}
	errs = append(errs, checkMachine(c.Machine), c.checkCPU(), c.checkBoot())
	if len(c.Disks) > maxDisks {
		bad("%d disks: want at most %d", len(c.Disks), maxDisks)
	}
	for i, d := range c.Disks {
		errs = append(errs, d.check(i))
	}
	if len(c.Served) > epoch.MaxDisks {
		bad("%d served disks: want at most %d", len(c.Served), epoch.MaxDisks)
	}
	if len(c.NICs) > maxNICs {
		bad("%d network cards: want at most %d", len(c.NICs), maxNICs)
	}
	used := map[string]string{}
	for i, d := range c.Served {
		errs = append(errs, d.check(i, used))
	}
	for i, n := range c.NICs {
		errs = append(errs, n.check(i, used))
	}
	errs = append(errs, checkPath("console", c.Console, true), checkPath("run directory", c.RunDir, false),
		checkPath("image directory", c.ImageDir, false))
	if len(c.RunDir) > maxSocketPath-len("/vm-0123456789abcdef/qmp") {
		bad("run directory %q is too long for the sockets in it", c.RunDir)
	}
	if c.Reserve && c.FreePageReporting {
		bad("memory that is reserved cannot be given back: turn off one of Reserve and FreePageReporting")
	}
	if len(c.Helper) == 0 || !filepath.IsAbs(c.Helper[0]) {
		bad("helper %q: want the absolute path of a program first", c.Helper)
	}
	errs = append(errs, checkExtra(c.ExtraArgs))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("guest %q: %w", c.Name, err)
	}
	return nil
}

func validGuestName(name string) bool {
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("-_.", r)) {
			return false
		}
	}
	return len(name) > 0 && len(name) <= 63
}

func checkMachine(machine string) error {
	versioned := strings.HasPrefix(machine, "pc-i440fx-") || strings.HasPrefix(machine, "pc-q35-")
	if machine == "pc" || machine == "q35" || machine == "microvm" || versioned && !strings.ContainsAny(machine, ", ") {
		return nil
	}
	return &hypervisor.Refusal{
		What:   fmt.Sprintf("machine type %q is not known to survive a failover", machine),
		Remedy: "use pc, q35 or microvm",
	}
}

func (c *Config) checkCPU() error {
	model, _, _ := strings.Cut(c.CPU, ",")
	switch {
	case !slices.Contains([]string{AccelAuto, AccelKVM, AccelTCG}, c.Accel):
		return fmt.Errorf("accelerator %q: want auto, kvm or tcg", c.Accel)
	case model == "host" || model == "max" && c.Accel != AccelTCG:
		return &hypervisor.Refusal{
			What:   fmt.Sprintf("processor model %q is whatever the host has, and the other host may have less", model),
			Remedy: "name a model that both hosts can run (qemu-system-x86_64 -cpu help)",
		}
	case strings.Contains(c.CPU, "+vmx") || strings.Contains(c.CPU, "+svm") ||
		strings.Contains(c.CPU, "vmx=on") || strings.Contains(c.CPU, "svm=on"):
		return &hypervisor.Refusal{
			What:   fmt.Sprintf("processor %q offers nested virtualisation, whose state is not saved whole", c.CPU),
			Remedy: "leave vmx and svm out",
		}
	case model == "" || strings.ContainsAny(c.CPU, " \n") || strings.Contains(c.CPU, ",,"):
		return fmt.Errorf("processor %q is not a model with features", c.CPU)
	}
	return nil
}

func (c *Config) checkBoot() error {
	errs := []error{checkPath("kernel", c.Kernel, true), checkPath("initrd", c.Initrd, true)}
	if c.Kernel == "" && (c.Initrd != "" || c.Append != "") {
		errs = append(errs, errors.New("initrd or append without a kernel"))
	}
	if c.Machine == "microvm" && c.Kernel == "" {
		errs = append(errs, errors.New("a microvm has no firmware that boots a disk: give it a kernel"))
	}
	if strings.ContainsAny(c.Append, "\x00\n") || len(c.Append) > 2000 {
		errs = append(errs, errors.New("append: want one line of at most 2000 bytes"))
	}
	return errors.Join(errs...)
}

func (d ServedDisk) check(i int, used map[string]string) error {
	var errs []error
	if d.Queues < 1 || d.Queues > maxQueues {
		errs = append(errs, fmt.Errorf("served disk %d: %d queues: want 1 to %d", i, d.Queues, maxQueues))
	}
	if d.QueueSize < minQueueSize || d.QueueSize > maxQueueSize || d.QueueSize&(d.QueueSize-1) != 0 {
		errs = append(errs, fmt.Errorf("served disk %d: queues of %d entries: want a power of two from %d to %d", i, d.QueueSize, minQueueSize, maxQueueSize))
	}
	return errors.Join(append(errs, checkSocket(fmt.Sprintf("socket %s of served disk %d", d.Socket, i), d.Socket, used))...)
}

func (d Disk) check(i int) error {
	errs := []error{checkPath(fmt.Sprintf("disk %d", i), d.Path, false)}
	if d.Format != "raw" && d.Format != "qcow2" {
		errs = append(errs, fmt.Errorf("disk %d: format %q: want raw or qcow2", i, d.Format))
	}
	if d.ReadOnly == d.Snapshot {
		errs = append(errs, &hypervisor.Refusal{
			What:   fmt.Sprintf("disk %d (%s) is to be read-only %t and snapshot %t: QEMU would write it, and nothing holds its writes until they are committed", i, d.Path, d.ReadOnly, d.Snapshot),
			Remedy: "make it read-only, or snapshot if its writes may be lost, one of the two",
		})
	}
	return errors.Join(errs...)
}

func (n NIC) check(i int, used map[string]string) error {
	var errs []error
	if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		errs = append(errs, fmt.Errorf("network card %d: %q is not a unicast Ethernet address", i, n.MAC))
	} else if other, dup := used[mac.String()]; dup {
		errs = append(errs, fmt.Errorf("network card %d has the address of %s", i, other))
	} else {
		used[mac.String()] = fmt.Sprintf("network card %d", i)
	}
	for _, path := range []string{n.GuestSocket, n.HostSocket} {
		errs = append(errs, checkSocket(fmt.Sprintf("socket %s of network card %d", path, i), path, used))
	}
	return errors.Join(errs...)
}

// checkSocket takes paths that fit into a socket's address, each once.
func checkSocket(what, path string, used map[string]string) error {
	errs := []error{checkPath(what, path, false)}
	if len(path) > maxSocketPath {
		errs = append(errs, fmt.Errorf("%s is longer than %d bytes", what, maxSocketPath))
	}
	if other, dup := used[path]; dup {
		errs = append(errs, fmt.Errorf("%s is also %s", what, other))
	}
	used[path] = what
	return errors.Join(errs...)
}

// checkPath takes absolute paths that need no quoting in QEMU's options, where
// a comma ends a value.
func checkPath(what, path string, optional bool) error {
	switch {
	case path == "" && optional:
		return nil
	case !filepath.IsAbs(path):
		return fmt.Errorf("%s: %q is not an absolute path", what, path)
	case strings.ContainsAny(path, ",\n\x00"):
		return fmt.Errorf("%s: %q: commas and line breaks cannot be given to QEMU", what, path)
	}
	return nil
}
