package netspace

// A namespace's links.

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AddBridge makes a bridge, gives it an address if that is valid, and sets it up.
// mtu is in bytes; 0 is the kernel's default.
func (s *Space) AddBridge(name string, mtu int, address netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	// Without an address of its own a bridge takes the lowest of its ports',
	// and changes it when a TAP comes or goes: neighbours would lose the host.
	attrs.HardwareAddr = randomMAC()
	snoop := false
	if err := s.AddLink(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}); err != nil {
		return fmt.Errorf("make bridge %s in %s: %w", name, s.name, err)
	}
	link, err := s.link(name)
	if err != nil {
		return err
	}
	if err := s.Do(func() error { return noForwardDelay(link.Attrs().Index) }); err != nil {
		return fmt.Errorf("bridge %s in %s: no forward delay: %w", name, s.name, err)
	}
	if address.IsValid() {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen())}}
		if address.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // whoever gives it knows that it is free, and needs it at once
		}
		if err := s.Use(func(int) error { return s.links.AddrAdd(link, a) }); err != nil {
			return fmt.Errorf("bridge %s in %s: address %s: %w", name, s.name, address, err)
		}
	}
	return s.Up(name)
}

// noForwardDelay makes a bridge's new ports forward at once: even without the
// spanning tree protocol they would listen for 15 s first. The netlink package has
// no name for it (IFLA_BR_FORWARD_DELAY, IFLA_BR_STP_STATE of linux/if_link.h).
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

// randomMAC draws a unicast address from the locally administered ones.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac) //nolint:errcheck // never fails, see crypto/rand
	mac[0] = mac[0]&^1 | 2
	return mac
}

// AddLink makes a link.
func (s *Space) AddLink(l netlink.Link) error {
	return s.Use(func(int) error { return s.links.LinkAdd(l) })
}

// Join makes a link a port of a bridge and sets it up.
func (s *Space) Join(name, bridge string) error {
	link, err := s.link(name)
	if err != nil {
		return err
	}
	to, err := s.link(bridge)
	if err != nil {
		return err
	}
	if err := s.Use(func(int) error { return s.links.LinkSetMaster(link, to) }); err != nil {
		return fmt.Errorf("join %s to %s in %s: %w", name, bridge, s.name, err)
	}
	return s.Up(name)
}

// Up sets a link up.
func (s *Space) Up(name string) error {
	link, err := s.link(name)
	if err != nil {
		return err
	}
	if err := s.Use(func(int) error { return s.links.LinkSetUp(link) }); err != nil {
		return fmt.Errorf("set %s in %s up: %w", name, s.name, err)
	}
	return nil
}

// linkTime is how long a link may take to come up: the kernel batches such news
// for at most a second.
const linkTime = 5 * time.Second

// AwaitUp waits until a link is seen to be up by whatever depends on it, such as
// the bridge whose port it is.
func (s *Space) AwaitUp(name string) error {
	for deadline := time.Now().Add(linkTime); ; time.Sleep(time.Millisecond) {
		link, err := s.link(name)
		if err != nil {
			return err
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

func (s *Space) link(name string) (l netlink.Link, err error) {
	err = s.Use(func(int) (err error) {
		if l, err = s.links.LinkByName(name); err != nil {
			err = fmt.Errorf("find %s in %s: %w", name, s.name, err)
		}
		return err
	})
	return l, err
}
