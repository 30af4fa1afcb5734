package vhost

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// serveArgument makes the test program a server that serves until it is killed.
const serveArgument = "serve-until-killed"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == serveArgument {
		serveUntilKilled(os.Args[2])
	}
	goleak.VerifyTestMain(m)
}

// The guest's memory: 256 KiB at 0 and 1 MiB at 4 GiB, the latter first in the
// file, so that no two kinds of addresses are the same.
const (
	mib       = 1 << 20
	highGPA   = 4 << 30
	highSize  = mib
	lowSize   = mib / 4
	lowOff    = highSize
	userLow   = 0x7f0000000000
	userHigh  = 0x7f1000000000
	ringSpace = 0x8000   // for each queue, from 0 on
	slotSpace = 16 << 10 // for each request, from highGPA on: header, status, table, then data
	slotTable = 64
	slotData  = 4096
	maxSlots  = 64
)

// client is a hypervisor and its guest's driver in one.
type client struct {
	t      testing.TB
	conn   *net.UnixConn
	memory *os.File
	mem    []byte
	queues []*queue
	shared *os.File // the region of requests in flight
	at     inflightAt

	features uint64
	indirect bool
	eventIdx bool
}

// queue is the driver's side of a ring.
type queue struct {
	c          *client
	index      int
	num        int
	avail      uint16
	seen       uint16 // of the used ring
	kickFD     int
	callFD     int
	errFD      int
	desc, ring int // offsets in c.mem
	used       int
}

func newGuestMemory(t testing.TB) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	must(t, err)
	f := os.NewFile(uintptr(fd), "guest")
	must(t, f.Truncate(highSize+lowSize))
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func eventFD(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// newGuest is a guest that has not connected yet.
func newGuest(t testing.TB, memory *os.File, queues, num int) *client {
	t.Helper()
	mem, err := unix.Mmap(int(memory.Fd()), 0, highSize+lowSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	c := &client{t: t, memory: memory, mem: mem, features: featureVersion1 | featureProtocol | featureFlush | featureDiscard | featureWriteZeroes}
	t.Cleanup(func() {
		if c.conn != nil {
			_ = c.conn.Close()
		}
		if c.shared != nil {
			_ = c.shared.Close()
		}
	})
	for i := range queues {
		base := lowOff + i*ringSpace
		q := &queue{c: c, index: i, num: num, kickFD: eventFD(t), callFD: eventFD(t), errFD: eventFD(t), desc: base, ring: base + num*16}
		q.used = (q.ring + 6 + 2*num + 3) &^ 3
		c.queues = append(c.queues, q)
	}
	return c
}

// user turns an offset in the memory file into an address of the hypervisor.
func user(off int) uint64 {
	if off < highSize {
		return userHigh + uint64(off)
	}
	return userLow + uint64(off-lowOff)
}

func gpaOf(off int) uint64 {
	if off < highSize {
		return highGPA + uint64(off)
	}
	return uint64(off - lowOff)
}

func (c *client) send(r request, payload []byte, fds ...int) {
	c.t.Helper()
	must(c.t, c.trySend(r, payload, fds...))
}

func (c *client) trySend(r request, payload []byte, fds ...int) error {
	m := binary.LittleEndian.AppendUint32(nil, uint32(r))
	m = binary.LittleEndian.AppendUint32(m, flagVersion)
	m = binary.LittleEndian.AppendUint32(m, uint32(len(payload)))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err := c.conn.WriteMsgUnix(append(m, payload...), rights, nil)
	return err
}

// ask sends a message and returns its reply.
func (c *client) ask(r request, payload []byte, fds ...int) (reply []byte, fd int) {
	c.t.Helper()
	c.send(r, payload, fds...)
	reply, fd, err := c.receive(r)
	must(c.t, err)
	return reply, fd
}

func (c *client) receive(r request) (reply []byte, fd int, err error) {
	must(c.t, c.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	head, oob := make([]byte, headerSize), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.conn.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, -1, err
	}
	fd = -1
	if n > 0 {
		m, err := unix.ParseSocketControlMessage(oob[:n])
		must(c.t, err)
		fds, err := unix.ParseUnixRights(&m[0])
		must(c.t, err)
		fd = fds[0]
	}
	if got := request(binary.LittleEndian.Uint32(head)); got != r {
		return nil, fd, fmt.Errorf("a reply to %v, want one to %v", got, r)
	}
	reply = make([]byte, binary.LittleEndian.Uint32(head[8:]))
	_, err = io.ReadFull(c.conn, reply)
	return reply, fd, err
}

func pair(a, b uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, a), b)
}

func u64(values ...uint64) (p []byte) {
	for _, v := range values {
		p = binary.LittleEndian.AppendUint64(p, v)
	}
	return p
}

