package simulation

import (
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
)

// oracle sees everything, and knows the guarantees.
type oracle struct {
	branches []branch
	lives    int

	disk diskOracle

	from   state                // of the last takeover
	permit [2]epoch.Incarnation // the image that the log let each host run last

	life     int   // the one that the log has started
	last     state // the newest step of it that the outside world knows of
	any      bool
	held     map[epoch.Incarnation]state // what each image has committed
	leases   [2]time.Duration            // when each host's last lease is certainly over
	lastLeft time.Duration

	promises             [2]promises
	had                  [2]bool // hosts that lost the guest to the other one
	takeovers, failbacks int
	frames, commits      int
	visits               map[string]int
}

// after checks what must hold between any two events.
func (o *oracle) after(w *world) {
	a, b := w.hosts[0].daemon, w.hosts[1].daemon
	if a != nil && b != nil && a.gate.open() && b.gate.open() {
		w.violated("guarantee 1: both gates are open")
	}
	for _, h := range w.hosts {
		o.patient(w, h)
		o.oneActs(w, h)
	}
}

// granted: the leader has answered a renewal that arrived at received.
func (o *oracle) granted(h *host, received time.Duration) {
	o.leases[h.index] = max(o.leases[h.index], received+lease+lease/2000)
}

// left: a frame has left through a gate.
func (o *oracle) left(g *gate, f frame) {
	w, h, log := g.d.w, g.d.h, g.d.w.ledger.state
	switch {
	case w.now >= o.leases[h.index]:
		w.violated("guarantee 7: a frame left %s without a lease", h.name)
	case log.Owner != h.id:
		w.violated("guarantee 1: a frame left %s, the owner is %s", h.name, log.Owner)
	case o.branches[f.said.branch].life != o.life:
		w.violated("a frame of an earlier life of the guest left %s", h.name)
	case log.Phase != ownership.PhaseActive:
		w.violated("a frame left %s while the guest is %s: it can still be given back", h.name, log.Phase)
	case o.any && !o.within(o.last, f.said):
		w.violated("guarantee 2: the frame of %v left %s after the frame of %v, which it takes back", f.said, h.name, o.last)
	}
	if log.InSync {
		if at, ok := o.held[log.Backup.Image]; !ok || !o.within(f.said, at) {
			w.violated("guarantee 2: the frame of %v left %s, the backup in sync holds %v", f.said, h.name, at)
		}
	}
	o.last, o.any, o.lastLeft = f.said, true, w.now
	o.frames++
}

// acknowledged: a backup is about to acknowledge an epoch. Nothing can refuse it
// any more but the loss of the image together with its host.
func (o *oracle) acknowledged(im *image, x sent) {
	if o.held == nil {
		o.held = map[epoch.Incarnation]state{}
	}
	if x.kind == epoch.KindCheckpoint {
		o.held[im.id] = x.device
	}
}

// committed: a backup has applied a checkpoint.
func (o *oracle) committed(h *host, im *image, x sent) {
	if im.holds(&x.whole) {
		im.corrupt = false
	} else if !im.corrupt {
		h.w.violated("guarantee 3: after %v the image of %s is %v, the guest's memory was %v", x.at, h.name, im.memory, x.whole)
	}
	o.commits++
}

// applied: the log has taken a command.
func (o *oracle) applied(w *world, c ownership.Command, before, next ownership.Guest) {
	if next.Generation < before.Generation || next.Generation > before.Generation+1 {
		w.violated("generation %d follows %d", next.Generation, before.Generation)
	}
	o.visits["log "+string(c.Kind)]++
	o.generation(w, c, before, next)
	h := w.hosts[0]
	if c.Host == w.hosts[1].id {
		h = w.hosts[1]
	}
	switch c.Kind {
	case ownership.Start, ownership.Adopt:
		// A guest that a former daemon had booted, and not yet told the log of,
		// may be adopted: the life before it was lost already.
		life := -1
		if h.guest != nil {
			h.guest.fresh = false
			life = o.branches[h.guest.at.branch].life
		}
		if c.Kind == ownership.Start || life != o.life {
			o.any, o.life = false, life
			o.disk.begin()
		}
	case ownership.InSync:
		at, ok := o.held[c.Backup.Image]
		switch {
		case !ok:
			w.violated("rule 2: image %v is in sync, and holds no checkpoint", c.Backup.Image)
		case o.any && !o.within(o.last, at):
			w.violated("rule 1: the backup is in sync at %v, the outside world knows of %v", at, o.last)
		case o.disk.any && !o.within(o.disk.last, at):
			w.violated("rule 1: the backup is in sync at %v, on the disk is what was written at %v", at, o.disk.last)
		}
	case ownership.Takeover:
		if before.Protection != ownership.ProtectionOn {
			w.violated("guarantee 6: %s takes the guest over, whose protection is %s", c.Host, before.Protection)
		}
		o.takeovers++
		o.permit[h.index] = c.Backup.Image
		if o.had[h.index] {
			o.failbacks++
		}
		o.had[1-h.index] = true
		if d := h.daemon; d != nil && d.backup != nil && d.backup.image != nil && d.backup.image.id == c.Backup.Image {
			o.goesOn(w, "guarantee 6: takeover granted", h, d.backup.image.device)
		}
		o.from = w.images[c.Backup.Image].device // also if its daemon has died since
	case ownership.Force:
		o.forced(w, c, h)
	case ownership.Stop:
		o.stops(h)
	case ownership.Pause, ownership.Unprotect, ownership.Protect:
		if next.Owner != before.Owner || next.Generation != before.Generation {
			w.violated("%s by %s changes the owner, or its generation", c.Kind, c.Host)
		}
	case ownership.Surrender:
		if g := h.guest; g != nil && g.off && !g.gone {
			w.violated("rule 6: %s surrenders the guest, which has powered itself off", h.name)
		}
		if d := h.daemon; d != nil && d.store.m.shared && d.store.m.writer == d.store {
			w.violated("rule 7: %s has surrendered, and still has the lock of the disk", h.name)
		}
	case ownership.Return:
		if g := w.hosts[1-h.index].guest; g != nil && !g.fresh {
			g.open = nil                          // the host that returns it may have replayed them
			o.life = o.branches[g.at.branch].life // a forced takeover may have been of another one
			o.goesOn(w, "the guest was returned", w.hosts[1-h.index], g.at)
		}
	}
}

