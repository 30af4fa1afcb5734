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
	"understudy/ownership"
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
	// File is where the configuration was read, and is read again; "": it cannot be.
	File string
	// Reload asks for that, as SIGHUP does; nil: nobody does.
	Reload <-chan os.Signal
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
	book := newBook(o.Config)
	port, err := transport.Listen(ctx, self.Address, id, book.names(), o.Slog)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, port.Close()) }()
	dial := func(ctx context.Context, peer ownership.HostID, proto string) (net.Conn, error) {
		return transport.Dial(ctx, book.address(peer), string(peer), proto, id)
	}
	voter, err := failover.Open(ctx, failover.Config{
		Self: ownership.HostID(self.Name), Peers: book.peers(), Dir: filepath.Join(dirs.State, "ownership"),
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

	hosting, err := newHosting(o, self, port, voter, dial)
	if err != nil {
		return err
	}
	defer hosting.close()
	h := hosting.host
	endpoint := newEndpointKeeper(o, self)
	peers := newPeers(self, Socket(o.Config, self), book.ids, dial)
	changing := newChanging(o, self, hosting, book, port, endpoint)
	tellUp(o.record, status.Version)
	tellUndone(o.record, undone)
	var workers sync.WaitGroup
	server := status.NewServer(status.Sources{Operations: h, Slog: o.Slog, Events: told{o.record}, Bubbles: h, Peers: peers, Owner: ownerIn(voter),
		Configuration: changing, Strikes: newStrikes(ctx, o, self, &workers),
		Cluster: func() status.Cluster { return clusterOf(voter.View()) },
		Report: func() status.Report {
			return status.Report{Host: ownership.HostID(self.Name), Leader: voter.Leader(), Lease: voter.Lease(), Exits: hosting.ways(), Config: changing.brief()}
		},
	})
	var failure [2]error
	workers.Go(func() { failure[0] = server.Serve(ctx, Socket(o.Config, self)); cancel() })
	workers.Go(func() { failure[1] = h.Run(ctx); cancel() })
	workers.Go(func() { tellLeaders(ctx, o.record, voter) })
	workers.Go(func() { endpoint.serve(ctx, server) })
	workers.Go(func() { changing.listen(ctx) })
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

// prepareDir makes a directory that must exist.
func prepareDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	return nil
}
