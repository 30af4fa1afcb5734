package vhost

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/disk"
	"understudy/epoch"
)

// splitDisk is a disk in a file, whose requests the front end carries out. While
// it is stuck, reads are of a pipe instead, which ends them when feed is called.
type splitDisk struct {
	*memoryDisk
	file *os.File

	mu        sync.Mutex
	stuck     bool
	direct    bool
	from, to  *os.File // the pipe
	began     chan struct{}
	over      chan struct{}
	transfers atomic.Int64
	bounces   map[*disk.Request][]byte
}

func newSplitDisk(t *testing.T, sectors uint64) *splitDisk {
	t.Helper()
	d := &splitDisk{memoryDisk: newMemoryDisk(sectors), began: make(chan struct{}, 64), over: make(chan struct{}, 1024), bounces: map[*disk.Request][]byte{}}
	fill(d.data)
	var err error
	d.file, err = os.Create(filepath.Join(t.TempDir(), "disk"))
	must(t, err)
	_, err = d.file.Write(d.data)
	must(t, err)
	var p [2]int
	must(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	d.from, d.to = os.NewFile(uintptr(p[0]), "from"), os.NewFile(uintptr(p[1]), "to")
	t.Cleanup(func() { must(t, errors.Join(d.file.Close(), d.from.Close(), d.to.Close())) })
	return d
}

func (d *splitDisk) Direct(r *disk.Request) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.direct && (r.Op == disk.OpRead || r.Op == disk.OpWrite)
}

func (d *splitDisk) Begin(r *disk.Request) (t disk.Transfer, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t = disk.Transfer{File: int(d.file.Fd()), Offset: int64(r.Sector * epoch.SectorSize)}
	switch r.Op {
	case disk.OpRead:
		t.Data, t.Direct = r.Buffer, r.Buffer == nil
		if d.stuck {
			t.File, t.Offset = int(d.from.Fd()), -1
			d.began <- struct{}{}
		}
	case disk.OpWrite:
		if t.Write, t.Direct = true, d.direct; !t.Direct {
			for _, s := range r.Segments {
				t.Data = append(t.Data, s.Data...)
			}
			d.bounces[r] = t.Data
		}
	case disk.OpFlush:
		t.Sync = true
	default:
		return t, false
	}
	d.transfers.Add(1)
	return t, true
}

func (d *splitDisk) End(r *disk.Request, err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.bounces, r)
	d.over <- struct{}{}
	return err
}

func (d *splitDisk) stick(stuck bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stuck = stuck
}

