package crash

// This file is a host: its way to the disks, call by call, its disk.Set, its
// index and its clock.
//
//	disk.Set ─ call ─> gate: waits for the world's word ─> disktest.Media
//	                     go on │ fail │ torn: half of it │ lost: done, not told
//
// So the world sees every write and every sync of a flusher before it takes
// effect, and decides what comes between.

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing/synctest"

	"understudy/clock"
	"understudy/disk"
	"understudy/disk/disktest"
	"understudy/epoch"
	"understudy/exclusion"
)

const (
	disks   = 2
	sectors = 160 // of each disk: one whole chunk of the synchronisation and a short one
	// dataPages are the guest's; behind them are the rings of a Xen guest.
	dataPages = 12
	pages     = dataPages + disks
)

// verdict says what becomes of a call.
type verdict uint8

const (
	goOn verdict = iota
	fail         // it never happens
	torn         // half of it happens, nobody hears of it
	lost         // it happens, nobody hears of it
)

// call is one call of a store.
type call struct {
	op      disktest.Op
	disk    int
	sector  uint64
	sectors uint32
	answer  chan verdict
}

func (c *call) changes() bool { return c.op == disktest.Write || c.op == disktest.Zero }

// gate is where the calls of one host's stores wait.
type gate struct {
	h *host

	mu     sync.Mutex
	reads  bool // reads wait, too
	dead   bool
	parked []*call
}

// enter returns what becomes of a call, once that is known.
func (g *gate) enter(c *call) verdict {
	g.mu.Lock()
	g.h.w.begun(g.h, c)
	if g.dead {
		g.mu.Unlock()
		return fail
	}
	if c.op == disktest.Read && !g.reads {
		g.mu.Unlock()
		return goOn
	}
	c.answer = make(chan verdict, 1)
	g.parked = append(g.parked, c)
	g.mu.Unlock()
	return <-c.answer
}

// first returns the first call that waits and that is one of ops.
func (g *gate) first(ops ...disktest.Op) *call {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.parked {
		if slices.Contains(ops, c.op) {
			return c
		}
	}
	return nil
}

var (
	changing = []disktest.Op{disktest.Write, disktest.Zero, disktest.Sync}
	anyCall  = append([]disktest.Op{disktest.Read}, changing...)
)

// give gives a call its verdict and waits until everything has come to rest.
func (g *gate) give(c *call, v verdict) {
	g.mu.Lock()
	g.parked = slices.DeleteFunc(g.parked, func(x *call) bool { return x == c })
	g.mu.Unlock()
	c.answer <- v
	synctest.Wait()
}

// store is a disktest.Store behind a gate.
type store struct {
	*disktest.Store
	g    *gate
	disk int
}

func (s *store) ReadAt(p []byte, sector uint64) error {
	if s.g.enter(&call{op: disktest.Read, disk: s.disk, sector: sector, sectors: uint32(len(p) / 512)}) != goOn {
		return disktest.ErrDead
	}
	return s.Store.ReadAt(p, sector)
}

func (s *store) WriteAt(p []byte, sector uint64) error {
	c := &call{op: disktest.Write, disk: s.disk, sector: sector, sectors: uint32(len(p) / 512)}
	return s.change(c, func(n uint32) error { return s.Store.WriteAt(p[:n*512], sector) })
}

func (s *store) Zero(sector uint64, n uint32, discard bool) error {
	c := &call{op: disktest.Zero, disk: s.disk, sector: sector, sectors: n}
	return s.change(c, func(n uint32) error { return s.Store.Zero(sector, n, discard) })
}

// change does what the gate says of a change of n sectors.
func (s *store) change(c *call, do func(n uint32) error) error {
	n := c.sectors
	v := s.g.enter(c)
	if v == torn {
		n /= 2
	}
	if v == fail || n == 0 {
		return disktest.ErrDead
	}
	if err := do(n); err != nil {
		return err
	}
	s.g.h.w.landed(s, c, n)
	if v != goOn {
		return disktest.ErrDead
	}
	return nil
}

func (s *store) Sync() error {
	v := s.g.enter(&call{op: disktest.Sync, disk: s.disk})
	if v == fail || v == torn {
		return disktest.ErrDead
	}
	if s.g.h.w.broken == "a disk says durable, and it is not" {
		return nil
	}
	if err := s.Store.Sync(); err != nil || v == goOn {
		return err
	}
	return disktest.ErrDead
}

// hostClock is a host's clock, which the world sets.
type hostClock struct{ now atomic.Int64 }

func (c *hostClock) Now() clock.Instant { return clock.Instant(c.now.Load()) }

// leaseEnd is the end of every lease; a frozen host wakes up after it.
const leaseEnd = clock.Instant(1e12)

