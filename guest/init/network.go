package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy/guest"
)

// settings are what the kernel's command line says to us.
type settings struct {
	address netip.Prefix
	gateway netip.Addr
	disk    guest.Disk
	shell   bool
}

// parseCommandLine finds our words among the kernel's.
func parseCommandLine(line string) (settings, error) {
	var s settings
	var all error
	for _, word := range strings.Fields(line) {
		key, value, _ := strings.Cut(word, "=")
		var err error
		switch key {
		case "understudy.ip":
			s.address, err = netip.ParsePrefix(value)
			if err == nil && !s.address.Addr().Is4() {
				s.address, err = netip.Prefix{}, errors.New("only IPv4 is set up")
			}
		case "understudy.gw":
			s.gateway, err = netip.ParseAddr(value)
			if err == nil && !s.gateway.Is4() {
				s.gateway, err = netip.Addr{}, errors.New("only IPv4 is set up")
			}
		case "understudy.disk":
			s.disk, err = parseDisk(value)
		case "understudy.shell":
			s.shell = true
		}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("kernel command line: %s: %w", word, err))
		}
	}
	return s, all
}

// network brings lo up and, if there is an address, eth0 with it.
func network(s settings) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set up the network: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := up(fd, "lo"); err != nil {
		return err
	}
	if !s.address.IsValid() {
		return nil
	}
	if err := waitFor("/sys/class/net/eth0", patience); err != nil {
		return fmt.Errorf("set up the network: no eth0 (has the machine a network device of virtio-net or Xen?): %w", err)
	}
	addr := s.address.Addr().As4()
	if err := setAddress(fd, "eth0", unix.SIOCSIFADDR, addr[:]); err != nil {
		return err
	}
	mask := ^uint32(0) << (32 - s.address.Bits())
	if err := setAddress(fd, "eth0", unix.SIOCSIFNETMASK, []byte{byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)}); err != nil {
		return err
	}
	if err := up(fd, "eth0"); err != nil {
		return err
	}
	if s.gateway.IsValid() {
		return defaultRoute(s.gateway)
	}
	return nil
}

// patience bounds the wait for a device: those of Xen come some time after their
// driver, when the other end has answered.
const patience = 10 * time.Second

// waitFor waits until path exists. Drivers probe their devices while their
// module is loaded, so this seldom waits at all.
func waitFor(path string, limit time.Duration) error {
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		if time.Since(begin) > limit {
			return fmt.Errorf("not there after %s: %w", limit, err)
		}
	}
}

func setAddress(fd int, name string, request uint, addr []byte) error {
	r, err := unix.NewIfreq(name)
	if err == nil {
		err = r.SetInet4Addr(addr)
	}
	if err == nil {
		err = unix.IoctlIfreq(fd, request, r)
	}
	if err != nil {
		return fmt.Errorf("set the address of %s: %w", name, err)
	}
	return nil
}

func up(fd int, name string) error {
	r, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r)
	}
	if err == nil {
		r.SetUint16(r.Uint16() | unix.IFF_UP | unix.IFF_RUNNING)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
	}
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// defaultRoute has busybox add the route: the only thing here that would need
// netlink. It runs before orphans are reaped, so its end is ours to collect.
func defaultRoute(via netip.Addr) error {
	p, err := os.StartProcess("/bin/busybox", []string{"ip", "route", "add", "default", "via", via.String()},
		&os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
	if err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	state, err := p.Wait()
	if err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	if !state.Success() {
		return fmt.Errorf("add the default route via %s: busybox: %s", via, state)
	}
	return nil
}
