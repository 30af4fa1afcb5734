// Package daemon puts one host together from its configuration: here, and
// nowhere else, are the adapters chosen. cmd/understudyd runs it.
//
//	config → identity, port → voter (failover)
//	       → per guest: driver, gate (guests.go, gates.go) → host
//	       → status socket
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"understudy/clock"
	"understudy/config"
	"understudy/disk/vhost"
	"understudy/events"
	"understudy/failover"
	"understudy/host"
	"understudy/ownership"
	"understudy/protocol"
	"understudy/status"
	"understudy/transport"
)

// ProtocolReplication carries the sessions between primaries and backups; it
// is the TLS ALPN name.
const ProtocolReplication = "understudy-replication/1"

// Options say which host of which configuration to be.
type Options struct {
	Config *config.Config
	Host   string
	// Helper is the command that runs dirty.HelperMain; see package
	// hypervisor/qemu.
	Helper []string
	// Strike is the command that runs StrikeMain, to which the path of a record
	// is added; nil: the host cannot be struck.
	Strike []string
	Slog   *slog.Logger
	// Linger makes the guests' disks faster; nil: not. See vhost.Linger.
	Linger *vhost.Linger
	// Histories is where a daemon built for tests writes the histories of its
	// gates; others write none.
	Histories string
	// Ready is called once the host takes part; nil for nothing.
	Ready func()
	// Supervisor is told how this daemon does; nil: nobody is.
	Supervisor Supervisor

	record *events.Log // of what happens here; Run's
}

// Socket returns the path of a host's status socket.
func Socket(c *config.Config, h config.Host) string {
	return filepath.Join(c.DirsOf(h).Run, "understudy.sock")
}

// Run is the host until ctx ends.
func Run(ctx context.Context, o Options) (err error) {
	self, ok := o.Config.Host(o.Host)
	if !ok {
		return fmt.Errorf("no [[host]] %q in the configuration", o.Host)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dirs := o.Config.DirsOf(self)
	undone := undoStrikes(dirs.State, o.Slog)
	id, err := transport.LoadIdentity(dirs.TLS, self.Name)
	if err != nil {
		return err
	}
	var names []string
	address := map[ownership.HostID]string{}
	var peers []failover.Peer
	for _, h := range o.Config.Hosts {
		names = append(names, h.Name)
		address[ownership.HostID(h.Name)] = h.Address
		peers = append(peers, failover.Peer{ID: ownership.HostID(h.Name), Address: h.Address, Witness: h.Witness})
	}
	port, err := transport.Listen(ctx, self.Address, id, names, o.Slog)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, port.Close()) }()
	dial := func(ctx context.Context, peer ownership.HostID, proto string) (net.Conn, error) {
		return transport.Dial(ctx, address[peer], string(peer), proto, id)
	}
	voter, err := failover.Open(ctx, failover.Config{
		Self: ownership.HostID(self.Name), Peers: peers, Dir: filepath.Join(dirs.State, "ownership"),
		RaftListener: port.Protocol(failover.ProtocolRaft), RPCListener: port.Protocol(failover.ProtocolRPC),
		Dial:     dial,
		PeerName: func(c net.Conn) ownership.HostID { return ownership.HostID(transport.PeerName(c)) },
		Lease:    o.Config.Lease.Std(), Log: o.Slog,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, voter.Close()) }()
	// Now that the voter has its files to itself, so has the record.
	if o.record, err = openRecord(dirs.State, ownership.HostID(self.Name), o.Slog); err != nil {
		return err
	}
	began := clock.Boot{}.Now()
	defer func() { tellDown(o.record, began, err, o.Slog) }()

	h, exits, closeHost, err := newHost(ctx, o, self, port, voter, dial)
	if err != nil {
		return err
	}
	defer closeHost()
	tellUp(o.record, status.Version)
	tellUndone(o.record, undone)
	var workers sync.WaitGroup
	server := status.NewServer(status.Sources{Operations: h, Slog: o.Slog, Events: told{o.record}, Bubbles: h, Peers: newPeers(o.Config, self, dial), Owner: ownerIn(voter),
		Strikes: newStrikes(ctx, o, self, &workers),
		Cluster: func() status.Cluster { return clusterOf(voter.View()) },
		Report: func() status.Report {
			return status.Report{Host: ownership.HostID(self.Name), Leader: voter.Leader(), Lease: voter.Lease(), Exits: exits}
		},
	})
	var failure [2]error
	workers.Go(func() { failure[0] = server.Serve(ctx, Socket(o.Config, self)); cancel() })
	workers.Go(func() { failure[1] = h.Run(ctx); cancel() })
	workers.Go(func() { tellLeaders(ctx, o.record, voter) })
	workers.Go(func() { serveAPI(ctx, o, self, server) })
	if o.Supervisor != nil {
		workers.Go(func() {
			supervise(ctx, o.Supervisor, supervised{guests: h, voter: voter, endpoint: answers{status.NewClient(Socket(o.Config, self))},
				states: h.Status, leader: voter.Leader, slog: o.Slog})
		})
	}
	workers.Go(func() { servePeers(ctx, o, port, server) })
	workers.Go(func() {
		select {
		case <-voter.Failed():
			o.Slog.Error("the ownership log has failed: this host falls silent", "err", voter.Failure())
			cancel()
		case <-ctx.Done():
		}
	})
	o.Slog.Info("understudy is up", "host", self.Name, "address", self.Address, "witness", self.Witness, "version", status.Version)
	if o.Ready != nil {
		o.Ready()
	}
	workers.Wait()
	return errors.Join(failure[0], failure[1], voter.Failure())
}

