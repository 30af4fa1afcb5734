package world

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"understudy/config"
	guestimage "understudy/guest"
	"understudy/guest/client"
	"understudy/lab"
)

// QEMU is a world whose hosts are network namespaces with a bridge each. The
// guests are Linux under QEMU; clients are in a namespace of their own.
type QEMU struct {
	*World
	Lab     *lab.Lab
	order   []string // the guests, in the order of their addresses
	unmount func() error
}

// QEMUOptions say what is particular to such a world.
type QEMUOptions struct {
	Options
	// Kernel and Initrd are the guests' (make guest).
	Kernel, Initrd string
	// Image is the file system image that guests' disks begin as, ext4.
	Image string
	// Mount, if not nil, puts file systems of its own below a world's directories,
	// which are made but for those of the daemons. What it returns takes them away.
	Mount func(w *World) (unmount func() error, err error)
}

// ClientHost is the host of the lab from which clients connect.
const ClientHost = "client"

var (
	subnet     = netip.MustParsePrefix("10.77.0.0/24")
	firstGuest = netip.MustParseAddr("10.77.0.50")
)

// NewQEMU sets one up. Nothing runs yet. What a process that has died left
// under the same prefix is removed.
func NewQEMU(o QEMUOptions) (_ *QEMU, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces and TAP devices need root (simulated guests do without)")
	}
	for _, f := range []string{o.Kernel, o.Initrd} {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("the guest is not built, run `make guest`: %w", err)
		}
	}
	if _, err := lab.Sweep(o.Prefix); err != nil {
		return nil, fmt.Errorf("remove what a former run left: %w", err)
	}
	l, err := lab.New(lab.Options{Prefix: o.Prefix, Hosts: append(Hosts(), ClientHost), Subnet: subnet})
	if err != nil {
		return nil, err
	}
	q := &QEMU{Lab: l}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.Close())
		}
	}()
	c := &config.Config{}
	for _, h := range Hosts() {
		c.Hosts = append(c.Hosts, config.Host{Name: h, Address: net.JoinHostPort(l.Host(h).Addr().String(), "7400"), Witness: h == Witness})
	}
	if q.World, err = newWorld(o.Options, c); err != nil {
		return nil, err
	}
	q.command = func(host, name string, args ...string) (*exec.Cmd, func() error) {
		cmd := l.Host(host).Command(context.Background(), name, args...)
		// A terminal's SIGINT is for the demo, which then ends the daemons.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return cmd.Cmd, cmd.Start
	}
	if o.Mount != nil {
		if err := os.MkdirAll(q.Disks, 0o755); err != nil {
			return nil, fmt.Errorf("a directory for disks: %w", err)
		}
		if q.unmount, err = o.Mount(q.World); err != nil {
			return nil, fmt.Errorf("file systems for the hosts: %w", err)
		}
	}
	for _, g := range o.Guests {
		q.order = append(q.order, g.Name)
		boot := guestimage.Boot{Address: netip.PrefixFrom(q.Address(g.Name), subnet.Bits())}
		if g.Machine == "microvm" {
			boot.TSCKHz = guestimage.TSCKHz()
		}
		disks, err := q.makeDisk(o.Image, g)
		if err != nil {
			return nil, err
		}
		if len(disks) > 0 {
			boot.Disk = guestimage.Disk{Device: guestimage.FirstDisk, Dir: guestimage.DataDir}
		}
		c.Guests = append(c.Guests, config.Guest{
			Disks: disks,
			Name:  g.Name, Host: g.Home, Backup: Other(g.Home), Hypervisor: config.QEMU, Memory: g.Memory, CPUs: 1, Machine: g.Machine, Accel: g.Accel,
			Kernel: o.Kernel, Initrd: o.Initrd, Append: boot.CommandLine(),
			NICs:          []config.NIC{{MAC: q.MAC(g.Name), Bridge: lab.Bridge}},
			BubbleAddress: g.BubbleAddress, Protection: g.Protection,
		})
	}
	return q, q.write()
}

// makeDisk puts a copy of the image where each host that needs one finds it.
func (q *QEMU) makeDisk(image string, g Guest) ([]config.Disk, error) {
	if g.Disk == "" {
		return nil, nil
	}
	d := config.Disk{Mode: g.Disk, Unfenced: g.Unfenced, Queues: g.Queues, Path: filepath.Join(q.Disks, g.Name+".img")}
	if g.Disk == config.Replicated {
		// The other copy begins as nothing: it has to be made.
		d.Paths = map[string]string{Other(g.Home): filepath.Join(q.Disks, g.Name+"."+Other(g.Home)+".img")}
	}
	if err := os.MkdirAll(q.Disks, 0o755); err != nil {
		return nil, fmt.Errorf("a directory for disks: %w", err)
	}
	if out, err := exec.Command("cp", "--sparse=always", image, d.Path).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy the disk image (make guest): %w: %s", err, out)
	}
	info, err := os.Stat(d.Path)
	if err != nil {
		return nil, err
	}
	if g.Disk == config.Replicated {
		d.Size = config.Size(info.Size())
	}
	return []config.Disk{d}, nil
}

