package egress

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TAPConfig describes a guest's link to a bridge of this host.
type TAPConfig struct {
	// Name is the interface to make: 1 to 15 bytes without '/', ':', '%' or
	// white space, and not one that exists (a stale TAP vanished with its process).
	Name string
	// Bridge is the bridge it becomes a port of; empty for none.
	Bridge string
	// MTU in bytes; zero means the bridge's, or 1500 without one.
	MTU int
}

// maxInterfaceName is IFNAMSIZ less its terminating zero.
const maxInterfaceName = unix.IFNAMSIZ - 1

// TAP is a link to the network through a TAP interface
// (Documentation/networking/tuntap.rst). The interface is not persistent: it
// vanishes when the process closes it or dies. A frame that was written has
// passed the interface's ingress hook and the bridge when the call returns.
// Making one needs CAP_NET_ADMIN.
type TAP struct {
	*pollFD
	name  string
	index int
}

// OpenTAP makes the interface, in the network namespace of the calling thread,
// joins it to its bridge and sets it up.
func OpenTAP(c TAPConfig) (*TAP, error) {
	if err := checkInterfaceName(c.Name); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("making TAP %s: opening /dev/net/tun: %w (is the tun module loaded, and is this root?)", c.Name, err)
	}
	req, err := unix.NewIfreq(c.Name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making TAP %q: %w", c.Name, err), unix.Close(fd))
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, errors.Join(fmt.Errorf("making TAP %s: %w", c.Name, err), unix.Close(fd))
	}
	// Only now, since the poller gets nothing but errors from a tun descriptor
	// without an interface.
	p, err := newPollFD(fd, c.Name)
	if err != nil {
		return nil, err
	}
	t := &TAP{pollFD: p, name: c.Name}
	if err := t.join(c); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return t, nil
}

func (t *TAP) join(c TAPConfig) error {
	link, err := netlink.LinkByName(c.Name)
	if err != nil {
		return fmt.Errorf("finding TAP %s: %w", c.Name, err)
	}
	t.index = link.Attrs().Index
	// The host shall not speak on this link, to the guest or for it. Where
	// there is no IPv6 there is nothing to switch off.
	raiseSysctl("/proc/sys/net/ipv6/conf/"+c.Name+"/disable_ipv6", 1)
	mtu := c.MTU
	if c.Bridge != "" {
		bridge, err := netlink.LinkByName(c.Bridge)
		if err != nil {
			return fmt.Errorf("TAP %s: finding bridge %s: %w", c.Name, c.Bridge, err)
		}
		if bridge.Type() != "bridge" {
			return fmt.Errorf("TAP %s: %s is a %s, not a bridge", c.Name, c.Bridge, bridge.Type())
		}
		if mtu == 0 {
			mtu = bridge.Attrs().MTU
		}
		if err := netlink.LinkSetMaster(link, bridge); err != nil {
			return fmt.Errorf("joining TAP %s to bridge %s: %w", c.Name, c.Bridge, err)
		}
	}
	if mtu != 0 {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("TAP %s: an MTU of %d bytes: %w", c.Name, mtu, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting TAP %s up: %w", c.Name, err)
	}
	return nil
}

func checkInterfaceName(name string) error {
	if name == "" || len(name) > maxInterfaceName || name == "." || name == ".." ||
		strings.ContainsAny(name, "/:% \t\n\v\f\r\x00") {
		return fmt.Errorf("interface name %q: want 1 to %d bytes without '/', ':', '%%' or white space", name, maxInterfaceName)
	}
	return nil
}

// Name is the interface's name.
func (t *TAP) Name() string { return t.name }

// Index is the interface's index.
func (t *TAP) Index() int { return t.index }

// ReadFrame moves the next frame for the guest into buf.
func (t *TAP) ReadFrame(buf []byte) (int, error) {
	for {
		n, err := t.read(buf)
		if err != nil || checkSize(buf[:n]) == nil {
			return n, err
		}
	}
}

// WriteFrame puts one frame on the network. It is through the ingress hook
// when the call returns.
func (t *TAP) WriteFrame(frame []byte) error {
	if err := checkSize(frame); err != nil {
		return err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return net.ErrClosed
	}
	for {
		switch _, err := unix.Write(t.fd, frame); err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EAGAIN, unix.EIO, unix.ENOBUFS, unix.ENOMEM, unix.EINVAL:
			// EIO: the interface is down. EINVAL: a frame it cannot make sense of.
			return ErrNotTaken
		default:
			return fmt.Errorf("writing a frame to TAP %s: %w", t.name, err)
		}
	}
}
