package vhost

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// begin puts requests into a shut disk and waits until they are there.
func begin(q *queue, b *memoryDisk, first int, kinds ...uint32) {
	q.c.t.Helper()
	old := q.avail
	for i, kind := range kinds {
		n := first + i
		if kind == typeOut {
			fill(q.c.data(q, n, 4096))
		}
		q.put(n, kind, uint64(8*n), 4096)
	}
	q.kick(old)
	for range kinds {
		select {
		case <-b.arrived:
		case <-time.After(10 * time.Second):
			q.c.t.Fatal("a request has not reached the disk")
		}
	}
}

// drained waits until no request is in Do, and its outcome is noted.
func drained(t *testing.T, s *Server) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		busy := false
		for _, r := range s.rings {
			r.mu.Lock()
			for _, q := range r.flight {
				busy = busy || q != nil && q.state == isDoing
			}
			r.mu.Unlock()
		}
		if !busy {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("requests hang")
		}
		time.Sleep(time.Millisecond)
	}
}

// A pause does not wait for a slow request; while it lasts guest memory is left
// alone although the request finishes; afterwards it completes, once.
func TestPauseDoesNotWait(t *testing.T) {
	b := newMemoryDisk(4096)
	fill(b.data)
	s := serve(t, b)
	c := newClient(t, s, 2, 64)
	q := c.queues[0]
	q.do(9, typeIn, 8, 512)
	b.shut()
	begin(q, b, 1, typeIn, typeOut, typeIn)
	bases := c.stop()
	if want := []uint16{4, 0}; !slices.Equal(bases, want) || !s.Stopped() {
		t.Fatalf("the rings stand at %v, want %v; stopped %v", bases, want, s.Stopped())
	}
	if _, rings, err := parseState(s.AppendInFlight(nil), 2); err != nil || !slices.Equal(rings[0].heads, []uint16{4, 8, 12}) || rings[1] != nil {
		t.Fatalf("in flight: %+v, %v", rings[0], err)
	}
	memory := c.snapshot()
	b.mu.Lock()
	clear(b.dirty)
	b.mu.Unlock()
	b.open()
	drained(t, s)
	b.mu.Lock()
	if p := c.changed(memory); len(p) > 0 || len(b.dirty) > 0 {
		t.Fatalf("guest pages %v were written in the pause, %v were reported", p, b.dirty)
	}
	b.mu.Unlock()
	c.start(bases...)
	for range 3 {
		got := q.next()
		if n := int(got.head / 4); got.status != 0 || n != 2 && !bytes.Equal(c.data(q, n, 4096), b.content(8*n, 4096)) {
			t.Fatalf("%+v", got)
		}
	}
	if got := c.queues[1].do(1, typeIn, 5, 512); got.status != 0 {
		t.Fatal(got)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.Sort(b.begun)
	if want := []uint64{5, 8, 8, 16, 24}; !slices.Equal(b.begun, want) {
		t.Errorf("the disk has done %v, want %v", b.begun, want)
	}
	if q.usedIdx() != 4 {
		t.Errorf("%d were completed, want 4", q.usedIdx())
	}
}

// A request that outlasts the pause completes after it, and requests begun
// before and after many pauses are each done once.
func TestManyPauses(t *testing.T) {
	b := newMemoryDisk(4096)
	s := serve(t, b)
	c := newClient(t, s, 1, 64)
	q := c.queues[0]
	for i := range 50 {
		b.shut()
		begin(q, b, 1, typeIn, typeOut)
		bases := c.stop()
		if i%2 == 0 {
			b.open()
		}
		c.start(bases...)
		b.open()
		got := []uint16{q.next().head, q.next().head}
		if slices.Sort(got); !slices.Equal(got, []uint16{4, 8}) {
			t.Fatalf("round %d: %v", i, got)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.begun) != 100 {
		t.Fatalf("the disk has done %d requests, want 100", len(b.begun))
	}
}

// The disk begins to hold writes while one is in Do, running or paused.
func TestOfferedAgain(t *testing.T) {
	b := newMemoryDisk(4096)
	s := serve(t, b)
	c := newClient(t, s, 1, 64)
	b.mu.Lock()
	b.again = 3
	b.mu.Unlock()
	if got := c.queues[0].do(1, typeOut, 0, 4096); got.status != 0 {
		t.Fatal(got)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.again != 0 || len(b.begun) != 1 {
		t.Fatalf("%d, %v", b.again, b.begun)
	}
}

// After a failover the other host's device begins with what was in flight.
func TestResubmitOnAnotherHost(t *testing.T) {
	a, z := newMemoryDisk(4096), newMemoryDisk(4096)
	fill(a.data)
	fill(z.data)
	s := serve(t, a)
	c := newClient(t, s, 2, 64)
	q := c.queues[0]
	for n := range 5 {
		q.do(n, typeIn, 8, 512)
	}
	a.shut()
	begin(q, a, 3, typeOut, typeIn)
	begin(c.queues[1], a, 1, typeIn)
	bases := c.stop()
	state := s.AppendInFlight(nil)
	image := c.snapshot()
	a.open()

	other := serve(t, z)
	must(t, other.Resubmit(state))
	d := newGuest(t, newGuestMemory(t), 2, 64)
	copy(d.mem, image)
	d.connect(other.cfg.Path)
	if again := other.AppendInFlight(nil); !bytes.Equal(again, state) {
		t.Errorf("a checkpoint before the first start has lost them: %v, want %v", again, state)
	}
	d.queues[0].avail, d.queues[0].seen = q.avail, q.seen
	d.queues[1].avail = 1
	d.start(bases...)
	got := []uint16{d.queues[0].next().head, d.queues[0].next().head}
	if slices.Sort(got); !slices.Equal(got, []uint16{12, 16}) {
		t.Fatalf("completed %v", got)
	}
	if got := d.queues[1].next(); got.head != 4 || !bytes.Equal(d.data(d.queues[1], 1, 4096), z.content(8, 4096)) {
		t.Fatal(got)
	}
	if !bytes.Equal(z.content(24, 4096), d.data(d.queues[0], 3, 4096)) {
		t.Error("the write has not been done")
	}
	if got := d.queues[0].do(1, typeIn, 8, 512); got.status != 0 {
		t.Fatal(got)
	}
	if err := other.Resubmit(state); err == nil {
		t.Error("a running guest's requests may not be submitted anew")
	}
}

// The state is for one life of the ring only.
func TestResubmitNotToAnotherLife(t *testing.T) {
	b := newMemoryDisk(4096)
	s := serve(t, b)
	must(t, s.Resubmit(appendState([]byte{0x56, 0x46, 1, 1, 1}, 0, flightState{shape: ringShape{num: 64, desc: lowOff, avail: lowOff + 1024, used: lowOff + 1160}, last: 7, heads: []uint16{4}})))
	c := newClient(t, s, 1, 64)
	if got := c.queues[0].do(2, typeIn, 8, 512); got.head != 8 {
		t.Fatal(got)
	}
}

// A guest that resets does not get results of its former life, and nothing new
// is begun before those are through.
func TestReset(t *testing.T) {
	b := newMemoryDisk(4096)
	s := serve(t, b)
	c := newClient(t, s, 2, 64)
	q := c.queues[0]
	b.shut()
	begin(q, b, 1, typeOut, typeIn)
	begin(c.queues[1], b, 1, typeOut)
	c.stop()
	// The new life has but one ring, an empty one.
	_ = c.shared.Close()
	c.shared = nil
	clear(c.mem[lowOff : lowOff+2*ringSpace])
	c.queues = c.queues[:1]
	q.avail, q.seen = 0, 0
	c.start()
	q.put(5, typeIn, 40, 512)
	q.kick(0)
	select {
	case n := <-b.arrived:
		t.Fatalf("sector %d was begun while requests of a former life are under way", n)
	case <-time.After(50 * time.Millisecond):
	}
	b.open()
	if got := q.next(); got.head != 20 {
		t.Fatalf("%+v", got)
	}
	if q.usedIdx() != 1 {
		t.Errorf("%d completions, want 1", q.usedIdx())
	}
	if got, want := s.AppendInFlight(nil), 5; len(got) != want {
		t.Errorf("in flight: %d bytes, want %d", len(got), want)
	}
}

// A daemon is killed with requests under way. The next one finds them in the
// region that the hypervisor kept and does exactly those, oldest first.
func TestKilledDaemon(t *testing.T) {
	path := socketDir(t)
	cmd := exec.Command(os.Args[0], serveArgument, path)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = out.Read(make([]byte, 16))
	must(t, err)
	c := newGuest(t, newGuestMemory(t), 2, 64)
	c.connect(path)
	c.start()
	q := c.queues[0]
	q.put(7, typeGetID, 0, 20) // completes
	q.put(3, typeIn, 24, 4096)
	q.put(1, typeOut, 8, 4096)
	q.put(2, 99, 0, 20) // completes
	q.put(5, typeIn, 40, 4096)
	q.kick(0)
	for _, want := range []uint16{28, 8} {
		if got := q.next(); got.head != want {
			t.Fatalf("%+v, want head %d", got, want)
		}
	}
	region, err := unix.Mmap(int(c.shared.Fd()), 0, int(c.at.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer func() { _ = unix.Munmap(region) }()
	part := flightPart(region[:partSize(64)])
	deadline := time.Now().Add(10 * time.Second)
	for part.desc(20)[0] == 0 {
		if time.Now().After(deadline) {
			t.Fatal("the last request was not noted")
		}
		time.Sleep(time.Millisecond)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()

	b := newMemoryDisk(4096)
	fill(b.data)
	s := serve(t, b, func(cfg *Config) { cfg.Path, cfg.Workers = path, 1 })
	c.connect(s.cfg.Path)
	c.start() // at the used index, as QEMU does after a broken connection
	got := []uint16{q.next().head, q.next().head, q.next().head}
	if want := []uint16{12, 4, 20}; !slices.Equal(got, want) {
		t.Fatalf("completed %v, want %v", got, want)
	}
	b.mu.Lock()
	if want := []uint64{24, 8, 40}; !slices.Equal(b.begun, want) {
		t.Errorf("begun %v, want %v", b.begun, want)
	}
	b.mu.Unlock()
	if got := q.do(1, typeIn, 8, 512); got.status != 0 {
		t.Fatal(got)
	}
	for h := range 64 {
		if part.desc(uint16(h))[0] != 0 {
			t.Errorf("head %d is still noted", h)
		}
	}
}

// Recovery knows where between two stores its predecessor died.
func TestRecover(t *testing.T) {
	tests := map[string]struct {
		do    func(p flightPart)
		used  uint16
		heads []uint16
	}{
		"nothing":                  {func(flightPart) {}, 0, nil},
		"taken":                    {func(p flightPart) { p.taken(5, 1); p.taken(2, 2) }, 0, []uint16{5, 2}},
		"completing":               {func(p flightPart) { p.taken(5, 1); p.taken(2, 2); p.completing(5) }, 0, []uint16{5, 2}},
		"in the used ring":         {func(p flightPart) { p.taken(5, 1); p.taken(2, 2); p.completing(5) }, 1, []uint16{2}},
		"completed":                {func(p flightPart) { p.taken(5, 1); p.taken(2, 2); p.completing(5); p.completed(5, 1) }, 1, []uint16{2}},
		"a batch in the used ring": {func(p flightPart) { p.taken(5, 1); p.taken(2, 2); p.taken(3, 3); p.completing(5); p.completing(2) }, 2, []uint16{3}},
		"a batch, half of it clear": {func(p flightPart) {
			p.taken(5, 1)
			p.taken(2, 2)
			p.taken(3, 3)
			p.completing(5)
			p.completing(2)
			p.desc(2)[0] = 0
		}, 2, []uint16{3}},
		"a ring that stood high": {func(p flightPart) {}, 40000, nil},
	}
	for name, test := range tests {
		p := make(flightPart, partSize(8))
		test.do(p)
		heads, _ := p.recover(8, test.used)
		if !slices.Equal(heads, test.heads) || binary.LittleEndian.Uint16(p[partUsedIdx:]) != test.used {
			t.Errorf("%s: %v, want %v", name, heads, test.heads)
		}
	}
}

// A hypervisor that lost its connection, and one that was started anew, take
// the older one's place.
func TestNewerConnection(t *testing.T) {
	b := newMemoryDisk(4096)
	fill(b.data)
	s := serve(t, b)
	c := newClient(t, s, 1, 64)
	q := c.queues[0]
	b.shut()
	begin(q, b, 1, typeIn, typeOut)
	old := c.conn
	c.conn = nil
	c.connect(s.cfg.Path)
	if _, err := old.Read(make([]byte, 1)); err == nil {
		t.Error("the older connection lives")
	}
	_ = old.Close()
	c.start()
	b.open()
	got := []uint16{q.next().head, q.next().head}
	if slices.Sort(got); !slices.Equal(got, []uint16{4, 8}) {
		t.Fatalf("%v", got)
	}
	d := newClient(t, s, 1, 64)
	if got := d.queues[0].do(1, typeIn, 3, 512); got.status != 0 {
		t.Fatal(got)
	}
	if q.usedIdx() != 2 {
		t.Error("the former guest was written to")
	}
}

// Messages that make no sense end the connection with nothing done, and the
// next hypervisor is served.
func TestHostileMessages(t *testing.T) {
	inflight := func(size, off uint64, queues, depth byte) []byte {
		return append(u64(size, off), queues, 0, depth, 0, 0, 0, 0, 0)
	}
	table := func(regions ...uint64) []byte { return append(pair(uint32(len(regions)/4), 0), u64(regions...)...) }
	tests := map[string]func(c *client) error{
		"unknown":            func(c *client) error { return c.trySend(99, nil) },
		"long":               func(c *client) error { return c.trySend(setOwner, make([]byte, 2000)) },
		"short":              func(c *client) error { return c.trySend(setFeatures, make([]byte, 7)) },
		"features":           func(c *client) error { return c.trySend(setFeatures, u64(1<<34)) },
		"protocol features":  func(c *client) error { return c.trySend(setProtocolFeatures, u64(1<<5)) },
		"ring":               func(c *client) error { return c.trySend(setVringNum, pair(7, 64)) },
		"ring size":          func(c *client) error { return c.trySend(setVringNum, pair(0, 63)) },
		"ring size of a run": func(c *client) error { return c.trySend(setVringNum, pair(0, 32)) },
		"ring base":          func(c *client) error { return c.trySend(setVringBase, pair(0, 1<<16)) },
		"ring moved":         func(c *client) error { return c.trySend(setVringAddr, append(pair(0, 0), u64(0, 0, 0, 0)...)) },
		"kick without fd":    func(c *client) error { return c.trySend(setVringKick, u64(vringNoFD)) },
		"kick lost":          func(c *client) error { return c.trySend(setVringKick, u64(0)) },
		"no regions":         func(c *client) error { return c.trySend(setMemTable, table()) },
		"region lost":        func(c *client) error { return c.trySend(setMemTable, table(0, 4096, 0, 0)) },
		"region too long":    func(c *client) error { return c.trySend(setMemTable, table(0, 1<<40, 0, 0), int(c.memory.Fd())) },
		"region goes around": func(c *client) error {
			return c.trySend(setMemTable, table(0, 1<<13, 0, 1<<64-4096), int(c.memory.Fd()))
		},
		"region of parts": func(c *client) error { return c.trySend(setMemTable, table(1, 4096, 0, 0), int(c.memory.Fd())) },
		"regions overlap": func(c *client) error {
			f := int(c.memory.Fd())
			return c.trySend(setMemTable, table(0, 8192, 0, 0, 4096, 4096, 1<<30, 0), f, f)
		},
		"another file": func(c *client) error {
			return c.trySend(setMemTable, c.memTable(), int(c.memory.Fd()), int(c.shared.Fd()))
		},
		"rings not covered": func(c *client) error {
			return c.trySend(setMemTable, table(highGPA, highSize, userHigh, 0), int(c.memory.Fd()))
		},
		"log too long":        func(c *client) error { return c.trySend(setLogBase, u64(1<<30, 0), int(c.memory.Fd())) },
		"log lost":            func(c *client) error { return c.trySend(setLogBase, u64(4096, 0)) },
		"config":              func(c *client) error { return c.trySend(setConfig, append(pair(0, 1), 0, 0, 0, 0, 1)) },
		"config, empty":       func(c *client) error { return c.trySend(setConfig, append(pair(32, 0), 0, 0, 0, 0)) },
		"config lies":         func(c *client) error { return c.trySend(setConfig, append(pair(32, 1<<31), 0, 0, 0, 0, 1)) },
		"inflight queues":     func(c *client) error { return c.trySend(getInflightFD, inflight(0, 0, 200, 64)) },
		"inflight lost":       func(c *client) error { return c.trySend(setInflightFD, inflight(4096, 0, 1, 64)) },
		"inflight short":      func(c *client) error { return c.trySend(setInflightFD, inflight(64, 0, 1, 64), int(c.memory.Fd())) },
		"inflight of running": func(c *client) error { return c.trySend(setInflightFD, inflight(4096, 0, 1, 64), int(c.memory.Fd())) },
		"fds": func(c *client) error {
			return c.trySend(setMemTable, c.memTable(), make([]int, 20)...)
		},
		"half a header": func(c *client) error {
			_, err := c.conn.Write([]byte{1, 0})
			_ = c.conn.CloseWrite()
			return err
		},
	}
	b := newMemoryDisk(4096)
	s := serve(t, b)
	for name, bad := range tests {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, s, 1, 64)
			must(t, bad(c))
			must(t, c.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
			if _, err := c.conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Errorf("the connection lives: %v", err)
			}
		})
	}
	if got := newClient(t, s, 1, 64).queues[0].do(1, typeIn, 0, 512); got.status != 0 {
		t.Error(got)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// Guest memory that is cut short under a running guest ends the ring, not us.
func TestMemoryIsCut(t *testing.T) {
	b := newMemoryDisk(4096)
	s := serve(t, b)
	c := newClient(t, s, 1, 64)
	q := c.queues[0]
	q.put(1, typeIn, 0, 512)
	must(t, c.memory.Truncate(highSize))
	_, err := unix.Write(q.kickFD, u64(1))
	must(t, err)
	if !wait(q.errFD, 10*time.Second) {
		t.Fatal("no error event")
	}
	must(t, c.memory.Truncate(highSize+lowSize))
	if got := newClient(t, s, 1, 64).queues[0].do(1, typeIn, 0, 512); got.status != 0 {
		t.Error(got)
	}
}

// Only the file that the configuration names is taken as guest memory.
func TestMemoryOfAnotherGuest(t *testing.T) {
	b := newMemoryDisk(4096)
	memory := newGuestMemory(t)
	s := serve(t, b, func(cfg *Config) {
		cfg.Memory = func(dev, ino uint64) error {
			var st unix.Stat_t
			must(t, unix.Fstat(int(memory.Fd()), &st))
			if ino != st.Ino {
				return fmt.Errorf("inode %d is not the guest's memory", ino)
			}
			return nil
		}
	})
	c := newGuest(t, newGuestMemory(t), 1, 64)
	c.connect(s.cfg.Path)
	must(t, c.trySend(setMemTable, c.memTable(), int(c.memory.Fd()), int(c.memory.Fd())))
	if _, _, err := c.receive(setMemTable); err == nil || isTimeout(err) {
		t.Error("another file was taken")
	}
	c = newGuest(t, memory, 1, 64)
	c.connect(s.cfg.Path)
	c.start()
	if got := c.queues[0].do(1, typeIn, 0, 512); got.status != 0 {
		t.Error(got)
	}
}

// Pages that a lazy rebuild has yet to fill are filled before they are touched.
func TestFillsFirst(t *testing.T) {
	b := newMemoryDisk(4096)
	s := serve(t, b)
	c := newClient(t, s, 1, 64, func(c *client) { c.indirect = true })
	q := c.queues[0]
	q.do(2, typeIn, 0, 8192)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, at := range []int{q.desc, q.ring, q.used, c.slot(q, 2), c.slot(q, 2) + slotData, c.slot(q, 2) + slotData + 4096} {
		if !b.fills[epoch.GFN(at/epoch.PageSize)] {
			t.Errorf("the page at %#x was touched and not filled", at)
		}
	}
	if len(b.fills) > 5 {
		t.Errorf("%d pages were filled, want 4 or 5", len(b.fills))
	}
}
