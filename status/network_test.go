package status

// Clients who mean no good, and clients who are many: each costs the host a
// bounded time and a bounded room, and the others are answered meanwhile. The
// slow ones are played in fake time, over pipes.

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"understudy/bubble"
	"understudy/host"
)

// pipes is a listener whose connections are pipes.
type pipes struct {
	once sync.Once
	come chan net.Conn
	over chan struct{}
}

func newPipes() *pipes { return &pipes{come: make(chan net.Conn), over: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.come:
		return c, nil
	case <-p.over:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.over) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	near, far := net.Pipe()
	p.come <- far
	return near
}

// closedAfter is how long it takes until the other side has ended c.
func closedAfter(c net.Conn) time.Duration {
	began := time.Now()
	_, _ = io.Copy(io.Discard, c) // until it ends, however
	return time.Since(began)
}

func TestSlowClientsAreEnded(t *testing.T) {
	paper := newPaper(t)
	paper.issue(t, "alpha")
	trust := paper.settings(t, "")
	issued := time.Now()
	trust.Time = func() time.Time { return issued } // a bubble's clock begins in 2000
	drip := func(c net.Conn, s string) {
		for i := range s {
			if _, err := io.WriteString(c, s[i:i+1]); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}
	for about, c := range map[string]struct {
		tls    bool
		say    func(c net.Conn) // after the handshake, if there is one
		within time.Duration
	}{
		"says nothing":          {false, func(net.Conn) {}, headerTime + time.Second},
		"drips a handshake":     {false, func(c net.Conn) { drip(c, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc") }, headerTime + time.Second},
		"says nothing after it": {true, func(net.Conn) {}, headerTime + time.Second},
		"drips its header":      {true, func(c net.Conn) { drip(c, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") }, headerTime + time.Second},
		"drips its body": {true, func(c net.Conn) {
			drip(c, "")
			_, _ = io.WriteString(c, "POST /api/v1/guests/web/checkpoint/save HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
		}, bodyTime + time.Second},
		"keeps it and is silent": {true, func(c net.Conn) { _, _ = io.WriteString(c, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") }, idleTime + time.Second},
	} {
		t.Run(strings.ReplaceAll(about, " ", "-"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, l, stop := paper.serve(t, Health)
				client := l.dial()
				if c.tls {
					secured := tls.Client(client, trust)
					if err := secured.HandshakeContext(t.Context()); err != nil {
						t.Fatal(err)
					}
					client = secured
				}
				said := make(chan struct{})
				go func() { defer close(said); c.say(client) }()
				if took := closedAfter(client); took > c.within {
					t.Errorf("it was ended after %v, want %v at most", took, c.within)
				}
				_ = client.Close()
				<-said
				stop()
			})
		})
	}
}

// TestAStreamThatNobodyReadsEnds: a client that takes nothing holds nothing.
func TestAStreamThatNobodyReadsEnds(t *testing.T) {
	paper := newPaper(t)
	paper.issue(t, "alpha")
	trust := paper.settings(t, "")
	issued := time.Now()
	trust.Time = func() time.Time { return issued } // a bubble's clock begins in 2000
	synctest.Test(t, func(t *testing.T) {
		s, l, stop := paper.serve(t, Read)
		client := tls.Client(l.dial(), trust)
		if _, err := io.WriteString(client, "GET /api/v1/stream HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(client).ReadString('\n'); err != nil { // and then nothing more
			t.Fatal(err)
		}
		time.Sleep(stillHere + answerTime + time.Second)
		synctest.Wait()
		s.crowd.mu.Lock()
		if s.crowd.all != 0 {
			t.Error("the stream goes on although nobody reads it")
		}
		s.crowd.mu.Unlock()
		_ = client.Close()
		stop()
	})
}

func TestHugeRequestsAreRefused(t *testing.T) {
	r := newRig(t, Read)
	asker := r.caller("")
	for _, c := range []struct {
		header [2]string
		want   int
	}{{[2]string{"X-Long", strings.Repeat("x", 8<<10)}, 200}, {[2]string{"X-Long", strings.Repeat("x", 64<<10)}, 431}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+r.address+"/livez", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(c.header[0], c.header[1])
		resp, err := asker.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("a header of %d bytes: %s, want %d", len(c.header[1]), resp.Status, c.want)
		}
	}
	big := `{"file":"` + strings.Repeat("x", maxNetworkBody) + `"}`
	if a := r.ask(asker, "POST /api/v1/drills", http.MethodPost, "/api/v1/drills", r.writer, big); a.code != 400 {
		t.Errorf("a body of %d bytes: %d", len(big), a.code)
	}
	if len(r.host.asked) > 0 {
		t.Errorf("the host was asked to %s", <-r.host.asked)
	}
}

func TestPlainHTTPAndOldTLSGetNothing(t *testing.T) {
	r := newRig(t, Read)
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(c); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(string(body), "version") {
		t.Errorf("plain HTTP was answered with %q, %v", body, err)
	}
	old := r.paper.settings(t, "")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if c, err := tls.Dial("tcp", r.address, old); err == nil {
		_ = c.Close()
		t.Error("TLS 1.2 was spoken")
	}
}

// TestCertificatesOfOthersAreRefused: one of another authority ends the handshake.
func TestCertificatesOfOthersAreRefused(t *testing.T) {
	r := newRig(t, Read)
	foreign := newPaper(t).settings(t, "operator")
	foreign.RootCAs = r.paper.pool
	mine := foreign.Certificates[0]
	foreign.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &mine, nil } // asked or not
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: foreign, DisableKeepAlives: true}}
	resp, err := c.Get("https://" + r.address + "/livez")
	if err == nil {
		_ = resp.Body.Close()
		t.Errorf("it was answered with %s", resp.Status)
	}
}

func TestConnectionsOfOneAddressAreBounded(t *testing.T) {
	r := newRig(t, Health)
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for range maxConnsOfOne {
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	more, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = more.Close() }()
	if _, err := more.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many got %v", err)
	}
	if a := r.ask(r.caller(""), "GET /livez", http.MethodGet, "/livez", "", ""); a.code != 200 {
		t.Errorf("another address: %d", a.code)
	}
}

func TestRequestsOfOneAddressAreLimited(t *testing.T) {
	now := time.Unix(0, 0)
	g := newGuard(&access{anonymous: Health}, func() time.Time { return now })
	ask := func(from, token string) int {
		r := &http.Request{RemoteAddr: from, Header: http.Header{}}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		if _, no := g.identify(r); no != nil {
			if (no.code == http.StatusTooManyRequests) != (no.retry > 0) {
				t.Errorf("%d with Retry-After %d", no.code, no.retry)
			}
			return no.code
		}
		return 200
	}
	for i := range requestsAtOnce {
		if got := ask("192.0.2.1:5", ""); got != 200 {
			t.Fatalf("request %d: %d", i, got)
		}
	}
	if got := ask("192.0.2.1:6", ""); got != 429 {
		t.Errorf("one too many: %d", got)
	}
	if ask("192.0.2.2:5", "") != 200 || ask("[2001:db8::1]:5", "") != 200 {
		t.Error("others are limited, too")
	}
	now = now.Add(time.Second / requestsASecond)
	if ask("192.0.2.1:7", "") != 200 || ask("192.0.2.1:7", "") != 429 {
		t.Error("not one more after its time")
	}
	wrong := strings.Repeat("x", 30)
	for i := range wrongAtOnce {
		if got := ask("[2001:db8::1]:5", wrong); got != 401 {
			t.Fatalf("wrong token %d: %d", i, got)
		}
	}
	if ask("[2001:db8::2]:5", wrong) != 429 || ask("[2001:db8:0:1::1]:5", wrong) != 401 || ask("[2001:db8::3]:1", "") != 200 {
		t.Error("wrong tokens are not counted by network of 64 bits, and alone")
	}
}

// TestACrowdDoesNotLockOutWhoIsKnown: many addresses share a bound, who shows a
// token has none but their own.
func TestACrowdDoesNotLockOutWhoIsKnown(t *testing.T) {
	secret, token, err := NewToken("ops", Operate)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte(token.Line()), 0o600); err != nil {
		t.Fatal(err)
	}
	s := NewServer(sourcesOf(newFake()))
	g := newGuard(&access{anonymous: Health, tokens: &tokenFile{path: path, slog: s.Slog}}, func() time.Time { return time.Unix(0, 0) })
	refused := 0
	for i := range nobodysAtOnce + 10 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)
		if _, no := g.identify(&http.Request{RemoteAddr: from.String(), Header: http.Header{}}); no != nil {
			refused++
		}
	}
	if refused != 10 {
		t.Errorf("%d of a crowd were refused, want 10", refused)
	}
	if asks, no := g.identify(&http.Request{RemoteAddr: "10.0.0.1:1", Header: http.Header{"Authorization": {"Bearer " + secret}}}); no != nil || asks != (who{Operate, "ops"}) {
		t.Errorf("an operator: %+v, %+v", asks, no)
	}
}

// TestALimiterForgetsNobodyItStillLimits and holds a bounded number of addresses.
func TestALimiterForgetsNobodyItStillLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(0, 0)
		l := newLimiter(2, time.Second, func() time.Time { return now })
		bad := netip.MustParsePrefix("192.0.2.1/32")
		l.take(bad)
		l.take(bad)
		for i := range uint32(maxAddresses + 100) {
			l.take(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32))
		}
		now = now.Add(time.Duration(rapid.IntRange(0, 999).Draw(t, "ms")) * time.Millisecond)
		if len(l.full) > maxAddresses+1 || l.take(bad) == 0 {
			t.Fatalf("%d addresses; the bad one may ask again", len(l.full))
		}
		now = now.Add(2 * time.Second)
		if l.take(bad) != 0 {
			t.Fatal("it may not ask although its time has come")
		}
	})
}