// newHost makes the host's guests; a witness has none.
func newHost(ctx context.Context, o Options, self config.Host, port *transport.Port, voter *failover.Node,
	dial func(ctx context.Context, peer ownership.HostID, proto string) (net.Conn, error)) (*host.Host, map[string][]status.Exit, func(), error) {
	wire := transport.DefaultConfig()
	wire.HeartbeatInterval = o.Config.Heartbeat.Std()
	// A dead daemon's connections are reset at once; a silent one is noticed by
	// its heartbeats, so that with the quarter of a lease that a lost session may
	// take to come back, its backup asks just when its lease has run out.
	wire.HeartbeatTimeout = max(o.Config.Lease.Std()*3/4, 3*wire.HeartbeatInterval)
	acceptor, err := transport.NewAcceptor(port.Protocol(ProtocolReplication), wire, o.Slog)
	if err != nil {
		return nil, nil, nil, err
	}
	closeAll := func() { _ = acceptor.Close() }
	exits := map[string][]status.Exit{}
	var guests []host.Guest
	recorders := map[string]recorder{}
	for _, g := range o.Config.Guests {
		if g.Host != self.Name && g.Backup != self.Name {
			continue
		}
		peer := ownership.HostID(g.Backup)
		if g.Backup == self.Name {
			peer = ownership.HostID(g.Host)
		}
		record, err := o.recorder(self, g)
		if err != nil {
			return nil, nil, nil, err
		}
		recorders[g.Name] = record
		made, err := newGuest(o, self, g, record)
		if err != nil {
			for _, other := range guests {
				_ = other.Gate.Close()
			}
			closeAll()
			return nil, nil, nil, fmt.Errorf("guest %q: %w", g.Name, err)
		}
		made.Peer = peer
		w := wire
		w.Connections = g.Protection.Connections
		made.Dial = func(ctx context.Context) (protocol.Session, error) {
			s, err := transport.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
				return dial(ctx, peer, ProtocolReplication)
			}, w, o.Slog)
			if err != nil {
				return nil, err
			}
			return record.session(Session{s}), nil
		}
		guests = append(guests, made)
		exits[g.Name] = exitsOf(o.Config, self, g)
	}
	h, err := host.New(host.Config{
		Self: ownership.HostID(self.Name), Guests: guests, Log: o.recorded(OwnershipLog{voter}, recorders), Clock: clock.Boot{}, Slog: o.Slog,
		AdoptLater: true, Events: o.record,
		Accept: func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
			s, err := acceptor.Accept(ctx)
			if err != nil {
				return nil, "", err
			}
			return Session{s}, ownership.HostID(s.Peer()), nil
		},
	})
	if err != nil {
		closeAll()
		return nil, nil, nil, err
	}
	return h, exits, closeAll, nil
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
	for _, n := range g.NICs {
		exits = append(exits, status.Exit{Device: "network " + n.MAC.String(), Held: true, Treatment: "held until its epoch is committed"})
	}
	return exits
}

// prepareDir makes a directory that must exist.
func prepareDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	return nil
}
