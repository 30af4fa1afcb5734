package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"understudy/clock"
	"understudy/disk/disktest"
	"understudy/epoch"
)

const worldSectors = 300 // two whole chunks and a short one

// world is two hosts, one of which runs a guest with two disks, and an oracle
// that knows what the guest of the last commit may see.
type world struct {
	t      *rapid.T
	shared bool
	media  [2][]*disktest.Media // of each host
	stores [2][]*disktest.Store
	sets   [2]*Set
	owner  int
	g      epoch.Generation
	n      epoch.Number // of the last epoch sealed
	acked  epoch.Number // of the last committed
	live   [2][]byte    // the disks as the guest sees them
	commit [2][]byte    // … as of the last commit

	mu       sync.Mutex
	fuse     int // store calls of the owner until its host dies; 0: none
	failures int // store calls of the owner that fail
}

func newWorld(t *rapid.T, shared bool) *world {
	w := &world{t: t, shared: shared}
	for d := range 2 {
		w.live[d], w.commit[d] = make([]byte, worldSectors*512), make([]byte, worldSectors*512)
		a, b := disktest.NewMedia(worldSectors, shared), disktest.NewMedia(worldSectors, shared)
		if shared {
			b = a
		}
		w.media[0], w.media[1] = append(w.media[0], a), append(w.media[1], b)
	}
	w.open(0)
	w.open(1)
	w.g = 1
	w.sets[0].Own(w.g)
	w.check(w.sets[0].Allow(forever))
	w.protect()
	return w
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// open starts a host's daemon.
func (w *world) open(host int) {
	c := SetConfig{Pages: testPages, HeldBytes: MinHeldBytes, Clock: clock.Boot{}, Log: quietLog}
	w.stores[host] = nil
	for _, m := range w.media[host] {
		st := m.Open()
		st.SetHook(func(c disktest.Call) error { return w.called(host, c.Op) })
		w.stores[host] = append(w.stores[host], st)
		c.Disks = append(c.Disks, DiskConfig{Store: st})
	}
	var err error
	w.sets[host], err = NewSet(c)
	w.check(err)
}

// called is asked before each call of a store.
func (w *world) called(host int, op disktest.Op) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if host != w.owner {
		return nil
	}
	if w.failures > 0 && op != disktest.Read {
		w.failures--
		return syscall.EIO
	}
	if w.fuse > 0 {
		if w.fuse--; w.fuse == 0 {
			w.fuse = -1
		}
	}
	if w.fuse < 0 {
		return disktest.ErrDead
	}
	return nil
}

func (w *world) dead() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fuse < 0
}

func (w *world) close() {
	for _, s := range w.sets {
		w.check(s.Close())
	}
}

// context ends soon, and at once if the owner's host has died.
func (w *world) context() (context.Context, func()) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	stop := make(chan struct{})
	go func() {
		for !w.dead() {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
		cancel()
	}()
	return ctx, func() { close(stop); cancel() }
}

// request is one of the guest's.
func (w *world) request() {
	t := w.t
	id := rapid.IntRange(0, 1).Draw(t, "disk")
	sector := rapid.Uint64Range(0, worldSectors-1).Draw(t, "sector")
	n := uint32(rapid.Uint64Range(1, min(24, worldSectors-sector)).Draw(t, "sectors"))
	op := rapid.SampledFrom([]Op{OpRead, OpWrite, OpWrite, OpWrite, OpFlush, OpDiscard, OpWriteZeroes}).Draw(t, "op")
	r := request(op, sector, n, rapid.Byte().Draw(t, "fill"))
	ctx, done := w.context()
	defer done()
	err := do(ctx, w.sets[w.owner].Disk(epoch.DiskID(id)), r)
	for errors.Is(err, syscall.EIO) { // an unprotected guest is told
		err = do(ctx, w.sets[w.owner].Disk(epoch.DiskID(id)), r)
	}
	if w.dead() {
		return // what it did or not, no epoch has it
	}
	w.check(err)
	at := w.live[id][sector*512 : (sector+uint64(n))*512]
	switch op {
	case OpRead:
		if !bytes.Equal(r.Buffer, at) {
			t.Fatalf("disk %d, sectors %d+%d: the guest reads something else than it wrote", id, sector, n)
		}
	case OpWrite:
		copy(at, r.Segments[0].Data)
	case OpDiscard, OpWriteZeroes:
		clear(at)
	}
}

