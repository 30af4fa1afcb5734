package vhost

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// Each kind of request has the outcome that the standard says.
func TestRequests(t *testing.T) {
	sectors := func(n int) int { return n * epoch.SectorSize }
	rng := func(sector uint64, n, flags uint32) []byte { return append(u64(sector), pair(n, flags)...) }
	tests := []struct {
		name   string
		kind   uint32
		sector uint64
		length int
		out    []byte // what the guest gives
		ro     bool
		status byte
		used   uint32
	}{
		{name: "read", kind: typeIn, sector: 9, length: sectors(3), used: 1537},
		{name: "read the last", kind: typeIn, sector: 4095, length: sectors(1), used: 513},
		{name: "read past the end", kind: typeIn, sector: 4095, length: sectors(2), status: statusIOErr, used: 1},
		{name: "read far away", kind: typeIn, sector: 1<<64 - 1, length: sectors(3), status: statusIOErr, used: 1},
		{name: "read half a sector", kind: typeIn, sector: 1, length: 300, status: statusIOErr, used: 1},
		{name: "read nothing", kind: typeIn, sector: 1, used: 1},
		{name: "write", kind: typeOut, sector: 7, length: sectors(2), out: bytes.Repeat([]byte{7}, 1024), used: 1},
		{name: "write past the end", kind: typeOut, sector: 4095, length: sectors(2), status: statusIOErr, used: 1},
		{name: "write to a read-only disk", kind: typeOut, sector: 7, length: sectors(2), ro: true, status: statusIOErr, used: 1},
		{name: "flush", kind: typeFlush, used: 1},
		{name: "discard", kind: typeDiscard, length: 16, out: rng(8, 16, 0), used: 1},
		{name: "discard past the end", kind: typeDiscard, length: 16, out: rng(4090, 16, 0), status: statusIOErr, used: 1},
		{name: "discard with a flag", kind: typeDiscard, length: 16, out: rng(8, 16, 1), status: statusUnsupported, used: 1},
		{name: "discard two ranges", kind: typeDiscard, length: 32, out: append(rng(8, 16, 0), rng(80, 16, 0)...), status: statusIOErr, used: 1},
		{name: "discard too much", kind: typeDiscard, length: 16, out: rng(0, 32769, 0), status: statusIOErr, used: 1},
		{name: "discard on a read-only disk", kind: typeDiscard, length: 16, out: rng(8, 16, 0), ro: true, status: statusIOErr, used: 1},
		{name: "write zeroes", kind: typeWriteZeroes, length: 16, out: rng(8, 16, 1), used: 1},
		{name: "write zeroes, odd flag", kind: typeWriteZeroes, length: 16, out: rng(8, 16, 2), status: statusUnsupported, used: 1},
		{name: "name", kind: typeGetID, length: 20, used: 21},
		{name: "unknown", kind: 77, length: 20, status: statusUnsupported, used: 1},
	}
	for _, test := range tests {
		for _, hold := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, hold %v", test.name, hold), func(t *testing.T) {
				b := newMemoryDisk(4096)
				fill(b.data)
				b.hold.Store(hold)
				b.info.ReadOnly = test.ro
				s := serve(t, b)
				c := newClient(t, s, 1, 64, func(c *client) {
					if test.ro {
						c.features &^= featureDiscard | featureWriteZeroes
					}
				})
				q := c.queues[0]
				copy(c.data(q, 3, test.length), test.out)
				b.mu.Lock()
				before := bytes.Clone(b.data)
				b.mu.Unlock()
				memory := c.snapshot()
				got := q.do(3, test.kind, test.sector, test.length)
				if want := (completion{12, test.used, test.status}); got != want {
					t.Fatalf("completed with %+v, want %+v", got, want)
				}
				b.mu.Lock()
				defer b.mu.Unlock()
				for _, page := range c.changed(memory) {
					if off := int(page) * epoch.PageSize; !b.dirty[page] && (off < lowOff || off >= q.used&^4095) && off != c.slot(q, 3) {
						t.Errorf("page %d was written and not reported", page)
					}
				}
				if b.dirty[epoch.GFN(c.slot(q, 3)/epoch.PageSize)] != true {
					t.Error("the status byte's page was not reported")
				}
				switch {
				case test.status != 0:
					if !bytes.Equal(before, b.data) {
						t.Error("a request that failed has changed the disk")
					}
				case test.kind == typeIn:
					if !bytes.Equal(c.data(q, 3, test.length), b.data[sectors(int(test.sector)):][:test.length]) {
						t.Error("another content was read than the disk has")
					}
				case test.kind == typeOut:
					if !bytes.Equal(test.out, b.data[sectors(int(test.sector)):][:test.length]) {
						t.Error("the disk has not got what was written")
					}
				case test.kind == typeDiscard || test.kind == typeWriteZeroes:
					if !bytes.Equal(b.data[8*512:24*512], make([]byte, 16*512)) || b.data[24*512+8] == 0 {
						t.Error("not the right sectors are zero")
					}
				case test.kind == typeGetID:
					if got := string(c.data(q, 3, 20)); got != "understudy-0\x00\x00\x00\x00\x00\x00\x00\x00" {
						t.Errorf("the serial is %q", got)
					}
				}
			})
		}
	}
}

