package main

// This file is the world of the story, in this process' own network namespace:
//
//	bridge us0, 10.77.0.1 ── witness: a daemon beside us
//	   ├─ TAP usa ── QEMU: Xen host a, 10.77.0.11
//	   └─ TAP usb ── QEMU: Xen host b, 10.77.0.12
//
// Where one Xen host is enough, host b is a daemon beside us, too, which only votes.
// Whatever it starts ends with close. The network ends with the process.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"understudy/cmd/daemon"
	"understudy/config"
	"understudy/demo/world"
	"understudy/guest/image"
	"understudy/guest/xenhost"
	"understudy/host"
	"understudy/ownership"
	"understudy/status"
)

// pair is the world.
type pair struct {
	*follower
	dir    string
	lock   *os.File // of the directory, while this process lives
	config *config.Config
	dom0   image.Dom0
	names  []string // of the Xen hosts
	debian string   // image of two more disks of theirs; "": none
	hosts  map[string]*xenhost.Host
	boots  int
	beside []*exec.Cmd // daemons
	wire   *world.Wire // where the hosts' cables end
}

// prefix begins the name of a world's directory.
const prefix = "understudy-xen-"

func newWorld(ctx context.Context, dom0 image.Dom0, o options) (_ *pair, err error) {
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("remove what a former run has left: %w", err)
	}
	w := &pair{dom0: dom0, names: o.xenHosts(), debian: o.debian, hosts: map[string]*xenhost.Host{}}
	if w.dir, err = os.MkdirTemp("", prefix); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.remove())
		}
	}()
	if w.lock, err = os.Open(w.dir); err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(w.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: %w", w.dir, err)
	}
	if w.config, err = files(ctx, w.dir, o); err != nil {
		return nil, err
	}
	if err := network(ctx, w.names); err != nil {
		return nil, err
	}
	ends := map[string]string{}
	for _, host := range w.names {
		ends[host] = tap(host)
	}
	if w.wire, err = world.ListenEnds(ends); err != nil {
		return nil, err
	}
	w.follower = follow(w.dir)
	return w, nil
}

// tap is the device at which a host's cable ends.
func tap(host string) string { return "us" + host }

// sweep removes the directories of runs that were killed: nobody locks them.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	errs := []error{err}
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err != nil {
			continue // another one has removed it
		}
		old, err := d.Stat()
		if err == nil && time.Since(old.ModTime()) > time.Minute && syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			errs = append(errs, os.RemoveAll(dir))
		}
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// remove removes the directory.
func (w *pair) remove() error {
	err := os.RemoveAll(w.dir)
	if w.lock != nil {
		err = errors.Join(err, w.lock.Close())
	}
	return err
}

// network makes the bridge. Who has no host of its own has its address here.
func network(ctx context.Context, hosts []string) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"}, {"link", "add", "us0", "type", "bridge"}, {"link", "set", "us0", "up"},
	} {
		if err := ip(ctx, args...); err != nil {
			return err
		}
	}
	for _, name := range []string{witness, hostB} {
		if slices.Contains(hosts, name) {
			continue
		}
		if err := ip(ctx, "addr", "add", addresses[name]+"/24", "dev", "us0"); err != nil {
			return err
		}
	}
	for _, host := range hosts {
		for _, args := range [][]string{{"tuntap", "add", tap(host), "mode", "tap"}, {"link", "set", tap(host), "master", "us0"}, {"link", "set", tap(host), "up"}} {
			if err := ip(ctx, args...); err != nil {
				return err
			}
		}
	}
	return nil
}

// unplug removes the network, for another world of this process.
func (w *pair) unplug() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	errs := []error{ip(ctx, "link", "del", "us0")}
	for _, host := range w.names {
		errs = append(errs, ip(ctx, "link", "del", tap(host)))
	}
	return errors.Join(errs...)
}

func ip(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "ip", args...)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, said)
	}
	return nil
}

// bootLimit bounds the boot of all hosts on a busy machine.
const bootLimit = 8 * time.Minute

