package status

// Streams and lists of events, in fake time: what is sent and when, what a
// client that comes back gets, and who is sent nothing.

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// listener is a client's end of a stream.
type listener struct {
	header http.Header
	code   int
	got    chan string // one for each write
	fail   error
}

func newListener() *listener { return &listener{header: http.Header{}, got: make(chan string, 1000)} }

func (l *listener) Header() http.Header { return l.header }
func (l *listener) WriteHeader(c int)   { l.code = c }
func (l *listener) Flush()              {}
func (l *listener) Write(p []byte) (int, error) {
	if l.fail != nil {
		return 0, l.fail
	}
	l.got <- string(p)
	return len(p), nil
}

// all is what has been written, with reports cut short.
func (l *listener) all() (all []string) {
	for len(l.got) > 0 {
		s := <-l.got
		if i := strings.Index(s, "data: {\"version\""); i >= 0 {
			s = s[:i] + "data: …"
		}
		all = append(all, s)
	}
	return all
}

func TestAStreamTellsWhatHappensAndWhatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set(standing())
		from := sourcesOf(f)
		log := newRecorded(3)
		from.Events = log
		s := NewServer(from)
		ctx, cancel := context.WithCancel(t.Context())
		l := newListener()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.stream(l, httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/stream?every=500", nil))
		}()
		expect := func(about string, want ...string) {
			t.Helper()
			synctest.Wait()
			if got := l.all(); !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", about, got, want)
			}
		}
		const report = "event: status\ndata: …"
		expect("at once", "retry: 2000\n\n", report)
		log.add()
		expect("an event", "event: log\nid: 4\ndata: {\"seq\":4,\"guest\":\"web\",\"kind\":\"test\",\"text\":\"number 4\"}\n\n")
		time.Sleep(5 * time.Second)
		expect("nothing changes") // but ages, which the host makes anew each time
		changed := standing()
		changed.Backup.Epoch++
		f.set(changed)
		time.Sleep(time.Second)
		expect("a change, once", report)
		older := standing()
		older.Backup.Epoch, older.Backup.EpochAge = changed.Backup.Epoch, time.Hour
		f.set(older)
		time.Sleep(15 * time.Second)
		expect("only ages", ": still here\n\n")
		time.Sleep(14 * time.Second)
		expect("soon it is long ago", ": still here\n\n")
		time.Sleep(2 * time.Second)
		expect("that was long ago", report)
		cancel()
		<-done
		if s.crowd.all != 0 || len(s.crowd.by) != 0 {
			t.Errorf("it is still counted: %d", s.crowd.all)
		}
	})
}

func TestAClientThatComesBackMissesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := sourcesOf(newFake())
		from.Events = newRecorded(5)
		for about, c := range map[string]struct {
			target, id string
			want       int
		}{
			"by its number":    {"/api/v1/stream", "3", 2},
			"by a parameter":   {"/api/v1/stream?since=1", "", 4},
			"header goes over": {"/api/v1/stream?since=1", "4", 1},
			"from the first":   {"/api/v1/stream?since=0", "", 5},
			"new ones only":    {"/api/v1/stream", "", 0},
		} {
			s, l := NewServer(from), newListener()
			ctx, cancel := context.WithCancel(t.Context())
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, c.target, nil)
			r.Header.Set("Last-Event-ID", c.id)
			done := make(chan struct{})
			go func() { defer close(done); s.stream(l, r) }()
			synctest.Wait()
			events := slices.DeleteFunc(l.all(), func(s string) bool { return !strings.HasPrefix(s, "event: log") })
			if len(events) != c.want || c.want > 0 && !strings.Contains(events[c.want-1], "id: 5\n") {
				t.Errorf("%s: %q, want %d", about, events, c.want)
			}
			cancel()
			<-done
		}
	})
}

func TestAStreamEndsWithItsClientAndItsServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(sourcesOf(newFake()))
		gone := newListener()
		gone.fail = http.ErrHandlerTimeout
		s.stream(gone, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v1/stream", nil)) // returns at the first write

		end, over := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			ctx := context.WithValue(t.Context(), endingKey{}, end)
			s.stream(newListener(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/stream", nil))
		}()
		synctest.Wait()
		over()
		<-done
	})
}

func TestFollowersAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(sourcesOf(newFake()))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan int, 200)
		open := func(address string) *listener {
			l := newListener()
			go func() {
				r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/stream", nil)
				r.RemoteAddr = address
				s.stream(l, r)
				ended <- l.code
			}()
			synctest.Wait()
			return l
		}
		for i := range maxFollowersOfOne {
			if l := open("192.0.2.1:1234"); l.code != 200 {
				t.Errorf("stream %d of an address: %d", i, l.code)
			}
		}
		if l := open("192.0.2.1:999"); l.code != http.StatusTooManyRequests || l.header.Get("Retry-After") == "" {
			t.Errorf("one too many of an address: %d", l.code)
		}
		for i := maxFollowersOfOne; i < maxFollowers; i++ {
			if l := open("@"); l.code != 200 { // the Unix socket
				t.Errorf("stream %d: %d", i, l.code)
			}
		}
		if l := open("192.0.2.2:1"); l.code != http.StatusTooManyRequests {
			t.Errorf("one too many: %d", l.code)
		}
		cancel()
		for range maxFollowers + 2 {
			<-ended
		}
		if s.crowd.all != 0 || len(s.crowd.by) != 0 {
			t.Errorf("still counted: %+v", s.crowd.by)
		}
	})
}

func TestEventsAsAList(t *testing.T) {
	r := newRig(t, Read)
	asker := r.caller("")
	const route = "GET /api/v1/events"
	for query, want := range map[string]struct {
		code int
		says string
	}{
		"":                                  {200, `"last":5}`},
		"?limit=2":                          {200, `{"events":[{"seq":4,`},
		"?since=1&limit=2":                  {200, `"last":3}`},
		"?since=5":                          {200, `{"events":[],"last":5}`},
		"?since=99":                         {200, `{"events":[],"last":99}`},
		"?guest=web&kind=test":              {200, `"last":5}`},
		"?since=-1":                         {400, "is not the number of an event"},
		"?since=1&since=2":                  {400, "is given 2 times"},
		"?limit=0":                          {400, "limit"},
		"?limit=1001":                       {400, "limit"},
		"?guest=" + strings.Repeat("x", 65): {400, "more than 64 bytes"},
	} {
		if a := r.ask(asker, route, http.MethodGet, "/api/v1/events"+query, "", ""); a.code != want.code || !strings.Contains(a.body, want.says) {
			t.Errorf("%s: %d %s; want %d with %s", query, a.code, a.body, want.code, want.says)
		}
	}
	for _, query := range []string{"?every=199", "?every=60001", "?every=x", "?since=x"} {
		if a := r.ask(asker, "GET /api/v1/stream", http.MethodGet, "/api/v1/stream"+query, "", ""); a.code != 400 {
			t.Errorf("a stream with %s: %d", query, a.code)
		}
	}
	r.server.Events = nil
	if a := r.ask(asker, route, http.MethodGet, "/api/v1/events", "", ""); a.code != 404 || !strings.Contains(a.body, "not recorded here") {
		t.Errorf("where nothing is recorded: %d %s", a.code, a.body)
	}
}

func FuzzEventQuery(f *testing.F) {
	f.Add("since=1&limit=10&guest=web&kind=takeover&every=500", "7")
	f.Add("since=-1&since=2&limit=999999999999999999999", "")
	f.Fuzz(func(t *testing.T, query, id string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		q, err := parseEventQuery(values, id)
		if err == nil && (q.limit < 1 || q.limit > maxEvents || q.every < minEvery || q.every > maxEvery || len(q.guest) > maxFilter || len(q.kind) > maxFilter) {
			t.Errorf("%q with %q: %+v", query, id, q)
		}
	})
}