// forced: the operator has accepted that what was acknowledged, and what the world
// knows, may be lost. Everything else holds as ever.
func (o *oracle) forced(w *world, c ownership.Command, h *host) {
	lost := o.any
	if c.Backup != (ownership.Backup{}) {
		im := w.images[c.Backup.Image]
		o.permit[h.index], o.from = c.Backup.Image, im.device
		lost = o.any && !o.within(o.last, im.device)
		o.life = o.branches[im.device.branch].life
	}
	o.any = false
	o.disk.begin()
	o.had[1-h.index] = true
	if lost {
		o.visits["forced, something lost"]++
	}
}

// generation: what begins a time of its own has a generation of its own, and a
// guest that is meant to be stopped begins none (RULES 6).
func (o *oracle) generation(w *world, c ownership.Command, before, next ownership.Guest) {
	switch c.Kind {
	case ownership.Start, ownership.Adopt, ownership.Takeover, ownership.Return, ownership.Reclaim, ownership.Force:
		if next.Generation == before.Generation {
			w.violated("rule 6: %s by %s, and the generation is still %d", c.Kind, c.Host, next.Generation)
		}
		if c.Kind != ownership.Start && before.Desired == ownership.Stopped {
			w.violated("rule 6: %s by %s of a guest that is meant to be stopped", c.Kind, c.Host)
		}
	}
}

// goesOn: the guest goes on at h from a state, which must not take back what
// the outside world knows.
func (o *oracle) goesOn(w *world, what string, h *host, at state) {
	if o.any && !o.within(o.last, at) {
		w.violated("%s: %s goes on from %v, the outside world knows of %v", what, h.name, at, o.last)
	}
	if o.disk.any && !o.within(o.disk.last, at) {
		w.violated("%s: %s goes on from %v, on the disk is what was written at %v", what, h.name, at, o.disk.last)
	}
}

// takesOver: a backup lets its machine run.
func (o *oracle) takesOver(h *host, im *image, loaded memory, missing bits, at state) {
	log := h.w.ledger.state
	if im == nil || !im.whole {
		h.w.violated("guarantee 3: %s runs an image that is no checkpoint", h.name)
	}
	if o.permit[h.index] != im.id {
		h.w.violated("guarantee 6: %s runs image %v, it was granted %v, and the log names %s, %s", h.name, im.id, o.permit[h.index], log.Owner, log.Phase)
	}
	if log.Owner == h.id {
		o.goesOn(h.w, "takeover", h, at)
		o.from = at
	} // else its former owner has taken it back, which it does not know yet
	if im.corrupt {
		return
	}
	if held := o.held[im.id]; at != held {
		h.w.violated("rule 5: %s runs %v, and has acknowledged %v", h.name, at, held)
	}
	for p := range pages {
		if missing&(1<<p) == 0 && loaded[p] != im.truth[p] {
			h.w.violated("guarantee 4: page %d of the guest that %s runs holds %d, it was %d", p, h.name, loaded[p], im.truth[p])
		}
	}
}

// ran: the guest has made a step.
func (o *oracle) ran(g *guest) {
	d := g.h.daemon
	wakes := max(g.h.woken(), g.frozen) + 2*guestTicks
	if d == nil || d.guest != g || d.primary == nil || d.isFrozen() || g.w.now < wakes {
		return
	}
	if d.h.suspended > 0 && g.w.now < d.h.suspended+lease/8+2*guestTicks {
		return // its timers went on only then
	}
	p := d.primary
	end := p.until
	if end == 0 {
		end = p.from.Add(lease)
	}
	if !d.clock().Before(end.Add(time.Millisecond)) {
		g.w.violated("guarantee 7: the guest runs on %s, %v after its lease", g.h.name, d.clock().Sub(end))
	}
}

func guestEvent(g *guest) hypervisor.Event {
	if g.gone || g.off && g.w.breach == offIsExit {
		return hypervisor.Event{Kind: hypervisor.EventExited, Detail: "killed"}
	}
	return hypervisor.Event{Kind: hypervisor.EventShutdown, Detail: "powered off"}
}
