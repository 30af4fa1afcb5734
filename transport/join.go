package transport

// How connections become a session. The dialer opens all of them and sends a
// hello with the session's id on each; the acceptor gathers them by id and peer,
// and answers on all when the last one is there. Half a session never lives:
// what does not become whole in time is closed, on both sides.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// joinTimeout bounds the time from the first connection of a session to
	// the last answer.
	joinTimeout = 10 * time.Second
	// maxPending and maxHellos bound what an acceptor holds for dialers that
	// never finish; maxReady what nobody has accepted yet.
	maxPending = 32
	maxHellos  = 64
	maxReady   = 16
)

// Connect opens a session: it calls dial for each of cfg.Connections and
// returns when the acceptor has all of them. It owns the connections it gets.
func Connect(ctx context.Context, dial func(ctx context.Context) (net.Conn, error), cfg Config, log *slog.Logger) (*Session, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	ours := helloOf(cfg)
	ours.lanes = cfg.Connections
	rand.Read(ours.id[:]) // never fails, see crypto/rand

	conns := make([]net.Conn, cfg.Connections)
	answers := make([]hello, cfg.Connections)
	errs := make(chan error, cfg.Connections)
	for i := range conns {
		go func() {
			h := ours
			h.lane = i
			var err error
			conns[i], answers[i], err = join(ctx, dial, h)
			errs <- err
		}()
	}
	var first error
	for range conns {
		if err := <-errs; err != nil && first == nil {
			first = err
			cancel() // the other connections are of no use now
		}
	}
	if first == nil {
		first = agree(ours, answers, conns)
	}
	if first != nil {
		for _, conn := range conns {
			if conn != nil {
				hardClose(conn)
			}
		}
		return nil, fmt.Errorf("connect a session: %w", first)
	}
	return newSession(ours.id, conns, answers[0], cfg, log), nil
}

func helloOf(cfg Config) hello {
	return hello{maxMessage: cfg.MaxMessage, window: uint64(cfg.Window), interval: cfg.HeartbeatInterval, timeout: cfg.HeartbeatTimeout}
}

// join opens one connection, says hello and waits for the answer.
func join(ctx context.Context, dial func(ctx context.Context) (net.Conn, error), ours hello) (net.Conn, hello, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, hello{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	theirs, err := exchange(conn, ours)
	if !stop() {
		// The deadline in the past may be set at any moment now.
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		return conn, hello{}, fmt.Errorf("connection %d: %w", ours.lane, err)
	}
	return conn, theirs, nil
}

func exchange(conn net.Conn, ours hello) (hello, error) {
	if err := sendHello(conn, ours); err != nil {
		return hello{}, fmt.Errorf("say hello: %w", err)
	}
	theirs, err := readHello(conn)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the peer closed the connection, its log may say why: %w", err)
	}
	if err != nil {
		return hello{}, fmt.Errorf("wait for the answer to the hello: %w", err)
	}
	if theirs.id != ours.id || theirs.lane != ours.lane || theirs.lanes != ours.lanes {
		return hello{}, fmt.Errorf("%w: the answer is for connection %d of session %v (%d connections)", ErrBadFrame, theirs.lane, theirs.id, theirs.lanes)
	}
	return theirs, nil
}

func sendHello(conn net.Conn, h hello) error {
	frame := h.append(make([]byte, headerSize, headerSize+helloSize))
	seal(frame, header{typ: frameHello, lane: uint16(h.lane), session: h.id.tag()})
	_, err := conn.Write(frame)
	return err
}

// refusedError is a peer's refusal, in its own words.
type refusedError struct{ reason string }

func (e *refusedError) Error() string { return "the peer refused the session: " + e.reason }

func readHello(conn net.Conn) (hello, error) {
	var buf [headerSize + maxReason]byte
	h, payload, err := readSmall(conn, &buf)
	if err != nil {
		return hello{}, err
	}
	if h.typ == frameRefuse {
		return hello{}, &refusedError{fmt.Sprintf("%q", payload)}
	}
	if h.typ != frameHello || h.sequence != 0 {
		return hello{}, fmt.Errorf("%w: type %d, number %d, where a hello is due", ErrBadFrame, h.typ, h.sequence)
	}
	theirs, err := parseHello(payload)
	if err != nil {
		return hello{}, err
	}
	if h.session != theirs.id.tag() || int(h.lane) != theirs.lane {
		return hello{}, fmt.Errorf("%w: header and payload of the hello name different sessions", ErrBadFrame)
	}
	return theirs, nil
}

