package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"understudy/clock"
	"understudy/disk/disktest"
	"understudy/epoch"
)

func TestAProtectedWriteReachesTheDiskAfterItsEpoch(t *testing.T) {
	m := disktest.NewMedia(256, true)
	s := newSet(t, SetConfig{}, m.Open())
	own(s, 1)
	s.Hold()
	d := s.Disk(0)
	must(t, do(soon(t), d, request(OpWrite, 8, 8, 'a')))
	must(t, do(soon(t), d, request(OpFlush, 0, 0, 0)))
	must(t, do(soon(t), d, request(OpWrite, 9, 1, 'b')))
	want := make([]byte, 256*512)
	for i := 8 * 512; i < 16*512; i++ {
		want[i] = 'a'
	}
	for i := 9 * 512; i < 10*512; i++ {
		want[i] = 'b'
	}
	if !bytes.Equal(contents(t, d), want) {
		t.Fatal("the guest does not read what it wrote")
	}
	must(t, s.Seal(1))
	must(t, do(soon(t), d, request(OpDiscard, 0, 128, 0)))
	writes, state := s.Sealed(1)
	if len(writes) != 3 || writes[0].Kind != epoch.WriteData || writes[1].Kind != epoch.WriteBarrier || writes[2].Sector != 9 {
		t.Fatalf("epoch 1 has %v", writes)
	}
	if len(writes[0].Pages) != 1 || writes[0].Pages[0] != 0 || writes[2].Pages != nil {
		t.Fatalf("pages %v and %v", writes[0].Pages, writes[2].Pages)
	}
	if st, err := parseState(state, 1); err != nil || st[0].flushed != 0 {
		t.Fatalf("state %v, %v", st, err)
	}
	must(t, s.Drain(soon(t)))
	if !bytes.Equal(m.Bytes(), make([]byte, 256*512)) {
		t.Fatal("something reached the disk before its release")
	}
	s.Release(1)
	must(t, s.Drain(soon(t)))
	if !bytes.Equal(m.Durable(), want) {
		t.Fatal("epoch 1 is not on the disk, or more than it")
	}
	if !bytes.Equal(contents(t, d)[:128*512], make([]byte, 128*512)) {
		t.Fatal("the discard is not seen by the guest")
	}
	must(t, s.Seal(2))
	if _, state := s.Sealed(2); state != nil {
		if st, err := parseState(state, 1); err != nil || st[0].flushed != 3 {
			t.Fatalf("state %v, %v: want 3 flushed", st, err)
		}
	}
	s.Pass() // the backup was lost
	must(t, do(soon(t), d, request(OpWrite, 0, 1, 'c')))
	if m.Bytes()[0] != 'c' || m.Bytes()[9*512] != 0 {
		t.Fatal("a write of an unprotected guest is complete and not on the disk")
	}
}

func TestALostEpochGoesWithTheNext(t *testing.T) {
	m := disktest.NewMedia(256, true)
	s := newSet(t, SetConfig{}, m.Open())
	own(s, 1)
	s.Hold()
	d := s.Disk(0)
	must(t, do(soon(t), d, request(OpWrite, 0, 1, 'a')))
	must(t, s.Seal(1))
	must(t, do(soon(t), d, request(OpWrite, 1, 1, 'b')))
	s.Hold()
	s.Release(1) // of the lost history: nothing
	must(t, s.Seal(1))
	if w, _ := s.Sealed(1); len(w) != 2 {
		t.Fatalf("%d writes, want both", len(w))
	}
	if m.Bytes()[0] != 0 {
		t.Fatal("a write of a lost epoch reached the disk")
	}
	if err := s.Seal(1); err == nil {
		t.Fatal("sealed twice")
	}
}

func TestARunningFrontEndIsNotSealed(t *testing.T) {
	s := newSet(t, SetConfig{}, disktest.NewMedia(8, true).Open())
	own(s, 1)
	s.Hold()
	f := &front{running: true, inFlight: []byte("abc")}
	must(t, s.Disk(0).Attach(f))
	if err := s.Seal(1); err == nil {
		t.Fatal("sealed beside a running front end")
	}
	f.running = false
	must(t, s.Seal(1))
	_, state := s.Sealed(1)
	if st, err := parseState(state, 1); err != nil || string(st[0].inFlight) != "abc" {
		t.Fatalf("state %v, %v", st, err)
	}
}

