package crash

// This file is the guest and the front end of its disks, in the order of
// disk/vhost (ring.admit, work.do): fill what is touched, Accept, or else Do and
// Landed. A Xen guest has the real front end instead (xenfront_test.go).

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"

	"understudy/disk"
	"understudy/epoch"
	"understudy/hypervisor"
)

// guest is the machine: its memory as it is, and as the oracle says it must be.
type guest struct {
	w       *world
	h       *host
	mem     []byte
	want    []byte // the oracle's memory
	disk    [disks][]byte
	dirty   *epoch.PageSet // as the hypervisor sees it
	cpu     uint64
	paused  bool
	missing *epoch.PageSet // pages that a lazy rebuild has yet to fill
	filler  hypervisor.Filler
	reads   []*reading
	drivers []*driver // of a Xen guest
}

// reading is a read on its way.
type reading struct {
	disk   int
	r      *disk.Request
	beside map[uint64]bool // sectors that were written while it was on its way
	done   chan error
	landed bool   // a Xen guest's
	id     uint64 // its request in the ring
}

// frontend is a host's end of a disk.
type frontend interface {
	disk.Frontend
	// resubmitted is what Resubmit was given since forget.
	resubmitted() []byte
	forget()
	// end is the death of its daemon.
	end() error
}

// front is a disk's front end. A request in flight is 12 bytes: sector, page, 4 each,
// sectors.
type front struct {
	h    *host
	disk int
	got  []byte // by Resubmit
}

func (f *front) AppendInFlight(dst []byte) []byte {
	for _, r := range f.h.guest.reads {
		if r.disk == f.disk {
			dst = binary.LittleEndian.AppendUint32(dst, uint32(r.r.Sector))
			dst = binary.LittleEndian.AppendUint32(dst, uint32(r.r.Segments[0].Page))
			dst = binary.LittleEndian.AppendUint32(dst, r.r.Sectors)
		}
	}
	return dst
}

func (f *front) Resubmit(state []byte) error { f.got = bytes.Clone(state); return nil }
func (f *front) Stopped() bool               { return f.h.guest == nil || f.h.guest.paused }
func (f *front) resubmitted() []byte         { return f.got }
func (f *front) forget()                     { f.got = nil }
func (f *front) end() error                  { return nil }

func newGuest(w *world, h *host) *guest {
	g := &guest{w: w, h: h, mem: make([]byte, pages*epoch.PageSize), want: make([]byte, pages*epoch.PageSize), dirty: epoch.NewPageSet(pages)}
	for d := range g.disk {
		g.disk[d] = bytes.Clone(h.media[d].Bytes())
	}
	g.dirty.Fill()
	return g
}

// plug gives the disks of a Xen guest to the back ends of its host. fresh: by a driver
// that begins, else as they are.
func (g *guest) plug(fresh bool) {
	if !g.w.cfg.xen {
		return
	}
	if fresh {
		g.drivers = nil
		for d := range disks {
			g.drivers = append(g.drivers, newDriver(g, d))
		}
	}
	for _, f := range g.h.fronts {
		g.w.must(f.(*xenFront).connect())
	}
	g.run(!g.paused)
}

// run lets the guest run, or stand still.
func (g *guest) run(run bool) {
	g.paused = !run
	if !g.w.cfg.xen {
		return
	}
	for _, f := range g.h.fronts {
		if run {
			f.(*xenFront).Start()
		} else {
			f.(*xenFront).Stop()
		}
	}
	g.w.rest()
	g.settle()
}

// settle takes what has been answered of a Xen guest's requests.
func (g *guest) settle() {
	for _, v := range g.drivers {
		v.settle()
	}
	g.reads = slices.DeleteFunc(g.reads, func(r *reading) bool { return r.landed })
}

// free makes sure that nothing is being read into pages.
func (g *guest) free(p epoch.GFN, count uint64) {
	g.settle()
	for _, r := range slices.Clone(g.reads) {
		first := r.r.Segments[0].Page
		if g.drivers != nil && first < p+epoch.GFN(count) && p < first+epoch.GFN(r.r.Sectors+7)/8 {
			g.drivers[r.disk].await(r.id)
			g.settle()
		}
	}
}

// stamp fills a sector with what no other holds.
func (w *world) stamp(sector []byte) {
	w.stamps++
	for i := 0; i < len(sector); i += 8 {
		binary.LittleEndian.PutUint64(sector[i:], w.stamps<<16|uint64(i))
	}
}

func (g *guest) page(p epoch.GFN) []byte { return g.mem[p*epoch.PageSize:][:epoch.PageSize] }

