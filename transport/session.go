package transport

// A session: messages in order over several connections. One direction, in the
// order of the functions below:
//
//	Send ─ waits for its turn and for credit ─> queue ─> writers, one per lane
//	   (any writer takes the next batch, so the fastest connection takes most)
//	readers, one per lane ─ check ─> ring ─ in order ─> Receive ─ credit ─> peer
//
// Lane 0 also carries pings, pongs and credits, ahead of messages. A session
// fails as a whole: whatever goes wrong ends in fail, once, and closes all.

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Reasons for the end of a session, to be told apart with errors.Is. ErrBadFrame
// is a third; any other error is a connection that broke.
var (
	// ErrClosed: Close was called on this side.
	ErrClosed = errors.New("session closed")
	// ErrPeerClosed: the peer called Close.
	ErrPeerClosed = errors.New("session closed by the peer")
	// ErrSilent: nothing was heard from the peer for HeartbeatTimeout.
	ErrSilent = errors.New("the peer is silent")
)

const (
	// maxBatch is how many bytes of small messages go out in one write; larger
	// messages go alone.
	maxBatch   = 64 << 10
	smallFrame = 16 << 10
	// writeTimeout bounds the write of one batch: a peer that answers pings but
	// does not read another connection cannot hold a writer for ever.
	writeTimeout = 10 * time.Second
	// closeTimeout bounds how long Close waits for queued messages to leave.
	closeTimeout = time.Second
	// readAhead is the size of a lane's read buffer, in bytes: one TLS record.
	readAhead = 16 << 10
	// creditShare of the window is consumed between two credit frames.
	creditShare = 16
)

// Message is what Receive hands out.
type Message struct {
	Kind    uint8
	Payload []byte // valid until Release

	pool *bufferPool
	buf  *buffer
	turn uint64
}

// Release gives the message's memory back; Payload must not be used after it.
// A message that is never released is left to the garbage collector.
func (m Message) Release() {
	if m.buf != nil {
		m.pool.put(m.buf, m.turn)
	}
}

// Stats are counters and estimates of a session.
type Stats struct {
	// Bytes on the connections: headers and control frames included, TLS not.
	BytesSent, BytesReceived       uint64
	MessagesSent, MessagesReceived uint64 // sent: accepted by Send; received: returned by Receive
	// Outstanding is the cost, in bytes, of messages that the peer's Receive
	// has not returned yet, as far as it has told.
	Outstanding uint64
	// RTT is the smoothed time from a ping to its pong; 0 until known.
	RTT time.Duration
	// Throughput is the estimate of what path and peer take, in bytes per
	// second, from times when this side had more to send than they took; 0
	// until there was such a time.
	Throughput float64
	// Blocked is how long Send has waited for credit, in all.
	Blocked time.Duration
}

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

// Session is a two-way stream of messages between two hosts. Its methods may be
// called from several goroutines at once.
type Session struct {
	id    sessionID
	peer  string
	cfg   Config
	log   *slog.Logger
	lanes []*lane
	pool  *bufferPool
	start time.Time

	done    chan struct{} // closed by fail, after err is set
	err     error
	failed  sync.Once
	closing chan struct{} // closed by the first Close
	flushed chan struct{} // closed by the last writer to say bye
	writers atomic.Int32
	byes    atomic.Int32
	wg      sync.WaitGroup

	sendTurn   chan struct{} // a lock that is granted in the order of asking
	creditCame chan struct{} // capacity 1
	peerMax    int

	sendMu   sync.Mutex
	queue    batches
	sequence uint64
	credit   credit
	due      struct {
		ping, pong, credit bool
		pongStamp          [controlSize]byte
		consumed           uint64
	}
	isClosing bool

	recvTurn chan struct{}
	nextCame chan struct{} // capacity 1
	recvMu   sync.Mutex
	ring     *ring
	reported uint64 // cost last put into a credit frame; under recvMu

	heard         atomic.Int64 // nanoseconds from start to the last byte read
	rtt           atomic.Int64
	blocked       atomic.Int64
	bytesSent     atomic.Uint64
	bytesReceived atomic.Uint64
	messagesOut   atomic.Uint64
	messagesIn    atomic.Uint64
}

