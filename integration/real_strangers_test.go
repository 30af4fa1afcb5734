package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/cmd/daemon"
	"understudy/config"
	"understudy/demo/world"
	"understudy/failover"
	"understudy/host"
	"understudy/hypervisor"
	"understudy/protocol"
	"understudy/transport"
	"understudy/transport/pki"
)

// TestStrangersGetInNowhere lets those without the right certificate try every
// door of real daemons, while a guest is protected and after its backup is lost.
func TestStrangersGetInNowhere(t *testing.T) {
	const prefix = "usstranger"
	s, err := world.NewSim(world.Options{Daemon: filepath.Join(programs, "understudyd"), Profile: config.Standard, Prefix: prefix,
		Guests: []world.Guest{{Name: web, Home: world.HostA, Memory: 8 * config.MiB}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range world.Hosts() {
				for _, e := range s.Log(h, time.Time{}) {
					t.Logf("host %s: %s", h, e.Text)
				}
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, prefix)
	})
	ctx, cancel := context.WithTimeout(context.Background(), late)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.StartAll(ctx))
	if _, err := s.Protected(ctx, web, world.HostA, late); err != nil {
		t.Fatal(err)
	}
	client, _, err := s.Connect(ctx, web)
	must(err)
	defer client.Close()
	must(client.More(ctx, 20, soon))

	ours := filepath.Join(s.Dir, "tls")
	foreign := filepath.Join(t.TempDir(), "foreign")
	must(pki.Init(foreign, world.Hosts(), time.Hour))
	authority, err := pki.LoadAuthority(ours)
	must(err)
	unknown := filepath.Join(t.TempDir(), "unknown")
	must(os.Mkdir(unknown, 0o700))
	pair, err := authority.Issue("x", time.Now(), time.Hour)
	must(err)
	must(pair.Save(unknown))

	t.Run("another authority, a name of ours", func(t *testing.T) {
		everyDoorIsShut(ctx, t, s, func() (tls.Certificate, error) {
			return tls.LoadX509KeyPair(pki.CertificateFile(foreign, "b"), pki.KeyFile(foreign, "b"))
		})
	})
	t.Run("our authority, a name not of ours", func(t *testing.T) {
		everyDoorIsShut(ctx, t, s, func() (tls.Certificate, error) {
			return tls.LoadX509KeyPair(pki.CertificateFile(unknown, "x"), pki.KeyFile(unknown, "x"))
		})
	})
	t.Run("no certificate", func(t *testing.T) {
		everyDoorIsShut(ctx, t, s, func() (tls.Certificate, error) { return tls.Certificate{}, nil })
	})
	t.Run("the witness says that it is the primary", func(t *testing.T) {
		why := helloAs(ctx, t, s, ours, world.Witness)
		if !strings.Contains(why, `the certificate names "w", the hello "a"`) {
			t.Errorf("refused with %q", why)
		}
	})
	must(client.More(ctx, 20, soon))
	if _, err := s.Protected(ctx, web, world.HostA, soon); err != nil {
		t.Fatal(err)
	}

	// The backup is lost, and daemons that only pretend to be it come up in its
	// place, at its address.
	must(s.Kill(world.HostB))
	if _, err := s.Await(ctx, web, "unprotected", soon, func(name string, g host.GuestStatus) bool {
		return name == world.HostA && g.Protected == host.ProtectedNo && !g.Log.InSync
	}); err != nil {
		t.Fatal(err)
	}
	t.Run("a whole daemon of another authority in the backup's place", func(t *testing.T) {
		since := time.Now()
		said := pretend(t, s, foreign, func() {
			_ = world.Sleep(ctx, 3*s.Lease()) // a real one would protect the guest by then
		})
		g, err := s.Status(ctx, world.HostA, web)
		if err != nil || g.Protected != host.ProtectedNo || g.Log.InSync {
			t.Errorf("guest %s: protected: %s, %v", web, g.Protected, err)
		}
		if strings.Contains(said, "session from the primary") || strings.Contains(said, `"leading"`) {
			t.Errorf("the pretender got in:\n%s", said)
		}
		refused := false
		for _, h := range []string{world.HostA, world.Witness} {
			for _, e := range s.Log(h, since) {
				refused = refused || strings.Contains(e.Text, "certificate")
			}
		}
		if !refused {
			t.Error("nobody has logged that a certificate was refused")
		}
	})
	t.Run("the witness's certificate in the backup's place", func(t *testing.T) {
		borrowed := filepath.Join(t.TempDir(), "borrowed")
		must(os.Mkdir(borrowed, 0o700))
		for from, to := range map[string]string{
			pki.AuthorityFile(ours): pki.AuthorityFile(borrowed), pki.CertificateFile(ours, "w"): pki.CertificateFile(borrowed, "b"),
			pki.KeyFile(ours, "w"): pki.KeyFile(borrowed, "b"),
		} {
			b, err := os.ReadFile(from)
			must(err)
			must(os.WriteFile(to, b, 0o600))
		}
		said := pretend(t, s, borrowed, nil)
		if !strings.Contains(said, `the certificate is for host \"w\"`) && !strings.Contains(said, `the certificate is for host "w"`) {
			t.Errorf("it ended with:\n%s", said)
		}
	})
	must(s.Start(ctx, world.HostB))
	if _, err := s.Protected(ctx, web, world.HostA, late); err != nil {
		t.Fatal(err)
	}
	must(client.More(ctx, 20, soon))
	must(client.Err())
}