// agree checks what must fit between the two sides, and that all connections
// lead to the same peer.
func agree(ours hello, theirs []hello, conns []net.Conn) error {
	for i, t := range theirs {
		if a, b := PeerName(conns[i]), PeerName(conns[0]); a != b {
			return fmt.Errorf("connection %d leads to host %q, connection 0 to host %q", i, a, b)
		}
		if t.maxMessage != theirs[0].maxMessage || t.window != theirs[0].window || t.interval != theirs[0].interval || t.timeout != theirs[0].timeout {
			return fmt.Errorf("%w: the hellos of connections 0 and %d differ", ErrBadFrame, i)
		}
		if 2*t.interval > ours.timeout || 2*ours.interval > t.timeout {
			return fmt.Errorf("heartbeats do not fit: this side sends one every %v and gives up after %v, the peer %v and %v; set both hosts alike",
				ours.interval, ours.timeout, t.interval, t.timeout)
		}
	}
	return nil
}

// Acceptor turns the connections of a listener into sessions.
type Acceptor struct {
	l     net.Listener
	log   *slog.Logger
	fails *refusals
	ready chan *Session
	done  chan struct{}
	wg    sync.WaitGroup

	mu      sync.Mutex
	cfg     Config // of sessions to come
	closed  bool
	greeted map[net.Conn]bool // connections whose hello has not come yet
	pending map[pendingKey]*pendingSession
}

type pendingKey struct {
	peer string
	id   sessionID
}

// pendingSession is a session that lacks connections.
type pendingSession struct {
	conns  []net.Conn
	hellos []hello
	have   int
	timer  *time.Timer
}

// NewAcceptor serves the listener, which it owns from now on, until Close. cfg
// must be valid.
func NewAcceptor(l net.Listener, cfg Config, log *slog.Logger) (*Acceptor, error) {
	if err := cfg.Validate(); err != nil {
		_ = l.Close()
		return nil, err
	}
	a := &Acceptor{
		l: l, cfg: cfg, log: log, fails: newRefusals(log),
		ready: make(chan *Session, maxReady), done: make(chan struct{}),
		greeted: make(map[net.Conn]bool), pending: make(map[pendingKey]*pendingSession),
	}
	a.wg.Go(a.acceptLoop)
	return a, nil
}

// SetConfig changes the settings of the sessions that begin from now on.
func (a *Acceptor) SetConfig(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cfg = cfg
	return nil
}

func (a *Acceptor) config() Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg
}

// Accept returns the next whole session, or net.ErrClosed after Close.
func (a *Acceptor) Accept(ctx context.Context) (*Session, error) {
	select {
	case <-a.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case s := <-a.ready:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-a.done:
		return nil, net.ErrClosed
	}
}

// Close closes the listener, every connection that is not part of an accepted
// session, and waits for the acceptor's goroutines. Accepted sessions live on.
func (a *Acceptor) Close() error {
	a.mu.Lock()
	if !a.closed {
		a.closed = true
		close(a.done)
		_ = a.l.Close()
		for conn := range a.greeted {
			hardClose(conn)
		}
		for key := range a.pending {
			a.drop(key)
		}
	}
	a.mu.Unlock()
	a.wg.Wait()
	for {
		select {
		case s := <-a.ready:
			_ = s.Close() // always nil
		default:
			return nil
		}
	}
}