// newSession starts a session on connections whose hellos have been exchanged.
func newSession(id sessionID, conns []net.Conn, peer hello, cfg Config, log *slog.Logger) *Session {
	s := &Session{
		id:         id,
		peer:       PeerName(conns[0]),
		cfg:        cfg,
		pool:       newBufferPool(max(cfg.MaxMessage, peer.maxMessage, maxBatch), cfg.Window),
		start:      time.Now(),
		done:       make(chan struct{}),
		closing:    make(chan struct{}),
		flushed:    make(chan struct{}),
		sendTurn:   make(chan struct{}, 1),
		creditCame: make(chan struct{}, 1),
		peerMax:    peer.maxMessage,
		credit:     credit{window: peer.window},
		recvTurn:   make(chan struct{}, 1),
		nextCame:   make(chan struct{}, 1),
		ring:       newRing(len(conns), uint64(cfg.Window)),
	}
	s.log = log.With("session", id.String(), "peer", s.peer)
	for i, conn := range conns {
		s.lanes = append(s.lanes, &lane{
			index: i, conn: conn, in: bufio.NewReaderSize(&ear{s, conn}, readAhead),
			wake: make(chan struct{}, 1), seen: 1, controls: 1,
		})
	}
	keepResponsive(conns[0])
	s.writers.Store(int32(len(conns)))
	for _, l := range s.lanes {
		s.wg.Go(func() { s.writeLoop(l) })
		s.wg.Go(func() { s.readLoop(l) })
	}
	s.wg.Go(s.heartbeatLoop)
	return s
}

// Peer is the name of the host at the other end, as its certificate has it.
func (s *Session) Peer() string { return s.peer }

// Send queues one message. It copies the payload and returns at once while the
// peer has granted credit, else when it grants some; messages arrive in the
// order in which Send was entered. A nil error does not mean that the peer has
// it. With an error the message was not queued and never arrives.
func (s *Session) Send(ctx context.Context, kind uint8, payload []byte) error {
	if len(payload) > s.peerMax {
		return fmt.Errorf("send a message of %d bytes to %s: it takes at most %d", len(payload), s.peer, s.peerMax)
	}
	if err := s.enter(ctx, s.sendTurn); err != nil {
		return err
	}
	defer func() { <-s.sendTurn }()
	// Only the holder of the turn queues messages, so a large one is copied
	// before the lock is taken.
	var own *buffer
	if headerSize+len(payload) > smallFrame {
		own = s.pool.get(len(payload))
		own.appendFrame(kind, payload)
	}
	if err := s.awaitCredit(ctx, uint64(len(payload))+messageCost); err != nil {
		if own != nil {
			s.pool.put(own, own.turn.Load())
		}
		return err
	}
	// awaitCredit returned with sendMu held.
	defer s.sendMu.Unlock()
	s.credit.sent += uint64(len(payload)) + messageCost
	sequence := s.sequence
	s.sequence++
	s.messagesOut.Add(1)
	if own != nil {
		own.stamp(0, sequence)
		s.queue.push(own)
		s.wakeOne()
		return nil
	}
	tail := s.queue.tail()
	if tail == nil || tail.used+headerSize+len(payload) > min(maxBatch, len(tail.data)) {
		tail = s.pool.get(maxBatch)
		s.queue.push(tail)
		s.wakeOne()
	}
	at := tail.used
	tail.appendFrame(kind, payload)
	tail.stamp(at, sequence)
	return nil
}

// enter takes a turn, in the order of asking: a channel serves its waiters
// first come, first served.
func (s *Session) enter(ctx context.Context, turn chan struct{}) error {
	select {
	case turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.done:
		return s.err
	}
}