func TestACertificateIsShownAsItIsNow(t *testing.T) {
	paper := newPaper(t)
	cert, key := paper.issue(t, "alpha")
	show, err := CertificateFiles(cert, key, NewServer(sourcesOf(newFake())).Slog)
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		c, err := show()
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.String()
	}
	first := serial()
	paper.issue(t, "alpha")
	second := serial()
	if first == second {
		t.Error("the old certificate is shown")
	}
	if err := os.WriteFile(cert, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if serial() != second {
		t.Error("a spoilt file changed what is shown")
	}
	if _, err := CertificateFiles(cert, key, nil); err == nil || !strings.Contains(err.Error(), cert) {
		t.Errorf("a spoilt file at first: %v", err)
	}
	if err := NewServer(sourcesOf(newFake())).ServeTLS(t.Context(), newPipes(), Endpoint{Anonymous: Operate}); err == nil {
		t.Error("anybody may operate")
	}
}

// TestARemoteClientOperatesGuests, and that is all: what would run a program, or
// name a file, on a host is not for any token or certificate.
func TestARemoteClientOperatesGuests(t *testing.T) {
	r := newRig(t, Nothing)
	url := "https://" + r.address
	remote := func(certificate, token string) *Client {
		c, err := NewRemoteClient(url, r.paper.settings(t, certificate), token)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for about, c := range map[string]*Client{"by token": remote("", r.writer), "by certificate": remote("operator", "")} {
		if got, err := c.Status(t.Context()); err != nil || len(got.Guests) != 2 || got.Guests[1].Primary.LeaseLeft != 750*time.Millisecond {
			t.Errorf("%s: %+v, %v", about, got, err)
		}
		var state struct{ Owner string }
		if err := c.Operate(t.Context(), "web", "switchover", &state); err != nil || state.Owner != "alpha" || <-r.host.asked != "switchover web" {
			t.Errorf("%s: switchover: %+v, %v", about, state, err)
		}
		var cluster Cluster
		if err := c.Get(t.Context(), "/api/v1/cluster", &cluster); err != nil || cluster.Leader != "witness" || *cluster.Voters[1].Heard != 3*time.Second {
			t.Errorf("%s: %+v, %v", about, cluster, err)
		}
		for _, at := range []*Client{c, c.At("alpha"), c.At("beta")} {
			_, bubble := at.Bubble(t.Context(), "web", bubble.Spec{Check: []string{"/bin/sh"}}, nil)
			_, upgrade := at.Upgrade(t.Context(), "/tmp/mine")
			for what, err := range map[string]error{"bubble": bubble, "upgrade": upgrade,
				"save":   at.Checkpoint(t.Context(), "web", "save", host.SaveRequest{File: "/etc/cron.d/x"}, nil, nil),
				"remove": at.Checkpoint(t.Context(), "web", "remove", FileRequest{File: "/etc/passwd"}, nil, nil)} {
				if refused := new(Refused); !errors.As(err, &refused) || refused.Status != http.StatusForbidden || !strings.Contains(err.Error(), "this is for root alone: run understudy on one of the hosts") {
					t.Errorf("%s: %s: %v", about, what, err)
				}
			}
		}
	}
	if len(r.host.asked) > 0 {
		t.Errorf("the host was asked to %s", <-r.host.asked)
	}
	if err := remote("", r.reader).Operate(t.Context(), "web", "stop", nil); err == nil || !strings.Contains(err.Error(), `grafana may read; this needs "operate"`) {
		t.Errorf("a reader's stop: %v", err)
	}
	if _, err := remote("", "").Status(t.Context()); err == nil || !strings.Contains(err.Error(), "needs a bearer token") || errors.Is(err, ErrNoDaemon) {
		t.Errorf("nobody's status: %v", err)
	}
	stranger := newPaper(t).settings(t, "")
	c, err := NewRemoteClient(url, stranger, r.writer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("an endpoint of another authority: %v", err)
	}
	for _, bad := range []string{"http://x:1", "https://", "https://u:p@x:1", "https://x:1/path", "https://x:1?q", "::", ""} {
		if _, err := NewRemoteClient(bad, nil, ""); err == nil {
			t.Errorf("%q is taken for an endpoint", bad)
		}
	}
	if _, err := NewRemoteClient(url, nil, "short\r\nX: y"); err == nil {
		t.Error("a token that is none is taken")
	}
}
