package blkif

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"understudy/clock"
	"understudy/disk"
	"understudy/disk/disktest"
	"understudy/epoch"
	"understudy/hypervisor/xen/xentest"
)

// Where the layouts have what, as a compiler lays blkif.h's structures out.
func TestLayouts(t *testing.T) {
	for p, want := range map[Protocol]layout{
		X86_64: {entry: 112, id: 8, sector: 16, segments: 24, indirectHandle: 24, indirect: 28, discardSectors: 24},
		X86_32: {entry: 108, id: 4, sector: 12, segments: 20, indirectHandle: 20, indirect: 24, discardSectors: 20},
	} {
		l := p.layout()
		if l != want || l.segments+maxDirect*segmentLen != l.entry || l.indirect+4*maxIndirect > l.entry {
			t.Errorf("protocol %d: %+v", p, l)
		}
		if l.entries(pageSize) != 32 || l.entries(16*pageSize) != 512 {
			t.Errorf("protocol %d: rings of %d and %d entries", p, l.entries(pageSize), l.entries(16*pageSize))
		}
	}
	for s, want := range map[string]Protocol{"": X86_64, "x86_64-abi": X86_64, "x86_32-abi": X86_32} {
		if p, err := ParseProtocol(s); p != want || err != nil {
			t.Errorf("%q is %d, %v", s, p, err)
		}
	}
	if _, err := ParseProtocol("arm-abi"); err == nil {
		t.Error("arm-abi is known")
	}
}

func TestAGuestsRequests(t *testing.T) {
	for _, p := range []Protocol{X86_64, X86_32} {
		for _, hold := range []bool{false, true} {
			g := newGuest(t, p, 0)
			d := newDisk(g, 4096)
			d.hold.Store(hold)
			connected(t, g, d)
			in, out := g.data(), g.data()+40

			copy(g.page(in), pattern(1))
			g.put(opWrite, 7, 8, segment{ref(in), 0, 7})
			g.expect(7, statusOK)
			g.put(opRead, 8, 9, segment{ref(out), 2, 3})
			g.expect(8, statusOK)
			if want := append(append(make([]byte, 1024), pattern(1)[:1024]...), make([]byte, 2048)...); !bytes.Equal(g.page(out), want) {
				t.Error("what was read is not what was written")
			}
			if dirty := d.collect(); !dirty[0] || !dirty[epoch.GFN(out)] || dirty[epoch.GFN(in)] || len(dirty) != 2 {
				t.Errorf("dirty are %v", slices.Collect(maps.Keys(dirty)))
			}

			// An indirect request of 32 pages.
			var segments []segment
			for i := range 32 {
				copy(g.page(in+i), pattern(byte(i)))
				segments = append(segments, segment{ref(in + i), 0, 7})
			}
			g.put(opWrite, 1<<63|9, 100, segments...)
			g.expect(1<<63|9, statusOK)
			for i := range segments {
				segments[i].ref = ref(out + i)
			}
			g.put(opRead, 10, 100, segments...)
			g.expect(10, statusOK)
			if !bytes.Equal(g.mem[out*pageSize:][:32*pageSize], g.mem[in*pageSize:][:32*pageSize]) {
				t.Error("an indirect request reads something else")
			}

			g.put(opFlush, 11, ^uint64(0)) // as Linux asks for it: it has no sectors
			g.expect(11, statusOK)
			copy(g.page(in), pattern(9))
			g.put(opFlush, 12, 0, segment{ref(in), 0, 0}) // a flush, then a write
			g.expect(12, statusOK)
			if d.flushes != 2 || d.data[0] != 9 {
				t.Errorf("%d flushes, the first byte is %d", d.flushes, d.data[0])
			}
			g.discard(13, 100, 200) // in pieces of 64
			g.expect(13, statusOK)
			if bytes.ContainsFunc(d.data[100*512:][:200*512], func(r rune) bool { return r != 0 }) || d.data[8*512] != 1 {
				t.Error("discarded are other sectors than these")
			}
			g.discard(14, 5, 0)
			g.expect(14, statusOK)
		}
	}
}

