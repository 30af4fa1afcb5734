package world

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"understudy/config"
	"understudy/egress"
	"understudy/hypervisor/sim"
)

// Sim is a world on loopback: the guests are simulated inside the daemons, and
// a virtual switch stands for the network.
type Sim struct {
	*World
	network *egress.Switch
}

// NewSim sets one up. Nothing runs yet.
func NewSim(o Options) (_ *Sim, err error) {
	c := &config.Config{}
	for _, h := range Hosts() {
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		c.Hosts = append(c.Hosts, config.Host{Name: h, Address: address, Witness: h == Witness})
	}
	w, err := newWorld(o, c)
	if err != nil {
		return nil, err
	}
	s := &Sim{World: w}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	w.command = func(_, name string, args ...string) (*exec.Cmd, func() error) {
		cmd := exec.Command(name, args...)
		// A terminal's SIGINT is for the demo, which then ends the daemons.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		return cmd, cmd.Start
	}
	for _, g := range o.Guests {
		c.Guests = append(c.Guests, config.Guest{
			Name: g.Name, Host: g.Home, Backup: Other(g.Home), Hypervisor: config.Sim, Memory: g.Memory,
			NICs:       []config.NIC{{MAC: config.MAC(sim.MACFor(g.Name)), Segment: s.segment()}},
			Protection: g.Protection,
		})
	}
	if err := w.write(); err != nil {
		return nil, err
	}
	s.network, err = egress.NewSwitch(s.segment(), slog.New(slog.DiscardHandler))
	return s, err
}

func (s *Sim) segment() string { return filepath.Join(s.Dir, "switch") }

// freeAddress finds a loopback port that is free now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// Kill takes a host away at once. Its guests live in its daemon.
func (s *Sim) Kill(name string) error { return s.KillDaemon(name) }

// Connect opens a connection to a guest. The report is the client's own.
func (s *Sim) Connect(ctx context.Context, guest string) (*Client, func() sim.Report, error) {
	frames, err := egress.OpenSegment(egress.SocketConfig{Local: filepath.Join(s.Dir, "client-"+guest), Remote: s.segment(), UID: -1, GID: -1})
	if err != nil {
		return nil, nil, err
	}
	port := sim.NewLink(frames, egress.ErrEmpty)
	c := newClient()
	theirs, err := sim.NewClient(sim.ClientConfig{
		Guest: sim.MACFor(guest), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0x99}, NIC: port,
		OnLine:      func(l sim.Line) { c.add(l.Number, nil) },
		OnViolation: func(v sim.Violation) { c.add(0, errors.New(v.String())) },
	})
	if err != nil {
		return nil, nil, errors.Join(err, port.Close())
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var done sync.WaitGroup
	done.Go(func() {
		if err := theirs.Run(run); err != nil {
			c.add(0, err)
		}
	})
	c.stop = func() {
		cancel()
		done.Wait()
		_ = port.Close()
	}
	return c, theirs.Report, nil
}

// Close ends every daemon and removes the world.
func (s *Sim) Close() error {
	var errs []error
	for _, h := range Hosts() {
		errs = append(errs, s.KillDaemon(h))
	}
	if s.network != nil {
		errs = append(errs, s.network.Close())
	}
	if err := errors.Join(append(errs, s.remove())...); err != nil {
		return fmt.Errorf("take the hosts down: %w", err)
	}
	return nil
}