// Random requests on several rings that go around, in every form of the ring,
// leave the disk as a model has it, and every page that changed is reported.
func TestRandomRequests(t *testing.T) {
	for i := range 8 {
		indirect, eventIdx, hold := i&1 != 0, i&2 != 0, i&4 != 0
		t.Run(fmt.Sprintf("indirect %v, event index %v, hold %v", indirect, eventIdx, hold), func(t *testing.T) {
			b := newMemoryDisk(4096)
			fill(b.data)
			b.hold.Store(hold)
			s := serve(t, b, func(c *Config) { c.Queues, c.Buffers, c.Workers = 3, 32<<10, 3 })
			c := newGuest(t, newGuestMemory(t), 3, 32)
			c.indirect, c.eventIdx = indirect, eventIdx
			for _, q := range c.queues { // shortly before the index goes around
				q.avail, q.seen = 0xff00, 0xff00
				store32(c.mem[q.used:], 0xff00<<16)
				store32(c.mem[q.ring:], 0xff00<<16)
			}
			c.connect(s.cfg.Path)
			c.start()
			memory := c.snapshot()
			var all sync.WaitGroup
			for _, q := range c.queues {
				all.Go(func() { randomRequests(q, b, uint64(i)) })
			}
			all.Wait()
			c.stop()
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, page := range c.changed(memory) {
				if off := int(page) * epoch.PageSize; off < lowOff && off%slotSpace != 0 && !b.dirty[page] && !driverWrote(c, off) {
					t.Errorf("page %d was written and not reported", page)
				}
			}
			for _, q := range c.queues {
				for at := q.used; at < q.used+4+8*q.num; at += epoch.PageSize {
					if !b.dirty[epoch.GFN(at/epoch.PageSize)] {
						t.Error("the used ring was not reported")
					}
				}
			}
		})
	}
}

// driverWrote tells slots of writes, the even ones of a queue, from those of
// reads.
func driverWrote(c *client, off int) bool {
	for _, q := range c.queues {
		if n := off/slotSpace - c.slot(q, 0)/slotSpace; n >= 0 && n < maxSlots/len(c.queues) {
			return n%2 == 0
		}
	}
	return false
}

// randomRequests keeps up to 7 requests under way in a third of the disk of
// its own; each slot has a stretch of that third to itself.
func randomRequests(q *queue, b *memoryDisk, seed uint64) {
	r := rand.New(rand.NewPCG(seed, uint64(q.index)))
	t := q.c.t
	const slots, stretch = 7, 24
	model := map[int][]byte{} // of the even slots: what was written last
	busy := map[int]int{}     // slot: length
	for done := 0; done < 400; {
		old := q.avail
		for range 1 + r.IntN(4) {
			n := r.IntN(slots)
			if _, is := busy[n]; is {
				continue
			}
			length := (1 + r.IntN(20)) * epoch.SectorSize
			sector := uint64(q.index*1024 + n*stretch)
			if n%2 == 0 {
				p := q.c.data(q, n, length)
				for i := range p {
					p[i] = byte(r.Uint32())
				}
				model[n] = bytes.Clone(p)
				q.put(n, typeOut, sector, length)
			} else {
				clear(q.c.data(q, n, length))
				q.put(n, typeIn, sector, length)
			}
			busy[n] = length
		}
		q.kick(old)
		for len(busy) > 0 && (r.IntN(3) > 0 || len(busy) == slots) {
			got := q.next()
			n := int(got.head) / 4
			length, is := busy[n]
			if !is || got.status != statusOK {
				t.Errorf("ring %d: %+v was completed", q.index, got)
				return
			}
			delete(busy, n)
			done++
			at := (q.index*1024 + n*stretch) * epoch.SectorSize
			b.mu.Lock()
			want := b.data[at:][:length]
			if n%2 == 0 && !bytes.Equal(model[n], want) {
				t.Errorf("slot %d: the disk has not what was written", n)
			}
			if n%2 == 1 && !bytes.Equal(q.c.data(q, n, length), want) {
				t.Errorf("slot %d: read something else", n)
			}
			b.mu.Unlock()
		}
	}
	for range busy {
		q.next()
	}
}

