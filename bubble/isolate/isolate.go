// Package isolate makes networks that nothing leaves: a network namespace with a
// bridge, to which TAPs for a machine are joined, and the host's own address on
// it. There is no other link in it.
//
//	New ── thread in a new namespace ── bridge (address) ── TAPs ──> descriptors for a machine
//	Run: commands inside it (namespace of the thread that starts them)
//	Close, Clean: processes, then the namespace
//
// A TAP is gone with the last descriptor of it. It needs CAP_SYS_ADMIN
// (namespaces, mounts below /run/netns) and CAP_NET_ADMIN.
package isolate

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"understudy/bubble"
)

// Config says what a network looks like.
type Config struct {
	// Name is its namespace's, see Name.
	Name string
	// Address is the host's own, with its prefix length; the zero value: none.
	Address netip.Prefix
	// TAPs is how many there are.
	TAPs int
}

// bridge is the name of a network's bridge.
const bridge = "br0"

// Name derives the name of a guest's network from the guest's and from a directory
// that is this daemon's alone: several may be on one machine.
func Name(guest, dir string) string {
	sum := sha256.Sum256([]byte(dir + "\x00" + guest))
	const most = 20
	return "usbubble-" + guest[:min(len(guest), most)] + "-" + hex.EncodeToString(sum[:4])
}

// Network is one of them.
type Network struct {
	name   string
	ns     netns.NsHandle
	links  *netlink.Handle
	thread *thread
	taps   []*os.File
}

// New makes a network. What is left of a former one of that name is removed.
func New(c Config) (_ *Network, err error) {
	if err := Clean(c.Name); err != nil {
		return nil, err
	}
	n := &Network{name: c.Name, ns: netns.None(), thread: newThread()}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("network %s: %w", c.Name, err), n.Close())
		}
	}()
	err = n.thread.do(func() (err error) {
		if n.ns, err = netns.NewNamed(c.Name); err != nil {
			return fmt.Errorf("make a network namespace: %w (this needs root)", err)
		}
		return quiet()
	})
	if err != nil {
		return nil, err
	}
	if n.links, err = netlink.NewHandleAt(n.ns); err != nil {
		return nil, fmt.Errorf("a netlink socket in it: %w", err)
	}
	if err := n.addBridge(c.Address); err != nil {
		return nil, err
	}
	for i := range c.TAPs {
		if err := n.addTAP(fmt.Sprintf("tap%d", i)); err != nil {
			return nil, fmt.Errorf("tap%d: %w", i, err)
		}
	}
	return n, nil
}

// Name is what `ip netns` calls it.
func (n *Network) Name() string { return n.name }

// TAPs are the TAPs' descriptors, in order. They are the network's: a process
// gets copies.
func (n *Network) TAPs() []*os.File { return n.taps }

// Check runs a command inside the network.
func (n *Network) Check(ctx context.Context, argv, env []string) bubble.Check {
	return bubble.RunCheck(ctx, argv, env, func(cmd *exec.Cmd) error { return n.thread.do(cmd.Start) })
}

// Close ends every process in the network and removes it. A machine keeps its
// TAPs until it has ended.
func (n *Network) Close() error {
	var errs []error
	for _, t := range n.taps {
		errs = append(errs, t.Close())
	}
	n.taps = nil
	n.thread.stop()
	if n.links != nil {
		n.links.Close()
		n.links = nil
	}
	if n.ns.IsOpen() {
		errs = append(errs, n.ns.Close())
	}
	return errors.Join(append(errs, Clean(n.name))...)
}

// netnsDir is where named network namespaces are mounted (ip-netns(8)).
const netnsDir = "/run/netns"

// Clean removes the network of that name with all processes in it. One that is not
// there is no error.
func Clean(name string) error {
	path := filepath.Join(netnsDir, name)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := endProcesses(path); err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	err := netns.DeleteNamed(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// A file whose mount failed or is gone already.
	if rm := os.Remove(path); rm == nil || errors.Is(rm, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("remove network %s: %w", name, err)
}

// quiet sets up the calling thread's namespace before it has links: a bridge does
// not ask iptables, and forwards nothing to elsewhere (there is no elsewhere).
func quiet() error {
	for _, s := range []struct{ path, value string }{
		{"ipv4/ip_forward", "0"},
		{"bridge/bridge-nf-call-iptables", "0"},
		{"bridge/bridge-nf-call-ip6tables", "0"},
		{"bridge/bridge-nf-call-arptables", "0"},
	} {
		if err := os.WriteFile("/proc/sys/net/"+s.path, []byte(s.value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set up a network namespace: %w", err)
		}
	}
	return nil
}

// addBridge makes the bridge and gives it the host's address.
func (n *Network) addBridge(address netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridge
	attrs.HardwareAddr = make(net.HardwareAddr, 6)
	rand.Read(attrs.HardwareAddr) //nolint:errcheck // never fails, see crypto/rand
	attrs.HardwareAddr[0] = attrs.HardwareAddr[0]&^1 | 2
	if err := n.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make its bridge: %w", err)
	}
	link, err := n.links.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find its bridge: %w", err)
	}
	if err := n.thread.do(func() error { return noForwardDelay(link.Attrs().Index) }); err != nil {
		return fmt.Errorf("its bridge: no forward delay: %w", err)
	}
	if address.IsValid() {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen())}}
		if address.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // nobody else is there, and it is needed at once
		}
		if err := n.links.AddrAdd(link, a); err != nil {
			return fmt.Errorf("give its bridge the address %s: %w", address, err)
		}
	}
	return errors.Join(n.up("lo"), n.up(bridge))
}

// noForwardDelay makes a bridge's new ports forward at once: even without the
// spanning tree protocol they would listen for 15 s first (IFLA_BR_FORWARD_DELAY,
// IFLA_BR_STP_STATE of linux/if_link.h).
func noForwardDelay(index int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0))
	data.AddRtAttr(nl.IFLA_BR_FORWARD_DELAY, nl.Uint32Attr(0))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// addTAP makes a TAP that vanishes with its last descriptor, and joins it to the
// bridge. Frames have no header of the kernel's, as those of the guest's own
// network have none: what guest and device have agreed on fits.
func (n *Network) addTAP(name string) error {
	var file *os.File
	err := n.thread.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w (is the tun module loaded?)", err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		file = os.NewFile(uintptr(fd), "/dev/net/tun "+name)
		return nil
	})
	if err != nil {
		return err
	}
	n.taps = append(n.taps, file)
	link, err := n.links.LinkByName(name)
	if err != nil {
		return err
	}
	master, err := n.links.LinkByName(bridge)
	if err != nil {
		return err
	}
	if err := n.links.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("join the bridge: %w", err)
	}
	return n.up(name)
}

func (n *Network) up(name string) error {
	link, err := n.links.LinkByName(name)
	if err == nil {
		err = n.links.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// Left lists the networks that there are of a daemon's guests: what Name would
// give for any guest is told by its beginning only.
func Left() ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "usbubble-") {
			names = append(names, e.Name())
		}
	}
	return names, err
}
