package vhost

// This file is one connection of a hypervisor: it reads messages, sets the
// rings up by them and answers. Everything about the rings' setup happens in
// its one goroutine; the rings' own workers run beside it.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// session is what one hypervisor has agreed on with us.
type session struct {
	s    *Server
	ctx  context.Context // of the requests
	conn *net.UnixConn

	features uint64 // acknowledged
	protocol uint64
	mem      *memory
	shared   *inflightRegion

	head  [headerSize]byte
	body  [maxPayload]byte
	oob   []byte
	reply []byte
}

func newSession(ctx context.Context, s *Server, conn *net.UnixConn) *session {
	return &session{s: s, ctx: ctx, conn: conn, oob: make([]byte, unix.CmsgSpace(4*maxFDs))}
}

// descriptors are what came with a message; who takes one closes it.
type descriptors []int

func (d descriptors) take(i int) int {
	fd := d[i]
	d[i] = -1
	return fd
}

func (d descriptors) close() {
	for _, fd := range d {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// run serves messages until the connection ends; nil: the hypervisor has
// closed it, or we have.
func (c *session) run() (err error) {
	// See run.work.
	debug.SetPanicOnFault(true)
	defer func() {
		if e := recover(); e != nil {
			err = memoryFault(e)
		}
	}()
	for {
		h, payload, fds, err := c.receive()
		if err != nil {
			fds.close()
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
				return nil
			}
			return fmt.Errorf("receive a message: %w", err)
		}
		err = c.answer(h, payload, fds)
		fds.close()
		if err != nil {
			return err
		}
	}
}

// receive reads one message.
func (c *session) receive() (h header, payload []byte, fds descriptors, err error) {
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(c.head[:], c.oob)
	if err != nil {
		return h, nil, nil, err
	}
	if oobn > 0 {
		messages, err := unix.ParseSocketControlMessage(c.oob[:oobn])
		if err != nil {
			return h, nil, nil, err
		}
		for _, m := range messages {
			if got, err := unix.ParseUnixRights(&m); err == nil {
				fds = append(fds, got...)
			}
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return h, nil, fds, fmt.Errorf("more than %d descriptors in one message", maxFDs)
	}
	if n == 0 {
		return h, nil, fds, io.EOF
	}
	if _, err := io.ReadFull(c.conn, c.head[n:]); err != nil {
		return h, nil, fds, err
	}
	if h, err = parseHeader(c.head[:]); err != nil {
		return h, nil, fds, err
	}
	payload = c.body[:h.size]
	_, err = io.ReadFull(c.conn, payload)
	return h, payload, fds, err
}

// answer handles one message.
func (c *session) answer(h header, payload []byte, fds descriptors) error {
	m, err := parse(h.request, payload)
	if err != nil {
		return err
	}
	var answer []byte
	fd := -1
	switch h.request {
	case getFeatures:
		answer = binary.LittleEndian.AppendUint64(nil, c.s.features())
	case getProtocolFeatures:
		answer = binary.LittleEndian.AppendUint64(nil, protocolOffered)
	case getQueueNum:
		answer = binary.LittleEndian.AppendUint64(nil, uint64(len(c.s.rings)))
	case getConfig:
		answer = c.getConfig(m.config)
	case getVringBase:
		answer, err = c.getVringBase(m.index)
	case getInflightFD:
		answer, fd, err = c.getInflight(m.shared, len(payload))
	case setLogBase:
		if err = c.setLogBase(m.log, fds); err == nil {
			answer = make([]byte, 8)
		}
	default:
		err = c.set(h.request, m, fds)
	}
	if err != nil {
		err = fmt.Errorf("%v: %w", h.request, err)
	}
	// QEMU 7.2 does not notice a connection that is lost while its guest stands
	// still, and goes on with the next one as if all had been agreed on. Not to
	// answer would hang it for ever.
	agreed := c.protocol == 0 || c.protocol&protocolReplyAck != 0
	if answer == nil && h.flags&flagNeedReply != 0 && agreed {
		status := uint64(0)
		if err != nil {
			status = 1
		}
		answer = binary.LittleEndian.AppendUint64(nil, status)
	}
	if answer == nil {
		return err
	}
	return errors.Join(err, c.send(h.request, answer, fd))
}

// send sends a reply; it closes fd, if that is one.
func (c *session) send(r request, payload []byte, fd int) error {
	c.reply = appendReply(c.reply[:0], r, payload)
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
		defer func() { _ = unix.Close(fd) }()
	}
	if _, _, err := c.conn.WriteMsgUnix(c.reply, rights, nil); err != nil {
		return fmt.Errorf("reply to %v: %w", r, err)
	}
	return nil
}

// set handles the messages that have no reply of their own.
func (c *session) set(kind request, m message, fds descriptors) error {
	switch kind {
	case setFeatures:
		return c.setFeatures(m.value)
	case setProtocolFeatures:
		if extra := m.value &^ protocolOffered; extra != 0 {
			return fmt.Errorf("protocol features %#x were not offered", extra)
		}
		c.protocol = m.value
		return nil
	case setOwner, resetOwner:
		return nil
	case setMemTable:
		return c.setMemory(m.regions, fds)
	case setLogFD:
		return nil // a wish to be told of every logged page, of use to nobody
	case setConfig:
		return c.setConfig(m.config)
	case setInflightFD:
		return c.setInflight(m.shared, fds)
	case setVringNum, setVringAddr, setVringBase, setVringKick, setVringCall, setVringErr, setVringEnable:
		return c.setRing(kind, m, fds)
	}
	return errors.New("not known, and not offered")
}

func (c *session) ring(index int) (*ring, error) {
	if index < 0 || index >= len(c.s.rings) {
		return nil, fmt.Errorf("ring %d of %d", index, len(c.s.rings))
	}
	return c.s.rings[index], nil
}

func (c *session) setFeatures(features uint64) error {
	if extra := features &^ c.s.features(); extra != 0 {
		return fmt.Errorf("features %#x were not offered", extra)
	}
	c.features = features
	c.noteCache()
	if l := c.s.dirty; l != nil {
		l.on.Store(features&featureLogAll != 0)
	}
	return nil
}

func (c *session) setLogBase(at span, fds descriptors) error {
	if len(fds) != 1 {
		return errors.New("no descriptor")
	}
	l, err := newDirtyLog(at, fds[0])
	if err != nil {
		return err
	}
	l.on.Store(c.features&featureLogAll != 0)
	c.s.setLog(l)
	return nil
}

func (c *session) getConfig(part configPart) []byte {
	answer := binary.LittleEndian.AppendUint32(nil, part.off)
	if uint64(part.off)+uint64(part.size) > maxConfig {
		return append(answer, make([]byte, 8)...) // size 0: an error
	}
	answer = binary.LittleEndian.AppendUint32(answer, part.size)
	answer = binary.LittleEndian.AppendUint32(answer, part.flags)
	space := c.s.configSpace()
	return append(answer, space[part.off:][:part.size]...)
}

// setMemory takes a new memory table. Rings that run go over to it.
func (c *session) setMemory(regions []region, fds descriptors) error {
	var old *mapping
	if c.mem != nil {
		old = c.mem.file
	}
	mem, err := newMemory(regions, fds, old, c.s.cfg.Memory)
	if err != nil {
		return err
	}
	for _, r := range c.s.rings {
		r.mu.Lock()
		if r.run != nil {
			was := r.shape
			if err = r.resolve(mem); err == nil && r.shapeNow() != was {
				err = fmt.Errorf("ring %d runs and would lie elsewhere", r.index)
			}
			if err == nil {
				r.chain.clear()
				r.mem = mem
			}
		}
		r.mu.Unlock()
		if err != nil {
			mem.file.release()
			return err
		}
	}
	if old != nil {
		old.release()
	}
	c.mem = mem
	return nil
}

// getInflight makes a new region: nothing is in flight for this guest.
func (c *session) getInflight(want inflightAt, length int) (answer []byte, fd int, err error) {
	queues, depth := int(want.queues), int(want.depth)
	if queues < 1 || queues > len(c.s.rings) || depth < 1 || depth > MaxQueueSize {
		return nil, -1, fmt.Errorf("memory for %d queues of %d requests", queues, depth)
	}
	size, fd, err := newInflight(queues, depth)
	if err != nil {
		return nil, -1, err
	}
	c.s.orphanHalted()
	// As long as the request: some have the padding of a C structure.
	answer = make([]byte, max(length, 20))
	binary.LittleEndian.PutUint64(answer, uint64(size))
	binary.LittleEndian.PutUint16(answer[16:], want.queues)
	binary.LittleEndian.PutUint16(answer[18:], want.depth)
	return answer, fd, nil
}

func (c *session) setInflight(at inflightAt, fds descriptors) error {
	if len(fds) != 1 {
		return errors.New("no descriptor")
	}
	if c.shared.same(at, fds[0]) {
		return nil
	}
	c.s.drainHalted()
	if !c.s.Stopped() {
		return errors.New("rings run")
	}
	next, err := mapInflight(at, fds[0])
	if err != nil {
		return err
	}
	c.s.orphanHalted() // they belong to the region before
	for _, r := range c.s.rings {
		r.mu.Lock()
		r.part = nil
		r.mu.Unlock()
	}
	c.shared.unmap()
	c.shared = next
	if wce, ok := next.getWCE(); ok {
		c.s.wce.Store(uint32(wce))
	}
	c.noteCache()
	return nil
}

// setRing sets one ring up, and starts or stops it when that decides it.
func (c *session) setRing(kind request, m message, fds descriptors) error {
	r, err := c.ring(m.index)
	if err != nil {
		return err
	}
	fd := -1
	if kind == setVringKick || kind == setVringCall || kind == setVringErr {
		if m.noFD != (len(fds) == 0) || len(fds) > 1 {
			return fmt.Errorf("ring %d comes with %d descriptors", m.index, len(fds))
		}
		if !m.noFD {
			fd = fds.take(0)
			if err := unix.SetNonblock(fd, true); err != nil {
				_ = unix.Close(fd)
				return fmt.Errorf("descriptor for ring %d: %w", m.index, err)
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch kind {
	case setVringNum:
		if m.num == 0 || int(m.num) > c.s.cfg.QueueSize || m.num&(m.num-1) != 0 || r.run != nil {
			return fmt.Errorf("ring %d of %d entries, at most %d are possible (a power of two, before its start)", m.index, m.num, c.s.cfg.QueueSize)
		}
		r.num = uint16(m.num)
	case setVringAddr:
		if r.run != nil { // how it is logged may change meanwhile, nothing else
			now, was := m.addr, r.addr
			now.flags, now.log, was.flags, was.log = 0, 0, 0, 0
			if now != was {
				return fmt.Errorf("ring %d runs and would lie elsewhere", m.index)
			}
		}
		r.addr, r.addrSet = m.addr, true
	case setVringBase:
		if m.num > 0xffff || r.run != nil {
			return fmt.Errorf("ring %d starts at %d, or runs", m.index, m.num)
		}
		r.base, r.baseSet, r.known = uint16(m.num), true, true
	case setVringKick:
		if fd < 0 {
			return fmt.Errorf("ring %d without a kick: polling is not offered", m.index)
		}
		r.halt()
		r.drain()
		setFD(&r.kickFD, fd)
		r.enabled = r.enabled || c.features&featureProtocol == 0
		return c.update(r)
	case setVringCall:
		setFD(&r.callFD, fd)
		if r.run != nil { // the old one may have been told in vain
			r.signalKnown = false
			r.notify()
		}
	case setVringErr:
		setFD(&r.errFD, fd)
	case setVringEnable:
		r.enabled = m.num != 0
		return c.update(r)
	}
	return nil
}

// update lets a ring run exactly if it is kicked and enabled. The ring's lock
// is held, and left for a moment.
func (c *session) update(r *ring) error {
	should := r.kickFD >= 0 && r.enabled
	switch {
	case !should:
		r.halt()
		r.drain()
		return nil
	case r.run != nil:
		return nil
	}
	r.drain() // it may have failed
	if err := r.resolve(c.mem); err != nil {
		return err
	}
	fresh := !r.goesOn(c.shared == nil || r.part != nil)
	if fresh {
		r.mu.Unlock()
		c.s.orphanHalted()
		r.mu.Lock()
	}
	return r.start(c.ctx, c.mem, c.shared, c.features, fresh)
}

// getVringBase halts a ring. What was taken counts as taken: it is in flight.
//
// QEMU 7.2 may ask it of a ring that was never set up on this connection: it did
// not notice that the one before was lost (see answer). Any number would be
// wrong, and it would begin the ring there. A reply of the wrong size it counts as
// a failure (vhost_virtqueue_stop), and takes the index of the used ring: which is
// right, since what lies behind that is in the region of requests in flight.
func (c *session) getVringBase(index int) ([]byte, error) {
	r, err := c.ring(index)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.halt()
	r.drain()
	setFD(&r.kickFD, -1)
	if !r.known {
		c.s.log.Warn("the hypervisor stops a ring that it has never set up here: it has missed that its connection was lost", "ring", index)
		r.setLost(true)
		return []byte{}, nil
	}
	last := r.lastAvail
	if r.baseSet {
		last = r.base // it never ran with it
	}
	answer := binary.LittleEndian.AppendUint32(nil, uint32(index))
	return binary.LittleEndian.AppendUint32(answer, uint32(last)), nil
}

// end halts every ring and lets go of the guest.
func (c *session) end() {
	for _, r := range c.s.rings { // all, before the first is waited for
		r.mu.Lock()
		r.halt()
		r.mu.Unlock()
	}
	for _, r := range c.s.rings {
		r.mu.Lock()
		r.reset()
		r.mu.Unlock()
	}
	c.s.setLog(nil)
	if c.mem != nil {
		c.mem.file.release()
	}
	c.shared.unmap()
}
