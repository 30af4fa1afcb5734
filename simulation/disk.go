package simulation

// A guest's disk as it is in the daemon: the real disk.Set, whose flusher works
// when the world says so, the real exclusion.Index, and between guest and Set
// what a front end does.

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"time"

	"understudy/clock"
	"understudy/disk"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/hypervisor"
	"understudy/primary"
	"understudy/rebuild"
)

// diskKind is what the configuration says of the guest's disk.
type diskKind struct {
	shared, unfenced, lazy bool
	slow                   bool // references stay unfilled for long, and held writes too
	held                   int  // bytes of held writes, at most; 0: as many as there may be
}

// fewHeld is a limit that a guest comes to: a few writes.
const fewHeld = 8 * (epoch.PageSize + epoch.SectorSize)

func (w *world) drawDisk() diskKind {
	n := w.dice.IntN(3)
	k := diskKind{shared: n > 0, unfenced: n == 2, lazy: w.chance(0.5), slow: w.chance(0.3)}
	if k.shared && w.chance(0.3) {
		k.held = fewHeld
	}
	return k
}

// ended is a context that has ended: whoever would have to wait does not.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// Now makes a daemon a clock.Clock.
func (d *daemon) Now() clock.Instant { return d.clock() }

// openDisk is what a daemon does first.
func (d *daemon) openDisk() {
	w := d.w
	w.values++
	d.key = epoch.PrintKey(w.values)
	if left := d.h.left; left != nil {
		d.key = left.PrintKey // the backup goes on with it
	}
	d.index = exclusion.NewIndex(exclusion.Config{Pages: pages, Key: d.key, MaxBlocks: 64})
	d.store = &store{m: d.h.media, d: d}
	index := breakIndex(w.breach, d.index)
	held := w.disk.held
	if w.breach == limitIgnored {
		held = 0
	}
	set, err := disk.NewByHand(disk.SetConfig{Pages: pages, HeldBytes: held, Clock: d, Index: index, Guard: guard, Unfenced: w.disk.unfenced,
		Log: slog.New(slog.DiscardHandler), Disks: []disk.DiskConfig{{Store: d.store}}}, d.h.journal)
	if err == nil {
		err = set.Disk(0).Attach(&front{d: d})
	}
	if err != nil {
		w.violated("the disks of %s are not opened: %v", d.h.name, err)
	}
	d.set = set
	set.SetFiller(func(first epoch.GFN, count uint64) error {
		for p := first; p < first+epoch.GFN(count) && d.guest != nil; p++ {
			if err := d.guest.touch(int(p)); err != nil {
				return err
			}
		}
		return nil
	})
}

// kick lets the flusher look for work, soon.
func (d *daemon) kick() {
	if d.flushing || d.set == nil {
		return
	}
	d.flushing = true
	most := 800 * time.Microsecond
	if d.w.disk.slow {
		most *= 5
	}
	d.after(d.w.between(20*time.Microsecond, most), d.flush)
}

// flush lets the flusher take its next action. While it waits after a failure
// nobody wakes it.
func (d *daemon) flush() {
	worked := d.set.Work()
	d.flushing = !worked.Did && worked.Again > 0
	switch {
	case !d.alive || worked.Flushed && d.w.at(d, stepFlushed):
	case worked.Did:
		d.kick()
	case d.flushing:
		d.after(worked.Again, d.flush)
	default:
		d.replaying = d.replaying && !d.set.Settled()
	}
}

// pressed tells the primary that held writes near their limit.
func (d *daemon) pressed() {
	select {
	case <-d.set.Pressure():
		if d.primary != nil {
			d.primary.later(primary.HeldFull{})
		}
	default:
	}
}

// stepOfWrite says what a write to the store is part of.
func (d *daemon) stepOfWrite() step {
	if d.replaying {
		return stepReplayWrite
	}
	return stepFlushWrite
}

// front is the disk's front end.
type front struct{ d *daemon }

const requestBytes = 4 * 8

// AppendInFlight implements disk.Frontend.
func (f *front) AppendInFlight(dst []byte) []byte {
	g := f.d.guest
	if g == nil || g.request == nil || f.d.w.breach == inFlightForgotten {
		return append(dst, 0)
	}
	r := g.request
	for _, n := range []uint64{uint64(r.op), uint64(r.block), uint64(r.page), r.value} {
		dst = binary.LittleEndian.AppendUint64(dst, n)
	}
	return dst
}

// Resubmit implements disk.Frontend. The guest of it is not there yet.
func (f *front) Resubmit(state []byte) error {
	f.d.resubmit = nil
	if len(state) == requestBytes {
		n := func(i int) uint64 { return binary.LittleEndian.Uint64(state[8*i:]) }
		f.d.resubmit = &request{op: disk.Op(n(0)), block: int(n(1)), page: int(n(2)), value: n(3)}
	}
	return nil
}

// Stopped implements disk.Frontend.
func (f *front) Stopped() bool { return f.d.guest == nil || !f.d.guest.running }

// request is what the guest wants of its disk: a block.
type request struct {
	op          disk.Op
	block, page int
	value       uint64 // of a write
}

