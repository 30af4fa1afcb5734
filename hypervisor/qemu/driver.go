package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/qemu/dirty"
	"understudy/hypervisor/qemu/qmp"
)

// Driver runs one configured guest on this host. It implements
// hypervisor.Driver.
type Driver struct {
	cfg Config
	as  account
	log *slog.Logger

	mu   sync.Mutex
	kvm  *bool          // whether KVM works here, once it was tried
	said *answers       // what the QEMU program said of itself when it was asked last
	sums map[string]sum // of files, as they were when they were read last
	ours map[place]bool // every place this Driver has made
}

var (
	_ hypervisor.Driver   = (*Driver)(nil)
	_ hypervisor.Beginner = (*Driver)(nil)
)

// NewDriver returns a driver for the configured guest. It starts nothing.
func NewDriver(cfg Config, log *slog.Logger) (*Driver, error) {
	full := cfg.withDefaults()
	if err := full.validate(); err != nil {
		return nil, err
	}
	as, err := full.account()
	if err != nil {
		return nil, fmt.Errorf("guest %q: %w", cfg.Name, err)
	}
	return &Driver{cfg: *full, as: as, log: log.With("guest", cfg.Name), sums: map[string]sum{}, ours: map[place]bool{}}, nil
}

// Prepare makes the directories of the configuration, so that the host's ends
// of the network sockets, and the sockets of served disks, can be bound before
// the guest starts. Start and
// Standby do it themselves.
func (d *Driver) Prepare() error { return d.cfg.prepare(d.as) }

// Grant gives a file or socket to the account that QEMU runs as: the gate's
// sockets and those of served disks, once they are bound.
func (d *Driver) Grant(path string) error { return d.as.own(path) }

// Start boots the guest from nothing.
func (d *Driver) Start(ctx context.Context) (_ hypervisor.Guest, err error) {
	defer d.explain(&err, "start guest %q")
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	m := machine{}
	if m.Type, err = l.program.resolve(d.cfg.Machine); err != nil {
		return nil, err
	}
	if m.Accel, err = d.accelerator(ctx); err != nil {
		return nil, err
	}
	at, ram, err := d.makePlace()
	if err != nil {
		return nil, err
	}
	v, err := d.boot(ctx, m, at, ram, false)
	if err != nil {
		return nil, errors.Join(err, ram.close(), at.remove())
	}
	g, err := d.established(ctx, v, m, l)
	if err != nil {
		return nil, errors.Join(v.proc.explain(err), v.end(), ram.close(), at.remove())
	}
	return g, nil
}

// established makes a Guest of a machine that has just been started.
func (d *Driver) established(ctx context.Context, v *vm, m machine, l *local) (*Guest, error) {
	self, err := describe(ctx, v.client, d.cfg.Memory)
	if err != nil {
		return nil, err
	}
	spec := &machineSpec{
		Format: specFormat, QEMU: l.program.Version, Machine: m.Type, Accel: m.Accel, Memory: d.cfg.Memory,
		Shape: d.cfg.shape(m), Kernel: l.kernel, Initrd: l.initrd,
		RAM: self.snapshot.RAM, Blocks: self.blocks, Devices: self.snapshot.Devices,
	}
	if m.Accel == AccelKVM {
		spec.HostCPU = l.hostCPU
	}
	side, _ := layout(spec.Blocks)
	mem, err := openMemory(v.proc.identity.PID)
	if err != nil {
		return nil, err
	}
	if err := locate(v.proc.identity.PID, mem, spec.Blocks, side, func(i int) []byte { return self.content[i] }); err != nil {
		_ = mem.Close()
		return nil, err
	}
	g, err := newGuest(ctx, d, v, spec, side, mem)
	if err != nil {
		return nil, err
	}
	err = g.attach(ctx, false)
	if err == nil {
		err = g.saveRecord(roleGuest, fillDone)
	}
	if err != nil {
		return nil, errors.Join(err, g.drop())
	}
	g.listen()
	return g, nil
}

// Adopt takes on a guest that a former process of this host left running, and
// removes what else that process left: machines that have ended, and standbys,
// whose images nobody knows the state of any more.
//
// The back ends of served disks must listen before it is called: Adopt waits
// until QEMU has connected to them again, which it does within a second, but
// not for ever. Later is possible if the guest ran when its daemon ended: it
// then waits for its disk.
//
// QEMU 7.2 does not notice that a connection is lost while the guest stands
// still, and goes on with the new one at the next Resume without greeting its
// back end again. A back end has to take that (package disk/vhost).
func (d *Driver) Adopt(ctx context.Context) (hypervisor.Guest, error) {
	g, err := d.adopt(ctx, false)
	if err != nil {
		return nil, err // and no guest that is nil and does not look like it
	}
	return g, nil
}

