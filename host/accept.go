package host

// This file takes the sessions of other hosts: Hello → which guest → its
// manager, which is standing by, or a refusal.

import (
	"context"
	"fmt"
	"sync"
	"time"

	"understudy/backup"
	"understudy/ownership"
	"understudy/protocol"
)

const (
	// helloTime bounds the wait for a peer's Hello.
	helloTime = 10 * time.Second
	// routeTime bounds the wait for the guest's backup to take the session.
	routeTime = 5 * time.Second
	// maxGreetings bounds how many sessions are being greeted at a time.
	maxGreetings = 64
)

func (h *Host) accept(ctx context.Context) {
	var greetings sync.WaitGroup
	defer greetings.Wait()
	room := make(chan struct{}, maxGreetings)
	for {
		s, peer, err := h.cfg.Accept(ctx)
		if err != nil {
			if ctx.Err() == nil {
				h.cfg.Slog.Error("no more sessions can be accepted", "err", err)
			}
			return
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			_ = s.Close()
			return
		}
		greetings.Add(1)
		go func() {
			defer greetings.Done()
			defer func() { <-room }()
			if err := h.greet(ctx, s, peer); err != nil {
				h.cfg.Slog.Warn("session refused", "peer", peer, "why", err)
				text := err.Error()
				call, cancel := context.WithTimeout(ctx, time.Second)
				_ = s.Send(call, protocol.KindRefuse, []byte(text[:min(len(text), protocol.MaxReason)]))
				cancel()
				_ = s.Close()
			}
		}()
	}
}

// greet reads the Hello and hands the session on.
func (h *Host) greet(ctx context.Context, s protocol.Session, peer ownership.HostID) error {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	hello, err := readHello(ctx, s)
	if err != nil {
		return err
	}
	if hello.Host != peer {
		return fmt.Errorf("the certificate names %q, the hello %q", peer, hello.Host)
	}
	m, err := h.manager(hello.Guest)
	if err != nil {
		return err
	}
	t := time.NewTimer(routeTime)
	defer t.Stop()
	select {
	case m.sessions <- backup.Opened{Session: s, Hello: hello}:
		return nil
	case <-t.C:
		return fmt.Errorf("host %s is not standing by for %s now", h.cfg.Self, hello.Guest)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func readHello(ctx context.Context, s protocol.Session) (protocol.Hello, error) {
	var j protocol.Joiner
	for {
		m, err := s.Receive(ctx)
		if err != nil {
			return protocol.Hello{}, fmt.Errorf("waiting for a hello: %w", err)
		}
		if m.Kind != protocol.KindHello {
			m.Release()
			return protocol.Hello{}, fmt.Errorf("message kind %d instead of a hello", m.Kind)
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
