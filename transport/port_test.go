package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/transport/pki"
)

// Who gets in: exactly the configured hosts, with valid certificates of our
// authority, over TLS 1.3, for a protocol that is served. Everyone else is
// refused with a reason in the log, and nothing reaches the protocol's owner.
func TestHandshakeMatrix(t *testing.T) {
	ours, foreign := newTestAuthority(t), newTestAuthority(t)
	now := time.Now()
	good := ours.identity("a")
	// a host whose certificate is from another authority, though it trusts ours
	smuggler := foreign.identity("a")
	smuggler.cred.roots = good.cred.roots
	config := func(id *Identity, change func(*tls.Config)) func(addr string) error {
		return func(addr string) error {
			c := id.dialConfig("b", testProtocol)
			change(c)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			conn, err := (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return err
			}
			defer conn.Close()
			return awaitWelcome(ctx, conn.(*tls.Conn))
		}
	}
	dial := func(id *Identity, peer, protocol string) func(addr string) error {
		return func(addr string) error {
			conn, err := Dial(t.Context(), addr, peer, protocol, id)
			if err == nil {
				_ = conn.Close()
			}
			return err
		}
	}
	for _, tt := range []struct {
		name     string
		listener *Identity
		dial     func(addr string) error
		dialErr  string // "" means: gets in
		logged   string
	}{
		{"the right host", ours.identity("b"), dial(good, "b", testProtocol), "", ""},
		{"certificate of another authority", ours.identity("b"), dial(smuggler, "b", testProtocol), "refused this host", "unknown authority"},
		{"listener of another authority", foreign.identity("b"), dial(good, "b", testProtocol), "unknown authority", "bad certificate"},
		{"certificate ran out", ours.identity("b"), dial(ours.identityFrom("a", now.Add(-2*time.Hour), time.Hour), "b", testProtocol), "refused this host", "expired"},
		{"listener's certificate ran out", ours.identityFrom("b", now.Add(-2*time.Hour), time.Hour), dial(good, "b", testProtocol), "expired", "bad certificate"},
		{"certificate not valid yet", ours.identity("b"), dial(ours.identityFrom("a", now.Add(5*time.Hour), time.Hour), "b", testProtocol), "refused this host", "not yet valid"},
		{"host not configured", ours.identity("b"), dial(ours.identity("mallory"), "b", testProtocol), "refused this host", `host \"mallory\" is not in the configuration`},
		{"another host answers", ours.identity("a"), dial(good, "b", testProtocol), "not b.understudy.internal", "bad certificate"},
		{"no certificate", ours.identity("b"), config(good, func(c *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
		}), "refused this host", "didn't provide a certificate"},
		{"TLS 1.2", ours.identity("b"), config(good, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }),
			"protocol version not supported", "unsupported versions"},
		{"foreign protocol", ours.identity("b"), dial(good, "b", "h2"), "no application protocol", "unsupported application protocols"},
		{"no protocol", ours.identity("b"), config(good, func(c *tls.Config) { c.NextProtos = nil }), "refused this host", "named no protocol"},
		{"plain TCP", ours.identity("b"), func(addr string) error {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: b\r\n\r\n"); err != nil {
				return err
			}
			answer, err := io.ReadAll(conn)
			if len(answer) > 100 {
				t.Errorf("plain TCP got an answer of %d bytes", len(answer))
			}
			return errors.Join(errors.New("closed"), err)
		}, "closed", "does not look like a TLS handshake"},
		{"silent for a while, then gone", ours.identity("b"), func(addr string) error {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				return err
			}
			_ = conn.Close()
			return errors.New("closed")
		}, "closed", "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log logged
			p := listen(t, tt.listener, log.logger(), "a", "b")
			l := p.Protocol(testProtocol)
			var taken atomic.Int32
			accepted := make(chan struct{})
			go func() {
				defer close(accepted)
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					taken.Add(1)
					if PeerName(conn) != "a" {
						t.Errorf("the peer is %q", PeerName(conn))
					}
					_ = conn.Close()
				}
			}()
			err := tt.dial(p.Addr().String())
			switch {
			case tt.dialErr == "" && err != nil:
				t.Errorf("the right host was refused: %v", err)
			case tt.dialErr != "":
				wantError(t, err, tt.dialErr)
				eventually(t, fmt.Sprintf("the log has %q", tt.logged), func() bool { return strings.Contains(log.String(), tt.logged) })
				if !strings.Contains(log.String(), "from=127.0.0.1:") {
					t.Errorf("the log does not name the address: %s", log.String())
				}
			}
			_ = p.Close()
			<-accepted
			want := int32(0)
			if tt.dialErr == "" {
				want = 1
			}
			if got := taken.Load(); got != want {
				t.Errorf("%d connections got through, want %d", got, want)
			}
		})
	}
}

