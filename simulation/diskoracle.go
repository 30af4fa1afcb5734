package simulation

// What must hold of the guest's disk: what is on it, who has written it, in which
// order, and that it is what the guest finds there.

import (
	"slices"

	"understudy/epoch"
	"understudy/ownership"
)

// diskOracle knows every write the guest has made.
type diskOracle struct {
	writes map[written][]state // when it was made; the same content may be written again
	last   state               // of the newest that reached the real disk
	any    bool
}

type written struct {
	block int
	value uint64
}

type openWrite struct {
	written
	barrier int // flushes before it
}

// begin forgets an earlier life of the guest.
func (o *diskOracle) begin() { o.any = false }

// written: the guest has asked for a write.
func (o *oracle) written(g *guest, block int, value uint64) {
	if o.disk.writes == nil {
		o.disk.writes = map[written][]state{}
	}
	k := written{block, value}
	o.disk.writes[k] = append(o.disk.writes[k], g.at)
	g.open = append(g.open, openWrite{k, g.barriers})
}

// began: a store is about to be written.
func (o *oracle) began(s *store) {
	w, h := s.d.w, s.d.h
	if s.m.shared && w.now >= o.leases[h.index] {
		w.violated("guarantee 7: %s begins a write of the shared disk without a lease", h.name)
	}
	if s.m.shared && s.m.writer != s {
		w.violated("guarantee 1: %s begins a write of the shared disk, which another host has locked", h.name)
	}
}

// landed: something has reached a store.
func (o *oracle) landed(s *store, block int, value uint64) {
	w, h, log := s.d.w, s.d.h, s.d.w.ledger.state
	if !s.m.shared && log.Owner != h.id {
		return // a backup's own copy
	}
	if s.m.shared && s.m.writer != s {
		w.violated("rule 12: a late write of %s reaches the shared disk, which another host has locked", h.name)
	}
	all := o.disk.writes[written{block, value}]
	all = slices.DeleteFunc(slices.Clone(all), func(at state) bool { return o.branches[at.branch].life != o.life })
	if value == 0 {
		return // zeros are as old as anybody wants
	}
	if len(all) == 0 {
		return // of an earlier life of the guest, which was told that it would last
	}
	at, ok := state{}, false
	for _, x := range all { // rather when the guest that runs wrote it than when one did that was lost
		if o.mayLand(w, x) && (!ok || h.guest != nil && !o.within(at, h.guest.at)) {
			at, ok = x, true
		}
	}
	if !ok {
		w.violated("guarantee 2: what the guest wrote at %v to block %d reaches the disk of %s; the log: %+v, the backup holds %v",
			all, block, h.name, log, o.held[log.Backup.Image])
	}
	if !o.disk.any || o.within(o.disk.last, at) {
		o.disk.last, o.disk.any = at, true
	}
	g := h.guest
	if log.Owner != h.id || g == nil || at.branch != g.at.branch {
		return
	}
	// Rule 13: everything before the last barrier before it is durable.
	k := -1
	for i, x := range g.open {
		if x.block == block && x.value == value && k < 0 {
			k = i // the first that it may be
		}
	}
	for _, x := range g.open[:max(k, 0)] {
		if x.barrier < g.open[k].barrier {
			w.violated("rule 13: %d reaches block %d of %s, and %d of block %d, from before a flush before it, is not durable",
				value, block, h.name, x.value, x.block)
		}
	}
}

// mayLand: what the guest wrote at some time may be on the real disk.
func (o *oracle) mayLand(w *world, at state) bool {
	log := w.ledger.state
	switch {
	case log.InSync: // acknowledged
		held, ok := o.held[log.Backup.Image]
		return ok && o.within(at, held)
	case log.Phase == ownership.PhaseActivating: // the backup had it
		return o.within(at, o.from)
	}
	return true // unprotected, and that is on record
}

// synced: a store has made everything durable.
func (o *oracle) synced(s *store) {
	m, g := s.m, s.d.h.guest
	if g == nil || !m.shared && s.d.w.ledger.state.Owner != s.d.h.id {
		return
	}
	open := g.open
	for i := len(open) - 1; i >= 0; i-- {
		if m.durable[open[i].block] == open[i].value {
			for k := range open[:i+1] {
				if open[k].block == open[i].block {
					open[k].barrier = durable
				}
			}
		}
	}
	g.open = slices.DeleteFunc(open, func(x openWrite) bool { return x.barrier == durable })
}