// Left reports whether a former process may have left a machine of the guest.
func (d *Driver) Left() bool {
	found, err := d.cfg.places()
	return err != nil || len(found) > 0
}

// Resume is Adopt of a guest that was detached from while it stood still. Its
// pages were tracked by the descriptor that QEMU has kept; a guest that gives
// memory back is not exact, since what it gave back in the meantime is not in the
// kernel's answer (RULES 21).
func (d *Driver) Resume(ctx context.Context) (_ hypervisor.Guest, exact bool, err error) {
	g, err := d.adopt(ctx, true)
	if err != nil {
		return nil, false, err
	}
	return g, g.resumed, nil
}

func (d *Driver) adopt(ctx context.Context, resume bool) (_ *Guest, err error) {
	defer d.explain(&err, "adopt guest %q")
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found, err := d.cfg.places()
	if err != nil {
		return nil, err
	}
	for _, at := range found {
		r, err := at.load()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r.Role != roleGuest {
			continue
		}
		proc, err := find(r.Process)
		if errors.Is(err, os.ErrProcessDone) {
			continue // Clean removes what is left of it
		}
		if err != nil {
			return nil, err
		}
		g, err := d.takeOn(ctx, at, r, proc, resume)
		if err != nil {
			proc.letGo()
			return nil, err
		}
		if err := d.sweep(found); err != nil {
			d.log.Warn("the guest is adopted, but what else was left cannot be removed", "error", err)
		}
		return g, nil
	}
	return nil, hypervisor.ErrNoGuest
}

// sweep removes those of the places that hold no running guest and that this
// Driver has not made itself.
func (d *Driver) sweep(found []place) error {
	var errs []error
	for _, at := range found {
		d.mu.Lock()
		ours := d.ours[at]
		d.mu.Unlock()
		if ours {
			continue
		}
		r, err := at.load()
		if err == nil && r.Role == roleGuest {
			var proc *process
			if proc, err = find(r.Process); err == nil {
				proc.letGo() // the adopted one
				continue
			}
		}
		errs = append(errs, d.cleanPlace(at))
	}
	return errors.Join(errs...)
}

// takeOn makes a paused Guest of a machine found running.
func (d *Driver) takeOn(ctx context.Context, at place, r record, proc *process, resume bool) (*Guest, error) {
	if r.Fill == fillMissing {
		return nil, &hypervisor.Refusal{
			What:   "the process that activated this guest ended before all of its memory was there, and nobody else knows what is missing",
			Remedy: "end it (Clean) and start or restore the guest",
		}
	}
	spec, err := r.spec()
	if err != nil {
		return nil, err
	}
	side, _ := layout(spec.Blocks)
	if len(side) != len(r.Side) {
		return nil, fmt.Errorf("record of %s names %d RAM blocks, the machine has %d", at.dir, len(r.Side), len(side))
	}
	for i := range side {
		side[i].addr = r.Side[i]
	}
	if r.Fill == fillHoles {
		// It waits for zeros that nobody brings, and would not answer us.
		if err := releaseHoles(at, spec.Memory, proc); err != nil {
			return nil, err
		}
	}
	// QEMU talks to one client at a time: a former process of ours that still
	// lives would keep us waiting.
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	client, err := qmp.Dial(ctx, at.socket())
	if err != nil {
		return nil, fmt.Errorf("%w: does another daemon still hold this guest?", err)
	}
	v := &vm{place: at, proc: proc, client: client}
	if err := d.awaitDisks(ctx, client); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	resume = resume && r.Fill == fillDone && !d.cfg.FreePageReporting
	if resume {
		if resume, err = standsStill(ctx, client); err != nil {
			return nil, errors.Join(err, client.Close())
		}
	}
	if err := client.Execute(ctx, "stop", nil, nil); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	if v.ram, err = openRAM(at.ram, spec.Memory); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	mem, err := openMemory(proc.identity.PID)
	if err != nil {
		return nil, errors.Join(err, client.Close(), v.ram.close())
	}
	g, err := newGuest(ctx, d, v, spec, side, mem)
	if err != nil {
		return nil, errors.Join(err, client.Close(), v.ram.close())
	}
	err = g.attach(ctx, resume)
	if err == nil && r.Fill != fillDone {
		err = g.saveRecord(roleGuest, fillDone)
	}
	if err != nil {
		return nil, errors.Join(err, g.drop(), client.Close(), v.ram.close())
	}
	g.listen()
	return g, nil
}

// releaseHoles lets a machine read holes of its memory as zeros by itself.
func releaseHoles(at place, size uint64, proc *process) error {
	ram, err := openRAM(at.ram, size)
	if err != nil {
		return err
	}
	defer func() { _ = ram.close() }()
	regions, err := dirty.FileRegions(proc.identity.PID, ram.file, 0)
	if err != nil {
		return err
	}
	return dirty.ReleaseTarget(proc.identity.PID, regions)
}

