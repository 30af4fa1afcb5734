package primary

// This file is the pause: what happens while the guest stands still, in order.
//
//	stop → device state ∥ (seal frames and writes → scan → copy) → cont
//
// The copy goes into slabs: memory mapped and touched ahead, because a fresh
// page costs ten times what its copy costs. Filled slabs travel to the sender
// (link.go), which gives each back when it has been encoded; so slabs are also
// the back-pressure. An epoch that needs more slabs than are free is handed to
// the sender early and filled while the sender empties it.

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy/clock"
	"understudy/crashpoint"
	"understudy/epoch"
	"understudy/protocol"
)

// slab is one piece of capture memory and the page runs in it.
type slab struct {
	data []byte
	used int
	runs []run
}

// run is a run of adjacent pages, stored one after the other in a slab.
type run struct {
	first epoch.GFN
	pages uint64
}

// slabs is the pool of capture memory. It is mapped by the first touch.
type slabs struct {
	count  int
	mu     sync.Mutex // touching and freeing
	memory []byte
	ready  chan *slab
}

// touch maps the pool and writes to each of its pages, once.
func (s *slabs) touch() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.memory != nil {
		return nil
	}
	m, err := unix.Mmap(-1, 0, s.count*slabBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("map %d bytes of capture memory: %w", s.count*slabBytes, err)
	}
	// Huge pages make the copy faster still; without them it works as well.
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE)
	for i := 0; i < len(m); i += epoch.PageSize {
		m[i] = 1
	}
	s.memory, s.ready = m, make(chan *slab, s.count)
	for i := range s.count {
		s.ready <- &slab{data: m[i*slabBytes:][:slabBytes:slabBytes], runs: make([]run, 0, slabBytes/epoch.PageSize)}
	}
	return nil
}

// free unmaps the pool. Every slab must have come back.
func (s *slabs) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.memory != nil {
		_ = unix.Munmap(s.memory)
		s.memory = nil
	}
}

// put gives a slab back.
func (s *slabs) put(b *slab) {
	b.used, b.runs = 0, b.runs[:0]
	s.ready <- b
}

// job is one captured epoch on its way to the sender.
type job struct {
	number epoch.Number
	kind   epoch.Kind
	slabs  chan *slab     // closed after the last; never blocks the capture
	device []byte         // complete once slabs is closed
	pages  *epoch.PageSet // complete before the first slab; until the epoch is acknowledged
	verify protocol.Verify
	hash   epoch.Hash // of the range verify names
	failed bool       // set before slabs is closed: the epoch must not be ended
}

// capture takes the whole checkpoint of epoch a.Number.
func (p *Primary) capture(ctx context.Context, a Capture) Event {
	if !p.Disks.Settled() {
		return Postponed{a.Number}
	}
	p.stalled = false
	set := p.takeSet()
	j := p.newJob(a.Number, epoch.KindCheckpoint, set)
	t := newStopwatch(p.Clock)

	cost, handed, err := p.pauseAndCopy(ctx, j, set, &t)
	if !a.Final || err != nil {
		// Also when ctx has ended: a daemon that goes down leaves a running guest.
		if e := p.Guest.Resume(context.WithoutCancel(ctx)); e != nil && err == nil {
			p.Slog.Error("resume after capture failed", "epoch", a.Number, "err", e)
		}
	}
	t.lap(&cost.Resume)
	cost.Pause = t.total()

	p.finishJob(j, set, handed, err)
	if err != nil {
		return CaptureFailed{a.Number, err}
	}
	crashpoint.At(crashpoint.Captured)
	p.stats.captured(cost)
	if p.Observe != nil {
		p.Observe(cost)
	}
	return Captured{Number: a.Number, Kind: j.kind, Cost: cost, Stalled: p.stalled}
}

