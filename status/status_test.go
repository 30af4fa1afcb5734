package status

// A daemon's endpoint and its client, over a real Unix socket: what the
// operator sees is what the host says, and nobody else gets at the socket.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/backup"
	"understudy/bubble"
	"understudy/checkpoint"
	"understudy/epoch"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a host that answers what it was told to, and notes what it was asked.
type fake struct {
	mu     sync.Mutex
	guests []host.GuestStatus
	state  ownership.Guest
	verify primary.VerifyResult
	err    error
	asked  chan string
	// wait, if set, holds operations until their context ends.
	wait bool
}

func newFake() *fake { return &fake{asked: make(chan string, 16)} }

func (f *fake) Status() []host.GuestStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.guests
}

func (f *fake) set(guests ...host.GuestStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.guests = guests
}

func (f *fake) do(ctx context.Context, what, guest string) error {
	f.asked <- what + " " + guest
	if f.wait {
		<-ctx.Done()
		return ctx.Err()
	}
	return f.err
}

func (f *fake) Switchover(ctx context.Context, g string) (ownership.Guest, error) {
	return f.state, f.do(ctx, "switchover", g)
}

func (f *fake) Stop(ctx context.Context, g string) (ownership.Guest, error) {
	return f.state, f.do(ctx, "stop", g)
}

func (f *fake) Start(ctx context.Context, g string) (ownership.Guest, error) {
	return f.state, f.do(ctx, "start", g)
}

func (f *fake) Verify(ctx context.Context, g string) (primary.VerifyResult, error) {
	return f.verify, f.do(ctx, "verify", g)
}

func (f *fake) SaveCheckpoint(ctx context.Context, g string, r host.SaveRequest, p host.Progress) (host.SaveResult, error) {
	for i := range uint64(1000) {
		p(host.StageMemory, i, 999)
	}
	return host.SaveResult{Info: checkpoint.Info{Path: r.File, Guest: g}, Rounds: 3}, f.do(ctx, fmt.Sprintf("save %+v", r), g)
}

func (f *fake) RestoreCheckpoint(ctx context.Context, g string, r host.RestoreRequest, _ host.Progress) (host.RestoreResult, error) {
	return host.RestoreResult{Log: f.state, Lazy: !r.Eager}, f.do(ctx, fmt.Sprintf("restore %+v", r), g)
}

func (f *fake) VerifyCheckpoint(ctx context.Context, g, file string, p host.Progress) (host.VerifyFileResult, error) {
	p(host.StageVerify, 1, 2)
	return host.VerifyFileResult{Disks: "stale"}, f.do(ctx, "verify "+file, g)
}

func (f *fake) RemoveCheckpoint(ctx context.Context, g, file string, keep bool) error {
	return f.do(ctx, fmt.Sprintf("remove %s %t", file, keep), g)
}

func (f *fake) Bubble(ctx context.Context, g string, spec bubble.Spec, p bubble.Progress) (bubble.Result, error) {
	p(bubble.StageCopy, 1, 2)
	return bubble.Result{Guest: g, Epoch: 7, Check: &bubble.Check{Command: spec.Check}}, f.do(ctx, fmt.Sprintf("bubble %v", spec.Check), g)
}

func (f *fake) EndBubble(ctx context.Context, g string) error { return f.do(ctx, "bubble ends", g) }

// shortDir is a directory with a name short enough for Unix sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "status")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// serve starts a server on path and returns what stops it and tells its error.
func serve(t *testing.T, ops Operations, path string) (stop func() error) {
	t.Helper()
	bubbles, _ := ops.(Bubbles)
	return serveSources(t, Sources{Operations: ops, Bubbles: bubbles, Report: func() Report {
		return Report{Host: "alpha", Leader: "witness", Lease: time.Second,
			Exits: map[string][]Exit{"web": {{Device: "network 52:54:00:12:34:56", Treatment: "held"}}}}
	}}, path)
}

// serveSources is serve for a server of these sources.
func serveSources(t *testing.T, from Sources, path string) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	s := NewServer(from)
	go func() { ended <- s.Serve(ctx, path) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("the server did not end")
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := net.Dial("unix", path)
		if err == nil {
			_ = c.Close()
			return stop
		}
		select {
		case err := <-ended:
			stopped = true
			t.Fatalf("serve: %v", err)
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody listens at %s: %v", path, err)
		}
	}
}

