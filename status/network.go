package status

// The endpoint on the network: TLS always, and bounds on what anybody can cost
// the host. Each client address has so many connections and so many requests a
// second; a wrong token costs more; a connection has so long for its handshake,
// its header and its body, and for accepting each part of an answer.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"understudy/filestamp"
)

// Endpoint says how the endpoint on the network is served.
type Endpoint struct {
	// Certificate returns what is shown to a client; it is asked at every
	// handshake. See CertificateFiles.
	Certificate func() (*tls.Certificate, error)
	// ClientCAs sign the certificates of clients, whose common names are listed
	// in Readers or Operators; nil: no certificate is asked for.
	ClientCAs          *x509.CertPool
	Readers, Operators []string
	// Tokens is the path of a file of tokens, see ParseTokens; "": none.
	Tokens string
	// Anonymous is what those may ask who show neither: at most Read.
	Anonymous Level
}

// Bounds of the endpoint on the network.
const (
	maxConns       = 256      // connections
	maxConnsOfOne  = 32       // … of one client address
	maxNetworkBody = 64 << 10 // bytes of a request's body
	// Requests of one client address: as a rate, and how many at once.
	requestsASecond = 50
	requestsAtOnce  = 100
	// … and of all who show nothing, together: a request costs the host up to a
	// millisecond of a processor for each guest.
	nobodysASecond = 200
	nobodysAtOnce  = 400
	// So many wrong tokens and then one in so long.
	wrongAtOnce = 10
	wrongEvery  = 6 * time.Second
)

// ServeTLS answers on l, which it closes, until ctx ends. It is independent of
// Serve, and of others of its kind.
func (s *Server) ServeTLS(ctx context.Context, l net.Listener, e Endpoint) error {
	if e.Anonymous > Read {
		_ = l.Close()
		return fmt.Errorf("status endpoint: anybody might %s", e.Anonymous)
	}
	a := &access{anonymous: e.Anonymous, readers: e.Readers, operators: e.Operators}
	if e.Tokens != "" {
		a.tokens = &tokenFile{path: e.Tokens, slog: s.Slog}
		_, _ = a.tokens.read() // says in the log what is wrong with it
	}
	g := newGuard(a, time.Now)
	server := s.boundedServer(g.identify, maxNetworkBody)
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true) // fewer ways to cost the host something than HTTP/2 has
	server.TLSConfig = &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return e.Certificate() },
		ClientCAs:      e.ClientCAs,
	}
	if e.ClientCAs != nil {
		server.TLSConfig.ClientAuth = tls.VerifyClientCertIfGiven
	}
	bounded := newBoundedListener(l, maxConns, maxConnsOfOne, func(c net.Conn) (netip.Prefix, bool) {
		return addressOf(c.RemoteAddr().String()), true
	})
	s.shows.Store(&e.Certificate)
	defer s.shows.CompareAndSwap(&e.Certificate, nil)
	err := runServer(ctx, server, func() error { return server.ServeTLS(bounded, "", "") })
	if err != nil {
		return fmt.Errorf("status endpoint on %s: %w", l.Addr(), err)
	}
	return nil
}

// CertificateFiles returns the certificate in a pair of PEM files, read again
// when they have changed. A pair that cannot be read is an error at once, and
// later leaves the former one in its place.
func CertificateFiles(cert, key string, log *slog.Logger) (func() (*tls.Certificate, error), error) {
	c := &certificateFiles{cert: cert, key: key, slog: log}
	if err := c.load(); err != nil {
		return nil, err
	}
	return c.get, nil
}

type certificateFiles struct {
	cert, key string
	slog      *slog.Logger

	mu     sync.Mutex
	seen   []filestamp.Stamp
	loaded *tls.Certificate
}

func (c *certificateFiles) load() error {
	seen, err := filestamp.All(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("certificate of the status endpoint: %w", err)
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	c.seen = seen // not tried again before they change
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", c.cert, c.key, err)
	}
	c.loaded = &pair
	return nil
}

