package dashboard_test

// What the tests of the dashboard stand on: one real browser, and a host whose
// state is made up behind the real endpoint, with TLS and tokens.

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/clock"
	"understudy/drill"
	"understudy/host"
	"understudy/lab/browser"
	"understudy/ownership"
	"understudy/status"
	"understudy/status/samples"
	"understudy/status/statustest"
	"understudy/transport/pki"
)

var pictures = flag.Bool("pictures", false, "write what the page looks like in each state into build/dashboard")

// papers are the certificate of every endpoint of these tests, and its pin.
type papers struct{ cert, key, pin string }

var (
	shown  papers
	chrome *browser.Browser
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "understudy-dashboard-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	authority, err := pki.NewAuthority(time.Now())
	if err != nil {
		return 1, err
	}
	pair, err := authority.Issue("alpha", time.Now(), 0)
	if err == nil {
		err = pair.Save(dir)
	}
	if err != nil {
		return 1, err
	}
	shown = papers{cert: pki.CertificateFile(dir, "alpha"), key: pki.KeyFile(dir, "alpha")}
	leaf, err := pki.ReadCertificate(shown.cert)
	if err != nil {
		return 1, err
	}
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	shown.pin = base64.StdEncoding.EncodeToString(sum[:])
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if chrome, err = browser.Start(ctx, browser.Options{Pins: []string{shown.pin}}); err != nil {
		return 1, err
	}
	code = m.Run()
	if err := chrome.Close(); err != nil {
		return 1, err
	}
	return code, goleak.Find()
}

// testTime is how long a page may take to show what is so.
const testTime = 25 * time.Second

// stage is a host that is made up.
type stage struct {
	status.Operations // what is not below is not asked for
	*statustest.Record[status.Event]
	t                *testing.T
	url              string
	reader, operator string // tokens

	mu      sync.Mutex
	guests  func() []host.GuestStatus
	cluster func() status.Cluster
	exits   map[string][]status.Exit
	self    ownership.HostID
	asked   []string
	refuse  error
	drilled []drill.Summary
	past    *samples.Keeper
	early   atomic.Int32 // how often the host is still asked for samples before it has any
	reports map[string]drill.Report
	cost    host.FailoverCost
	others  map[ownership.HostID]string // where other hosts answer, "" for nowhere; nil: they are not asked
	who     status.Level                // what those who say nothing may
	stop    func()                      // ends the endpoint
	address string
	tokens  string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{t: t, self: "alpha", reports: map[string]drill.Report{}, Record: statustest.NewRecord(func(e status.Event) uint64 { return e.Seq }), cluster: wellCluster, guests: func() []host.GuestStatus { return nil }}
	var lines strings.Builder
	for secret, level := range map[*string]status.Level{&s.reader: status.Read, &s.operator: status.Operate} {
		made, token, err := status.NewToken("eve-"+level.String(), level)
		if err != nil {
			t.Fatal(err)
		}
		*secret = made
		fmt.Fprintln(&lines, token.Line())
	}
	s.tokens = filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(s.tokens, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	s.past = samples.NewKeeper(s.self)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); s.past.Run(ctx, clock.Boot{}, s.Status) }()
	t.Cleanup(func() { cancel(); <-ended })
	s.address = "127.0.0.1:0"
	s.up()
	t.Cleanup(func() { s.stop() })
	return s
}

// asked is the stage's past, which may have to be asked for more than once.
type asked struct{ s *stage }

func (a asked) Series(guest, ring, since string, now clock.Instant) (samples.Series, error) {
	if a.s.early.Add(-1) >= 0 {
		return samples.Series{}, samples.ErrGuest
	}
	return a.s.past.Series(guest, ring, since, now)
}

// up serves the endpoint, at the same address as before.
func (s *stage) up() {
	s.t.Helper()
	l, err := new(net.ListenConfig).Listen(s.t.Context(), "tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.address = l.Addr().String()
	s.url = "https://" + s.address + "/ui/"
	server := status.NewServer(status.Sources{Operations: s, Events: s, Drills: drills{s}, Bubbles: s, Peers: s.peers(), Samples: asked{s}, Cluster: func() status.Cluster { s.mu.Lock(); defer s.mu.Unlock(); return s.cluster() },
		Report: func() status.Report {
			s.mu.Lock()
			defer s.mu.Unlock()
			return status.Report{Host: s.self, Leader: s.cluster().Leader, Lease: time.Second, Exits: s.exits}
		}})
	show, err := status.CertificateFiles(shown.cert, shown.key, server.Slog)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- server.ServeTLS(ctx, l, status.Endpoint{Certificate: show, Tokens: s.tokens, Anonymous: max(s.who, status.Health)})
	}()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("serve: %v", err)
		}
	})
}

func (s *stage) Status() []host.GuestStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.guests()
}

// is makes the host see these guests from now on; what it returns is changed by f
// as time goes by.
func (s *stage) is(f func() []host.GuestStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guests = f
}

// was has the host remember what it saw of these guests, as of so long ago, in the
// last minutes.
func (s *stage) was(minutes int, f func(at time.Time) []host.GuestStatus) {
	now, wall := clock.Boot{}.Now(), time.Now()
	for ago := time.Duration(minutes) * time.Minute; ago > 0; ago -= time.Second {
		s.past.Take(now.Add(-ago), f(wall.Add(-ago)))
	}
}

