package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// newTestAcceptor serves an in-memory listener and logs to the returned log.
func newTestAcceptor(t *testing.T, cfg Config) (*Acceptor, *pipeListener, *logged) {
	t.Helper()
	var log logged
	l := newPipeListener()
	a, err := NewAcceptor(l, cfg, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	return a, l, &log
}

// Several sessions that join at the same time do not get each other's
// connections.
func TestSessionsDoNotMix(t *testing.T) {
	ca := newTestAuthority(t)
	p := listen(t, ca.identity("b"), silent(), "a", "c")
	acc, err := NewAcceptor(p.Protocol(testProtocol), DefaultConfig(), silent())
	if err != nil {
		t.Fatal(err)
	}
	defer acc.Close()
	var wg sync.WaitGroup
	for i := range 6 {
		host := []string{"a", "c"}[i%2]
		id := ca.identity(host)
		wg.Go(func() {
			s, err := Connect(testContext(t), func(ctx context.Context) (net.Conn, error) {
				return dialConn(ctx, p.Addr().String(), "b", id)
			}, DefaultConfig(), silent())
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			for range 10 {
				if err := s.Send(testContext(t), uint8(i), []byte(host)); err != nil {
					t.Error(err)
				}
			}
			if m, err := s.Receive(testContext(t)); err != nil || string(m.Payload) != "thanks, "+host {
				t.Errorf("answer %q, %v", m.Payload, err)
			}
		})
		wg.Go(func() {
			s, err := acc.Accept(testContext(t))
			if err != nil {
				t.Error(err)
				return
			}
			first := -1
			for range 10 {
				m, err := s.Receive(testContext(t))
				if err != nil {
					t.Error(err)
					return
				}
				if first < 0 {
					first = int(m.Kind)
				}
				if int(m.Kind) != first || string(m.Payload) != s.Peer() {
					t.Errorf("session of %s, sender %d: message of %q, sender %d", s.Peer(), first, m.Payload, m.Kind)
				}
				m.Release()
			}
			if err := s.Send(testContext(t), 0, []byte("thanks, "+s.Peer())); err != nil {
				t.Error(err)
			}
			<-s.Done() // the other side closes when it has the answer
			_ = s.Close()
		})
	}
	wg.Wait()
}

// Another host cannot put its connection into a session, even if it knows the
// session's id.
func TestAStrangersConnectionDoesNotJoin(t *testing.T) {
	ca := newTestAuthority(t)
	p := listen(t, ca.identity("b"), silent(), "a", "c")
	acc, err := NewAcceptor(p.Protocol(testProtocol), DefaultConfig(), silent())
	if err != nil {
		t.Fatal(err)
	}
	defer acc.Close()
	h := helloOf(DefaultConfig())
	h.id, h.lanes = sessionID{7}, 2
	for i, host := range []string{"a", "c"} {
		conn, err := dialConn(testContext(t), p.Addr().String(), "b", ca.identity(host))
		if err != nil {
			t.Fatal(err)
		}
		defer hardClose(conn)
		h.lane = i
		if err := sendHello(conn, h); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both wait, apart", func() bool {
		acc.mu.Lock()
		defer acc.mu.Unlock()
		return len(acc.pending) == 2
	})
	if len(acc.ready) != 0 {
		t.Error("a session of two hosts' connections was made")
	}
}

// Settings that do not fit are refused with both sides' values.
func TestHeartbeatsMustFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		acc, l, log := newTestAcceptor(t, DefaultConfig())
		cfg := DefaultConfig()
		cfg.HeartbeatInterval, cfg.HeartbeatTimeout = time.Second, 3*time.Second
		_, err := Connect(t.Context(), l.dial, cfg, silent())
		wantError(t, err, "heartbeats do not fit")
		wantError(t, err, "every 50ms")
		synctest.Wait()
		if !strings.Contains(log.String(), "heartbeats do not fit") {
			t.Errorf("not in the acceptor's log: %s", log)
		}
		_ = acc.Close()
	})
}

// A session whose other connections never come is given up, on both sides, and
// its connections are closed.
func TestHalfASessionIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		acc, l, log := newTestAcceptor(t, DefaultConfig())
		h := helloOf(DefaultConfig())
		h.id, h.lanes = sessionID{9}, 2
		conn, err := l.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := sendHello(conn, h); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := readHello(conn); !errors.Is(err, io.EOF) {
			t.Errorf("the answer is %v", err)
		}
		if took := time.Since(began); took != joinTimeout {
			t.Errorf("given up after %v", took)
		}
		synctest.Wait()
		if !strings.Contains(log.String(), "had 1 of 2 connections") {
			t.Errorf("the log says %s", log)
		}
		_ = acc.Close()

		// The dialer's side: an acceptor that never answers.
		deaf := newPipeListener()
		go func() {
			for {
				conn, err := deaf.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(io.Discard, conn) }()
			}
		}()
		_, err = Connect(t.Context(), deaf.dial, DefaultConfig(), silent())
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a deaf acceptor: %v", err)
		}
		_ = deaf.Close()
	})
}