// What a guest must not ask for is refused, and everything else goes on.
func TestWhatAGuestMustNotAskFor(t *testing.T) {
	g := newGuest(t, X86_64, 0)
	d := newDisk(g, 64)
	at := g.data()
	lend := func(ref uint32, l lent) { g.lent[ref] = l }
	lend(1, lent{page: at, readOnly: true})
	connected(t, g, d)
	raw := func(op byte, change func(e []byte)) func() {
		return func() {
			e := make([]byte, g.l.entry)
			e[0] = op
			change(e)
			g.putRaw(e)
		}
	}
	ok := segment{ref(at), 0, 7}
	for _, c := range []struct {
		name   string
		put    func()
		status int16
	}{
		{"beyond the end", func() { g.put(opRead, 0, 57, ok) }, statusError},
		{"far beyond the end", func() { g.put(opWrite, 0, 1<<63, ok) }, statusError},
		{"around the end", func() { g.put(opWrite, 0, ^uint64(0)-3, ok) }, statusError},
		{"no segments", func() { g.put(opRead, 0, 0) }, statusError},
		{"sectors turned round", func() { g.put(opRead, 0, 0, segment{ref(at), 5, 4}) }, statusError},
		{"sectors beyond the page", func() { g.put(opRead, 0, 0, segment{ref(at), 0, 8}) }, statusError},
		{"a page that is not lent", func() { g.put(opRead, 0, 0, segment{9999, 0, 7}) }, statusError},
		{"into a page lent for reading", func() { g.put(opRead, 0, 0, segment{1, 0, 7}) }, statusError},
		{"too many segments", raw(opRead, func(e []byte) { e[1] = 12 }), statusError},
		{"a barrier", func() { g.put(opBarrier, 0, 0, ok) }, statusUnsupported},
		{"nothing known", func() { g.put(99, 0, 0) }, statusUnsupported},
		{"indirect of an indirect", raw(opIndirect, func(e []byte) { e[1], e[2] = opIndirect, 1 }), statusError},
		{"indirect discard", raw(opIndirect, func(e []byte) { e[1], e[2] = opDiscard, 1 }), statusError},
		{"indirect with none", raw(opIndirect, func(e []byte) { e[1] = opRead }), statusError},
		{"indirect with too many", raw(opIndirect, func(e []byte) { e[1], e[2], e[3] = opRead, 1, 1 }), statusError},
		{"a table that is not lent", raw(opIndirect, func(e []byte) { e[1], e[2] = opRead, 1 }), statusError},
		{"discard beyond the end", func() { g.discard(0, 1, 64) }, statusError},
		{"discard around the end", func() { g.discard(0, 63, ^uint64(0)) }, statusError},
	} {
		before := bytes.Clone(d.data)
		c.put()
		g.push()
		if _, _, status := g.response(); status != c.status {
			t.Errorf("%s: status %d, want %d", c.name, status, c.status)
		}
		if !bytes.Equal(before, d.data) {
			t.Errorf("%s: the disk has changed", c.name)
		}
	}
	g.put(opWrite, 5, 0, segment{1, 0, 7}) // from a page lent for reading
	g.expect(5, statusOK)
	d.mu.Lock()
	d.fail = errors.New("broken")
	d.mu.Unlock()
	g.put(opWrite, 6, 0, ok)
	g.expect(6, statusError)
	d.mu.Lock()
	d.fail, d.again = nil, 3
	d.mu.Unlock()
	g.put(opWrite, 7, 0, ok)
	g.expect(7, statusOK)
}

func TestAReadOnlyDisk(t *testing.T) {
	g := newGuest(t, X86_64, 0)
	d := newDisk(g, 64)
	d.info.ReadOnly, d.info.MaxZeroSectors = true, 0
	connected(t, g, d)
	s := segment{ref(g.data()), 0, 7}
	g.put(opWrite, 1, 0, s)
	g.expect(1, statusError)
	g.put(opFlush, 2, 0, s)
	g.expect(2, statusError)
	g.discard(3, 0, 8)
	g.expect(3, statusUnsupported)
	g.put(opRead, 4, 0, s)
	g.expect(4, statusOK)
	g.put(opFlush, 5, 0)
	g.expect(5, statusOK)
}

// A ring that makes no sense is given up, with a reason, and nothing of the guest
// is touched any more.
func TestARingThatMakesNoSense(t *testing.T) {
	g := newGuest(t, X86_64, 0)
	d := newDisk(g, 64)
	dev := connected(t, g, d)
	g.made = g.size + 1
	g.push()
	<-g.event.Closed()
	before := bytes.Clone(g.mem)
	g.event.Kick()
	dev.Stop()
	dev.Start()
	dev.Disconnect()
	if !bytes.Equal(before, g.mem) || !dev.Stopped() {
		t.Error("the guest is touched after its ring was given up")
	}
	for name, p := range map[string]Parameters{
		"no page": {}, "three pages": {Refs: []uint32{100, 101, 102}}, "many": {Refs: make([]uint32, 32)},
		"not lent": {Refs: []uint32{1}}, "protocol": {Protocol: 2, Refs: []uint32{100}},
	} {
		e := xentest.NewEvent()
		if err := dev.Connect(p, e); err == nil {
			t.Errorf("%s: connected", name)
		}
		<-e.Closed() // it is ours no more
	}
	// A new driver, on the same device.
	again := newGuest(t, X86_64, 0)
	dev.cfg.Memory, d.mem = again, again.mem
	if err := dev.Connect(again.parameters(), again.event); err != nil {
		t.Fatal(err)
	}
	again.put(opFlush, 1, 0)
	again.expect(1, statusOK)
}

