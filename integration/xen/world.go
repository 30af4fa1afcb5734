package main

// This file is the world of the story, in this process' own network namespace:
//
//	bridge us0, 10.77.0.1 ── witness: a daemon beside us
//	   ├─ TAP usa ── QEMU: Xen host a, 10.77.0.11
//	   └─ TAP usb ── QEMU: Xen host b, 10.77.0.12
//
// Whatever it starts ends with close. The network ends with the process.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"understudy/guest/image"
	"understudy/guest/xenhost"
)

// pair is the world.
type pair struct {
	*follower
	dir     string
	dom0    image.Dom0
	hosts   map[string]*xenhost.Host
	witness *exec.Cmd
}

func newWorld(ctx context.Context, dom0 image.Dom0, o options) (_ *pair, err error) {
	dir, err := os.MkdirTemp("", "understudy-xen-")
	if err != nil {
		return nil, err
	}
	w := &pair{dir: dir, dom0: dom0, hosts: map[string]*xenhost.Host{}}
	if err := errors.Join(files(ctx, dir, o), network(ctx)); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	w.follower = follow(dir)
	return w, nil
}

// network makes the bridge.
func network(ctx context.Context) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"}, {"link", "add", "us0", "type", "bridge"}, {"link", "set", "us0", "up"},
		{"addr", "add", addresses[witness] + "/24", "dev", "us0"},
	} {
		if err := ip(ctx, args...); err != nil {
			return err
		}
	}
	for _, host := range []string{hostA, hostB} {
		tap := "us" + host
		for _, args := range [][]string{{"tuntap", "add", tap, "mode", "tap"}, {"link", "set", tap, "master", "us0"}, {"link", "set", tap, "up"}} {
			if err := ip(ctx, args...); err != nil {
				return err
			}
		}
	}
	return nil
}

func ip(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "ip", args...)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, said)
	}
	return nil
}

// bootLimit bounds the boot of both hosts on a busy machine.
const bootLimit = 8 * time.Minute

// boot starts both hosts at once.
func (w *pair) boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for n, host := range []string{hostA, hostB} {
		all.Go(func() {
			h, err := w.bootOne(ctx, host, n)
			mu.Lock()
			defer mu.Unlock()
			w.hosts[host], errs = h, append(errs, err)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// bootOne starts a host and gives it its network, and a console that is written
// down.
func (w *pair) bootOne(ctx context.Context, host string, n int) (*xenhost.Host, error) {
	dir := filepath.Join(w.dir, "machine-"+host)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	h, err := xenhost.Boot(ctx, xenhost.Config{Dom0: w.dom0, Dir: dir, Share: w.dir, Args: []string{
		"-netdev", "tap,id=net,ifname=us" + host + ",script=no,downscript=no", "-device", fmt.Sprintf("virtio-net-pci,netdev=net,mac=52:54:00:77:00:%02x", n+1),
	}})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", host, err)
	}
	for _, text := range []string{
		"modprobe virtio_net; udevadm settle 2>/dev/null; ip link add br0 type bridge && ip link set br0 up",
		"for i in /sys/class/net/e*; do ip link set ${i##*/} master br0 up || exit 1; done; ip addr add " + addresses[host] + "/24 dev br0",
		"kill $(cat /run/xenconsoled.pid); /usr/lib/xen-4.17/bin/xenconsoled --pid-file=/run/xenconsoled.pid --log=guest --log-dir=" + share + "/" + host,
	} {
		if err := order(ctx, h, host, text); err != nil {
			return nil, errors.Join(err, h.Close())
		}
	}
	return h, nil
}

// order has a host carry out a line.
func order(ctx context.Context, h *xenhost.Host, host, text string) error {
	said, status, err := h.Run(ctx, text)
	if err == nil && status != 0 {
		err = fmt.Errorf("status %d: %s", status, said)
	}
	if err != nil {
		return fmt.Errorf("host %s: %s: %w", host, text, err)
	}
	return nil
}

// startDaemons starts the witness' daemon here, and the hosts'.
func (w *pair) startDaemons(ctx context.Context) error {
	log, err := os.Create(filepath.Join(w.dir, witness+".log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	w.witness = exec.Command(filepath.Join(w.dir, "understudyd"), "--config", filepath.Join(w.dir, "understudy.toml"), "--host", witness, "--log-format", "json")
	w.witness.Stdout, w.witness.Stderr = log, log
	w.witness.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := w.witness.Start(); err != nil {
		w.witness = nil
		return fmt.Errorf("the witness: %w", err)
	}
	for _, host := range []string{hostA, hostB} {
		daemon := fmt.Sprintf("setsid %s/understudyd --config %[1]s/understudy.toml --host %[2]s --log-format json >%[1]s/%[2]s.log 2>&1 </dev/null &", share, host)
		if err := order(ctx, w.hosts[host], host, daemon); err != nil {
			return err
		}
	}
	return nil
}

// keepLogs copies what was said, for people.
func (w *pair) keepLogs(to string) error {
	var errs []error
	for _, pattern := range []string{"*.log", "*/*.log", "understudy.toml"} {
		found, _ := filepath.Glob(filepath.Join(w.dir, pattern))
		for _, from := range found {
			name, err := filepath.Rel(w.dir, from)
			if err == nil {
				err = os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755)
			}
			text, readErr := os.ReadFile(from)
			errs = append(errs, err, readErr, os.WriteFile(filepath.Join(to, name), text, 0o644))
		}
	}
	fmt.Println("the logs are in", to)
	return errors.Join(errs...)
}

// close ends everything.
func (w *pair) close() error {
	var errs []error
	for _, h := range w.hosts {
		if h != nil {
			errs = append(errs, h.Close())
		}
	}
	if w.witness != nil {
		_ = w.witness.Process.Kill()
		_ = w.witness.Wait() // killed
	}
	w.stop()
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}
