package failover

// cluster_test.go: three real voters in one process, over loopback TCP, and
// the network between them, which a test can cut, delay and heal.

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	hostA   = ownership.HostID("a")
	hostB   = ownership.HostID("b")
	witness = ownership.HostID("w")
	guest   = "web"
)

// network carries every connection of a cluster. A voter that is cut off sends
// into the void; what it sent arrives when it is healed, late, or never.
type network struct {
	mu      sync.Mutex
	cut     map[[2]ownership.HostID]bool
	changed chan struct{}
	wires   map[*pairOfConns]struct{}
	wg      sync.WaitGroup
}

type pairOfConns struct {
	from, to ownership.HostID
	near     net.Conn // the proxy's end towards the dialler
	far      net.Conn // the proxy's end towards the listener
}

func (p *pairOfConns) close() { _ = p.near.Close(); _ = p.far.Close() }

func newNetwork() *network {
	return &network{cut: map[[2]ownership.HostID]bool{}, changed: make(chan struct{}), wires: map[*pairOfConns]struct{}{}}
}

// dial connects and says who is calling: the stand-in for a certificate.
func (w *network) dial(ctx context.Context, from, to ownership.HostID, addr string) (net.Conn, error) {
	if err := w.passes(ctx, from, to); err != nil {
		return nil, err
	}
	var d net.Dialer
	far, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if _, err := far.Write(append([]byte{byte(len(from))}, from...)); err != nil {
		return nil, errors.Join(err, far.Close())
	}
	near, client := net.Pipe()
	p := &pairOfConns{from: from, to: to, near: near, far: far}
	w.mu.Lock()
	w.wires[p] = struct{}{}
	w.mu.Unlock()
	w.wg.Go(func() { w.pump(p, near, far, from, to) })
	w.wg.Go(func() { w.pump(p, far, near, to, from) })
	return client, nil
}

// peerName reads what dial wrote.
func peerName(c net.Conn) ownership.HostID {
	var n [1]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return ""
	}
	name := make([]byte, n[0])
	if _, err := io.ReadFull(c, name); err != nil {
		return ""
	}
	return ownership.HostID(name)
}

// pump carries bytes one way. It takes them at once, like a kernel's buffer,
// and hands them on when the way is open.
func (w *network) pump(p *pairOfConns, src, dst net.Conn, from, to ownership.HostID) {
	q := make(chan []byte, 1<<12)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(q)
	wg.Go(func() {
		for b := range q {
			_ = w.passes(context.Background(), from, to)
			if _, err := dst.Write(b); err != nil {
				break
			}
		}
		_ = w.passes(context.Background(), from, to)
		p.close()
		w.mu.Lock()
		delete(w.wires, p)
		w.mu.Unlock()
		for range q {
		}
	})
	for {
		b := make([]byte, 2<<10)
		n, err := src.Read(b)
		if n > 0 {
			q <- b[:n]
		}
		if err != nil {
			return
		}
	}
}

