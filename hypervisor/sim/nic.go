package sim

import (
	"slices"
	"sync"
	"sync/atomic"
)

// NIC is a network card as the guest (or a Client) sees it.
type NIC interface {
	// Send gives away one Ethernet frame. It is called within a step of the
	// guest, so it must not wait: a card with no room drops the frame. It does
	// not keep the slice.
	Send(frame []byte)
	// Receive is where frames come in. What is received belongs to the
	// receiver. A closed channel means that the card is gone.
	Receive() <-chan []byte
}

// Network joins ports as a learning bridge does, in memory and without a
// goroutine: a frame is in the receivers' queues when Send returns.
type Network struct {
	mu    sync.Mutex
	ports []*Port
	where map[[6]byte]*Port
}

// portQueue is how many frames wait at a port before further ones are dropped.
const portQueue = 512

// NewNetwork returns a network with nothing plugged in.
func NewNetwork() *Network { return &Network{where: make(map[[6]byte]*Port)} }

// Plug adds a port.
func (n *Network) Plug() *Port {
	p := &Port{net: n, queue: make(chan []byte, portQueue)}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports = append(n.ports, p)
	return p
}

// Cable joins two ports, for instance a guest's card and the gate that guards
// its way out.
func Cable() (a, b *Port) {
	n := NewNetwork()
	return n.Plug(), n.Plug()
}

// Port is one end of a Network.
type Port struct {
	net   *Network
	queue chan []byte

	pulled  bool // guarded by net.mu
	closed  bool // guarded by net.mu
	dropped atomic.Uint64
}

var _ NIC = (*Port)(nil)

// Send passes a frame to the port that its destination was last seen at, or to
// all others.
func (p *Port) Send(frame []byte) {
	if len(frame) < 14 || len(frame) > MaxFrame {
		p.dropped.Add(1)
		return
	}
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	if p.pulled || p.closed {
		p.dropped.Add(1)
		return
	}
	dst, src := [6]byte(frame), [6]byte(frame[6:])
	if src[0]&1 == 0 {
		p.net.where[src] = p
	}
	if to := p.net.where[dst]; to != nil && dst[0]&1 == 0 {
		if to != p {
			to.deliver(frame)
		}
		return
	}
	for _, to := range p.net.ports {
		if to != p {
			to.deliver(frame)
		}
	}
}

// deliver queues a copy of the frame. The network's lock is held.
func (p *Port) deliver(frame []byte) {
	if !p.pulled && !p.closed {
		select {
		case p.queue <- slices.Clone(frame):
			return
		default:
		}
	}
	p.dropped.Add(1)
}

// Receive is where frames for this port come in.
func (p *Port) Receive() <-chan []byte { return p.queue }

// Pull takes the cable out (true) or puts it back (false). Frames from and to
// a pulled port are lost.
func (p *Port) Pull(out bool) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	p.pulled = out
}

// Dropped is how many frames from and to this port were lost for want of room,
// of a cable, or of a decent length.
func (p *Port) Dropped() uint64 { return p.dropped.Load() }

// Close removes the port from its network. Its Receive channel is closed after
// the frames that wait in it. A second call does nothing.
func (p *Port) Close() error {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	p.net.ports = slices.DeleteFunc(p.net.ports, func(o *Port) bool { return o == p })
	for mac, o := range p.net.where {
		if o == p {
			delete(p.net.where, mac)
		}
	}
	close(p.queue)
	return nil
}
