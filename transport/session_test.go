package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// Messages of any size arrive as they were sent, in the order of sending,
// whatever the number of connections and the size of the window.
func TestMessagesArriveInOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := DefaultConfig()
		cfg.Connections = rapid.IntRange(1, 4).Draw(rt, "connections")
		cfg.MaxMessage = rapid.SampledFrom([]int{1, 1000, 100_000, 300_000}).Draw(rt, "max message")
		cfg.Window = rapid.IntRange(2*(cfg.MaxMessage+messageCost), 4<<20).Draw(rt, "window")
		cfg.HeartbeatTimeout = patience
		seed := rapid.Uint64().Draw(rt, "seed")
		count := rapid.IntRange(1, 40).Draw(rt, "messages")
		l := newPipeListener()
		a, b := sessions(t, l, l.dial, cfg)
		defer b.Close()
		defer a.Close()
		// Both directions at once, from the same seed: the oracle.
		var wg sync.WaitGroup
		for _, way := range []struct{ from, to *Session }{{a, b}, {b, a}} {
			wg.Go(func() { sendAll(t, way.from, seed, count, cfg.MaxMessage) })
			wg.Go(func() { receiveAll(t, way.to, seed, count, cfg.MaxMessage) })
		}
		wg.Wait()
	})
}

func sendAll(t *testing.T, s *Session, seed uint64, count, most int) {
	ctx := testContext(t)
	for kind, payload := range messages(seed, count, most) {
		if err := s.Send(ctx, kind, payload); err != nil {
			t.Errorf("send: %v", err)
			return
		}
	}
}

func receiveAll(t *testing.T, s *Session, seed uint64, count, most int) {
	ctx := testContext(t)
	i := 0
	for kind, payload := range messages(seed, count, most) {
		m, err := s.Receive(ctx)
		if err != nil {
			t.Errorf("receive message %d: %v", i, err)
			return
		}
		if m.Kind != kind || !bytes.Equal(m.Payload, payload) {
			t.Errorf("message %d: kind %d with %d bytes, want kind %d with %d bytes", i, m.Kind, len(m.Payload), kind, len(payload))
			return
		}
		m.Release()
		i++
	}
}

// messages draws messages from a seed: mostly small, some as large as possible.
func messages(seed uint64, count, most int) func(yield func(uint8, []byte) bool) {
	return func(yield func(uint8, []byte) bool) {
		r := rand.New(rand.NewPCG(seed, 1))
		for range count {
			size := r.IntN(most + 1)
			switch r.IntN(4) {
			case 0, 1:
				size = min(size, r.IntN(300))
			case 2:
				size = min(size, r.IntN(70_000))
			}
			payload := make([]byte, size)
			for j := 0; j+8 <= size; j += 8 {
				binary.LittleEndian.PutUint64(payload[j:], r.Uint64())
			}
			if !yield(uint8(r.Uint32()), payload) {
				return
			}
		}
	}
}

// Several goroutines send at once over TLS: each one's messages keep their
// order, and none is lost.
func TestConcurrentSendersKeepTheirOrder(t *testing.T) {
	cfg := DefaultConfig()
	cfg.HeartbeatTimeout = patience // under the race detector on a busy machine
	a, b := tlsSessions(t, cfg)
	const senders, each = 8, 500
	ctx := testContext(t)
	var wg sync.WaitGroup
	for who := range senders {
		wg.Go(func() {
			payload := make([]byte, 8+who*5000)
			for i := range each {
				binary.LittleEndian.PutUint64(payload, uint64(i))
				if err := a.Send(ctx, uint8(who), payload); err != nil {
					t.Errorf("sender %d: %v", who, err)
					return
				}
			}
		})
	}
	var next [senders]uint64
	for range senders * each {
		m, err := b.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint64(m.Payload); got != next[m.Kind] {
			t.Fatalf("sender %d: message %d where %d is due", m.Kind, got, next[m.Kind])
		}
		next[m.Kind]++
		m.Release()
	}
	wg.Wait()
	if a.Peer() != "b" || b.Peer() != "a" {
		t.Errorf("peers are %q and %q", a.Peer(), b.Peer())
	}
	eventually(t, "a round trip is measured", func() bool { return a.Stats().RTT > 0 && b.Stats().RTT > 0 })
	sa, sb := a.Stats(), b.Stats()
	if sa.MessagesSent != senders*each || sb.MessagesReceived != senders*each {
		t.Errorf("%d messages sent, %d received", sa.MessagesSent, sb.MessagesReceived)
	}
}

