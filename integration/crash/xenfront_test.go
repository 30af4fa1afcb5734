package crash

// This file is the front end of a disk as a Xen guest has it: the real disk/blkif, and
// the guest's block driver with a ring in the guest's own memory.
//
//	guest.do ─ request ─> ring (a page of the image) ─> blkif.Device ─> the world's disk.Set
//	settle  <─ response ─┘
//
// Its requests are answered in their order, and read into the guest when the device
// comes to it: the guest looks (settle) before it touches anything. A host that is
// killed answers nothing more. What comes then is told apart: the next daemon of the
// same host goes on with the ring as it is, the driver of a guest that was taken over
// begins what was open anew, on a new ring.

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"understudy/disk"
	"understudy/disk/blkif"
	"understudy/epoch"
	"understudy/hypervisor/xen/xentest"
)

// A ring of one page, in the layout of 64-bit x86 (Xen's public/io/blkif.h).
const (
	ringMade     = 0 // requests
	ringTold     = 4 // the back end wants to be told when requests reach this
	ringAnswered = 8
	ringNotify   = 12
	ringHead     = 64
	ringEntry    = 112
	ringEntries  = 32

	blkRead    = 0
	blkWrite   = 1
	blkFlush   = 3
	blkDiscard = 5

	refOfPage = 100 // the reference that lends page 0
)

// ringPage is the page of the image that has a disk's ring.
func ringPage(d int) epoch.GFN { return epoch.GFN(dataPages + d) }

// xenFront is a host's end of the disk. It implements frontend.
type xenFront struct {
	*blkif.Device
	h     *host
	disk  int
	event *xentest.Event
}

func newXenFront(h *host, d int) (*xenFront, error) {
	f := &xenFront{h: h, disk: d}
	var err error
	f.Device, err = blkif.New(blkif.Config{Backend: h.set.Disk(epoch.DiskID(d)), Memory: f})
	return f, err
}

// Grant implements blkif.Memory: the guest lends all that it has.
func (f *xenFront) Grant(ref uint32, _ bool) ([]byte, epoch.GFN, error) {
	p := epoch.GFN(ref - refOfPage)
	if p >= pages {
		return nil, 0, fmt.Errorf("no grant %d", ref)
	}
	return f.h.guest.page(p)[:epoch.PageSize:epoch.PageSize], p, nil
}

// connect gives the back end the guest's ring, which a former one may have served.
func (f *xenFront) connect() error {
	f.event = xentest.NewEvent()
	return f.Connect(blkif.Parameters{Protocol: blkif.X86_64, Refs: []uint32{uint32(ringPage(f.disk)) + refOfPage}}, f.event)
}

// end is the death of the host's daemon: nothing is answered any more, whatever becomes
// of it.
func (f *xenFront) end() error {
	f.Stop()
	return f.Close()
}

func (f *xenFront) resubmitted() []byte { return nil }
func (f *xenFront) forget()             {}

// driver is the guest's end of one ring.
type driver struct {
	g    *guest
	disk int
	made uint32
	seen uint32
	open map[uint64]*reading // by request; nil: somebody waits for it
}

func newDriver(g *guest, d int) *driver {
	clear(g.page(ringPage(d)))
	v := &driver{g: g, disk: d, open: map[uint64]*reading{}}
	atomic.StoreUint32(v.index(ringTold), 1)
	atomic.StoreUint32(v.index(ringNotify), 1)
	g.wrote(ringPage(d))
	return v
}

func (v *driver) index(at int) *uint32 {
	return (*uint32)(unsafe.Pointer(&v.g.page(ringPage(v.disk))[at]))
}

// put makes a request and shows it to the back end. r: who is told of its outcome.
func (v *driver) put(q *disk.Request, r *reading) (id uint64) {
	id = uint64(v.made) + 1
	e := make([]byte, ringEntry)
	binary.LittleEndian.PutUint64(e[8:], id)
	binary.LittleEndian.PutUint64(e[16:], q.Sector)
	switch q.Op {
	case disk.OpRead:
		e[0] = blkRead
	case disk.OpWrite:
		e[0] = blkWrite
	case disk.OpFlush:
		e[0] = blkFlush
	default:
		e[0] = blkDiscard
		binary.LittleEndian.PutUint64(e[24:], uint64(q.Sectors))
	}
	if e[0] < blkFlush {
		for left, p := q.Sectors, q.Segments[0].Page; left > 0; p++ {
			n := min(left, epoch.PageSize/512)
			at := e[24+8*e[1]:]
			binary.LittleEndian.PutUint32(at, uint32(p)+refOfPage)
			at[5] = byte(n - 1)
			e[1]++
			left -= n
		}
	}
	copy(v.g.page(ringPage(v.disk))[ringHead+v.made%ringEntries*ringEntry:], e)
	v.made++
	v.open[id] = r
	wanted := atomic.LoadUint32(v.index(ringTold))
	atomic.StoreUint32(v.index(ringMade), v.made)
	v.g.dirty.Add(ringPage(v.disk))
	if v.made-wanted < 1 {
		v.g.h.fronts[v.disk].(*xenFront).event.Kick()
	}
	return id
}

// settle takes the responses that are there. What was read is compared and becomes the
// oracle's.
func (v *driver) settle() {
	ring := v.g.page(ringPage(v.disk))
	if v.seen != atomic.LoadUint32(v.index(ringAnswered)) {
		defer func() {
			atomic.StoreUint32(v.index(ringNotify), v.seen+1)
			v.g.wrote(ringPage(v.disk))
		}()
	}
	for ; v.seen != atomic.LoadUint32(v.index(ringAnswered)); v.seen++ {
		e := ring[ringHead+v.seen%ringEntries*ringEntry:]
		id, status := binary.LittleEndian.Uint64(e), int16(binary.LittleEndian.Uint16(e[10:]))
		r, open := v.open[id]
		if !open || status != 0 {
			v.g.w.violated("disk %d: response to request %d, which is open: %v, with status %d", v.disk, id, open, status)
		}
		delete(v.open, id)
		if r != nil {
			r.r.Buffer = v.g.mem[r.r.Segments[0].Page*epoch.PageSize:][:r.r.Sectors*512]
			r.landed = true
			v.g.compare(r)
			copy(v.g.want[r.r.Segments[0].Page*epoch.PageSize:], r.r.Buffer)
		}
	}
	copy(v.g.want[ringPage(v.disk)*epoch.PageSize:], ring) // what the back end wrote, it has to report
}

// await lets the host work until a request is answered.
func (v *driver) await(id uint64) {
	v.g.h.letGo("request of a Xen guest", func() bool {
		v.settle()
		_, open := v.open[id]
		return !open
	})
}