func (a *Acceptor) acceptLoop() {
	for {
		conn, err := a.l.Accept()
		if err != nil {
			select {
			case <-a.done:
				return
			default:
			}
			a.fails.refuse(a.l.Addr().String(), err)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case <-a.done:
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		a.mu.Lock()
		full := len(a.greeted) >= maxHellos
		admitted := !full && !a.closed
		if admitted {
			a.greeted[conn] = true
		}
		a.mu.Unlock()
		if !admitted {
			hardClose(conn)
			if full {
				a.fails.refuse(nameOf(conn), fmt.Errorf("%d connections have not said hello yet", maxHellos))
			}
			continue
		}
		a.wg.Go(func() { a.welcome(conn) })
	}
}

// welcome reads the hello of one connection and puts it to its session; the
// goroutine of the last connection starts it.
func (a *Acceptor) welcome(conn net.Conn) {
	err := conn.SetDeadline(time.Now().Add(joinTimeout))
	var h hello
	if err == nil {
		h, err = readHello(conn)
	}
	if err != nil {
		err = fmt.Errorf("hello: %w", err)
	}
	var whole *pendingSession
	a.mu.Lock()
	delete(a.greeted, conn)
	switch {
	case a.closed:
		err = net.ErrClosed
	case err == nil:
		whole, err = a.gather(conn, h)
	}
	a.mu.Unlock()
	if err != nil {
		a.refuse([]net.Conn{conn}, h, err)
		return
	}
	if whole == nil {
		return
	}
	if err := a.begin(whole); err != nil {
		a.refuse(whole.conns, h, err)
	}
}

// gather, under mu, files a connection and returns its session when it is
// whole. A connection that does not fit takes the whole session down.
func (a *Acceptor) gather(conn net.Conn, h hello) (*pendingSession, error) {
	key := pendingKey{PeerName(conn), h.id}
	p := a.pending[key]
	if p == nil {
		if len(a.pending) >= maxPending {
			return nil, fmt.Errorf("%d sessions wait for their other connections already", maxPending)
		}
		p = &pendingSession{conns: make([]net.Conn, h.lanes), hellos: make([]hello, h.lanes)}
		p.timer = time.AfterFunc(joinTimeout, func() { a.expire(key, p) })
		a.pending[key] = p
	}
	if len(p.conns) != h.lanes || p.conns[h.lane] != nil {
		a.drop(key)
		return nil, fmt.Errorf("%w: connection %d of %d is there already, or the session has %d", ErrBadFrame, h.lane, h.lanes, len(p.conns))
	}
	p.conns[h.lane], p.hellos[h.lane] = conn, h
	if p.have++; p.have < h.lanes {
		return nil, nil
	}
	p.timer.Stop()
	delete(a.pending, key)
	return p, nil
}

// drop, under mu, gives a pending session up.
func (a *Acceptor) drop(key pendingKey) {
	p := a.pending[key]
	delete(a.pending, key)
	p.timer.Stop()
	for _, conn := range p.conns {
		if conn != nil {
			hardClose(conn)
		}
	}
}

func (a *Acceptor) expire(key pendingKey, p *pendingSession) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending[key] == p {
		a.drop(key)
		a.fails.refuse(key.peer, fmt.Errorf("session %v had %d of %d connections after %v", key.id, p.have, len(p.conns), joinTimeout))
	}
}

// begin answers the hellos and starts the session.
func (a *Acceptor) begin(p *pendingSession) error {
	cfg := a.config()
	ours := helloOf(cfg)
	if err := agree(ours, p.hellos, p.conns); err != nil {
		return err
	}
	if len(a.ready) == cap(a.ready) {
		return fmt.Errorf("%d sessions wait to be accepted already", maxReady)
	}
	for i, conn := range p.conns {
		answer := ours
		answer.id, answer.lane, answer.lanes = p.hellos[i].id, i, len(p.conns)
		err := sendHello(conn, answer)
		if err == nil {
			err = conn.SetDeadline(time.Time{})
		}
		if err != nil {
			return fmt.Errorf("answer the hello of connection %d: %w", i, err)
		}
	}
	s := newSession(p.hellos[0].id, p.conns, p.hellos[0], cfg, a.log)
	a.mu.Lock()
	queued := false
	if !a.closed {
		select {
		case a.ready <- s:
			queued = true
		default:
		}
	}
	a.mu.Unlock()
	if !queued {
		_ = s.Close() // always nil
	}
	return nil
}

// refuse tells the peer why, and closes.
func (a *Acceptor) refuse(conns []net.Conn, h hello, reason error) {
	if !errors.Is(reason, net.ErrClosed) {
		text := reason.Error()
		text = text[:min(len(text), maxReason)]
		for i, conn := range conns {
			frame := append(make([]byte, headerSize, headerSize+len(text)), text...)
			seal(frame, header{typ: frameRefuse, lane: uint16(i), session: h.id.tag()})
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			_, _ = conn.Write(frame) // a courtesy: the log has the reason as well
		}
	}
	a.fails.refuse(nameOf(conns[0]), reason)
	for _, conn := range conns {
		hardClose(conn)
	}
}

func nameOf(conn net.Conn) string {
	if name := PeerName(conn); name != "" {
		return name + " at " + conn.RemoteAddr().String()
	}
	return conn.RemoteAddr().String()
}

// keepResponsive keeps the unsent data in a connection's socket buffer small,
// so that a heartbeat does not queue behind megabytes (TCP_NOTSENT_LOWAT,
// tcp(7)). It is an improvement only, and connections in tests are no sockets.
func keepResponsive(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxNotSent)
	})
}

// maxNotSent is in bytes.
const maxNotSent = 128 << 10
