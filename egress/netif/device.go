package netif

// This file is a domain's network interface: what its driver and we tell each other
// in xenstore (package xenbus calls Offer, Plug and Unplug), and when nothing of the
// guest may be touched.

import (
	"errors"
	"fmt"
	"strconv"

	"understudy/egress"
	"understudy/epoch"
)

// Device is a domain's network interface. All of it is under the Link's lock.
type Device struct {
	link    *Link
	cfg     Config
	stopped bool
	awaited bool  // the guest's driver has not been there yet
	ring    *ring // nil: it is not there
	dirty   *epoch.PageSet
}

// Offer is what is written before the guest's driver looks.
func (d *Device) Offer() map[string]string {
	return map[string]string{
		"feature-rx-copy": "1", "feature-rx-flip": "0", "feature-sg": "1",
		"feature-gso-tcpv4": "0", "feature-gso-tcpv6": "0", "feature-ipv6-csum-offload": "0",
		"feature-multicast-control": "0", "feature-split-event-channels": "0", "feature-ctrl-ring": "0",
		"multi-queue-max-queues": "1",
	}
}

// Plug connects to the rings that the guest's driver has written of: read returns
// the value of one of its keys, "" for one that is not there.
func (d *Device) Plug(read func(key string) string) (map[string]string, error) {
	var numbers [3]uint32
	for i, key := range []string{"tx-ring-ref", "rx-ring-ref", "event-channel"} {
		n, err := strconv.ParseUint(read(key), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("the guest's %s is %.20q, which is no number", key, read(key))
		}
		numbers[i] = uint32(n)
	}
	if numbers[2] == 0 {
		return nil, errors.New("the guest's event-channel is 0, which is none")
	}
	if read("request-rx-copy") != "1" {
		return nil, errors.New("the guest's network driver wants to be given whole pages (request-rx-copy is not 1), which is not supported")
	}
	channel, err := d.cfg.Bind(numbers[2])
	if err != nil {
		return nil, err
	}
	if err := d.connect(numbers[0], numbers[1], channel); err != nil {
		return nil, errors.Join(fmt.Errorf("connect a Xen guest's network rings: %w", err), channel.Close())
	}
	return nil, nil
}

// connect begins to serve rings.
func (d *Device) connect(tx, rx uint32, channel Channel) error {
	d.Unplug()
	l := d.link
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := newRing(d, tx, rx, channel)
	if err != nil {
		return err
	}
	// A former process may have died between an answer and its event.
	if err := channel.Notify(); err != nil {
		return err
	}
	d.ring, d.awaited = r, false
	d.deliver()
	r.listening.Go(func() { d.listen(r) })
	signal(l.wake)
	return nil
}

// listen waits for the guest's events until the ring is given up.
func (d *Device) listen(r *ring) {
	l := d.link
	for {
		err := r.channel.Wait()
		l.mu.Lock()
		if d.ring != r {
			l.mu.Unlock()
			return
		}
		if err != nil {
			d.fail(fmt.Errorf("wait for the guest's event: %w", err))
			l.mu.Unlock()
			return
		}
		d.deliver()
		l.mu.Unlock()
		signal(l.wake)
	}
}

// Unplug gives up the rings, if there are some. It returns when nothing of the guest
// is touched any more.
func (d *Device) Unplug() {
	d.link.mu.Lock()
	r := d.ring
	if r != nil {
		d.drop()
	}
	d.link.mu.Unlock()
	if r != nil {
		r.listening.Wait()
	}
}

// drop gives up the rings, under the lock.
func (d *Device) drop() {
	if err := d.ring.channel.Close(); err != nil {
		d.cfg.Log.Warn("the event channel of a Xen guest's network could not be closed", "error", err)
	}
	d.ring = nil
}

// fail gives up rings that make no sense, under the lock.
func (d *Device) fail(err error) {
	d.cfg.Log.Error("a Xen guest's network is given up: its ring makes no sense, or cannot be reached", "error", err)
	d.drop()
}

// Stop returns when nothing of the guest is written any more, until Start.
func (d *Device) Stop() {
	d.link.mu.Lock()
	defer d.link.mu.Unlock()
	d.stopped = true
}

// Start lets the device serve: what was read meanwhile is answered, and what has
// waited is delivered.
func (d *Device) Start() {
	d.link.mu.Lock()
	defer d.link.mu.Unlock()
	d.stopped = false
	if d.ring != nil {
		d.answer()
	}
	d.deliver()
	signal(d.link.wake)
}

// CollectDirty adds the pages that were written since it was called last.
func (d *Device) CollectDirty(set *epoch.PageSet) error {
	d.link.mu.Lock()
	defer d.link.mu.Unlock()
	if set.Pages() != d.dirty.Pages() {
		return fmt.Errorf("collect the pages that a guest's network has written: a set over %d pages, the image has %d", set.Pages(), d.dirty.Pages())
	}
	set.Union(d.dirty)
	d.dirty.Clear()
	return nil
}

// ready reports whether read may have a frame. If there is none, the guest is asked
// to tell of the next.
func (d *Device) ready() bool {
	r := d.ring
	if r == nil {
		return false
	}
	return r.tx.waits() > 0 || !d.stopped && r.arm(&r.tx, r.tx.taken+1)
}

// read moves the next frame that the guest has sent into buf.
func (d *Device) read(buf []byte) (int, error) {
	for d.ring != nil {
		n, err := d.ring.send(buf)
		if err != nil {
			d.fail(err)
			break
		}
		if !d.stopped {
			d.answer()
		}
		if n != 0 {
			return n, nil
		}
		if d.ring == nil || d.ring.tx.waits() == 0 {
			break
		}
	}
	return 0, egress.ErrEmpty
}

// answer gives the guest back what was read.
func (d *Device) answer() {
	if err := d.ring.settle(); err != nil {
		d.fail(err)
	}
}

// deliver gives the guest what waits for it, as far as it has buffers.
func (d *Device) deliver() {
	l := d.link
	if d.ring == nil || d.stopped || l.device != d {
		return
	}
	given := false
	for {
		if l.n == 0 {
			n, err := l.out.ReadFrame(l.next)
			if err != nil {
				break // there is none
			}
			l.n = n
		}
		there, err := d.ring.receive(l.next[:l.n])
		if err != nil {
			d.fail(err)
			return
		}
		if !there {
			break
		}
		l.n, given = 0, true
	}
	if given {
		if err := d.ring.show(&d.ring.rx); err != nil {
			d.fail(err)
		}
	}
}
