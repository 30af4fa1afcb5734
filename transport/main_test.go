package transport

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/transport/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that ought to happen.
const patience = 20 * time.Second

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

// logged collects log lines.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// testContext ends the test's waits when patience runs out.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// authority issues identities in memory.
type authority struct {
	t testing.TB
	a *pki.Authority
}

func newTestAuthority(t testing.TB) authority {
	a, err := pki.NewAuthority(time.Now().Add(-24 * time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return authority{t, a}
}

func (a authority) identity(host string) *Identity {
	return a.identityFrom(host, time.Now(), time.Hour)
}

func (a authority) identityFrom(host string, from time.Time, validity time.Duration) *Identity {
	pair, err := a.a.Issue(host, from, validity)
	if err != nil {
		a.t.Fatal(err)
	}
	return &Identity{host: host, cred: newCredentials(a.a.Certificate, pair.Certificate, pair.Key)}
}

func listen(t testing.TB, id *Identity, log *slog.Logger, allowed ...string) *Port {
	p, err := Listen(t.Context(), "127.0.0.1:0", id, allowed, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// pipeListener is a net.Listener over net.Pipe, for tests with a fake clock.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.done:
		return nil, io.EOF
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// sessions joins a pair over the given way of connecting.
func sessions(t testing.TB, l net.Listener, dial func(context.Context) (net.Conn, error), cfg Config) (dialed, accepted *Session) {
	t.Helper()
	a, err := NewAcceptor(l, cfg, silent())
	if err != nil {
		t.Fatal(err)
	}
	dialed, err = Connect(t.Context(), dial, cfg, silent())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = a.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dialed.Close(); _ = accepted.Close() })
	return dialed, accepted
}

const testProtocol = "understudy-test/1"

// tlsSessions joins a pair over loopback and TLS.
func tlsSessions(t testing.TB, cfg Config) (dialed, accepted *Session) {
	t.Helper()
	ca := newTestAuthority(t)
	p := listen(t, ca.identity("b"), silent(), "a")
	id := ca.identity("a")
	return sessions(t, p.Protocol(testProtocol), func(ctx context.Context) (net.Conn, error) {
		return dialConn(ctx, p.Addr().String(), "b", id)
	}, cfg)
}

func dialConn(ctx context.Context, addr, peer string, id *Identity) (net.Conn, error) {
	conn, err := Dial(ctx, addr, peer, testProtocol, id)
	if err != nil {
		return nil, err // not a nil *tls.Conn in an interface
	}
	return conn, nil
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want one that contains %q", err, want)
	}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := testContext(t)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited %v in vain: %s", patience, what)
		case <-tick.C:
		}
	}
}

var _ net.Conn = (*tls.Conn)(nil)
