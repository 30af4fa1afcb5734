package egress

import (
	"net"
	"sync"
)

// Pipe is one end of a link within a process, for a simulated guest or a test.
type Pipe struct {
	in, out *queue
}

// NewPipe returns the two ends of a link that holds up to depth frames in each
// direction; more are not taken. A slot keeps the memory of the largest frame
// it has held.
func NewPipe(depth int) (a, b *Pipe) {
	ab, ba := newQueue(depth), newQueue(depth)
	return &Pipe{in: ba, out: ab}, &Pipe{in: ab, out: ba}
}

// Wait waits for a frame; one goroutine at a time.
func (p *Pipe) Wait() error { return p.in.wait() }

// ReadFrame moves the next frame into buf.
func (p *Pipe) ReadFrame(buf []byte) (int, error) { return p.in.take(buf) }

// WriteFrame passes a frame to the other end.
func (p *Pipe) WriteFrame(frame []byte) error {
	if err := checkSize(frame); err != nil {
		return err
	}
	return p.out.put(frame)
}

// Close ends this end. The other one's frames are not taken any more; what is
// on its way to it can still be read.
func (p *Pipe) Close() error {
	p.in.close()
	return nil
}

// queue is one direction of a Pipe; its reader closes it.
type queue struct {
	mu      sync.Mutex
	slots   [][]byte
	head, n int
	closed  bool
	wake    chan struct{}
}

func newQueue(depth int) *queue {
	return &queue{slots: make([][]byte, max(depth, 1)), wake: make(chan struct{}, 1)}
}

func (q *queue) wait() error {
	for {
		q.mu.Lock()
		n, closed := q.n, q.closed
		q.mu.Unlock()
		if closed {
			return net.ErrClosed
		}
		if n > 0 {
			return nil
		}
		<-q.wake
	}
}

func (q *queue) take(buf []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, net.ErrClosed
	}
	if q.n == 0 {
		return 0, ErrEmpty
	}
	n := copy(buf, q.slots[q.head])
	q.head = (q.head + 1) % len(q.slots)
	q.n--
	return n, nil
}

func (q *queue) put(frame []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.n == len(q.slots) {
		return ErrNotTaken
	}
	at := (q.head + q.n) % len(q.slots)
	q.slots[at] = append(q.slots[at][:0], frame...)
	q.n++
	signal(q.wake)
	return nil
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	signal(q.wake)
}