// A disk that takes 200 ms for everything delays only who waits for it.
func TestASlowDiskDelaysNoPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := disktest.NewMedia(1024, true)
		store := m.Open()
		s, err := NewSet(SetConfig{Pages: 64, Disks: []DiskConfig{{Store: store}}, HeldBytes: MinHeldBytes, Clock: clock.Go{Start: time.Now()}, Log: quietLog})
		must(t, err)
		own(s, 1)
		s.Hold()
		synctest.Wait()
		store.SetHook(func(disktest.Call) error { time.Sleep(200 * time.Millisecond); return nil })
		d := s.Disk(0)
		read := request(OpRead, 512, 8, 0)
		done := make(chan error, 1)
		go func() { done <- d.Do(t.Context(), read) }()
		start := time.Now()
		for n := epoch.Number(1); n <= 20; n++ {
			must(t, do(t.Context(), d, request(OpWrite, uint64(n), 1, byte(n))))
			must(t, do(t.Context(), d, request(OpFlush, 0, 0, 0)))
			must(t, s.Seal(n))
			if w, _ := s.Sealed(n); len(w) != 2 {
				t.Fatalf("%d writes", len(w))
			}
			s.Release(n)
			d.Landed(request(OpRead, 256, 8, 0))
			d.Touched(3, 2)
			synctest.Wait()
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("20 epochs on a slow disk waited %v", took)
		}
		must(t, <-done)
		if took := time.Since(start); took != 200*time.Millisecond {
			t.Errorf("the read took %v", took)
		}
		must(t, s.Drain(t.Context()))
		if m.Durable()[20*512] != 20 {
			t.Error("the last write is not on the disk")
		}
		must(t, s.Close())
	})
}

func TestWithoutALeaseNothingIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := disktest.NewMedia(1024, true)
		store := m.Open()
		clk := clock.Go{Start: time.Now()}
		s, err := NewSet(SetConfig{Pages: 64, Disks: []DiskConfig{{Store: store}}, HeldBytes: MinHeldBytes, Clock: clk, Log: quietLog})
		must(t, err)
		var at atomic.Int64 // of the last call that changes the disk
		store.SetHook(func(c disktest.Call) error {
			if c.Op != disktest.Read && c.Op != disktest.Acquire {
				at.Store(int64(clk.Now()))
			}
			time.Sleep(30 * time.Millisecond)
			return nil
		})
		s.Own(1)
		s.Pass()
		d := s.Disk(0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := do(ctx, d, request(OpWrite, 0, 1, 1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a write without a lease: %v", err)
		}
		end := clk.Now().Add(time.Second)
		must(t, s.Allow(end))
		n := 0
		for ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second); ; n++ {
			if do(ctx, d, request(OpWrite, uint64(n), 1, 1)) != nil {
				cancel()
				break
			}
		}
		last := clock.Instant(at.Load())
		if n == 0 || !last.Add(DefaultGuard).Before(end) {
			t.Fatalf("%d writes, the last at %v, the lease ended at %v", n, last, end)
		}
		// Held writes as well.
		s.Hold()
		must(t, s.Allow(clk.Now().Add(10*time.Second)))
		time.Sleep(time.Second) // the settling sync
		for i := range uint64(400) {
			must(t, do(t.Context(), d, request(OpWrite, 2*i, 1, 2)))
		}
		must(t, s.Seal(1))
		end = clk.Now().Add(time.Second)
		must(t, s.Allow(end))
		s.Release(1)
		time.Sleep(5 * time.Second)
		if last = clock.Instant(at.Load()); last.Add(DefaultGuard) >= end || s.Status().Writes == 0 {
			t.Fatalf("the last write at %v, the lease ended at %v, %d left", last, end, s.Status().Writes)
		}
		must(t, s.Allow(forever))
		must(t, s.Drain(t.Context()))
		must(t, s.Close())
	})
}

