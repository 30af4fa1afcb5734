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
	"context"
	"errors"
	"fmt"
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
	// maxBatch is how many bytes of small messages go out in one write. A frame
	// of more than smallFrame bytes goes alone.
	maxBatch   = 64 << 10
	smallFrame = 16 << 10
	// closeTimeout bounds how long Close waits for queued messages to leave and
	// for the peer to notice.
	closeTimeout = time.Second
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
		s.lanes = append(s.lanes, newLane(s, i, conn))
	}
	keepResponsive(conns[0])
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

// Close lets what is queued leave, tells the peer, waits until it has noticed
// (a round trip, a second at most), ends the session and its goroutines. What must have arrived needs an
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
	// The peer closes the connections when it has every bye. If this side did,
	// while the peer still writes, a reset could overtake the last messages.
	select {
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
