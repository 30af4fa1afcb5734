// Package blkif is the front end of a disk for Xen's guests: the back end of
// Xen's split block driver, in user space. It serves one virtual block device from
// the guest's own ring and memory.
//
//	xenstore ── what the guest's driver wrote (xenbus.go) ─> Plug ─> Connect … Unplug
//	guest ── event channel ─> ring (ring.go): wire.go reads the request ─> work.go carries it out
//	    Backend.Accept (taken: complete at once) or Backend.Do ─> complete: response, event
//
// A guest lends its pages by grant references. They are resolved to frames by the
// guest's own grant table, and to memory by a mapping of the whole guest (Memory):
// no hypercall per request, and each request's pages are known exactly, as with
// disk/vhost. What of the guest is written is reported to the backend, for no
// log-dirty bitmap sees it: Landed for a read's bytes, Touched for the ring.
//
// Requests are carried out beside each other, and answered in the order in which the
// guest has made them: so the ring alone says which are in flight, and a process
// that comes after one which has died goes on with the ring as it is. What that
// costs is that a slow request holds the answers of those behind it up.
//
// While the guest stands still (Stop to Start) nothing of it is written: what
// finishes meanwhile completes then. Requests in flight need not travel with a
// checkpoint: a guest that goes on elsewhere finds itself in a new domain, and its
// driver begins every request anew that it has seen no response of, on a new ring.
//
// The guest may change everything while we look: each field is read once, and
// nothing read is believed. A request that makes no sense is answered with an
// error; a ring that makes none is given up.
//
// Sources: Xen's public/io/blkif.h, public/io/ring.h, public/io/xenbus.h.
package blkif

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"understudy/disk"
	"understudy/epoch"
)

const (
	pageSize = epoch.PageSize
	// MaxRingOrder is the largest ring: 2^4 pages.
	MaxRingOrder = 4
	// MaxSegments bounds the pages of one request in indirect tables: 1 MiB.
	MaxSegments = 256
)

// Memory is the guest's memory as its grants give it to us. It is called under
// the ring's lock.
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

// Config says what to serve.
type Config struct {
	Backend disk.Backend
	Memory  Memory
	// Bind binds to the event channel that the guest's driver has made; for Plug.
	Bind func(port uint32) (Channel, error)
	// Workers bounds how many requests are in Backend.Do at a time; 0 means 32.
	Workers int
	// Log is told of what ends a ring.
	Log *slog.Logger
}

// Device is the disk of one guest. It implements disk.Frontend. Its methods may be
// called from several goroutines.
type Device struct {
	cfg     Config
	backend disk.Backend
	info    disk.Info
	log     *slog.Logger

	mu      sync.Mutex // over ring, and all of a ring's own
	ring    *ring
	stopped bool
	closed  bool
}

var _ disk.Frontend = (*Device)(nil)

// New returns a device without a ring, stopped: Start lets it serve.
func New(cfg Config) (*Device, error) {
	if cfg.Workers == 0 {
		cfg.Workers = 32
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	info := cfg.Backend.Info()
	if info.MaxSectors < maxDirect*pageSectors {
		return nil, fmt.Errorf("serve a disk to a Xen guest: it takes %d sectors at a time, a guest asks for up to %d", info.MaxSectors, maxDirect*pageSectors)
	}
	return &Device{cfg: cfg, backend: cfg.Backend, info: info, log: cfg.Log, stopped: true}, nil
}

// Parameters are what the guest's driver says of its ring.
type Parameters struct {
	Protocol Protocol
	Refs     []uint32 // grant references of the ring's pages: 1, 2, 4 … 2^MaxRingOrder
}

// Connect begins to serve a ring. The Device owns the channel from here on. The
// ring that there was is given up first.
func (d *Device) Connect(p Parameters, channel Channel) error {
	d.Disconnect()
	d.mu.Lock()
	defer d.mu.Unlock()
	r, err := newRing(d, p, channel)
	if err == nil && d.closed {
		err = errors.New("the disk is closed")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("connect a Xen guest's ring: %w", err), channel.Close())
	}
	d.ring = r
	r.begin()
	return nil
}

// Disconnect gives up the ring, if there is one. It returns when nothing of the
// guest is touched any more; requests in Do see their context end.
func (d *Device) Disconnect() {
	d.mu.Lock()
	r := d.ring
	d.ring = nil
	if r != nil {
		r.fail(errOver)
	}
	d.mu.Unlock()
	if r != nil {
		r.end()
	}
}

// Close disconnects for good.
func (d *Device) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.Disconnect()
	return nil
}

// Stop returns when nothing of the guest is written any more, until Start. It
// waits for no disk.
func (d *Device) Stop() {
	d.mu.Lock()
	d.stopped = true
	d.mu.Unlock()
}

// Start lets the device serve, and completes what has finished meanwhile.
func (d *Device) Start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stopped = false
	if d.ring != nil {
		d.ring.resume()
	}
}

// Stopped implements disk.Frontend.
func (d *Device) Stopped() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stopped || d.ring == nil || d.ring.over != nil
}

// AppendInFlight implements disk.Frontend: the guest's driver knows them.
func (d *Device) AppendInFlight(dst []byte) []byte { return dst }

// Resubmit implements disk.Frontend. It refuses a state of another front end.
func (d *Device) Resubmit(state []byte) error {
	if len(state) != 0 {
		return fmt.Errorf("submit requests anew: %d bytes of state are not of a Xen guest's disk", len(state))
	}
	return nil
}

// errOver ends a ring without a complaint.
var errOver = errors.New("the ring is over")

// report tells why a ring has ended.
func (d *Device) report(err error) {
	if !errors.Is(err, errOver) && !errors.Is(err, context.Canceled) {
		d.log.Error("a Xen guest's disk is given up: its ring makes no sense, or cannot be reached", "error", err)
	}
}
