// Package world sets up, on one machine, what understudy is for: two hosts, a
// witness and guests, each host with a real understudyd. The demo and the tests
// tell their stories in it.
//
//	world.go     the directory, configuration and certificates; what an operator asks
//	daemon.go    the daemons: started, killed, their logs followed
//	qemu.go      a world of network namespaces and QEMU; needs root
//	sim.go       a world on loopback with simulated guests; needs nothing
//	client.go    the client that counts a guest's lines
//	wire.go      what leaves each host's network device
//	programs.go  the programs, built for tests; what a world has left behind
package world

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

	"understudy/cmd/daemon"
	"understudy/config"
	"understudy/host"
	"understudy/ownership"
	"understudy/status"
	"understudy/transport/pki"
)

// The hosts of every world.
const (
	HostA   = "a"
	HostB   = "b"
	Witness = "w"
)

// Hosts lists them; the witness comes first, since it is best started first.
func Hosts() []string { return []string{Witness, HostA, HostB} }

// Other is the other one of the pair.
func Other(host string) string {
	if host == HostA {
		return HostB
	}
	return HostA
}

// Guest is a guest to be set up.
type Guest struct {
	Name       string
	Home       string // the host where it starts first
	Memory     config.Size
	Protection config.Protection // what is not set has its default

	// For QEMU only.
	Machine, Accel string
	// Disk is the mode of the guest's disk; "" is none. It begins as a copy of
	// QEMUOptions.Image.
	Disk config.DiskMode
	// Unfenced, Queues: see config.Disk.
	Unfenced bool
	Queues   int
	// BubbleAddress is the host's own in the guest's bubbles; see config.Guest.
	BubbleAddress string
}

// Options say how a world is set up.
type Options struct {
	// Daemon is the understudyd program.
	Daemon  string
	Profile config.Profile
	// Arguments, if not nil, are more of a host's daemon's.
	Arguments func(host string) []string
	Guests    []Guest
	// Drills are those that the hosts know by name.
	Drills []config.Drill
	// KeepLogs leaves the daemons' logs in this directory; "" keeps none.
	KeepLogs string
	// Prefix begins the names of what is made outside the world's directory,
	// and that directory's own; see package lab.
	Prefix string
}

// World is what worlds of both kinds share.
type World struct {
	// Dir is on a tmpfs and holds everything but the disks, which are in Disks,
	// on a file system of a real disk. Both go with the world.
	Dir    string
	Disks  string
	Config *config.Config

	o       Options
	lock    *os.File // of the directory, for as long as this process lives
	command func(host, name string, args ...string) (cmd *exec.Cmd, start func() error)

	mu      sync.Mutex
	logs    map[string][]Entry
	running map[string]*process
}

// tmpfs is where worlds are; diskfs is where their guests' disks are.
const (
	tmpfs  = "/dev/shm"
	diskfs = "/var/tmp"
)

// newWorld makes the directory and the certificates for a configuration that
// has hosts and no guests yet.
func newWorld(o Options, c *config.Config) (_ *World, err error) {
	if err := sweep(o.Prefix); err != nil {
		return nil, fmt.Errorf("remove what a former run left: %w", err)
	}
	dir, err := os.MkdirTemp(tmpfs, o.Prefix+"-world-")
	if err != nil {
		return nil, fmt.Errorf("a directory for the hosts: %w", err)
	}
	w := &World{Dir: dir, Config: c, o: o, logs: map[string][]Entry{}, running: map[string]*process{},
		Disks: filepath.Join(diskfs, filepath.Base(dir))}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.remove())
		}
	}()
	if w.lock, err = os.Open(dir); err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(w.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	// QEMU runs as another user and must be able to reach its sockets.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	c.Cluster, c.Profile, c.Drill = "demo", o.Profile, o.Drills
	for i := range c.Hosts {
		h := &c.Hosts[i]
		if err := os.Mkdir(filepath.Join(dir, h.Name), 0o755); err != nil {
			return nil, err
		}
		h.Run, h.State, h.TLS = filepath.Join(dir, h.Name, "run"), filepath.Join(dir, h.Name, "state"), filepath.Join(dir, "tls")
	}
	return w, pki.Init(filepath.Join(dir, "tls"), Hosts(), 30*24*time.Hour)
}

