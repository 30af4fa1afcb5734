package netif

// This file is the two rings of a guest's interface: each a page with the indices
// that guest and back end share, and entries behind them. A packet that the guest
// sends is one entry, or several that follow each other; one for the guest takes as
// many of its buffers as it needs.

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"understudy/egress"
	"understudy/epoch"
)

const (
	pageSize  = epoch.PageSize
	headerLen = 14 // of an Ethernet frame
	// maxSlots bounds the entries of a packet: what every back end takes is 18, and
	// up to 4 of extra information.
	maxSlots = 22
)

// Where the shared indices are, in bytes.
const (
	atRequests     = 0
	atRequestEvent = 4
	atResponses    = 8
	atNotify       = 12
	ringHeader     = 64
)

// Entries of the transmit ring: a request of reference (4 bytes), offset, flags, id
// and size (2 bytes each); a response of id and status.
const (
	txEntry      = 12
	flagChecksum = 1 << 0 // the checksum is blank
	flagMore     = 1 << 2
	flagExtra    = 1 << 3 // extra information follows, in entries of their own
	extraLast    = 1      // flag in extra information: more of it follows
)

// Entries of the receive ring: a request of id (2 bytes), 2 bytes of nothing,
// reference; a response of id, offset, flags and status, which is the length.
const rxEntry = 8

// Statuses of a response.
const (
	statusOK    = 0
	statusError = -1
	statusNull  = 1 // of an entry that was no request
)

// side is one ring of the two.
type side struct {
	page     []byte
	gfn      epoch.GFN
	entry    int    // size of an entry
	size     uint32 // entries
	taken    uint32 // requests
	answered uint32 // responses
	pushed   uint32 // responses that the guest may see
}

// index is one of the shared indices.
func (s *side) index(at int) *uint32 { return (*uint32)(unsafe.Pointer(&s.page[at])) }

func (s *side) slot(i uint32) []byte {
	at := ringHeader + int(i&(s.size-1))*s.entry
	return s.page[at : at+s.entry]
}

// waits is how many requests there are that were not taken.
func (s *side) waits() uint32 { return atomic.LoadUint32(s.index(atRequests)) - s.taken }

// check refuses indices that make no sense.
func (s *side) check() error {
	if made := atomic.LoadUint32(s.index(atRequests)); made-s.answered > s.size {
		return fmt.Errorf("request %d of a ring of %d, of which %d are answered", made, s.size, s.answered)
	}
	return nil
}

// owed is an answer that the guest has yet to get.
type owed struct {
	id     uint16
	status int16
}

// ring is a guest's two rings.
type ring struct {
	d         *Device
	tx, rx    side
	channel   Channel
	owed      []owed // of the transmit ring, in its order
	slots     [maxSlots]txRequest
	listening sync.WaitGroup
}

// txRequest is a copy of an entry of the transmit ring.
type txRequest struct {
	ref                     uint32
	offset, flags, id, size uint16
}

// newRing maps both rings.
func newRing(d *Device, tx, rx uint32, channel Channel) (*ring, error) {
	r := &ring{d: d, channel: channel}
	for _, s := range []struct {
		side  *side
		ref   uint32
		entry int
	}{{&r.tx, tx, txEntry}, {&r.rx, rx, rxEntry}} {
		page, gfn, err := d.cfg.Memory.Grant(s.ref, true)
		if err != nil {
			return nil, err
		}
		size := uint32(1)
		for int(size)*2*s.entry <= pageSize-ringHeader {
			size *= 2
		}
		*s.side = side{page: page[:pageSize], gfn: gfn, entry: s.entry, size: size}
		// All is answered in order: what has no answer was not done, or may be done
		// once more.
		answered := atomic.LoadUint32(s.side.index(atResponses))
		s.side.taken, s.side.answered, s.side.pushed = answered, answered, answered
	}
	r.owed = make([]owed, 0, r.tx.size)
	return r, nil
}

// arm asks for an event when requests reach at, and reports whether they have
// already.
func (r *ring) arm(s *side, at uint32) bool {
	atomic.StoreUint32(s.index(atRequestEvent), at)
	r.d.touched(s.gfn)
	return int32(atomic.LoadUint32(s.index(atRequests))-at) >= 0
}

// touched notes that a page of the guest was written.
func (d *Device) touched(gfn epoch.GFN) {
	if uint64(gfn) < d.dirty.Pages() {
		d.dirty.Add(gfn)
	}
}

// show lets the guest see the answers, and tells it if it has asked for that.
func (r *ring) show(s *side) error {
	old := s.pushed
	if old == s.answered {
		return nil
	}
	s.pushed = s.answered
	atomic.StoreUint32(s.index(atResponses), s.answered)
	r.d.touched(s.gfn)
	if wanted := atomic.LoadUint32(s.index(atNotify)); s.answered-wanted < s.answered-old {
		if err := r.channel.Notify(); err != nil {
			return fmt.Errorf("notify the guest: %w", err)
		}
	}
	return nil
}