func (s *stage) knows(f func() status.Cluster) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cluster = f
}

func (s *stage) did(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, what)
	return s.refuse
}

func (s *stage) done() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
}

// tell adds an event, of so long ago.
func (s *stage) tell(ago time.Duration, event map[string]any) {
	s.Add(func(n uint64) status.Event {
		event["seq"], event["time"] = n, time.Now().Add(-ago).UTC().Format(time.RFC3339Nano)
		if event["host"] == nil {
			event["host"] = "alpha"
		}
		text, err := json.Marshal(event)
		if err != nil {
			s.t.Error(err)
		}
		return status.Event{Seq: n, JSON: text}
	})
}

// page is a tab with what its test wants of it.
type page struct {
	*browser.Page
	t   *testing.T
	ctx context.Context
}

// open opens a tab, signed in with a token unless that is "", and goes there.
func open(t *testing.T, url, token string) *page {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	tab, err := chrome.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := tab.Close(end); err != nil {
			t.Error(err)
		}
	})
	p := &page{Page: tab, t: t, ctx: ctx}
	p.size(1200, 900, false)
	p.visit(url)
	if token != "" {
		p.signIn(token)
	}
	return p
}

func (p *page) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *page) visit(url string) { p.t.Helper(); p.must(p.Go(p.ctx, url)) }

func (p *page) size(width, height int, phone bool) {
	p.t.Helper()
	p.must(p.Size(p.ctx, width, height, phone))
}

func (p *page) press(keys ...string) {
	p.t.Helper()
	for _, k := range keys {
		p.must(p.Press(p.ctx, k))
	}
}

// signIn types a token as a person does.
func (p *page) signIn(token string) {
	p.t.Helper()
	p.within(20*time.Second, "a question for a token", "!document.getElementById('signinbox').hidden")
	p.must(p.Eval(p.ctx, "document.getElementById('token').focus()", nil))
	p.must(p.Type(p.ctx, token))
	p.press("Enter")
}

// within waits until a script is true.
func (p *page) within(limit time.Duration, what, script string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	p.must(p.Await(ctx, what, script))
}

// reads waits until the page, or a part of it, shows a text.
func (p *page) reads(selector, text string) {
	p.t.Helper()
	p.within(testTime, fmt.Sprintf("showing %q in %s", text, selector),
		fmt.Sprintf("[...document.querySelectorAll(%q)].some((e) => e.checkVisibility() && e.textContent.includes(%q))", selector, text))
}

// hears waits until a screen reader has been told a text.
func (p *page) hears(text string) {
	p.t.Helper()
	p.within(testTime, fmt.Sprintf("saying %q", text), fmt.Sprintf("document.getElementById('news').textContent.includes(%q)", text))
}

func (p *page) text(selector string) string {
	p.t.Helper()
	text, err := p.Text(p.ctx, selector)
	p.must(err)
	return text
}

// clean checks what a person does not see: nothing on the console, no request to
// anybody else, no control without a name, nothing wider than the window.
func (p *page) clean(url string, expected ...string) {
	p.t.Helper()
	origin := strings.TrimSuffix(url, "/ui/") + "/"
	for _, line := range p.Console() {
		known := false
		for _, e := range expected {
			known = known || strings.Contains(line, e)
		}
		if !known {
			p.t.Errorf("on the console: %s", line)
		}
	}
	for _, r := range p.Requests() {
		if !strings.HasPrefix(r, origin) && r != "about:blank" {
			p.t.Errorf("the page asked for %s", r)
		}
	}
	nodes, err := p.Tree(p.ctx)
	p.must(err)
	for _, n := range browser.Nameless(nodes) {
		p.t.Errorf("a screen reader is told of a %s without a name", n.Role)
	}
	var wide string
	p.must(p.Eval(p.ctx, `document.documentElement.scrollWidth <= innerWidth ? '' : [...document.querySelectorAll('body *')]
		.filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll') && !e.closest('.visually-hidden'))
		.map((e) => e.tagName + '.' + e.getAttribute('class')).slice(0, 5).join(' ') || 'something'`, &wide))
	if wide != "" {
		p.t.Errorf("wider than the window: %s", wide)
	}
}

// picture writes what the page looks like, if that was asked for.
func (p *page) picture(name string) {
	p.t.Helper()
	if !*pictures {
		return
	}
	dir := filepath.Join("..", "..", "build", "dashboard")
	p.must(os.MkdirAll(dir, 0o755))
	p.must(p.Page.Picture(p.ctx, filepath.Join(dir, name+".png"), !strings.HasPrefix(name, "phone")))
}

// portraits writes what a state looks like: on a desk and on a phone, in the light
// and in the dark.
func (p *page) portraits(name string) {
	p.t.Helper()
	if !*pictures {
		return
	}
	for _, scheme := range []string{"light", "dark"} {
		p.must(p.Prefer(p.ctx, "prefers-color-scheme", scheme))
		p.picture(name + "-" + scheme)
		p.size(360, 2000, true)
		p.picture("phone-" + name + "-" + scheme)
		p.size(1200, 900, false)
	}
	p.must(p.Prefer(p.ctx, "prefers-color-scheme", "light"))
}

// refused are lines that Chromium itself writes about answers that a test wants.
const refused = "Failed to load resource"
