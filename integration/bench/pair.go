package main

// The machine that is measured, and the engine around it. A pair lives for one
// size of guest; the guest is protected and unprotected in turn:
//
//	newPair: guest, gate, backup's process
//	protect: a primary feeds the backup until it is in sync, and goes on
//	unprotect: no primary; frames pass the gate at once

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"understudy/clock"
	"understudy/egress"
	"understudy/guest"
	"understudy/guest/client"
	"understudy/hypervisor/qemu"
	"understudy/integration/onevoter"
	"understudy/primary"
)

type pair struct {
	place   *place
	log     *onevoter.Log
	driver  *qemu.Driver
	probe   *probe
	gate    *egress.Gate
	standby *standbyProcess
	dial    primary.Dial
	control *client.Control

	primary *primary.Primary // while protected
	stop    context.CancelFunc
	ended   chan error
}

const (
	bootTime    = 2 * time.Minute
	protectTime = 2 * time.Minute
)

// newPair boots a guest of that size, unprotected.
func newPair(ctx context.Context, p *place, o *options, mib int) (_ *pair, err error) {
	here, err := p.config(o, mib, hostA)
	if err != nil {
		return nil, err
	}
	there, err := p.config(o, mib, hostB)
	if err != nil {
		return nil, err
	}
	r := &pair{place: p, log: onevoter.New(hostA, leaseTime)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("bring up a guest of %d MiB: %w", mib, err), r.close())
		}
	}()
	if r.driver, err = qemu.NewDriver(here, p.Log); err != nil {
		return nil, err
	}
	if r.standby, err = startStandby(task{Here: there, There: here, Place: *p, Verbose: o.verbose}); err != nil {
		return nil, err
	}
	if r.dial, err = dialer(r.standby.address, p.tls(), p.Log); err != nil {
		return nil, err
	}
	if err = r.openGate(here); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	g, err := r.driver.Start(limited)
	if err != nil {
		return nil, err
	}
	if r.probe, err = newProbe(g.(*qemu.Guest), here.ImageDir); err != nil {
		return nil, errors.Join(err, g.Destroy())
	}
	if err = r.unprotected(limited); err != nil {
		return nil, err
	}
	conn, err := r.connect(limited, guest.ControlPort)
	if err != nil {
		return nil, fmt.Errorf("the guest does not come up: %w", err)
	}
	r.control = client.NewControl(conn)
	return r, nil
}

// openGate makes the guest's way out, as a daemon makes it.
func (r *pair) openGate(c qemu.Config) (err error) {
	if err := r.driver.Prepare(); err != nil {
		return err
	}
	r.gate, err = r.place.openGate(c, tapName, r.driver.Grant)
	return err
}

// connect dials a service of the guest from the client's namespace until it
// answers.
func (r *pair) connect(ctx context.Context, port int) (net.Conn, error) {
	address := net.JoinHostPort(guestAddress.Addr().String(), strconv.Itoa(port))
	for {
		try, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := r.place.lab.Host("client").Dial(try, "tcp", address)
		cancel()
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// protect starts a primary with epochs of the given bounds and waits until the
// backup is in sync.
func (r *pair) protect(ctx context.Context, floor, ceiling time.Duration) error {
	c := primary.DefaultConfig(guestName, hostA, leaseTime)
	c.Floor, c.Target, c.Ceiling = floor, ceiling, ceiling
	c.Addresses = []netip.Addr{guestAddress.Addr()}
	p, err := primary.New(c, primary.Deps{
		Guest: r.probe, Gate: r.gate, Log: r.log, Dial: r.dial, Clock: clock.Boot{}, Slog: r.place.Log,
		State: r.log.Begin(), Running: true, Observe: r.probe.observe,
	})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	r.primary, r.stop, r.ended = p, stop, make(chan error, 1)
	ended := r.ended
	go func() { // ends with unprotect
		outcome, err := p.Run(running)
		if err == nil && running.Err() == nil {
			err = fmt.Errorf("the primary ended: %v", outcome)
		}
		ended <- err
	}()
	limit := time.NewTimer(protectTime)
	defer limit.Stop()
	for {
		if p.Status().Mode == primary.ModeProtected {
			return nil
		}
		select {
		case <-limit.C:
			s := p.Status()
			return fmt.Errorf("not protected after %v: %s, %d pages left, %s", protectTime, s.Mode, s.Remaining, s.LinkError)
		case err := <-ended:
			ended <- err
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// unprotect ends the primary. The guest runs on.
func (r *pair) unprotect(ctx context.Context) error {
	if r.primary == nil {
		return nil
	}
	r.stop()
	err := <-r.ended
	r.primary = nil
	return errors.Join(err, r.unprotected(ctx))
}

// unprotected lets the guest run, and its frames pass.
func (r *pair) unprotected(ctx context.Context) error {
	r.gate.Pass()
	if err := r.gate.Allow(clock.Boot{}.Now().Add(time.Hour)); err != nil {
		return err
	}
	return r.probe.Resume(ctx)
}

// close ends everything and leaves nothing behind.
func (r *pair) close() error {
	var errs []error
	if r.primary != nil {
		r.stop()
		errs = append(errs, <-r.ended)
	}
	if r.control != nil {
		errs = append(errs, r.control.Close())
	}
	if r.probe != nil {
		errs = append(errs, r.probe.close())
	}
	if r.gate != nil {
		errs = append(errs, r.gate.Close())
	}
	if r.standby != nil {
		errs = append(errs, r.standby.close())
	}
	if r.driver != nil {
		errs = append(errs, r.driver.Clean(context.Background()))
	}
	return errors.Join(errs...)
}

// memoryOf finds a guest's memory file.
func memoryOf(dir string) (*os.File, error) {
	found, err := filepath.Glob(filepath.Join(dir, "*.ram"))
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d memory files in %s, want 1", len(found), dir)
	}
	return os.Open(found[0])
}