// touch makes sure that a page is there before it is touched (RULES 18).
func (g *guest) touch(first epoch.GFN, count uint64) error {
	for p := first; p < first+epoch.GFN(count) && g.missing != nil; p++ {
		if !g.missing.Contains(p) {
			continue
		}
		if err := g.h.pumped("fill on demand", func(context.Context) error { return g.filler.Content(p, g.page(p)) }); err != nil {
			return err
		}
		g.missing.RemoveRange(p, 1)
		g.filler.Filled(p)
	}
	return nil
}

// wrote takes over to the oracle what a CPU did to a page.
func (g *guest) wrote(p epoch.GFN) {
	copy(g.want[p*epoch.PageSize:][:epoch.PageSize], g.page(p))
	g.dirty.Add(p)
}

// see makes sure that the guest finds in a page what the oracle says.
func (g *guest) see(p epoch.GFN) {
	g.free(p, 1)
	g.w.must(g.touch(p, 1))
	if !bytes.Equal(g.page(p), g.want[p*epoch.PageSize:][:epoch.PageSize]) {
		g.w.violated("the guest finds page %d changed: %s", p, differ(g.page(p), g.want[p*epoch.PageSize:][:epoch.PageSize], epoch.PageSize))
	}
}

// store is the guest's CPU at work on a page.
func (g *guest) store(p epoch.GFN, kind int) {
	g.see(p)
	g.cpu++
	b := g.page(p)
	switch kind % 5 {
	case 0: // all of it
		for i := 0; i < len(b); i += 512 {
			g.w.stamp(b[i : i+512])
		}
	case 1: // a part
		g.w.stamp(b[512*(g.cpu%8):][:512])
	case 2: // what another page holds
		q := (p + 5) % dataPages
		g.see(q)
		copy(b, g.page(q))
	case 3: // what it holds already
	case 4:
		clear(b)
	}
	g.wrote(p)
}

// segments are guest memory of a request.
func (g *guest) segments(p epoch.GFN, n uint32) []disk.Segment {
	return []disk.Segment{{Data: g.mem[p*epoch.PageSize:][:n*512], Page: p}}
}

// write writes n sectors from page p on to a disk.
func (g *guest) write(d int, sector uint64, n uint32, p epoch.GFN) {
	for q := p; q < p+epoch.GFN(n+7)/8; q++ {
		g.see(q)
	}
	r := &disk.Request{Op: disk.OpWrite, Sector: sector, Sectors: n, Segments: g.segments(p, n)}
	g.change(d, r, bytes.Clone(r.Segments[0].Data), stepWrite)
}

func (g *guest) discard(d int, sector uint64, n uint32) {
	g.change(d, &disk.Request{Op: disk.OpDiscard, Sector: sector, Sectors: n}, make([]byte, n*512), stepDiscard)
}

func (g *guest) zeroes(d int, sector uint64, n uint32) {
	g.change(d, &disk.Request{Op: disk.OpWriteZeroes, Sector: sector, Sectors: n}, make([]byte, n*512), stepZeroes)
}

// change carries a change out and tells the oracle. From its acceptance on it
// is the oracle's: the guest may be told.
func (g *guest) change(d int, r *disk.Request, data []byte, step string) {
	h := &g.w.history[d]
	h.versions = append(h.versions, version{sector: r.Sector, data: data})
	for _, q := range g.reads {
		for s := r.Sector; q.disk == d && s < r.Sector+uint64(r.Sectors); s++ {
			q.beside[s] = true
		}
	}
	g.do(d, r)
	copy(g.disk[d][r.Sector*512:], data)
	g.w.at(step)
}

func (g *guest) flush(d int) {
	h := &g.w.history[d]
	g.do(d, &disk.Request{Op: disk.OpFlush})
	h.versions = append(h.versions, version{barrier: true})
	if h.all && g.h.set.Status().Mode == "pass" {
		if got := g.h.media[d].Durable(); !bytes.Equal(got, g.disk[d]) {
			g.w.violated("disk %d is not durable after a flush of an unprotected guest: %s", d, differ(got, g.disk[d], 512))
		}
	}
	g.w.at(stepFlush)
}

// do is a front end's way with a request.
func (g *guest) do(d int, r *disk.Request) {
	if g.drivers != nil {
		g.drivers[d].await(g.drivers[d].put(r, nil))
		return
	}
	dev := g.h.set.Disk(epoch.DiskID(d))
	if r.Op == disk.OpWrite || r.Op == disk.OpRead {
		g.w.must(g.touch(r.Segments[0].Page, uint64(r.Sectors+7)/8))
	}
	err := g.h.pumped("request", func(ctx context.Context) error {
		for {
			taken, err := dev.Accept(r)
			if taken || err != nil {
				return err
			}
			if err := dev.Do(ctx, r); !errors.Is(err, disk.ErrAgain) {
				return err
			}
		}
	})
	g.w.must(err)
}