func (c *certificateFiles) get() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if seen, err := filestamp.All(c.cert, c.key); err == nil && !slices.Equal(seen, c.seen) {
		if err := c.load(); err != nil {
			c.slog.Error("the status endpoint goes on with its former certificate", "err", err)
		} else {
			c.slog.Info("the status endpoint has a new certificate", "file", c.cert, "until", c.loaded.Leaf.NotAfter)
		}
	}
	return c.loaded, nil
}

// guard lets requests through to access as their addresses' limits allow.
type guard struct {
	access   *access
	requests *limiter
	nobodys  *limiter // one bucket for all
	wrong    *limiter
}

func newGuard(a *access, now func() time.Time) *guard {
	return &guard{a, newLimiter(requestsAtOnce, time.Second/requestsASecond, now),
		newLimiter(nobodysAtOnce, time.Second/nobodysASecond, now), newLimiter(wrongAtOnce, wrongEvery, now)}
}

func (g *guard) identify(r *http.Request) (who, *denial) {
	from := addressOf(r.RemoteAddr)
	if wait := g.requests.take(from); wait > 0 {
		return who{}, &denial{http.StatusTooManyRequests, "too many requests of this address", seconds(wait)}
	}
	_, shows := r.Header["Authorization"]
	if wait := g.wrong.wait(from); shows && wait > 0 {
		return who{}, &denial{http.StatusTooManyRequests, "too many wrong tokens of this address", seconds(wait)}
	}
	asks, no := g.access.identify(r)
	if no != nil && no.code == http.StatusUnauthorized {
		g.wrong.take(from)
	}
	if no == nil && asks.name == "" {
		if wait := g.nobodys.take(netip.Prefix{}); wait > 0 {
			return who{}, &denial{http.StatusTooManyRequests, "too many requests without authorisation", seconds(wait)}
		}
	}
	return asks, no
}

func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// addressOf is what counts as one client: an IPv4 address, an IPv6 network of
// 64 bits. An address that is none counts as the zero one.
func addressOf(remote string) netip.Prefix {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	ip := at.Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// limiter is a bucket of tokens for each client address: full at first, one
// more every so often.
type limiter struct {
	size  time.Duration // of a full bucket
	every time.Duration
	now   func() time.Time

	mu sync.Mutex
	// full is when each bucket will be full again; one that is not here is.
	full map[netip.Prefix]time.Time
	// swept is when the full ones were last forgotten, to make room.
	swept time.Time
}

// maxAddresses bounds the addresses a limiter remembers. Beyond it, those it
// does not know share one bucket.
const maxAddresses = 4096

// sweepEvery bounds what looking for room costs.
const sweepEvery = time.Second

func newLimiter(burst int, every time.Duration, now func() time.Time) *limiter {
	return &limiter{size: time.Duration(burst) * every, every: every, now: now, full: map[netip.Prefix]time.Time{}}
}

// take takes one, or returns how long to wait until there is one.
func (l *limiter) take(of netip.Prefix) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	of, full, wait := l.look(of)
	if wait == 0 {
		l.full[of] = full.Add(l.every)
	}
	return wait
}

// wait returns how long until there is one.
func (l *limiter) wait(of netip.Prefix) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _, wait := l.look(of)
	return wait
}

// look returns whose bucket counts for of, when it will be full, and how long
// until there is one in it.
func (l *limiter) look(of netip.Prefix) (whose netip.Prefix, full time.Time, wait time.Duration) {
	now := l.now()
	whose, full = l.known(of, now), now
	if at := l.full[whose]; at.After(now) {
		full = at
	}
	return whose, full, max(0, full.Add(l.every).Sub(now)-l.size)
}

// known returns of if there is room to remember it, else what stands for all
// that there is no room for.
func (l *limiter) known(of netip.Prefix, now time.Time) netip.Prefix {
	if _, ok := l.full[of]; ok || len(l.full) < maxAddresses {
		return of
	}
	if now.Sub(l.swept) >= sweepEvery {
		l.swept = now
		for a, full := range l.full {
			if full.Before(now) {
				delete(l.full, a)
			}
		}
	}
	if len(l.full) < maxAddresses {
		return of
	}
	return netip.Prefix{}
}
