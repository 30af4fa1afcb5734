package crash

// This file is the takeover, in the order of backup.Core.decideAsk, backup.load
// and backup.run, then primary.Run of the new owner; and what must hold then.

import (
	"bytes"
	"encoding/binary"
	"slices"

	"understudy/epoch"
)

// takeover lets the backup take the guest over, if it may.
func (w *world) takeover() {
	old, b := w.owner.h, w.backup
	b.drop()
	if !w.inSync || !b.whole {
		w.over = true // the guest is lost, and nobody was promised anything else
		return
	}
	w.taking, w.count.takeovers = true, w.count.takeovers+1
	t := w.truths[b.at.Number]
	h := b.h
	w.at(stepAsked)
	if w.over {
		return
	}
	g := &guest{w: w, h: h, mem: b.image.mem, want: bytes.Clone(t.mem), dirty: epoch.NewPageSet(pages), cpu: t.cpu}
	if w.cfg.lazy {
		g.filler, g.missing = b.table.Filler(), epoch.NewPageSet(pages)
		g.filler.Missing(g.missing)
		w.count.lazyFills += g.missing.Count()
		w.at(stepLazy)
	} else {
		if err := h.pumped("eager fill", func(c ctx) error { return b.table.FillAll(c, nil) }); err != nil {
			w.violated("epoch %d cannot be filled: %w", t.number, err)
		}
		w.at(stepEager)
	}
	if w.over {
		return
	}
	if !bytes.Equal(b.state, binary.LittleEndian.AppendUint64(nil, t.cpu|1<<63)) {
		w.violated("the device state is not that of epoch %d", t.number)
	}

	// Granted.
	w.generation, w.inSync = w.generation+1, false
	w.writer.Store(int32(h.id))
	for d := range disks {
		v := &w.history[d]
		v.versions = slices.Clip(v.versions[:t.at[d]])
		v.allowed, v.all = t.at[d], false
		g.disk[d] = bytes.Clone(t.disk[d])
	}
	h.guest = g
	g.paused = true
	h.set.SetFiller(g.touch)
	h.set.Own(w.generation)
	overwrite := b.table.BeforeOverwrite
	if w.broken == "blocks are overwritten although references to them are not filled" {
		overwrite = nil
	}
	for _, f := range h.fronts {
		f.forget()
	}
	fenced := w.frozen != nil && w.cfg.shared && !w.cfg.unfenced
	if fenced {
		w.fence() // reads wait for the lock, and so may Activate
	}
	w.must(h.pumped("activate", func(c ctx) error { return h.set.Activate(c, overwrite) }))
	w.at(stepActivated)
	if w.over {
		return
	}
	w.owner = newOwner(w, h, g)
	w.own()
	g.paused = false
	for d := range disks {
		if p := ringPage(d); w.cfg.xen && !bytes.Equal(g.page(p), t.mem[p*epoch.PageSize:][:epoch.PageSize]) {
			w.violated("the ring of disk %d at epoch %d: %s", d, t.number, differ(g.page(p), t.mem[p*epoch.PageSize:][:epoch.PageSize], epoch.PageSize))
		}
	}
	g.plug(true)
	w.afterTakeover(t, old)
}

