package vhost

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"understudy/epoch"
)

// Any header and payload is parsed or refused; what is parsed is bounded.
func FuzzParse(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})
	f.Add(append([]byte{5, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 32)...))
	f.Add(append([]byte{9, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0}, make([]byte, 40)...))
	f.Add(append([]byte{25, 0, 0, 0, 9, 0, 0, 0, 13, 0, 0, 0, 32, 0, 0, 0, 1}, make([]byte, 8)...))
	f.Add(append([]byte{32, 0, 0, 0, 9, 0, 0, 0, 24, 0, 0, 0}, make([]byte, 24)...))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) < headerSize {
			return
		}
		h, err := parseHeader(p)
		if err != nil {
			return
		}
		if h.size > maxPayload {
			t.Fatal(h.size)
		}
		m, err := parse(h.request, p[headerSize:min(len(p), headerSize+h.size)])
		if err == nil && (len(m.regions) > maxRegions || len(m.config.data) > maxPayload) {
			t.Fatalf("%+v", m)
		}
		_ = h.request.String()
	})
}

// Any bytes are a state or refused; what is accepted is written the same.
func FuzzParseState(f *testing.F) {
	good := appendState([]byte{0x56, 0x46, 1, 1, 1}, 2, flightState{shape: ringShape{num: 64, desc: 4096, avail: 8192, used: 12288}, last: 9, heads: []uint16{3, 1}})
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte{0x56, 0x46, 1, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		wce, rings, err := parseState(p, MaxQueues)
		if err != nil {
			return
		}
		again := []byte{0x56, 0x46, 1, wce, 0}
		for i, r := range rings {
			if r != nil {
				again = appendState(again, i, *r)
				again[4]++
			}
		}
		_, same, err := parseState(again, MaxQueues)
		if err != nil || len(again) != len(p) {
			t.Fatalf("%v: %d and %d bytes", err, len(again), len(p))
		}
		for i := range rings {
			if rings[i] != nil && !slices.Equal(rings[i].heads, same[i].heads) {
				t.Fatal("other heads")
			}
		}
	})
}

// Any content of the region gives heads of the ring, each once.
func FuzzRecover(f *testing.F) {
	f.Add(make([]byte, 200), uint16(3))
	f.Add(bytes.Repeat([]byte{1}, 200), uint16(3))
	f.Fuzz(func(t *testing.T, p []byte, used uint16) {
		part := make(flightPart, partSize(8))
		copy(part, p)
		heads, _ := part.recover(8, used)
		slices.Sort(heads)
		if len(slices.Compact(heads)) != len(heads) || len(heads) > 0 && heads[len(heads)-1] >= 8 {
			t.Fatal(heads)
		}
	})
}

// looseRing is a ring of 16 entries at the start of a page of guest memory,
// with nothing running.
func looseRing(t testing.TB) (*ring, []byte) {
	t.Helper()
	b := newMemoryDisk(0)
	b.info.Sectors, b.quiet = 4096, true
	s := &Server{cfg: Config{QueueSize: 16}, backend: b, info: b.info, budget: newBudget(1 << 20)}
	var err error
	s.limits, err = limitsOf(b.info, Config{Queues: 1, QueueSize: 16, Workers: 1})
	must(t, err)
	r := newRing(s, 0)
	mem := make([]byte, 4*epoch.PageSize)
	m := &mapping{data: mem}
	m.refs.Store(1 << 20) // it is not to be unmapped
	// Two regions that lie side by side for the guest and apart in the file.
	r.mem = &memory{file: m, regions: []region{{gpa: 0, size: 8192, off: 0}, {gpa: 8192, size: 4096, off: 12288}}}
	r.num, r.indirect = 16, true
	r.desc = piece{data: mem[:256]}
	return r, mem
}

// Whatever the guest has written, a chain is read inside its memory or refused.
func FuzzChain(f *testing.F) {
	put := func(d ...descriptor) []byte {
		p := make([]byte, 4096)
		for i, e := range d {
			e.put(p[16*i:])
		}
		return p
	}
	f.Add(put(descriptor{512, 16, 1, 1}, descriptor{8000, 1024, 3, 2}, descriptor{600, 1, 2, 0}))
	f.Add(put(descriptor{1024, 48, 4, 0}))
	f.Add(put(descriptor{512, 16, 1, 1}, descriptor{8192, 4096, 1, 2}, descriptor{600, 1, 2, 0}))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, mem := looseRing(t)
		copy(mem[:8192], p)
		q := r.newWork(0)
		starved, err := r.read(q)
		if err != nil || starved != 0 {
			return
		}
		if len(q.statusAt.data) != 1 || q.statusAt.off >= uint64(len(mem)) || q.statusAt.off >= 8192 && q.statusAt.off < 12288 {
			t.Fatalf("status at %d", q.statusAt.off)
		}
		n := 0
		for _, s := range q.Segments {
			off := int(s.Page)*epoch.PageSize + s.At
			if len(s.Data) == 0 || off+len(s.Data) > len(mem) || off < 12288 && off+len(s.Data) > 8192 || &mem[off] != &s.Data[0] {
				t.Fatalf("a segment of %d bytes at %d", len(s.Data), off)
			}
			n += len(s.Data)
		}
		if q.state == isRead && (n != int(q.Sectors)*epoch.SectorSize && len(q.Segments) > 0 || q.Sector+uint64(q.Sectors) > 4096) {
			t.Fatalf("%d bytes for sector %d, %d sectors", n, q.Sector, q.Sectors)
		}
	})
}