// DiskPath is the path of a guest's disk on a host.
func (q *QEMU) DiskPath(guest, host string) string {
	g, _ := q.Config.Guest(guest)
	if len(g.Disks) == 0 {
		return ""
	}
	return g.Disks[0].PathOn(host)
}

// Address is a guest's address.
func (q *QEMU) Address(guest string) netip.Addr {
	a := firstGuest
	for _, name := range q.order {
		if name == guest {
			return a
		}
		a = a.Next()
	}
	return netip.Addr{}
}

// MAC is the address of a guest's network device.
func (q *QEMU) MAC(guest string) config.MAC {
	ip := q.Address(guest).As4()
	return config.MAC{0x52, 0x54, 0, 0x77, ip[2], ip[3]}
}

// Machines lists the QEMU processes on a host.
func (q *QEMU) Machines(name string) ([]int, error) {
	pids, err := q.Lab.Host(name).Processes()
	if err != nil {
		return nil, err
	}
	var found []int
	for _, pid := range pids {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // it may have ended
		if err == nil && strings.HasPrefix(string(comm), "qemu-system") {
			found = append(found, pid)
		}
	}
	return found, nil
}

// Kill sends SIGKILL to everything on a host.
func (q *QEMU) Kill(name string) error {
	if err := q.Lab.Host(name).Kill(); err != nil {
		return err
	}
	return q.gone(name)
}

// Dial connects to a guest's service, which may not be there yet.
func (q *QEMU) Dial(ctx context.Context, guest string, port int) (net.Conn, error) {
	to := net.JoinHostPort(q.Address(guest).String(), strconv.Itoa(port))
	// Shorter than the kernel's second pause between two SYNs, so that a guest
	// that comes up is noticed soon.
	const try, limit = 800 * time.Millisecond, 30 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		call, cancel := context.WithTimeout(ctx, try)
		conn, err := q.Lab.Host(ClientHost).Dial(call, "tcp", to)
		cancel()
		if err == nil {
			return conn, nil
		}
		if Sleep(ctx, 20*time.Millisecond) != nil {
			return nil, fmt.Errorf("connect to guest %s for %v: %w", guest, limit, err)
		}
	}
}

// Connect opens a client's connection to a guest.
func (q *QEMU) Connect(ctx context.Context, guest string) (*Client, error) {
	conn, err := q.Dial(ctx, guest, guestimage.CounterPort)
	if err != nil {
		return nil, err
	}
	return Follow(ctx, conn)
}

// talkTime bounds a talk with a guest.
const talkTime = 30 * time.Second

// reach is the way to a guest's services.
func (q *QEMU) reach(guest string) Reach {
	return Reach{Limit: talkTime, Dial: func(ctx context.Context, port int) (net.Conn, error) { return q.Dial(ctx, guest, port) }}
}

// Control runs f on a control connection of its own.
func (q *QEMU) Control(ctx context.Context, guest string, f func(ctx context.Context, c *client.Control) error) error {
	return q.reach(guest).Control(ctx, f)
}

// Load makes a guest dirty its memory.
func (q *QEMU) Load(ctx context.Context, guest string) error {
	return q.LoadWith(ctx, guest, client.Dirty{Pages: 300, Every: 25 * time.Millisecond, Random: true, AreaMiB: 32})
}

// LoadWith is Load with another load.
func (q *QEMU) LoadWith(ctx context.Context, guest string, load client.Dirty) error {
	return q.Control(ctx, guest, func(ctx context.Context, c *client.Control) error { return c.Dirty(ctx, load) })
}

// Check asks a guest whether its memory is whole.
func (q *QEMU) Check(ctx context.Context, guest string) error {
	return q.Control(ctx, guest, func(ctx context.Context, c *client.Control) error {
		_, err := c.Check(ctx)
		return err
	})
}

// Boot asks a guest for its boot id.
func (q *QEMU) Boot(ctx context.Context, guest string) (id string, err error) {
	err = q.Control(ctx, guest, func(ctx context.Context, c *client.Control) error {
		id, err = c.Boot(ctx)
		return err
	})
	return id, err
}

// Close kills everything and removes the world.
func (q *QEMU) Close() error {
	errs := []error{q.Lab.Close()} // kills what is in it
	if q.World != nil {
		for _, h := range Hosts() {
			errs = append(errs, q.gone(h))
		}
		if q.unmount != nil {
			errs = append(errs, q.unmount())
		}
		errs = append(errs, q.remove())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take the hosts down: %w", err)
	}
	return nil
}
