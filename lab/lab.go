// Package lab builds small networks out of Linux network namespaces: some
// hosts, each with a bridge of its own, joined by one switch. The demo and the
// tests run real daemons in them and cut their cables.
//
//	namespace NAME-sw:    bridge br0 ── p0 ── p1 ── p2 …
//	                                    │     │     │     veth pairs
//	namespace NAME-HOST:  bridge br0 (address) ── up0, and whatever TAPs are joined to br0
//
// The files in the order of a lab's life: name.go (names that tell whose lab
// it is), lab.go (building and closing), run.go (doing things on a host), cut.go
// (cutting cables), sweep.go (finding and removing what is left). What one
// namespace is made of is package netspace's.
//
// It needs CAP_SYS_ADMIN (namespaces, mounts under /run/netns), CAP_NET_ADMIN
// (links, nftables) and CAP_KILL (processes of other users left in a
// namespace), and Linux 5.16 for cutting cables one way.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"

	"understudy/netspace"
)

// Options say what a lab looks like.
type Options struct {
	// Prefix begins the names of all namespaces: 1 to 16 lower-case letters.
	// Leftovers and Sweep find labs by it.
	Prefix string
	// Hosts are the hosts' names: 1 to 16 lower-case letters and digits each.
	Hosts []string
	// Subnet gives the hosts their addresses, from the first one on in the
	// order of Hosts; zero means 10.99.0.0/24. Labs do not see each other, so
	// all may use the same.
	Subnet netip.Prefix
	// MTU of every link in bytes; zero means 1500.
	MTU int
}

const (
	// Bridge is the name of every host's bridge, which has the host's address
	// and to which TAPs are joined.
	Bridge = "br0"
	// Uplink is the name of every host's cable to the switch.
	Uplink = "up0"

	maxHosts = 32
)

// Lab is a network of namespaces. Its methods may be called from several
// goroutines.
type Lab struct {
	name string
	sw   *netspace.Space
	host map[string]*Host

	closing sync.Once
	closed  error
}

// Host is one host of a lab.
type Host struct {
	space *netspace.Space
	name  string
	addr  netip.Prefix
	port  string // its port on the switch
	lab   *Lab

	cutting sync.Mutex
}