// everyDoorIsShut tries each protocol of each host with a certificate. In TLS
// 1.3 the client learns of its refusal by the first read.
func everyDoorIsShut(ctx context.Context, t *testing.T, s *world.Sim, certificate func() (tls.Certificate, error)) {
	t.Helper()
	mine, err := certificate()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Config.Hosts {
		for _, proto := range []string{daemon.ProtocolReplication, failover.ProtocolRaft, failover.ProtocolRPC, "h2", ""} {
			raw, err := new(net.Dialer).DialContext(ctx, "tcp", h.Address)
			if err != nil {
				t.Fatal(err)
			}
			c := &tls.Config{InsecureSkipVerify: true, //nolint:gosec // a stranger does not mind whom it talks to
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &mine, nil }}
			if proto != "" {
				c.NextProtos = []string{proto}
			}
			conn := tls.Client(raw, c)
			_ = conn.SetDeadline(time.Now().Add(soon))
			_, _ = conn.Write([]byte("open, please")) // may be refused already
			var b [1]byte
			n, err := conn.Read(b[:])
			var timeout net.Error
			if n != 0 || err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("host %s, protocol %q: read %d bytes, %v: want it shut", h.Name, proto, n, err)
			}
			_ = conn.Close()
		}
	}
}

// helloAs opens a session to host b with the certificate of one host and the
// hello that the primary would send, and returns why it was refused.
func helloAs(ctx context.Context, t *testing.T, s *world.Sim, dir, certificate string) string {
	t.Helper()
	id, err := transport.LoadIdentity(dir, certificate)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := s.Config.Host(world.HostB)
	log := slog.New(slog.DiscardHandler)
	session, err := transport.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		return transport.Dial(ctx, b.Address, world.HostB, daemon.ProtocolReplication, id)
	}, transport.DefaultConfig(), log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	g, err := s.Status(ctx, world.HostA, web)
	if err != nil {
		t.Fatal(err)
	}
	hello, err := protocol.EncodeHello(protocol.Hello{Version: protocol.Version, Guest: web, Host: g.Log.Owner, Generation: g.Log.Generation,
		Spec: hypervisor.Spec{Pages: g.Primary.Pages}})
	if err != nil {
		t.Fatal(err)
	}
	if err := protocol.Pieces(hello, transport.DefaultConfig().MaxMessage, func(piece []byte) error {
		return session.Send(ctx, protocol.KindHello, piece)
	}); err != nil {
		t.Fatal(err)
	}
	m, err := session.Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	if m.Kind != protocol.KindRefuse {
		t.Fatalf("message kind %d instead of a refusal", m.Kind)
	}
	return string(m.Payload)
}

// pretend runs a daemon as host b with the certificates in dir until during
// returns, or, with nil, until it ends by itself. It returns what it said.
func pretend(t *testing.T, s *world.Sim, dir string, during func()) string {
	t.Helper()
	c := *s.Config
	c.Hosts = append([]config.Host(nil), c.Hosts...)
	home := t.TempDir()
	for i := range c.Hosts {
		if h := &c.Hosts[i]; h.Name == world.HostB {
			h.TLS, h.Run, h.State = dir, filepath.Join(home, "run"), filepath.Join(home, "state")
		}
	}
	file := filepath.Join(home, "understudy.toml")
	if err := os.WriteFile(file, c.Render(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "understudyd"), "--config", file, "--host", world.HostB, "--log-format", "json")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() { _ = cmd.Wait() }) // it is killed, or ends with an error
	if during != nil {
		during()
		_ = cmd.Process.Kill()
	}
	wait.Wait()
	if ctx.Err() != nil {
		t.Errorf("the pretender was still there after %v", soon)
	}
	return said.String()
}
