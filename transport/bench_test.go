package transport

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
)

// A message in steady state allocates nothing, on either side. Over TLS,
// crypto/tls itself makes one object of 24 bytes whenever it reads from the
// socket (Conn.readFromUntil), at most one per record of 16 KiB and one per
// small message.
func TestNoAllocationPerMessage(t *testing.T) {
	plain := func(t testing.TB, cfg Config) (dialed, accepted *Session) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return sessions(t, l, func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		}, cfg)
	}
	for _, tt := range []struct {
		name    string
		connect func(testing.TB, Config) (dialed, accepted *Session)
		allowed func(size int) float64
	}{
		{"plain", plain, func(int) float64 { return 0 }},
		{"TLS", tlsSessions, func(size int) float64 { return float64(2 + size>>14) }},
	} {
		for _, size := range []int{0, 100, 4096, 100_000, 1 << 20} {
			t.Run(fmt.Sprintf("%s, %d bytes", tt.name, size), func(t *testing.T) {
				a, b := tt.connect(t, DefaultConfig())
				payload := make([]byte, size)
				ctx := context.Background()
				one := func() {
					if err := a.Send(ctx, 1, payload); err != nil {
						t.Fatal(err)
					}
					m, err := b.Receive(ctx)
					if err != nil {
						t.Fatal(err)
					}
					m.Release()
				}
				fill := 100
				if raceEnabled {
					fill = 3
				}
				for range fill {
					one() // fill the pools
				}
				if raceEnabled {
					return // the race detector allocates
				}
				// AllocsPerRun counts the whole process, heartbeats included.
				n := testing.AllocsPerRun(300, one)
				if n > tt.allowed(size) {
					t.Errorf("%v allocations per message", n)
				}
			})
		}
	}
}

// BenchmarkSession measures one direction over loopback, by message size and
// number of connections.
func BenchmarkSession(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 256 << 10, 1 << 20} {
		for _, lanes := range []int{1, 2, 3, 4} {
			b.Run(fmt.Sprintf("size=%dKiB/connections=%d", size>>10, lanes), func(b *testing.B) {
				cfg := DefaultConfig()
				cfg.Connections = lanes
				cfg.HeartbeatTimeout = patience
				from, to := tlsSessions(b, cfg)
				payload := make([]byte, size)
				ctx := context.Background()
				done := make(chan error, 1)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				go func() {
					for range b.N {
						if err := from.Send(ctx, 1, payload); err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
				for range b.N {
					m, err := to.Receive(ctx)
					if err != nil {
						b.Fatal(err)
					}
					m.Release()
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				stats := from.Stats()
				b.ReportMetric(stats.Throughput/1e6, "estimated-MB/s")
				b.ReportMetric(float64(stats.RTT.Microseconds()), "loaded-rtt-µs")
			})
		}
	}
}

// BenchmarkPlainTLS is what BenchmarkSession is to be held against: one TLS
// connection, no frames, no checksums.
func BenchmarkPlainTLS(b *testing.B) {
	for _, size := range []int{64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("size=%dKiB", size>>10), func(b *testing.B) {
			ca := newTestAuthority(b)
			p := listen(b, ca.identity("b"), silent(), "a")
			l := p.Protocol(testProtocol)
			taken := make(chan net.Conn, 1)
			go func() {
				if conn, err := l.Accept(); err == nil {
					taken <- conn
				}
			}()
			conn, err := Dial(b.Context(), p.Addr().String(), "b", testProtocol, ca.identity("a"))
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			other := <-taken
			defer other.Close()
			payload, got := make([]byte, size), make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			go func() {
				for range b.N {
					if _, err := conn.Write(payload); err != nil {
						return
					}
				}
			}()
			for range b.N {
				if _, err := io.ReadFull(other, got); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRoundTrip measures a small message and its answer, as an epoch's end
// and its acknowledgement.
func BenchmarkRoundTrip(b *testing.B) {
	here, there := tlsSessions(b, DefaultConfig())
	ctx := context.Background()
	go func() {
		for {
			m, err := there.Receive(ctx)
			if err != nil {
				return
			}
			if err := there.Send(ctx, m.Kind, m.Payload); err != nil {
				return
			}
			m.Release()
		}
	}()
	payload := make([]byte, 64)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := here.Send(ctx, 1, payload); err != nil {
			b.Fatal(err)
		}
		m, err := here.Receive(ctx)
		if err != nil {
			b.Fatal(err)
		}
		m.Release()
	}
}