// boot starts all hosts at once.
func (w *pair) boot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	dirs := map[string]string{}
	for _, host := range w.names {
		var err error
		if dirs[host], err = w.machine(host); err != nil {
			return err
		}
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for host, dir := range dirs {
		all.Go(func() {
			h, err := w.bootOne(ctx, host, dir)
			mu.Lock()
			defer mu.Unlock()
			w.hosts[host], errs = h, append(errs, err)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// bootAgain starts a host that was lost. What it had in memory is gone, what it had
// on its disk is not.
func (w *pair) bootAgain(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	if err := w.hosts[host].Close(); err != nil {
		return err
	}
	dir, err := w.machine(host)
	if err != nil {
		return err
	}
	w.hosts[host], err = w.bootOne(ctx, host, dir)
	return err
}

// machine makes a directory for one boot of a host.
func (w *pair) machine(host string) (string, error) {
	w.boots++
	dir := filepath.Join(w.dir, fmt.Sprintf("machine-%s-%d", host, w.boots))
	return dir, os.Mkdir(dir, 0o755)
}

// bootOne starts a host and gives it its network, its disk, and a console that is
// written down.
func (w *pair) bootOne(ctx context.Context, host, dir string) (*xenhost.Host, error) {
	n := map[string]int{hostA: 1, hostB: 2}[host]
	c := xenhost.Config{Dom0: w.dom0, Dir: dir, Share: w.dir, Args: []string{
		"-netdev", "tap,id=net,ifname=" + tap(host) + ",script=no,downscript=no", "-device", fmt.Sprintf("virtio-net-pci,netdev=net,mac=52:54:00:77:00:%02x", n),
		"-drive", "file=" + diskOf(w.dir, host) + ",if=virtio,format=raw",
	}}
	if w.debian != "" {
		c.Memory = comparedHost
		for range 2 {
			c.Args = append(c.Args, "-drive", "file="+w.debian+",if=virtio,format=raw,snapshot=on")
		}
	}
	h, err := xenhost.Boot(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", host, err)
	}
	for _, text := range []string{
		"modprobe virtio_blk; mkdir -p " + kept + " && mount /dev/vdb " + kept,
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
	_, err := said(ctx, h, host, text)
	return err
}

// said has a host carry out a line, and returns what that says.
func said(ctx context.Context, h *xenhost.Host, host, text string) (string, error) {
	out, status, err := h.Run(ctx, text)
	if err == nil && status != 0 {
		err = fmt.Errorf("status %d: %s", status, out)
	}
	if err != nil {
		return "", fmt.Errorf("host %s: %s: %w", host, text, err)
	}
	return out, nil
}

// startDaemons starts the daemons beside us, and the hosts'.
func (w *pair) startDaemons(ctx context.Context) error {
	beside := map[string]string{witness: configFile}
	if !slices.Contains(w.names, hostB) {
		beside[hostB] = voterFile
	}
	for name, file := range beside {
		if err := w.startBeside(name, file); err != nil {
			return fmt.Errorf("the daemon of %s: %w", name, err)
		}
	}
	for _, host := range w.names {
		if err := w.startDaemon(ctx, host); err != nil {
			return err
		}
	}
	return nil
}

// startBeside starts a daemon that has no host of its own.
func (w *pair) startBeside(name, file string) error {
	log, err := os.Create(filepath.Join(w.dir, name+".log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	d := exec.Command(filepath.Join(w.dir, "understudyd"), "--config", filepath.Join(w.dir, file), "--host", name, "--log-format", "json")
	d.Stdout, d.Stderr = log, log
	d.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.Start(); err != nil {
		return err
	}
	w.beside = append(w.beside, d)
	return nil
}

// startDaemon starts a host's daemon.
func (w *pair) startDaemon(ctx context.Context, host string) error {
	return order(ctx, w.hosts[host], host, fmt.Sprintf("setsid %s/understudyd --config %[1]s/understudy.toml --host %[2]s --log-format json >>%[1]s/%[2]s.log 2>&1 </dev/null &", share, host))
}

// ask returns a client of a host's daemon, through the witness.
func (w *pair) ask(name string) *status.Client {
	self, _ := w.config.Host(witness)
	return status.NewClient(daemon.Socket(w.config, self)).At(ownership.HostID(name))
}

// status is what a host says of the guest.
func (w *pair) status(ctx context.Context, name string) (host.GuestStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	report, err := w.ask(name).Status(ctx)
	if err != nil {
		return host.GuestStatus{}, err
	}
	for _, g := range report.Guests {
		if g.Name == guestName {
			return g, nil
		}
	}
	return host.GuestStatus{}, fmt.Errorf("host %s knows no guest %s", name, guestName)
}

// keepLogs copies what was said, for people.
func (w *pair) keepLogs(to string) error {
	var errs []error
	for _, pattern := range []string{"*.log", "*/*.log", configFile} {
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
	for _, d := range w.beside {
		_ = d.Process.Kill()
		_ = d.Wait() // killed
	}
	w.stop()
	w.wire.Close()
	errs = append(errs, w.unplug())
	return errors.Join(append(errs, w.remove())...)
}
