package status

// What the tests of the endpoint on the network stand on: a host that is made
// up, its endpoint on loopback with certificates of an authority of its own,
// and clients who show what they have. Every answer has to be as openapi.yaml
// says.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/backup"
	"understudy/clock"
	"understudy/disk"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status/samples"
	"understudy/status/statustest"
	"understudy/strike"
	"understudy/transport/pki"
)

// paper is an authority with its files and the certificates it has issued.
type paper struct {
	dir  string
	pool *x509.CertPool
	own  *pki.Authority
}

func newPaper(t *testing.T) *paper {
	t.Helper()
	a, err := pki.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p := &paper{dir: t.TempDir(), pool: x509.NewCertPool(), own: a}
	p.pool.AddCert(a.Certificate)
	return p
}

func (p *paper) issue(t *testing.T, name string) (cert, key string) {
	t.Helper()
	pair, err := p.own.Issue(name, time.Now(), 0)
	if err == nil {
		err = pair.Save(p.dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pki.CertificateFile(p.dir, name), pki.KeyFile(p.dir, name)
}

// settings are those of a client who shows the certificate of name, "" for none.
func (p *paper) settings(t *testing.T, name string) *tls.Config {
	t.Helper()
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: p.pool, ServerName: pki.DNSName("alpha")}
	if name != "" {
		pair, err := tls.LoadX509KeyPair(p.issue(t, name))
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

// serve serves a made-up host, with the certificate of alpha, in memory until the
// function that it returns is called.
func (p *paper) serve(t *testing.T, anonymous Level) (*Server, *pipes, func()) {
	t.Helper()
	s := NewServer(sourcesOf(newFake()))
	show, err := CertificateFiles(pki.CertificateFile(p.dir, "alpha"), pki.KeyFile(p.dir, "alpha"), s.Slog)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l := newPipes()
	ended := make(chan error, 1)
	go func() { ended <- s.ServeTLS(ctx, l, Endpoint{Certificate: show, Anonymous: anonymous}) }()
	return s, l, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// recorded are events that are made up.
type recorded struct{ *statustest.Record[Event] }

func newRecorded(n int) recorded {
	r := recorded{statustest.NewRecord(func(e Event) uint64 { return e.Seq })}
	for range n {
		r.add()
	}
	return r
}

func (r recorded) add() {
	r.Add(func(n uint64) Event {
		return Event{Seq: n, JSON: fmt.Appendf(nil, `{"seq":%d,"guest":"web","kind":"test","text":"number %d"}`, n, n)}
	})
}

func ptr[T any](v T) *T { return &v }

// running and standing are a guest as its primary and its backup see it, all well.
func running() host.GuestStatus {
	return host.GuestStatus{Name: "web", Host: "alpha", Role: "primary", Protected: host.ProtectedYes, Takeovers: 2,
		Log: ownership.Guest{Generation: 3, Revision: 9, Owner: "alpha", Phase: ownership.PhaseActive, Desired: ownership.Running, InSync: true,
			Backup: ownership.Backup{Host: "beta", Image: epoch.Incarnation{1}, Epoch: 5}},
		Primary: &primary.Status{Mode: primary.ModeProtected, ModeFor: time.Minute, Linked: true, Backup: "beta", Epoch: 1234, EpochAge: 20 * time.Millisecond,
			Pages: 1 << 18, Held: 3, HeldBytes: 4500, Dirty: 600, Generation: 3, LeaseLeft: 750 * time.Millisecond, Running: true, PeerAge: ptr(5 * time.Millisecond),
			Pause:  primary.Percentiles{Median: 2 * time.Millisecond, P99: 5 * time.Millisecond, Max: 9 * time.Millisecond, Samples: 1234},
			Lag:    primary.Percentiles{Median: 8 * time.Millisecond, P99: 20 * time.Millisecond, Max: 50 * time.Millisecond, Samples: 1234},
			Totals: primary.Totals{Checkpoints: 1240, Commits: 1234, RawBytes: 1 << 30, WireBytes: 1 << 27, ReferencePages: 1000, PauseTime: 3 * time.Second, LagTime: 10 * time.Second}},
		Earlier:  &primary.Totals{Checkpoints: 10, Commits: 9, RawBytes: 1 << 20, PauseTime: time.Second},
		Disks:    &disk.Status{Mode: "hold", Generation: 3, Writes: 4, Bytes: 16384, Limit: 64 << 20, Flushed: 77, FlushedBytes: 77 << 12, Disks: []disk.DiskStatus{{Serial: "web-0", Sectors: 2048, Store: "replicated", Writer: true}}},
		Excluded: &exclusion.Stats{Mapped: 900, Indexed: 100, Unknown: 50, Outstanding: 12}}
}

func standing() host.GuestStatus {
	return host.GuestStatus{Name: "db", Host: "alpha", Role: "backup", Protected: host.ProtectedUnknown,
		Log: ownership.Guest{Generation: 1, Revision: 4, Owner: "beta", Phase: ownership.PhaseActive, Desired: ownership.Running, InSync: true,
			Backup: ownership.Backup{Host: "alpha", Image: epoch.Incarnation{2}, Epoch: 7}},
		Backup: &backup.Status{State: "fed", Image: "02", Epoch: 99, EpochAge: 30 * time.Millisecond, Whole: true, InSync: true, Commits: 99, PeerAge: ptr(4 * time.Millisecond)}}
}

func known() Cluster {
	return Cluster{Host: "alpha", Leader: "witness", Term: 4, Last: 31, Committed: 31, Applied: 30, Contact: ptr(40 * time.Millisecond),
		Voters: []Voter{{Host: "alpha", Address: "192.0.2.1:7070", Heard: ptr(time.Duration(0))}, {Host: "beta", Address: "192.0.2.2:7070", Heard: ptr(3 * time.Second)},
			{Host: "witness", Address: "192.0.2.3:7070", Witness: true, Leader: true, Heard: ptr(40 * time.Millisecond)}}}
}

// runsOut is when the host's certificate does.
var runsOut = time.Date(2031, 11, 23, 12, 0, 0, 0, time.UTC)

func sourcesOf(f *fake) Sources {
	return Sources{Operations: f, Upgrades: upgrades{f}, Configuration: (*fakeConfig)(f), Members: (*fakeConfig)(f), Bubbles: f, Strikes: struckBy{f}, Cluster: known, Events: newRecorded(5), Drills: drills{f}, BootID: "a-boot", Samples: sampled(f.Status()), Report: func() Report {
		return Report{Host: "alpha", Leader: "witness", Lease: time.Second, Exits: map[string][]Exit{"web": {{Device: "serial", Treatment: "refused"}}},
			Certificates: []Certificate{{"host", runsOut}, {"authority", runsOut.AddDate(5, 0, 0)}}}
	}}
}

// sampled are the samples of a host that was looked at twice, two seconds and one
// second ago.
func sampled(all []host.GuestStatus) *samples.Keeper {
	k := samples.NewKeeper("alpha")
	now := clock.Boot{}.Now()
	k.Take(now.Add(-2*time.Second), all)
	k.Take(now.Add(-time.Second), all)
	return k
}

// rig is an endpoint on loopback.
type rig struct {
	t       *testing.T
	host    *fake
	server  *Server
	paper   *paper
	address string
	tokens  string // the file
	reader  string // secrets
	writer  string
	callers byte
}

func newRig(t *testing.T, anonymous Level) *rig {
	t.Helper()
	f := newFake()
	f.guests = []host.GuestStatus{standing(), running()}
	f.state = running().Log
	return newRigOf(t, f, anonymous)
}

func newRigOf(t *testing.T, f *fake, anonymous Level) *rig {
	t.Helper()
	r := &rig{t: t, host: f, server: NewServer(sourcesOf(f)), paper: newPaper(t)}
	var lines string
	for _, one := range []struct {
		name   string
		level  Level
		secret *string
	}{{"grafana", Read, &r.reader}, {"ops", Operate, &r.writer}} {
		secret, token, err := NewToken(one.name, one.level)
		if err != nil {
			t.Fatal(err)
		}
		*one.secret, lines = secret, lines+token.Line()+"\n"
	}
	r.tokens = filepath.Join(t.TempDir(), "tokens")
	r.write(lines)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	r.serve(l, anonymous)
	return r
}

func (r *rig) write(lines string) {
	r.t.Helper()
	if err := os.WriteFile(r.tokens, []byte(lines), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// serve serves on l until the test ends.
func (r *rig) serve(l net.Listener, anonymous Level) {
	r.t.Helper()
	cert, key := r.paper.issue(r.t, "alpha")
	show, err := CertificateFiles(cert, key, r.server.Slog)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- r.server.ServeTLS(ctx, l, Endpoint{Certificate: show, ClientCAs: r.paper.pool, Readers: []string{"reader"}, Operators: []string{"operator"},
			Tokens: r.tokens, Anonymous: anonymous})
	}()
	r.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("serve: %v", err)
		}
	})
}

// caller asks from an address of its own, with a certificate ("" for none).
func (r *rig) caller(certificate string) *http.Client {
	r.callers++
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, r.callers)}}
	transport := &http.Transport{TLSClientConfig: r.paper.settings(r.t, certificate), DialContext: from.DialContext}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// root asks on the socket, which listens until the test ends.
