package transport

// The dialing side of port.go, and the log of refusals.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"understudy/transport/pki"
)

const (
	// dialTimeout bounds Dial where its context does not.
	dialTimeout = 10 * time.Second
	// takeoverTries and takeoverPause: a connection that is closed without a
	// word was probably in the queue of a daemon that has just handed its port
	// to the next one, so it is worth a few more tries.
	takeoverTries = 8
	takeoverPause = 20 * time.Millisecond
)

// Dial connects to the host called peer at addr ("host:port") for a protocol,
// and returns when the peer's owner of that protocol has taken the connection.
// It fails if the peer cannot prove to be that host, or does not want this one.
func Dial(ctx context.Context, addr, peer, protocol string, id *Identity) (*tls.Conn, error) {
	if err := pki.CheckName(peer); err != nil {
		return nil, fmt.Errorf("reach a peer at %s: %w", addr, err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var err error
	for range takeoverTries {
		var conn *tls.Conn
		if conn, err = dialOnce(ctx, addr, peer, protocol, id); err == nil {
			return conn, nil
		}
		if !closedSilently(err) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(takeoverPause):
		}
	}
	return nil, fmt.Errorf("reach host %q at %s for %s: %w", peer, addr, protocol, err)
}

func dialOnce(ctx context.Context, addr, peer, protocol string, id *Identity) (*tls.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: keepAlive,
		Control:         func(_, _ string, c syscall.RawConn) error { return setUserTimeout(c) },
	}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	// The end of ctx interrupts whatever the connection is waiting for.
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	conn := tls.Client(raw, id.dialConfig(peer, protocol))
	err = awaitWelcome(ctx, conn)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = raw.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w (%w)", ctx.Err(), err)
		}
		return nil, err
	}
	return conn, nil
}

func awaitWelcome(ctx context.Context, conn *tls.Conn) error {
	if err := conn.HandshakeContext(ctx); err != nil {
		return explain("handshake", err)
	}
	var b [1]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return explain("wait for the peer's welcome", err)
	}
	if b[0] != welcome {
		return fmt.Errorf("the peer said %#02x instead of its welcome", b[0])
	}
	return nil
}

// explain says what an alert of the peer means to an operator.
func explain(doing string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return fmt.Errorf("%s: the peer refused this host, its log says why: %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func closedSilently(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

const (
	// refusalBurst lines are logged at once, then one every refusalEvery.
	refusalBurst = 20
	refusalEvery = time.Second
)

// refusals logs refused connections, but no more often than an operator can
// read: a port that is scanned must not fill the log.
type refusals struct {
	log *slog.Logger

	mu     sync.Mutex
	tokens int
	refill time.Time
	missed int
}

func newRefusals(log *slog.Logger) *refusals {
	return &refusals{log: log, tokens: refusalBurst, refill: time.Now()}
}

func (r *refusals) refuse(address string, reason error) {
	if errors.Is(reason, net.ErrClosed) {
		return // the port itself is closing
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := int(time.Since(r.refill) / refusalEvery); n > 0 {
		r.tokens = min(refusalBurst, r.tokens+n)
		r.refill = time.Now()
	}
	if r.tokens == 0 {
		r.missed++
		return
	}
	r.tokens--
	r.log.Warn("connection refused", "from", address, "reason", reason.Error(), "not_logged_before", r.missed)
	r.missed = 0
}