// Callers blocked in Send are served in the order in which they came.
func TestSendServesItsCallersInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.MaxMessage, cfg.Window = 1000, 2*(1000+messageCost)
		l := newPipeListener()
		a, b := sessions(t, l, l.dial, cfg)
		const callers = 50
		for i := range callers {
			go func() {
				if err := a.Send(t.Context(), uint8(i), make([]byte, 900)); err != nil {
					t.Errorf("caller %d: %v", i, err)
				}
			}()
			synctest.Wait() // the caller has sent, or stands in the queue
		}
		if blocked := a.Stats().Outstanding; blocked > uint64(cfg.Window) {
			t.Errorf("%d bytes sent with a window of %d", blocked, cfg.Window)
		}
		for i := range callers {
			m, err := b.Receive(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if int(m.Kind) != i {
				t.Fatalf("message of caller %d where %d is due", m.Kind, i)
			}
		}
		_ = a.Close()
		_ = b.Close()
	})
}

// A peer that stops reading is noticed by its silence, after HeartbeatTimeout
// and not before; an idle one that answers pings lives on.
func TestSilenceEndsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		l := newPipeListener()
		var quiet []*mute
		a, b := sessions(t, l, func(ctx context.Context) (net.Conn, error) {
			conn, err := l.dial(ctx)
			if err != nil {
				return nil, err
			}
			m := &mute{Conn: conn, gone: make(chan struct{})}
			quiet = append(quiet, m)
			return m, nil
		}, Config{Connections: 1, MaxMessage: 1000, Window: 10_000, HeartbeatInterval: cfg.HeartbeatInterval, HeartbeatTimeout: cfg.HeartbeatTimeout})
		time.Sleep(time.Minute) // of the fake clock: idle, but alive
		if a.Err() != nil || b.Err() != nil {
			t.Fatalf("an idle session died: %v, %v", a.Err(), b.Err())
		}
		if age := time.Since(b.LastHeard()); age > cfg.HeartbeatInterval {
			t.Errorf("last heard %v ago with pings every %v", age, cfg.HeartbeatInterval)
		}
		quiet[0].silence()
		since := time.Now()
		<-b.Done()
		if took := time.Since(since); took > cfg.HeartbeatTimeout || took < cfg.HeartbeatTimeout-2*cfg.HeartbeatInterval {
			t.Errorf("silence noticed after %v, timeout %v", took, cfg.HeartbeatTimeout)
		}
		if !errors.Is(b.Err(), ErrSilent) {
			t.Errorf("error %v", b.Err())
		}
		if err := b.Send(t.Context(), 1, nil); !errors.Is(err, ErrSilent) {
			t.Errorf("send on a dead session: %v", err)
		}
		_ = a.Close()
		_ = b.Close()
	})
}

// mute is a connection whose writes vanish once it was silenced, like those of
// a host that lost its network.
type mute struct {
	net.Conn
	gone chan struct{}
}

func (m *mute) silence() { close(m.gone) }

func (m *mute) Write(p []byte) (int, error) {
	select {
	case <-m.gone:
		return len(p), nil
	default:
		return m.Conn.Write(p)
	}
}

// One connection of several breaks: the session is over at once on both sides,
// and says which connection it was.
func TestOneBrokenConnectionEndsTheSession(t *testing.T) {
	for lane := range 3 {
		t.Run(fmt.Sprint("connection ", lane), func(t *testing.T) {
			cfg := DefaultConfig()
			cfg.HeartbeatTimeout = time.Minute // not by silence
			a, b := tlsSessions(t, cfg)
			raw := a.lanes[lane].conn.(*tls.Conn).NetConn().(*net.TCPConn)
			if lane == 1 { // a reset, as of a killed process; else an orderly end
				if err := raw.SetLinger(0); err != nil {
					t.Fatal(err)
				}
			}
			_ = raw.Close()
			for _, s := range []*Session{a, b} {
				select {
				case <-s.Done():
				case <-time.After(patience):
					t.Fatal("the break was not noticed")
				}
			}
			wantError(t, b.Err(), "broke")
			if _, err := b.Receive(testContext(t)); err == nil {
				t.Error("a dead session received something")
			}
		})
	}
}

