package disk

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"understudy/clock"
	"understudy/epoch"
)

// coreSectors is the size of the oracle's disks.
const coreSectors = 40

// coreWorld drives a core with two disks, the one shared and the other a copy of
// each host, and knows by itself what a flusher may do.
//
//	random events ──> core ── action ──> allowed? ──> disks that lose what is not durable
type coreWorld struct {
	*rig
	t *rapid.T

	// What has happened, as the oracle keeps it.
	owner, known, holding, allowed bool // known: the host has a part; allowed: the mode lets writes out
	got                            bool // the shared disk's lock, in this generation
	lease                          clock.Instant
	generation                     epoch.Generation
	epochs                         []oracleEpoch
	sealedTo                       uint64
	may                            uint64 // entries before it may be written
	disks                          [2]oracleDisk
	asked                          [2]*action // not answered yet
}

type oracleEpoch struct {
	n  epoch.Number
	to uint64
}

// oracleDisk is a disk and its cache; a sector holds an entry's index plus one, or of
// a direct write that of the entry before it.
type oracleDisk struct {
	entries      []batched // of this disk, all that were ever added and not cut away
	now, durable [coreSectors]uint64
	lost         [coreSectors]bool // a failed sync may have dropped it
	refuses      bool              // every sync, until it is told that all was written anew
	reported     map[uint64]bool
}

func newCoreWorld(t *rapid.T) *coreWorld {
	w := &coreWorld{rig: newRig(false, true, false), t: t}
	for i := range w.disks {
		w.disks[i].reported = map[uint64]bool{}
	}
	w.own()
	w.hold()
	w.c.watched = rapid.Bool().Draw(t, "watched")
	return w
}

func (w *coreWorld) own() {
	w.generation++
	w.c.own(w.generation)
	w.owner, w.known, w.got = true, true, false
	w.lease = w.now.Add(time.Minute)
	w.c.allow(w.lease)
}

func (w *coreWorld) hold() {
	w.c.enter(ModeHold)
	w.holding, w.allowed = true, true
	w.epochs, w.sealedTo = nil, w.may
}

func (w *coreWorld) pass() {
	w.c.enter(ModePass)
	w.holding, w.allowed = false, true
	w.epochs, w.may = nil, w.c.log.next
}

// change is a write of the guest, or one that a backup was sent.
func (w *coreWorld) change(disk int) {
	l := w.c.lanes[disk]
	kind := rapid.SampledFrom([]epoch.WriteKind{epoch.WriteData, epoch.WriteData, epoch.WriteBarrier, epoch.WriteZeroes, epoch.WriteDiscard}).Draw(w.t, "kind")
	sector := rapid.Uint64Range(0, coreSectors-1).Draw(w.t, "sector")
	n := uint32(rapid.Uint64Range(1, min(12, coreSectors-sector)).Draw(w.t, "sectors"))
	if kind == epoch.WriteBarrier {
		sector, n = 0, 0
	}
	switch {
	case w.owner && w.c.holds(l):
		if !w.holding {
			w.t.Fatal("a write of an unprotected guest is held")
		}
		if w.c.troubled() {
			return
		}
	case w.owner && w.c.passes(l) && w.c.mayWrite(l, w.now):
		w.begin(disk, sector, n)
		return
	case w.owner:
		return
	}
	i := w.add(disk, kind, sector, n)
	w.disks[disk].entries = append(w.disks[disk].entries, batched{i, *w.c.log.at(i)})
	if !w.owner { // it was committed
		w.c.releaseAll()
		w.may = w.c.log.next
	}
}

// begin is a direct write, which lands at once and may be told of later.
func (w *coreWorld) begin(disk int, sector uint64, n uint32) {
	w.mayTouch(disk)
	d := &w.disks[disk]
	for _, b := range d.entries {
		if !d.reported[b.index] {
			w.t.Fatalf("a direct write overtakes entry %d", b.index)
		}
	}
	w.c.begin(w.c.lanes[disk], n == 0)
	for s := sector; s < sector+uint64(n); s++ {
		d.now[s] = w.c.log.next // newer than every entry so far
	}
}

// mayTouch: something is about to change a disk.
func (w *coreWorld) mayTouch(disk int) {
	shared := disk == 0
	switch {
	case w.owner && !w.now.Add(w.c.guard).Before(w.lease):
		w.t.Fatal("a write is begun after the lease, or too near its end")
	case w.owner && !w.allowed:
		w.t.Fatal("a write is begun though the disks are shut or quiet")
	case w.owner && shared && !w.got:
		w.t.Fatal("a write is begun without the lock")
	case !w.owner && shared:
		w.t.Fatal("a backup writes to the shared disk")
	}
}

