package host

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"understudy/hypervisor"
	"understudy/protocol"
	"understudy/protocol/protocoltest"
)

// TestWhoIsNotLetIn: a session is handed to a guest's backup only after a whole
// hello, by the host that the certificate names, for a guest that is here.
func TestWhoIsNotLetIn(t *testing.T) {
	hello := func(change func(*protocol.Hello)) []byte {
		h := protocol.Hello{Version: protocol.Version, Guest: "web", Host: "a", Generation: 1, Spec: hypervisor.Spec{Pages: 16, Machine: []byte("{}")}}
		change(&h)
		b, err := protocol.EncodeHello(h)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	pieces := func(b []byte, max int) func(end *protocoltest.End) {
		return func(end *protocoltest.End) {
			if err := protocol.Pieces(b, max, func(p []byte) error { return end.Send(context.Background(), protocol.KindHello, p) }); err != nil {
				t.Error(err)
			}
		}
	}
	for _, row := range []struct {
		name string
		play func(end *protocoltest.End)
		says string
	}{
		{"says nothing", func(*protocoltest.End) {}, "waiting for a hello"},
		{"hangs up", func(end *protocoltest.End) { _ = end.Close() }, "waiting for a hello"},
		{"begins with an epoch", func(end *protocoltest.End) { _ = end.Send(context.Background(), protocol.KindBegin, nil) }, "message kind 4 instead of a hello"},
		{"sends a piece of nothing", func(end *protocoltest.End) { _ = end.Send(context.Background(), protocol.KindHello, nil) }, "piece of 0 bytes"},
		{"announces too much", func(end *protocoltest.End) {
			_ = end.Send(context.Background(), protocol.KindHello, bytes.Repeat([]byte{0xff}, 100))
		}, "at most"},
		{"stops in the middle", func(end *protocoltest.End) {
			b := hello(func(*protocol.Hello) {})
			_ = end.Send(context.Background(), protocol.KindHello, append([]byte{byte(len(b)), 0, 0, 0}, b[:20]...))
		}, "waiting for a hello"},
		{"sends garbage", pieces([]byte("garbage"), 5), "hello: invalid character"},
		{"names another host", pieces(hello(func(h *protocol.Hello) { h.Host = "b" }), 512), `the certificate names "a", the hello "b"`},
		{"names a guest that is not here", pieces(hello(func(h *protocol.Hello) { h.Guest = "db" }), 512), `no guest "db" on host b`},
		{"speaks another version", pieces(hello(func(h *protocol.Hello) { h.Version = 7 }), 512), "version 7"},
		{"comes while nobody stands by", pieces(hello(func(*protocol.Hello) {}), 512), "is not standing by for web now"},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, err := New(Config{Self: "b", Slog: slog.New(slog.DiscardHandler), Guests: []Guest{{Name: "web"}}})
				if err != nil {
					t.Fatal(err)
				}
				here, there := protocoltest.Pair()
				go row.play(here)
				err = h.greet(t.Context(), there, "a")
				if err == nil || !strings.Contains(err.Error(), row.says) {
					t.Errorf("%v, want %q", err, row.says)
				}
			})
		})
	}
}

// TestAHelloInPiecesArrives at the backup that waits for it.
func TestAHelloInPiecesArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, err := New(Config{Self: "b", Slog: slog.New(slog.DiscardHandler), Guests: []Guest{{Name: "web"}}})
		if err != nil {
			t.Fatal(err)
		}
		here, there := protocoltest.Pair()
		b, err := protocol.EncodeHello(protocol.Hello{Version: protocol.Version, Guest: "web", Host: "a", Generation: 9,
			Spec: hypervisor.Spec{Pages: 16, Machine: bytes.Repeat([]byte("x"), 5000)}})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if err := protocol.Pieces(b, 256, func(p []byte) error { return here.Send(t.Context(), protocol.KindHello, p) }); err != nil {
				t.Error(err)
			}
		}()
		go func() {
			if err := h.greet(t.Context(), there, "a"); err != nil {
				t.Error(err)
			}
		}()
		if o := <-h.managers["web"].sessions; o.Hello.Generation != 9 || len(o.Hello.Spec.Machine) != 5000 || o.Session != protocol.Session(there) {
			t.Errorf("%+v arrived", o.Hello)
		}
	})
}