// New builds a lab. What an earlier lab of a process that has died left under
// the same prefix stays; see Sweep.
func New(o Options) (*Lab, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if !o.Subnet.IsValid() {
		o.Subnet = netip.MustParsePrefix("10.99.0.0/24")
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	name, err := newName(o.Prefix)
	if err != nil {
		return nil, err
	}
	l := &Lab{name: name, host: make(map[string]*Host)}
	if err := l.build(o); err != nil {
		return nil, errors.Join(fmt.Errorf("building lab %s: %w", name, err), l.Close())
	}
	return l, nil
}

func (o Options) check() error {
	if !validWord(o.Prefix, false) {
		return fmt.Errorf("lab prefix %q: want 1 to %d lower-case letters", o.Prefix, maxWord)
	}
	if len(o.Hosts) == 0 || len(o.Hosts) > maxHosts {
		return fmt.Errorf("lab: %d hosts: want 1 to %d", len(o.Hosts), maxHosts)
	}
	seen := map[string]bool{switchName: true}
	for _, h := range o.Hosts {
		if !validWord(h, true) || seen[h] {
			return fmt.Errorf("lab host %q: want a name of its own of 1 to %d lower-case letters and digits, not %q", h, maxWord, switchName)
		}
		seen[h] = true
	}
	if o.Subnet.IsValid() && (!o.Subnet.Addr().Is4() || o.Subnet.Bits() > 26) {
		return fmt.Errorf("lab subnet %s: want an IPv4 network of at least 64 addresses", o.Subnet)
	}
	if o.MTU < 0 || o.MTU > 65535 {
		return fmt.Errorf("lab MTU %d: want 0 to 65535 bytes", o.MTU)
	}
	return nil
}

// switchName is the word for the switch in its namespace's name.
const switchName = "sw"

func (l *Lab) build(o Options) error {
	var err error
	if l.sw, err = newSpace(l.name + "-" + switchName); err != nil {
		return err
	}
	if err := l.sw.AddBridge(Bridge, o.MTU, netip.Prefix{}); err != nil {
		return err
	}
	addr := o.Subnet.Masked().Addr()
	for i, name := range o.Hosts {
		addr = addr.Next()
		h := &Host{name: name, addr: netip.PrefixFrom(addr, o.Subnet.Bits()), port: fmt.Sprintf("p%d", i), lab: l}
		if h.space, err = newSpace(l.name + "-" + name); err != nil {
			return err
		}
		l.host[name] = h
		if err := h.space.AddBridge(Bridge, o.MTU, h.addr); err != nil {
			return err
		}
		if err := l.connect(h, portIndex+i, o.MTU); err != nil {
			return err
		}
	}
	for _, h := range l.host {
		if err := errors.Join(l.sw.AwaitUp(h.port), h.space.AwaitUp(Uplink), h.space.AwaitUp(Bridge)); err != nil {
			return err
		}
	}
	return nil
}

// portIndex is the interface index of the first port on the switch, far from
// those at a cable's other end: a link whose peer has the same index looks to
// the kernel like one without a peer, and is then told up to a second late that
// it has a carrier (net/core/link_watch.c).
const portIndex = 100

// connect joins a host's bridge to the switch.
func (l *Lab) connect(h *Host, index, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index, attrs.MTU = h.port, index, mtu
	err := h.space.Use(func(ns int) error {
		return l.sw.AddLink(&netlink.Veth{LinkAttrs: attrs, PeerName: Uplink, PeerNamespace: netlink.NsFd(ns), PeerMTU: uint32(mtu)})
	})
	if err != nil {
		return fmt.Errorf("a cable from %s to the switch: %w", h.name, err)
	}
	if err := l.sw.Join(h.port, Bridge); err != nil {
		return err
	}
	return h.space.Join(Uplink, Bridge)
}

// Name is the lab's name, the beginning of its namespaces' names.
func (l *Lab) Name() string { return l.name }

// Host returns the host of that name. Asking for one that does not exist is a
// mistake in the program and panics.
func (l *Lab) Host(name string) *Host {
	h := l.host[name]
	if h == nil {
		panic(fmt.Sprintf("lab %s has no host %q", l.name, name))
	}
	return h
}

// Name is the host's name.
func (h *Host) Name() string { return h.name }

// Namespace is the name of the host's namespace, as `ip netns` knows it.
func (h *Host) Namespace() string { return h.space.Name() }

// Addr is the host's address.
func (h *Host) Addr() netip.Addr { return h.addr.Addr() }

// Prefix is the host's address with the length of the lab's network.
func (h *Host) Prefix() netip.Prefix { return h.addr }

// Close kills every process in the lab's namespaces and removes them with all
// that is in them. It returns after the processes are gone. A second call
// returns the same.
func (l *Lab) Close() error {
	l.closing.Do(func() {
		var errs []error
		spaces := []*netspace.Space{l.sw}
		for _, h := range l.host {
			spaces = append(spaces, h.space)
		}
		// All processes first: one host's would only log the loss of another.
		for _, s := range spaces {
			if s != nil {
				errs = append(errs, netspace.Kill(s.Name()))
			}
		}
		for _, s := range spaces {
			if s != nil {
				errs = append(errs, s.Close())
			}
		}
		l.closed = errors.Join(errs...)
	})
	return l.closed
}

// newSpace makes a namespace without IPv6, whose router and neighbour chatter
// would be in every capture, and with queues for Unix datagrams of a length that
// QEMU can work with (the kernel's default is 10).
func newSpace(name string) (*netspace.Space, error) {
	return netspace.New(name,
		netspace.Setting{Path: "ipv6/conf/all/disable_ipv6", Value: "1"},
		netspace.Setting{Path: "ipv6/conf/default/disable_ipv6", Value: "1"},
		netspace.Setting{Path: "unix/max_dgram_qlen", Value: "2048"})
}
