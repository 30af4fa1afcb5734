package integration

// A pair and a witness in one process: the simulated guest, everything else
// real (TLS, sessions, raft, leases, gates). The story of the mission: a client
// holds one connection to the guest while its host is lost, and never notices
// more than an outage.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"understudy/backup"
	"understudy/clock"
	"understudy/cmd/daemon"
	"understudy/egress"
	"understudy/failover"
	"understudy/host"
	"understudy/hypervisor/sim"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
	"understudy/transport"
	"understudy/transport/pki"
)

const lease = 1000 * time.Millisecond

// replication is the ALPN name of replication sessions.
const replication = "understudy-replication/1"

// pair is two hosts and a witness.
type pair struct {
	t     *testing.T
	dir   string
	ports map[string]string // host → address
	nodes map[string]*node
	net   *egress.Switch
}

// node is one of the three, while it is up.
type node struct {
	name    string
	machine *sim.Host
	port    *transport.Port
	voter   *failover.Node
	host    *host.Host
	link    *sim.Link
	cancel  context.CancelFunc
	done    chan struct{}
	log     *slog.Logger
}

var guestMAC = sim.MACFor("web")

func newPair(t *testing.T) *pair {
	t.Helper()
	dir, err := os.MkdirTemp("", "pair") // short: it holds Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := pki.Init(filepath.Join(dir, "tls"), []string{"a", "b", "w"}, 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, dir: dir, ports: map[string]string{}, nodes: map[string]*node{}}
	p.net, err = egress.NewSwitch(filepath.Join(dir, "switch"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.net.Close() })
	for _, h := range []string{"a", "b", "w"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.ports[h] = l.Addr().String()
		_ = l.Close()
	}
	for _, h := range []string{"a", "b", "w"} {
		p.up(h)
	}
	t.Cleanup(func() {
		for _, h := range []string{"a", "b", "w"} {
			p.kill(h)
		}
	})
	return p
}

// up starts a host.
func (p *pair) up(name string) {
	p.t.Helper()
	n := &node{name: name, done: make(chan struct{}), log: testLog(p.t).With("host", name)}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	id, err := transport.LoadIdentity(filepath.Join(p.dir, "tls"), name)
	p.must(err)
	n.port, err = transport.Listen(ctx, p.ports[name], id, []string{"a", "b", "w"}, n.log)
	p.must(err)
	dial := func(ctx context.Context, peer ownership.HostID, proto string) (net.Conn, error) {
		return transport.Dial(ctx, p.ports[string(peer)], string(peer), proto, id)
	}
	n.voter, err = failover.Open(ctx, failover.Config{
		Self:  ownership.HostID(name),
		Peers: []failover.Peer{{ID: "a", Address: p.ports["a"]}, {ID: "b", Address: p.ports["b"]}, {ID: "w", Address: p.ports["w"], Witness: true}},
		Dir:   filepath.Join(p.dir, name), RaftListener: n.port.Protocol(failover.ProtocolRaft), RPCListener: n.port.Protocol(failover.ProtocolRPC),
		Dial: dial, PeerName: func(c net.Conn) ownership.HostID { return ownership.HostID(transport.PeerName(c)) },
		Lease: lease, Log: n.log,
	})
	p.must(err)
	p.nodes[name] = n
	if name == "w" {
		close(n.done)
		return
	}
	peer := ownership.HostID("b")
	if name == "b" {
		peer = "a"
	}
	wire := transport.DefaultConfig()
	wire.HeartbeatInterval, wire.HeartbeatTimeout = 50*time.Millisecond, 1000*time.Millisecond
	acceptor, err := transport.NewAcceptor(n.port.Protocol(replication), wire, n.log)
	p.must(err)
	n.machine = sim.NewHost(name)
	gate, driver := p.guest(n)
	p.t.Cleanup(func() {
		if p.t.Failed() {
			p.t.Logf("gate of %s: %+v; switch: %+v", name, gate.Stats(), p.net.Stats())
		}
	})
	n.host, err = host.New(host.Config{
		Self: ownership.HostID(name), Log: daemon.OwnershipLog{Node: n.voter}, Clock: clock.Boot{}, Slog: n.log,
		Accept: func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
			s, err := acceptor.Accept(ctx)
			if err != nil {
				return nil, "", err
			}
			return daemon.Session{Session: s}, ownership.HostID(s.Peer()), nil
		},
		Guests: []host.Guest{{
			Name: "web", Home: "a", Peer: peer, Driver: driver, Gate: gate, Bubbles: &simGround{p},
			Primary: func(l time.Duration) primary.Config {
				c := primary.DefaultConfig("web", ownership.HostID(name), l)
				c.CaptureBytes, c.SyncStep = 8<<20, 1024
				c.VerifyAll = true
				return c
			},
			Backup: func(l time.Duration) backup.Config {
				return backup.DefaultConfig("web", ownership.HostID(name), l, 64<<20)
			},
			Dial: func(ctx context.Context) (protocol.Session, error) {
				s, err := transport.Connect(ctx, func(ctx context.Context) (net.Conn, error) { return dial(ctx, peer, replication) }, wire, n.log)
				if err != nil {
					return nil, err
				}
				return daemon.Session{Session: s}, nil
			},
		}},
	})
	p.must(err)
	go func() {
		defer close(n.done)
		_ = n.host.Run(ctx)
		_ = acceptor.Close()
	}()
}