func serveSplit(t *testing.T, d *splitDisk) *Server {
	t.Helper()
	s, err := Listen(Config{Path: socketDir(t), Backend: d})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// Requests that the backend splits bring the right bytes, many at a time, with
// those that it does not split among them; copied, and directly.
func TestBatchCarriesRequests(t *testing.T) {
	for name, direct := range map[string]bool{"copied": false, "direct": true} {
		t.Run(name, func(t *testing.T) { testBatchCarriesRequests(t, direct) })
	}
}

func testBatchCarriesRequests(t *testing.T, direct bool) {
	d := newSplitDisk(t, 4096)
	d.direct = direct
	c := newClient(t, serveSplit(t, d), 1, 128, func(c *client) { c.eventIdx = true })
	q := c.queues[0]
	const many, length = 24, 8192
	for round := range 20 {
		old := q.avail
		for n := range many {
			kind := uint32(typeIn)
			switch (n + round) % 4 {
			case 1:
				kind = typeOut
				fill(c.data(q, n, length))
				c.data(q, n, length)[0] = byte(round)
			case 2:
				if n == 2 {
					q.put(n, typeFlush, 0, 0)
					continue
				}
			}
			q.put(n, kind, uint64(n*length/epoch.SectorSize), length)
		}
		q.kick(old)
		for range many {
			if done := q.next(); done.status != statusOK {
				t.Fatalf("round %d: request %d has the status %d", round, done.head/4, done.status)
			}
		}
		for n := range many {
			have := make([]byte, length)
			_, err := d.file.ReadAt(have, int64(n*length))
			must(t, err)
			if n != 2 && !bytes.Equal(have, c.data(q, n, length)) {
				t.Fatalf("round %d: request %d has other bytes in the guest than on the disk", round, n)
			}
		}
	}
	if done := d.transfers.Load(); done < 20*many {
		t.Errorf("%d transfers of %d", done, 20*many)
	}
	if done := q.do(0, typeGetID, 0, 20); done.status != statusOK || !bytes.HasPrefix(c.data(q, 0, 20), []byte(d.info.Serial)) {
		t.Errorf("the serial number comes with the status %d", done.status)
	}
}

// A disk that has become shorter is an error of the request, and of no other.
func TestBatchTellsOfErrors(t *testing.T) {
	for name, direct := range map[string]bool{"copied": false, "direct": true} {
		t.Run(name, func(t *testing.T) { testBatchTellsOfErrors(t, direct) })
	}
}

func testBatchTellsOfErrors(t *testing.T, direct bool) {
	d := newSplitDisk(t, 4096)
	d.direct = direct
	q := newClient(t, serveSplit(t, d), 1, 16).queues[0]
	must(t, d.file.Truncate(4096+512))
	if done := q.do(0, typeIn, 0, 4096); done.status != statusOK {
		t.Errorf("a read of what is there has the status %d", done.status)
	}
	if done := q.do(1, typeIn, 8, 4096); done.status != statusIOErr {
		t.Errorf("a read over the end has the status %d", done.status)
	}
}

// A ring is stopped while the kernel has reads: the stop does not wait for them,
// they touch no guest memory, and the ring that goes on has their results.
func TestBatchIsStoppedWithReadsUnderWay(t *testing.T) {
	d := newSplitDisk(t, 4096)
	c := newClient(t, serveSplit(t, d), 1, 16)
	q := c.queues[0]
	d.stick(true)
	const length = 4096
	old := q.avail
	for n := range 3 {
		q.put(n, typeIn, uint64(8*n), length)
	}
	q.kick(old)
	for range 3 {
		<-d.began
	}
	began := time.Now()
	bases := c.stop()
	t.Logf("stopped after %v with reads under way", time.Since(began))
	if bases[0] != 3 {
		t.Fatalf("stopped at %d: want 3, taken is taken", bases[0])
	}
	before := c.snapshot()
	content := bytes.Repeat([]byte{0xa5}, length)
	_, err := d.to.Write(content) // one of them ends while the ring stands still
	must(t, err)
	<-d.over
	if pages := c.changed(before); len(pages) > 0 {
		t.Fatalf("a stopped ring has written to pages %v", pages)
	}
	d.stick(false)
	c.start(bases...)
	for range 2 {
		_, err := d.to.Write(content)
		must(t, err)
	}
	for range 3 {
		done := q.next()
		if n := int(done.head / 4); done.status != statusOK || !bytes.Equal(c.data(q, n, length), content) {
			t.Fatalf("request %d has the status %d, or other bytes than were read", n, done.status)
		}
	}
	if done := q.do(3, typeIn, 40, length); done.status != statusOK {
		t.Errorf("the next read has the status %d", done.status)
	}
}

// A hypervisor that goes away leaves its reads to end by themselves; the next one
// is served when they have.
func TestBatchOutlivesItsHypervisor(t *testing.T) {
	d := newSplitDisk(t, 4096)
	s := serveSplit(t, d)
	c := newClient(t, s, 1, 16)
	d.stick(true)
	q := c.queues[0]
	old := q.avail
	q.put(0, typeIn, 0, 4096)
	q.kick(old)
	<-d.began
	must(t, c.conn.Close())
	d.stick(false)
	other := newClient(t, s, 1, 16)
	q = other.queues[0]
	old = q.avail
	q.put(0, typeIn, 0, 4096)
	q.kick(old)
	_, err := d.to.Write(make([]byte, 4096))
	must(t, err)
	if done := q.next(); done.status != statusOK {
		t.Errorf("the next hypervisor's read has the status %d", done.status)
	}
}
