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
	"understudy/status/samples"
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
	// Command is how this daemon was started, the program's absolute path first;
	// none: it cannot be upgraded in place.
	Command []string
	// From is the daemon that this one takes the place of; nil: none.
	From *Predecessor

	record    *events.Log // of what happens here; Run's
	failed    error       // why the upgrade of this daemon failed; nil: none has
	inherited *inheritance
	keeping   *keeping
}

// Socket returns the path of a host's status socket.
func Socket(c *config.Config, h config.Host) string {
	return filepath.Join(c.DirsOf(h).Run, "understudy.sock")
}

// Run is the host until ctx ends, or until another daemon has taken its place.
func Run(ctx context.Context, o Options) error {
	self, ok := o.Config.Host(o.Host)
	if !ok {
		return fmt.Errorf("no [[host]] %q in the configuration", o.Host)
	}
	id, err := transport.LoadIdentity(o.Config.DirsOf(self).TLS, self.Name)
	if err != nil {
		return err
	}
	id.Follow(o.Slog)
	if o.From != nil {
		if o.inherited, err = o.From.await(ctx); err != nil {
			return err
		}
	}
	for {
		l, err := live(ctx, o, self, id)
		if l == nil || l.next == nil {
			return err
		}
		if err != nil {
			o.Slog.Warn("not everything was closed cleanly", "err", err)
		}
		if o.inherited, err = l.handOn(ctx); err == nil {
			o.Slog.Info("another daemon has taken this one's place", "version", l.next.version, "pid", l.next.cmd.Process.Pid)
			return nil
		}
		// It is gone, and whatever it has opened with it.
		o.Slog.Error("the new daemon did not come up: this one goes on", "err", err)
		o.From, o.failed = nil, err
	}
}

// live is one life of the daemon: more than one has only a daemon whose upgrade
// failed late.
func live(signals context.Context, o Options, self config.Host, id *transport.Identity) (l *leaver, err error) {
	// A signal ends it, too, but in good order.
	ctx, cancel := context.WithCancel(context.WithoutCancel(signals))
	defer cancel()
	o.keeping = &keeping{}
	defer o.inherited.rest()
	dirs := o.Config.DirsOf(self)
	undone := undoStrikes(dirs.State, o.Slog)
	book := openBook(dirs.State, o.Config, o.Slog)
	port, err := transport.Listen(ctx, self.Address, id, book.names(), o.Slog)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, port.Close()) }()
	dial := func(ctx context.Context, peer ownership.HostID, proto string) (net.Conn, error) {
		return transport.Dial(ctx, book.address(peer), string(peer), proto, id)
	}
	voter, err := failover.Open(ctx, failover.Config{
		Self: ownership.HostID(self.Name), Peers: book.peers(), Former: book.formerPeers(), Dir: filepath.Join(dirs.State, "ownership"),
		RaftListener: port.Protocol(failover.ProtocolRaft), RPCListener: port.Protocol(failover.ProtocolRPC),
		Dial:     dial,
		PeerName: func(c net.Conn) ownership.HostID { return ownership.HostID(transport.PeerName(c)) },
		Lease:    o.Config.Lease.Std(), Log: o.Slog,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, voter.Close()) }()
	// Now that the voter has its files to itself, so has the record.
	if o.record, err = openRecord(dirs.State, ownership.HostID(self.Name), o.Slog); err != nil {
		return nil, err
	}
	began := clock.Boot{}.Now()
	defer func() { tellDown(o.record, began, err, o.Slog) }()

	peers := newPeers(self, Socket(o.Config, self), book.ids, dial)
	hosting, err := newHosting(o, self, port, voter, dial, peers)
	if err != nil {
		return nil, err
	}
	defer hosting.close()
	o.inherited.rest()
	h := hosting.host
	endpoint := newEndpointKeeper(o, self)
	changing := newChanging(o, self, hosting, book, port, voter, endpoint)
	tellUp(o.record, status.Version)
	tellUndone(o.record, undone)
	l = &leaver{o: o, self: ownership.HostID(self.Name), voter: voter, host: h, keeping: o.keeping, upgrades: make(chan *upgrade), log: o.Slog}
	var workers sync.WaitGroup
	drills, err := newRunner(o, self, changing.now, peers)
	if err != nil {
		return nil, err
	}
	changing.changed = drills.Changed
	past := samples.NewKeeper(ownership.HostID(self.Name))
	server := status.NewServer(status.Sources{Operations: h, Slog: o.Slog, Events: told{o.record}, Bubbles: h, Peers: peers, Owner: ownerIn(voter),
		Drills: drills, BootID: bootID(), Configuration: changing, Members: members{voter}, Strikes: newStrikes(ctx, o, self, changing.now, &workers),
		Cluster: func() status.Cluster { return clusterOf(voter.View()) }, Upgrades: l, Samples: past,
		Report: func() status.Report {
			return status.Report{PID: os.Getpid(), Host: ownership.HostID(self.Name), Leader: voter.Leader(), Lease: voter.Lease(), Exits: hosting.ways(), Config: changing.brief(),
				Certificates: []status.Certificate{{Of: "host", Until: id.NotAfter()}, {Of: "authority", Until: id.AuthorityNotAfter()}}}
		},
	})
	var failure [2]error
	workers.Go(func() { failure[0] = server.Serve(ctx, Socket(o.Config, self)); cancel() })
	workers.Go(func() { failure[1] = h.Run(ctx); cancel() })
	workers.Go(func() { l.run(ctx, signals.Done(), cancel) })
	workers.Go(func() { tellLeaders(ctx, o.record, voter) })
	workers.Go(func() { endpoint.serve(ctx, server) })
	workers.Go(func() { changing.listen(ctx) })
	workers.Go(func() { changing.follow(ctx, peers) })
	workers.Go(func() { drills.Run(ctx) })
	workers.Go(func() { past.Run(ctx, clock.Boot{}, h.Status) })
	workers.Go(func() { followMembers(ctx, o, voter, book, port) })
	if o.Supervisor != nil {
		workers.Go(func() {
			supervise(ctx, supervisor{o.Supervisor, l}, supervised{guests: h, voter: voter, endpoint: answers{status.NewClient(Socket(o.Config, self))},
				settled: h.Settled, states: h.Status, leader: voter.Leader, slog: o.Slog})
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
	l.tellBegan(ctx)
	if o.Ready != nil {
		o.Ready()
	}
	workers.Wait()
	return l, errors.Join(failure[0], failure[1], voter.Failure())
}

// prepareDir makes a directory that must exist.
func prepareDir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	return nil
}