func TestReportTravelsWhole(t *testing.T) {
	f := newFake()
	f.guests = []host.GuestStatus{
		{Name: "db", Host: "alpha", Role: "backup", Protected: host.ProtectedUnknown,
			Log:    ownership.Guest{Generation: 3, Revision: 9, Owner: "beta", Phase: ownership.PhaseActive, Desired: ownership.Running},
			Backup: &backup.Status{State: "fed", Epoch: 7, EpochAge: 3 * time.Millisecond, Whole: true, InSync: true, Commits: 7}},
		{Name: "web", Host: "alpha", Role: "primary", Protected: host.ProtectedYes,
			Log: ownership.Guest{Generation: 1, Revision: 2, Owner: "alpha", Phase: ownership.PhaseActive, Desired: ownership.Running, InSync: true,
				Backup: ownership.Backup{Host: "beta", Image: epoch.Incarnation{1, 2, 3}, Epoch: 5}},
			Primary: &primary.Status{Mode: primary.ModeProtected, ModeFor: time.Minute, Backup: "beta", Epoch: 1234,
				Totals: primary.Totals{RawBytes: 100, WireBytes: 10}}},
	}
	path := filepath.Join(shortDir(t), "run", "understudy.sock")
	serve(t, f, path)
	got, err := NewClient(path).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := Report{Version: Version, Host: "alpha", Leader: "witness", Lease: time.Second, Guests: f.guests,
		Exits: map[string][]Exit{"web": {{Device: "network 52:54:00:12:34:56", Treatment: "held"}}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestOperationsReachTheirGuest(t *testing.T) {
	f := newFake()
	f.state = ownership.Guest{Generation: 4, Owner: "beta", Phase: ownership.PhaseActive, Desired: ownership.Running}
	f.verify = primary.VerifyResult{Pages: 1 << 17, Epochs: 8, First: 3, Last: 11, Identical: true}
	path := filepath.Join(shortDir(t), "s")
	serve(t, f, path)
	c := NewClient(path)
	for _, operation := range []string{"switchover", "stop", "start", "pause", "resume", "unprotect", "protect", "failback"} {
		// A name is data, whatever is in it.
		for _, guest := range []string{"web", "a b", "a/b", "50%", "..", "ü"} {
			var got ownership.Guest
			if err := c.Operate(t.Context(), guest, operation, &got); err != nil {
				// net/http cleans a path before it looks for its handler.
				if guest == ".." {
					continue
				}
				t.Errorf("%s of %q: %v", operation, guest, err)
				continue
			}
			if asked := <-f.asked; asked != operation+" "+guest {
				t.Errorf("%s of %q arrived as %q", operation, guest, asked)
			}
			if got != f.state {
				t.Errorf("%s of %q: got %+v, want %+v", operation, guest, got, f.state)
			}
		}
	}
	var v primary.VerifyResult
	if err := c.Operate(t.Context(), "web", "verify", &v); err != nil || v != f.verify {
		t.Errorf("verify: %+v, %v; want %+v", v, err, f.verify)
	}
}

func TestErrorsComeInTheHostsOwnWords(t *testing.T) {
	f := newFake()
	f.err = errors.New(`guest "web" is not protected (alone): a switchover needs a backup in sync`)
	path := filepath.Join(shortDir(t), "s")
	serve(t, f, path)
	c := NewClient(path)
	for _, operation := range []string{"switchover", "stop", "start", "verify", "pause", "resume", "unprotect", "protect", "failback"} {
		var any json.RawMessage
		err := c.Operate(t.Context(), "web", operation, &any)
		if err == nil || err.Error() != f.err.Error() || errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: %v, want %v", operation, err, f.err)
		}
	}
	var any json.RawMessage
	if err := c.Operate(t.Context(), "web", "explode", &any); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("an operation that does not exist: %v", err)
	}
}

// TestAGuestThatIsNotThereIsNamed asks a real host, which has no guests.
func TestAGuestThatIsNotThereIsNamed(t *testing.T) {
	h, err := host.New(host.Config{Self: "alpha", Slog: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(shortDir(t), "s")
	serve(t, h, path)
	for _, operation := range []string{"switchover", "stop", "start", "verify", "pause", "resume", "unprotect", "protect", "failback"} {
		var any json.RawMessage
		err := NewClient(path).Operate(t.Context(), "nobody", operation, &any)
		if err == nil || !strings.Contains(err.Error(), `no guest "nobody" on host alpha`) {
			t.Errorf("%s: %v", operation, err)
		}
	}
	r, err := NewClient(path).Status(t.Context())
	if err != nil || len(r.Guests) != 0 {
		t.Errorf("status: %+v, %v", r, err)
	}
}

func TestOnlyTheDocumentedMethodsAreAnswered(t *testing.T) {
	f := newFake()
	path := filepath.Join(shortDir(t), "s")
	serve(t, f, path)
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/api/v1/status", 200},
		{http.MethodPost, "/api/v1/status", 405},
		{http.MethodGet, "/api/v1/guests/web/switchover", 405},
		{http.MethodPost, "/api/v1/guests/web", 405},
		{http.MethodPost, "/api/v1/guests/web/explode", 404},
		{http.MethodGet, "/", 404},
	} {
		resp := request(t, path, c.method, c.path, nil)
		if resp.StatusCode != c.want {
			t.Errorf("%s %s: %s, want %d", c.method, c.path, resp.Status, c.want)
		}
	}
	if len(f.asked) != 0 {
		t.Errorf("the host was asked to %s", <-f.asked)
	}
}

// request is one request by a client of no particular program.
func request(t *testing.T, socket, method, path string, body io.Reader) *http.Response {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body) // what counts is the status
	_ = resp.Body.Close()
	return resp
}

// endless is a body without end that counts what was taken of it.
type endless struct{ taken atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.taken.Add(int64(len(p)))
	return len(p), nil
}

func TestABodyIsNotSwallowed(t *testing.T) {
	f := newFake()
	path := filepath.Join(shortDir(t), "s")
	serve(t, f, path)
	body := &endless{}
	resp := request(t, path, http.MethodPost, "/api/v1/guests/web/stop", body)
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the answer to an endless body: %s", resp.Status)
	}
	if n := body.taken.Load(); n > MaxBody {
		t.Errorf("the server took %d bytes of a body it does not need, at most %d are allowed", n, MaxBody)
	}
}

