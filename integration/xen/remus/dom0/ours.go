//go:build xen

package main

// This file is our side: the driver, the primary's loop, the encoder and the transport
// as a daemon has them, and a backup on another host. What is counted is what the
// sessions' connections were given to send.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"understudy/clock"
	"understudy/cmd/daemon"
	"understudy/egress"
	"understudy/integration/onevoter"
	"understudy/integration/xen/remus/cell"
	"understudy/integration/xen/remus/pair"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
	"understudy/transport"
)

// sent counts what goes through connections.
type sent struct {
	net.Conn
	bytes *atomic.Uint64
}

func (s sent) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	s.bytes.Add(uint64(n))
	return n, err
}

// dialer opens sessions to the backup's host.
func (b *bench) dialer(bytes *atomic.Uint64) (primary.Dial, error) {
	id, err := transport.LoadIdentity(b.tls, pair.HostA)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (protocol.Session, ownership.HostID, error) {
		s, err := transport.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
			conn, err := transport.Dial(ctx, b.backup, pair.HostB, pair.Replication, id)
			if err != nil {
				return nil, err
			}
			return sent{conn, bytes}, nil
		}, pair.Wire(), b.log)
		if err != nil {
			return nil, pair.HostB, err
		}
		return daemon.Session{Session: s}, pair.HostB, nil
	}, nil
}

// ourRun protects the guest by our own engine.
func (b *bench) ourRun(ctx context.Context, interval time.Duration) (r *cell.Run, err error) {
	guest, err := b.driver.Adopt(ctx)
	if err != nil {
		return nil, err
	}
	follow(guest)
	defer func() {
		// Whatever has happened, the guest runs on.
		err = errors.Join(err, guest.Resume(context.WithoutCancel(ctx)), guest.Detach())
	}()
	if err := guest.Resume(ctx); err != nil {
		return nil, err
	}
	var bytes atomic.Uint64
	dial, err := b.dialer(&bytes)
	if err != nil {
		return nil, err
	}
	gate, err := newGate(b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, gate.Close()) }()
	log := onevoter.New(pair.HostA, pair.Lease)
	o := &observer{bench: b, bytes: &bytes, done: make(chan struct{})}
	c := primary.DefaultConfig(guestName, pair.HostA, pair.Lease)
	// The guest runs for the whole interval, as with Remus: the length of an epoch that
	// adapts is Target's then.
	c.Floor, c.Target, c.Ceiling = interval-time.Microsecond, interval, interval
	p, err := primary.New(c, primary.Deps{
		Guest: guest, Gate: gate, Log: log, Dial: dial, Clock: clock.Boot{}, Slog: b.log, State: log.Begin(), Running: true, Observe: o.observe,
	})
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { // ends with stop
		outcome, err := p.Run(running)
		if err == nil && running.Err() == nil {
			err = fmt.Errorf("the primary has ended: %v", outcome)
		}
		ended <- err
	}()
	select {
	case <-o.done:
		stop()
		err = <-ended
	case err = <-ended:
	case <-time.After(runLimit):
		status := p.Status()
		stop()
		err = errors.Join(fmt.Errorf("no %d checkpoints in %v: %+v", b.epochs, runLimit, status), <-ended)
	}
	stop()
	if err != nil {
		return nil, err
	}
	return o.run(), nil
}

// runLimit bounds one run.
const runLimit = 3 * time.Minute

// newGate makes a way out for a guest without a network.
func newGate(b *bench) (*egress.Gate, error) {
	guestEnd, _ := egress.NewPipe(1)
	networkEnd, _ := egress.NewPipe(1)
	return egress.NewGate(egress.Config{Guest: guestEnd, Network: networkEnd, Clock: clock.Boot{}, HeldBytes: egress.MinHeldBytes, Log: b.log})
}

// observer notes each checkpoint when the guest runs again. The loop calls it.
type observer struct {
	*bench
	bytes *atomic.Uint64
	done  chan struct{}

	all          []cell.Epoch
	first        int // that is measured
	at           uint64
	full         uint64
	opened       time.Time
	began, ended time.Time
	written      uint64
}

func (o *observer) observe(c primary.Cost) {
	select {
	case <-o.done:
		return
	default:
	}
	at, moment := o.bytes.Load(), time.Now()
	// What was sent since the last one was seen is the last one.
	if n := len(o.all); n > 0 {
		o.all[n-1].Bytes = at - o.at
	} else {
		o.full, o.opened = at, moment
	}
	o.at = at
	if !o.ended.IsZero() {
		close(o.done)
		return
	}
	e := o.steps.took()
	e.Pages, e.Steps = c.Dirty, &cell.Steps{Scan: c.Scan, Copy: c.Copy, Device: c.Device, Resume: c.Resume}
	o.all = append(o.all, e)
	switch {
	case o.first == 0 && len(o.all) > 1 && moment.Sub(o.opened) >= o.settle:
		o.first, o.began, o.written = len(o.all), moment, o.page.Written()
	case o.first > 0 && len(o.all) == o.first+o.epochs:
		o.ended, o.written = moment, o.page.Written()-o.written
	}
}

// run is what came out.
func (o *observer) run() *cell.Run {
	return &cell.Run{Side: cell.Ours, Epochs: o.all[o.first:], Took: o.ended.Sub(o.began), Written: o.written, Full: o.full}
}
