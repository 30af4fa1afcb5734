package daemon

// This file makes the host's guests of their [[guest]] sections, at the start and
// when the configuration changes: driver, gate and disks (guests.go, disks.go), the
// settings of the roles, the way to the guest's other host.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"

	"understudy/clock"
	"understudy/config"
	"understudy/egress"
	"understudy/failover"
	"understudy/host"
	"understudy/ownership"
	"understudy/protocol"
	"understudy/status"
	"understudy/transport"
)

// dialer connects to another host for a protocol.
type dialer func(ctx context.Context, peer ownership.HostID, proto string) (net.Conn, error)

// hosting is the host.Host of this daemon with what its guests were made of.
type hosting struct {
	o        Options
	self     config.Host
	dial     dialer
	host     *host.Host
	acceptor *transport.Acceptor

	mu        sync.Mutex
	wire      transport.Config // of sessions, but for their connections
	recorders map[string]recorder
	made      map[string]host.Guest
	exits     map[string][]status.Exit
}

// newHosting makes the host's guests; a witness has none.
func newHosting(o Options, self config.Host, port *transport.Port, voter *failover.Node, dial dialer, peers *Peers) (*hosting, error) {
	h := &hosting{o: o, self: self, dial: dial, wire: wireOf(o.Config),
		recorders: map[string]recorder{}, made: map[string]host.Guest{}, exits: map[string][]status.Exit{}}
	acceptor, err := transport.NewAcceptor(port.Protocol(ProtocolReplication), h.wire, o.Slog)
	if err != nil {
		return nil, err
	}
	h.acceptor = acceptor
	fail := func(err error) (*hosting, error) {
		for _, g := range h.made {
			closeGuest(g)
		}
		h.close()
		return nil, err
	}
	var guests []host.Guest
	for _, g := range o.Config.Guests {
		if !runsOn(g, self.Name) {
			continue
		}
		record, err := o.recorder(self, g)
		if err != nil {
			return fail(err)
		}
		h.recorders[g.Name] = record
		made, err := h.make(o.Config, g)
		if err != nil {
			return fail(err)
		}
		h.keep(o.Config, g, made)
		guests = append(guests, made)
	}
	h.host, err = host.New(host.Config{
		Self: ownership.HostID(self.Name), Guests: guests, Log: o.recorded(OwnershipLog{voter}, maps.Clone(h.recorders)), Clock: clock.Boot{}, Slog: o.Slog,
		AdoptLater: true, Events: o.record, Drilling: drilling(peers), Fence: fence(o.Config), FenceAfter: fenceAfter(o.Config),
		Accept: func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
			s, err := acceptor.Accept(ctx)
			if err != nil {
				return nil, "", err
			}
			return Session{s}, ownership.HostID(s.Peer()), nil
		},
	})
	if err != nil {
		return fail(err)
	}
	return h, nil
}

func (h *hosting) close() { _ = h.acceptor.Close() }

// runsOn reports whether a host has a part in a guest.
func runsOn(g config.Guest, host string) bool { return g.Host == host || g.Backup == host }

// wireOf is what the configuration says of sessions.
func wireOf(c *config.Config) transport.Config {
	wire := transport.DefaultConfig()
	wire.HeartbeatInterval = c.Heartbeat.Std()
	// A dead daemon's connections are reset at once; a silent one is noticed by
	// its heartbeats, so that with the quarter of a lease that a lost session may
	// take to come back, its backup asks just when its lease has run out.
	wire.HeartbeatTimeout = max(c.Lease.Std()*3/4, 3*wire.HeartbeatInterval)
	return wire
}

// make makes what a guest needs here. Whoever gets it closes its gate and disks.
func (h *hosting) make(c *config.Config, g config.Guest) (host.Guest, error) {
	o := h.o
	o.Config = c
	made, err := newGuest(o, h.self, g, h.recorders[g.Name])
	if err != nil {
		return host.Guest{}, fmt.Errorf("guest %q: %w", g.Name, err)
	}
	h.settle(g, &made)
	return made, nil
}

// settle gives a guest the settings that can change while it runs.
func (h *hosting) settle(g config.Guest, made *host.Guest) {
	peer := ownership.HostID(g.Backup)
	if g.Backup == h.self.Name {
		peer = ownership.HostID(g.Host)
	}
	disks, _ := made.Disks.(*served)
	made.Home, made.Peer = ownership.HostID(g.Host), peer
	made.Primary, made.Backup = rolesOf(ownership.HostID(h.self.Name), g, disks)
	record := h.recorders[g.Name]
	made.Dial = func(ctx context.Context) (protocol.Session, error) {
		wire := h.sessions()
		wire.Connections = g.Protection.Connections
		s, err := transport.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
			return h.dial(ctx, peer, ProtocolReplication)
		}, wire, h.o.Slog)
		if err != nil {
			return nil, err
		}
		return record.session(Session{s}), nil
	}
}

// sessions are the settings of sessions that begin now.
func (h *hosting) sessions() transport.Config {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wire
}

// setSessions changes them.
func (h *hosting) setSessions(wire transport.Config) error {
	if err := h.acceptor.SetConfig(wire); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wire = wire
	return nil
}

// keep notes a guest that is here now; forget, that it is not any more.
func (h *hosting) keep(c *config.Config, g config.Guest, made host.Guest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.made[g.Name], h.exits[g.Name] = made, exitsOf(c, h.self, g)
}

func (h *hosting) forget(guest string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.made, guest)
	delete(h.exits, guest)
}

func (h *hosting) guest(name string) (host.Guest, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g, ok := h.made[name]
	return g, ok
}

// ways are the guests' ways out.
func (h *hosting) ways() map[string][]status.Exit {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.exits)
}

// closeGuest closes what make made and no host.Host has got.
func closeGuest(g host.Guest) {
	_ = g.Gate.Close()
	if g.Disks != nil {
		_ = g.Disks.Close()
	}
}

// resize changes the room for a guest's held output.
func resize(gate host.Gate, bytes int) error {
	switch g := gate.(type) {
	case *egress.Gate:
		return g.Resize(bytes)
	case *gateSet:
		var errs []error
		for _, one := range g.gates {
			errs = append(errs, one.Resize(bytes))
		}
		return errors.Join(errs...)
	case interface{ inner() host.Gate }:
		return resize(g.inner(), bytes)
	}
	return fmt.Errorf("a gate of type %T has no size", gate)
}

// exitsOf lists a guest's ways out (RULES 27).
func exitsOf(all *config.Config, self config.Host, g config.Guest) []status.Exit {
	var exits []status.Exit
	if g.Hypervisor == config.QEMU {
		for _, w := range qemuConfig(all, self, g, nil).Ways() {
			exits = append(exits, status.Exit{Device: w.Name, Held: w.Held, Treatment: w.Treatment})
		}
		return exits
	}
	if g.Hypervisor == config.Xen {
		exits = append(exits, status.Exit{Device: "console", Treatment: "goes to xenconsoled at once: declared, not committed"})
	}
	for _, n := range g.NICs {
		exits = append(exits, status.Exit{Device: "network " + n.MAC.String(), Held: true, Treatment: "held until its epoch is committed"})
	}
	return exits
}