// Each protocol's connections reach its own listener, both ways round.
func TestPortTellsProtocolsApart(t *testing.T) {
	ca := newTestAuthority(t)
	p := listen(t, ca.identity("b"), silent(), "a")
	id := ca.identity("a")
	for _, name := range []string{"understudy-raft/1", "understudy-session/1"} {
		l := p.Protocol(name)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(conn, name)
				_ = conn.Close()
			}
		}()
	}
	for _, name := range []string{"understudy-session/1", "understudy-raft/1", "understudy-session/1"} {
		conn, err := Dial(t.Context(), p.Addr().String(), "b", name, id)
		if err != nil {
			t.Fatal(err)
		}
		if PeerName(conn) != "b" {
			t.Errorf("the peer is %q", PeerName(conn))
		}
		got, err := io.ReadAll(conn)
		if err != nil || string(got) != name {
			t.Errorf("asked for %s, got %q, %v", name, got, err)
		}
		_ = conn.Close()
	}
	// A protocol that was closed is refused, and can be opened again.
	l := p.Protocol("x/1")
	_ = l.Close()
	_, err := Dial(t.Context(), p.Addr().String(), "b", "x/1", id)
	wantError(t, err, "no application protocol")
	_ = p.Protocol("x/1").Close()
}

// Peers that connect and say nothing do not keep a good one out, and are gone
// after the handshake's deadline or when the port closes.
func TestIdlersDoNotBlockThePort(t *testing.T) {
	ca := newTestAuthority(t)
	var log logged
	p := listen(t, ca.identity("b"), log.logger(), "a")
	l := p.Protocol(testProtocol)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	idlers := func(n int) {
		for range n {
			conn, err := net.Dial("tcp", p.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
		}
	}
	inFlight := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.handshaking)
	}
	idlers(maxHandshakesPerAddress - 1)
	eventually(t, "the idlers were accepted", func() bool { return inFlight() == maxHandshakesPerAddress-1 })
	conn, err := Dial(testContext(t), p.Addr().String(), "b", testProtocol, ca.identity("a"))
	if err != nil {
		t.Fatalf("a good peer beside idlers: %v", err)
	}
	_ = conn.Close()
	// More of them are turned away at once, and only now.
	idlers(5)
	eventually(t, "too many are refused", func() bool {
		return strings.Contains(log.String(), "handshakes with this address are in flight")
	})
	if n := inFlight(); n > maxHandshakesPerAddress {
		t.Errorf("%d handshakes in flight", n)
	}
	began := time.Now()
	_ = p.Close()
	if took := time.Since(began); took > handshakeTimeout/2 {
		t.Errorf("closing took %v", took)
	}
}