func TestAFailingFlushIsNeverDropped(t *testing.T) {
	for _, op := range []disktest.Op{disktest.Write, disktest.Sync} {
		synctest.Test(t, func(t *testing.T) {
			m := disktest.NewMedia(1024, true)
			store := m.Open()
			var told []error // of trouble, under the set's lock
			s, err := NewSet(SetConfig{Pages: 64, Disks: []DiskConfig{{Store: store}}, HeldBytes: MinHeldBytes, Clock: clock.Go{Start: time.Now()}, Log: quietLog,
				Trouble: func(_ epoch.DiskID, err error) { told = append(told, err) }})
			must(t, err)
			own(s, 1)
			s.Hold()
			d := s.Disk(0)
			must(t, do(t.Context(), d, request(OpWrite, 1, 1, 'x')))
			must(t, s.Seal(1))
			store.SetHook(func(c disktest.Call) error {
				if c.Op == op {
					return syscall.ENOSPC
				}
				return nil
			})
			s.Release(1)
			time.Sleep(time.Second)
			if err := s.Problem(); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("problem %v", err)
			}
			if taken, err := d.Accept(request(OpWrite, 2, 1, 'y')); taken || err != nil {
				t.Fatalf("accepted %v beside a failing disk, %v", taken, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := do(ctx, d, request(OpWrite, 2, 1, 'y')); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("a write beside a failing disk: %v", err)
			}
			store.SetHook(nil)
			must(t, do(t.Context(), d, request(OpWrite, 2, 1, 'y')))
			must(t, s.Drain(t.Context()))
			if m.Durable()[512] != 'x' || m.Durable()[1024] != 0 {
				t.Fatal("the failed write did not come after all")
			}
			must(t, s.Close())
			if len(told) != 2 || !errors.Is(told[0], syscall.ENOSPC) || told[1] != nil {
				t.Fatalf("told of the trouble: %v; want once that there is some, and once that it is over", told)
			}
		})
	}
}

func TestWhatIsBehindABarrierWaitsForIt(t *testing.T) {
	m := disktest.NewMedia(256, true)
	store := m.Open()
	s := newSet(t, SetConfig{}, store)
	own(s, 1)
	s.Hold()
	d := s.Disk(0)
	for i := range uint64(10) {
		must(t, do(soon(t), d, request(OpWrite, 2*i, 1, 'a')))
		must(t, do(soon(t), d, request(OpWrite, 2*i+1, 1, 'a')))
		must(t, do(soon(t), d, request(OpFlush, 0, 0, 0)))
	}
	var late, writes atomic.Int64
	store.SetHook(func(c disktest.Call) error {
		if c.Op == disktest.Write {
			writes.Add(1)
			if m.Unsynced() > 0 {
				late.Add(1)
			}
		}
		return nil
	})
	s.Pass()
	must(t, s.Drain(soon(t)))
	if late.Load() > 0 || writes.Load() != 10 {
		t.Fatalf("%d writes, %d of them before the barrier was durable; want 10, each of two neighbours", writes.Load(), late.Load())
	}
}

func TestAFullLogStopsTheGuest(t *testing.T) {
	m := disktest.NewMedia(1<<16, true)
	s := newSet(t, SetConfig{}, m.Open())
	own(s, 1)
	s.Hold()
	d := s.Disk(0)
	n := 0
	for big := request(OpWrite, 0, epoch.MaxWriteSectors, 'z'); ; n++ {
		taken, err := d.Accept(big)
		must(t, err)
		if !taken {
			break
		}
	}
	if n != 4 {
		t.Fatalf("%d requests of 4 MiB fit into %d bytes", n, MinHeldBytes)
	}
	select {
	case <-s.Pressure():
	default:
		t.Fatal("no pressure")
	}
	must(t, s.Seal(1))
	done := make(chan error, 1)
	go func() { done <- do(soon(t), d, request(OpWrite, 0, 8, 'a')) }()
	s.Release(1)
	must(t, <-done)
	// Discards have no bytes, and still fill it.
	n = 0
	for r := request(OpDiscard, 0, epoch.MaxZeroSectors, 0); ; n++ {
		taken, err := d.Accept(r)
		must(t, err)
		if !taken {
			break
		}
	}
	if n > 100 {
		t.Fatalf("%d discards", n)
	}
}

// TestADrainSyncsWhatAKilledDaemonWroteDirectly: the journal does not tell of
// writes that went straight to the disk.
func TestADrainSyncsWhatAKilledDaemonWroteDirectly(t *testing.T) {
	dir := t.TempDir()
	m := disktest.NewMedia(4096, true)
	first, err := NewSet(SetConfig{Pages: testPages, HeldBytes: MinHeldBytes, JournalDir: dir, Disks: []DiskConfig{{Store: m.Open()}}, Clock: clock.Boot{}, Log: quietLog})
	must(t, err)
	own(first, 3)
	first.Pass()
	must(t, do(soon(t), first.Disk(0), request(OpWrite, 0, 8, 'x')))
	must(t, first.Close())
	if m.Unsynced() == 0 {
		t.Fatal("it is durable already")
	}
	s := newSet(t, SetConfig{JournalDir: dir}, m.Open())
	own(s, 4)
	s.Pass()
	must(t, s.Drain(soon(t)))
	if n := m.Unsynced(); n != 0 {
		t.Fatalf("%d writes are not durable after a drain", n)
	}
}