// A slow request does not keep others from being served, on its own ring or
// another.
func TestSlowRequestStopsNoOther(t *testing.T) {
	b := newMemoryDisk(4096)
	s := serve(t, b)
	c := newClient(t, s, 2, 64)
	b.shut()
	q := c.queues[0]
	q.put(1, typeIn, 100, 4096)
	q.kick(0)
	if got := <-b.arrived; got != 100 {
		t.Fatal(got)
	}
	b.mu.Lock()
	gate := b.gate
	b.gate = nil
	b.mu.Unlock()
	for n := range 10 {
		if got := q.do(2, typeIn, uint64(n), 4096); got.head != 8 || got.status != 0 {
			t.Fatal(got)
		}
		if got := c.queues[1].do(2, typeOut, uint64(n), 4096); got.head != 8 || got.status != 0 {
			t.Fatal(got)
		}
	}
	close(gate)
	if got := q.next(); got.head != 4 || got.status != 0 {
		t.Fatal(got)
	}
}

// A driver that breaks its ring gets that ring stopped, an error event, and
// the others served; set up anew the ring works again.
func TestHostileRings(t *testing.T) {
	one := func(d ...descriptor) func(*queue) {
		return func(q *queue) {
			for i, e := range d {
				e.put(q.c.mem[q.desc+16*i:])
			}
			q.offer(0)
		}
	}
	h, w, n := uint64(highGPA), uint16(descWriteFlag), uint16(descNextFlag)
	tests := map[string]func(*queue){
		"loop":                one(descriptor{h, 16, n, 1}, descriptor{h, 1, n | w, 1}),
		"long loop":           one(descriptor{h, 16, n, 1}, descriptor{h, 1, n, 0}),
		"next outside":        one(descriptor{h, 16, n, 64}),
		"head outside":        func(q *queue) { q.offer(64) },
		"no memory":           one(descriptor{h - 1, 16, n, 1}, descriptor{h, 1, w, 0}),
		"end outside":         one(descriptor{h + highSize - 8, 16, n, 1}, descriptor{h, 1, w, 0}),
		"wrap":                one(descriptor{1<<64 - 8, 16, n, 1}, descriptor{h, 1, w, 0}),
		"absurd length":       one(descriptor{h, 16, n, 1}, descriptor{h, 1<<32 - 1, w, 0}),
		"empty":               one(descriptor{h, 16, n, 1}, descriptor{h, 0, w, 0}),
		"short header":        one(descriptor{h, 15, n, 1}, descriptor{h, 1, w, 0}),
		"no status":           one(descriptor{h, 16, 0, 0}),
		"readable after":      one(descriptor{h, 16, n | w, 1}, descriptor{h, 16, 0, 0}),
		"indirect in a chain": one(descriptor{h, 16, n, 1}, descriptor{h, 16, descIndirectFlag, 0}),
		"indirect with next":  one(descriptor{h, 16, descIndirectFlag | n, 1}),
		"indirect of nothing": one(descriptor{h, 0, descIndirectFlag, 0}),
		"indirect, odd":       one(descriptor{h, 17, descIndirectFlag, 0}),
		"indirect, huge":      one(descriptor{h, 1 << 20, descIndirectFlag, 0}),
		"indirect, outside":   one(descriptor{h + highSize, 32, descIndirectFlag, 0}),
		"indirect in indirect": func(q *queue) {
			descriptor{h, 32, descIndirectFlag, 0}.put(q.c.mem)
			one(descriptor{h, 32, descIndirectFlag, 0})(q)
		},
		"indirect loop":          func(q *queue) { descriptor{h, 32, n, 0}.put(q.c.mem); one(descriptor{h, 32, descIndirectFlag, 0})(q) },
		"available index jumps":  func(q *queue) { store32(q.c.mem[q.ring:], 65<<16) },
		"available index behind": func(q *queue) { store32(q.c.mem[q.ring:], 0xffff<<16) },
	}
	for name, breaks := range tests {
		t.Run(name, func(t *testing.T) {
			b := newMemoryDisk(4096)
			s := serve(t, b)
			c := newClient(t, s, 2, 64, func(c *client) { c.features |= featureIndirect })
			q := c.queues[0]
			before := q.usedIdx()
			breaks(q)
			_, err := unix.Write(q.kickFD, u64(1))
			must(t, err)
			if !wait(q.errFD, 10*time.Second) {
				t.Fatal("no error event")
			}
			if q.usedIdx() != before {
				t.Error("something was completed")
			}
			if got := c.queues[1].do(1, typeIn, 5, 512); got.status != statusOK {
				t.Errorf("the other ring: %+v", got)
			}
			c.stop()
			store32(c.mem[q.ring:], 0)
			q.avail = 0
			c.start()
			if got := q.do(1, typeIn, 5, 512); got.status != statusOK {
				t.Errorf("set up anew: %+v", got)
			}
		})
	}
}

