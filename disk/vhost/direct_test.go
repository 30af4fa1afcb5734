package vhost

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"understudy/epoch"
)

// lent waits for how many direct transfers the first ring has under way.
func (s *Server) lent(t *testing.T, want int) {
	t.Helper()
	r := s.rings[0]
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		r.mu.Lock()
		n := r.lent
		r.mu.Unlock()
		if n == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d direct transfers are under way, want %d", n, want)
		}
	}
}

// pageOf is the image page that a slot's data begins in.
func pageOf(c *client, q *queue, n int) epoch.GFN {
	return epoch.GFN((c.slot(q, n) + slotData) / epoch.PageSize)
}

// stuckRead makes a direct read that ends when the disk is fed.
func stuckRead(t *testing.T) (*splitDisk, *Server, *client) {
	t.Helper()
	d := newSplitDisk(t, 4096)
	d.direct = true
	s := serveSplit(t, d)
	c := newClient(t, s, 1, 16)
	d.stick(true)
	q := c.queues[0]
	old := q.avail
	q.put(0, typeIn, 0, 4096)
	q.kick(old)
	<-d.began
	t.Cleanup(func() { _, _ = d.to.Write(make([]byte, 4096)) }) // a test that has failed ends too
	s.lent(t, 1)
	d.stick(false)
	return d, s, c
}

// A ring is stopped while the kernel reads into guest memory: the hypervisor gets
// no answer before that is over, the server has not stopped before, and the pages
// are reported as written by then, though the guest is told after the pause.
func TestAStopWaitsForDirectReads(t *testing.T) {
	d, s, c := stuckRead(t)
	q := c.queues[0]
	content := bytes.Repeat([]byte{0xa5}, 4096)
	c.send(getVringBase, pair(0, 0))
	for r := s.rings[0]; ; time.Sleep(100 * time.Microsecond) { // until it has been heard
		r.mu.Lock()
		halted := r.run == nil
		r.mu.Unlock()
		if halted {
			break
		}
	}
	if s.Stopped() {
		t.Fatal("the server says that it has stopped while its disk writes to guest memory")
	}
	must(t, c.conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	if n, err := c.conn.Read(make([]byte, 1)); err == nil {
		t.Fatalf("the hypervisor is answered (%d bytes) while the disk writes to guest memory", n)
	}
	must(t, c.conn.SetReadDeadline(time.Time{}))
	_, err := d.to.Write(content)
	must(t, err)
	reply := make([]byte, 20)
	_, err = c.conn.Read(reply)
	must(t, err)
	if base := binary.LittleEndian.Uint32(reply[16:]); base != 1 {
		t.Errorf("stopped at %d, want 1", base)
	}
	if !s.Stopped() {
		t.Error("the server has not stopped")
	}
	d.mu.Lock()
	d.memoryDisk.mu.Lock()
	reported := d.dirty[pageOf(c, q, 0)]
	d.memoryDisk.mu.Unlock()
	d.mu.Unlock()
	if !reported {
		t.Error("the page that was read into is not reported as written in the pause")
	}
	if !bytes.Equal(c.data(q, 0, 4096), content) {
		t.Error("the read's bytes are not in the guest")
	}
	if q.usedIdx() != 0 {
		t.Fatal("the guest was told in the pause")
	}
	c.start(1)
	if done := q.next(); done.status != statusOK {
		t.Errorf("the read has the status %d", done.status)
	}
}

// A guest that breaks its ring does not make the server believe that the disk is
// through with its memory.
func TestABrokenRingsDirectReads(t *testing.T) {
	d, s, c := stuckRead(t)
	q := c.queues[0]
	old := q.avail
	q.offer(9999) // no such descriptor
	q.kick(old)
	for r := s.rings[0]; ; time.Sleep(100 * time.Microsecond) {
		r.mu.Lock()
		halted := r.run == nil
		r.mu.Unlock()
		if halted {
			break
		}
	}
	if s.Stopped() {
		t.Error("stopped with a direct read under way")
	}
	_, err := d.to.Write(make([]byte, 4096))
	must(t, err)
	s.lent(t, 0)
	if !s.Stopped() {
		t.Error("not stopped")
	}
}

// A hypervisor that goes away: nothing of the next one's is begun, and the memory
// is not let go of, before the last one's reads are over.
func TestDirectReadsOutliveTheHypervisor(t *testing.T) {
	d, s, c := stuckRead(t)
	must(t, c.conn.Close())
	go func() { _, _ = d.to.Write(make([]byte, 4096)) }()
	other := newClient(t, s, 1, 16)
	if done := other.queues[0].do(0, typeIn, 0, 4096); done.status != statusOK {
		t.Errorf("the next hypervisor's read has the status %d", done.status)
	}
	s.lent(t, 0)
}

// A short transfer goes on where it ended, in whichever piece that is.
func TestADirectTransferThatIsCutShort(t *testing.T) {
	for _, first := range []int{1, 511, 512, 1000, 4095} {
		d, _, c := stuckRead(t)
		q := c.queues[0]
		content := make([]byte, 4096)
		fill(content)
		_, err := d.to.Write(content[:first])
		must(t, err)
		_, err = d.to.Write(content[first:])
		must(t, err)
		if done := q.next(); done.status != statusOK || !bytes.Equal(c.data(q, 0, 4096), content) {
			t.Errorf("cut after %d bytes: status %d, or other bytes", first, done.status)
		}
	}
}