// disksLimit bounds the wait for QEMU to connect to the disks again: it tries
// once a second.
const disksLimit = 2500 * time.Millisecond

// awaitDisks waits until the machine is connected to the back ends of all its
// served disks, so that it takes them down properly when it is stopped. One
// that stays away is only told of.
func (d *Driver) awaitDisks(ctx context.Context, client *qmp.Client) error {
	if len(d.cfg.Served) == 0 {
		return nil
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(disksLimit)
	defer limit.Stop()
	for {
		away, err := disconnected(ctx, client)
		if err != nil || len(away) == 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-limit.C:
			d.log.Warn("the guest is adopted although disks of it are not served", "disks", away)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Standby prepares a machine that waits for the state of the guest that spec
// describes.
func (d *Driver) Standby(ctx context.Context, spec hypervisor.Spec) (_ hypervisor.Standby, err error) {
	defer d.explain(&err, "prepare a standby for guest %q")
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := d.begin(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := s.awaitMachine(); err != nil {
		return nil, errors.Join(err, s.Destroy())
	}
	return s, nil
}

// BeginStandby is Standby, which the making of the machine goes on behind.
func (d *Driver) BeginStandby(ctx context.Context, spec hypervisor.Spec) (_ hypervisor.Standby, made func() error, err error) {
	const what = "prepare a standby for guest %q"
	defer d.explain(&err, what)
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	s, err := d.begin(ctx, spec)
	if err != nil {
		return nil, nil, err
	}
	return s, func() error {
		err := s.awaitMachine()
		d.explain(&err, what)
		return err
	}, nil
}

// begin makes the image of a standby, and begins to make its machine.
func (d *Driver) begin(ctx context.Context, spec hypervisor.Spec) (*Standby, error) {
	m, err := unpackSpec(spec)
	if err != nil {
		return nil, err
	}
	if err := m.agreesInSize(&d.cfg); err != nil {
		return nil, err
	}
	at, ram, err := d.makePlace()
	if err != nil {
		return nil, err
	}
	s := newStandby(d, m, at, ram)
	s.begin(ctx)
	return s, nil
}

// agrees finds out whether this host can take over the machine.
func (d *Driver) agrees(ctx context.Context, m *machineSpec) error {
	l, err := d.look(ctx)
	if err != nil {
		return err
	}
	if err := m.agrees(&d.cfg, l); err != nil {
		return err
	}
	if m.Accel == AccelKVM && !d.kvmWorks(ctx) {
		return &hypervisor.Refusal{What: "the guest runs under KVM, which does not work on this host", Remedy: "make /dev/kvm work here, or configure the accelerator tcg on both hosts"}
	}
	return nil
}

// Clean ends and removes whatever is left of this guest on this host.
func (d *Driver) Clean(ctx context.Context) (err error) {
	defer d.explain(&err, "clean up after guest %q")
	found, err := d.cfg.places()
	if err != nil {
		return err
	}
	for _, at := range found {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := d.cleanPlace(at); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.killUnrecorded(); err != nil {
		return err
	}
	// A memory file whose place was never made.
	stray, err := filepath.Glob(filepath.Join(d.cfg.ImageDir, "*.ram"))
	if err != nil {
		return err
	}
	for _, path := range stray {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d *Driver) cleanPlace(at place) error {
	r, err := at.load()
	if err == nil {
		var proc *process
		if proc, err = find(r.Process); err == nil {
			err = proc.kill()
			proc.letGo()
		}
	}
	// No record: it died before it wrote one. killUnrecorded sees to that.
	if err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	d.log.Info("removing what a former process left", "machine", at.dir)
	return at.remove()
}

// makePlace makes the directory and the memory file of a new machine.
func (d *Driver) makePlace() (place, *ramFile, error) {
	if err := d.cfg.prepare(d.as); err != nil {
		return place{}, nil, err
	}
	at, err := newPlace(&d.cfg)
	if err != nil {
		return place{}, nil, err
	}
	ram, err := createRAM(&d.cfg, at.ram, d.as)
	if err != nil {
		return place{}, nil, errors.Join(err, at.remove())
	}
	d.mu.Lock()
	d.ours[at] = true
	d.mu.Unlock()
	return at, ram, nil
}

// vm is a running QEMU and our connection to it.
type vm struct {
	place  place
	ram    *ramFile
	proc   *process
	client *qmp.Client
}

// bootLimit bounds the time from the start of a QEMU to its greeting.
const bootLimit = 30 * time.Second

// boot starts a QEMU on a memory file and connects to it. The guest is paused.
func (d *Driver) boot(ctx context.Context, m machine, at place, ram *ramFile, incoming bool) (*vm, error) {
	if err := os.Remove(at.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	files, err := d.openFiles(at, incoming)
	if err != nil {
		return nil, err
	}
	var groups []uint32
	if m.Accel == AccelKVM {
		groups = kvmGroup()
	}
	proc, err := launch(d.cfg.QEMU, d.cfg.arguments(m, at.ram, incoming), d.as, groups, files)
	for _, f := range files { // QEMU has its own; when that ends, so does the socket
		_ = f.Close()
	}
	if err != nil {
		return nil, err
	}
	v := &vm{place: at, ram: ram, proc: proc}
	if d.cfg.Idle { // from its beginning, and once more when its first threads are there
		if err := idle(proc.identity.PID); err != nil {
			return nil, errors.Join(fmt.Errorf("make QEMU yield to others: %w", err), v.end())
		}
	}
	// From here on a later process of ours can find it, and end it.
	if err := at.save(record{Role: roleStandby, Process: proc.identity}); err != nil {
		return nil, errors.Join(err, v.end())
	}
	limited, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	if v.client, err = qmp.Dial(limited, at.socket()); err != nil {
		return nil, errors.Join(proc.explain(err), v.end())
	}
	if d.cfg.Idle {
		if err := idle(proc.identity.PID); err != nil {
			return nil, errors.Join(fmt.Errorf("make QEMU yield to others: %w", err), v.end())
		}
	}
	d.log.Info("QEMU started", "pid", proc.identity.PID, "machine", m.Type, "accelerator", m.Accel, "incoming", incoming)
	return v, nil
}

// openFiles opens what a QEMU is started with, as args.go has it, and for one
// that waits for its state the device with which it can be supplied with
// memory. The latter is taken from it before it runs (package dirty).
func (d *Driver) openFiles(at place, incoming bool) ([]*os.File, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: at.socket(), Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	socket, err := listener.File()
	_ = listener.Close()
	if err != nil {
		return nil, err
	}
	console, err := d.cfg.openConsole()
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	files := []*os.File{socket}
	if console != nil {
		files = append(files, console)
	}
	for _, n := range d.cfg.NICs {
		if n.TAP == nil {
			continue
		}
		tap, err := duplicate(n.TAP)
		if err != nil {
			for _, f := range files {
				err = errors.Join(err, f.Close())
			}
			return nil, err
		}
		files = append(files, tap)
	}
	if incoming {
		// Without it memory is fetched before the machine runs.
		if device, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0); err == nil {
			files = append(files, device)
		}
	}
	return files, nil
}

// duplicate returns another descriptor of a file.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, fmt.Errorf("duplicate the descriptor of %s: %w", f.Name(), dupErr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// idle makes every thread of a process yield to all others: one that wakes up does
// not have to wait for it either. Threads that come later inherit that.
func idle(pid int) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, t := range tasks {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
		if err := unix.SchedSetAttr(id, &attr, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return os.NewSyscallError("sched_setattr", err)
		}
	}
	return nil
}

// end kills the QEMU and closes our connection. The place stays.
func (v *vm) end() error {
	err := v.proc.kill()
	if v.client != nil {
		err = errors.Join(err, v.client.Close())
	}
	v.proc.letGo()
	return err
}

func (d *Driver) look(ctx context.Context) (*local, error) {
	p, err := d.ask(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.checkVersion(); err != nil {
		return nil, err
	}
	for _, path := range d.cfg.files() {
		if err := d.as.canRead(path); err != nil {
			return nil, err
		}
	}
	return d.cfg.look(p, d.sum)
}

func (d *Driver) explain(err *error, format string) {
	if *err != nil && !errors.Is(*err, hypervisor.ErrNoGuest) {
		*err = fmt.Errorf(format+": %w", d.cfg.Name, *err)
	}
}

// kvmGroup is the group that may open /dev/kvm.
func kvmGroup() []uint32 {
	info, err := os.Stat("/dev/kvm")
	if err != nil {
		return nil
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Gid == 0 {
		return nil
	}
	return []uint32{st.Gid}
}

// spec reads the spec back that the record holds.
func (r record) spec() (*machineSpec, error) {
	var s hypervisor.Spec
	s.Machine = r.Spec
	s.Pages = r.Pages
	m, err := parseSpec(s)
	if err != nil {
		return nil, fmt.Errorf("record of the guest: %w", err)
	}
	return m, nil
}

// checkRange checks that whole pages lie in an image.
func checkRange(first epoch.GFN, size int, pages uint64) error {
	if size%epoch.PageSize != 0 {
		return fmt.Errorf("%d bytes are not whole pages", size)
	}
	n := uint64(size) / epoch.PageSize
	if uint64(first) > pages || n > pages-uint64(first) {
		return fmt.Errorf("pages %d+%d lie outside an image of %d", first, n, pages)
	}
	return nil
}