// A head that is made available twice is an error once the first is in flight.
func TestSameHeadTwice(t *testing.T) {
	b := newMemoryDisk(4096)
	s := serve(t, b)
	c := newClient(t, s, 1, 64)
	b.shut()
	defer b.open()
	q := c.queues[0]
	q.put(1, typeIn, 1, 512)
	q.offer(4)
	q.kick(0)
	if !wait(q.errFD, 10*time.Second) {
		t.Fatal("no error event")
	}
}

// The hypervisor's log of dirty pages shows what the device writes.
func TestDirtyLog(t *testing.T) {
	b := newMemoryDisk(4096)
	s := serve(t, b)
	c := newClient(t, s, 1, 64)
	q := c.queues[0]
	const size = (highGPA + highSize) / 4096 / 8
	fd, err := unix.MemfdCreate("log", unix.MFD_CLOEXEC)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	must(t, unix.Ftruncate(fd, size))
	log, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer func() { _ = unix.Munmap(log) }()
	c.ask(setLogBase, u64(size, 0), fd)
	q.do(1, typeIn, 8, 8192)
	if slices.ContainsFunc(log, func(b byte) bool { return b != 0 }) {
		t.Fatal("pages are logged before that is asked for")
	}
	c.features |= featureLogAll
	c.send(setFeatures, u64(c.features))
	c.send(setVringAddr, append(pair(0, vringFlagLog), u64(user(q.desc), user(q.used), user(q.ring), gpaOf(q.used))...))
	c.ask(getQueueNum, nil)
	q.do(2, typeIn, 8, 8192)
	for at := range int64(size * 8) {
		logged := log[at/8]>>(at%8)&1 != 0
		gpa := uint64(at) * 4096
		slot := gpaOf(c.slot(q, 2))
		want := gpa >= slot && gpa < slot+3*4096 && gpa != slot+12<<10 || gpa == gpaOf(q.used)&^4095
		if logged != want {
			t.Errorf("address %#x: logged %v, want %v", gpa, logged, want)
		}
	}
}

// A guest without a write cache has its writes flushed before they complete.
func TestWriteThrough(t *testing.T) {
	for _, hold := range []bool{false, true} {
		b := newMemoryDisk(4096)
		b.hold.Store(hold)
		s := serve(t, b)
		c := newClient(t, s, 1, 64, func(c *client) { c.features |= featureConfigWCE })
		write := func(want int) {
			t.Helper()
			b.mu.Lock()
			b.flushes = 0
			b.mu.Unlock()
			if got := c.queues[0].do(1, typeOut, 0, 4096); got.status != 0 {
				t.Fatal(got)
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.flushes != want {
				t.Fatalf("hold %v: %d flushes, want %d", hold, b.flushes, want)
			}
		}
		write(0)
		set := binary.LittleEndian.AppendUint32(nil, configWCE)
		set = append(append(set, pair(1, 0)...), 0)
		c.send(setConfig, set)
		c.ask(getQueueNum, nil)
		write(1)
		// A daemon that comes later knows.
		c.connect(s.cfg.Path)
		s.wce.Store(1)
		c.start()
		write(1)
		if got := s.AppendInFlight(nil); got[3] != 0 {
			t.Error("the other host would not know")
		}
	}
}
