package main

// This file is what comes with a wrong certificate, a wrong configuration, or
// bad intentions: nothing of it may become the guest's backup, or harm the one
// that there is.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"understudy/cmd/daemon"
	"understudy/config"
	"understudy/demo/world"
	"understudy/host"
	"understudy/hypervisor"
	"understudy/protocol"
	"understudy/transport"
	"understudy/transport/pki"
)

// disguise is a backup's other configuration, and how it is taken off.
type disguise struct {
	host string
	file string
}

// arguments are a host's daemon's, besides those of the world.
func (s *stage) arguments(name string) []string {
	args := []string{"--crashpoints", s.control.socket(name), "--histories", s.dir}
	if s.disguise.host == name {
		args = append(args, "--config", s.disguise.file) // the last one counts
	}
	return args
}

// dress has the backup's host come back with another configuration.
func (s *stage) dress(ctx context.Context, change func(c *config.Config, dir string) error) error {
	dir := filepath.Join(s.dir, "disguise")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	c := *s.Config
	c.Hosts, c.Guests = append([]config.Host(nil), c.Hosts...), append([]config.Guest(nil), c.Guests...)
	if err := change(&c, dir); err != nil {
		return err
	}
	file := filepath.Join(dir, "understudy.toml")
	if err := os.WriteFile(file, c.Render(), 0o600); err != nil {
		return err
	}
	if err := s.Kill(s.backup); err != nil {
		return err
	}
	s.disguise = disguise{s.backup, file}
	_ = s.Start(ctx, s.backup) // some end at once, others are refused by everybody
	if _, err := s.Await(ctx, web, "unprotected", soon, func(name string, g host.GuestStatus) bool {
		return name == s.owner && g.Protected == host.ProtectedNo && !g.Log.InSync
	}); err != nil {
		return err
	}
	// By now a real one would have the guest protected again.
	if err := world.Sleep(ctx, 3*s.Lease()); err != nil {
		return err
	}
	g, err := s.Status(ctx, s.owner, web)
	if err == nil && (g.Protected != host.ProtectedNo || g.Log.InSync) {
		err = errors.New("what came back in the backup's place was taken for it")
	}
	return err
}

// undress takes it off.
func (s *stage) undress() error {
	err := s.Kill(s.disguise.host)
	s.disguise = disguise{}
	return errors.Join(err, os.RemoveAll(filepath.Join(s.dir, "disguise")))
}

// wear gives the backup the certificates in dir/tls.
func (s *stage) wear(ctx context.Context, prepare func(ours, dir string) error) error {
	return s.dress(ctx, func(c *config.Config, dir string) error {
		dir = filepath.Join(dir, "tls")
		for i := range c.Hosts {
			if c.Hosts[i].Name == s.backup {
				c.Hosts[i].TLS = dir
			}
		}
		return prepare(filepath.Join(s.Dir, "tls"), dir)
	})
}

func wearForeign(ctx context.Context, s *stage) error {
	return s.wear(ctx, func(_, dir string) error { return pki.Init(dir, world.Hosts(), time.Hour) })
}

func wearExpired(ctx context.Context, s *stage) error {
	return s.wear(ctx, func(ours, dir string) error {
		authority, err := pki.LoadAuthority(ours)
		if err != nil {
			return err
		}
		pair, err := authority.Issue(s.backup, time.Now().Add(-2*time.Hour), time.Hour)
		if err == nil {
			err = os.Mkdir(dir, 0o700)
		}
		if err == nil {
			err = pair.Save(dir)
		}
		return errors.Join(err, copyFile(pki.AuthorityFile(ours), pki.AuthorityFile(dir)))
	})
}

func wearBorrowed(ctx context.Context, s *stage) error {
	return s.wear(ctx, func(ours, dir string) error {
		return errors.Join(os.Mkdir(dir, 0o700), copyFile(pki.AuthorityFile(ours), pki.AuthorityFile(dir)),
			copyFile(pki.CertificateFile(ours, world.Witness), pki.CertificateFile(dir, s.backup)),
			copyFile(pki.KeyFile(ours, world.Witness), pki.KeyFile(dir, s.backup)))
	})
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	return err
}

// differ has the backup's host come back with another machine (RULES 26).
func differ(ctx context.Context, s *stage) error {
	return s.dress(ctx, func(c *config.Config, _ string) error {
		c.Guests[0].Memory *= 2
		return nil
	})
}

// attack speaks to the backup with the owner's own certificate, which is the
// worst that can be stolen: hellos that would destroy the image in sync, and
// what is no message at all.
func attack(ctx context.Context, s *stage) error {
	g, err := s.Status(ctx, s.owner, web)
	if err != nil {
		return err
	}
	hello := protocol.Hello{Version: protocol.Version, Guest: web, Host: g.Log.Owner, Generation: g.Log.Generation,
		Spec: hypervisor.Spec{Pages: g.Primary.Pages}}
	older, newer, other := hello, hello, hello
	older.Generation--
	newer.Generation++
	other.Guest = "other"
	for what, h := range map[string]protocol.Hello{"with nothing known": hello, "of the generation before": older, "of a generation to come": newer, "for another guest": other} {
		if err := s.greet(ctx, h); err != nil {
			return fmt.Errorf("a hello %s: %w", what, err)
		}
	}
	return s.babble(ctx)
}

// dial opens a connection to the backup with the owner's certificate.
func (s *stage) dial(ctx context.Context) (conn net.Conn, err error) {
	id, err := transport.LoadIdentity(filepath.Join(s.Dir, "tls"), s.owner)
	if err != nil {
		return nil, err
	}
	to, _ := s.Config.Host(s.backup)
	err = s.Lab.Host(world.ClientHost).Do(func() error {
		conn, err = transport.Dial(ctx, to.Address, s.backup, daemon.ProtocolReplication, id)
		return err
	})
	return conn, err
}

// greet sends a hello, which has to be refused.
func (s *stage) greet(ctx context.Context, h protocol.Hello) error {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	session, err := transport.Connect(ctx, s.dial, transport.DefaultConfig(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	b, err := protocol.EncodeHello(h)
	if err != nil {
		return err
	}
	if err := protocol.Pieces(b, transport.DefaultConfig().MaxMessage, func(piece []byte) error {
		return session.Send(ctx, protocol.KindHello, piece)
	}); err != nil {
		return err
	}
	m, err := session.Receive(ctx)
	if err != nil {
		return fmt.Errorf("neither welcome nor refusal: %w", err)
	}
	defer m.Release()
	if m.Kind != protocol.KindRefuse {
		return fmt.Errorf("it was answered with a message of kind %d, not refused", m.Kind)
	}
	return nil
}

// babble sends bytes that are no frames.
func (s *stage) babble(ctx context.Context) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(soon)) // fails as the reads do
	noise := make([]byte, 64<<10)
	for i := range noise {
		noise[i] = byte(i * 7)
	}
	_, _ = conn.Write(noise) // may be cut off half way
	// Whatever it says to a peer that it takes for the owner, it ends the
	// connection, and soon.
	n, err := io.Copy(io.Discard, io.LimitReader(conn, 1<<20))
	var timeout net.Error
	if n == 1<<20 || errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("noise was answered with %d bytes and no end: %w", n, err)
	}
	return nil
}