// checkpoint seals an epoch and, if it arrives, commits it.
func (w *world) checkpoint(arrives, release bool) {
	if w.dead() {
		return
	}
	s, b := w.sets[w.owner], w.sets[1-w.owner]
	w.n++
	w.check(s.Seal(w.n))
	var sealed [2][]byte
	for d := range w.live {
		sealed[d] = slices.Clone(w.live[d])
	}
	for range rapid.IntRange(0, 2).Draw(w.t, "requests before it is sent") {
		w.request()
		if w.dead() {
			return
		}
	}
	sync, err := s.SyncWrites(w.n, 0)
	if err != nil && w.dead() {
		return
	}
	for err != nil { // a read failed: the epoch is sent later
		sync, err = s.SyncWrites(w.n, 0)
	}
	writes, state := s.Sealed(w.n)
	if !arrives {
		s.Release(w.acked)
		s.Hold()
		s.Void()
		w.settle()
		return
	}
	writes = append(sync, writes...)
	w.check(b.Room(context.Background(), 1<<20))
	w.check(b.Commit(w.n, writes, state))
	w.acked = w.n
	for d := range w.live {
		copy(w.commit[d], sealed[d])
		w.isCommit(b, d)
	}
	s.Synced(w.n)
	if release {
		s.Release(w.n)
	}
}

// isCommit compares what the backup would rebuild from.
func (w *world) isCommit(b *Set, d int) {
	got := make([]byte, worldSectors*512)
	w.check(b.ReadSectors(epoch.DiskID(d), 0, got))
	if !bytes.Equal(got, w.commit[d]) {
		w.t.Fatalf("disk %d at the backup is not as of the last commit: %s", d, differ(got, w.commit[d]))
	}
}

func differ(a, b []byte) string {
	for i := range a {
		if a[i] != b[i] {
			return fmt.Sprintf("sector %d: %#x, want %#x", i/512, a[i], b[i])
		}
	}
	return "equal"
}

// settle waits until a checkpoint may be taken.
func (w *world) settle() {
	for deadline := time.Now().Add(10 * time.Second); !w.sets[w.owner].Settled() && !w.dead(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("not settled in 10 s")
		}
	}
}

// protect brings a backup that knows nothing into step.
func (w *world) protect() {
	s, b := w.sets[w.owner], w.sets[1-w.owner]
	w.check(b.StandBy(context.Background()))
	s.SyncAll()
	s.Void()
	for {
		h, more, err := s.NextHashes(2)
		if w.dead() {
			return
		}
		if err != nil {
			continue // a read failed
		}
		if !more {
			break
		}
		a, err := b.Compare(h)
		w.check(err)
		w.check(s.Differ(a))
		if rapid.Bool().Draw(w.t, "write beside") {
			w.request()
		}
	}
	s.Hold()
	w.settle()
	w.n, w.acked = 0, 0
	w.checkpoint(true, true)
	if differ, compare := s.Unsynced(); !w.dead() && (differ != 0 || compare != 0) {
		w.t.Fatalf("%d bytes differ and %d were not compared after the first checkpoint", differ, compare)
	}
}

// alone lets the guest run unprotected for a while, and brings the backup back.
func (w *world) alone(requests int) {
	w.mu.Lock()
	w.fuse = min(w.fuse, 0) // if it dies now, the backup may not take over
	w.mu.Unlock()
	if w.dead() {
		return
	}
	s := w.sets[w.owner]
	s.Release(w.acked)
	s.Pass()
	for range requests {
		w.request()
	}
	if rapid.Bool().Draw(w.t, "new backup") {
		w.protect()
		return
	}
	// The same backup comes back with the image that it had.
	s.Void()
	s.Hold()
	w.settle()
	w.n = w.acked
	w.checkpoint(true, true)
}