// A second daemon takes the port over while peers keep connecting: not one of
// them is turned away.
func TestPortTakeover(t *testing.T) {
	ca := newTestAuthority(t)
	serve := func(addr string) *Port {
		p, err := Listen(t.Context(), addr, ca.identity("b"), []string{"a"}, silent())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		l := p.Protocol(testProtocol)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(conn, conn)
					_ = conn.Close()
				}()
			}
		}()
		return p
	}
	daemon := serve("127.0.0.1:0")
	addr := daemon.Addr().String()
	id := ca.identity("a")
	echo := func(conn net.Conn) error {
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "still there?"); err != nil {
			return err
		}
		answer := make([]byte, len("still there?"))
		_, err := io.ReadFull(conn, answer)
		return err
	}
	old, err := Dial(t.Context(), addr, "b", testProtocol, id)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()

	stop := make(chan struct{})
	var served atomic.Int64
	results := make(chan error, 4)
	for range cap(results) {
		go func() {
			for {
				select {
				case <-stop:
					results <- nil
					return
				default:
				}
				conn, err := Dial(t.Context(), addr, "b", testProtocol, id)
				if err == nil {
					err = echo(conn)
					_ = conn.Close()
				}
				if err != nil {
					results <- err
					return
				}
				served.Add(1)
			}
		}()
	}
	for range 5 {
		next := serve(addr)
		before := served.Load()
		eventually(t, "peers are served while both listen", func() bool { return served.Load() > before+10 })
		_ = daemon.Close()
		daemon = next
		before = served.Load()
		eventually(t, "peers are served by the new daemon", func() bool { return served.Load() > before+10 })
	}
	close(stop)
	for range cap(results) {
		if err := <-results; err != nil {
			t.Errorf("a peer was turned away: %v", err)
		}
	}
	if err := echo(old); err != nil {
		t.Errorf("a connection taken before the takeovers broke: %v", err)
	}
	t.Logf("%d connections over 5 takeovers", served.Load())
}

// Dial gives up when its context ends, whatever the peer does.
func TestDialObeysItsContext(t *testing.T) {
	ca := newTestAuthority(t)
	p := listen(t, ca.identity("b"), silent(), "a")
	p.Protocol(testProtocol) // never accepts: no welcome
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Dial(ctx, p.Addr().String(), "b", testProtocol, ca.identity("a"))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	_, err = Dial(t.Context(), p.Addr().String(), "B", testProtocol, ca.identity("a"))
	wantError(t, err, "lower-case")
	_, err = Listen(t.Context(), "256.0.0.1:x", ca.identity("a"), nil, silent())
	wantError(t, err, "open the port of host")
}

// A port whose context ends is closed.
func TestPortEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := Listen(ctx, "127.0.0.1:0", newTestAuthority(t).identity("b"), nil, silent())
	if err != nil {
		t.Fatal(err)
	}
	l := p.Protocol(testProtocol)
	cancel()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	_ = p.Close()
	if _, err := p.Protocol("late/1").Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept on a protocol opened late: %v", err)
	}
}