// afterTakeover lets the guest run on at the new owner, the late writes of the
// old one land, and compares.
func (w *world) afterTakeover(t *truth, old *host) {
	g, h := w.owner.g, w.owner.h
	if w.dice.IntN(2) == 0 || w.broken != "" {
		for d := range disks {
			g.seeDisk(d, "after the takeover")
		}
	}
	for d := range disks {
		if got := h.fronts[d].resubmitted(); string(got) != t.inFlight[d] {
			w.violated("disk %d: requests in flight were %x, submitted anew are %x", d, t.inFlight[d], got)
		}
	}
	w.resubmitted(t)
	// Writes that the backup kept are replayed beside the guest's first ones.
	w.as(h, func() { w.replay(w.dice.IntN(3)) })
	activated := w.dice.IntN(12) // when that is on record
	for i := range 8 {
		if w.over {
			return
		}
		if i == activated {
			w.owner.pass()
		}
		w.as(h, func() {
			if i == 2 {
				g.write(w.dice.IntN(disks), uint64(w.dice.IntN(5))*8, 8, 1)
				w.at(stepFirst)
			} else {
				w.request()
			}
			w.replay(1)
		})
	}
	if w.over {
		return
	}
	g.seeAll("after the takeover")
	if w.frozen != nil {
		w.fence()
		if w.over {
			return
		}
		g.seeAll("after the old owner's late writes")
	}
	if w.over {
		return
	}
	if activated >= 8 {
		w.owner.pass()
	}
	for range 4 {
		w.as(h, w.request)
	}
	if w.dice.IntN(4) == 0 {
		// A second failure: the disk, at least, is one that the guest's file
		// system can be repaired from.
		w.as(h, func() { w.replay(w.dice.IntN(6)) })
		if !w.over {
			w.loseBoth()
		}
		return
	}
	for !w.over && h.set.Status().Writes > 0 {
		w.as(h, func() { w.replay(4) })
		w.pass()
	}
	if w.over {
		return
	}
	for len(g.reads) > 0 {
		g.endRead()
	}
	g.flush(0)
	g.flush(1)
	g.seeAll("at the end")
	for d := range disks {
		if got := h.media[d].Durable(); !bytes.Equal(got, g.disk[d]) {
			w.violated("disk %d, all flushed by the new owner: %s", d, differ(got, g.disk[d], 512))
		}
	}
	w.taking, w.frozen = false, nil
}

func (w *world) replay(n int) {
	if n > 0 {
		w.calls(w.owner.h, n, stepReplay, stepReplayed, stepReplaySync, stepReplaySafe)
	}
}

// resubmitted begins the reads anew that were in flight at the checkpoint.
func (w *world) resubmitted(t *truth) {
	g := w.owner.g
	for _, r := range t.open { // which its driver knows of
		g.read(r.disk, r.r.Sector, r.r.Sectors, r.r.Segments[0].Page)
	}
	for d := range disks {
		for s := []byte(t.inFlight[d]); len(s) > 0; s = s[12:] {
			n := binary.LittleEndian
			g.read(d, uint64(n.Uint32(s)), n.Uint32(s[8:]), epoch.GFN(n.Uint32(s[4:])))
		}
	}
}

// fence lets the late calls of the frozen owner take effect, and ends it.
func (w *world) fence() {
	old := w.frozen
	if old == nil {
		return
	}
	w.lateWrites()
	w.frozen = nil
	if w.over {
		return
	}
	w.endOld(old)
}

// lateWrites lets a frozen owner wake up: what it had begun lands.
func (w *world) lateWrites() {
	for old := w.frozen; old != nil && old.up; {
		c := old.gate.first(changing...)
		if c == nil {
			break
		}
		w.count.lates++
		old.gate.give(c, goOn)
		w.at(stepLate)
		if w.over || w.frozen == nil {
			return
		}
	}
	w.check()
}

// endOld ends the old owner's host for good.
func (w *world) endOld(old *host) {
	if !old.up {
		return
	}
	old.kill()
	old.losePower()
	w.rest()
}

// strikeLate is a second blow, while the takeover is under way.
func (w *world) strikeLate(s side) {
	switch s {
	case backupDies:
		w.loseBoth()
	case ownerDies:
		if old := w.frozen; old != nil {
			w.frozen = nil
			w.endOld(old)
		}
	case ownerFreezes:
		w.lateWrites()
	case daemonDies:
		// The old owner's daemon is started anew, finds its journal, and the
		// log names somebody else.
		old := w.frozen
		if old == nil {
			return
		}
		w.frozen = nil
		old.kill()
		old.guest = nil
		old.open()
		w.must(old.pumped("stand by", old.set.StandBy))
		w.rest()
	}
}

// loseBoth is the loss of the only host that is left. Two failures are one more
// than a protected flush survives, and in the middle of a shared disk's replay,
// which begins with the oldest write not reported flushed, older content lies
// over newer one. Nothing foreign may be there, and once all is replayed the
// barriers hold again.
func (w *world) loseBoth() {
	w.over = true
	if old := w.frozen; old != nil {
		w.frozen = nil
		old.kill()
	}
	h := w.backup.h
	replayed := w.owner.h == h && h.set.Status().Writes == 0
	h.kill()
	h.losePower()
	if w.cfg.shared || w.copied {
		w.checkDurable(h, replayed || !w.cfg.shared)
	}
}
