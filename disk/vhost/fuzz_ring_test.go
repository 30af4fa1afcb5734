package vhost

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/disk"
	"understudy/epoch"
)

// This file feeds a ring with whatever a guest, its hypervisor and the region of
// requests in flight may hold. The input is a program, of which each step writes
// something hostile or lets the ring go on:
//
//	bytes ──> step ─┬─ guest memory, rings, region: anything
//	                └─ ring: take, do, halt, start, start by another daemon ──> checked

// The guest's memory in its file. What the table does not have is not the ring's,
// and begins with what no request may change.
const (
	fuzzFirst   = 2 * epoch.PageSize // of the first region, at 0
	fuzzHole    = epoch.PageSize     // behind it, in the file
	fuzzSecond  = epoch.PageSize     // of the second region, at 8192 for the guest
	fuzzTail    = epoch.PageSize
	fuzzBytes   = fuzzFirst + fuzzHole + fuzzSecond + fuzzTail
	fuzzRing    = 16 // entries, at most
	fuzzUser    = 1 << 32
	fuzzDesc    = 0 // where an honest driver has its rings
	fuzzAvail   = 256
	fuzzUsed    = 320
	fuzzProgram = 400 // bytes, at most
	fuzzWorkers = 64  // more than can be needed: the ring starts none
	fuzzMost    = 8   // sectors of a request
)

// fuzzCanary is what memory holds that is not the guest's.
var fuzzCanary = bytes.Repeat([]byte{0xc5}, max(fuzzHole, fuzzTail))

// fuzzDisk is a backend that believes nothing of what the ring gives it.
type fuzzDisk struct {
	t       *testing.T
	mem     []byte
	hold    bool
	again   int
	fails   bool
	written map[epoch.GFN]bool // reported
}

func (d *fuzzDisk) Info() disk.Info {
	return disk.Info{Sectors: 64, Serial: "fuzz", MaxSectors: fuzzMost, MaxZeroSectors: fuzzMost}
}

func (d *fuzzDisk) check(r *disk.Request) {
	n := 0
	for _, s := range r.Segments {
		n += len(s.Data)
		off := int(s.Page)*epoch.PageSize + s.At
		if len(s.Data) == 0 || !fuzzInside(off, len(s.Data)) || &d.mem[off] != &s.Data[0] {
			d.t.Fatalf("a segment of %d bytes at %#x", len(s.Data), off)
		}
	}
	if r.Op != disk.OpFlush && (r.Sectors == 0 || r.Sectors > fuzzMost || r.Sector+uint64(r.Sectors) > 64) {
		d.t.Fatalf("%d sectors from %d on", r.Sectors, r.Sector)
	}
	if (r.Op == disk.OpRead || r.Op == disk.OpWrite) && n != int(r.Sectors)*epoch.SectorSize {
		d.t.Fatalf("%d bytes for %d sectors", n, r.Sectors)
	}
	if r.Op == disk.OpRead && len(r.Buffer) != n {
		d.t.Fatalf("a buffer of %d bytes for %d", len(r.Buffer), n)
	}
}

// fuzzInside reports whether n bytes of the file from off on are the guest's.
func fuzzInside(off, n int) bool {
	return off >= 0 && (off+n <= fuzzFirst || off >= fuzzFirst+fuzzHole && off+n <= fuzzFirst+fuzzHole+fuzzSecond)
}

func (d *fuzzDisk) Accept(r *disk.Request) (bool, error) {
	d.check(r)
	if r.Op == disk.OpRead {
		d.t.Fatal("a read is to be accepted")
	}
	return d.hold, nil
}

func (d *fuzzDisk) Do(_ context.Context, r *disk.Request) error {
	d.check(r)
	switch {
	case d.again > 0:
		d.again--
		return disk.ErrAgain
	case d.fails:
		return errors.New("the disk fails")
	case r.Op == disk.OpRead:
		for i := range r.Buffer {
			r.Buffer[i] = 0xd5
		}
	}
	return nil
}

func (d *fuzzDisk) Landed(r *disk.Request) {
	for _, s := range r.Segments {
		d.note(int(s.Page)*epoch.PageSize+s.At, len(s.Data))
	}
}

func (d *fuzzDisk) Touched(page epoch.GFN, length int) { d.note(int(page)*epoch.PageSize, length) }

func (d *fuzzDisk) note(off, n int) {
	for p := off / epoch.PageSize; p*epoch.PageSize < off+n; p++ {
		d.written[epoch.GFN(p)] = true
	}
}