// pauseAndCopy is everything between stop and cont.
func (p *Primary) pauseAndCopy(ctx context.Context, j *job, set *epoch.PageSet, t *stopwatch) (cost Cost, handed bool, err error) {
	if err := p.Guest.Pause(ctx); err != nil {
		return cost, false, fmt.Errorf("pause the guest: %w", err)
	}
	t.lap(&cost.Stop)
	crashpoint.At(crashpoint.CapturePaused)

	type saved struct {
		state []byte
		at    clock.Instant
		err   error
	}
	device := make(chan saved, 1)
	from := t.at
	go func() { // ends by itself: the channel has room
		state, err := p.Guest.AppendDeviceState(ctx, j.device[:0])
		device <- saved{state, p.Clock.Now(), err}
	}()
	defer func() {
		d := <-device
		cost.Device = d.at.Sub(from)
		j.device = d.state
		if err == nil && d.err != nil {
			err = fmt.Errorf("save the device state: %w", d.err)
		}
		t.at = p.Clock.Now()
	}()

	err = p.Gate.Seal(j.number)
	t.lap(&cost.Seal)
	if err != nil {
		return cost, false, fmt.Errorf("seal held frames: %w", err)
	}
	if err = p.Disks.Seal(j.number); err != nil {
		return cost, false, fmt.Errorf("seal held writes: %w", err)
	}
	cost.Held, _ = p.Gate.Held()
	if err = p.collect(set); err != nil {
		return cost, false, err
	}
	t.lap(&cost.Scan)
	cost.Dirty = set.Count()
	handed, err = p.copyPages(j, set)
	if err == nil && j.verify.Count > 0 {
		j.hash, err = epoch.HashPages(p.Guest.ReadPages, j.verify.First, j.verify.Count)
	}
	t.lap(&cost.Copy)
	return cost, handed, err
}

// syncStep sends some pages while the guest runs. A page that is written during
// the copy is reported dirty by the next collection.
func (p *Primary) syncStep(n epoch.Number) Event {
	set := p.takeSet()
	j := p.newJob(n, epoch.KindSync, set)
	var handed bool
	err := p.collect(set)
	if err == nil {
		p.pending.Union(set)
		set.Clear()
		p.pending.TakeInto(set, p.cfg.SyncStep)
		handed, err = p.copyPages(j, set)
	}
	differ, compare := p.Disks.Unsynced()
	sends, left := set.Count(), p.pending.Count()+differ/epoch.PageSize
	p.finishJob(j, set, handed, err)
	if err != nil {
		return CaptureFailed{n, err}
	}
	p.stats.synced(left + compare/epoch.PageSize)
	return Captured{Number: n, Kind: j.kind, Sent: sends, Remaining: left, Comparing: compare > 0}
}

// collect adds what is dirty now, and what former attempts owe, to set.
func (p *Primary) collect(set *epoch.PageSet) error {
	set.Union(p.pending)
	p.pending.Clear()
	if p.saving == nil && p.seen == nil {
		return p.collectNew(set)
	}
	// A save owes only what was written since its last copy, and only what was
	// written since it was looked at is not known any more.
	fresh := p.takeSet()
	defer p.putSet(fresh)
	err := p.collectNew(fresh)
	p.written(fresh)
	if p.saving != nil {
		p.saving.note(fresh)
	}
	set.Union(fresh)
	return err
}

func (p *Primary) collectNew(set *epoch.PageSet) error {
	if err := p.Guest.CollectDirty(set); err != nil {
		set.Fill() // nothing is known: everything counts
		return fmt.Errorf("collect dirty pages: %w", err)
	}
	p.Disks.CollectDirty(set)
	return nil
}