// send moves the next packet of the transmit ring into buf; 0: there is none, or it
// was none that can be sent.
func (r *ring) send(buf []byte) (int, error) {
	if err := r.tx.check(); err != nil {
		return 0, err
	}
	if r.tx.waits() == 0 {
		return 0, nil
	}
	count, extra, err := r.packet()
	if err != nil {
		return 0, err
	}
	n, status := 0, int16(statusError)
	if extra == 0 && count <= maxSlots-4 { // what extra information asks for was not offered
		if n = r.gather(buf, count); n > 0 {
			status = statusOK
		}
	}
	for i := range count {
		r.owed = append(r.owed, owed{r.slots[i].id, status})
		for range extra {
			r.owed = append(r.owed, owed{0, statusNull}) // behind the first
		}
		extra = 0
	}
	if n == 0 {
		r.d.link.bad.Add(1)
	}
	return n, nil
}

// packet takes the entries of one packet: count of requests, and extra entries
// behind the first.
func (r *ring) packet() (count, extra int, err error) {
	left := r.tx.waits()
	take := func() ([]byte, error) {
		if left == 0 || count+extra == maxSlots {
			return nil, fmt.Errorf("a packet of more than %d entries, or one that is not whole", count+extra)
		}
		left--
		r.tx.taken++
		return r.tx.slot(r.tx.taken - 1), nil
	}
	for more := true; more; {
		e, err := take()
		if err != nil {
			return 0, 0, err
		}
		q := txRequest{
			ref: binary.LittleEndian.Uint32(e), offset: binary.LittleEndian.Uint16(e[4:]), flags: binary.LittleEndian.Uint16(e[6:]),
			id: binary.LittleEndian.Uint16(e[8:]), size: binary.LittleEndian.Uint16(e[10:]),
		}
		r.slots[count] = q
		count++
		for again := count == 1 && q.flags&flagExtra != 0; again; extra++ {
			if e, err = take(); err != nil {
				return 0, 0, err
			}
			again = e[1]&extraLast != 0
		}
		more = q.flags&flagMore != 0
	}
	return count, extra, nil
}

// gather copies a packet out of the guest; 0: it is none. The first entry's size is
// the whole packet's.
func (r *ring) gather(buf []byte, count int) int {
	total := int(r.slots[0].size)
	first := total
	for _, q := range r.slots[1:count] {
		first -= int(q.size)
	}
	if total < headerLen || total > egress.MaxFrame || total > len(buf) || first <= 0 {
		return 0
	}
	n := 0
	for i, q := range r.slots[:count] {
		size := int(q.size)
		if i == 0 {
			size = first
		}
		if int(q.offset)+size > pageSize {
			return 0
		}
		page, _, err := r.d.cfg.Memory.Grant(q.ref, false)
		if err != nil {
			return 0
		}
		n += copy(buf[n:total], page[q.offset:int(q.offset)+size])
	}
	if r.slots[0].flags&flagChecksum != 0 && !fillChecksum(buf[:n]) {
		return 0
	}
	return n
}

// settle answers what was sent.
func (r *ring) settle() error {
	if len(r.owed) == 0 {
		return nil
	}
	for _, o := range r.owed {
		e := r.tx.slot(r.tx.answered)
		binary.LittleEndian.PutUint16(e, o.id)
		binary.LittleEndian.PutUint16(e[2:], uint16(o.status))
		r.tx.answered++
	}
	r.owed = r.owed[:0]
	r.d.touched(r.tx.gfn)
	return r.show(&r.tx)
}

// receive puts a frame into the guest's buffers; false: it has too few. show shows it.
func (r *ring) receive(frame []byte) (bool, error) {
	if err := r.rx.check(); err != nil {
		return false, err
	}
	need := uint32(len(frame)+pageSize-1) / pageSize
	if r.rx.waits() < need && !r.arm(&r.rx, r.rx.taken+need) {
		return false, nil
	}
	broken := false
	for range need {
		e := r.rx.slot(r.rx.taken)
		id, ref := binary.LittleEndian.Uint16(e), binary.LittleEndian.Uint32(e[4:])
		r.rx.taken++
		n, status, flags := min(len(frame), pageSize), int16(statusError), uint16(0)
		if page, gfn, err := r.d.cfg.Memory.Grant(ref, true); err == nil && !broken {
			copy(page, frame[:n])
			r.d.touched(gfn)
			status = int16(n)
		} else {
			broken = true
		}
		if frame = frame[n:]; len(frame) > 0 {
			flags = flagMore
		}
		binary.LittleEndian.PutUint16(e, id)
		binary.LittleEndian.PutUint16(e[2:], 0) // offset
		binary.LittleEndian.PutUint16(e[4:], flags)
		binary.LittleEndian.PutUint16(e[6:], uint16(status))
		r.rx.answered++
	}
	r.d.touched(r.rx.gfn)
	return true, nil
}