// host is one of the two.
type host struct {
	w       *world
	id      int
	name    string
	media   [disks]*disktest.Media
	stores  [disks]*store
	gate    *gate
	clock   *hostClock
	key     epoch.PrintKey
	index   *exclusion.Index
	set     *disk.Set
	fronts  [disks]frontend
	guest   *guest // that runs here
	journal string // directory; "": none
	up      bool

	rebooted bool // its memory is gone, and with it the journal
}

const staleHints = "pages are left out by hints of another life"

// open starts the host's daemon; what its journal holds is taken in.
func (h *host) open() {
	h.gate, h.clock = &gate{h: h}, &hostClock{}
	h.clock.now.Store(1)
	if h.index == nil || h.w.broken != staleHints {
		h.key += 2
		h.index = exclusion.NewIndex(exclusion.Config{Pages: pages, Key: h.key, MaxBlocks: 64})
	}
	if h.journal != "" && h.rebooted {
		h.w.must(os.RemoveAll(filepath.Join(h.journal, "held")))
	}
	h.rebooted = false
	c := disk.SetConfig{Pages: pages, HeldBytes: disk.MinHeldBytes, Clock: h.clock, Index: h.index, JournalDir: h.journal,
		Unfenced: h.w.cfg.unfenced, Log: slog.New(slog.DiscardHandler)}
	if h.w.broken == staleHints {
		c.Index = staleIndex{h.index}
	}
	for i, m := range h.media {
		h.stores[i] = &store{Store: m.Open(), g: h.gate, disk: i}
		c.Disks = append(c.Disks, disk.DiskConfig{Store: h.stores[i]})
	}
	var err error
	h.set, err = disk.NewSet(c)
	h.w.must(err)
	for i := range h.fronts {
		h.fronts[i] = &front{h: h, disk: i}
		if h.w.cfg.xen {
			h.fronts[i], err = newXenFront(h, i)
			h.w.must(err)
		}
		h.w.must(h.set.Disk(epoch.DiskID(i)).Attach(h.fronts[i]))
	}
	h.up = true
}

// kill ends the host's daemon at this instant. What is on its way to a store
// happens, happens by half, or never does.
func (h *host) kill() {
	if !h.up {
		return
	}
	h.up = false
	h.gate.mu.Lock()
	h.gate.dead = true
	h.gate.mu.Unlock()
	synctest.Wait()
	var ended sync.WaitGroup
	for _, f := range h.fronts {
		ended.Go(func() { _ = f.end() }) // it waits for what is on its way
	}
	synctest.Wait()
	for c := h.gate.first(anyCall...); c != nil; c = h.gate.first(anyCall...) {
		v := fail
		if c.op != disktest.Read {
			v = []verdict{fail, torn, lost}[h.w.dice.IntN(3)]
		}
		h.gate.give(c, v)
	}
	for _, s := range h.stores {
		s.Kill()
	}
	h.w.must(h.set.Close())
	ended.Wait()
	synctest.Wait()
}

// losePower takes from the host's disks what was not durable, or a part of it.
func (h *host) losePower() {
	h.rebooted = true
	for _, m := range h.media {
		m.LosePower(func() bool { return h.w.dice.IntN(2) == 0 })
	}
}

// letGo lets everything that waits at the host's gate go on, until done says so.
func (h *host) letGo(what string, done func() bool) {
	for range 10000 {
		synctest.Wait()
		if done() {
			return
		}
		c := h.gate.first(anyCall...)
		switch {
		case c == nil:
			h.w.pass()
		case h.w.taking && h == h.w.owner.h && c.op != disktest.Read:
			h.w.replay(1)
			if h.w.over {
				panic(ending{})
			}
		default:
			h.gate.give(c, goOn)
		}
	}
	h.w.violated("%s: %s: nothing comes of it: %v", h.name, what, h.set.Problem())
}

// pumped calls f, which may wait for the host's stores, and lets them work.
func (h *host) pumped(what string, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	var err error
	h.letGo(what, func() bool {
		select {
		case err = <-done:
			return true
		default:
			return false
		}
	})
	return err
}

// endReads lets the reads that wait at the gate return.
func (h *host) endReads() {
	for c := h.gate.first(disktest.Read); c != nil; c = h.gate.first(disktest.Read) {
		h.gate.give(c, goOn)
	}
}

// drain lets everything released reach the disks.
func (h *host) drain() {
	h.letGo("drain", func() bool {
		s := h.set.Status()
		return s.Released == 0 && h.gate.first(changing...) == nil
	})
}

func (c *call) String() string {
	return fmt.Sprintf("%s of disk %d, sectors %d+%d", c.op, c.disk, c.sector, c.sectors)
}

// staleIndex is an index that does not forget.
type staleIndex struct{ *exclusion.Index }

func (staleIndex) Forget() {}