// ask draws what the guest wants next. Few blocks, so that things meet.
func (g *guest) ask() {
	w := g.w
	r := &request{block: w.dice.IntN(blocks), page: w.somePage()}
	switch n := w.dice.IntN(20); {
	case n < 9:
		r.op = disk.OpWrite
		r.page = w.dice.IntN(pages)
		if g.touch(r.page) != nil {
			return
		}
		if v := g.memory[r.page]; r.page < warm || v <= w.brought || len(w.oracle.disk.writes[written{r.block, v}]) > 0 {
			g.write(r.page) // a block never holds twice what the oracle could take for each other
		}
		r.value = g.memory[r.page]
		w.oracle.written(g, r.block, r.value)
	case n < 10:
		r.op = disk.OpDiscard
		w.oracle.written(g, r.block, 0)
	case n < 13:
		r.op = disk.OpFlush
	default:
		r.op = disk.OpRead
	}
	g.request = r
}

// submit brings the guest's request to the disk; what has to wait is brought
// again.
func (g *guest) submit() {
	d := g.h.daemon
	if d == nil || d.guest != g || d.isFrozen() || g.request == nil || !g.running && g.request.op != disk.OpRead {
		return
	}
	q := g.request
	r := &disk.Request{Op: q.op, Sector: uint64(q.block) * epoch.PageSectors, Sectors: epoch.PageSectors}
	var page [epoch.PageSize]byte
	switch q.op {
	case disk.OpWrite, disk.OpRead:
		if g.touch(q.page) != nil {
			return
		}
		pageOf(page[:], q.value)
		r.Segments = []disk.Segment{{Data: page[:], Page: epoch.GFN(q.page)}}
		if q.op == disk.OpRead {
			r.Buffer = make([]byte, epoch.PageSize)
		}
	case disk.OpFlush:
		r.Sector, r.Sectors = 0, 0
	}
	dev, direct := d.set.Disk(0), false
	for {
		g.w.happens()
		taken, err := dev.Accept(r)
		if err != nil {
			g.w.violated("%s refuses a request: %v", g.h.name, err)
		}
		d.pressed()
		if taken {
			g.w.oracle.accepted(d)
			if q.op != disk.OpFlush && g.w.at(d, stepWrite) {
				return // before the guest was told: it asks again
			}
			break
		}
		err = dev.Do(ended, r)
		if !d.alive || d.guest != g {
			return
		}
		if err == nil {
			direct = true
			break
		}
		if !errors.Is(err, disk.ErrAgain) {
			d.kick()
			return
		}
	}
	d.kick()
	if !d.alive || d.guest != g || !g.running && q.op != disk.OpRead {
		return
	}
	g.request = nil
	g.w.say(g.h.name, "      guest: %s block %d page %d value %d, straight: %v", opNames[q.op], q.block, q.page, q.value, direct)
	switch q.op {
	case disk.OpWrite, disk.OpDiscard:
		g.disk[q.block], g.known = q.value, g.known|1<<q.block
	case disk.OpFlush:
		g.w.oracle.flushed(g, d, direct)
	case disk.OpRead:
		got := valueOf(r.Buffer)
		if g.known&(1<<q.block) != 0 && got != g.disk[q.block] {
			g.w.violated("guarantee 4: the guest on %s reads %d from block %d, it had written %d", g.h.name, got, q.block, g.disk[q.block])
		}
		g.disk[q.block], g.known = got, g.known|1<<q.block
		g.memory[q.page] = got
		dev.Landed(r) // this is all that knows of the page
	}
}

// touch makes sure that a page is there which a lazy rebuild has yet to fill.
func (g *guest) touch(page int) error {
	if g.missing&(1<<page) == 0 {
		return nil
	}
	var b [epoch.PageSize]byte
	if err := g.filler.Content(epoch.GFN(page), b[:]); err != nil {
		if bad := (*rebuild.BadError)(nil); errors.As(err, &bad) {
			if !g.damaged {
				g.w.violated("guarantee 4: %v", err)
			}
			g.w.after(0, func() { g.w.faults.exit(g.h) }) // it waits for the page for ever: somebody ends it
		}
		return err
	}
	g.memory[page] = valueOf(b[:])
	g.missing &^= 1 << page
	g.filler.Filled(epoch.GFN(page))
	if want := g.truth[page]; g.memory[page] != want {
		g.w.violated("guarantee 4: page %d of the guest on %s is filled with %d, it was %d", page, g.h.name, g.memory[page], want)
	}
	return nil
}

// fillOne fills a page in the background.
func (g *guest) fillOne() {
	for p := range pages {
		if g.missing&(1<<p) != 0 {
			_ = g.touch(p) // later
			return
		}
	}
}

// bitsOf makes a page set bits.
func bitsOf(set *epoch.PageSet) (b bits) {
	for first, count := range set.Runs {
		for p := first; p < first+epoch.GFN(count); p++ {
			b |= 1 << p
		}
	}
	return b
}

// filler is how a lazy rebuild gives pages to the machine.
type filler = hypervisor.Filler

var opNames = map[disk.Op]string{disk.OpRead: "read", disk.OpWrite: "write", disk.OpFlush: "flush", disk.OpDiscard: "discard"}
