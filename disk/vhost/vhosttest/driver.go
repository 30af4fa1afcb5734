// Package vhosttest is a guest's block driver without a guest: it speaks with a
// vhost-user-blk back end, ours or another's, the way a hypervisor and a Linux
// guest do, and measures what the back end itself costs.
//
//	Dial (driver.go): memory, one ring ─> Run (load.go): depth requests under way,
//	each completion followed by the next request ─> Result
//
// It asks for what Linux asks for: indirect descriptors, event index, one kick for
// what is made available at once. Sources: QEMU's docs/interop/vhost-user.rst;
// virtio 1.2, 2.7 and 5.2.
package vhosttest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bounds of a Load.
const (
	MaxDepth = 128
	MaxBlock = 256 << 10
)

// Messages and features of vhost-user that a driver needs.
const (
	getFeatures         = 1
	setFeatures         = 2
	setOwner            = 3
	setMemTable         = 5
	setVringNum         = 8
	setVringAddr        = 9
	setVringBase        = 10
	getVringBase        = 11
	setVringKick        = 12
	setVringCall        = 13
	getProtocolFeatures = 15
	setProtocolFeatures = 16
	setVringEnable      = 18
	getInflightFD       = 31
	setInflightFD       = 32

	messageHeader  = 12
	messageVersion = 1
	maxMessage     = 4096

	featureFlush    = 1 << 9
	featureIndirect = 1 << 28
	featureEventIdx = 1 << 29
	featureProtocol = 1 << 30
	featureVersion1 = 1 << 32
	wanted          = featureFlush | featureIndirect | featureEventIdx | featureProtocol | featureVersion1

	protocolInflight = 1 << 12
)

// The guest's memory: the ring, a page of header, table and status for each
// request, and its data.
const (
	ringSize   = MaxDepth
	descAt     = 0
	availAt    = 16 * ringSize
	usedAt     = 8 << 10
	headersAt  = 16 << 10
	headerSize = 4 << 10
	tableOff   = 64
	statusOff  = 512
	dataAt     = headersAt + MaxDepth*headerSize
	memorySize = dataAt + MaxDepth*MaxBlock

	userBase = 0x7f0000000000 // where the hypervisor says that it has it
)

// Driver is a guest's driver on one connection. It is for one goroutine.
type Driver struct {
	conn     *net.UnixConn
	memory   *os.File
	mem      []byte
	kick     int
	call     int
	features uint64
	avail    uint16
	seen     uint16
	fence    atomic.Uint32
}

// Dial connects to the back end that listens on path and starts a ring. The
// caller closes the driver.
func Dial(path string) (_ *Driver, err error) {
	d := &Driver{kick: -1, call: -1}
	defer func() {
		if err != nil {
			err = fmt.Errorf("drive the disk at %s: %w", path, errors.Join(err, d.Close()))
		}
	}()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	d.memory = os.NewFile(uintptr(fd), "guest")
	if err = d.memory.Truncate(memorySize); err != nil {
		return nil, err
	}
	if d.mem, err = unix.Mmap(fd, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return nil, err
	}
	if d.kick, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	// We wait for calls in read itself.
	if d.call, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return nil, err
	}
	if d.conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		return nil, err
	}
	return d, d.start()
}

// start is what a hypervisor says when the guest's driver has set the device up.
func (d *Driver) start() error {
	offered, err := d.askNumber(getFeatures)
	if err != nil {
		return err
	}
	if d.features = offered & wanted; d.features != wanted {
		return fmt.Errorf("it offers the features %#x of %#x", d.features, uint64(wanted))
	}
	protocol, err := d.askNumber(getProtocolFeatures)
	if err != nil {
		return err
	}
	protocol &= protocolInflight
	memory := int(d.memory.Fd())
	for _, m := range []struct {
		request uint32
		payload []byte
		fds     []int
	}{
		{setProtocolFeatures, numbers(protocol), nil},
		{setOwner, nil, nil},
		{setFeatures, numbers(d.features), nil},
		{setMemTable, append(pair(1, 0), numbers(0, memorySize, userBase, 0)...), []int{memory}},
	} {
		if err := d.send(m.request, m.payload, m.fds...); err != nil {
			return err
		}
	}
	if protocol != 0 {
		if err := d.inflight(); err != nil {
			return err
		}
	}
	addresses := append(pair(0, 0), numbers(userBase+descAt, userBase+usedAt, userBase+availAt, 0)...)
	for _, m := range []struct {
		request uint32
		payload []byte
		fds     []int
	}{
		{setVringNum, pair(0, ringSize), nil},
		{setVringBase, pair(0, 0), nil},
		{setVringAddr, addresses, nil},
		{setVringCall, numbers(0), []int{d.call}},
		{setVringKick, numbers(0), []int{d.kick}},
		{setVringEnable, pair(0, 1), nil},
	} {
		if err := d.send(m.request, m.payload, m.fds...); err != nil {
			return err
		}
	}
	return nil
}