// copyPages copies every page of set into slabs and adds them to the job. When
// no slab is free, the job is handed to the sender, which frees some.
func (p *Primary) copyPages(j *job, set *epoch.PageSet) (handed bool, err error) {
	var cur *slab
	for first, count := range set.Runs {
		for count > 0 {
			if cur == nil {
				select {
				case cur = <-p.memory.ready:
				default:
					if !handed {
						p.link.take(j)
						handed = true
					}
					cur = p.room()
				}
			}
			n := min(count, uint64(len(cur.data)-cur.used)/epoch.PageSize)
			size := int(n) * epoch.PageSize
			if err := p.Guest.ReadPages(first, cur.data[cur.used:][:size]); err != nil {
				p.memory.put(cur)
				return handed, fmt.Errorf("read pages %d+%d: %w", first, n, err)
			}
			cur.runs = append(cur.runs, run{first, n})
			cur.used += size
			first += epoch.GFN(n)
			count -= n
			if cur.used == len(cur.data) {
				j.slabs <- cur
				cur = nil
			}
		}
	}
	if cur != nil {
		j.slabs <- cur
	}
	return handed, nil
}

// room waits until the sender has emptied a slab. The guest stands still
// meanwhile, so a backup that takes nothing any more, and yet lives, must not
// hold it: its session is closed, and the sender then gives every slab back.
func (p *Primary) room() *slab {
	t := time.NewTimer(p.cfg.AckTimeout)
	defer t.Stop()
	select {
	case b := <-p.memory.ready:
		return b
	case <-t.C:
		p.Slog.Warn("the backup takes nothing: its session is closed", "backup", p.link.peer, "for", p.cfg.AckTimeout)
		_ = p.link.session.Close()
		p.stalled = true
		return <-p.memory.ready
	}
}

// newJob prepares an epoch; checkpoints take along what is to be verified.
func (p *Primary) newJob(n epoch.Number, kind epoch.Kind, set *epoch.PageSet) *job {
	j := &job{number: n, kind: kind, pages: set, slabs: make(chan *slab, cap(p.memory.ready))}
	if kind == epoch.KindCheckpoint {
		j.device = p.link.device()
		j.verify = p.verifies.next(p.Guest.Pages())
	}
	return j
}

// finishJob completes an epoch: on its way, or undone.
func (p *Primary) finishJob(j *job, set *epoch.PageSet, handed bool, err error) {
	j.failed = err != nil
	close(j.slabs)
	if err != nil {
		p.pending.Union(set)
		p.putSet(set)
		if !handed {
			for b := range j.slabs {
				p.memory.put(b)
			}
		}
		return
	}
	p.inflight = append(p.inflight, flight{j.number, set, p.Clock.Now()})
	if !handed {
		p.link.take(j)
	}
}

// forget drops the dirty sets of acknowledged epochs.
func (p *Primary) forget(through epoch.Number) {
	for len(p.inflight) > 0 && p.inflight[0].number <= through {
		p.stats.committed(p.inflight[0], p.Clock.Now())
		p.putSet(p.inflight[0].pages)
		p.inflight = p.inflight[1:]
	}
	p.Disks.Synced(through)
}

// restore makes every page of an epoch in flight dirty again.
func (p *Primary) restore() {
	for _, f := range p.inflight {
		p.pending.Union(f.pages)
		p.putSet(f.pages)
	}
	p.inflight = p.inflight[:0]
}

func (p *Primary) takeSet() *epoch.PageSet {
	if n := len(p.spare); n > 0 {
		s := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return s
	}
	return epoch.NewPageSet(p.Guest.Pages())
}

func (p *Primary) putSet(s *epoch.PageSet) {
	s.Clear()
	p.spare = append(p.spare, s)
}

// stopwatch measures the steps of a pause.
type stopwatch struct {
	clock     clock.Clock
	start, at clock.Instant
}

func newStopwatch(c clock.Clock) stopwatch {
	now := c.Now()
	return stopwatch{clock: c, start: now, at: now}
}

// lap stores the time since the last lap.
func (s *stopwatch) lap(into *time.Duration) {
	now := s.clock.Now()
	*into = now.Sub(s.at)
	s.at = now
}

func (s *stopwatch) total() time.Duration { return s.at.Sub(s.start) }
