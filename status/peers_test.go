package status

// Three hosts with their own certificates ask each other over the pair's port:
// whoever reaches one reaches all, nobody else gets in, and a host that is dead,
// silent, endless or hostile costs the others a bounded time. The slow ones are
// played in fake time, over pipes.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/host"
	"understudy/ownership"
	"understudy/transport"
	"understudy/transport/pki"
)

const peerProtocol = "understudy-api/1"

// known3 are the hosts of the tests' configuration.
var known3 = []ownership.HostID{"alpha", "beta", "witness"}

// trio is three hosts, of which each can be started and ended.
type trio struct {
	t        *testing.T
	keys     string
	mu       sync.Mutex
	at       map[ownership.HostID]string
	fakes    map[ownership.HostID]*fake
	ends     map[ownership.HostID]func()
	unix     map[ownership.HostID]http.Handler // what its socket answers
	owner    ownership.HostID                  // of every guest
	recorded map[ownership.HostID]recorded
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	three := &trio{t: t, keys: t.TempDir(), owner: "beta", at: map[ownership.HostID]string{}, fakes: map[ownership.HostID]*fake{},
		ends: map[ownership.HostID]func(){}, unix: map[ownership.HostID]http.Handler{}, recorded: map[ownership.HostID]recorded{}}
	if err := pki.Init(three.keys, []string{"alpha", "beta", "witness", "mallory"}, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, h := range known3 {
			three.end(h)
		}
	})
	for _, h := range known3 {
		three.fakes[h], three.recorded[h] = newFake(), newRecorded(5)
		three.begin(h)
	}
	return three
}

func (three *trio) identity(name string) *transport.Identity {
	three.t.Helper()
	id, err := transport.LoadIdentity(three.keys, name)
	if err != nil {
		three.t.Fatal(err)
	}
	return id
}

