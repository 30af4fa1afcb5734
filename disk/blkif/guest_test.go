package blkif

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/disk"
	"understudy/epoch"
	"understudy/hypervisor/xen/xentest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest is a Xen guest's memory, its grants and its block driver.
//
//	pages: the ring's, then one of segments' tables, then data
type guest struct {
	t     testing.TB
	mem   []byte
	lent  map[uint32]lent
	l     layout
	ring  int    // pages
	size  uint32 // entries
	made  uint32 // requests
	seen  uint32 // responses
	event *xentest.Event

	mu      sync.Mutex
	refused int // grants
}

type lent struct {
	page     int
	readOnly bool
}

const guestPages = 256

// newGuest lends page n by the reference n+100.
func newGuest(t testing.TB, p Protocol, order int) *guest {
	g := &guest{t: t, mem: make([]byte, guestPages*pageSize), lent: map[uint32]lent{}, l: p.layout(), ring: 1 << order, event: xentest.NewEvent()}
	for i := range guestPages {
		g.lent[ref(i)] = lent{page: i}
	}
	g.size = g.l.entries(g.ring * pageSize)
	g.shared(atRequestEvent, 1)
	g.shared(atNotify, 1)
	return g
}

func ref(page int) uint32 { return uint32(page) + 100 }

func (g *guest) page(n int) []byte { return g.mem[n*pageSize:][:pageSize:pageSize] }

// Grant implements Memory.
func (g *guest) Grant(ref uint32, write bool) ([]byte, epoch.GFN, error) {
	l, ok := g.lent[ref]
	if !ok || write && l.readOnly {
		g.mu.Lock()
		g.refused++
		g.mu.Unlock()
		return nil, 0, fmt.Errorf("no grant %d for that", ref)
	}
	return g.page(l.page), epoch.GFN(l.page), nil
}

func (g *guest) shared(at int, v uint32) {
	binary.LittleEndian.PutUint32(g.mem[at:], v)
}

func (g *guest) parameters() Parameters {
	p := Parameters{Protocol: X86_64}
	if g.l.entry == 108 {
		p.Protocol = X86_32
	}
	for i := range g.ring {
		p.Refs = append(p.Refs, ref(i))
	}
	return p
}

// data is the first page behind the ring and the tables.
func (g *guest) data() int { return g.ring + 2 }

// put writes a request of segments into the ring. push shows it.
func (g *guest) put(op byte, id, sector uint64, segments ...segment) {
	e := make([]byte, g.l.entry)
	e[0] = op
	at := g.l.segments
	table := e
	if len(segments) > maxDirect {
		e[0], e[1] = opIndirect, op
		binary.LittleEndian.PutUint16(e[2:], uint16(len(segments)))
		binary.LittleEndian.PutUint32(e[g.l.indirect:], ref(g.ring))
		table, at = g.page(g.ring), 0
	} else {
		e[1] = byte(len(segments))
	}
	binary.LittleEndian.PutUint64(e[g.l.id:], id)
	binary.LittleEndian.PutUint64(e[g.l.sector:], sector)
	for _, s := range segments {
		binary.LittleEndian.PutUint32(table[at:], s.ref)
		table[at+4], table[at+5] = s.first, s.last
		at += segmentLen
	}
	g.putRaw(e)
}

func (g *guest) discard(id, sector, count uint64) {
	e := make([]byte, g.l.entry)
	e[0] = opDiscard
	binary.LittleEndian.PutUint64(e[g.l.id:], id)
	binary.LittleEndian.PutUint64(e[g.l.sector:], sector)
	binary.LittleEndian.PutUint64(e[g.l.discardSectors:], count)
	g.putRaw(e)
}

func (g *guest) putRaw(e []byte) {
	at := ringHeader + int(g.made&(g.size-1))*g.l.entry
	copy(g.mem[at:], e) // the ring's pages are the first
	g.made++
}

func (g *guest) index(at int) *uint32 { return (&ring{pages: [][]byte{g.mem}}).index(at) }

// push shows what was put, and tells the back end if it wants to be told.
func (g *guest) push() {
	old := atomic.LoadUint32(g.index(atRequests))
	atomic.StoreUint32(g.index(atRequests), g.made)
	if g.made-atomic.LoadUint32(g.index(atRequestEvent)) < g.made-old {
		g.event.Kick()
	}
}

// answered is how many responses there are.
func (g *guest) answered() uint32 { return atomic.LoadUint32(g.index(atResponses)) }

// response waits for the next response.
func (g *guest) response() (id uint64, op byte, status int16) {
	g.t.Helper()
	limit := time.After(20 * time.Second)
	for atomic.LoadUint32(g.index(atResponses)) == g.seen {
		atomic.StoreUint32(g.index(atNotify), g.seen+1)
		if atomic.LoadUint32(g.index(atResponses)) != g.seen {
			break
		}
		select {
		case <-g.event.Told():
		case <-limit:
			g.t.Fatalf("no response: %d requests, %d responses", g.made, g.seen)
		}
	}
	e := g.mem[ringHeader+int(g.seen&(g.size-1))*g.l.entry:]
	g.seen++
	return binary.LittleEndian.Uint64(e), e[8], int16(binary.LittleEndian.Uint16(e[10:]))
}

