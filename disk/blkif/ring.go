package blkif

// This file is the ring: the indices that guest and back end share, and the
// entries behind them. A ring of several pages is one piece to the guest, and
// several to us: an entry may lie in two.

import (
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"understudy/epoch"
)

// Where the shared indices are, in bytes.
const (
	atRequests     = 0 // made by the guest
	atRequestEvent = 4 // tell us when requests reach this
	atResponses    = 8
	atNotify       = 12 // tell the guest when responses reach this
	ringHeader     = 64
)

// ring is a guest's ring and who serves it. All of it is under the Device's lock.
type ring struct {
	d       *Device
	layout  layout
	pages   [][]byte
	gfns    []epoch.GFN
	size    uint32 // entries
	channel Channel

	taken    uint32  // requests
	answered uint32  // responses
	pushed   uint32  // responses that the guest may see
	order    []*work // by request: those taken and not answered
	over     error   // why the ring has ended

	change  sync.Cond // stopped, over or doing has changed
	doing   int       // requests in Backend.Do
	pending []*work   // finished while stopped
	free    []*work
	entry   [maxEntry]byte
	life    life
}

// newRing maps the ring's pages.
func newRing(d *Device, p Parameters, channel Channel) (*ring, error) {
	n := len(p.Refs)
	if n == 0 || n > 1<<MaxRingOrder || n&(n-1) != 0 {
		return nil, fmt.Errorf("a ring of %d pages, want a power of two up to %d", n, 1<<MaxRingOrder)
	}
	if p.Protocol > X86_32 {
		return nil, fmt.Errorf("protocol %d is not known", p.Protocol)
	}
	r := &ring{d: d, layout: p.Protocol.layout(), channel: channel, life: newLife()}
	r.change.L = &d.mu
	for _, ref := range p.Refs {
		page, gfn, err := d.cfg.Memory.Grant(ref, true)
		if err == nil && len(page) != pageSize {
			err = fmt.Errorf("a page of %d bytes", len(page))
		}
		if err == nil {
			err = d.backend.Fill(gfn, 1)
		}
		if err != nil {
			return nil, fmt.Errorf("the ring's page with the reference %d: %w", ref, err)
		}
		r.pages, r.gfns = append(r.pages, page), append(r.gfns, gfn)
	}
	r.size = r.layout.entries(n * pageSize)
	r.order = make([]*work, r.size)
	// A driver that meets a new back end begins with an empty ring. In a ring that
	// a former process of ours has served, requests are answered in their order:
	// what is not answered has yet to be done, or may be done once more.
	r.taken = atomic.LoadUint32(r.index(atResponses))
	r.answered, r.pushed = r.taken, r.taken
	return r, nil
}

// index is one of the shared indices.
func (r *ring) index(at int) *uint32 { return (*uint32)(unsafe.Pointer(&r.pages[0][at])) }

// next copies the next request out of the ring; false: there is none.
func (r *ring) next() (bool, error) {
	made := atomic.LoadUint32(r.index(atRequests))
	if made-r.answered > r.size {
		return false, fmt.Errorf("request %d of a ring of %d, of which %d are answered", made, r.size, r.answered)
	}
	if made == r.taken {
		return false, nil
	}
	at := ringHeader + int(r.taken&(r.size-1))*r.layout.entry
	for n := 0; n < r.layout.entry; {
		n += copy(r.entry[n:r.layout.entry], r.pages[(at+n)/pageSize][(at+n)%pageSize:])
	}
	r.taken++
	return true, nil
}

// arm asks for an event at the next request, and reports whether there is one
// already.
func (r *ring) arm() bool {
	atomic.StoreUint32(r.index(atRequestEvent), r.taken+1)
	r.d.backend.Touched(r.gfns[0], ringHeader)
	return atomic.LoadUint32(r.index(atRequests)) != r.taken
}

// settle answers the requests that are finished, as far as none before them is
// not. push shows it.
func (r *ring) settle() {
	for r.answered != r.taken {
		q := r.order[r.answered&(r.size-1)]
		if !q.finished {
			return
		}
		r.order[r.answered&(r.size-1)] = nil
		r.respond(q)
		r.release(q)
	}
}

// respond puts a response behind the others.
func (r *ring) respond(q *work) {
	var b [responseLen]byte
	putResponse(b[:], q.ask.id, q.ask.operation, q.status)
	at := ringHeader + int(r.answered&(r.size-1))*r.layout.entry
	for n := 0; n < len(b); {
		page := (at + n) / pageSize
		m := copy(r.pages[page][(at+n)%pageSize:], b[n:])
		r.d.backend.Touched(r.gfns[page], (at+n)%pageSize+m)
		n += m
	}
	r.answered++
}

// push shows the responses to the guest, and tells it if it has asked for that.
func (r *ring) push() {
	if r.pushed == r.answered || r.over != nil {
		return
	}
	old := r.pushed
	r.pushed = r.answered
	atomic.StoreUint32(r.index(atResponses), r.answered)
	r.d.backend.Touched(r.gfns[0], ringHeader)
	wanted := atomic.LoadUint32(r.index(atNotify))
	if r.answered-wanted < r.answered-old {
		if err := r.channel.Notify(); err != nil {
			r.fail(fmt.Errorf("notify the guest: %w", err))
		}
	}
}

// fail ends the ring with its first error. The caller holds the Device's lock.
func (r *ring) fail(err error) {
	if r.over != nil {
		return
	}
	r.over = err
	r.life.cancel()
	if closed := r.channel.Close(); closed != nil {
		r.d.log.Warn("the event channel of a Xen guest's disk could not be closed", "error", closed)
	}
	r.d.report(err)
	r.change.Broadcast()
}
