package main

// This file is what comes with a wrong certificate or a wrong configuration:
// nothing of it may become the guest's backup.

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"understudy/config"
	"understudy/demo/world"
	"understudy/host"
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
