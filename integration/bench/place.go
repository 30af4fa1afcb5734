package main

// Where the benchmark takes place: directories, certificates, and a network of
// two namespaces. All of it is gone when the place is closed.

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"understudy/clock"
	"understudy/egress"
	"understudy/guest"
	"understudy/hypervisor/qemu"
	"understudy/lab"
	"understudy/transport/pki"
)

const (
	labPrefix = "usbench"
	guestName = "bench"
	guestMAC  = "52:54:00:be:ac:01"
	hostA     = "a" // the primary's
	hostB     = "b" // the backup's
	tapName   = "usbench0"
)

var guestAddress = netip.MustParsePrefix("10.99.0.100/24")

// place is on disk, in memory and in the network.
type place struct {
	Dir    string       // sockets, records, certificates
	Images string       // memory files, on a tmpfs
	Log    *slog.Logger `json:"-"`
	lab    *lab.Lab
}

// newPlace also removes what an earlier run that was killed left behind.
func newPlace(log *slog.Logger) (_ *place, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the benchmark makes network namespaces and a TAP device: run it as root")
	}
	if _, err := lab.Sweep(labPrefix); err != nil {
		return nil, err
	}
	p := &place{Log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.Dir, err = os.MkdirTemp("", labPrefix); err != nil {
		return nil, err
	}
	if p.Images, err = os.MkdirTemp("/dev/shm", labPrefix); err != nil {
		return nil, err
	}
	for _, dir := range []string{p.Dir, p.Images} {
		if err := os.Chmod(dir, 0o711); err != nil { // QEMU's account passes through
			return nil, err
		}
	}
	if err := pki.Init(p.tls(), []string{hostA, hostB}, 24*time.Hour); err != nil {
		return nil, err
	}
	if p.lab, err = lab.New(lab.Options{Prefix: labPrefix, Hosts: []string{hostA, "client"}}); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *place) close() error {
	var errs []error
	if p.lab != nil {
		errs = append(errs, p.lab.Close())
	}
	for _, dir := range []string{p.Dir, p.Images} {
		if dir != "" {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

func (p *place) tls() string { return filepath.Join(p.Dir, "tls") }

// config is the guest on one of the two hosts.
func (p *place) config(o *options, mib int, host string) (qemu.Config, error) {
	self, err := os.Executable()
	if err != nil {
		return qemu.Config{}, err
	}
	boot := guest.Boot{Address: guestAddress}
	if o.machine == "microvm" {
		boot.TSCKHz = guest.TSCKHz()
	}
	return qemu.Config{
		Name: guestName, Memory: uint64(mib) << 20, CPUs: o.cpus, Machine: o.machine, Accel: o.accel,
		Kernel: filepath.Join(o.images, "vmlinuz"), Initrd: filepath.Join(o.images, "initrd"), Append: boot.CommandLine(),
		NICs:   []qemu.NIC{{MAC: guestMAC}},
		RunDir: filepath.Join(p.Dir, host), ImageDir: filepath.Join(p.Images, host),
		Helper: []string{self, helperCommand},
	}, nil
}

// openGate makes a guest's way out: a TAP on the bridge of the primary's host,
// with the kernel's time limit. grant gives the guest's QEMU the socket.
func (p *place) openGate(c qemu.Config, tapName string, grant func(path string) error) (*egress.Gate, error) {
	guestSide, hostSide := c.NICSockets(0)
	frames, err := egress.OpenGuestSocket(egress.SocketConfig{Local: hostSide, Remote: guestSide, UID: -1, GID: -1})
	if err != nil {
		return nil, err
	}
	if err := grant(hostSide); err != nil {
		return nil, errors.Join(err, frames.Close())
	}
	mac, err := net.ParseMAC(c.NICs[0].MAC)
	if err != nil {
		return nil, errors.Join(err, frames.Close())
	}
	var tap *egress.TAP
	var limit *egress.KernelGate
	err = p.lab.Host(hostA).Do(func() (err error) {
		if tap, err = egress.OpenTAP(egress.TAPConfig{Name: tapName, Bridge: lab.Bridge}); err != nil {
			return err
		}
		if limit, err = egress.NewKernelGate(tapName); err != nil {
			return errors.Join(err, tap.Close())
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, frames.Close())
	}
	gate, err := egress.NewGate(egress.Config{Guest: frames, Network: tap, Limit: limit, Clock: clock.Boot{}, MAC: mac, Log: p.Log})
	if err != nil {
		return nil, errors.Join(err, frames.Close(), tap.Close(), limit.Close())
	}
	return gate, nil
}

// checkGuest says what to do if the guest was not built.
func (o *options) checkGuest() error {
	for _, name := range []string{"vmlinuz", "initrd"} {
		if _, err := os.Stat(filepath.Join(o.images, name)); err != nil {
			return fmt.Errorf("the guest is not built: %w: run make guest", err)
		}
	}
	return nil
}