func TestAKilledDaemonsWritesAreFound(t *testing.T) {
	dir := t.TempDir()
	m := disktest.NewMedia(4096, true)
	store := m.Open()
	s := newSet(t, SetConfig{JournalDir: dir}, store)
	own(s, 3)
	s.Hold()
	d := s.Disk(0)
	want := make([]byte, 4096*512)
	write := func(d *Device, sector uint64, n uint32, fill byte) {
		must(t, do(soon(t), d, request(OpWrite, sector, n, fill)))
		for i := sector * 512; i < (sector+uint64(n))*512; i++ {
			want[i] = fill
		}
	}
	n := epoch.Number(0)
	for round := range 400 { // some rounds through the ring
		write(d, uint64(round*7%3000), uint32(1+round%200), byte(round))
		if round%10 == 0 {
			must(t, do(soon(t), d, request(OpFlush, 0, 0, 0)))
		}
		if round%30 == 29 {
			n++
			must(t, s.Seal(n))
			s.Release(n - 1)
			must(t, s.Drain(soon(t)))
		}
	}
	must(t, s.Seal(n+1))
	s.Release(n)
	must(t, s.Drain(soon(t)))
	image, err := os.ReadFile(filepath.Join(dir, journalName))
	must(t, err)
	held := s.Status().Writes

	open := func(t *testing.T, image []byte) *Set {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, journalName), image, 0o600))
		other := disktest.NewMedia(4096, true)
		other.Set(m.Bytes())
		return newSet(t, SetConfig{JournalDir: dir}, other.Open())
	}
	t.Run("all", func(t *testing.T) {
		s := open(t, image)
		if r := s.Recovered(); r.Writes != held || r.Released != 0 || r.Generation != 3 {
			t.Fatalf("recovered %+v of %d", r, held)
		}
		own(s, 3)
		s.Hold()
		if !bytes.Equal(contents(t, s.Disk(0)), want) {
			t.Fatal("the disk is another one")
		}
		must(t, s.Seal(1))
		if w, _ := s.Sealed(1); uint64(len(w)) != held {
			t.Fatalf("%d writes of %d wait for the next epoch", len(w), held)
		}
		write(s.Disk(0), 0, 1, 'n')
		if w := s.held.at(s.held.next - 1); w.seq <= s.held.at(s.held.first).seq {
			t.Fatal("sequence numbers do not go on")
		}
		clear(want[:512])
		copy(want, contents(t, d)[:512])
	})
	t.Run("none", func(t *testing.T) {
		s := open(t, image)
		s.Forget()
		own(s, 4)
		s.Hold()
		if !bytes.Equal(contents(t, s.Disk(0)), m.Bytes()) {
			t.Fatal("something is left")
		}
	})
	t.Run("torn", func(t *testing.T) {
		e := *s.held.at(s.held.next - 1)
		torn := bytes.Clone(image)
		torn[journalHeader+int(e.pos%uint64(len(s.held.j.ring)))+int(e.header)+5] ^= 1
		s := open(t, torn)
		if r := s.Recovered(); r.Writes != held-1 {
			t.Fatalf("recovered %d writes, want all but the last of %d", r.Writes, held)
		}
	})
	t.Run("other disks", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, journalName), image, 0o600))
		_, err := NewSet(SetConfig{JournalDir: dir, Disks: []DiskConfig{{Store: disktest.NewMedia(8, true).Open()}}, Clock: clock.Boot{}, Log: quietLog})
		if !errors.Is(err, ErrRange) {
			t.Fatalf("a journal of a larger disk: %v", err)
		}
	})
}

