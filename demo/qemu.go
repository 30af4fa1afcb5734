package demo

// The real world: each host is a network namespace with a bridge, the guest a
// Linux under QEMU, the client a TCP connection from a namespace of its own.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"understudy/config"
	guestimage "understudy/guest"
	"understudy/guest/client"
	"understudy/lab"
)

const clientHost = "client"

var (
	subnet  = netip.MustParsePrefix("10.77.0.0/24")
	guestIP = netip.MustParsePrefix("10.77.0.50/24")
)

type qemuWorld struct {
	*base
	lab *lab.Lab
}

func newQEMUWorld(_ context.Context, o Options) (_ world, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("demo: network namespaces and TAP devices need root; `understudy demo --guest sim` does without")
	}
	for _, f := range []string{o.Kernel, o.Initrd} {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("demo: the guest is not built, run `make guest`: %w", err)
		}
	}
	if _, err := lab.Sweep("usdemo"); err != nil {
		return nil, fmt.Errorf("demo: remove what a former demo left: %w", err)
	}
	l, err := lab.New(lab.Options{Prefix: "usdemo", Hosts: []string{hostA, hostB, witness, clientHost}, Subnet: subnet})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	address := func(h string) string { return net.JoinHostPort(l.Host(h).Addr().String(), "7400") }
	boot := guestimage.Boot{Address: guestIP}
	if o.Machine == "microvm" {
		boot.TSCKHz = guestimage.TSCKHz()
	}
	c := &config.Config{
		Hosts: []config.Host{
			{Name: hostA, Address: address(hostA)}, {Name: hostB, Address: address(hostB)},
			{Name: witness, Address: address(witness), Witness: true},
		},
		Guests: []config.Guest{{
			Name: guest, Host: hostA, Backup: hostB, Hypervisor: config.QEMU, Memory: o.Memory, CPUs: 1, Machine: o.Machine,
			Kernel: o.Kernel, Initrd: o.Initrd, Append: boot.CommandLine(),
			NICs:       []config.NIC{{MAC: config.MAC{0x52, 0x54, 0, 0x77, 0, 0x50}, Bridge: lab.Bridge}},
			Protection: config.Protection{Epoch: o.Epoch},
		}},
	}
	b, err := newBase(o, c)
	if err != nil {
		return nil, err
	}
	if err := b.write(); err != nil {
		return nil, errors.Join(err, b.remove())
	}
	return &qemuWorld{b, l}, nil
}

func (w *qemuWorld) start(ctx context.Context, host string) error {
	cmd := w.lab.Host(host).Command(context.WithoutCancel(ctx), w.o.Daemon, w.args(host)...)
	return w.launch(host, cmd.Cmd, cmd.Start)
}

func (w *qemuWorld) kill(host string) error {
	if err := w.lab.Host(host).Kill(); err != nil {
		return err
	}
	return w.ended(host)
}

func (w *qemuWorld) dial(ctx context.Context, port int) (net.Conn, error) {
	to := net.JoinHostPort(guestIP.Addr().String(), strconv.Itoa(port))
	deadline := time.Now().Add(30 * time.Second)
	for {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		conn, err := w.lab.Host(clientHost).Dial(call, "tcp", to)
		cancel()
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return conn, err
		}
		_ = sleep(ctx, 50*time.Millisecond) // the guest may still be booting
	}
}

func (w *qemuWorld) connect(ctx context.Context) (connection, error) {
	conn, err := w.dial(ctx, guestimage.CounterPort)
	if err != nil {
		return nil, err
	}
	return newTCPClient(ctx, conn)
}

// control runs f on a control connection of its own.
func (w *qemuWorld) control(ctx context.Context, f func(ctx context.Context, c *client.Control) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := w.dial(ctx, guestimage.ControlPort)
	if err != nil {
		return err
	}
	c := client.NewControl(conn)
	defer func() { _ = c.Close() }()
	return f(ctx, c)
}

func (w *qemuWorld) load(ctx context.Context) error {
	return w.control(ctx, func(ctx context.Context, c *client.Control) error {
		return c.Dirty(ctx, client.Dirty{Pages: 300, Every: 25 * time.Millisecond, Random: true, AreaMiB: 32})
	})
}

func (w *qemuWorld) check(ctx context.Context) error {
	return w.control(ctx, func(ctx context.Context, c *client.Control) error {
		_, err := c.Check(ctx)
		return err
	})
}

func (w *qemuWorld) boot(ctx context.Context) (id string, err error) {
	err = w.control(ctx, func(ctx context.Context, c *client.Control) error {
		id, err = c.Boot(ctx)
		return err
	})
	return id, err
}

func (w *qemuWorld) close() error {
	err := w.lab.Close() // kills what is in it
	for _, h := range []string{hostA, hostB, witness} {
		err = errors.Join(err, w.ended(h))
	}
	return errors.Join(err, w.remove())
}