func (d *fuzzDisk) Fill(page epoch.GFN, count int) error {
	if count <= 0 || !fuzzInside(int(page)*epoch.PageSize, count*epoch.PageSize) {
		d.t.Fatalf("%d pages from %d on are to be filled", count, page)
	}
	return nil
}

// fuzzGuest is the guest, its hypervisor and our daemon.
type fuzzGuest struct {
	t      *testing.T
	p      []byte // what is left of the program
	d      *fuzzDisk
	mem    []byte
	table  *memory
	region *inflightRegion
	s      *Server
	r      *ring
	doing  []*work // with the backend
	errFD  int

	features uint64
	num      int
}

func (g *fuzzGuest) byte() (b byte) {
	if len(g.p) > 0 {
		b, g.p = g.p[0], g.p[1:]
	}
	return b
}

func (g *fuzzGuest) word() int { return int(g.byte()) | int(g.byte())<<8 }

// daemon starts a daemon, which knows nothing but what it finds.
func (g *fuzzGuest) daemon() {
	cfg := Config{Queues: 1, QueueSize: fuzzRing, Workers: fuzzWorkers}
	g.s = &Server{cfg: cfg, backend: g.d, info: g.d.Info(), budget: newBudget(8 << 10), log: slog.New(slog.DiscardHandler)}
	g.s.orphans.cond.L = &g.s.orphans.mu
	var err error
	g.s.limits, err = limitsOf(g.s.info, cfg)
	must(g.t, err)
	g.r = newRing(g.s, 0)
	g.s.rings = []*ring{g.r}
	g.r.num, g.r.errFD = uint16(g.num), g.errFD
	g.r.addr, g.r.addrSet = vringAddr{desc: fuzzUser + fuzzDesc, avail: fuzzUser + fuzzAvail, used: fuzzUser + fuzzUsed}, true
	g.doing = nil
}

// start is session.update.
func (g *fuzzGuest) start() {
	r := g.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.run != nil || r.resolve(g.table) != nil {
		return
	}
	fresh := !r.goesOn(g.region == nil || r.part != nil)
	if fresh {
		r.mu.Unlock()
		g.s.orphanHalted()
		r.mu.Lock()
	}
	if r.ready(g.t.Context(), g.table, g.region, g.features, fresh) == nil {
		r.run.workers = fuzzWorkers
	}
}

func (g *fuzzGuest) halt() {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	g.r.halt()
}

// take lets the ring take requests until it sleeps, or the backend has one.
func (g *fuzzGuest) take() {
	w := g.r.run
	if w == nil {
		return
	}
	for range 100 {
		w.idle = fuzzWorkers // others would take the lead: we are all of them
		q, next, starved := w.step(true)
		switch {
		case q != nil:
			g.doing = append(g.doing, q)
			return
		case next == ended:
			g.failed(w)
			return
		case next == asleep:
			if starved > 0 && g.s.budget.used == 0 {
				g.t.Fatalf("no room for %d bytes, and nothing has any", starved)
			}
			return
		}
	}
	g.t.Fatal("the ring does not come to an end")
}

// failed: an error ends the ring, and the hypervisor is told.
func (g *fuzzGuest) failed(w *run) {
	var told [8]byte
	if g.r.run == w {
		g.t.Fatal("the worker has ended, and the ring has not")
	}
	if n, err := unix.Read(g.errFD, told[:]); n != 8 || err != nil {
		g.t.Fatal("the ring has ended on an error, and nobody is told")
	}
}

// do lets the backend do one of what it has.
func (g *fuzzGuest) do(which int) {
	if len(g.doing) == 0 {
		return
	}
	i := which % len(g.doing)
	q := g.doing[i]
	running := g.r.run
	if (&run{r: g.r}).finish(q, g.d.Do(g.t.Context(), &q.Request)) {
		g.doing = slices.Delete(g.doing, i, i+1)
	}
	if running != nil && g.r.run == nil {
		g.failed(running)
	}
}

