package transport

// The two goroutines of each connection: the writer takes batches from the
// session's queue, the reader checks frames and puts messages into its ring.
// Lane 0 also carries pings, pongs and credits, ahead of messages.

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	// writeTimeout bounds the write of one batch: a peer that answers pings but
	// does not read another connection cannot hold a writer for ever.
	writeTimeout = 10 * time.Second
	// readAhead is the size of a lane's read buffer, in bytes: one TLS record.
	readAhead = 16 << 10
)

// lane is one connection of a session.
type lane struct {
	index int
	conn  net.Conn
	in    *bufio.Reader
	wake  chan struct{} // capacity 1: there is work for this lane's writer
	idle  bool          // its writer waits; under sendMu

	head     [headerSize]byte  // reader's
	small    [controlSize]byte // reader's
	seen     uint64            // reader's: control frames so far, hello included
	control  [3 * (headerSize + controlSize)]byte
	controls uint64 // writer's: control frames so far, hello included
}

func newLane(s *Session, index int, conn net.Conn) *lane {
	return &lane{
		index: index, conn: conn, in: bufio.NewReaderSize(&ear{s, conn}, readAhead),
		wake: make(chan struct{}, 1), seen: 1, controls: 1, // the hello was one
	}
}

// wakeOne, under sendMu, finds a writer for what was just queued. Lane 0 comes
// last, so that control frames find it free. If no writer is idle, each of them
// looks at the queue again before it becomes so.
func (s *Session) wakeOne() {
	for i := len(s.lanes) - 1; i >= 0; i-- {
		if s.lanes[i].idle {
			s.wakeLane(s.lanes[i])
			return
		}
	}
}