// read reads n sectors into the pages from p on.
func (g *guest) read(d int, sector uint64, n uint32, p epoch.GFN) {
	g.free(p, uint64(n+7)/8)
	r := &reading{disk: d, r: g.readRequest(sector, n, p)}
	if g.drivers != nil {
		g.drivers[d].await(g.drivers[d].put(r.r, r))
		return
	}
	g.do(d, r.r)
	g.land(r)
}

func (g *guest) readRequest(sector uint64, n uint32, p epoch.GFN) *disk.Request {
	return &disk.Request{Op: disk.OpRead, Sector: sector, Sectors: n, Segments: g.segments(p, n), Buffer: make([]byte, n*512)}
}

// beginRead begins a read that stays at the store for a while.
func (g *guest) beginRead(d int, sector uint64, n uint32, p epoch.GFN) {
	g.free(p, uint64(n+7)/8)
	g.w.must(g.touch(p, uint64(n+7)/8))
	r := &reading{disk: d, r: g.readRequest(sector, n, p), beside: map[uint64]bool{}, done: make(chan error, 1)}
	g.h.gate.mu.Lock()
	g.h.gate.reads = true
	g.h.gate.mu.Unlock()
	if g.drivers != nil {
		r.id = g.drivers[d].put(r.r, r)
	} else {
		go func() { r.done <- g.h.set.Disk(epoch.DiskID(d)).Do(context.Background(), r.r) }()
	}
	g.w.rest()
	g.h.gate.mu.Lock()
	g.h.gate.reads = false
	g.h.gate.mu.Unlock()
	g.reads = append(g.reads, r)
	g.w.at(stepReadBegun)
}

// endRead lets the oldest read land.
func (g *guest) endRead() {
	g.settle()
	if len(g.reads) == 0 {
		return
	}
	r := g.reads[0]
	if g.drivers != nil {
		g.drivers[r.disk].await(r.id)
		g.settle()
		g.w.at(stepReadEnded)
		return
	}
	g.h.letGo("read", func() bool { return len(r.done) > 0 })
	g.w.must(<-r.done)
	g.reads = g.reads[1:]
	g.land(r)
	g.w.at(stepReadEnded)
}

// land puts what was read into the guest. A sector that was written beside the
// read may be either.
func (g *guest) land(r *reading) {
	g.compare(r)
	seg := r.r.Segments[0]
	copy(seg.Data, r.r.Buffer)
	copy(g.want[seg.Page*epoch.PageSize:], r.r.Buffer)
	g.h.set.Disk(epoch.DiskID(r.disk)).Landed(r.r)
}

func (g *guest) compare(r *reading) {
	for i := range uint64(r.r.Sectors) {
		s := r.r.Sector + i
		is, got := g.disk[r.disk][s*512:][:512], r.r.Buffer[i*512:][:512]
		if !r.beside[s] && !bytes.Equal(got, is) {
			g.w.violated("disk %d, sector %d: the guest reads %x, it wrote %x", r.disk, s, got[:8], is[:8])
		}
	}
}

// seeDisk reads a whole disk as the guest does.
func (g *guest) seeDisk(d int, when string) {
	r := &disk.Request{Op: disk.OpRead, Sectors: sectors, Buffer: make([]byte, sectors*512),
		Segments: []disk.Segment{{Data: make([]byte, sectors*512), Page: epoch.NoPage}}}
	if err := g.h.pumped("read all", func(ctx context.Context) error { return g.h.set.Disk(epoch.DiskID(d)).Do(ctx, r) }); err != nil {
		g.w.violated("disk %d cannot be read %s: %v", d, when, err)
	}
	if !bytes.Equal(r.Buffer, g.disk[d]) {
		g.w.violated("disk %d as the guest sees it %s: %s", d, when, differ(r.Buffer, g.disk[d], 512))
	}
}

// seeAll compares all of the guest's memory and disks.
func (g *guest) seeAll(when string) {
	g.settle()
	for p := range epoch.GFN(pages) {
		if err := g.touch(p, 1); err != nil {
			g.w.violated("page %d %s: %v", p, when, err)
		}
	}
	if !bytes.Equal(g.mem, g.want) {
		g.w.violated("memory %s: %s", when, differ(g.mem, g.want, epoch.PageSize))
	}
	for d := range g.disk {
		g.seeDisk(d, when)
	}
}