// awaitCredit returns nil with sendMu held when a message of that cost may be
// queued, or an error without the lock.
func (s *Session) awaitCredit(ctx context.Context, cost uint64) error {
	var since time.Time
	defer func() {
		if !since.IsZero() {
			s.blocked.Add(int64(time.Since(since)))
		}
	}()
	for {
		select {
		case <-s.done:
			return s.err
		case <-s.closing:
			return ErrClosed
		default:
		}
		s.sendMu.Lock()
		if s.isClosing {
			s.sendMu.Unlock()
			return ErrClosed
		}
		if s.credit.room(cost) {
			return nil
		}
		s.sendMu.Unlock()
		if since.IsZero() {
			since = time.Now()
		}
		select {
		case <-s.creditCame:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
		case <-s.closing:
		}
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
			if s.writers.Add(-1) == 0 {
				close(s.flushed)
			}
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

// Receive returns the next message in the order of sending. Messages that had
// arrived whole and in order when the session failed are still handed out; then
// the reason for the failure is returned, at once after Close on this side.
func (s *Session) Receive(ctx context.Context) (Message, error) {
	if err := s.enterReceive(ctx); err != nil {
		return Message{}, err
	}
	defer func() { <-s.recvTurn }()
	for {
		// Asked before the ring, so that what came before the failure counts.
		failed := false
		select {
		case <-s.closing:
			return Message{}, ErrClosed
		case <-s.done:
			failed = true
		default:
		}
		s.recvMu.Lock()
		a, ok := s.ring.take()
		consumed, report := s.ring.consumed, false
		if ok && consumed-s.reported >= uint64(s.cfg.Window)/creditShare {
			s.reported, report = consumed, true
		}
		var gap error
		if !ok {
			gap = s.ring.gap()
		}
		s.recvMu.Unlock()
		if report {
			s.grant(consumed)
		}
		if ok {
			s.messagesIn.Add(1)
			return Message{Kind: a.kind, Payload: a.buf.data[:a.length:a.length], pool: s.pool, buf: a.buf, turn: a.buf.turn.Load()}, nil
		}
		if failed {
			return Message{}, s.err
		}
		if gap != nil {
			s.fail(fmt.Errorf("from %s: %w", s.peer, gap))
			continue
		}
		select {
		case <-s.nextCame:
		case <-s.done:
		case <-s.closing:
		case <-ctx.Done():
			return Message{}, ctx.Err()
		}
	}
}

// enterReceive is enter, but lets a failed session's remaining messages out.
func (s *Session) enterReceive(ctx context.Context) error {
	select {
	case s.recvTurn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Session) grant(consumed uint64) {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.due.credit = true
	s.due.consumed = max(s.due.consumed, consumed)
	s.wakeLane(s.lanes[0])
}

// heartbeatLoop sends a ping every interval and notices silence.
func (s *Session) heartbeatLoop() {
	now := time.Now()
	nextPing, wakeAt := now, now
	timer := time.NewTimer(0)
	defer timer.Stop()
	var forgiven, grace time.Time
	for {
		select {
		case <-s.done:
			return
		case <-timer.C:
		}
		now = time.Now()
		heard := s.LastHeard()
		if now.Sub(wakeAt) > s.cfg.HeartbeatInterval && !heard.Equal(forgiven) {
			// This process itself stood still (stopped, starved of a processor).
			// The peer's signs of life may lie in the socket buffers: give the
			// readers one interval, once, before the silence is the peer's.
			forgiven, grace = heard, now.Add(s.cfg.HeartbeatInterval)
		}
		deadline := heard.Add(s.cfg.HeartbeatTimeout)
		if heard.Equal(forgiven) && deadline.Before(grace) {
			deadline = grace
		}
		if !now.Before(deadline) {
			s.fail(fmt.Errorf("%w: nothing heard from %s for %v", ErrSilent, s.peer, now.Sub(heard).Round(time.Millisecond)))
			return
		}
		if !now.Before(nextPing) {
			nextPing = now.Add(s.cfg.HeartbeatInterval)
			s.sendMu.Lock()
			s.due.ping = true
			s.wakeLane(s.lanes[0])
			s.sendMu.Unlock()
		}
		wakeAt = nextPing
		if deadline.Before(wakeAt) {
			wakeAt = deadline
		}
		timer.Reset(wakeAt.Sub(now))
	}
}

// LastHeard is when the last byte came from the peer.
func (s *Session) LastHeard() time.Time { return s.start.Add(time.Duration(s.heard.Load())) }

// Done is closed when the session has failed or was closed.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is why the session ended; nil while it lives.
func (s *Session) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Stats returns the session's counters and estimates.
func (s *Session) Stats() Stats {
	s.sendMu.Lock()
	outstanding, throughput := s.credit.sent-s.credit.consumed, s.credit.throughput
	s.sendMu.Unlock()
	return Stats{
		BytesSent: s.bytesSent.Load(), BytesReceived: s.bytesReceived.Load(),
		MessagesSent: s.messagesOut.Load(), MessagesReceived: s.messagesIn.Load(),
		Outstanding: outstanding, Throughput: throughput,
		RTT: time.Duration(s.rtt.Load()), Blocked: time.Duration(s.blocked.Load()),
	}
}

// fail ends the session. It closes the connections but waits for nothing.
func (s *Session) fail(err error) {
	s.failed.Do(func() {
		select {
		case <-s.closing:
			err = ErrClosed // whatever broke first while we were leaving
		default:
		}
		s.err = err
		close(s.done)
		for _, l := range s.lanes {
			hardClose(l.conn)
		}
		s.log.Info("session ended", "reason", err)
	})
}

// Close lets what is queued leave (for a second at most), tells the peer, ends
// the session and waits for its goroutines. What must have arrived needs an
// acknowledgement of the application's own.
func (s *Session) Close() error {
	s.sendMu.Lock()
	if !s.isClosing {
		s.isClosing = true
		close(s.closing)
		for _, l := range s.lanes {
			s.wakeLane(l)
		}
	}
	s.sendMu.Unlock()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-s.flushed:
	case <-s.done:
	case <-timer.C:
	}
	s.fail(ErrClosed)
	s.wg.Wait()
	return nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
