package failover

// stream.go: the connections. An acceptor verifies who has connected, in a
// goroutine per connection, before anything is read from it; raft's stream
// layer stands on it, and so does the RPC server. conns closes them all at the
// end, since raft leaves the ones it accepted open.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"understudy/ownership"
)

// conns is the set of a node's open connections.
type conns struct {
	mu     sync.Mutex
	open   map[*trackedConn]struct{}
	closed bool
}

type trackedConn struct {
	net.Conn
	set  *conns
	peer ownership.HostID // under set.mu; "" while it is not known
	once sync.Once
}

// add takes over c; it is closed at once if the set is closed already.
func (s *conns) add(c net.Conn) net.Conn {
	t := &trackedConn{Conn: c, set: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return t
	}
	if s.open == nil {
		s.open = map[*trackedConn]struct{}{}
	}
	s.open[t] = struct{}{}
	return t
}

// of notes whose connection c is, which add has returned.
func (s *conns) of(c net.Conn, peer ownership.HostID) {
	if t, ok := c.(*trackedConn); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		t.peer = peer
	}
}

// closeOf closes the connections that a peer has made.
func (s *conns) closeOf(peer ownership.HostID) {
	s.mu.Lock()
	var all []*trackedConn
	for c := range s.open {
		if c.peer == peer {
			all = append(all, c)
		}
	}
	s.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

func (t *trackedConn) Close() error {
	err := net.ErrClosed
	t.once.Do(func() {
		t.set.mu.Lock()
		delete(t.set.open, t)
		t.set.mu.Unlock()
		err = t.Conn.Close()
	})
	return err
}

func (s *conns) closeAll() {
	s.mu.Lock()
	s.closed = true
	var all []*trackedConn
	for c := range s.open {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// greetTimeout bounds the verification of a peer (the TLS handshake).
const greetTimeout = 5 * time.Second

// maxGreeting bounds the connections being verified at one time.
const maxGreeting = 64

// accept takes connections from l until it is closed and hands those of the
// other voters to serve, each in its own goroutine.
func (n *Node) accept(l net.Listener, what string, serve func(net.Conn, ownership.HostID)) {
	slots := make(chan struct{}, maxGreeting)
	var wait time.Duration
	for {
		c, err := l.Accept()
		if err != nil {
			if n.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: slow down instead of spinning.
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			n.log.Warn("cannot accept a connection", "protocol", what, "err", err, "retry in", wait)
			select {
			case <-time.After(wait):
			case <-n.ctx.Done():
				return
			}
			continue
		}
		wait = 0
		conn := n.conns.add(c)
		select {
		case slots <- struct{}{}:
		default:
			n.log.Warn("too many connections are being verified", "protocol", what, "from", c.RemoteAddr())
			_ = conn.Close()
			continue
		}
		if !n.spawn(func() {
			_ = c.SetDeadline(time.Now().Add(greetTimeout))
			peer := n.cfg.PeerName(c)
			_ = c.SetDeadline(time.Time{})
			<-slots
			// Noted before it is looked up: whoever removes the peer meanwhile closes it.
			n.conns.of(conn, peer)
			if !n.isPeer(peer) {
				n.log.Warn("refused a connection: its peer is no voter of this cluster",
					"protocol", what, "from", c.RemoteAddr(), "name", peer)
				_ = conn.Close()
				return
			}
			serve(n.hear(conn, peer), peer)
		}) {
			_ = conn.Close()
		}
	}
}

// handled is a connection that raft handles, on a goroutine that raft does not
// wait for: Node.Close does, until it has closed the connection, the last thing
// it does.
type handled struct {
	net.Conn
	once sync.Once
	over chan struct{}
}

func (h *handled) Close() error {
	err := h.Conn.Close()
	h.once.Do(func() { close(h.over) })
	return err
}

// stream is raft's stream layer: voters are addressed by their ID.
type stream struct {
	n  *Node
	in chan net.Conn
}

func newStream(n *Node) *stream {
	s := &stream{n: n, in: make(chan net.Conn)}
	n.spawn(func() {
		n.accept(n.cfg.RaftListener, ProtocolRaft, func(c net.Conn, _ ownership.HostID) {
			select {
			case s.in <- c:
			case <-n.ctx.Done():
				_ = c.Close()
			}
		})
	})
	return s
}

// Accept implements net.Listener.
func (s *stream) Accept() (net.Conn, error) {
	select {
	case c := <-s.in:
		h := &handled{Conn: c, over: make(chan struct{})}
		if !s.n.spawn(func() { <-h.over }) {
			_ = c.Close()
			return nil, net.ErrClosed
		}
		return h, nil
	case <-s.n.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The listener itself is closed by Node.Close.
func (s *stream) Close() error { return nil }

// Addr implements net.Listener: the address of a voter is its ID.
func (s *stream) Addr() net.Addr { return idAddr(s.n.cfg.Self) }

// Dial implements raft.StreamLayer.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.n.ctx, timeout)
	defer cancel()
	c, err := s.n.cfg.Dial(ctx, ownership.HostID(address), ProtocolRaft)
	if err != nil {
		return nil, fmt.Errorf("raft connection to %s: %w", address, err)
	}
	conn := s.n.conns.add(c)
	s.n.conns.of(conn, ownership.HostID(address))
	return s.n.hear(conn, ownership.HostID(address)), nil
}

type idAddr ownership.HostID

func (a idAddr) Network() string { return "voter" }
func (a idAddr) String() string  { return string(a) }

// raftLog passes raft's log on to slog, one level lower: what raft calls an
// error (a peer that does not answer) is ordinary life here.
type raftLog struct{ log *slog.Logger }

func newRaftLog(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Off})
	l.RegisterSink(raftLog{log})
	return l
}

// Accept implements hclog.SinkAdapter.
func (r raftLog) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug - 4
	switch level {
	case hclog.Error:
		to = slog.LevelWarn
	case hclog.Warn:
		to = slog.LevelInfo
	case hclog.Info:
		to = slog.LevelDebug
	}
	if !r.log.Enabled(context.Background(), to) {
		return
	}
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			args[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	r.log.Log(context.Background(), to, "raft: "+msg, args...)
}
