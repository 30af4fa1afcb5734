package blkif

import (
	"bytes"
	"testing"
)

// FuzzRing lets a guest write anything into its ring and its tables. The pages are
// ours to write (the ring, one lent for writing), ours to read (lent for reading:
// a table of segments, data), and not lent at all: what is not ours to write never
// changes, and the backend is asked for nothing that is not on the disk.
func FuzzRing(f *testing.F) {
	g := newGuest(f, X86_64, 0)
	s := segment{ref(4), 0, 7}
	g.put(opWrite, 1, 0, s)
	g.put(opRead, 2, 8, segment{ref(3), 1, 2})
	g.discard(3, 0, 64)
	g.put(opFlush, 4, 0)
	g.push()
	f.Add(bytes.Clone(g.page(0)[:1024]), bytes.Clone(g.page(1)[:64]), false)
	wide := newGuest(f, X86_32, 0)
	wide.put(opRead, 5, 0, s, s, s, s, s, s, s, s, s, s, s, s)
	wide.push()
	f.Add(bytes.Clone(wide.page(0)[:1024]), bytes.Clone(wide.page(1)[:128]), true)
	f.Fuzz(func(t *testing.T, ring, table []byte, narrow bool) {
		p := X86_64
		if narrow {
			p = X86_32
		}
		g := newGuest(t, p, 0)
		g.lent = map[uint32]lent{
			ref(0): {page: 0}, ref(1): {page: 1, readOnly: true}, ref(2): {page: 2, readOnly: true}, ref(3): {page: 3}, ref(4): {page: 3},
		}
		for i := 4; i < 8; i++ {
			copy(g.page(i), pattern(0xc5))
		}
		copy(g.page(0), ring)
		copy(g.page(1), table)
		d := newDisk(g, 128)
		dev, err := New(Config{Backend: d, Memory: g, Workers: 4})
		if err != nil {
			t.Fatal(err)
		}
		r, err := newRing(dev, g.parameters(), g.event)
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(g.mem)
		dev.stopped, dev.ring = false, r
		dev.mu.Lock()
		for range 2 * r.size {
			there, err := r.next()
			if err != nil {
				r.fail(err)
			}
			if !there || r.over != nil {
				break
			}
			q := r.take()
			r.read(q)
			r.carry(q)
			r.push()
		}
		for r.doing > 0 {
			r.change.Wait()
		}
		dev.mu.Unlock()
		dev.Disconnect()
		if !bytes.Equal(before[pageSize:3*pageSize], g.mem[pageSize:3*pageSize]) || !bytes.Equal(before[4*pageSize:], g.mem[4*pageSize:]) {
			t.Fatal("a page is written that was not lent for it")
		}
	})
}

// FuzzParse reads any bytes as a request.
func FuzzParse(f *testing.F) {
	g := newGuest(f, X86_64, 0)
	g.put(opWrite, 1, 0, segment{ref(4), 0, 7})
	f.Add(bytes.Clone(g.mem[ringHeader:][:maxEntry]), false)
	f.Add(bytes.Clone(g.mem[ringHeader:][:maxEntry]), true)
	f.Fuzz(func(t *testing.T, b []byte, narrow bool) {
		var entry [maxEntry]byte
		copy(entry[:], b)
		p := X86_64
		if narrow {
			p = X86_32
		}
		var q request
		if p.layout().parse(entry[:], &q) != nil {
			return
		}
		if len(q.segments) > maxDirect || len(q.tables) > maxIndirect || q.left > len(q.tables)*pageSegs || q.left > MaxSegments {
			t.Fatalf("%d segments, %d in %d tables", len(q.segments), q.left, len(q.tables))
		}
		for _, s := range q.segments {
			if s.first > s.last || s.last >= pageSectors {
				t.Fatalf("sectors %d to %d", s.first, s.last)
			}
		}
	})
}