// step plays one step. ours says that the ring has worked, and not the guest.
func (g *fuzzGuest) step() (ours bool) {
	le := binary.LittleEndian
	avail, used := g.mem[fuzzAvail:], g.mem[fuzzUsed:]
	switch op := g.byte(); op % 18 {
	case 0: // anything, anywhere in guest memory
		at, n := g.word()%fuzzFirst, int(g.byte())
		for i := at; i < min(at+n, fuzzFirst); i++ {
			g.mem[i] = g.byte()
		}
	case 1, 2: // a descriptor, in the ring's table or in an indirect one
		at := int(g.byte()) * 16 % fuzzFirst
		descriptor{gpa: uint64(g.word()) * 16, length: uint32(g.word()), flags: uint16(g.byte() % 8), next: uint16(g.byte())}.put(g.mem[at:])
	case 3: // … one that goes around, or is too long
		at := int(g.byte()) * 16 % fuzzFirst
		descriptor{gpa: ^uint64(0) - uint64(g.word()), length: ^uint32(0) - uint32(g.byte()), flags: uint16(g.byte() % 8), next: uint16(g.byte())}.put(g.mem[at:])
	case 4, 5: // a head is made available
		i := le.Uint16(avail[2:])
		le.PutUint16(avail[4+2*(int(i)%g.num):], uint16(g.byte()%20))
		le.PutUint16(avail[2:], i+1)
	case 6: // a request's header
		at := int(g.byte()) * 16 % fuzzFirst
		le.PutUint32(g.mem[at:], uint32(g.byte()%16))
		le.PutUint64(g.mem[at+8:], uint64(g.byte()))
	case 7: // the index jumps
		le.PutUint16(avail[2:], uint16(g.word()))
	case 8: // flags, used_event
		le.PutUint16(avail, uint16(g.byte()))
		le.PutUint16(avail[4+2*g.num:], uint16(g.word()))
	case 9: // the used ring is not the guest's to write
		le.PutUint16(used[2*(int(g.byte())%16):], uint16(g.word()))
	case 10: // the region is not the guest's either
		if g.region != nil {
			for range g.byte() % 32 {
				g.region.data[g.word()%len(g.region.data)] = g.byte()
			}
		}
	case 11:
		g.d.hold, g.d.fails, g.d.again = op&32 != 0, op&64 != 0, int(op/128)*3
	case 12, 13:
		g.take()
		return true
	case 14:
		g.do(int(g.byte()))
		return true
	case 15: // the guest stands still, goes on, or is begun at any place
		g.halt()
		if b := g.byte(); b%3 == 1 {
			g.r.base, g.r.baseSet = uint16(g.word()), true
		} else if b%3 == 2 {
			g.r.addr.desc, g.r.addr.avail, g.r.addr.used = fuzzUser+uint64(g.word()), fuzzUser+uint64(g.word()), fuzzUser+uint64(g.word())
		}
		g.start()
		return true
	case 16: // the daemon dies, and another finds the region
		g.halt()
		g.daemon()
		g.r.base, g.r.baseSet = uint16(g.word()), true
		g.start()
		return true
	case 17: // the guest goes on at another host
		g.halt()
		state := g.s.AppendInFlight(nil)
		if len(state) > disk.MaxInFlight {
			g.t.Fatalf("a state of %d bytes", len(state))
		}
		base := g.r.lastAvail
		g.daemon()
		if b := int(g.byte()); b != 0 {
			state[b%len(state)] ^= g.byte()
		} else if err := g.s.Resubmit(state); err != nil {
			g.t.Fatalf("our own state is refused: %v", err)
		}
		_ = g.s.Resubmit(state) // refused
		g.r.base, g.r.baseSet = base, true
		g.start()
		return true
	}
	return false
}

// play plays the program, and looks after every step.
func (g *fuzzGuest) play() {
	was := make([]byte, len(g.mem))
	for len(g.p) > 0 {
		copy(was, g.mem)
		running := g.r.run != nil
		clear(g.d.written)
		ours := g.step()
		g.canary()
		if ours {
			for p := 0; p < len(g.mem); p += epoch.PageSize {
				if !g.d.written[epoch.GFN(p/epoch.PageSize)] && !bytes.Equal(was[p:p+epoch.PageSize], g.mem[p:p+epoch.PageSize]) {
					g.t.Fatalf("page %d was written to, and is not reported", p/epoch.PageSize)
				}
			}
			if !running && g.r.run == nil && !bytes.Equal(was, g.mem) {
				g.t.Fatal("a ring that does not run has written to guest memory")
			}
		}
		g.bounded()
	}
}

// canary: what is not the guest's is as it was.
func (g *fuzzGuest) canary() {
	if !bytes.Equal(g.mem[fuzzFirst:fuzzFirst+fuzzHole], fuzzCanary[:fuzzHole]) || !bytes.Equal(g.mem[fuzzBytes-fuzzTail:], fuzzCanary[:fuzzTail]) {
		g.t.Fatal("memory that is not the guest's was written to")
	}
}

// bounded: no more is in flight than the ring has entries, and all of it is known.
func (g *fuzzGuest) bounded() {
	r, n := g.r, 0
	for _, q := range r.flight {
		if q != nil {
			n++
		}
	}
	if n != r.inFlight || n > g.num || len(r.pending) > n || len(g.doing) > fuzzWorkers {
		g.t.Fatalf("%d requests in flight in a ring of %d, %d by count, %d waiting, %d with the backend", n, g.num, r.inFlight, len(r.pending), len(g.doing))
	}
	if b := g.s.budget; b.used+b.cached > b.limit+16<<10 {
		g.t.Fatalf("%d bytes for reads, at most %d", b.used+b.cached, b.limit)
	}
}