// Hostile hellos are refused with the reason, and leave nothing behind.
func TestHostileHellos(t *testing.T) {
	good := helloOf(DefaultConfig())
	good.id, good.lanes = sessionID{3}, 1
	with := func(change func(*hello)) hello {
		h := good
		change(&h)
		return h
	}
	for _, tt := range []struct {
		name string
		h    []hello // one per connection
		want string
	}{
		{"no connections", []hello{with(func(h *hello) { h.lanes = 0 })}, "a session of 0 connections"},
		{"too many connections", []hello{with(func(h *hello) { h.lanes = maxLanes + 1 })}, "a session of 17 connections"},
		{"connection beyond the last", []hello{with(func(h *hello) { h.lane = 1 })}, "connection 1 of a session of 1"},
		{"no messages", []hello{with(func(h *hello) { h.maxMessage = 0 })}, "messages of up to 0 bytes"},
		{"huge messages", []hello{with(func(h *hello) { h.maxMessage = 1 << 30 })}, "messages of up to 1073741824 bytes"},
		{"no window", []hello{with(func(h *hello) { h.window = 0 })}, "a window of 0 bytes"},
		{"endless window", []hello{with(func(h *hello) { h.window = 1 << 63 })}, "a window of"},
		{"no heartbeats", []hello{with(func(h *hello) { h.interval = 0 })}, "heartbeats every 0s"},
		{"the same connection twice", []hello{with(func(h *hello) { h.lanes = 2 }), with(func(h *hello) { h.lanes = 2 })}, "is there already"},
		{"number of connections changes", []hello{with(func(h *hello) { h.lanes = 2 }), with(func(h *hello) { h.lane, h.lanes = 1, 3 })}, "the session has 2"},
		{"connections differ", []hello{with(func(h *hello) { h.lanes = 2 }), with(func(h *hello) { h.lane, h.lanes, h.window = 1, 2, 4<<20 })}, "differ"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				acc, l, log := newTestAcceptor(t, DefaultConfig())
				for _, h := range tt.h {
					conn, err := l.dial(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					go func() { _, _ = io.Copy(io.Discard, conn) }()
					if err := sendHello(conn, h); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
				}
				if !strings.Contains(log.String(), tt.want) {
					t.Errorf("the log says %q", log)
				}
				if len(acc.ready) != 0 || len(acc.pending) != 0 || len(acc.greeted) != 0 {
					t.Errorf("left behind: %d ready, %d pending, %d greeted", len(acc.ready), len(acc.pending), len(acc.greeted))
				}
				_ = acc.Close()
			})
		})
	}
}

// What an acceptor holds for dialers that never finish is bounded.
func TestPendingSessionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		acc, l, log := newTestAcceptor(t, DefaultConfig())
		var conns []net.Conn
		for i := range maxPending + 3 {
			conn, err := l.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			h := helloOf(DefaultConfig())
			h.id, h.lanes = sessionID{byte(i)}, 2
			if err := sendHello(conn, h); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if len(acc.pending) != maxPending {
			t.Errorf("%d sessions pending", len(acc.pending))
		}
		if !strings.Contains(log.String(), "wait for their other connections") {
			t.Errorf("the log says %s", log)
		}
		for range maxHellos + 3 { // these say nothing at all
			conn, err := l.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		synctest.Wait()
		if len(acc.greeted) != maxHellos {
			t.Errorf("%d connections without a hello", len(acc.greeted))
		}
		_ = acc.Close()
		if _, err := acc.Accept(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
	})
}

// A dial that fails ends the whole attempt, with its reason, and closes the
// connections that did succeed.
func TestConnectReportsTheDialersError(t *testing.T) {
	acc, l, _ := newTestAcceptor(t, DefaultConfig())
	defer acc.Close()
	noWay := errors.New("no way")
	var mu sync.Mutex
	calls := 0
	_, err := Connect(testContext(t), func(ctx context.Context) (net.Conn, error) {
		mu.Lock()
		calls++
		n := calls
		mu.Unlock()
		if n == 2 {
			return nil, noWay
		}
		return l.dial(ctx)
	}, DefaultConfig(), silent())
	if !errors.Is(err, noWay) {
		t.Errorf("error %v", err)
	}
}

func TestConfigValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
	for _, tt := range []struct {
		want   string
		change func(*Config)
	}{
		{"Connections is 0", func(c *Config) { c.Connections = 0 }},
		{"Connections is 17", func(c *Config) { c.Connections = 17 }},
		{"MaxMessage is 0", func(c *Config) { c.MaxMessage = 0 }},
		{"Window is 1048576", func(c *Config) { c.Window = 1 << 20 }},
		{"HeartbeatInterval is 0s", func(c *Config) { c.HeartbeatInterval = 0 }},
		{"HeartbeatTimeout is 60ms", func(c *Config) { c.HeartbeatTimeout = 60 * time.Millisecond }},
	} {
		c := DefaultConfig()
		tt.change(&c)
		wantError(t, c.Validate(), tt.want)
		_, err := Connect(t.Context(), nil, c, silent())
		wantError(t, err, tt.want)
		_, err = NewAcceptor(newPipeListener(), c, silent())
		wantError(t, err, tt.want)
	}
}

// The estimate of the throughput follows what the receiver takes while the
// sender has more, and is not misled by bursts or by times of idling.
func TestThroughputEstimate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener()
		cfg := DefaultConfig()
		cfg.MaxMessage, cfg.Window = 100_000, 1<<20
		a, b := sessions(t, l, l.dial, cfg)
		payload := make([]byte, 100_000-messageCost)
		send := func(n int) {
			for range n {
				if err := a.Send(t.Context(), 1, payload); err != nil {
					t.Error(err)
				}
			}
		}
		receive := func(n int, pause time.Duration) {
			for range n {
				m, err := b.Receive(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				m.Release()
				time.Sleep(pause) // of the fake clock: 100 kB per pause
			}
		}
		go send(200)
		receive(200, 10*time.Millisecond)
		if got := a.Stats().Throughput; got < 9e6 || got > 11e6 {
			t.Errorf("estimated %.0f bytes/s while 1e7 were taken", got)
		}
		for range 50 { // a trickle, each message taken at once
			send(1)
			receive(1, time.Second)
		}
		if got := a.Stats().Throughput; got < 9e6 || got > 11e6 {
			t.Errorf("after idling, estimated %.0f bytes/s", got)
		}
		_ = a.Close()
		_ = b.Close()
	})
}