// A stop waits for no disk; what finishes meanwhile reaches the guest when it runs
// again, and not a byte before.
func TestAStopWaitsForNoDisk(t *testing.T) {
	g := newGuest(t, X86_64, 0)
	d := newDisk(g, 64)
	for i := range d.data {
		d.data[i] = 0xaa
	}
	d.gate = make(chan struct{})
	dev := connected(t, g, d)
	at := g.data()
	g.put(opRead, 1, 0, segment{ref(at), 0, 7})
	g.put(opRead, 2, 8, segment{ref(at + 1), 0, 7})
	g.push()
	<-d.arrived
	<-d.arrived
	dev.Stop()
	d.collect()
	before := bytes.Clone(g.mem)
	close(d.gate)
	g.put(opFlush, 3, 0) // asked for while nobody serves; the guest's own doing
	g.push()
	copy(before[:ringHeader+3*g.l.entry], g.mem)
	dev.mu.Lock()
	for dev.ring.doing > 0 {
		dev.ring.change.Wait()
	}
	dev.mu.Unlock()
	if !bytes.Equal(before, g.mem) || len(d.collect()) != 0 {
		t.Fatal("the guest is touched while it stands still")
	}
	if state := dev.AppendInFlight(nil); len(state) != 0 || !dev.Stopped() {
		t.Errorf("in flight are %d bytes", len(state))
	}
	if dev.Resubmit(nil) != nil || dev.Resubmit([]byte("x")) == nil {
		t.Error("a state of another front end is taken")
	}
	dev.Start()
	var ids []uint64
	for range 3 {
		id, _, status := g.response()
		if status != statusOK {
			t.Errorf("request %d has the status %d", id, status)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if !slices.Equal(ids, []uint64{1, 2, 3}) || !bytes.Equal(g.page(at), pattern(0xaa)) {
		t.Errorf("answered are %v", ids)
	}
	if dirty := d.collect(); !dirty[epoch.GFN(at)] || !dirty[epoch.GFN(at+1)] {
		t.Errorf("dirty are %v", slices.Collect(maps.Keys(dirty)))
	}
}

// What is with the disk when the ring ends sees its context end, and the guest's
// memory is left alone.
func TestDisconnectEndsRequests(t *testing.T) {
	g := newGuest(t, X86_64, 0)
	d := newDisk(g, 64)
	d.gate = make(chan struct{}) // never opened
	dev := connected(t, g, d)
	for i := range 20 { // more than there are workers
		g.put(opRead, uint64(i), 0, segment{ref(g.data() + i), 0, 7})
	}
	g.push()
	for range 8 {
		<-d.arrived
	}
	dev.Disconnect()
	if g.seen != 0 || len(d.arrived) != 0 {
		t.Error("a request is answered after its ring has ended")
	}
	if _, err := New(Config{Backend: &memoryDisk{info: disk.Info{MaxSectors: 8}}}); err == nil {
		t.Error("a disk that takes less than a request is served")
	}
	_ = dev.Close()
	if err := dev.Connect(g.parameters(), xentest.NewEvent()); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("a closed device connects: %v", err)
	}
}

// Whatever a guest asks for, in whatever order, with pauses in between, the disk
// is what a plain array would be, what is read is what is there, and every page
// that we have written to is reported.
func TestRequestsEqualTheirOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const sectors = 512
		g := newGuest(t, rapid.SampledFrom([]Protocol{X86_64, X86_32}).Draw(rt, "protocol"), rapid.IntRange(0, 2).Draw(rt, "order"))
		d := newDisk(g, sectors)
		dev := connected(t, g, d)
		defer func() { _ = dev.Close() }()
		want := make([]byte, sectors*epoch.SectorSize)
		for id := range rapid.Uint64Range(1, 80).Draw(rt, "requests") {
			own := (g.ring + 1) * pageSize // the ring and the tables
			before := make([]byte, len(g.mem))
			copy(before[own:], g.mem[own:])
			d.hold.Store(rapid.Bool().Draw(rt, "hold"))
			op := rapid.SampledFrom([]byte{opRead, opWrite, opFlush, opDiscard}).Draw(rt, "op")
			sector := rapid.Uint64Range(0, sectors-1).Draw(rt, "sector")
			if rapid.Bool().Draw(rt, "pause") {
				dev.Stop()
			}
			d.collect()
			var into []int
			switch op {
			case opRead, opWrite:
				var segments []segment
				left := sectors - sector
				for i := range rapid.IntRange(1, 40).Draw(rt, "segments") {
					first := rapid.Uint8Range(0, 7).Draw(rt, "first")
					last := rapid.Uint8Range(first, 7).Draw(rt, "last")
					if n := uint64(last-first) + 1; n <= left {
						left -= n
						segments = append(segments, segment{ref(g.data() + i), first, last})
					}
				}
				if len(segments) == 0 {
					continue
				}
				at := sector * epoch.SectorSize
				for _, s := range segments {
					page := g.page(g.lent[s.ref].page)[int(s.first)*512 : (int(s.last)+1)*512]
					if op == opRead {
						copy(before[g.lent[s.ref].page*pageSize+int(s.first)*512:], want[at:at+uint64(len(page))])
						into = append(into, g.lent[s.ref].page)
					} else {
						for i := range page {
							page[i] = byte(id)
						}
						copy(before[g.lent[s.ref].page*pageSize+int(s.first)*512:], page)
						copy(want[at:], page)
					}
					at += uint64(len(page))
				}
				g.put(op, id, sector, segments...)
			case opFlush:
				g.put(op, id, 0)
			case opDiscard:
				n := rapid.Uint64Range(0, sectors-sector).Draw(rt, "count")
				clear(want[sector*epoch.SectorSize:][:n*epoch.SectorSize])
				g.discard(id, sector, n)
			}
			g.push()
			dev.Start()
			if got, gotOp, status := g.response(); got != id || gotOp != op || status != statusOK {
				rt.Fatalf("response %d for operation %d with status %d, want %d for %d", got, gotOp, status, id, op)
			}
			if !bytes.Equal(g.mem[own:], before[own:]) {
				rt.Fatal("the guest's memory is not what it should be")
			}
			dirty := d.collect()
			for _, page := range into {
				if !dirty[epoch.GFN(page)] {
					rt.Fatalf("page %d was read into, and nobody was told", page)
				}
			}
		}
		if !bytes.Equal(d.data, want) {
			rt.Fatal("the disk is not what it should be")
		}
	})
}