func TestWhatTheGuestMustNotAskFor(t *testing.T) {
	s := newSet(t, SetConfig{}, disktest.NewMedia(100000, true).Open())
	own(s, 1)
	s.Hold()
	d := s.Disk(0)
	short := request(OpWrite, 0, 8, 0)
	short.Segments[0].Data = short.Segments[0].Data[1:]
	for name, r := range map[string]*Request{
		"nothing":        {Op: OpWrite},
		"past the end":   request(OpWrite, 99999, 2, 0),
		"overflow":       {Op: OpDiscard, Sector: ^uint64(0), Sectors: 2},
		"too large":      request(OpWrite, 0, epoch.MaxWriteSectors+1, 0),
		"large discard":  {Op: OpDiscard, Sectors: epoch.MaxZeroSectors + 1},
		"short segments": short,
		"no buffer":      {Op: OpRead, Sectors: 1},
		"unknown":        {Op: 99},
	} {
		if err := do(soon(t), d, r); !errors.Is(err, ErrRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAReadOnlyDisk(t *testing.T) {
	m := disktest.NewMedia(64, true)
	s, err := NewSet(SetConfig{Disks: []DiskConfig{{Store: m.Open(), ReadOnly: true}}, Clock: clock.Boot{}, Log: quietLog})
	must(t, err)
	defer func() { must(t, s.Close()) }()
	own(s, 1)
	s.Hold()
	d := s.Disk(0)
	if err := do(soon(t), d, request(OpWrite, 0, 1, 0)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a write: %v", err)
	}
	must(t, do(soon(t), d, request(OpRead, 0, 8, 0)))
	must(t, do(soon(t), d, request(OpFlush, 0, 0, 0)))
}

func TestHoldWaitsForWhatIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := disktest.NewMedia(1024, true).Open()
		s, err := NewSet(SetConfig{Pages: 64, Disks: []DiskConfig{{Store: store}}, HeldBytes: MinHeldBytes, Clock: clock.Go{Start: time.Now()}, Log: quietLog})
		must(t, err)
		own(s, 1)
		s.Pass()
		synctest.Wait()
		store.SetHook(func(disktest.Call) error { time.Sleep(time.Second); return nil })
		done := make(chan error, 1)
		go func() { done <- do(t.Context(), s.Disk(0), request(OpWrite, 0, 1, 1)) }()
		synctest.Wait()
		s.Hold()
		if s.Settled() || s.Seal(1) == nil {
			t.Fatal("settled with a write on its way")
		}
		must(t, <-done)
		time.Sleep(2 * time.Second)
		if !s.Settled() {
			t.Fatal("not settled")
		}
		must(t, s.Seal(1))
		must(t, s.Close())
	})
}

func TestTheHotPathAllocatesNothing(t *testing.T) {
	m := disktest.NewMedia(1<<14, true)
	s := newSet(t, SetConfig{}, m.Open())
	own(s, 1)
	s.Hold()
	d := s.Disk(0)
	w := request(OpWrite, 64, 64, 'w')
	r := request(OpRead, 32, 64, 0)
	n := epoch.Number(0)
	step := func() {
		for k := range uint64(8) {
			w.Sector = 64 + k*32
			if taken, err := d.Accept(w); !taken || err != nil {
				t.Fatal(taken, err)
			}
			if err := d.Do(context.Background(), r); err != nil {
				t.Fatal(err)
			}
			d.Landed(r)
			d.Touched(9, 4)
		}
	}
	epochs := func() {
		n++
		must(t, s.Seal(n))
		s.Sealed(n)
		s.Release(n)
		must(t, s.Drain(context.Background()))
	}
	for range 20 {
		step()
		epochs()
	}
	// The log starts over when it is empty: room for some steps without a flush.
	if a := testing.AllocsPerRun(10, step); a != 0 {
		t.Errorf("%v allocations in 8 writes and 8 reads", a)
	}
}

// TestAJournalThatIsGoneIsMissed: who finds a guest running has to know whether
// what was held for it is there.
func TestAJournalThatIsGoneIsMissed(t *testing.T) {
	m, dir := disktest.NewMedia(64, true), t.TempDir()
	missing := func(want bool, c SetConfig) *Set {
		t.Helper()
		s := newSet(t, c, m.Open())
		if got := s.Status().Recovered.Missing; got != want {
			t.Errorf("missing: %v, want %v", got, want)
		}
		return s
	}
	must(t, missing(true, SetConfig{JournalDir: dir}).Close()) // and nobody's
	s := missing(true, SetConfig{JournalDir: dir})
	own(s, 3)
	must(t, s.Close())
	must(t, missing(false, SetConfig{JournalDir: dir}).Close())
	must(t, os.Remove(filepath.Join(dir, journalName)))
	missing(true, SetConfig{JournalDir: dir})
	missing(false, SetConfig{}) // nothing outlives a process
}