const durable = 1 << 30

// flushed: the guest was told that a flush is done; direct: the disk itself did
// it.
func (o *oracle) flushed(g *guest, d *daemon, direct bool) {
	g.barriers++
	if !direct {
		return
	}
	for b, v := range g.disk {
		if g.known&(1<<b) != 0 && d.h.media.durable[b] != v {
			g.w.violated("rule 13: %s says that block %d is durable with %d, and it is not", d.h.name, b, v)
		}
	}
}

// referenced: a page is left out of an epoch.
func (o *oracle) referenced(d *daemon, r epoch.Reference, value uint64) {
	b := int(r.Sector / epoch.PageSectors)
	switch {
	case d.h.media.now[b] != value:
		d.w.violated("guarantee 4: page %d, which holds %d, is left out for block %d of %s, which holds %d", r.Page, value, b, d.h.name, d.h.media.now[b])
	case d.guest.known&(1<<b) != 0 && d.guest.disk[b] != value:
		d.w.violated("rule 16: page %d, which holds %d, is left out for block %d, for which the guest has written %d since", r.Page, value, b, d.guest.disk[b])
	}
}

// diskOf: a guest goes on at another host, and this is the disk it finds there.
func (o *oracle) diskOf(g *guest, d *daemon) {
	g.open = nil
	var page [epoch.PageSize]byte
	for b, v := range g.disk {
		if g.known&(1<<b) == 0 {
			continue
		}
		if d.h.media.durable[b] != v {
			g.open = append(g.open, openWrite{written{b, v}, g.barriers})
		}
		if err := d.set.ReadSectors(0, uint64(b)*epoch.PageSectors, page[:]); err != nil {
			continue // the disk fails for a while
		}
		// Who has taken the guest back, which this host does not know yet, may
		// have written to the disk of both.
		if got := valueOf(page[:]); got != v && g.w.ledger.state.Owner == d.h.id {
			g.w.violated("guarantee 4: block %d of the guest that %s runs holds %d, it was %d", b, d.h.name, got, v)
		}
	}
}

// resubmitted: what was in flight as the checkpoint was taken is asked for again
// by the machine that goes on from it.
func (o *oracle) resubmitted(d *daemon, im *image) {
	if was, is := im.request, d.resubmit; (was == nil) != (is == nil) || was != nil && *was != *is {
		d.w.violated("rule 15: %s resubmits %+v, in flight was %+v", d.h.name, is, was)
	}
}

// accepted: a change was taken into the held writes.
func (o *oracle) accepted(d *daemon) {
	if limit := d.w.disk.held; limit > 0 {
		if st := d.set.Status(); st.Bytes > uint64(limit) && st.Writes > 1 {
			d.w.violated("rule 14: %s holds %d bytes of writes, of at most %d", d.h.name, st.Bytes, limit)
		}
	}
}

// canBeFilled: no machine runs on an image of which its backup was told that a
// page cannot be filled. (What is found while no session feeds it may be a page
// that the primary, alone by now, would send again: nobody is told of it. Whoever
// needs such a page waits.)
func (o *oracle) canBeFilled(h *host, im *image) {
	if err := im.table.Bad(); err != nil && im.spoilt {
		h.w.violated("guarantee 4: %s runs an image that is known to be spoilt: %v", h.name, err)
	}
}

// stops: it is recorded that the guest is stopped, whose machine ends now. All
// that it was told has been written has to be on the disk.
func (o *oracle) stops(h *host) {
	g := h.guest
	if g == nil || g.gone {
		return
	}
	for b, v := range g.disk {
		late := g.request != nil && g.request.block == b // it may have been on its way as the host stood still
		if g.known&(1<<b) != 0 && h.media.now[b] != v && !late {
			h.w.violated("rule 6: the guest on %s is stopped, and %d, which it has written to block %d, is not on the disk", h.name, v, b)
		}
	}
}

// holds reports whether an image equals the guest's memory, but for what its
// table has yet to fill.
func (im *image) holds(m *memory) bool {
	for p := range pages {
		if im.missing&(1<<p) == 0 && im.memory[p] != m[p] {
			return false
		}
	}
	return true
}