// LoadIdentity finds at start what a handshake would trip over later.
func TestLoadIdentity(t *testing.T) {
	write := func(t *testing.T, ca *pki.Authority, pair *pki.Pair) string {
		dir := t.TempDir()
		if err := errors.Join(ca.Save(dir), pair.Save(dir)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	now := time.Now()
	issue := func(ca *pki.Authority, host string, from time.Time) *pki.Pair {
		pair, err := ca.Issue(host, from, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	ours, foreign := newTestAuthority(t).a, newTestAuthority(t).a
	good := issue(ours, "a", now)
	mixed := *good
	mixed.Key = issue(ours, "a", now).Key
	renamed := *good
	renamed.Host = "c"
	for _, tt := range []struct {
		name, dir, host, want string
	}{
		{"right", write(t, ours, good), "a", ""},
		{"another authority", write(t, ours, issue(foreign, "a", now)), "a", "not one of this authority"},
		{"key of another certificate", write(t, ours, &mixed), "a", "the key does not belong"},
		{"certificate of another host", write(t, ours, &renamed), "c", `the certificate is for host "a"`},
		{"ran out", write(t, ours, issue(ours, "a", now.Add(-3*time.Hour))), "a", "issue a new one"},
		{"not valid yet", write(t, ours, issue(ours, "a", now.Add(3*time.Hour))), "a", "set the clock"},
		{"no such host", write(t, ours, good), "b", "b.pem"},
		{"no such directory", "/nonexistent", "a", "ca.pem"},
		{"odd name", "/nonexistent", "../a", "lower-case"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id, err := LoadIdentity(tt.dir, tt.host)
			if tt.want != "" {
				wantError(t, err, tt.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if id.Host() != "a" || !id.NotAfter().Equal(good.Certificate.NotAfter) || id.AuthorityNotAfter().Sub(id.NotAfter()) < 24*time.Hour {
				t.Errorf("host %q until %v, its authority until %v", id.Host(), id.NotAfter(), id.AuthorityNotAfter())
			}
		})
	}
	if _, err := os.Stat("/nonexistent"); err == nil {
		t.Error("a failed load made a directory")
	}
}

// TestACertificateIsReplacedUnderway: files are copied one after the other, under a
// daemon that goes on.
func TestACertificateIsReplacedUnderway(t *testing.T) {
	ca := newTestAuthority(t)
	issue := func(validity time.Duration) (string, *pki.Pair) {
		pair, err := ca.a.Issue("b", time.Now(), validity)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := errors.Join(ca.a.Save(dir), pair.Save(dir)); err != nil {
			t.Fatal(err)
		}
		return dir, pair
	}
	dir, first := issue(time.Hour)
	next, second := issue(3 * time.Hour)
	id, err := LoadIdentity(dir, "b")
	if err != nil {
		t.Fatal(err)
	}
	var log logged
	id.Follow(log.logger())
	p := listen(t, id, silent(), "a")
	p.Protocol("any/1")
	a := ca.identity("a")
	shows := func(want *pki.Pair, says string) {
		t.Helper()
		conn, err := (&tls.Dialer{Config: a.dialConfig("b", "any/1")}).DialContext(t.Context(), "tcp", p.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]; !got.Equal(want.Certificate) {
			t.Errorf("it shows a certificate until %v", got.NotAfter)
		}
		if !strings.Contains(log.String(), says) {
			t.Errorf("the log does not say %q: %s", says, log.String())
		}
	}
	shows(first, "")
	move := func(file func(dir, host string) string) {
		t.Helper()
		if err := os.Rename(file(next, "b"), file(dir, "b")); err != nil {
			t.Fatal(err)
		}
	}
	move(pki.CertificateFile)
	shows(first, "this host goes on with its former certificate")
	shows(first, "the key does not belong to the certificate")
	if n := strings.Count(log.String(), "goes on with"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	move(pki.KeyFile)
	shows(second, "this host has a new certificate")
	if !id.NotAfter().Equal(second.Certificate.NotAfter) {
		t.Errorf("it says that it is valid until %v", id.NotAfter())
	}
}

// A port that is scanned does not fill the log, and says how much it left out.
func TestRefusalsAreRateLimited(t *testing.T) {
	var log logged
	r := newRefusals(log.logger())
	for range 1000 {
		r.refuse("192.0.2.1:1", errors.New("wrong"))
	}
	if lines := strings.Count(log.String(), "\n"); lines > refusalBurst+5 {
		t.Errorf("%d lines", lines)
	}
	r.mu.Lock()
	missed := r.missed
	r.refill = r.refill.Add(-refusalEvery)
	r.mu.Unlock()
	r.refuse("192.0.2.1:1", errors.New("wrong"))
	if want := fmt.Sprintf("not_logged_before=%d", missed); missed == 0 || !strings.Contains(log.String(), want) {
		t.Errorf("the log does not say %q", want)
	}
}

// Both ends of a connection have the kernel watch over it, and send at once.
func TestSocketOptions(t *testing.T) {
	ca := newTestAuthority(t)
	p := listen(t, ca.identity("b"), silent(), "a")
	l := p.Protocol(testProtocol)
	taken := make(chan net.Conn, 1)
	go func() {
		if conn, err := l.Accept(); err == nil {
			taken <- conn
		}
	}()
	dialed, err := Dial(testContext(t), p.Addr().String(), "b", testProtocol, ca.identity("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer dialed.Close()
	accepted := <-taken
	defer accepted.Close()
	for name, conn := range map[string]net.Conn{"dialed": dialed, "accepted": accepted} {
		raw, err := conn.(*tls.Conn).NetConn().(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range []struct {
			what              string
			level, opt, value int
		}{
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 5},
			{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 10_000},
		} {
			err := raw.Control(func(fd uintptr) {
				if got, err := unix.GetsockoptInt(int(fd), o.level, o.opt); err != nil || got != o.value {
					t.Errorf("%s: %s is %d, %v; want %d", name, o.what, got, err, o.value)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