// A protected disk holds the guest's writes until its epoch is acknowledged: behind
// a Xen guest's ring is the same code as behind a virtio ring.
func TestHeldWrites(t *testing.T) {
	media := disktest.NewMedia(256, true)
	set, err := disk.NewSet(disk.SetConfig{
		Pages: guestPages, Disks: []disk.DiskConfig{{Store: media.Open(), Serial: "xvda"}}, HeldBytes: disk.MinHeldBytes,
		Clock: clock.Boot{}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = set.Close() }()
	set.Own(1)
	if err := set.Allow(clock.Instant(1 << 62)); err != nil {
		t.Fatal(err)
	}
	set.Hold()

	g := newGuest(t, X86_64, 0)
	dev, err := New(Config{Backend: set.Disk(0), Memory: g})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	if err := set.Disk(0).Attach(dev); err != nil {
		t.Fatal(err)
	}
	if err := dev.Connect(g.parameters(), g.event); err != nil {
		t.Fatal(err)
	}
	dev.Start()
	in, out := g.data(), g.data()+1
	copy(g.page(in), pattern('a'))
	g.put(opWrite, 1, 8, segment{ref(in), 0, 7})
	g.expect(1, statusOK)
	g.put(opFlush, 2, 0)
	g.expect(2, statusOK)
	g.put(opRead, 3, 8, segment{ref(out), 0, 7})
	g.expect(3, statusOK)
	if !bytes.Equal(g.page(out), pattern('a')) {
		t.Error("the guest does not read what it wrote")
	}
	if err := set.Seal(1); err == nil {
		t.Error("an epoch is sealed while the front end serves")
	}
	dev.Stop()
	if err := set.Seal(1); err != nil {
		t.Fatal(err)
	}
	dirty := epoch.NewPageSet(guestPages)
	set.CollectDirty(dirty)
	if !dirty.Contains(0) || !dirty.Contains(epoch.GFN(out)) || dirty.Contains(epoch.GFN(in)) {
		t.Error("dirty are other pages than the ring and what was read into")
	}
	writes, _ := set.Sealed(1)
	if len(writes) != 2 || writes[0].Sector != 8 || len(writes[0].Pages) != 1 || writes[0].Pages[0] != epoch.GFN(in) {
		t.Errorf("the epoch has %v", writes)
	}
	if !bytes.Equal(media.Bytes(), make([]byte, 256*512)) {
		t.Error("something reached the disk before its release")
	}
	set.Release(1)
	dev.Start()
	if err := set.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(media.Durable()[8*512:16*512], pattern('a')) {
		t.Error("the epoch is not on the disk")
	}
}