func (c *client) memTable() []byte {
	p := pair(2, 0)
	p = append(p, u64(0, lowSize, userLow, lowOff)...)
	return append(p, u64(highGPA, highSize, userHigh, 0)...)
}

// connect speaks the first words: what QEMU says when the device is made.
func (c *client) connect(path string) {
	c.t.Helper()
	if c.conn != nil {
		_ = c.conn.Close()
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	must(c.t, err)
	c.conn = conn
	offered, _ := c.ask(getFeatures, nil)
	if f := binary.LittleEndian.Uint64(offered); c.features&^f != 0 {
		c.t.Fatalf("features %#x are not all offered: %#x", c.features, f)
	}
	c.ask(getProtocolFeatures, nil)
	c.send(setProtocolFeatures, u64(protocolOffered))
	c.send(setOwner, nil)
}

// start starts every ring at the given entries, or where the driver is.
func (c *client) start(bases ...uint16) {
	c.t.Helper()
	if c.indirect {
		c.features |= featureIndirect
	}
	if c.eventIdx {
		c.features |= featureEventIdx
	}
	c.send(setFeatures, u64(c.features))
	c.setInflight()
	c.send(setMemTable, c.memTable(), int(c.memory.Fd()), int(c.memory.Fd()))
	for i, q := range c.queues {
		base := q.usedIdx()
		if bases != nil {
			base = bases[i]
		}
		c.send(setVringNum, pair(uint32(i), uint32(q.num)))
		c.send(setVringBase, pair(uint32(i), uint32(base)))
		c.send(setVringAddr, append(pair(uint32(i), 0), u64(user(q.desc), user(q.used), user(q.ring), gpaOf(q.used))...))
		c.send(setVringErr, u64(uint64(i)), q.errFD)
		c.send(setVringCall, u64(uint64(i)), q.callFD)
		c.send(setVringKick, u64(uint64(i)), q.kickFD)
		c.send(setVringEnable, pair(uint32(i), 1))
	}
	c.ask(getQueueNum, nil) // all of it has been heard
}

// setInflight hands the region over, a new one if there is none.
func (c *client) setInflight() {
	c.t.Helper()
	ask := append(u64(0, 0), byte(len(c.queues)), 0, byte(c.queues[0].num), byte(c.queues[0].num>>8), 0, 0, 0, 0)
	if c.shared == nil {
		reply, fd := c.ask(getInflightFD, ask)
		c.shared = os.NewFile(uintptr(fd), "inflight")
		m, err := parse(setInflightFD, reply)
		must(c.t, err)
		c.at = m.shared
	}
	p := append(u64(c.at.size, c.at.off), ask[16:]...)
	c.send(setInflightFD, p, int(c.shared.Fd()))
}

// stop stops every ring and returns where each stands.
func (c *client) stop() (bases []uint16) {
	c.t.Helper()
	for i := range c.queues {
		reply, _ := c.ask(getVringBase, pair(uint32(i), 0))
		bases = append(bases, uint16(binary.LittleEndian.Uint32(reply[4:])))
	}
	return bases
}

func (q *queue) usedIdx() uint16 { return load16(q.c.mem[q.used+2:]) }

type descriptor struct {
	gpa         uint64
	length      uint32
	flags, next uint16
}

func (d descriptor) put(p []byte) {
	binary.LittleEndian.PutUint64(p, d.gpa)
	binary.LittleEndian.PutUint32(p[8:], d.length)
	binary.LittleEndian.PutUint16(p[12:], d.flags)
	binary.LittleEndian.PutUint16(p[14:], d.next)
}

// slot is where the request with a number lies in the memory file.
func (c *client) slot(q *queue, n int) int { return (q.index*maxSlots/len(c.queues) + n) * slotSpace }

// data is the data of a slot.
func (c *client) data(q *queue, n, length int) []byte {
	return c.mem[c.slot(q, n)+slotData:][:length]
}

// put makes the request with a number available: a header, data in pieces of
// two lengths, a status byte. It uses descriptors 4n to 4n+3.
func (q *queue) put(n int, kind uint32, sector uint64, length int) {
	q.describe(n, kind, sector, length)
	q.offer(uint16(4 * n))
}

func (q *queue) describe(n int, kind uint32, sector uint64, length int) {
	c := q.c
	at := c.slot(q, n)
	head := c.mem[at:]
	binary.LittleEndian.PutUint32(head, kind)
	binary.LittleEndian.PutUint32(head[4:], 0)
	binary.LittleEndian.PutUint64(head[8:], sector)
	head[16] = 0xee
	writes := uint16(0)
	if kind == typeIn || kind == typeGetID {
		writes = descWriteFlag
	}
	d := []descriptor{{gpa: gpaOf(at), length: 16}}
	if first := length / 3; first > 0 {
		d = append(d, descriptor{gpaOf(at + slotData), uint32(first), writes, 0}, descriptor{gpaOf(at + slotData + first), uint32(length - first), writes, 0})
	}
	d = append(d, descriptor{gpaOf(at + 16), 1, descWriteFlag, 0})
	q.chain(n, d)
}

// chain writes descriptors, in the ring from 4n on or in a table of their own.
func (q *queue) chain(n int, d []descriptor) {
	table, first := q.c.mem[q.desc+64*n:], 4*n
	if q.c.indirect {
		at := q.c.slot(q, n) + slotTable
		descriptor{gpaOf(at), uint32(16 * len(d)), descIndirectFlag, 0}.put(table)
		table, first = q.c.mem[at:], 0
	}
	for i := range d {
		if i < len(d)-1 {
			d[i].flags |= descNextFlag
			d[i].next = uint16(first + i + 1)
		}
		d[i].put(table[16*i:])
	}
}

// offer puts a head into the available ring.
func (q *queue) offer(head uint16) {
	ring := q.c.mem[q.ring:]
	binary.LittleEndian.PutUint16(ring[4+2*(int(q.avail)%q.num):], head)
	q.avail++
	// One store for flags and index: the ring is aligned to 4 here.
	store32(ring, uint32(q.avail)<<16)
}

// kick kicks if the device wants it.
func (q *queue) kick(old uint16) {
	want := q.c.mem[q.used]&usedNoNotify == 0
	if q.c.eventIdx {
		event := load16(q.c.mem[q.used+4+8*q.num:])
		want = q.avail-event-1 < q.avail-old
	}
	if want {
		_, err := unix.Write(q.kickFD, u64(1))
		must(q.c.t, err)
	}
}

type completion struct {
	head   uint16
	length uint32
	status byte
}

// next waits for the next completion, by interrupts alone.
func (q *queue) next() completion {
	c := q.c
	c.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for q.usedIdx() == q.seen {
		if c.eventIdx {
			store16(c.mem[q.ring+4+2*q.num:], q.seen)
			if q.fence(); q.usedIdx() != q.seen {
				break
			}
		}
		if !wait(q.callFD, time.Until(deadline)) {
			c.t.Fatalf("ring %d: no interrupt within 10 s; used %d, seen %d", q.index, q.usedIdx(), q.seen)
		}
	}
	e := c.mem[q.used+4+8*(int(q.seen)%q.num):]
	q.seen++
	done := completion{head: binary.LittleEndian.Uint16(e), length: binary.LittleEndian.Uint32(e[4:])}
	done.status = c.mem[c.slot(q, int(done.head)/4)+16]
	return done
}

func (q *queue) fence() { store32(q.c.mem[q.ring:], uint32(q.avail)<<16) }

// wait waits until an event comes, and takes it.
func wait(fd int, within time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(within); ; {
		n, err := unix.Poll(fds, max(0, int(time.Until(deadline).Milliseconds())))
		if n > 0 {
			var p [8]byte
			_, _ = unix.Read(fd, p[:])
			return true
		}
		if err != unix.EINTR {
			return false
		}
	}
}

// do carries one request out.
func (q *queue) do(n int, kind uint32, sector uint64, length int) completion {
	q.c.t.Helper()
	old := q.avail
	q.put(n, kind, sector, length)
	q.kick(old)
	return q.next()
}

// newClient is a guest that runs on a server.
func newClient(t testing.TB, s *Server, queues, num int, change ...func(*client)) *client {
	t.Helper()
	c := newGuest(t, newGuestMemory(t), queues, num)
	for _, f := range change {
		f(c)
	}
	c.connect(s.cfg.Path)
	c.start()
	return c
}

func serveUntilKilled(path string) {
	b := newMemoryDisk(4096)
	fill(b.data)
	b.shut()
	s, err := Listen(Config{Path: path, Backend: b, Queues: 2})
	if err != nil {
		panic(err)
	}
	go func() { // the odd ones are served
		for range b.arrived {
		}
	}()
	fmt.Println("ready")
	s.done.Wait()
}

// fill makes content that names its place.
func fill(p []byte) {
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(i)*0x9e3779b97f4a7c15)
	}
}

func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "usv")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "disk")
}

// snapshot copies the memory, and changed says which pages differ from it.
func (c *client) snapshot() []byte { return append([]byte(nil), c.mem...) }

func (c *client) changed(since []byte) (pages []epoch.GFN) {
	for i := 0; i < len(since); i += epoch.PageSize {
		if string(since[i:i+epoch.PageSize]) != string(c.mem[i:i+epoch.PageSize]) {
			pages = append(pages, epoch.GFN(i/epoch.PageSize))
		}
	}
	return pages
}
