// Package netif is a Xen guest's end of its way to the network: the back end of
// Xen's split network driver, in user space, as an egress.Frames. Behind it is the
// very gate that is behind a QEMU guest's socket.
//
//	xenstore ── what the guest's driver wrote (device.go) ─> Plug ─> ring
//	guest ── event channel ─> transmit ring (ring.go) ─ ReadFrame ─> egress.Gate
//	guest <─ event channel ── receive ring  (ring.go) <─ WriteFrame ─ egress.Gate
//	                               └ waiting: what came while the guest stood still
//
// A Link is the gate's, and lives as long as the daemon. A Device is a domain's
// network interface; each new domain of the guest has a new one, and the last is
// the Link's. What the guest lends is resolved by its own grant table and a mapping
// of all its memory (Memory), as with disk/blkif: no hypercall but the events.
//
// While the guest stands still (Stop to Start) nothing of it is written: frames that
// it has sent are read, and answered later; frames for it wait. What is written
// otherwise is told by CollectDirty, for no log-dirty bitmap sees it. So a
// checkpoint's memory is exact, which it would not be with the kernel's back end: it
// writes into a suspended guest's buffers.
//
// # Why not the kernel's back end, and a queueing discipline
//
// Output commit for a Xen guest is commonly sch_plug on the interface that the
// kernel's back end makes (Remus). That interface takes part in the first domain's
// own network: the host answers a guest's ARP and packets to itself before any
// queue sees them. It has to be made, brought up and connected at a takeover, and it
// hands over checksums and segments that somebody still has to compute. Here there
// is no interface but the gate's own TAP. What it costs: 8 µs for a frame of 1514
// bytes, 2 for one of 60 (BenchmarkFrames, half of a frame each way); on a Xen host in
// QEMU's emulation a line of TCP is there and back within 20 ms, and there is nothing
// to make at a takeover but some nodes in xenstore. The two were not measured beside
// each other.
//
// Offloads: none are offered but checksums of IPv4, which Linux' driver leaves out
// whatever it is offered; they are made here (checksum.go).
//
// Sources: Xen's public/io/netif.h, public/io/ring.h.
package netif

import (
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"understudy/egress"
	"understudy/epoch"
)

// Memory is the guest's memory as its grants give it to us. It is called under
// the Link's lock.
type Memory interface {
	// Grant returns the page that a reference lends to this domain, and the page's
	// number in the image. write: the guest must have lent it for writing.
	Grant(ref uint32, write bool) (page []byte, gfn epoch.GFN, err error)
}

// Channel is the event channel that the guest and we tell each other by.
type Channel interface {
	// Wait returns after the guest has told us something since Wait returned last,
	// or with an error once Close was called.
	Wait() error
	// Notify tells the guest.
	Notify() error
	// Close ends the channel, and a Wait. It is called once.
	Close() error
}

// depth is how many frames wait for a guest that stands still, or has no buffers:
// as many as the kernel's own interfaces queue.
const depth = 1024

// Link is a guest's link as the gate sees it. It implements egress.Frames.
type Link struct {
	wake chan struct{}
	done chan struct{}
	bad  atomic.Uint64

	mu      sync.Mutex // over all of the devices, too
	device  *Device    // the domain's that runs here, or is about to
	closed  bool
	waiting *egress.Pipe // into it …
	out     *egress.Pipe // … and out of it
	next    []byte       // the frame that is next for the guest, in memory of its own
	n       int          // its length; 0: there is none
}

var _ egress.Frames = (*Link)(nil)

// New returns a link without a device: nothing comes of it, and it takes nothing.
func New() *Link {
	l := &Link{wake: make(chan struct{}, 1), done: make(chan struct{}), next: make([]byte, egress.MaxFrame+1)}
	l.waiting, l.out = egress.NewPipe(depth)
	return l
}

// Config says what a domain's interface stands on.
type Config struct {
	Memory Memory
	// Bind binds to the event channel that the guest's driver has made.
	Bind func(port uint32) (Channel, error)
	// Pages is the size of the guest's image.
	Pages uint64
	// Log is told of what ends a ring.
	Log *slog.Logger
}

// Device makes the interface of a domain, stopped, which is the link's from here on.
func (l *Link) Device(c Config) *Device {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	d := &Device{link: l, cfg: c, stopped: true, awaited: true, dirty: epoch.NewPageSet(c.Pages)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.device = d
	l.forget()
	return d
}

// forget throws away what waits for a guest: it is of another life.
func (l *Link) forget() {
	for l.n = 0; ; {
		if _, err := l.out.ReadFrame(l.next); err != nil {
			return
		}
	}
}

// signal leaves a token in a channel that has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Wait implements egress.Frames.
func (l *Link) Wait() error {
	for {
		l.mu.Lock()
		closed, ready := l.closed, l.device != nil && l.device.ready()
		l.mu.Unlock()
		switch {
		case closed:
			return net.ErrClosed
		case ready:
			return nil
		}
		select {
		case <-l.wake:
		case <-l.done:
		}
	}
}

// ReadFrame implements egress.Frames.
func (l *Link) ReadFrame(buf []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, net.ErrClosed
	}
	if l.device == nil || l.device.ring == nil {
		return 0, egress.ErrEmpty
	}
	return l.device.read(buf)
}

// WriteFrame implements egress.Frames. A frame that the guest has no buffer for, or
// must not be given now, waits, and so it does for a driver that has yet to come: a
// guest that goes on elsewhere gets what was sent to it meanwhile, and nobody's
// retransmission waits for longer. A full queue, or no guest, does not take it.
func (l *Link) WriteFrame(frame []byte) error {
	if len(frame) < headerLen || len(frame) > egress.MaxFrame {
		return egress.ErrFrameSize
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return net.ErrClosed
	case l.device == nil || l.device.ring == nil && !l.device.awaited:
		return egress.ErrNotTaken
	}
	if err := l.waiting.WriteFrame(frame); err != nil {
		return err
	}
	l.device.deliver()
	return nil
}

// Malformed counts what the guest has sent that were no frames.
func (l *Link) Malformed() uint64 { return l.bad.Load() }

// Close ends the link and wakes Wait. The devices are unplugged before.
func (l *Link) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed, l.device = true, nil
	close(l.done)
	if err := l.waiting.Close(); err != nil {
		return fmt.Errorf("close a Xen guest's link: %w", err)
	}
	return l.out.Close()
}
