// Package isolate makes networks that nothing leaves: a network namespace with a
// bridge, to which TAPs for a machine are joined, and the host's own address on
// it. There is no other link in it.
//
//	New ── thread in a new namespace ── bridge (address) ── TAPs ──> descriptors for a machine
//	Run: commands inside it (namespace of the thread that starts them)
//	Close, Clean: processes, then the namespace
//
// A TAP is gone with the last descriptor of it. It needs CAP_SYS_ADMIN
// (namespaces, mounts below /run/netns) and CAP_NET_ADMIN.
package isolate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"understudy/bubble"
	"understudy/netspace"
)

// Config says what a network looks like.
type Config struct {
	// Name is its namespace's, see Name.
	Name string
	// Address is the host's own, with its prefix length; the zero value: none.
	Address netip.Prefix
	// TAPs is how many there are.
	TAPs int
}

const (
	bridge = "br0"       // the name of a network's bridge
	prefix = "usbubble-" // what every network's name begins with
)

// Name derives the name of a guest's network from the guest's and from a directory
// that is this daemon's alone: several may be on one machine.
func Name(guest, dir string) string {
	sum := sha256.Sum256([]byte(dir + "\x00" + guest))
	const most = 20
	return prefix + guest[:min(len(guest), most)] + "-" + hex.EncodeToString(sum[:4])
}

// Network is one of them.
type Network struct {
	space *netspace.Space
	taps  []*os.File
}

// New makes a network. What is left of a former one of that name is removed.
func New(c Config) (_ *Network, err error) {
	if err := Clean(c.Name); err != nil {
		return nil, err
	}
	// It forwards nothing to elsewhere: there is no elsewhere.
	space, err := netspace.New(c.Name, netspace.Setting{Path: "ipv4/ip_forward", Value: "0"})
	if err != nil {
		return nil, err
	}
	n := &Network{space: space}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("network %s: %w", c.Name, err), n.Close())
		}
	}()
	if err := space.AddBridge(bridge, 0, c.Address); err != nil {
		return nil, err
	}
	for i := range c.TAPs {
		if err := n.addTAP(fmt.Sprintf("tap%d", i)); err != nil {
			return nil, fmt.Errorf("tap%d: %w", i, err)
		}
	}
	return n, nil
}

// addTAP makes a TAP that vanishes with its last descriptor, and joins it to the
// bridge. Frames have no header of the kernel's, as those of the guest's own
// network have none: what guest and device have agreed on fits.
func (n *Network) addTAP(name string) error {
	err := n.space.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w (is the tun module loaded?)", err)
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		n.taps = append(n.taps, os.NewFile(uintptr(fd), "/dev/net/tun "+name))
		return nil
	})
	if err != nil {
		return err
	}
	return n.space.Join(name, bridge)
}

// Name is what `ip netns` calls it.
func (n *Network) Name() string { return n.space.Name() }

// TAPs are the TAPs' descriptors, in order. They are the network's: a process
// gets copies.
func (n *Network) TAPs() []*os.File { return n.taps }

// Check runs a command inside the network.
func (n *Network) Check(ctx context.Context, argv, env []string) bubble.Check {
	return bubble.RunCheck(ctx, argv, env, func(cmd *exec.Cmd) error { return n.space.Do(cmd.Start) })
}

// Close ends every process in the network and removes it. A machine keeps its
// TAPs until it has ended.
func (n *Network) Close() error {
	var errs []error
	for _, t := range n.taps {
		errs = append(errs, t.Close())
	}
	n.taps = nil
	// Its processes are found by its name, which Close takes away.
	return errors.Join(append(errs, netspace.Kill(n.space.Name()), n.space.Close())...)
}

// Clean removes the network of that name with all processes in it. One that is not
// there is no error.
func Clean(name string) error {
	if err := netspace.Kill(name); err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	return netspace.Remove(name)
}

// Left lists the networks that there are of a daemon's guests: what Name would
// give for any guest is told by its beginning only.
func Left() ([]string, error) { return netspace.Names(prefix) }