// TestHostileAnswersAreErrors lets the client talk to a daemon that is none.
func TestHostileAnswersAreErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		body io.Reader
		want string
	}{
		{"not JSON", strings.NewReader("<html>"), "/api/v1/status"},
		{"another shape", strings.NewReader(`{"guests": 3}`), "/api/v1/status"},
		{"without end", &endless{}, fmt.Sprintf("more than %d bytes", MaxBody)},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(shortDir(t), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.Copy(w, c.body) // ends when the client hangs up
			})}
			ended := make(chan error, 1)
			go func() { ended <- s.Serve(l) }()
			t.Cleanup(func() { _, _ = s.Close(), <-ended })
			_, err = NewClient(path).Status(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want an error with %q and the socket's path", err, c.want)
			}
		})
	}
}

func TestNobodyAnswers(t *testing.T) {
	dir := shortDir(t)
	stale := filepath.Join(dir, "stale")
	leaveStale(t, stale)
	for _, path := range []string{filepath.Join(dir, "missing"), stale} {
		_, err := NewClient(path).Status(t.Context())
		if !errors.Is(err, ErrNoDaemon) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want ErrNoDaemon and the path", path, err)
		}
	}
}

// leaveStale leaves a socket behind that nobody listens at, as a daemon does
// that was killed.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSocketIsTheOwnersAlone(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	stop := serve(t, newFake(), path)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket has mode %v, want %v", st.Mode(), fs.ModeSocket|0o600)
	}
	if err := stop(); err != nil {
		t.Errorf("serve: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestAStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	leaveStale(t, path)
	serve(t, newFake(), path)
	if _, err := NewClient(path).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestALiveDaemonsSocketIsNotTakenAway(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	first := newFake()
	first.guests = []host.GuestStatus{{Name: "web", Role: "primary"}}
	serve(t, first, path)
	err := NewServer(Sources{Operations: newFake(), Report: func() Report { return Report{} }}).Serve(t.Context(), path)
	if err == nil || !strings.Contains(err.Error(), "another daemon answers there") {
		t.Errorf("a second server on the same socket: %v", err)
	}
	r, err := NewClient(path).Status(t.Context())
	if err != nil || len(r.Guests) != 1 {
		t.Errorf("the first daemon answers %+v, %v", r, err)
	}
}

func TestAFileInTheWayIsLeftAlone(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := NewServer(Sources{Operations: newFake(), Report: func() Report { return Report{} }}).Serve(t.Context(), path)
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a server on a regular file: %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

// TestAnOperationEndsWithItsClient: an operator who gives up must not leave a
// wait behind in the daemon.
func TestAnOperationEndsWithItsClient(t *testing.T) {
	f := newFake()
	f.wait = true
	path := filepath.Join(shortDir(t), "s")
	stop := serve(t, f, path)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		var g ownership.Guest
		failed <- NewClient(path).Operate(ctx, "web", "switchover", &g)
	}()
	<-f.asked
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoDaemon) {
		t.Errorf("the client that gave up got %v, want only that it was cancelled", err)
	}
	if err := stop(); err != nil { // waits for the handler
		t.Error(err)
	}
}

// TestTheServerEndsUnderAnOperation: a daemon that goes down does not wait for
// an operation that does not end.
func TestTheServerEndsUnderAnOperation(t *testing.T) {
	f := newFake()
	f.wait = true
	path := filepath.Join(shortDir(t), "s")
	stop := serve(t, f, path)
	failed := make(chan error, 1)
	go func() {
		var v primary.VerifyResult
		failed <- NewClient(path).Operate(context.Background(), "web", "verify", &v)
	}()
	<-f.asked
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("the operation succeeded although the daemon went down")
	}
}