// FuzzRing: whatever the rings, the tables and the region of requests in flight
// hold, and whenever it changes, nothing but the guest's memory is touched, what
// is touched is reported, an error ends the ring and is told, and what is under
// way is bounded.
func FuzzRing(f *testing.F) {
	var p []byte
	step := func(b ...byte) { p = append(p, b...) }
	word := func(n int) (byte, byte) { return byte(n), byte(n >> 8) }
	desc := func(i byte, addr, length int, flags, next byte) {
		a0, a1 := word(addr / 16)
		l0, l1 := word(length)
		step(1, i, a0, a1, l0, l1, flags, next)
	}
	request := func(head byte, kind byte) {
		step(6, 64+head, kind, head) // header at 1024 + 16 × head
		flags := byte(1)
		if kind == typeIn {
			flags = 3
		}
		desc(head, 1024+16*int(head), 16, 1, head+1)
		desc(head+1, 4096, 512, flags, head+2)
		desc(head+2, 1536+16*int(head), 1, 2, 0)
		step(4, head)
	}
	begin := func(mode byte) { p = []byte{mode}; step(15, 0) }
	for _, mode := range []byte{0, 1, 2, 3, 7, 15} {
		begin(mode) // reads and writes, done and held
		request(0, typeIn)
		request(3, typeOut)
		step(12, 12, 14, 0, 14, 0, 11+18*2, 12, 12)
		request(6, typeOut)
		step(12, 12, 14, 0)
		f.Add(slices.Clone(p))
		begin(mode) // in flight, and the daemon dies; then another host
		request(0, typeIn)
		request(3, typeIn)
		step(12, 12, 16, 0, 0, 12, 12, 17, 0, 12, 14, 0, 12, 14, 0)
		f.Add(slices.Clone(p))
		begin(mode) // the index jumps; begun anew
		request(0, typeIn)
		step(7, 200, 0, 12, 15, 1, 0, 0, 7, 1, 0, 12, 14, 0)
		f.Add(slices.Clone(p))
		begin(mode) // the region is scribbled over
		request(0, typeIn)
		step(12, 10, 6, 16, 0, 1, 24, 0, 1, 32, 0, 1, 12, 0, 9, 14, 0, 200, 17, 0, 99, 16, 5, 0, 12, 14, 0)
		f.Add(slices.Clone(p))
		begin(mode) // an indirect table, across the regions
		step(6, 64, typeIn, 0)
		desc(100, 1024, 16, 1, 1)
		desc(101, 8192-512, 1024, 3, 2)
		desc(102, 1536, 1, 2, 0)
		desc(0, 1600, 48, 4, 0)
		step(4, 0, 12, 14, 0)
		f.Add(slices.Clone(p))
	}
	errFD := eventFD(f)
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > fuzzProgram {
			return // Go's fuzzer takes the square of it to make it smaller
		}
		g := &fuzzGuest{t: t, p: p, mem: make([]byte, fuzzBytes), errFD: errFD}
		mode := g.byte()
		g.num = 4 << (mode >> 3 % 4 % 3)
		g.features = featureVersion1
		if mode&1 != 0 {
			g.features |= featureEventIdx
		}
		if mode&2 == 0 {
			g.features |= featureIndirect
		}
		if mode&4 == 0 {
			g.region = &inflightRegion{data: make([]byte, regionSize(1, fuzzRing)), queues: 1, depth: fuzzRing}
		}
		copy(g.mem[fuzzFirst:], fuzzCanary[:fuzzHole])
		copy(g.mem[fuzzBytes-fuzzTail:], fuzzCanary[:fuzzTail])
		file := &mapping{data: g.mem}
		file.refs.Store(1 << 20) // it is not to be unmapped
		g.table = &memory{file: file, regions: []region{
			{gpa: 0, size: fuzzFirst, user: fuzzUser, off: 0},
			{gpa: fuzzFirst, size: fuzzSecond, user: fuzzUser + 1<<20, off: fuzzFirst + fuzzHole},
		}}
		g.d = &fuzzDisk{t: t, mem: g.mem, written: map[epoch.GFN]bool{}}
		g.daemon()
		g.play()
		g.halt()
		var drop [8]byte
		_, _ = unix.Read(errFD, drop[:]) // of a resubmission that was refused, say
	})
}