// step asks a flusher for its next action, or answers its last.
func (w *coreWorld) step(disk int, healthy bool) (idle bool) {
	l, d := w.c.lanes[disk], &w.disks[disk]
	if w.asked[disk] == nil {
		a := w.c.next(l, w.now)
		switch a.do {
		case doWait:
			if a.until != 0 && (!l.failing || !w.now.Before(a.until)) {
				w.t.Fatalf("waits until %v at %v, failing: %v", a.until, w.now, l.failing)
			}
			return true
		case doAcquire:
			if !w.owner || a.generation != w.generation {
				w.t.Fatalf("the lock is asked for in generation %d", a.generation)
			}
		case doWarn, doWrite, doZero, doDiscard, doSync:
			w.mayTouch(disk)
		}
		w.asked[disk] = &a
		if a.do == doWrite || a.do == doZero || a.do == doDiscard {
			w.write(disk, a)
		}
		return false
	}
	a := *w.asked[disk]
	w.asked[disk] = nil
	w.did = a
	fails := !healthy && a.do != doArrange && a.do != doReport && rapid.IntRange(0, 4).Draw(w.t, "fails") == 0
	if a.do == doSync {
		fails = !w.sync(disk, a, fails)
	}
	switch {
	case fails && a.do == doAcquire && rapid.Bool().Draw(w.t, "given up"):
		w.c.gaveUp(l)
		return false
	case fails:
		w.c.failed(l, a, w.now)
		return false
	case a.do == doReport:
		w.report(disk)
	case a.do == doAcquire && disk == 0:
		w.got = a.generation == w.generation && w.owner
	}
	w.ok(l)
	d.check(w.t)
	return false
}

// write puts entries into the disk's cache, if they may be there.
func (w *coreWorld) write(disk int, a action) {
	d, l := &w.disks[disk], w.c.lanes[disk]
	at := a.sector
	for _, p := range a.pieces {
		b := l.plan.batch[p.from]
		if p.sector != at || p.sector < b.e.sector || p.end() > b.e.sector+uint64(b.e.sectors) || p.kind != b.e.kind {
			w.t.Fatalf("piece %+v of entry %+v at sector %d", p, b, at)
		}
		at = p.end()
		if b.index >= w.may {
			w.t.Fatalf("entry %d is written, those before %d may be", b.index, w.may)
		}
		d.inFront(w.t, b.index)
		for s := p.sector; s < p.end(); s++ {
			if d.now[s] > b.index+1 {
				w.t.Fatalf("entry %d is written over entry %d", b.index, d.now[s]-1)
			}
			d.now[s], d.lost[s] = b.index+1, false
		}
	}
	if at != a.sector+uint64(a.sectors) {
		w.t.Fatalf("%d sectors in pieces up to %d", a.sectors, at)
	}
}

// inFront: what is in front of the last barrier before an entry must be durable.
func (d *oracleDisk) inFront(t *rapid.T, index uint64) {
	barrier := uint64(0)
	for _, b := range d.entries {
		if b.e.kind == epoch.WriteBarrier && b.index < index {
			barrier = b.index
		}
	}
	for _, b := range d.entries {
		if b.index < barrier && !d.isDurable(b) {
			t.Fatalf("entry %d is written, and entry %d, in front of barrier %d, is not durable", index, b.index, barrier)
		}
	}
}

func (d *oracleDisk) isDurable(b batched) bool {
	for s := b.e.sector; s < b.e.sector+uint64(b.e.sectors); s++ {
		if d.durable[s] < b.index+1 {
			return false
		}
	}
	return true
}

// sync makes the cache durable, or loses some of it and refuses until all was
// written anew, as Linux and store.File do.
func (w *coreWorld) sync(disk int, a action, fails bool) (ok bool) {
	d := &w.disks[disk]
	if a.anew {
		for s, lost := range d.lost {
			if lost {
				w.t.Fatalf("sector %d is said to be written anew, and is not", s)
			}
		}
		d.refuses = false
	}
	if d.refuses {
		return false
	}
	if fails {
		d.refuses = true
		for s := range d.now {
			if d.now[s] != d.durable[s] && rapid.Bool().Draw(w.t, "lost") {
				d.now[s], d.lost[s] = d.durable[s], true
			}
		}
		return false
	}
	d.durable = d.now
	return true
}

// report: the core says what is durable.
func (w *coreWorld) report(disk int) {
	d, l := &w.disks[disk], w.c.lanes[disk]
	for _, b := range l.plan.batch {
		if d.reported[b.index] {
			w.t.Fatalf("entry %d is reported twice", b.index)
		}
		d.reported[b.index] = true
		if !d.isDurable(b) {
			w.t.Fatalf("entry %d is reported and is not durable", b.index)
		}
	}
}

// check: a disk is told of in order, and nothing is left out.
func (d *oracleDisk) check(t *rapid.T) {
	end := false
	for _, b := range d.entries {
		if !d.reported[b.index] {
			end = true
		} else if end {
			t.Fatalf("entry %d is reported before one in front of it", b.index)
		}
	}
}

