package netif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/epoch"
	"understudy/hypervisor/xen/xentest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest is a Xen guest's memory, its grants and its network driver. Page 0 is the
// transmit ring, page 1 the receive ring; page n is lent by the reference n+100,
// those from 128 on for reading.
type guest struct {
	t     testing.TB
	mem   []byte
	sent  uint32 // requests of the transmit ring
	done  uint32 // its responses
	given uint32 // buffers
	got   uint32 // responses of the receive ring
	event *xentest.Event
}

const guestPages = 256

func newGuest(t testing.TB) *guest {
	g := &guest{t: t, mem: make([]byte, guestPages*pageSize), event: xentest.NewEvent()}
	for _, at := range []int{atRequestEvent, atNotify} {
		binary.LittleEndian.PutUint32(g.page(0)[at:], 1)
		binary.LittleEndian.PutUint32(g.page(1)[at:], 1)
	}
	return g
}

func ref(page int) uint32 { return uint32(page) + 100 }

func (g *guest) page(n int) []byte { return g.mem[n*pageSize:][:pageSize:pageSize] }

// Grant implements Memory.
func (g *guest) Grant(ref uint32, write bool) ([]byte, epoch.GFN, error) {
	page := int(ref) - 100
	if page < 0 || page >= guestPages || write && page >= 128 {
		return nil, 0, fmt.Errorf("no grant %d for that", ref)
	}
	return g.page(page), epoch.GFN(page), nil
}

func (g *guest) ring(page int) *side {
	s := &side{page: g.page(page), entry: txEntry, size: 256}
	if page == 1 {
		s.entry = rxEntry
	}
	return s
}

// piece is an entry of the transmit ring.
type piece struct {
	page, offset, size int
	flags              uint16
}

// put writes a packet's entries, and show makes them visible.
func (g *guest) put(pieces ...piece) {
	for i, p := range pieces {
		e := g.ring(0).slot(g.sent)
		g.sent++
		binary.LittleEndian.PutUint32(e, ref(p.page))
		binary.LittleEndian.PutUint16(e[4:], uint16(p.offset))
		flags := p.flags
		if i < len(pieces)-1 && flags&flagExtra == 0 {
			flags |= flagMore
		}
		binary.LittleEndian.PutUint16(e[6:], flags)
		binary.LittleEndian.PutUint16(e[8:], uint16(g.sent))
		binary.LittleEndian.PutUint16(e[10:], uint16(p.size))
	}
}

// show shows requests, and tells the back end if it wants to be told.
func (g *guest) show(page int, made uint32) {
	s := g.ring(page)
	old := atomic.LoadUint32(s.index(atRequests))
	atomic.StoreUint32(s.index(atRequests), made)
	if made-atomic.LoadUint32(s.index(atRequestEvent)) < made-old {
		g.event.Kick()
	}
}

// send sends a frame out of the pages from 128 on, in pieces of at most size bytes.
func (g *guest) send(frame []byte, size int, flags uint16) {
	var pieces []piece
	for page := 128 + int(g.sent%64); len(frame) > 0; page++ {
		offset := 7 * page % 300
		n := min(size, len(frame), pageSize-offset)
		copy(g.page(page)[offset:], frame[:n])
		pieces = append(pieces, piece{page, offset, n, flags})
		frame, flags = frame[n:], 0
	}
	for _, p := range pieces[1:] {
		pieces[0].size += p.size
	}
	g.put(pieces...)
	g.show(0, g.sent)
}

// statuses waits until all that was sent is answered.
func (g *guest) statuses() (all []int16) {
	g.t.Helper()
	s := g.ring(0)
	for g.done != g.sent {
		g.await(s, g.done)
		all = append(all, int16(binary.LittleEndian.Uint16(s.slot(g.done)[2:])))
		g.done++
	}
	return all
}

// await waits until there are more responses than seen.
func (g *guest) await(s *side, seen uint32) {
	g.t.Helper()
	limit := time.After(20 * time.Second)
	for atomic.LoadUint32(s.index(atResponses)) == seen {
		atomic.StoreUint32(s.index(atNotify), seen+1)
		if atomic.LoadUint32(s.index(atResponses)) != seen {
			return
		}
		select {
		case <-g.event.Told():
		case <-limit:
			g.t.Fatalf("no response behind %d", seen)
		}
	}
}

// lend gives buffers: pages from 2 on, in turn.
func (g *guest) lend(count int) {
	for range count {
		e := g.ring(1).slot(g.given)
		binary.LittleEndian.PutUint16(e, uint16(g.given))
		binary.LittleEndian.PutUint32(e[4:], ref(2+int(g.given)%100))
		g.given++
	}
	g.show(1, g.given)
}

// frame waits for the next frame.
func (g *guest) frame() (frame []byte) {
	g.t.Helper()
	s := g.ring(1)
	for more := true; more; g.got++ {
		g.await(s, g.got)
		e := s.slot(g.got)
		status := int16(binary.LittleEndian.Uint16(e[6:]))
		if id := binary.LittleEndian.Uint16(e); id != uint16(g.got) || status < 0 {
			g.t.Errorf("response %d of buffer %d, status %d", g.got, id, status)
			return nil
		}
		frame = append(frame, g.page(2 + int(g.got)%100)[:status]...)
		more = binary.LittleEndian.Uint16(e[4:])&flagMore != 0
	}
	return frame
}

// keys is what the guest's driver has written.
func (g *guest) keys() func(key string) string {
	keys := map[string]string{"tx-ring-ref": "100", "rx-ring-ref": "101", "event-channel": "5", "request-rx-copy": "1"}
	return func(key string) string { return keys[key] }
}

// device makes the guest's device on a link.
func (g *guest) device(l *Link) *Device {
	return l.Device(Config{Memory: g, Pages: guestPages, Bind: func(port uint32) (Channel, error) {
		if port != 5 {
			return nil, errors.New("no such port")
		}
		return g.event, nil
	}})
}

// connected is a guest whose driver is there.
func connected(t testing.TB) (*guest, *Link, *Device) {
	g, l := newGuest(t), New()
	d := g.device(l)
	if _, err := d.Plug(g.keys()); err != nil {
		t.Fatal(err)
	}
	d.Start()
	t.Cleanup(func() {
		d.Unplug()
		_ = l.Close()
	})
	return g, l, d
}