// Memory tables that are accepted translate within the file only.
func TestTableTranslates(t *testing.T) {
	memory := newGuestMemory(t)
	const size = highSize + lowSize
	rapid.Check(t, func(t *rapid.T) {
		var regions []region
		var fds []int
		for range rapid.IntRange(1, 4).Draw(t, "regions") {
			page := func(name string) uint64 { return 4096 * rapid.Uint64Range(0, 1100).Draw(t, name) }
			regions = append(regions, region{gpa: page("gpa"), size: page("size"), user: page("user"), off: page("off")})
			fds = append(fds, int(memory.Fd()))
		}
		m, err := newMemory(regions, fds, nil, nil)
		if err != nil {
			return
		}
		defer m.file.release()
		at, n := rapid.Uint64Range(0, 2*size).Draw(t, "at"), rapid.Uint64Range(1, size).Draw(t, "n")
		var want *region
		for i, r := range regions {
			if at >= r.gpa && at < r.gpa+r.size {
				want = &regions[i]
			}
		}
		p, ok := m.guest(at, n)
		if ok != (want != nil) {
			t.Fatalf("%#x is in %v, found %v", at, want, ok)
		}
		if ok && (p.off != want.off+at-want.gpa || uint64(len(p.data)) != min(n, want.gpa+want.size-at) || p.off+uint64(len(p.data)) > size) {
			t.Fatalf("%+v of %+v", p, want)
		}
	})
}

// Buffers stay within their limit, and a lone request always gets one.
func TestBuffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBudget(1 << 16)
		var out [][]byte
		used := 0
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "give") && len(out) > 0 {
				used -= cap(out[0])
				b.give(out[0])
				out = out[1:]
				continue
			}
			n := rapid.IntRange(1, 1<<15).Draw(t, "n")
			p := b.take(n)
			if p == nil {
				if used == 0 || used+n <= 1<<14 {
					t.Fatalf("no buffer of %d with %d in use", n, used)
				}
				continue
			}
			if len(p) != n {
				t.Fatal(len(p))
			}
			used += cap(p)
			out = append(out, p)
			if used > 1<<16 || b.used != used || b.used+b.cached > 1<<16 {
				t.Fatalf("%d in use, %d noted, %d kept", used, b.used, b.cached)
			}
		}
	})
}

// A request costs no allocation, whichever way it goes.
func TestNoAllocations(t *testing.T) {
	tests := map[string]struct {
		kind uint32
		hold bool
	}{"read": {typeIn, false}, "write": {typeOut, false}, "held write": {typeOut, true}, "flush": {typeFlush, false}}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			q := benchQueue(t, test.hold)
			request := roundTrip(q, test.kind)
			for range 200 {
				request()
			}
			if n := testing.AllocsPerRun(500, request); n >= 1 {
				t.Errorf("%v allocations for a request", n)
			}
		})
	}
}

func benchQueue(t testing.TB, hold bool) *queue {
	b := newMemoryDisk(4096)
	b.quiet = true
	b.hold.Store(hold)
	s := serve(t, b)
	c := newClient(t, s, 1, 64, func(c *client) { c.eventIdx = true })
	return c.queues[0]
}

// roundTrip carries one request out without allocating anything itself.
func roundTrip(q *queue, kind uint32) func() {
	length := 4096
	if kind == typeFlush {
		length = 0
	}
	q.describe(1, kind, 8, length)
	event, back := []byte{1, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 8)
	fds := []unix.PollFd{{Fd: int32(q.callFD), Events: unix.POLLIN}}
	return func() {
		store16(q.c.mem[q.ring+4+2*q.num:], q.seen)
		binary.LittleEndian.PutUint16(q.c.mem[q.ring+4+2*(int(q.avail)%q.num):], 4)
		q.avail++
		store32(q.c.mem[q.ring:], uint32(q.avail)<<16)
		_, _ = unix.Write(q.kickFD, event)
		for q.usedIdx() == q.seen {
			_, _ = unix.Poll(fds, 1000)
			_, _ = unix.Read(q.callFD, back)
		}
		q.seen++
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, test := range []struct {
		name string
		kind uint32
		hold bool
	}{{"read4k", typeIn, false}, {"write4k", typeOut, false}, {"held4k", typeOut, true}} {
		b.Run(test.name, func(b *testing.B) {
			request := roundTrip(benchQueue(b, test.hold), test.kind)
			b.ReportAllocs()
			for b.Loop() {
				request()
			}
		})
	}
}
