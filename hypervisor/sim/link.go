package sim

import (
	"errors"
	"slices"
	"sync/atomic"
)

// Frames is one end of a link as the way out of a guest has it (package
// egress): nothing waits but Wait.
type Frames interface {
	// Wait returns nil when ReadFrame may have a frame, and an error once the
	// link is closed.
	Wait() error
	// ReadFrame moves the next frame into buf and returns its length.
	ReadFrame(buf []byte) (int, error)
	// WriteFrame passes one frame on.
	WriteFrame(frame []byte) error
	// Close ends the link and wakes Wait.
	Close() error
}

// Link makes a guest's network card of a Frames. It has one goroutine, which
// moves incoming frames; Close ends it.
type Link struct {
	frames Frames
	empty  error
	queue  chan []byte
	lost   atomic.Uint64
	quit   chan struct{}
	done   chan struct{}
}

var _ NIC = (*Link)(nil)

// linkBuffer is room for the longest frame that a link may carry, in bytes:
// 65535 behind a header with a VLAN tag, and one to see that it is longer.
const linkBuffer = 65535 + 18 + 1

// NewLink starts moving frames. empty is the error by which ReadFrame says that
// no frame is waiting (egress.ErrEmpty). The Link owns frames from now on.
func NewLink(frames Frames, empty error) *Link {
	l := &Link{
		frames: frames,
		empty:  empty,
		queue:  make(chan []byte, portQueue),
		quit:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	go l.move()
	return l
}

// Send passes a frame on. One that the other side does not take is lost.
func (l *Link) Send(frame []byte) {
	if l.frames.WriteFrame(frame) != nil {
		l.lost.Add(1)
	}
}

// Receive is where frames come in; it is closed when the link is of no more use.
func (l *Link) Receive() <-chan []byte { return l.queue }

// Lost is how many frames were lost on the way out or for want of room.
func (l *Link) Lost() uint64 { return l.lost.Load() }

// move queues what comes in, until the link ends.
func (l *Link) move() {
	defer close(l.done)
	defer close(l.queue)
	buf := make([]byte, linkBuffer)
	for l.frames.Wait() == nil {
		for {
			n, err := l.frames.ReadFrame(buf)
			if errors.Is(err, l.empty) {
				break
			}
			if err != nil {
				return
			}
			select {
			case l.queue <- slices.Clone(buf[:n]):
			default:
				l.lost.Add(1)
			}
		}
		select {
		case <-l.quit:
			return
		default:
		}
	}
}

// Close closes the Frames and returns after the goroutine has ended.
func (l *Link) Close() error {
	select {
	case <-l.quit:
		return nil
	default:
		close(l.quit)
	}
	err := l.frames.Close()
	<-l.done
	return err
}
