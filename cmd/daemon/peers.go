package daemon

// Hosts ask each other: the status endpoint on the pair's own port, and the
// clients of the others' (status/peers.go).

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"understudy/config"
	"understudy/failover"
	"understudy/ownership"
	"understudy/status"
	"understudy/transport"
)

// ProtocolAPI carries HTTP/1.1 between hosts; it is the TLS ALPN name.
const ProtocolAPI = "understudy-api/1"

// Peers are the hosts of the configuration, each with its daemon's endpoint.
type Peers struct {
	self   ownership.HostID
	socket string // of this host's daemon
	hosts  func() []ownership.HostID
	dial   func(ctx context.Context, host ownership.HostID, proto string) (net.Conn, error)
}

// newPeers returns the hosts that hosts names. dial reaches a host's port.
func newPeers(self config.Host, socket string, hosts func() []ownership.HostID,
	dial func(ctx context.Context, host ownership.HostID, proto string) (net.Conn, error)) *Peers {
	return &Peers{self: ownership.HostID(self.Name), socket: socket, hosts: hosts, dial: dial}
}

// Self is this host.
func (p *Peers) Self() ownership.HostID { return p.self }

// Hosts lists the hosts, this one included.
func (p *Peers) Hosts() []ownership.HostID { return p.hosts() }

// Client returns a client of a host's daemon: of this one's by its socket. It
// holds nothing, and need not be closed.
func (p *Peers) Client(host ownership.HostID) (*status.Client, error) {
	hosts := p.hosts()
	switch {
	case !slices.Contains(hosts, host):
		names := make([]string, 0, len(hosts))
		for _, h := range hosts {
			names = append(names, string(h))
		}
		return nil, fmt.Errorf("no host %q in the configuration: it has %s", host, strings.Join(names, ", "))
	case host == p.self:
		return status.NewClient(p.socket), nil
	}
	return status.NewPeerClient(host, func(ctx context.Context) (net.Conn, error) { return p.dial(ctx, host, ProtocolAPI) }), nil
}

// servePeers answers the other hosts until ctx ends. It is no part of protecting
// guests: its end ends nothing else.
func servePeers(ctx context.Context, o Options, port *transport.Port, server *status.Server) {
	name := func(c net.Conn) ownership.HostID { return ownership.HostID(transport.PeerName(c)) }
	if err := server.ServePeers(ctx, port.Protocol(ProtocolAPI), name); err != nil && ctx.Err() == nil {
		o.Slog.Error("other hosts cannot ask this one any more; a restart mends that", "err", err)
	}
}

// ownerIn tells a guest's owner from what a voter has applied.
func ownerIn(voter *failover.Node) func(guest string) ownership.HostID {
	return func(guest string) ownership.HostID { return voter.Guests()[guest].Owner }
}
