package failover

// link.go: the calling end of the connection to one peer. Calls of several
// goroutines share it; it is dialled when first needed and kept. A connection
// that stays silent beyond a call's patience is given up, so that the next
// call finds a fresh one instead of a dead host's.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"understudy/ownership"
)

// errNotSent marks a call of which certainly no byte reached the peer.
var errNotSent = errors.New("the request was not sent")

// maxPending bounds the calls in flight to one peer.
const maxPending = 512

type link struct {
	n    *Node
	peer ownership.HostID

	mu      sync.Mutex
	cur     *linkConn
	dialing *dialing // the attempt under way
}

type linkConn struct {
	net.Conn
	write sync.Mutex

	mu       sync.Mutex
	pending  map[uint64]chan answer
	nextID   uint64
	lastRead time.Time
	err      error
	done     chan struct{} // closed with err set
}

// call sends one request and waits for its answer.
func (l *link) call(ctx context.Context, k kind, req request) (answer, error) {
	c, err := l.conn(ctx)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w: %w", l.peer, errNotSent, err)
	}
	req.Timeout = min(remaining(ctx), maxTimeout)
	if req.Timeout <= 0 {
		return answer{}, fmt.Errorf("%s: %w: %w", l.peer, errNotSent, context.DeadlineExceeded)
	}
	id, ch, err := c.begin()
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w: %w", l.peer, errNotSent, err)
	}
	defer c.end(id)
	f, err := encodeFrame(k, id, req)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w: %w", l.peer, errNotSent, err)
	}
	sent := time.Now()
	if err := c.send(f, sent.Add(l.n.cfg.Profile.Attempt)); err != nil {
		c.fail(fmt.Errorf("send: %w", err))
		return answer{}, fmt.Errorf("%s: %w", l.peer, err)
	}
	select {
	case a := <-ch:
		return a, nil
	case <-c.done:
		return answer{}, fmt.Errorf("connection to %s: %w", l.peer, c.err)
	case <-ctx.Done():
		// Half an attempt: a call given up sooner says nothing about the peer.
		if !c.heardSince(sent) && time.Since(sent) >= l.n.cfg.Profile.Attempt/2 {
			c.fail(fmt.Errorf("silent for %s", time.Since(sent).Round(time.Millisecond)))
		} else if f, err := encodeFrame(kindCancel, id, nil); err == nil {
			if err := c.send(f, time.Now().Add(l.n.cfg.Profile.Attempt)); err != nil {
				c.fail(fmt.Errorf("send: %w", err))
			}
		}
		return answer{}, fmt.Errorf("%s has not answered: %w", l.peer, ctx.Err())
	}
}

// remaining is the time ctx leaves, maxTimeout if it sets no end.
func remaining(ctx context.Context) time.Duration {
	if d, ok := ctx.Deadline(); ok {
		return time.Until(d)
	}
	return maxTimeout
}

// dialing is one attempt to connect; c or err is set when done is closed.
type dialing struct {
	done chan struct{}
	c    *linkConn
	err  error
}

// conn returns the open connection, or waits for one attempt to dial it.
func (l *link) conn(ctx context.Context) (*linkConn, error) {
	l.mu.Lock()
	if l.cur != nil && l.cur.alive() {
		defer l.mu.Unlock()
		return l.cur, nil
	}
	d := l.dialing
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		if !l.n.spawn(func() { l.dial(d) }) {
			l.mu.Unlock()
			return nil, ErrClosed
		}
		l.dialing = d
	}
	l.mu.Unlock()
	select {
	case <-d.done:
		return d.c, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dial is the attempt d. It goes on when its first caller has given up.
func (l *link) dial(d *dialing) {
	ctx, cancel := context.WithTimeout(l.n.ctx, max(4*l.n.cfg.Profile.Attempt, 500*time.Millisecond))
	defer cancel()
	nc, err := l.n.cfg.Dial(ctx, l.peer, ProtocolRPC)
	if err != nil {
		d.err = fmt.Errorf("connect: %w", err)
	} else {
		c := &linkConn{Conn: l.n.hear(l.n.conns.add(nc), l.peer), pending: map[uint64]chan answer{}, done: make(chan struct{})}
		d.c = c
		if !l.n.spawn(c.read) {
			c.fail(ErrClosed)
		}
	}
	l.mu.Lock()
	l.dialing = nil
	if d.c != nil {
		l.cur = d.c
	}
	l.mu.Unlock()
	close(d.done)
}

// close ends the connection; whoever still has the link may open another.
func (l *link) close() {
	l.mu.Lock()
	c := l.cur
	l.mu.Unlock()
	if c != nil {
		c.fail(errors.New("the voter is not known any more"))
	}
}

func (c *linkConn) alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// begin reserves an id.
func (c *linkConn) begin() (uint64, chan answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	if len(c.pending) >= maxPending {
		return 0, nil, fmt.Errorf("%d requests are in flight already", maxPending)
	}
	c.nextID++
	ch := make(chan answer, 1)
	c.pending[c.nextID] = ch
	return c.nextID, ch, nil
}

func (c *linkConn) end(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

func (c *linkConn) send(f []byte, deadline time.Time) error {
	c.write.Lock()
	defer c.write.Unlock()
	if err := c.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err := c.Write(f)
	return err
}

func (c *linkConn) heardSince(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastRead.After(t)
}

// read hands out answers until the connection ends. It is the goroutine of the
// connection, owned by the Node, ended by closing the connection.
func (c *linkConn) read() {
	r := bufio.NewReader(c)
	for {
		f, err := readFrame(r)
		if err != nil {
			c.fail(err)
			return
		}
		a, err := decodeAnswer(f)
		if err != nil {
			c.fail(err)
			return
		}
		c.mu.Lock()
		c.lastRead = time.Now()
		ch := c.pending[f.id]
		delete(c.pending, f.id)
		c.mu.Unlock()
		if ch != nil { // else its caller has given up
			ch <- a
		}
	}
}

// fail ends the connection; the calls in flight learn it.
func (c *linkConn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
		close(c.done)
	}
	c.mu.Unlock()
	_ = c.Close()
}