func (s *Session) wakeLane(l *lane) {
	l.idle = false
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// writeLoop is the writer of one lane.
func (s *Session) writeLoop(l *lane) {
	for {
		var out []byte
		var batch *buffer
		bye := false
		s.sendMu.Lock()
		switch {
		case l.index == 0 && (s.due.ping || s.due.pong || s.due.credit):
			out = s.controlFrames(l)
		case s.queue.count > 0:
			batch = s.queue.pop()
		case s.isClosing:
			bye = true
			out = s.controlFrame(l, l.control[:0], frameBye, nil)
		default:
			l.idle = true
		}
		s.sendMu.Unlock()
		if batch != nil {
			out = batch.data[:batch.used]
			s.sealBatch(l, out)
		}
		if out == nil {
			select {
			case <-l.wake:
				continue
			case <-s.done:
				return
			}
		}
		err := l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err == nil {
			_, err = l.conn.Write(out)
		}
		if err != nil {
			s.broken(l, err)
			return
		}
		s.bytesSent.Add(uint64(len(out)))
		if batch != nil {
			s.pool.put(batch, batch.turn.Load())
		}
		if bye {
			return
		}
	}
}

// controlFrames, under sendMu, makes all control frames that are due.
func (s *Session) controlFrames(l *lane) []byte {
	out := l.control[:0]
	var b [controlSize]byte
	if s.due.pong {
		out = s.controlFrame(l, out, framePong, s.due.pongStamp[:])
	}
	if s.due.ping {
		binary.LittleEndian.PutUint64(b[:], uint64(time.Since(s.start)))
		out = s.controlFrame(l, out, framePing, b[:])
	}
	if s.due.credit {
		binary.LittleEndian.PutUint64(b[:], s.due.consumed)
		out = s.controlFrame(l, out, frameCredit, b[:])
	}
	s.due.ping, s.due.pong, s.due.credit = false, false, false
	return out
}

func (s *Session) controlFrame(l *lane, out []byte, typ frameType, payload []byte) []byte {
	frame := out[len(out) : len(out)+headerSize+len(payload)]
	copy(frame[headerSize:], payload)
	seal(frame, header{typ: typ, lane: uint16(l.index), session: s.id.tag(), sequence: l.controls})
	l.controls++
	return out[:len(out)+len(frame)]
}

// sealBatch completes the headers of a batch for the lane it goes out on.
func (s *Session) sealBatch(l *lane, batch []byte) {
	for len(batch) > 0 {
		frame := batch[:headerSize+binary.LittleEndian.Uint32(batch[24:])]
		seal(frame, header{
			typ: frameData, kind: frame[4], lane: uint16(l.index), session: s.id.tag(),
			sequence: binary.LittleEndian.Uint64(frame[16:]),
		})
		batch = batch[len(frame):]
	}
}

// ear notes that the peer was heard.
type ear struct {
	s    *Session
	conn net.Conn
}

func (e *ear) Read(p []byte) (int, error) {
	n, err := e.conn.Read(p)
	if n > 0 {
		e.s.heard.Store(int64(time.Since(e.s.start)))
		e.s.bytesReceived.Add(uint64(n))
	}
	return n, err
}

// readLoop is the reader of one lane. It never waits for Receive: what the peer
// may send is what the ring has room for.
func (s *Session) readLoop(l *lane) {
	for {
		if _, err := io.ReadFull(l.in, l.head[:]); err != nil {
			s.broken(l, err)
			return
		}
		h, err := parseHeader(l.head[:], s.cfg.MaxMessage)
		switch {
		case err != nil:
		case h.session != s.id.tag():
			err = fmt.Errorf("%w: of session %016x", ErrBadFrame, h.session)
		case int(h.lane) != l.index:
			err = fmt.Errorf("%w: of connection %d", ErrBadFrame, h.lane)
		case h.typ == frameData:
			err = s.readMessage(l, h)
		default:
			err = s.readControl(l, h)
		}
		switch {
		case errors.Is(err, ErrBadFrame):
			s.fail(fmt.Errorf("from %s on connection %d: %w", s.peer, l.index, err))
			return
		case err != nil:
			s.broken(l, err)
			return
		case h.typ == frameBye:
			if int(s.byes.Add(1)) == len(s.lanes) {
				s.fail(ErrPeerClosed)
			}
			return
		}
	}
}

func (s *Session) broken(l *lane, err error) {
	s.fail(fmt.Errorf("connection %d to %s broke: %w", l.index, s.peer, err))
}

func (s *Session) readMessage(l *lane, h header) error {
	s.recvMu.Lock()
	err := s.ring.accept(l.index, h)
	if err == nil {
		err = s.ring.gap()
	}
	s.recvMu.Unlock()
	if err != nil {
		return err
	}
	buf := s.pool.get(int(h.length))
	payload := buf.data[:h.length]
	if _, err := io.ReadFull(l.in, payload); err != nil {
		return err
	}
	if err := h.verify(l.head[:], payload); err != nil {
		return err
	}
	s.recvMu.Lock()
	isNext := s.ring.put(h.sequence, arrived{buf: buf, length: int(h.length), kind: h.kind})
	s.recvMu.Unlock()
	if isNext {
		signal(s.nextCame)
	}
	return nil
}

func (s *Session) readControl(l *lane, h header) error {
	payload := l.small[:min(int(h.length), controlSize)]
	if h.typ == frameHello || h.typ == frameRefuse {
		return fmt.Errorf("%w: type %d within a session", ErrBadFrame, h.typ)
	}
	if h.typ != frameBye && l.index != 0 {
		return fmt.Errorf("%w: type %d belongs on connection 0", ErrBadFrame, h.typ)
	}
	if h.sequence != l.seen {
		return fmt.Errorf("%w: control frame %d where %d is due", ErrBadFrame, h.sequence, l.seen)
	}
	l.seen++
	if _, err := io.ReadFull(l.in, payload); err != nil {
		return err
	}
	if err := h.verify(l.head[:], payload); err != nil {
		return err
	}
	switch h.typ {
	case framePing:
		s.sendMu.Lock()
		s.due.pong = true
		copy(s.due.pongStamp[:], payload)
		s.wakeLane(s.lanes[0])
		s.sendMu.Unlock()
	case framePong:
		now, then := time.Since(s.start), time.Duration(binary.LittleEndian.Uint64(payload))
		if then < 0 || then > now {
			return fmt.Errorf("%w: a pong for a ping never sent", ErrBadFrame)
		}
		s.notePong(now - then)
	case frameCredit:
		s.sendMu.Lock()
		err := s.credit.report(binary.LittleEndian.Uint64(payload), time.Now())
		s.sendMu.Unlock()
		if err != nil {
			return err
		}
		signal(s.creditCame)
	}
	return nil
}

// notePong is called by lane 0's reader only.
func (s *Session) notePong(took time.Duration) {
	if rtt := time.Duration(s.rtt.Load()); rtt != 0 {
		took = rtt + (took-rtt)/8
	}
	s.rtt.Store(int64(max(took, 1)))
}