// begin starts a host, at the address it had.
func (three *trio) begin(h ownership.HostID) {
	t := three.t
	t.Helper()
	three.mu.Lock()
	defer three.mu.Unlock()
	id := three.identity(string(h))
	at := three.at[h]
	if at == "" {
		at = "127.0.0.1:0"
	}
	var names []string
	for _, k := range known3 {
		names = append(names, string(k))
	}
	ctx, cancel := context.WithCancel(context.Background())
	port, err := transport.Listen(ctx, at, id, names, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	three.at[h] = port.Addr().String()
	from := sourcesOf(three.fakes[h])
	from.Report = func() Report { return Report{Host: h, Leader: "witness", Lease: time.Second} }
	from.Peers, from.Events = &asked{three, id}, three.recorded[h]
	from.Owner = func(string) ownership.HostID { return three.owner }
	s := NewServer(from)
	three.unix[h] = s.unix.Handler
	ended := make(chan error, 1)
	peers := port.Protocol(peerProtocol) // before anybody can ask
	go func() {
		ended <- s.ServePeers(ctx, peers, func(c net.Conn) ownership.HostID { return ownership.HostID(transport.PeerName(c)) })
	}()
	three.ends[h] = func() {
		cancel()
		if err := errors.Join(<-ended, port.Close()); err != nil {
			t.Errorf("%s: %v", h, err)
		}
	}
}

func (three *trio) end(h ownership.HostID) {
	three.mu.Lock()
	end := three.ends[h]
	delete(three.ends, h)
	three.mu.Unlock()
	if end != nil {
		end()
	}
}

// asked is how one host asks the others.
type asked struct {
	three *trio
	id    *transport.Identity
}

func (*asked) Hosts() []ownership.HostID { return known3 }

func (a *asked) Client(h ownership.HostID) (*Client, error) {
	if !slices.Contains(known3, h) {
		return nil, fmt.Errorf("no host %q in the configuration", h)
	}
	return NewPeerClient(h, func(ctx context.Context) (net.Conn, error) {
		a.three.mu.Lock()
		at := a.three.at[h]
		a.three.mu.Unlock()
		return transport.Dial(ctx, at, string(h), peerProtocol, a.id)
	}), nil
}

// socket is a client of the Unix socket of h.
func (three *trio) socket(h ownership.HostID) *Client {
	three.t.Helper()
	at := httptest.NewServer(three.unix[h])
	three.t.Cleanup(at.Close)
	return &Client{socket: "socket of " + string(h), base: at.URL, silent: ErrNoDaemon, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
}

func TestWhoeverReachesOneHostReachesAll(t *testing.T) {
	three := newTrio(t)
	local := three.socket("alpha")
	for _, h := range known3 {
		r, err := local.At(h).Status(t.Context())
		if err != nil || r.Host != h {
			t.Errorf("%s asked through alpha: %q, %v", h, r.Host, err)
		}
		var g ownership.Guest
		if err := local.At(h).Operate(t.Context(), "web/1", "start", &g); err != nil {
			t.Errorf("start at %s: %v", h, err)
		}
		if did := <-three.fakes[h].asked; did != "start web/1" {
			t.Errorf("%s was asked to %s", h, did)
		}
	}
	var list HostList
	if err := local.Get(t.Context(), "/api/v1/hosts", &list); err != nil || list.Host != "alpha" || !slices.Equal(list.Hosts, known3) {
		t.Errorf("%+v, %v", list, err)
	}
	if text, err := local.At("beta").Raw(t.Context(), "/metrics", 1<<20); err != nil || !bytes.Contains(text, []byte("understudy_build_info")) {
		t.Errorf("metrics of beta: %v", err)
	}
	_, err := local.At("gamma").Status(t.Context())
	if refused := new(Refused); !errors.As(err, &refused) || refused.Status != http.StatusNotFound || !strings.Contains(err.Error(), `no host "gamma"`) {
		t.Errorf("a host that is none: %v", err)
	}
	// And the other's refusals are its own.
	three.fakes["beta"].err = errors.New("the guest is not stopped")
	if err := local.At("beta").Operate(t.Context(), "web", "start", &struct{}{}); err == nil || err.Error() != "the guest is not stopped" {
		t.Errorf("a refusal: %v", err)
	}
}

func TestStreamsPassThrough(t *testing.T) {
	three := newTrio(t)
	local := three.socket("alpha")
	var seen []uint64
	var saved host.SaveResult
	err := local.At("beta").Checkpoint(t.Context(), "web", "save", host.SaveRequest{File: "/f"}, &saved, func(_ string, done, _ uint64) { seen = append(seen, done) })
	if err != nil || saved.Path != "/f" || len(seen) < 2 || seen[len(seen)-1] != 999 {
		t.Errorf("a checkpoint: %+v, progress %v, %v", saved, seen, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp, err := local.At("beta").ask(ctx, http.MethodGet, "/api/v1/stream", nil, http.Header{"Last-Event-Id": {"3"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	var ids []string
	for len(ids) < 2 && lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			ids = append(ids, id)
		}
	}
	if resp.Header.Get("Content-Type") != "text/event-stream" || !slices.Equal(ids, []string{"4", "5"}) {
		t.Errorf("%s with events %q: %v", resp.Header.Get("Content-Type"), ids, lines.Err())
	}
	// It ends with its server, wherever that is.
	three.end("beta")
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "id: ") {
			t.Errorf("more: %q", lines.Text())
		}
	}
}

// TestWhatOnlyTheOwnerCanDoIsDoneByTheOwner, whichever host is asked; and by one
// hop, whoever owns the guest now.
func TestWhatOnlyTheOwnerCanDoIsDoneByTheOwner(t *testing.T) {
	three := newTrio(t)
	three.fakes["beta"].state = ownership.Guest{Owner: "alpha", Generation: 8}
	for _, asked := range []ownership.HostID{"alpha", "witness", "beta"} {
		local := three.socket(asked)
		for _, operation := range []string{"switchover", "stop", "verify"} {
			var g ownership.Guest
			if operation == "verify" {
				if err := local.Operate(t.Context(), "web", operation, &host.VerifyFileResult{}); err != nil {
					t.Errorf("%s asked of %s: %v", operation, asked, err)
				}
			} else if err := local.Operate(t.Context(), "web", operation, &g); err != nil || g.Generation != 8 {
				t.Errorf("%s asked of %s: %+v, %v", operation, asked, g, err)
			}
			if did := <-three.fakes["beta"].asked; did != operation+" web" {
				t.Errorf("beta was asked to %s", did)
			}
		}
		var saved host.SaveResult
		if err := local.Checkpoint(t.Context(), "web", "save", host.SaveRequest{File: "/f"}, &saved, nil); err != nil || saved.Path != "/f" {
			t.Errorf("save asked of %s: %+v, %v", asked, saved, err)
		}
		<-three.fakes["beta"].asked
	}
	// A host that runs the guest does it itself, whatever is said of the owner.
	three.fakes["alpha"].set(running())
	if err := three.socket("alpha").Operate(t.Context(), "web", "stop", &ownership.Guest{}); err != nil {
		t.Error(err)
	}
	if did := <-three.fakes["alpha"].asked; did != "stop web" {
		t.Errorf("alpha was asked to %s", did)
	}
	// What is asked of a host by its name goes no further.
	three.fakes["witness"].err = errors.New("ask host beta")
	if err := three.socket("alpha").At("witness").Operate(t.Context(), "web", "stop", &ownership.Guest{}); err == nil || err.Error() != "ask host beta" {
		t.Errorf("a second hop: %v", err)
	}
	// And an owner that is not there is named.
	three.end("beta")
	err := three.socket("witness").Operate(t.Context(), "web", "switchover", &ownership.Guest{})
	if !errors.Is(err, ErrNoPeer) || !strings.Contains(err.Error(), "this is for host beta to do") {
		t.Errorf("a dead owner: %v", err)
	}
	if len(three.fakes["alpha"].asked)+len(three.fakes["witness"].asked) != 1 { // the witness once, above
		t.Error("somebody else was asked")
	}
}

func TestAHostThatComesBackIsAskedAgain(t *testing.T) {
	three := newTrio(t)
	local := three.socket("alpha")
	for range 3 {
		if r, err := local.At("beta").Status(t.Context()); err != nil || r.Host != "beta" {
			t.Fatalf("%q, %v", r.Host, err)
		}
		three.end("beta")
		if _, err := local.At("beta").Status(t.Context()); !errors.Is(err, ErrNoPeer) || strings.Count(err.Error(), "does not answer") != 1 {
			t.Errorf("a dead host: %v", err)
		}
		three.begin("beta")
	}
}

// TestOnlyHostsOfTheConfigurationAreLetIn: a certificate of the cluster's own
// authority is not enough.
func TestOnlyHostsOfTheConfigurationAreLetIn(t *testing.T) {
	three := newTrio(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if c, err := transport.Dial(ctx, three.at["beta"], "beta", peerProtocol, three.identity("mallory")); err == nil {
		_ = c.Close()
		t.Error("mallory was let in")
	}
	// And who takes a host's place does not get its requests.
	port, err := transport.Listen(ctx, "127.0.0.1:0", three.identity("mallory"), []string{"alpha"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = port.Close() }()
	_ = port.Protocol(peerProtocol)
	three.mu.Lock()
	three.at["beta"] = port.Addr().String()
	three.mu.Unlock()
	if _, err := three.socket("alpha").At("beta").Status(t.Context()); !errors.Is(err, ErrNoPeer) {
		t.Errorf("mallory in beta's place: %v", err)
	}
}

// TestASecondHopIsRefused, however it is dressed.
func TestASecondHopIsRefused(t *testing.T) {
	three := newTrio(t)
	evil, err := (&asked{three, three.identity("beta")}).Client("alpha")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/api/v1/hosts/witness/api/v1/status", "/api/v1/hosts/beta/api/v1/status"} {
		_, err := evil.Raw(t.Context(), path, MaxBody)
		if refused := new(Refused); !errors.As(err, &refused) || refused.Status != http.StatusLoopDetected {
			t.Errorf("%s: %v", path, err)
		}
	}
	if text, err := evil.Raw(t.Context(), "/api/v1/hosts/alpha/api/v1/status", MaxBody); err != nil || !bytes.Contains(text, []byte(`"host":"alpha"`)) {
		t.Errorf("a host asked for itself: %s, %v", text, err)
	}
	local := three.socket("alpha")
	for _, path := range []string{"/api/v1/hosts/beta/api/v1/hosts/witness/api/v1/status", "/api/v1/hosts/beta/api/v1%2Fhosts/witness/api/v1/status", "/api/v1/hosts/alpha/api/v1/hosts/alpha/livez"} {
		_, err := local.Raw(t.Context(), path, MaxBody)
		if refused := new(Refused); !errors.As(err, &refused) || refused.Status != http.StatusLoopDetected {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestPeersBodiesAreBounded(t *testing.T) {
	three := newTrio(t)
	evil, err := (&asked{three, three.identity("beta")}).Client("alpha")
	if err != nil {
		t.Fatal(err)
	}
	zeros := func() io.Reader { return io.LimitReader(spaces{}, MaxBody+10) }
	for about, send := range map[string]func() (*http.Response, error){
		"of a host": func() (*http.Response, error) {
			return evil.sendWith(t.Context(), http.MethodPost, "/api/v1/guests/web/checkpoint/verify", zeros(), nil)
		},
		"through a host": func() (*http.Response, error) {
			return three.socket("alpha").sendWith(t.Context(), http.MethodPost, "/api/v1/hosts/beta/api/v1/guests/web/checkpoint/verify", zeros(), nil)
		},
	} {
		resp, err := send()
		if err != nil {
			continue // ended while it was sent
		}
		_ = resp.Body.Close()
		if resp.StatusCode/100 != 4 {
			t.Errorf("a body without end %s: %s", about, resp.Status)
		}
	}
	for h, f := range three.fakes {
		if len(f.asked) > 0 {
			t.Errorf("%s was asked to %s", h, <-f.asked)
		}
	}
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// TestReadersReadOtherHostsAndNothingMore: the level is that of what is asked.
func TestReadersReadOtherHostsAndNothingMore(t *testing.T) {
	three := newTrio(t)
	f := newFake()
	r := newRigOf(t, f, Nothing)
	r.server.Peers = &asked{three, three.identity("alpha")}
	asker := r.caller("")
	for path, want := range map[string]int{"/api/v1/status": 200, "/metrics": 200, "/livez": 200, "/api/v1/nothing": 403} {
		if a := r.ask(asker, "GET /api/v1/hosts/{host}/{path...}", http.MethodGet, "/api/v1/hosts/beta"+path, r.reader, ""); a.code != want && (want != 200 || a.code != 503) {
			t.Errorf("a reader asks for %s of beta: %d %s, want %d", path, a.code, a.body, want)
		}
	}
	const post = "POST /api/v1/hosts/{host}/{path...}"
	if a := r.ask(asker, post, http.MethodPost, "/api/v1/hosts/beta/api/v1/guests/web/start", r.reader, ""); a.code != http.StatusForbidden {
		t.Errorf("a reader starts a guest of beta: %d %s", a.code, a.body)
	}
	if a := r.ask(asker, "GET /livez", http.MethodGet, "/api/v1/hosts/beta/livez", "", ""); a.code != http.StatusUnauthorized {
		t.Errorf("nobody asks beta: %d %s", a.code, a.body)
	}
	if a := r.ask(asker, post, http.MethodPost, "/api/v1/hosts/beta/api/v1/guests/web/start", r.writer, ""); a.code != http.StatusOK || <-three.fakes["beta"].asked != "start web" {
		t.Errorf("an operator starts a guest of beta: %d %s", a.code, a.body)
	}
	if len(three.fakes["beta"].asked) > 0 {
		t.Errorf("beta was asked to %s", <-three.fakes["beta"].asked)
	}
}

// played is a host whose other end a test plays by hand, over pipes.
type played struct{ come chan net.Conn }

func (p *played) Hosts() []ownership.HostID { return known3 }

func (p *played) Client(h ownership.HostID) (*Client, error) {
	return NewPeerClient(h, func(ctx context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		select {
		case p.come <- far:
			return near, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}), nil
}

// TestAHostThatPlaysFalseCostsABoundedTime, and a bounded room.
func TestAHostThatPlaysFalseCostsABoundedTime(t *testing.T) {
	readRequest := func(c net.Conn) {
		if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.Copy(io.Discard, req.Body)
		}
	}
	say := func(c net.Conn, s string) { _, _ = io.WriteString(c, s) } // whoever hears it
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
	for about, c := range map[string]struct {
		path   string
		play   func(c net.Conn)
		within time.Duration
		code   int // of the answer; 0: it breaks off
	}{
		"it says nothing":      {"/api/v1/status", readRequest, passTime, http.StatusGatewayTimeout},
		"it is no HTTP":        {"/api/v1/status", func(c net.Conn) { readRequest(c); say(c, "SSH-2.0-x\r\n\r\n") }, 0, http.StatusBadGateway},
		"it hangs up":          {"/api/v1/status", func(c net.Conn) { readRequest(c); _ = c.Close() }, 0, http.StatusBadGateway},
		"half an answer":       {"/api/v1/status", func(c net.Conn) { readRequest(c); say(c, head+"{") }, passTime, 0},
		"an answer too long":   {"/api/v1/status", func(c net.Conn) { readRequest(c); say(c, head); _, _ = io.Copy(c, spaces{}) }, 0, 0},
		"a header without end": {"/api/v1/status", func(c net.Conn) { readRequest(c); say(c, "HTTP/1.1 200 OK\r\nX: "); _, _ = io.Copy(c, spaces{}) }, 0, http.StatusBadGateway},
		"a stream gone silent": {"/api/v1/stream", func(c net.Conn) {
			readRequest(c)
			say(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\n")
		}, maxSilence, 0},
		"it sends us elsewhere": {"/api/v1/status", func(c net.Conn) {
			readRequest(c)
			say(c, "HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
		}, 0, http.StatusFound},
	} {
		t.Run(strings.ReplaceAll(about, " ", "-"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from := sourcesOf(newFake())
				peers := &played{make(chan net.Conn)}
				from.Peers = peers
				s := NewServer(from)
				go func() { c.play(<-peers.come) }()
				w := httptest.NewRecorder()
				began, broke := time.Now(), false
				func() {
					defer func() { broke = recover() != nil }()
					s.unix.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v1/hosts/beta"+c.path, nil))
				}()
				if took := time.Since(began); took > c.within {
					t.Errorf("it took %v, at most %v", took, c.within)
				}
				if broke != (c.code == 0) || !broke && w.Code != c.code {
					t.Errorf("broke off: %t, %d %s; want %d", broke, w.Code, w.Body, c.code)
				}
				if w.Body.Len() > MaxBody || w.Header().Get("Location") != "" || w.Header().Get("Set-Cookie") != "" {
					t.Errorf("%d bytes, %v", w.Body.Len(), w.Header())
				}
			})
		})
	}
}

// TestAClientThatReadsNothingHoldsNoStreamOfAnotherHost for long.
func TestAClientThatReadsNothingHoldsNoStreamOfAnotherHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		one := func(from Sources, serve func(s *Server, l net.Listener) error) *pipes {
			l := newPipes()
			s := NewServer(from)
			go func() { ended <- serve(s, l) }()
			return l
		}
		there := sourcesOf(newFake())
		far := one(there, func(s *Server, l net.Listener) error {
			return s.ServePeers(ctx, l, func(net.Conn) ownership.HostID { return "alpha" })
		})
		peers := &played{far.come}
		here := sourcesOf(newFake())
		here.Peers = peers
		near := one(here, func(s *Server, l net.Listener) error {
			return runServer(ctx, s.unix, func() error { return s.unix.Serve(l) })
		})
		c := near.dial()
		if _, err := io.WriteString(c, "GET /api/v1/hosts/beta/api/v1/stream?since=0 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil { // and then nothing more
			t.Fatal(err)
		}
		time.Sleep(2*stillHere + 2*answerTime)
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("the stream goes on although nobody reads it: %v", err)
		}
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestAWitnessHasNoGuestsToFenceFor: what is known of hosts that are off, and an
// operator's word for it, is asked of a host that has guests, and not of the one that
// is off.
func TestAWitnessHasNoGuestsToFenceFor(t *testing.T) {
	three := newTrio(t)
	witness := three.socket("witness")
	for off, other := range map[ownership.HostID]ownership.HostID{"alpha": "beta", "beta": "alpha"} {
		var f host.Fences
		if err := witness.Post(t.Context(), "/api/v1/fence/"+string(off), nil, &f); err != nil || len(f.Guests) != 1 {
			t.Errorf("%s is off: %+v, %v", off, f, err)
		}
		if did := <-three.fakes[other].asked; did != "fence "+string(off) {
			t.Errorf("%s was asked to %s", other, did)
		}
	}
	three.end("beta")
	var f host.Fences
	if err := witness.Get(t.Context(), "/api/v1/fence", &f); err != nil || len(f.Guests) != 1 {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestConnectionsOfOneHostAreBounded(t *testing.T) {
	l := newPipes()
	bounded := newBoundedListener(l, maxPeerConns, maxPeerConnsOfOne, func(net.Conn) (ownership.HostID, bool) { return "beta", true })
	got := make(chan net.Conn, maxPeerConnsOfOne+2)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := bounded.Accept()
			if err != nil {
				return
			}
			got <- c
		}
	}()
	var dialled []net.Conn
	for range maxPeerConnsOfOne + 1 {
		dialled = append(dialled, l.dial())
	}
	if _, err := dialled[maxPeerConnsOfOne].Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one too many: %v", err)
	}
	first := <-got
	_, _ = first.Close(), first.Close() // twice counts once
	l.dial()
	var last []net.Conn
	for range maxPeerConnsOfOne { // the one dialled last among them
		last = append(last, <-got)
	}
	if bounded.all != maxPeerConnsOfOne {
		t.Errorf("%d are counted", bounded.all)
	}
	_ = l.Close()
	<-done
	for _, c := range last {
		_ = c.Close()
	}
	if bounded.all != 0 || len(bounded.by) != 0 {
		t.Errorf("still counted: %v", bounded.by)
	}
}