// passes waits until the way is open.
func (w *network) passes(ctx context.Context, from, to ownership.HostID) error {
	for {
		w.mu.Lock()
		cut, changed := w.cut[[2]ownership.HostID{from, to}], w.changed
		w.mu.Unlock()
		if !cut {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// block opens or shuts the way in one direction.
func (w *network) block(from, to ownership.HostID, shut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[[2]ownership.HostID{from, to}] = shut
	close(w.changed)
	w.changed = make(chan struct{})
}

// isolate cuts a voter off from the others.
func (w *network) isolate(h ownership.HostID, from ...ownership.HostID) {
	for _, o := range from {
		w.block(h, o, true)
		w.block(o, h, true)
	}
}

// heal opens every way. What was on its way arrives now, unless lost.
func (w *network) heal(lost bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := range w.wires {
		if lost && (w.cut[[2]ownership.HostID{p.from, p.to}] || w.cut[[2]ownership.HostID{p.to, p.from}]) {
			p.close()
		}
	}
	clear(w.cut)
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *network) close() {
	w.heal(false)
	w.mu.Lock()
	for p := range w.wires {
		p.close()
	}
	w.mu.Unlock()
	w.wg.Wait()
}

// cluster is three voters.
type cluster struct {
	t     testing.TB
	net   *network
	lease time.Duration
	prof  Profile
	dir   map[ownership.HostID]string
	clk   map[ownership.HostID]clock.Clock
	addr  map[ownership.HostID]map[string]string // by protocol
	mu    sync.Mutex
	node  map[ownership.HostID]*Node
	ctx   context.Context
}

func hosts() []Peer { return []Peer{{ID: hostA}, {ID: hostB}, {ID: witness, Witness: true}} }

// newCluster starts three voters. Nothing but the tests' own deadline of 30 s
// ends a wait that does not come true.
func newCluster(t testing.TB, lease time.Duration) *cluster {
	return newClusterWith(t, lease, Profile{})
}

func newClusterWith(t testing.TB, lease time.Duration, prof Profile) *cluster {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	c := &cluster{t: t, net: newNetwork(), lease: lease, prof: prof, ctx: ctx,
		dir: map[ownership.HostID]string{}, addr: map[ownership.HostID]map[string]string{},
		clk: map[ownership.HostID]clock.Clock{}, node: map[ownership.HostID]*Node{}}
	t.Cleanup(func() {
		cancel()
		c.net.heal(true)
		for id := range c.node {
			c.stop(id)
		}
		c.net.close()
	})
	for _, p := range hosts() {
		c.dir[p.ID] = t.TempDir()
	}
	for _, p := range hosts() {
		c.start(p.ID)
	}
	return c
}

func (c *cluster) config(id ownership.HostID) Config {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			c.t.Fatal(err)
		}
		return l
	}
	log := slog.New(slog.NewTextHandler(c.t.Output(), nil)).With("node", id)
	cfg := Config{Self: id, Peers: hosts(), Dir: c.dir[id], Lease: c.lease, Profile: c.prof, Log: log, Clock: c.clk[id],
		RaftListener: listen(), RPCListener: listen(), PeerName: peerName,
		Dial: func(ctx context.Context, peer ownership.HostID, protocol string) (net.Conn, error) {
			c.mu.Lock()
			addr := c.addr[peer][protocol]
			c.mu.Unlock()
			return c.net.dial(ctx, id, peer, addr)
		}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addr[id] = map[string]string{ProtocolRaft: cfg.RaftListener.Addr().String(), ProtocolRPC: cfg.RPCListener.Addr().String()}
	return cfg
}

func (c *cluster) start(id ownership.HostID) *Node {
	c.t.Helper()
	n, err := Open(c.ctx, c.config(id))
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node[id] = n
	return n
}

func (c *cluster) stop(id ownership.HostID) {
	c.t.Helper()
	c.mu.Lock()
	n := c.node[id]
	delete(c.node, id)
	c.mu.Unlock()
	if n == nil {
		return
	}
	if err := n.Close(); err != nil {
		c.t.Errorf("close %s: %v", id, err)
	}
}

// until waits for a condition.
func (c *cluster) until(what string, cond func() bool) {
	c.t.Helper()
	for !cond() {
		select {
		case <-c.ctx.Done():
			c.t.Fatalf("never came true: %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// leads waits until the voter leads, its reign having begun.
func (c *cluster) leads(id ownership.HostID) {
	c.t.Helper()
	c.until(string(id)+" leads", func() bool {
		rs := &c.node[id].reigns
		rs.mu.Lock()
		defer rs.mu.Unlock()
		return rs.current != nil && rs.current.ctx.Err() == nil
	})
}

// leader waits until some voter leads and returns it.
func (c *cluster) leader() ownership.HostID {
	c.t.Helper()
	var id ownership.HostID
	c.until("somebody leads", func() bool {
		for i, n := range c.node {
			n.reigns.mu.Lock()
			if r := n.reigns.current; r != nil && r.ctx.Err() == nil {
				id = i
			}
			n.reigns.mu.Unlock()
		}
		return id != ""
	})
	return id
}

// do proposes on behalf of a host at its newest state and must succeed.
func (c *cluster) do(h ownership.HostID, k ownership.Kind, b ownership.Backup) ownership.Guest {
	c.t.Helper()
	st, err := c.try(c.ctx, h, k, b)
	if err != nil {
		c.t.Fatal(err)
	}
	return st
}

func (c *cluster) command(ctx context.Context, h ownership.HostID, k ownership.Kind, b ownership.Backup) (ownership.Command, error) {
	now, err := c.at(h).Read(ctx, guest)
	return ownership.Command{ID: ownership.NewCommandID(), Guest: guest, Kind: k, Host: h,
		Generation: now.Generation, Revision: now.Revision, Backup: b}, err
}

func (c *cluster) try(ctx context.Context, h ownership.HostID, k ownership.Kind, b ownership.Backup) (ownership.Guest, error) {
	cmd, err := c.command(ctx, h, k, b)
	if err != nil {
		return ownership.Guest{}, err
	}
	return c.at(h).Propose(ctx, cmd)
}

// at is a voter, while others come and go.
func (c *cluster) at(h ownership.HostID) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.node[h]
}

// protected starts the guest on A with an image in sync on B.
func (c *cluster) protected() (ownership.Guest, ownership.Backup) {
	c.t.Helper()
	c.leads(witness)
	c.do(hostA, ownership.Start, ownership.Backup{})
	b := ownership.Backup{Host: hostB, Image: epoch.NewIncarnation(), Epoch: 1}
	return c.do(hostA, ownership.InSync, b), b
}

func (c *cluster) renew(h ownership.HostID, g epoch.Generation) Grant {
	c.t.Helper()
	grant, err := c.node[h].Renew(c.ctx, guest, g)
	if err != nil {
		c.t.Fatal(err)
	}
	return grant
}