// guest makes the gate and the driver of the simulated guest on a host.
func (p *pair) guest(n *node) (*egress.Gate, *sim.Driver) {
	path := func(s string) string { return filepath.Join(p.dir, n.name+"-"+s) }
	network, err := egress.OpenSegment(egress.SocketConfig{Local: path("port"), Remote: filepath.Join(p.dir, "switch"), UID: -1, GID: -1})
	p.must(err)
	inner, outer := egress.NewPipe(256)
	gate, err := egress.NewGate(egress.Config{Guest: outer, Network: network, Clock: clock.Boot{}, MAC: guestMAC, Log: n.log})
	p.must(err)
	cfg := pairGuest()
	n.link = sim.NewLink(inner, egress.ErrEmpty)
	cfg.NIC = n.link
	driver, err := sim.NewDriver(n.machine, cfg)
	p.must(err)
	return gate, driver
}

// pairGuest is the pair's guest, without a network.
func pairGuest() sim.Config {
	cfg := sim.DefaultConfig("web")
	cfg.MAC, cfg.Pages, cfg.Interval = guestMAC, 2048, 2*time.Millisecond
	return cfg
}

// kill takes a host away at once: nothing of it says goodbye.
func (p *pair) kill(name string) {
	n := p.nodes[name]
	if n == nil {
		return
	}
	delete(p.nodes, name)
	if n.machine != nil {
		n.machine.Kill()
	}
	_ = n.port.Close()
	n.cancel()
	_ = n.voter.Close()
	<-n.done
	if n.link != nil {
		_ = n.link.Close()
	}
}

func (p *pair) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// primary returns the host that runs the guest, once its backup is in sync.
func (p *pair) protected(within time.Duration) string {
	p.t.Helper()
	var last string
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		last = ""
		for name, n := range p.nodes {
			if n.host == nil {
				continue
			}
			for _, g := range n.host.Status() {
				last += fmt.Sprintf("%s: %s protected=%s %+v %s; ", name, g.Role, g.Protected, g.Log, g.Problem)
				if g.Protected == host.ProtectedYes {
					return name
				}
			}
		}
		select {
		case <-deadline.C:
			p.t.Fatalf("not protected within %v: %s", within, last)
		case <-tick.C:
		}
	}
}

// client connects to the guest through the virtual switch.
func (p *pair) client(ctx context.Context) *sim.Client {
	port, err := egress.OpenSegment(egress.SocketConfig{Local: filepath.Join(p.dir, "client"), Remote: filepath.Join(p.dir, "switch"), UID: -1, GID: -1})
	p.must(err)
	link := sim.NewLink(port, egress.ErrEmpty)
	c, err := sim.NewClient(sim.ClientConfig{Guest: guestMAC, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0x99}, NIC: link})
	p.must(err)
	var done sync.WaitGroup
	done.Go(func() {
		if err := c.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			p.t.Errorf("client: %v", err)
		}
		_ = link.Close()
	})
	p.t.Cleanup(done.Wait)
	return c
}

// testLog shows what the hosts say when the test fails.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// TestSimulatedGuestSurvivesItsHosts loses the primary again and again; the
// lost host comes back each time and becomes the backup.
func TestSimulatedGuestSurvivesItsHosts(t *testing.T) {
	p := newPair(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	owner := p.protected(20 * time.Second)
	if owner != "a" {
		t.Fatalf("%s runs the guest, its home is a", owner)
	}
	c := p.client(ctx)
	p.must(c.WaitLine(ctx, 20))
	for round := range 4 {
		before := c.Report().Lines
		p.kill(owner)
		killed := time.Now()
		p.must(c.WaitLine(ctx, before+20))
		t.Logf("round %d: %s killed at line %d; 20 lines later after %v, longest gap %v", round, owner, before, time.Since(killed), c.Report().LongestGap)
		p.up(owner)
		now := p.protected(20 * time.Second)
		if now == owner {
			t.Fatalf("round %d: the host that was killed runs the guest again", round)
		}
		owner = now
	}
	p.must(c.Report().Err())
	cancel()
}