// inflight has the back end note its requests in memory of its own, as QEMU does.
func (d *Driver) inflight() error {
	queue := []byte{1, 0, ringSize, 0, 0, 0, 0, 0}
	reply, fd, err := d.ask(getInflightFD, append(numbers(0, 0), queue...))
	if err != nil {
		return err
	}
	if fd < 0 || len(reply) < 16 {
		return errors.New("no memory for requests in flight comes")
	}
	defer func() { _ = unix.Close(fd) }()
	return d.send(setInflightFD, append(reply[:16:16], queue...), fd)
}

// Close stops the ring and disconnects.
func (d *Driver) Close() error {
	var errs []error
	if d.conn != nil {
		if _, _, err := d.ask(getVringBase, pair(0, 0)); err != nil {
			errs = append(errs, fmt.Errorf("stop the ring: %w", err))
		}
		errs = append(errs, d.conn.Close())
	}
	for _, fd := range []int{d.kick, d.call} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if d.mem != nil {
		errs = append(errs, unix.Munmap(d.mem))
	}
	if d.memory != nil {
		errs = append(errs, d.memory.Close())
	}
	return errors.Join(errs...)
}

func pair(a, b uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, a), b)
}

func numbers(all ...uint64) (p []byte) {
	for _, n := range all {
		p = binary.LittleEndian.AppendUint64(p, n)
	}
	return p
}

func (d *Driver) send(request uint32, payload []byte, fds ...int) error {
	m := append(pair(request, messageVersion), 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(m[8:], uint32(len(payload)))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := d.conn.WriteMsgUnix(append(m, payload...), rights, nil); err != nil {
		return fmt.Errorf("message %d: %w", request, err)
	}
	return nil
}

// ask sends a message and returns its reply, and the descriptor with it or -1.
func (d *Driver) ask(request uint32, payload []byte) (reply []byte, fd int, err error) {
	if err := d.send(request, payload); err != nil {
		return nil, -1, err
	}
	head, rights := make([]byte, messageHeader), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := d.conn.ReadMsgUnix(head, rights)
	if err != nil {
		return nil, -1, fmt.Errorf("reply to message %d: %w", request, err)
	}
	fd = -1
	if n > 0 {
		messages, err := unix.ParseSocketControlMessage(rights[:n])
		if err != nil {
			return nil, -1, err
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			return nil, -1, fmt.Errorf("reply to message %d: %d descriptors: %w", request, len(fds), err)
		}
		fd = fds[0]
	}
	size := binary.LittleEndian.Uint32(head[8:])
	if got := binary.LittleEndian.Uint32(head); got != request || size > maxMessage {
		return nil, fd, fmt.Errorf("reply of %d bytes to message %d, want one to %d", size, got, request)
	}
	reply = make([]byte, size)
	_, err = io.ReadFull(d.conn, reply)
	return reply, fd, err
}

func (d *Driver) askNumber(request uint32) (uint64, error) {
	reply, _, err := d.ask(request, nil)
	if err == nil && len(reply) != 8 {
		err = fmt.Errorf("reply of %d bytes to message %d", len(reply), request)
	}
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(reply), nil
}

// index reads the index of the used ring, in order with what is read after it.
func (d *Driver) index() uint16 {
	return uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&d.mem[usedAt]))) >> 16)
}

// publish makes all requests up to d.avail available and kicks if the device
// asks for it.
func (d *Driver) publish(old uint16) error {
	if d.avail == old {
		return nil
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&d.mem[availAt])), uint32(d.avail)<<16)
	d.fence.Add(1) // our store before our load
	event := binary.LittleEndian.Uint16(d.mem[usedAt+4+8*ringSize:])
	if d.avail-event-1 >= d.avail-old {
		return nil
	}
	if _, err := unix.Write(d.kick, numbers(1)); err != nil {
		return fmt.Errorf("kick: %w", err)
	}
	return nil
}

// await waits until something has been completed.
func (d *Driver) await() error {
	var p [8]byte
	for d.index() == d.seen {
		binary.LittleEndian.PutUint16(d.mem[availAt+4+2*ringSize:], d.seen)
		d.fence.Add(1)
		if d.index() != d.seen {
			return nil
		}
		// A back end may make our descriptor one that does not block.
		_, err := unix.Read(d.call, p[:])
		if err == unix.EAGAIN {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(d.call), Events: unix.POLLIN}}, -1)
		}
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for the interrupt: %w", err)
		}
	}
	return nil
}