func (r *rig) root() *http.Client {
	r.t.Helper()
	path := filepath.Join(shortDir(r.t), "sock")
	ctx, cancel := context.WithCancel(context.Background())
	l, err := listenUnix(ctx, path)
	if err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- runServer(ctx, r.server.unix, func() error { return r.server.unix.Serve(l) }) }()
	transport := &http.Transport{DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	r.t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("serve: %v", err)
		}
	})
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// answered is what came back.
type answered struct {
	code   int
	header http.Header
	body   string
}

// ask asks and compares the answer with openapi.yaml. pattern is the route, ""
// if there is none.
func (r *rig) ask(c *http.Client, pattern, method, path, token, body string, header ...string) answered {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "https://"+r.address+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	a := answered{code: resp.StatusCode, header: resp.Header}
	if resp.Header.Get("Content-Type") == "text/event-stream" {
		return a // it does not end
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, io.EOF) {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	a.body = string(text)
	if method != http.MethodHead && method != http.MethodOptions {
		fits(r.t, pattern, a.code, a.header, text)
	}
	return a
}

// struckBy is a host that is struck as it is told to.
type struckBy struct{ *fake }

func (struckBy) Allowed() bool { return true }

func (s struckBy) Strike(ctx context.Context, guest string, spec strike.Spec) (strike.Struck, error) {
	return strike.Struck{ID: spec.ID, Kind: spec.Kind, Guest: guest, Machines: []int{7}, Also: []string{"db"}}, s.do(ctx, fmt.Sprintf("strike %+v", spec), guest)
}

func (s struckBy) Strikes() ([]strike.Struck, error) {
	return []strike.Struck{{ID: "y", Kind: strike.Cut, Guest: "web"}}, s.err
}
