package main

// What a guest sees: one Linux guest under emulation with three disks, which are
// the same file, served by QEMU itself, by qemu-storage-daemon and by us. They are
// measured in turn, so that whatever else the machine does hits all alike.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"understudy/guest"
	"understudy/guest/client"
	"understudy/guest/diskspeed"
)

// Limits of time; generous, since machines are slow and shared.
const (
	bootTime = 2 * time.Minute
	stepTime = time.Minute
)

// guestLoad is what the guest does.
type guestLoad struct {
	name string
	diskspeed.Options
}

func guestLoads(each time.Duration) (loads []guestLoad) {
	for _, mode := range []struct {
		mode diskspeed.Mode
		name string
	}{
		{diskspeed.RandRead, "random read"}, {diskspeed.RandWrite, "random write"},
		{diskspeed.Read, "sequential read"}, {diskspeed.Write, "sequential write"},
	} {
		block, size := 4<<10, "4 KiB"
		if mode.mode == diskspeed.Read || mode.mode == diskspeed.Write {
			block, size = 128<<10, "128 KiB"
		}
		for _, depth := range []int{1, 16} {
			loads = append(loads, guestLoad{fmt.Sprintf("%s %s, depth %d", mode.name, size, depth),
				diskspeed.Options{Mode: mode.mode, Block: block, Depth: depth, Time: each}})
		}
	}
	return append(loads,
		guestLoad{"sequential read 4 KiB, depth 1", diskspeed.Options{Mode: diskspeed.Read, Block: 4 << 10, Depth: 1, Time: each}},
		guestLoad{"sequential write 4 KiB, depth 1", diskspeed.Options{Mode: diskspeed.Write, Block: 4 << 10, Depth: 1, Time: each}},
		guestLoad{"random read 128 KiB, depth 16", diskspeed.Options{Mode: diskspeed.RandRead, Block: 128 << 10, Depth: 16, Time: each}},
		guestLoad{"random write 128 KiB, depth 16", diskspeed.Options{Mode: diskspeed.RandWrite, Block: 128 << 10, Depth: 16, Time: each}},
		syncLoad(each))
}

// syncLoad is a database's: each write is on the disk before the next.
func syncLoad(each time.Duration) guestLoad {
	return guestLoad{"write 4 KiB and flush, depth 1", diskspeed.Options{Mode: diskspeed.RandWrite, Block: 4 << 10, Depth: 1, Sync: true, Time: each}}
}

// machine is a QEMU that is no driver's.
type machine struct {
	cmd     *exec.Cmd
	said    bytes.Buffer
	control *client.Control
}

// startMachine boots a guest with QEMU's own disk and the served ones, in this
// order.
func startMachine(ctx context.Context, o *options, file string, sockets ...string) (_ *machine, err error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	boot := guest.Boot{Address: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2")}
	m := &machine{}
	m.cmd = exec.Command("qemu-system-x86_64", "-accel", "tcg", "-m", "256",
		"-object", "memory-backend-memfd,id=ram,size=256M,share=on", "-machine", "q35,memory-backend=ram",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", filepath.Join(o.images, "vmlinuz"), "-initrd", filepath.Join(o.images, "initrd"), "-append", boot.CommandLine(),
		"-netdev", "user,id=n,hostfwd=tcp:"+address+"-:"+strconv.Itoa(guest.ControlPort), "-device", "virtio-net-pci,netdev=n",
		"-blockdev", "driver=file,locking=off,node-name=f,cache.direct=on,cache.no-flush=off,discard=unmap,aio="+o.aio+",filename="+file,
		"-device", "virtio-blk-pci,drive=f,write-cache=on")
	for i, socket := range sockets {
		m.cmd.Args = append(m.cmd.Args,
			"-chardev", fmt.Sprintf("socket,id=c%d,path=%s", i, socket),
			// qemu-storage-daemon says that it has no write cache if it is asked,
			// and yet flushes only on request: the guest would never send one.
			"-device", fmt.Sprintf("vhost-user-blk-pci,chardev=c%d,num-queues=1,config-wce=off", i))
	}
	m.cmd.Stdout, m.cmd.Stderr = &m.said, &m.said
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	for {
		if m.control, err = dialControl(ctx, func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}); err == nil {
			return m, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("the guest does not come up: %w", err), m.close(), errors.New(m.said.String()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// dialControl connects to the guest's control service. QEMU accepts before the
// guest does: only an answer counts.
func dialControl(ctx context.Context, dial func(context.Context) (net.Conn, error)) (*client.Control, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	control := client.NewControl(conn)
	if _, err := control.Boot(ctx); err != nil {
		return nil, errors.Join(err, control.Close())
	}
	return control, nil
}

func (m *machine) close() error {
	var errs []error
	if m.control != nil {
		errs = append(errs, m.control.Close())
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait() // killed
	return errors.Join(errs...)
}

// checkGuest says what to do if the guest was not built.
func (o *options) checkGuest() error {
	for _, name := range []string{"vmlinuz", "initrd"} {
		if _, err := os.Stat(filepath.Join(o.images, name)); err != nil {
			return fmt.Errorf("the guest is not built: %w: run make guest", err)
		}
	}
	return nil
}

// measureGuest measures the three in one guest.
func measureGuest(ctx context.Context, o *options, dir string, say func(string, ...any)) (rows []Row, err error) {
	if err := o.checkGuest(); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "guest.raw")
	if err := randomFile(ctx, file, fileSize); err != nil {
		return nil, err
	}
	qsd, err := startQSD(file, filepath.Join(dir, "guest-qsd.sock"), o.aio)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, qsd.close()) }()
	ours, err := startOurs(file, filepath.Join(dir, "guest-ours.sock"), "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.close()) }()
	m, err := startMachine(ctx, o, file, qsd.socket, ours.socket)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	say("the guest is up")
	sides := []struct {
		name, device string
		server       *server // nil: QEMU itself
	}{{nameQEMU, "/dev/vda", nil}, {nameQSD, "/dev/vdb", qsd}, {nameOurs, "/dev/vdc", ours}}
	for _, l := range guestLoads(o.guestTime) {
		if o.only != "" && !o.matches(l.name) {
			continue
		}
		row := newRow(l.name, l.Block)
		for round := range o.rounds {
			for i := range sides {
				side := sides[(i+round)%len(sides)]
				before := side.server.cpu()
				s, err := measureDisk(ctx, m.control, l, side.device)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", side.name, l.name, err)
				}
				s.CPU = micros(side.server.cpu()-before) / max(s.ops, 1)
				row.add(side.name, s)
			}
		}
		say("%s", row.line())
		rows = append(rows, row)
	}
	return rows, nil
}

// measureDisk measures once.
func measureDisk(ctx context.Context, control *client.Control, l guestLoad, device string) (Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	r, err := control.MeasureDisk(ctx, l.Options, device)
	if err != nil {
		return Sample{}, err
	}
	return Sample{IOPS: r.IOPS(), P50: micros(r.P50), P99: micros(r.P99), ops: float64(r.Ops)}, nil
}
