package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"syscall"

	"understudy/netspace"
)

// Cmd is an exec.Cmd whose process runs in a namespace of the lab. It dies by
// SIGKILL when this process dies or the lab is closed, and whatever it started
// is killed when the lab is closed. Set fields as on an exec.Cmd; its
// SysProcAttr.Pdeathsig is set by Start.
type Cmd struct {
	*exec.Cmd
	space *netspace.Space
}

// Command prepares a process in the host's namespace. The rest of its world is
// this process's; /proc/sys/net is the namespace's, /sys is not.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	return &Cmd{exec.CommandContext(ctx, name, args...), h.space}
}

// Start starts the process. It inherits the namespace of the thread that forks
// it, and its death signal comes when that thread ends.
func (c *Cmd) Start() error {
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return c.space.Do(c.Cmd.Start)
}

// Run starts the process and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the process and returns what it wrote to its standard output.
func (c *Cmd) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the process and returns what it wrote to its standard
// output and error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// Kill sends SIGKILL to every process in the host's namespace and returns when
// they are gone: the host's power is cut, its network stays.
func (h *Host) Kill() error { return netspace.Kill(h.space.Name()) }

// Processes lists the processes in the host's namespace, but this one.
func (h *Host) Processes() ([]int, error) { return netspace.Processes(h.space.Name()) }

// Signal sends a signal to every process in the host's namespace, and goes on
// until it has found none that it has not sent it to: SIGSTOP freezes a host
// whose processes start others. A process that ends meanwhile is no error.
func (h *Host) Signal(s syscall.Signal) error {
	done := map[int]bool{}
	for {
		pids, err := h.Processes()
		if err != nil {
			return fmt.Errorf("looking for processes of %s: %w", h.name, err)
		}
		found := false
		for _, pid := range pids {
			if done[pid] {
				continue
			}
			found, done[pid] = true, true
			if err := syscall.Kill(pid, s); err != nil && err != syscall.ESRCH {
				return fmt.Errorf("sending %v to process %d of %s: %w", s, pid, h.name, err)
			}
		}
		if !found {
			return nil
		}
	}
}

// Do calls f on a thread that is in the host's namespace for as long. What f
// starts in other goroutines is not in the namespace; sockets and files it
// opens stay in it.
func (h *Host) Do(f func() error) error { return h.space.Visit(f) }

// Dial connects from the host, whose network is "tcp", "udp" and the like, to
// an address with a numerical host: names would be looked up by other threads,
// outside the namespace.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dialling from %s: %w", h.name, err)
	}
	err = h.space.Visit(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on the host, on an address with a numerical host.
func (h *Host) Listen(ctx context.Context, network, address string) (ln net.Listener, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", h.name, err)
	}
	err = h.space.Visit(func() (err error) {
		ln, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return ln, err
}