// write renders the configuration, and reads it back the way the daemons do.
func (w *World) write() error {
	if err := os.WriteFile(w.ConfigFile(), w.Config.Render(), 0o600); err != nil {
		return err
	}
	c, err := config.Load(w.ConfigFile())
	if err != nil {
		return fmt.Errorf("the configuration of the hosts: %w", err)
	}
	w.Config = c
	return nil
}

func (w *World) remove() error {
	err := errors.Join(os.RemoveAll(w.Disks), os.RemoveAll(w.Dir))
	if w.lock != nil {
		err = errors.Join(err, w.lock.Close())
	}
	return err
}

// sweep removes the directories whose process has died: nobody locks them. One
// of another user, or one that is being made or removed, is let alone.
func sweep(prefix string) error {
	dirs, err := filepath.Glob(filepath.Join(tmpfs, prefix+"-world-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err != nil {
			continue
		}
		old, err := d.Stat()
		if err == nil && time.Since(old.ModTime()) > time.Minute && syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			errs = append(errs, os.RemoveAll(dir))
		}
		errs = append(errs, d.Close())
	}
	disks, err := filepath.Glob(filepath.Join(diskfs, prefix+"-world-*"))
	for _, dir := range disks {
		if _, err := os.Stat(filepath.Join(tmpfs, filepath.Base(dir))); errors.Is(err, os.ErrNotExist) {
			errs = append(errs, os.RemoveAll(dir)) // it is made after the other, and removed before
		}
	}
	return errors.Join(append(errs, err)...)
}

// ConfigFile is the path of the configuration.
func (w *World) ConfigFile() string { return filepath.Join(w.Dir, "understudy.toml") }

// Socket is the path of a host's status socket.
func (w *World) Socket(name string) string {
	h, _ := w.Config.Host(name)
	return daemon.Socket(w.Config, h)
}

// Lease is the length of a lease.
func (w *World) Lease() time.Duration { return w.Config.Lease.Std() }

// Report asks a host's daemon what it knows.
func (w *World) Report(ctx context.Context, name string) (status.Report, error) {
	call, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return status.NewClient(w.Socket(name)).Status(call)
}

// Status asks a host's daemon what it knows of a guest.
func (w *World) Status(ctx context.Context, name, guest string) (host.GuestStatus, error) {
	r, err := w.Report(ctx, name)
	if err != nil {
		return host.GuestStatus{}, err
	}
	for _, g := range r.Guests {
		if g.Name == guest {
			return g, nil
		}
	}
	return host.GuestStatus{}, fmt.Errorf("host %s knows no guest %s", name, guest)
}

// Operate asks a host's daemon for an operation on a guest.
func (w *World) Operate(ctx context.Context, name, guest, operation string, result any) error {
	return status.NewClient(w.Socket(name)).Operate(ctx, guest, operation, result)
}

// Await waits until a host that is up says of a guest what done asks for.
func (w *World) Await(ctx context.Context, guest, what string, limit time.Duration, done func(name string, g host.GuestStatus) bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		said := ""
		for _, h := range []string{HostA, HostB} {
			if !w.Up(h) {
				continue
			}
			g, err := w.Status(ctx, h, guest)
			if err == nil && done(h, g) {
				return h, nil
			}
			if err != nil {
				said += fmt.Sprintf("; %s: %v", h, err)
			} else {
				said += fmt.Sprintf("; %s: %s, owner %s, generation %d, protected: %s %s", h, g.Role, g.Log.Owner, g.Log.Generation, g.Protected, g.Problem)
			}
		}
		if Sleep(ctx, 10*time.Millisecond) != nil {
			return "", fmt.Errorf("guest %s: not %s within %v%s", guest, what, limit, said)
		}
	}
}

// Protected waits until a host (want, or any with "") runs the guest and says
// that it is protected. It returns the host.
func (w *World) Protected(ctx context.Context, guest, want string, limit time.Duration) (string, error) {
	return w.Await(ctx, guest, "protected", limit, func(name string, g host.GuestStatus) bool {
		return g.Protected == host.ProtectedYes && g.Log.Owner == ownership.HostID(name) && (want == "" || want == name)
	})
}

// Sleep waits for d, or returns ctx's error.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