// A peer that answers pings but no longer reads another connection cannot hold
// the session for ever.
func TestAStalledConnectionEndsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener()
		var mu sync.Mutex
		var conns []*stalling
		cfg := DefaultConfig()
		a, b := sessions(t, l, func(ctx context.Context) (net.Conn, error) {
			conn, err := l.dial(ctx)
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, &stalling{Conn: conn, stall: make(chan struct{}), closed: make(chan struct{})})
			return conns[len(conns)-1], nil
		}, cfg)
		for _, l := range a.lanes[1:] {
			close(l.conn.(*stalling).stall)
		}
		synctest.Wait() // every writer is idle: the last connection's takes it
		began := time.Now()
		if err := b.Send(t.Context(), 1, make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-b.Done():
		case <-time.After(time.Minute):
			t.Fatal("not noticed within a minute")
		}
		if took := time.Since(began); took != writeTimeout {
			t.Errorf("noticed after %v", took)
		}
		if !errors.Is(b.Err(), os.ErrDeadlineExceeded) {
			t.Errorf("error %v", b.Err())
		}
		_ = a.Close()
		_ = b.Close()
	})
}

// stalling is a connection that reads nothing more once stall is closed.
type stalling struct {
	net.Conn
	stall, closed chan struct{}
	once          sync.Once
}

func (c *stalling) Read(p []byte) (int, error) {
	select {
	case <-c.stall:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return c.Conn.Read(p)
	}
}

func (c *stalling) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// What arrived in order before the peer died is still handed out.
func TestMessagesBeforeTheEndAreDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener()
		a, b := sessions(t, l, l.dial, DefaultConfig())
		for i := range 20 {
			if err := a.Send(t.Context(), uint8(i), []byte("last words")); err != nil {
				t.Fatal(err)
			}
		}
		_ = a.Close()
		<-b.Done()
		for i := range 20 {
			m, err := b.Receive(t.Context())
			if err != nil || int(m.Kind) != i {
				t.Fatalf("message %d: kind %d, %v", i, m.Kind, err)
			}
		}
		if _, err := b.Receive(t.Context()); !errors.Is(err, ErrPeerClosed) {
			t.Errorf("after the last message: %v", err)
		}
		if err := a.Send(t.Context(), 1, nil); !errors.Is(err, ErrClosed) {
			t.Errorf("send after close: %v", err)
		}
		if _, err := a.Receive(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("receive after close: %v", err)
		}
		_ = b.Close()
	})
}

// Blocked callers leave when their context ends or the session is closed, and a
// message that was given up never arrives.
func TestBlockedCallersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.MaxMessage, cfg.Window = 1000, 2*(1000+messageCost)
		l := newPipeListener()
		a, b := sessions(t, l, l.dial, cfg)
		for range 2 {
			if err := a.Send(t.Context(), 1, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.Send(ctx, 2, make([]byte, 1000)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("send without credit: %v", err)
		}
		if got := a.Stats().Blocked; got != time.Second {
			t.Errorf("blocked for %v, want 1s", got)
		}
		for range 2 {
			if m, err := b.Receive(t.Context()); err != nil || m.Kind != 1 {
				t.Fatalf("kind %d, %v", m.Kind, err)
			}
		}
		ctx2, cancel2 := context.WithTimeout(t.Context(), time.Second)
		defer cancel2()
		if m, err := b.Receive(ctx2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("received kind %d, %v", m.Kind, err)
		}
		if err := a.Send(t.Context(), 1, make([]byte, 1001)); err == nil {
			t.Error("a message that is too large was sent")
		}
		errs := make(chan error, 2)
		go func() {
			for {
				if err := a.Send(t.Context(), 1, make([]byte, 1000)); err != nil {
					errs <- err
					return
				}
			}
		}()
		go func() {
			_, err := a.Receive(t.Context())
			errs <- err
		}()
		synctest.Wait()
		_ = a.Close()
		for range 2 {
			if err := <-errs; !errors.Is(err, ErrClosed) {
				t.Errorf("blocked caller left with %v", err)
			}
		}
		_ = b.Close()
	})
}

// Releasing a message twice does not hand its memory out twice.
func TestReleaseTwiceIsHarmless(t *testing.T) {
	p := newBufferPool(1000, 1<<20)
	b := p.get(100)
	m := Message{pool: p, buf: b, turn: b.turn.Load()}
	m.Release()
	m.Release()
	if first, second := p.get(100), p.get(100); first == second {
		t.Error("one buffer was handed out twice")
	}
	Message{}.Release()
}
