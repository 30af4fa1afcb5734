package transport

// One TCP port serves every protocol of a host. A connection passes through
// this file top down: accept (never blocked by a peer), handshake in its own
// bounded goroutine, queue of its protocol, welcome when the protocol's owner
// takes it. Whatever goes wrong on the way ends in refuse, which logs it.
//
// The port is opened with SO_REUSEPORT, so that a new daemon listens before the
// old one lets go. Connections the old one has not taken are closed without a
// welcome; Dial then tries again and reaches the new one.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	reuseport "github.com/libp2p/go-reuseport"
	"golang.org/x/sys/unix"
)

const (
	// handshakeTimeout bounds a handshake, from accept to the last byte.
	handshakeTimeout = 5 * time.Second
	// maxHandshakes and maxHandshakesPerAddress bound the handshakes in flight
	// (some 50 KiB each). The second is smaller so that one address cannot
	// shut the others out.
	maxHandshakes           = 256
	maxHandshakesPerAddress = 64
	// backlog is how many connections wait until their protocol's owner takes
	// them; more are refused.
	backlog = 64
	// maxProtocol is the longest name of a protocol, in bytes (RFC 7301).
	maxProtocol = 255
)

// welcome is the first byte a listener sends, when its owner has taken the
// connection. TLS 1.3 alone does not tell the dialer whether its certificate
// was accepted.
const welcome = 0x06 // ASCII ACK

// The kernel's own watch over connections that carry nothing, or whose peer
// acknowledges nothing (tcp(7)). Sessions notice silence much sooner.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

const tcpUserTimeout = 10 * time.Second

// Port is the listening port of a host.
type Port struct {
	id       *Identity
	log      *refusals
	listener net.Listener
	done     chan struct{}
	stopCtx  func() bool
	wg       sync.WaitGroup

	mu          sync.Mutex
	closed      bool
	allowed     map[string]bool // replaced as a whole
	protocols   map[string]*protocolListener
	handshaking map[net.Conn]bool
	perAddress  map[string]int
}

// Listen opens the port at addr ("host:port") for the hosts in allowed. It
// serves nothing until Protocol is called. The port closes with Close, or when
// ctx ends.
func Listen(ctx context.Context, addr string, id *Identity, allowed []string, log *slog.Logger) (*Port, error) {
	lc := net.ListenConfig{
		KeepAliveConfig: keepAlive,
		Control: func(network, address string, c syscall.RawConn) error {
			if err := reuseport.Control(network, address, c); err != nil {
				return err
			}
			return setUserTimeout(c) // accepted connections inherit it
		},
	}
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("open the port of host %q at %s: %w", id.host, addr, err)
	}
	p := &Port{
		id:          id,
		log:         newRefusals(log.With("port", l.Addr().String())),
		listener:    l,
		done:        make(chan struct{}),
		protocols:   make(map[string]*protocolListener),
		handshaking: make(map[net.Conn]bool),
		perAddress:  make(map[string]int),
	}
	p.Allow(allowed)
	p.wg.Go(p.acceptLoop)
	p.stopCtx = context.AfterFunc(ctx, p.shut)
	return p, nil
}

// Allow replaces the hosts that may connect. Connections that were taken, or
// whose handshake is under way, live on.
func (p *Port) Allow(hosts []string) {
	allowed := make(map[string]bool, len(hosts))
	for _, host := range hosts {
		allowed[host] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.allowed = allowed
}

// Addr is the address the port listens at.
func (p *Port) Addr() net.Addr { return p.listener.Addr() }

// Protocol returns the listener for connections that name the protocol, such as
// "understudy-raft/1" (the ALPN identifier, RFC 7301; 1 to 255 bytes). Its
// connections are *tls.Conn of a verified, allowed peer; PeerName names it.
// Closing it refuses the protocol again. Two listeners for one protocol are a
// mistake of the program, and panic.
func (p *Port) Protocol(name string) net.Listener {
	if name == "" || len(name) > maxProtocol {
		panic(fmt.Sprintf("transport: protocol name of %d bytes", len(name)))
	}
	l := &protocolListener{port: p, name: name, queue: make(chan *tls.Conn, backlog), done: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		l.close()
		return l
	}
	if p.protocols[name] != nil {
		panic(fmt.Sprintf("transport: protocol %q has a listener already", name))
	}
	p.protocols[name] = l
	return l
}

// Close stops listening, closes every connection that nobody has taken, and
// waits for the port's goroutines. Connections taken live on.
func (p *Port) Close() error {
	p.stopCtx()
	p.shut()
	p.wg.Wait()
	return nil
}

func (p *Port) shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	close(p.done)
	_ = p.listener.Close() // its only error is that it is closed already
	for conn := range p.handshaking {
		_ = conn.Close()
	}
	for _, l := range p.protocols {
		l.close()
	}
}

