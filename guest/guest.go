// Package guest describes the small Linux guest that the tests, the benchmark
// and the demo protect: a Debian cloud kernel and an initramfs of our own.
//
//	guest/build    writes build/guest/vmlinuz and build/guest/initrd (make guest)
//	guest/init     is PID 1 in the guest: modules, network, services
//	guest/service  are the services, plain text over TCP; they run on any Linux
//	guest/client   is the other end of them
//	guest/image    makes and examines its disk images, on the host
//
// This package holds only what both ends have to agree on.
package guest

import (
	"fmt"
	"net/netip"
	"strings"
)

// TCP ports of the services; package service documents what is spoken there.
const (
	CounterPort    = 7000
	ControlPort    = 7001
	EchoPort       = 7002
	ThroughputPort = 7003
)

// ReadyLine is what the guest prints on its console once every service accepts
// connections.
const ReadyLine = "understudy guest ready"

// Boot says how the guest is to come up; the zero value has a loopback
// interface only.
type Boot struct {
	// Address of eth0 with its prefix length, IPv4.
	Address netip.Prefix
	// Gateway is the default route, if valid.
	Gateway netip.Addr
	// TSCKHz tells the guest the frequency of its time stamp counter (TSCKHz
	// measures it). A microvm without KVM needs it: such a machine has no timer
	// that the kernel could measure it by reliably, and on a busy host the kernel
	// gives up and hangs. 0 leaves it to the kernel; pc and q35 do well by that.
	TSCKHz int
	// Disk is mounted, read and write, if it has a device.
	Disk Disk
	// Shell asks for a shell on the serial console.
	Shell bool
	// Extra is appended to the kernel's command line as it is.
	Extra string
}

// Disk is a block device with an ext4 file system and where it is mounted.
type Disk struct {
	// Device in the guest, FirstDisk for its first virtio-blk disk.
	Device string
	// Dir is DataDir or RootDir.
	Dir string
}

const (
	// FirstDisk is the device of the guest's first virtio-blk disk.
	FirstDisk = "/dev/vda"
	// DataDir is where a disk with data is mounted.
	DataDir = "/data"
	// RootDir is where a disk with a whole system is mounted, for its programs to
	// run in; the guest's own init and services stay in the initramfs.
	RootDir = "/root"
)

// fastBoot are kernel parameters that shorten the boot under emulation and
// change nothing that a test looks at.
const fastBoot = "quiet tsc=reliable no_timer_check random.trust_cpu=on i8042.noaux cryptomgr.notests"

// CommandLine is the kernel's command line for b.
func (b Boot) CommandLine() string {
	words := []string{"console=ttyS0", fastBoot, "panic=-1"}
	if b.Address.IsValid() {
		words = append(words, fmt.Sprintf("understudy.ip=%s", b.Address))
	}
	if b.Gateway.IsValid() {
		words = append(words, fmt.Sprintf("understudy.gw=%s", b.Gateway))
	}
	if b.TSCKHz != 0 {
		words = append(words, fmt.Sprintf("tsc_early_khz=%d", b.TSCKHz))
	}
	if b.Disk.Device != "" {
		words = append(words, fmt.Sprintf("understudy.disk=%s:%s", b.Disk.Device, b.Disk.Dir))
	}
	if b.Shell {
		words = append(words, "understudy.shell")
	}
	if b.Extra != "" {
		words = append(words, b.Extra)
	}
	return strings.Join(words, " ")
}
