package main

// This file is our backup's host: a real backup (package backup) that takes the sessions
// of the Xen host in this process. Its standby is memory and no machine, since this host
// runs no Xen: what it stages, verifies, commits and acknowledges is the same.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"understudy/backup"
	"understudy/clock"
	"understudy/cmd/daemon"
	"understudy/egress"
	"understudy/epoch"
	"understudy/host"
	"understudy/hypervisor"
	"understudy/integration/onevoter"
	"understudy/integration/xen/remus/pair"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
	"understudy/transport"
)

// guestName is the guest's, at both hosts.
const guestName = "web"

// standbyHost is the backup's host. It has one goroutine, which ends with close.
type standbyHost struct {
	port     int
	listener *transport.Port
	acceptor *transport.Acceptor
	stop     context.CancelFunc
	ended    chan error
}

// startStandby listens on an address of this machine alone.
func startStandby(ctx context.Context, tls string, log *slog.Logger) (_ *standbyHost, err error) {
	s := &standbyHost{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("the backup's host: %w", err), s.close())
		}
	}()
	id, err := transport.LoadIdentity(tls, pair.HostB)
	if err != nil {
		return nil, err
	}
	if s.listener, err = transport.Listen(ctx, "127.0.0.1:0", id, []string{pair.HostA, pair.HostB}, log); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(s.listener.Addr().String())
	if err != nil {
		return nil, err
	}
	if s.port, err = strconv.Atoi(port); err != nil {
		return nil, err
	}
	if s.acceptor, err = transport.NewAcceptor(s.listener.Protocol(pair.Replication), pair.Wire(), log); err != nil {
		return nil, err
	}
	guestEnd, _ := egress.NewPipe(1)
	networkEnd, _ := egress.NewPipe(1)
	gate, err := egress.NewGate(egress.Config{Guest: guestEnd, Network: networkEnd, Clock: clock.Boot{}, HeldBytes: egress.MinHeldBytes, Log: log})
	if err != nil {
		return nil, err
	}
	h, err := host.New(host.Config{
		Self: pair.HostB, Log: onevoter.New(pair.HostA, pair.Lease), Clock: clock.Boot{}, Slog: log,
		Accept: func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
			session, err := s.acceptor.Accept(ctx)
			if err != nil {
				return nil, "", err
			}
			return daemon.Session{Session: session}, ownership.HostID(session.Peer()), nil
		},
		Guests: []host.Guest{{
			Name: guestName, Home: pair.HostA, Peer: pair.HostA, Driver: images{}, Gate: gate,
			Primary: func(l time.Duration) primary.Config { return primary.DefaultConfig(guestName, pair.HostB, l) },
			Backup: func(l time.Duration) backup.Config {
				return backup.DefaultConfig(guestName, pair.HostB, l, maxImage)
			},
			Dial: func(context.Context) (protocol.Session, error) { return nil, errNoGuest },
		}},
	})
	if err != nil {
		return nil, errors.Join(err, gate.Close())
	}
	running, stop := context.WithCancel(ctx)
	s.stop, s.ended = stop, make(chan error, 1)
	go func() { s.ended <- h.Run(running) }()
	return s, nil
}

// close ends it.
func (s *standbyHost) close() error {
	var errs []error
	if s.stop != nil {
		s.stop()
		errs = append(errs, <-s.ended)
	}
	if s.acceptor != nil {
		errs = append(errs, s.acceptor.Close())
	}
	if s.listener != nil {
		errs = append(errs, s.listener.Close())
	}
	return errors.Join(errs...)
}

// maxImage bounds a guest's memory, in bytes.
const maxImage = 1 << 30

var errNoGuest = errors.New("this host runs no guest")

// images is a driver that has standbys, and no guest.
type images struct{}

// Start refuses.
func (images) Start(context.Context) (hypervisor.Guest, error) { return nil, errNoGuest }

// Adopt finds none.
func (images) Adopt(context.Context) (hypervisor.Guest, error) { return nil, hypervisor.ErrNoGuest }

// Standby makes memory.
func (images) Standby(_ context.Context, spec hypervisor.Spec) (hypervisor.Standby, error) {
	if spec.Pages > maxImage/epoch.PageSize {
		return nil, fmt.Errorf("an image of %d pages", spec.Pages)
	}
	return &memory{bytes: make([]byte, spec.Pages*epoch.PageSize)}, nil
}

// Clean has nothing to do.
func (images) Clean(context.Context) error { return nil }

// memory is an image.
type memory struct {
	mu    sync.Mutex
	bytes []byte
}

// Pages is its size.
func (m *memory) Pages() uint64 { return uint64(len(m.bytes)) / epoch.PageSize }

// ReadPages copies pages out of it.
func (m *memory) ReadPages(first epoch.GFN, dst []byte) error { return m.pages(first, dst, false) }

// WritePages copies pages into it.
func (m *memory) WritePages(first epoch.GFN, data []byte) error { return m.pages(first, data, true) }

func (m *memory) pages(first epoch.GFN, b []byte, write bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := uint64(len(b)) / epoch.PageSize
	if len(b)%epoch.PageSize != 0 || uint64(first) > m.Pages() || count > m.Pages()-uint64(first) {
		return fmt.Errorf("%d bytes from page %d on of an image of %d pages", len(b), first, m.Pages())
	}
	at := m.bytes[uint64(first)*epoch.PageSize:]
	if write {
		copy(at, b)
	} else {
		copy(b, at)
	}
	return nil
}

// Load refuses: there is no machine.
func (*memory) Load(context.Context, []byte, hypervisor.Filler) error { return errNoGuest }

// Fill has nothing to do.
func (*memory) Fill(epoch.GFN, uint64) error { return nil }

// Reset refuses.
func (*memory) Reset(context.Context) error { return errNoGuest }

// Run refuses.
func (*memory) Run(context.Context) (hypervisor.Guest, error) { return nil, errNoGuest }

// Destroy has nothing to do.
func (*memory) Destroy() error { return nil }