func (p *Port) acceptLoop() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors or memory: both may pass.
			p.log.refuse("the kernel", err)
			select {
			case <-p.done:
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		if err := p.admit(conn); err != nil {
			_ = conn.Close()
			p.log.refuse(conn.RemoteAddr().String(), err)
			continue
		}
		p.wg.Go(func() {
			defer p.dismiss(conn)
			if err := p.serve(conn); err != nil {
				_ = conn.Close()
				p.log.refuse(conn.RemoteAddr().String(), err)
			}
		})
	}
}

// admit counts a connection among the handshakes in flight.
func (p *Port) admit(conn net.Conn) error {
	address := addressOf(conn)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return net.ErrClosed
	case len(p.handshaking) >= maxHandshakes:
		return fmt.Errorf("%d handshakes are in flight already", maxHandshakes)
	case p.perAddress[address] >= maxHandshakesPerAddress:
		return fmt.Errorf("%d handshakes with this address are in flight already", maxHandshakesPerAddress)
	}
	p.handshaking[conn] = true
	p.perAddress[address]++
	return nil
}

func (p *Port) dismiss(conn net.Conn) {
	address := addressOf(conn)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.handshaking, conn)
	if p.perAddress[address]--; p.perAddress[address] == 0 {
		delete(p.perAddress, address)
	}
}

// serve does the handshake and puts the connection into its protocol's queue.
func (p *Port) serve(raw net.Conn) error {
	if err := raw.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	conn := tls.Server(raw, p.id.listenConfig(p.hosts(), p.names()))
	if err := conn.Handshake(); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return err
	}
	name := conn.ConnectionState().NegotiatedProtocol
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.protocols[name]
	if l == nil {
		return fmt.Errorf("host %q asked for protocol %q, which was closed just now", PeerName(conn), name)
	}
	select {
	case l.queue <- conn:
		return nil
	default:
		return fmt.Errorf("host %q asked for protocol %q, for which %d connections wait already", PeerName(conn), name, backlog)
	}
}

// hosts are those that may connect.
func (p *Port) hosts() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.allowed
}

// names lists the protocols that have a listener.
func (p *Port) names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := make([]string, 0, len(p.protocols)+1)
	for name := range p.protocols {
		names = append(names, name)
	}
	if len(names) == 0 {
		// An empty list would mean that any protocol will do.
		names = append(names, "none")
	}
	return names
}

// protocolListener hands out the connections of one protocol.
type protocolListener struct {
	port  *Port
	name  string
	queue chan *tls.Conn
	done  chan struct{} // closed under port.mu
	ended bool          // under port.mu
}

// Accept takes the next connection and welcomes it.
func (l *protocolListener) Accept() (net.Conn, error) {
	for {
		// A closed listener must not hand out what is left in its queue.
		select {
		case <-l.done:
			return nil, net.ErrClosed
		default:
		}
		select {
		case <-l.done:
			return nil, net.ErrClosed
		case conn := <-l.queue:
			err := greet(conn)
			if err == nil {
				return conn, nil
			}
			hardClose(conn)
			l.port.log.refuse(conn.RemoteAddr().String(), fmt.Errorf("the peer left before it was taken: %w", err))
		}
	}
}

// greet sends the welcome. One byte always fits into an empty send buffer; the
// deadline is there for whatever else may be wrong.
func greet(conn *tls.Conn) error {
	if err := conn.SetWriteDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{welcome}); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}

// Close refuses the protocol from now on and closes what nobody has taken.
func (l *protocolListener) Close() error {
	l.port.mu.Lock()
	defer l.port.mu.Unlock()
	if l.port.protocols[l.name] == l {
		delete(l.port.protocols, l.name)
	}
	l.close()
	return nil
}

// close is called under port.mu, so that nothing is queued after it.
func (l *protocolListener) close() {
	if l.ended {
		return
	}
	l.ended = true
	close(l.done)
	for {
		select {
		case conn := <-l.queue:
			hardClose(conn)
		default:
			return
		}
	}
}

// Addr is the address of the port.
func (l *protocolListener) Addr() net.Addr { return l.port.Addr() }

// hardClose closes the TCP connection below a TLS one, at once and without the
// farewell that tls.Conn.Close may spend seconds on.
func hardClose(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	_ = conn.Close() // nothing is owed to a connection given up
}

// resetOnClose makes closing a connection forget what was not sent and send a
// reset (tcp(7), SO_LINGER of zero).
func resetOnClose(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // without it the peer only learns later
	}
}

func addressOf(conn net.Conn) string {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return conn.RemoteAddr().String()
	}
	return host
}

// setUserTimeout makes the kernel give a connection up when sent data stays
// unacknowledged for tcpUserTimeout (RFC 5482, tcp(7)).
func setUserTimeout(c syscall.RawConn) error {
	var opt error
	err := c.Control(func(fd uintptr) {
		opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(tcpUserTimeout.Milliseconds()))
	})
	if err = errors.Join(err, opt); err != nil {
		return fmt.Errorf("set TCP_USER_TIMEOUT: %w", err)
	}
	return nil
}