// takeover kills the owner's host, takes the power from whatever it has written
// and not made durable, and lets the guest go on at the other host.
func (w *world) takeover() {
	old, s := w.owner, w.sets[1-w.owner]
	w.mu.Lock()
	w.fuse = -1
	w.mu.Unlock()
	for _, st := range w.stores[old] {
		st.Kill()
	}
	w.check(w.sets[old].Close())
	odds := rapid.Uint64().Draw(w.t, "lost")
	for _, m := range w.media[old] {
		m.LosePower(func() bool { odds = odds*6364136223846793005 + 1442695040888963407; return odds>>63 == 0 })
	}
	w.mu.Lock()
	w.owner, w.fuse, w.failures = 1-old, 0, 0
	w.mu.Unlock()

	var mu sync.Mutex
	begun := slices.Clone(w.commit[:])
	for d := range begun {
		begun[d] = slices.Clone(begun[d])
	}
	overwritten := [2][worldSectors]bool{}
	w.check(s.Activate(context.Background(), func(d epoch.DiskID, sector uint64, sectors uint32) error {
		mu.Lock()
		defer mu.Unlock()
		got := make([]byte, sectors*512)
		if err := s.ReadSectors(d, sector, got); err != nil {
			return err
		}
		for i := range uint64(sectors) {
			if !overwritten[d][sector+i] && !bytes.Equal(got[i*512:(i+1)*512], begun[d][(sector+i)*512:(sector+i+1)*512]) {
				return errors.New("the last commit's block cannot be read any more before it is overwritten")
			}
			overwritten[d][sector+i] = true
		}
		return nil
	}))
	for d := range w.live {
		w.isCommit(s, d)
		copy(w.live[d], w.commit[d])
	}
	w.g++
	s.Own(w.g)
	w.check(s.Allow(forever))
	for range rapid.IntRange(0, 5).Draw(w.t, "requests after") {
		w.request()
	}
	if rapid.Bool().Draw(w.t, "alone at first") {
		s.Pass()
	}
	for range rapid.IntRange(0, 5).Draw(w.t, "requests then") {
		w.request()
	}
	for d := range w.live {
		got := make([]byte, worldSectors*512)
		w.check(do(context.Background(), s.Disk(epoch.DiskID(d)), &Request{Op: OpRead, Sectors: worldSectors, Buffer: got, Segments: []Segment{{Data: make([]byte, len(got))}}}))
		if !bytes.Equal(got, w.live[d]) {
			w.t.Fatalf("disk %d after a takeover: %s", d, differ(got, w.live[d]))
		}
	}
	w.open(old)
	w.sets[w.owner].Pass()
	w.protect()
}

// drained compares the stores themselves.
func (w *world) drained() {
	s := w.sets[w.owner]
	s.Release(w.acked)
	ctx, done := w.context()
	defer done()
	err := s.Drain(ctx)
	if w.dead() {
		return
	}
	w.check(err)
	if s.Status().Writes > 0 {
		return // later ones are held
	}
	for d, m := range w.media[w.owner] {
		if got := m.Durable(); !bytes.Equal(got, w.live[d]) {
			w.t.Fatalf("disk %d, all flushed: %s", d, differ(got, w.live[d]))
		}
	}
}

func testWorld(t *testing.T, shared bool) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, shared)
		defer w.close()
		for range rapid.IntRange(5, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 19).Draw(t, "step") {
			default:
				w.request()
			case 9, 10, 11, 12:
				w.checkpoint(true, rapid.Bool().Draw(t, "release"))
			case 13:
				w.checkpoint(false, false)
			case 14:
				w.drained()
			case 15:
				w.alone(rapid.IntRange(0, 6).Draw(t, "requests alone"))
			case 16:
				w.mu.Lock()
				if w.fuse == 0 {
					w.fuse = rapid.IntRange(1, 12).Draw(t, "fuse")
				}
				w.mu.Unlock()
			case 17:
				w.mu.Lock()
				w.failures = rapid.IntRange(1, 2).Draw(t, "failures")
				w.mu.Unlock()
			case 18, 19:
				w.takeover()
			}
			if w.dead() {
				w.takeover()
			}
		}
		w.drained()
	})
}

func TestSharedDisksEqualTheOracle(t *testing.T)     { testWorld(t, true) }
func TestReplicatedDisksEqualTheOracle(t *testing.T) { testWorld(t, false) }
