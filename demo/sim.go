package demo

// The simulated world: three daemons on loopback, the guest simulated inside
// them, a virtual switch instead of a bridge. Neither root nor QEMU is needed.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"understudy/config"
	"understudy/egress"
	"understudy/hypervisor/sim"
)

type simWorld struct {
	*base
	net    *egress.Switch
	port   *sim.Link
	client *sim.Client
	done   sync.WaitGroup
}

func newSimWorld(o Options) (world, error) {
	c := &config.Config{}
	for _, h := range []string{hostA, hostB, witness} {
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		c.Hosts = append(c.Hosts, config.Host{Name: h, Address: address, Witness: h == witness})
	}
	b, err := newBase(o, c)
	if err != nil {
		return nil, err
	}
	segment := filepath.Join(b.dir, "switch")
	c.Guests = []config.Guest{{
		Name: guest, Host: hostA, Backup: hostB, Hypervisor: config.Sim, Memory: 16 * config.MiB,
		NICs:       []config.NIC{{MAC: config.MAC(sim.MACFor(guest)), Segment: segment}},
		Protection: config.Protection{Epoch: o.Epoch},
	}}
	if err := b.write(); err != nil {
		return nil, errors.Join(err, b.remove())
	}
	n, err := egress.NewSwitch(segment, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, errors.Join(err, b.remove())
	}
	return &simWorld{base: b, net: n}, nil
}

// freeAddress finds a loopback port that is free now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (w *simWorld) start(ctx context.Context, host string) error {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), w.o.Daemon, w.args(host)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return w.launch(host, cmd, cmd.Start)
}

func (w *simWorld) kill(host string) error {
	w.mu.Lock()
	d := w.running[host]
	w.mu.Unlock()
	if d == nil {
		return fmt.Errorf("host %s is not up", host)
	}
	if err := d.kill(); err != nil {
		return err
	}
	return w.ended(host)
}

// simClient is the client library of the simulated guest.
type simClient struct {
	*record
	stop func()
}

func (c simClient) close() { c.stop() }

func (w *simWorld) connect(ctx context.Context) (connection, error) {
	frames, err := egress.OpenSegment(egress.SocketConfig{Local: filepath.Join(w.dir, "client"), Remote: filepath.Join(w.dir, "switch"), UID: -1, GID: -1})
	if err != nil {
		return nil, err
	}
	w.port = sim.NewLink(frames, egress.ErrEmpty)
	r := newRecord()
	w.client, err = sim.NewClient(sim.ClientConfig{
		Guest: sim.MACFor(guest), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0x99}, NIC: w.port,
		OnLine:      func(l sim.Line) { r.add(l.Number, nil) },
		OnViolation: func(v sim.Violation) { r.add(0, errors.New(v.String())) },
	})
	if err != nil {
		return nil, errors.Join(err, w.port.Close())
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.done.Go(func() {
		if err := w.client.Run(run); err != nil {
			r.add(0, err)
		}
	})
	return simClient{r, func() {
		cancel()
		w.done.Wait()
		_ = w.port.Close()
	}}, nil
}

// load: the simulated guest is always busy.
func (w *simWorld) load(ctx context.Context) error { return ctx.Err() }

// check: the simulated guest's stream carries the sums of its state, and the
// standby loads nothing whose sums do not hold.
func (w *simWorld) check(context.Context) error { return w.client.Report().Err() }

func (w *simWorld) boot(context.Context) (string, error) {
	return w.client.Report().Boot, nil
}

func (w *simWorld) close() error {
	err := w.stop()
	err = errors.Join(err, w.net.Close(), w.remove())
	if _, e := os.Stat(w.dir); e == nil {
		err = errors.Join(err, fmt.Errorf("%s is still there", w.dir))
	}
	return err
}
