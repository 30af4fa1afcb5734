package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// quiet sets the calling thread's namespace up before it has links: no IPv6,
// whose router and neighbour chatter would be in every capture; bridges that
// do not consult iptables; and queues for Unix datagrams of a length that QEMU
// can work with (the kernel's default is 10). A setting this kernel does not
// have needs no change.
func quiet() error {
	for _, s := range []struct{ path, value string }{
		{"ipv6/conf/all/disable_ipv6", "1"},
		{"ipv6/conf/default/disable_ipv6", "1"},
		{"bridge/bridge-nf-call-iptables", "0"},
		{"bridge/bridge-nf-call-ip6tables", "0"},
		{"bridge/bridge-nf-call-arptables", "0"},
		{"unix/max_dgram_qlen", "2048"},
	} {
		if err := os.WriteFile("/proc/sys/net/"+s.path, []byte(s.value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("setting up a namespace: %w", err)
		}
	}
	return nil
}

// addBridge makes the namespace's bridge and, if addr is valid, gives it an
// address.
func (s *space) addBridge(mtu int, addr netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = Bridge, mtu
	// Without an address of its own a bridge takes the lowest of its ports',
	// and changes it when a TAP comes or goes: neighbours would lose the host.
	attrs.HardwareAddr = randomMAC()
	snoop := false
	if err := s.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}); err != nil {
		return fmt.Errorf("making bridge %s in %s: %w", Bridge, s.name, err)
	}
	link, err := s.links.LinkByName(Bridge)
	if err != nil {
		return fmt.Errorf("finding bridge %s in %s: %w", Bridge, s.name, err)
	}
	if err := s.thread.do(func() error { return noForwardDelay(link.Attrs().Index) }); err != nil {
		return fmt.Errorf("bridge %s in %s: no forward delay: %w", Bridge, s.name, err)
	}
	if addr.IsValid() {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}}
		if err := s.links.AddrAdd(link, a); err != nil {
			return fmt.Errorf("bridge %s in %s: address %s: %w", Bridge, s.name, addr, err)
		}
	}
	return s.up(Bridge)
}

// noForwardDelay makes a bridge's new ports forward at once: even without the
// spanning tree protocol they would listen for 15 s first. The netlink
// package has no name for it (IFLA_BR_FORWARD_DELAY, IFLA_BR_STP_STATE of
// linux/if_link.h).
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

// joinBridge makes a link a port of the namespace's bridge and sets it up.
func (s *space) joinBridge(name string) error {
	link, err := s.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", name, s.name, err)
	}
	bridge, err := s.links.LinkByName(Bridge)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", Bridge, s.name, err)
	}
	if err := s.links.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("joining %s to %s in %s: %w", name, Bridge, s.name, err)
	}
	return s.up(name)
}

func (s *space) up(name string) error {
	link, err := s.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding %s in %s: %w", name, s.name, err)
	}
	if err := s.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s in %s up: %w", name, s.name, err)
	}
	return nil
}

// awaitUp waits until a link is seen to be up by whatever depends on it, such
// as the bridge whose port it is.
func (s *space) awaitUp(name string) error {
	for deadline := time.Now().Add(linkTime); ; time.Sleep(time.Millisecond) {
		link, err := s.links.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding %s in %s: %w", name, s.name, err)
		}
		state := link.Attrs().OperState
		if state == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s in %s is %s %v after it was set up", name, s.name, state, linkTime)
		}
	}
}

// linkTime is how long a link may take to come up: the kernel batches such
// news for at most a second.
const linkTime = 5 * time.Second

// randomMAC draws a unicast address from the locally administered ones.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac) // never fails, see crypto/rand
	mac[0] = mac[0]&^1 | 2
	return mac
}
