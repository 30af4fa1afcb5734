package daemon

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/cmd/sdnotify"
	"understudy/config"
	"understudy/transport/pki"
)

// TestSystemdHearsOfARealDaemon: a lone witness is ready, and says in what
// trouble it is; it lives; it goes down on purpose.
func TestSystemdHearsOfARealDaemon(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir, err := os.MkdirTemp("", "us") // short: it holds Unix sockets
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := pki.Init(filepath.Join(dir, "tls"), []string{"a", "b", "w"}, 0); err != nil {
		t.Fatal(err)
	}
	var hosts strings.Builder
	for _, name := range []string{"a", "b", "w"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&hosts, "[[host]]\nname = %q\naddress = %q\nwitness = %v\n", name, l.Addr(), name == "w")
		_ = l.Close()
	}
	c, err := config.Parse(fmt.Appendf(nil, "cluster = \"lab\"\nstate_dir = %q\nrun_dir = %q\ntls_dir = %q\n%s",
		filepath.Join(dir, "state"), filepath.Join(dir, "run"), filepath.Join(dir, "tls"), hosts.String()))
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	notifier, err := sdnotify.New(func(name string) (string, bool) {
		v, ok := map[string]string{"NOTIFY_SOCKET": filepath.Join(dir, "notify"), "WATCHDOG_USEC": "60000000"}[name]
		return v, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	// until reads what systemd hears until it has heard what.
	var heard []string
	until := func(what string) {
		t.Helper()
		if err := socket.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for !slices.Contains(heard, what) {
			b := make([]byte, 4096)
			n, err := socket.Read(b)
			if err != nil {
				t.Fatalf("systemd has not heard %q but %q: %v", what, heard, err)
			}
			heard = append(heard, string(bytes.TrimSuffix(b[:n], []byte("\n"))))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{Config: c, Host: "w", Slog: slog.New(slog.NewTextHandler(t.Output(), nil)), Supervisor: notifier})
	}()
	until("READY=1")
	if want := "STATUS=TROUBLE: no leader of the ownership log is known, so nothing can be decided; votes, runs no guest"; !slices.Contains(heard, want) {
		t.Errorf("heard %q, want %q", heard, want)
	}
	until("WATCHDOG=1")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	until("STOPPING=1")
}