// standBy makes the host a backup: what was held is forgotten.
func (w *coreWorld) standBy() {
	w.c.standBy()
	w.owner, w.lease = false, 0
	for disk, l := range w.c.lanes { // what is under way ends first
		for w.c.busy() && (l.job != jobNone || l.direct > 0) {
			if l.direct > 0 {
				w.c.end(l, false, true)
			} else {
				w.step(disk, true)
			}
		}
	}
	w.c.letGo(w.c.lanes[0])
	w.got = false
	w.c.log.cut(w.c.log.first)
	w.c.forgotten()
	w.c.stoodBy()
	w.may, w.sealedTo, w.epochs = w.c.log.next, w.c.log.next, nil
	for i := range w.disks { // the disk goes on as it is
		d := &w.disks[i]
		*d = oracleDisk{now: d.now, durable: d.now, reported: map[uint64]bool{}}
		for s := range d.now {
			d.now[s], d.durable[s] = 0, 0
		}
	}
}

func (w *coreWorld) event() {
	t := w.t
	disk := rapid.IntRange(0, 1).Draw(t, "disk")
	l := w.c.lanes[disk]
	switch rapid.IntRange(0, 23).Draw(t, "event") {
	default:
		w.change(disk)
	case 6, 7, 8, 9, 10, 11, 12:
		w.step(disk, false)
		w.now++
	case 13:
		w.now = w.now.Add(time.Duration(rapid.IntRange(1, 30_000).Draw(t, "ms")) * time.Millisecond)
		if near := w.lease.Add(-w.c.guard - 1); w.now.Before(near) && rapid.Bool().Draw(t, "near the lease's end") {
			w.now = near
		}
	case 14:
		if w.owner {
			w.lease = w.now.Add(time.Minute)
			w.c.allow(w.lease)
		}
	case 15, 16:
		n := w.n + 1
		if err := w.c.maySeal(n); err == nil {
			w.c.seal(n, seal{})
			w.n, w.sealedTo = n, w.c.log.next
			w.epochs = append(w.epochs, oracleEpoch{n, w.sealedTo})
		}
	case 17, 18:
		through := w.n - min(w.n, epoch.Number(rapid.IntRange(0, 3).Draw(t, "behind")))
		w.c.release(through)
		for len(w.epochs) > 0 && w.epochs[0].n <= through {
			w.may = max(w.may, w.epochs[0].to)
			w.epochs = w.epochs[1:]
		}
	case 19:
		if w.owner {
			w.hold()
		}
	case 20:
		if w.owner {
			w.pass()
		}
	case 21:
		switch rapid.IntRange(0, 3).Draw(t, "rare") {
		case 0:
			if w.owner {
				w.c.shut()
				w.allowed, w.holding = false, false
			}
		case 1:
			w.c.quiesce()
			w.allowed = false
		case 2:
			quiet := w.c.quiet
			w.own()
			if quiet || w.c.heir {
				w.c.activate()
				w.hold()
			}
			w.allowed = w.c.mode != ModeShut
		case 3:
			w.standBy()
		}
	case 22:
		if !w.owner && w.c.activate() {
			w.may = w.c.log.next
			w.own()
			w.holding, w.allowed, w.epochs, w.sealedTo = true, true, nil, w.may
		}
	case 23:
		if l.direct > 0 {
			w.c.end(l, false, true)
		}
	}
}

// TestTheCoreEqualsItsOracle plays events at random, with disks that fail and
// forget: nothing is written that may not be, in an order that may not be, or told
// of before it is durable; and nothing is ever dropped.
func TestTheCoreEqualsItsOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newCoreWorld(t)
		for range rapid.IntRange(10, 150).Draw(t, "events") {
			w.event()
		}
		// In the end all is well, and everything has to arrive.
		if !w.owner {
			w.c.activate()
		}
		w.own()
		w.pass()
		w.c.drain(1)
		for disk, l := range w.c.lanes {
			for l.direct > 0 {
				w.c.end(l, false, true)
			}
			for tries := 0; ; tries++ {
				if tries > 5000 {
					t.Fatal("a flusher does not come to an end")
				}
				if w.step(disk, true) {
					if !l.failing {
						break
					}
					w.now = l.retry
					w.lease = w.now.Add(time.Minute)
					w.c.allow(w.lease)
				}
				if w.disks[disk].refuses && l.unsynced && l.failing {
					// What was lost of a direct write only the guest can write again.
					w.disks[disk].refuses, w.disks[disk].lost = false, [coreSectors]bool{}
				}
			}
		}
		if w.c.log.count != 0 || !w.c.drained() {
			t.Fatalf("%d entries are left, drained: %v", w.c.log.count, w.c.drained())
		}
		for i := range w.disks {
			d := &w.disks[i]
			var want [coreSectors]uint64
			for _, b := range d.entries {
				for s := b.e.sector; s < b.e.sector+uint64(b.e.sectors); s++ {
					want[s] = b.index + 1
				}
			}
			for s := range want {
				if d.durable[s] < want[s] {
					t.Fatalf("disk %d, sector %d: entry %d is lost, it holds %d", i, s, want[s]-1, d.durable[s])
				}
			}
		}
	})
}