// expect pushes and waits for one response.
func (g *guest) expect(id uint64, status int16) {
	g.t.Helper()
	g.push()
	if got, _, s := g.response(); got != id || s != status {
		g.t.Errorf("response %d with status %d, want %d with %d", got, s, id, status)
	}
}

// memoryDisk is a disk in memory that believes nothing of what a front end gives
// it. It can hold writes (Accept takes them), let requests wait and fail, and it
// notes what was reported to it.
type memoryDisk struct {
	t    testing.TB
	info disk.Info
	mem  []byte // the guest's
	hold atomic.Bool

	mu      sync.Mutex
	data    []byte
	gate    chan struct{} // not nil: Do waits until it is closed
	arrived chan uint64   // sectors, as requests reach the gate
	fail    error
	again   int
	dirty   map[epoch.GFN]bool
	flushes int
}

func newDisk(g *guest, sectors uint64) *memoryDisk {
	return &memoryDisk{
		t: g.t, info: disk.Info{Sectors: sectors, MaxSectors: 2048, MaxZeroSectors: 64}, mem: g.mem,
		data: make([]byte, sectors*epoch.SectorSize), arrived: make(chan uint64, 64), dirty: map[epoch.GFN]bool{},
	}
}

func (d *memoryDisk) Info() disk.Info { return d.info }

func (d *memoryDisk) Accept(r *disk.Request) (bool, error) {
	d.check(r)
	if !d.hold.Load() || r.Op == disk.OpRead {
		return false, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return true, d.apply(r)
}

func (d *memoryDisk) Do(ctx context.Context, r *disk.Request) error {
	d.mu.Lock()
	d.check(r)
	gate := d.gate
	if d.again > 0 {
		d.again--
		d.mu.Unlock()
		return disk.ErrAgain
	}
	d.mu.Unlock()
	if gate != nil {
		d.arrived <- r.Sector
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.apply(r)
}

// check demands that a request is one that a backend can carry out.
func (d *memoryDisk) check(r *disk.Request) {
	n := 0
	for _, s := range r.Segments {
		at := int(s.Page)*pageSize + s.At
		if len(s.Data) == 0 || s.At+len(s.Data) > pageSize || &d.mem[at] != &s.Data[0] {
			d.t.Errorf("a segment of %d bytes at %d of page %d", len(s.Data), s.At, s.Page)
		}
		n += len(s.Data)
	}
	if r.Op != disk.OpFlush && (r.Sectors == 0 || uint64(r.Sectors) > d.info.Sectors || r.Sector > d.info.Sectors-uint64(r.Sectors)) {
		d.t.Errorf("%d sectors from %d on, of %d", r.Sectors, r.Sector, d.info.Sectors)
	}
	if (r.Op == disk.OpRead || r.Op == disk.OpWrite) && (n != int(r.Sectors)*epoch.SectorSize || r.Sectors > d.info.MaxSectors) {
		d.t.Errorf("%d bytes for %d sectors", n, r.Sectors)
	}
	if r.Op == disk.OpDiscard && r.Sectors > d.info.MaxZeroSectors {
		d.t.Errorf("%d sectors in one discard", r.Sectors)
	}
	if r.Op == disk.OpRead && len(r.Buffer) != n || r.Op < disk.OpRead || r.Op > disk.OpDiscard {
		d.t.Errorf("operation %d with a buffer of %d bytes for %d", r.Op, len(r.Buffer), n)
	}
}

func (d *memoryDisk) apply(r *disk.Request) error {
	if d.fail != nil {
		return d.fail
	}
	if r.Op == disk.OpFlush {
		d.flushes++
		return nil
	}
	data := d.data[r.Sector*epoch.SectorSize:][:r.Sectors*epoch.SectorSize]
	switch r.Op {
	case disk.OpRead:
		copy(r.Buffer, data)
	case disk.OpWrite:
		n := 0
		for _, s := range r.Segments {
			n += copy(data[n:], s.Data)
		}
	case disk.OpDiscard:
		clear(data)
	}
	return nil
}

func (d *memoryDisk) Landed(r *disk.Request) {
	for _, s := range r.Segments {
		d.Touched(s.Page, s.At+len(s.Data))
	}
}

func (d *memoryDisk) Touched(page epoch.GFN, length int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if length <= 0 || length > pageSize {
		d.t.Errorf("%d bytes of page %d are touched", length, page)
	}
	d.dirty[page] = true
}

func (d *memoryDisk) Fill(page epoch.GFN, count int) error {
	if page >= guestPages || count != 1 {
		return fmt.Errorf("%d pages from %d on", count, page)
	}
	return nil
}

// collect returns the pages that were reported since it was called last.
func (d *memoryDisk) collect() map[epoch.GFN]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	dirty := d.dirty
	d.dirty = map[epoch.GFN]bool{}
	return dirty
}

// connected makes a device that serves the guest.
func connected(t testing.TB, g *guest, d *memoryDisk) *Device {
	dev, err := New(Config{Backend: d, Memory: g, Workers: 8})
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.Connect(g.parameters(), g.event); err != nil {
		t.Fatal(err)
	}
	dev.Start()
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}

func pattern(seed byte) []byte { return bytes.Repeat([]byte{seed}, pageSize) }
