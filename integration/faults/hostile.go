package main

// This file is who has stolen a host's own certificate, which is the worst that
// can be stolen, and speaks the protocol with bad intentions:
//
//	attack        beside the owner, to a backup that is in sync
//	impersonate   in the backup's place, to the owner; then in the owner's place
//	              to the backup, of which nothing is in sync
//
// Nothing of it may harm an image, or end a daemon.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"understudy/cmd/daemon"
	"understudy/demo/world"
	"understudy/epoch"
	"understudy/host"
	"understudy/hypervisor"
	"understudy/protocol"
	"understudy/transport"
)

// attack sends a backup in sync hellos that would destroy its image, messages
// that come before any hello, and what is no message at all.
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
	for what, first := range map[string]struct {
		kind    uint8
		payload []byte
	}{
		"an epoch without a hello":     {protocol.KindBegin, make([]byte, 16+epoch.HeaderSize)},
		"a hello longer than any":      {protocol.KindHello, []byte{0xff, 0xff, 0xff, 0xff, 1}},
		"a hello that is not JSON":     {protocol.KindHello, []byte{1, 0, 0, 0, '{'}},
		"an acknowledgement":           {protocol.KindAck, make([]byte, protocol.AckSize)},
		"a message of an unknown kind": {200, []byte("?")},
	} {
		session, err := transport.Connect(ctx, s.dial, transport.DefaultConfig(), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		if err := errors.Join(session.Send(ctx, first.kind, first.payload), refused(ctx, session), session.Close()); err != nil {
			return fmt.Errorf("%s: %w", what, err)
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

// refused waits for a session's refusal, or its end. Anything else is wrong.
func refused(ctx context.Context, session *transport.Session) error {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	m, err := session.Receive(ctx)
	switch {
	case ctx.Err() != nil:
		return errors.New("nobody objects to it")
	case err != nil:
		return nil // it was ended
	}
	defer m.Release()
	if m.Kind != protocol.KindRefuse {
		return fmt.Errorf("it was answered with a message of kind %d, not refused", m.Kind)
	}
	return nil
}

// impersonate needs the backup down and the owner unprotected: then the backup's
// certificate learns from the owner what only it can say of the guest, and with
// that and the owner's own the backup is lied to, while the owner stands still.
func impersonate(ctx context.Context, s *stage) error {
	if err := s.Kill(s.backup); err != nil {
		return err
	}
	if _, err := s.Await(ctx, web, "unprotected", soon, func(name string, g host.GuestStatus) bool {
		return name == s.owner && g.Protected == host.ProtectedNo && !g.Log.InSync
	}); err != nil {
		return err
	}
	hello, err := s.deceiveOwner(ctx)
	if err != nil {
		return fmt.Errorf("in the backup's place: %w", err)
	}
	if err := s.freeze(s.owner); err != nil {
		return err
	}
	if err := s.Start(ctx, s.backup); err != nil {
		return err
	}
	if err := s.deceiveBackup(ctx, hello); err != nil {
		return fmt.Errorf("in the owner's place: %w", err)
	}
	return nil
}

// deceiveOwner listens where the backup did, and answers each session of the
// owner with another lie. It returns the owner's hello.
func (s *stage) deceiveOwner(ctx context.Context) (hello protocol.Hello, err error) {
	ctx, cancel := context.WithTimeout(ctx, late)
	defer cancel()
	id, err := transport.LoadIdentity(filepath.Join(s.Dir, "tls"), s.backup)
	if err != nil {
		return hello, err
	}
	at, _ := s.Config.Host(s.backup)
	quiet := slog.New(slog.DiscardHandler)
	var port *transport.Port
	if err := s.Lab.Host(s.backup).Do(func() error {
		port, err = transport.Listen(ctx, at.Address, id, world.Hosts(), quiet)
		return err
	}); err != nil {
		return hello, err
	}
	defer func() { err = errors.Join(err, port.Close()) }()
	sessions, err := transport.NewAcceptor(port.Protocol(daemon.ProtocolReplication), transport.DefaultConfig(), quiet)
	if err != nil {
		return hello, err
	}
	defer func() { err = errors.Join(err, sessions.Close()) }()

	image := epoch.NewIncarnation()
	welcome := func(w protocol.Welcome) []byte {
		b, _ := protocol.EncodeWelcome(w) // has nothing that JSON cannot say
		return b
	}
	fresh := welcome(protocol.Welcome{Version: protocol.Version, At: epoch.Position{Image: image}})
	type message struct {
		kind    uint8
		payload []byte
	}
	for what, lie := range map[string][]message{
		"a welcome that is not JSON":              {{protocol.KindWelcome, []byte("{")}},
		"a welcome of no image":                   {{protocol.KindWelcome, welcome(protocol.Welcome{Version: protocol.Version})}},
		"a welcome at an epoch that never was":    {{protocol.KindWelcome, welcome(protocol.Welcome{Version: protocol.Version, Whole: true, At: epoch.Position{Image: image, Number: 1 << 40}})}},
		"an acknowledgement instead of a welcome": {{protocol.KindAck, make([]byte, protocol.AckSize)}},
		"an acknowledgement of what was not sent": {{protocol.KindWelcome, fresh}, {protocol.KindAck, protocol.AppendAck(nil, protocol.Ack{At: epoch.Position{Image: image, Number: 1 << 40}})}},
		"half an acknowledgement":                 {{protocol.KindWelcome, fresh}, {protocol.KindAck, []byte{1, 2, 3}}},
		"differences of a disk that is not there": {{protocol.KindWelcome, fresh}, {protocol.KindDiffers, protocol.AppendDiskDiffers(nil, epoch.DiskDiffers{Disk: 7, Count: 8, Bits: []byte{255}})}},
		"an epoch of the backup's":                {{protocol.KindWelcome, fresh}, {protocol.KindBegin, make([]byte, 16+epoch.HeaderSize)}},
	} {
		session, err := sessions.Accept(ctx)
		if err != nil {
			return hello, fmt.Errorf("the owner does not come: %w", err)
		}
		if hello, err = receiveHello(ctx, session); err != nil {
			return hello, err
		}
		for _, m := range lie {
			_ = session.Send(ctx, m.kind, m.payload) // the owner may have hung up by now
		}
		if err := errors.Join(ended(ctx, session), session.Close()); err != nil {
			return hello, fmt.Errorf("%s: %w", what, err)
		}
	}
	return hello, nil
}

func receiveHello(ctx context.Context, session *transport.Session) (protocol.Hello, error) {
	for j := (protocol.Joiner{}); ; {
		m, err := session.Receive(ctx)
		if err != nil {
			return protocol.Hello{}, fmt.Errorf("the owner's hello: %w", err)
		}
		whole, done, err := j.Add(m.Payload)
		m.Release()
		if err != nil {
			return protocol.Hello{}, err
		}
		if done {
			return protocol.ParseHello(whole)
		}
	}
}

// ended takes what the owner sends until it ends the session.
func ended(ctx context.Context, session *transport.Session) error {
	var err error
	for err == nil {
		var m transport.Message
		if m, err = session.Receive(ctx); err == nil {
			m.Release()
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the owner takes it for true: %w", err)
	}
	return nil
}
