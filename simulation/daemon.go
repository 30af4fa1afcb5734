package simulation

// What package host does, role after role, and the host under it.

import (
	"errors"
	"fmt"
	"time"

	"understudy/backup"
	"understudy/clock"
	"understudy/disk"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/ownership"
	"understudy/primary"
)

// host is a machine: it can lose its power, its daemon, its guest.
type host struct {
	w      *world
	index  int
	id     ownership.HostID
	name   string
	peer   *host
	up     bool
	daemon *daemon
	guest  *guest        // the hypervisor's process here
	rate   float64       // of its clock against the world's
	offset time.Duration // of its clock
	stood  time.Duration // of its timers: for how long it was suspended so far

	media   *media
	journal []byte // on tmpfs: outlives the daemon, not the host
	fresh   bool   // it has been lost since

	left   *primary.Left // what its daemon has left of its guest; like the journal
	others []*daemon     // that act beside the daemon: for breaches

	known []epoch.Position // where the last session here stood: for a breach

	suspended time.Duration // until when it was, the last time
	diskFails time.Duration // until when its disk does
}

func newHost(w *world, i int, name string) *host {
	h := &host{w: w, index: i, id: ownership.HostID(name), name: name,
		rate: 1 + (w.dice.Float64()-0.5)/1000, offset: w.between(time.Second, time.Hour)}
	if i == 0 || !w.disk.shared {
		h.media = &media{shared: w.disk.shared}
		for b := range h.media.now { // two copies differ at first
			w.values++
			h.media.now[b] = w.values
		}
		h.media.durable = h.media.now
	} else {
		h.media = w.hosts[0].media
	}
	h.newJournal()
	return h
}

// newJournal empties the host's tmpfs.
func (h *host) newJournal() {
	h.free()
	var err error
	if h.journal, err = disk.ByHandMemory(); err != nil {
		panic(fmt.Sprintf("memory for a journal: %v", err))
	}
}

func (h *host) free() {
	if h.journal != nil {
		_ = disk.FreeByHand(h.journal) // it was mapped
		h.journal = nil
	}
}

// boot starts the host, or only its daemon.
func (h *host) boot() {
	if h.daemon != nil {
		return
	}
	h.up = true
	if h.fresh {
		h.fresh = false
		h.newJournal()
	}
	h.daemon = newDaemon(h)
	h.w.say(h.name, "the daemon starts")
	h.daemon.open()
}

func newDaemon(h *host) *daemon {
	d := &daemon{h: h, w: h.w, alive: true}
	d.gate = &gate{d: d}
	return d
}

// open opens everything, and begins.
func (d *daemon) open() {
	d.openDisk()
	d.after(d.w.between(time.Millisecond, 30*time.Millisecond), d.manage)
}

// killDaemon ends the daemon as SIGKILL does. The guest runs on; what it says
// is lost.
func (h *host) killDaemon(silent bool) {
	d := h.daemon
	if d == nil {
		return
	}
	h.w.say(h.name, "the daemon dies")
	d.alive = false
	h.daemon = nil
	if d.store != nil {
		d.store.die()
	}
	if d.died != nil {
		d.died()
	}
	for _, e := range d.ends {
		if !e.open {
			continue
		}
		if !silent {
			e.close()
			continue
		}
		e.open = false
		o := e.other
		if o.open {
			o.silent(func() bool { return o.open })
		}
	}
	if h.guest != nil {
		h.guest.nic = nil
	}
	if l := h.w.ledger; l.reign != nil && h.w.chance(0.3) { // it led
		l.elect(h.w.between(50*time.Millisecond, 400*time.Millisecond))
	}
}

// powerOff ends the host with all that runs on it.
func (h *host) powerOff() {
	h.w.say(h.name, "the host loses its power")
	h.killDaemon(true)
	h.up, h.left = false, nil
	if h.guest != nil {
		h.guest.kill()
		h.guest = nil
	}
	if !h.media.shared {
		h.media.losePower(h.w)
	}
	h.fresh = true // a journal that a Set on the stack still writes to stays mapped
}

// daemon is one life of understudyd.
type daemon struct {
	h       *host
	w       *world
	alive   bool
	frozen  time.Duration // until when it does nothing
	role    string
	gate    *gate
	guest   *guest // the one it holds
	primary *primaryShell
	backup  *backupShell
	watch   func(ownership.Guest)
	ends    []*end
	session int // of its proposals; 0: not opened
	unknown int // proposals of unknown outcome

	key       epoch.PrintKey
	index     *exclusion.Index
	set       *disk.Set
	store     *store
	flushing  bool            // the flusher is about to look for work
	replaying bool            // what is flushed is what a backup had kept
	resubmit  *request        // what was in flight in the guest that was taken over
	startable ownership.Guest // stopped, and nothing of it is left here; or nothing

	leaving *leaving      // this life ends in good order
	left    *primary.Left // of the guest that stands still since
	died    func()        // what somebody makes of that
}

// woken is when the daemon here last woke up.
func (h *host) woken() time.Duration {
	if h.daemon == nil {
		return 0
	}
	return h.daemon.frozen
}

func (d *daemon) isFrozen() bool { return d.w.now < d.frozen }

// clock is the host's CLOCK_BOOTTIME.
func (d *daemon) clock() clock.Instant { return d.h.clock(d.w.now) }

func (h *host) clock(now time.Duration) clock.Instant {
	if h.w.breach == monotonicClock {
		now -= h.stood
	}
	return clock.Instant(float64(now)*h.rate) + clock.Instant(h.offset)
}

// wait is how long the world's time goes on until this host's clock says t.
func (d *daemon) wait(t clock.Instant) time.Duration {
	return time.Duration(float64(t.Sub(d.clock()))/d.h.rate) + time.Microsecond
}

// after lets the daemon do something, if it lives and as soon as it is awake. A
// timer does not go on while the host is suspended.
func (d *daemon) after(delay time.Duration, do func()) {
	stood := d.h.stood
	var due func()
	due = func() {
		if late := d.h.stood - stood; late > 0 && delay > 0 && d.alive {
			stood = d.h.stood
			d.w.after(late, due)
			return
		}
		d.awake(do)
	}
	d.w.after(delay, due)
}

// suspend stops the host with all that runs on it, its timers included, and not
// CLOCK_BOOTTIME.
func (h *host) suspend(long time.Duration) {
	d := h.daemon
	if d == nil || d.isFrozen() {
		return
	}
	h.w.say(h.name, "is suspended")
	h.stood += long
	h.suspended = h.w.now + long
	h.w.faults.freeze(d, long, true)
}

func (d *daemon) awake(do func()) {
	switch {
	case !d.alive:
	case d.isFrozen():
		d.w.after(d.frozen-d.w.now, func() { d.awake(do) })
	default:
		do()
	}
}

// seen: the voter here has applied a newer state.
func (d *daemon) seen() {
	st := d.w.ledger.views[d.h.index]
	switch {
	case d.primary != nil:
		d.primary.post(primary.LogApplied{State: st})
	case d.backup != nil:
		d.backup.post(backup.LogApplied{State: d.w.breach.shows(st)})
	case d.watch != nil:
		d.watch(st)
	}
}

// changed waits for a newer state than st.
func (d *daemon) changed(st ownership.Guest, then func()) {
	d.watch = func(now ownership.Guest) {
		if now.Revision > st.Revision {
			d.watch = nil
			d.after(0, then)
		}
	}
	d.after(0, func() {
		if d.watch != nil {
			d.watch(d.w.ledger.views[d.h.index])
		}
	})
}

const again = 200 * time.Millisecond

// reclaimAfter is host/recover.go's, shortened as the lease is.
const reclaimAfter = 9 * time.Second

func (d *daemon) as(role string) {
	d.role = role
	d.w.oracle.visits["host "+role]++
	d.w.say(d.h.name, "is %s", role)
}

func (d *daemon) manage() {
	d.w.ledger.read(d, func(st ownership.Guest, err error) {
		if err != nil {
			d.after(again, d.manage)
			return
		}
		d.play(st)
	})
}

func (d *daemon) play(st ownership.Guest) {
	self := d.h.id
	switch {
	case st.Fenced == self && d.guest == nil: // nothing of it runs here
		d.propose(st, ownership.Unfence, ownership.Backup{}, func(_ ownership.Guest, err error) {
			if err != nil {
				d.after(again, d.manage)
				return
			}
			d.manage()
		})
	case st.Generation == 0 && d.h.index == 0:
		d.start(st)
	case st.Generation == 0:
		d.as("waiting")
		d.changed(st, d.manage)
	case st.Desired == ownership.Stopped:
		d.as("stopped")
		d.end()
		if err := d.set.StandBy(ended); err != nil { // let go of the disks
			d.after(again, d.manage)
			return
		}
		d.startable = st
		d.changed(st, func() { d.startable = ownership.Guest{}; d.manage() })
	case st.Owner != self && st.Phase == ownership.PhaseActivating && st.Previous == self:
		d.as("yielding")
		d.changed(st, d.manage)
	case st.Owner != self && st.Protection == ownership.ProtectionOff:
		d.release(st)
	case st.Owner != self:
		d.standBy(st)
	case d.guest == nil:
		d.recover(st)
	default:
		d.own(st, false)
	}
}

func (d *daemon) own(st ownership.Guest, running bool) {
	d.as("primary")
	p := newPrimary(d, st, running)
	d.primary = p
	p.goesOn(d.left)
	d.left = nil
	if p.continues && d.w.at(d, stepContinue) {
		return
	}
	if d.w.breach == adoptedClean && d.guest.at.step > 0 && !running {
		p.pending, p.known = 0, d.h.known
	}
	if d.w.breach == passAtOnce && running {
		d.gate.enter(gatePass)
	}
	p.start()
	if g := d.guest; g != nil && (g.gone || g.off) {
		d.guestSays(g)
	}
}

func (d *daemon) primaryEnded(o primary.Outcome, left primary.Left) {
	d.w.say(d.h.name, "no longer the primary: %v", o)
	d.primary = nil
	if o == primary.OutcomeHandedOver {
		d.handedOver(left)
		return
	}
	if l := d.leaving; l != nil {
		defer d.stay(l, "its primary has ended")
	}
	d.gate.shut()
	d.gate.discard()
	d.end()
	d.after(0, d.manage)
}

func (d *daemon) standBy(st ownership.Guest) {
	if d.w.breach != shutMissing {
		d.gate.shut()
	}
	d.gate.discard()
	d.end()
	d.as("backup")
	d.backup = newBackup(d, st)
	d.backup.start()
}

// release keeps nothing of a guest whose protection is given up.
func (d *daemon) release(st ownership.Guest) {
	d.as("released")
	d.gate.shut()
	d.gate.discard()
	d.end()
	if err := d.set.StandBy(ended); err != nil {
		d.after(again, d.manage)
		return
	}
	d.changed(st, d.manage)
}

func (d *daemon) backupEnded(o backup.Outcome, st ownership.Guest) {
	b := d.backup
	d.backup = nil
	d.w.say(d.h.name, "no longer the backup: %v", o)
	if o != backup.OutcomeTookOver {
		d.after(0, d.manage)
		return
	}
	d.own(b.core.Log(), true)
}

// end destroys the guest here and whatever is left of it.
func (d *daemon) end() {
	if d.h.guest != nil {
		d.h.guest.kill()
	}
	d.h.guest, d.guest, d.h.left, d.left = nil, nil, nil, nil
}

func (d *daemon) recover(st ownership.Guest) {
	d.as("recovering")
	again := func(ownership.Guest, error) { d.after(again, d.manage) }
	switch st.Phase {
	case ownership.PhaseActivating:
		d.end()
		if d.w.at(d, stepProposeReturn) {
			return
		}
		d.propose(st, ownership.Return, ownership.Backup{}, again)
		return
	case ownership.PhaseSurrendered:
		over := false
		d.changed(st, func() {
			if !over {
				over = true
				d.manage()
			}
		})
		d.after(reclaimAfter, func() {
			if !over {
				over, d.watch = true, nil
				if d.w.at(d, stepProposeReclaim) {
					return
				}
				d.propose(st, ownership.Reclaim, ownership.Backup{}, again)
			}
		})
		return
	}
	left := d.takeLeft()
	if g := d.h.guest; g != nil && !g.gone && g.missing == 0 && (d.heldFound() || d.w.breach == heldMissing) {
		if d.goesOn(left, g, st) {
			if d.w.at(d, stepFound) {
				return
			}
			d.after(0, func() { // as soon as the host is awake
				d.guest, d.left = g, left
				d.own(st, false)
			})
			return
		}
		g.pause()
		if d.w.breach != adoptedClean {
			g.dirty = everyPage
		}
		if d.w.at(d, stepAdopt) {
			return
		}
		d.guest = g
		if d.w.at(d, stepProposeAdopt) {
			return
		}
		d.propose(st, ownership.Adopt, ownership.Backup{}, func(next ownership.Guest, err error) {
			if err != nil {
				d.guest = nil // adopted once more
				again(next, err)
				return
			}
			d.own(next, false)
		})
		return
	}
	d.end()
	if st.InSync {
		if d.w.at(d, stepProposeSurrender) {
			return
		}
		d.propose(st, ownership.Surrender, st.Backup, again)
		return
	}
	d.start(st)
}

// heldFound reports whether what a former daemon here held for its guest is
// there. A guest that was told of writes which are lost must not go on.
func (d *daemon) heldFound() bool { return !d.set.Recovered().Missing }

// start boots the guest from nothing.
func (d *daemon) start(st ownership.Guest) {
	d.as("booting")
	d.end()
	d.after(d.w.between(time.Millisecond, 20*time.Millisecond), func() {
		g := newGuest(d.h)
		g.fresh = true
		d.h.guest, d.guest = g, g
		if d.w.at(d, stepBoot) || d.w.at(d, stepProposeStart) {
			return
		}
		d.propose(st, ownership.Start, ownership.Backup{}, func(next ownership.Guest, err error) {
			if err != nil {
				d.end()
				d.after(again, d.manage)
				return
			}
			d.own(next, false)
		})
	})
}

func (d *daemon) propose(st ownership.Guest, kind ownership.Kind, b ownership.Backup, done func(ownership.Guest, error)) {
	d.w.ledger.propose(d, ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: kind, Host: d.h.id,
		Generation: st.Generation, Revision: st.Revision, Backup: b}, 10*time.Second, done)
}

// accept routes a session that the peer opened to the backup.
func (d *daemon) accept(e *end) {
	e.recv = func(m any) {
		if bad, is := m.(damaged); is {
			_, err := bad.parse(d.w)
			e.fail(err)
			return
		}
		greeting, ok := m.(hello)
		if !ok {
			return
		}
		e.recv = func(any) { e.fail(errors.New("a message where none is expected")) }
		if d.backup == nil {
			d.after(d.w.between(0, 20*time.Millisecond), func() {
				if d.w.at(d, stepRefuse) {
					return
				}
				e.send(refusal{"not standing by now"})
				d.after(20*time.Millisecond, e.close)
			})
			return
		}
		d.backup.accept(opened{e, greeting, greeting.PrintKey})
	}
}

// guestSays tells the primary what the guest did by itself.
func (d *daemon) guestSays(g *guest) {
	p := d.primary
	if p == nil || p.guest != g {
		return
	}
	p.later(primary.GuestDid{Event: guestEvent(g)})
}

// ask is an operator's request to this host.
func (d *daemon) ask(r primary.Request) {
	if d.primary != nil && (r != primary.RequestSwitchover || d.primary.protected()) {
		d.w.say(d.h.name, "asked for %d", r)
		d.primary.later(primary.Asked{Request: r})
	}
}

// switchTo is the operator's switch of protection, tried again when the log has
// gone on meanwhile.
func (d *daemon) switchTo(to ownership.Protection, tries int) {
	d.w.ledger.read(d, func(st ownership.Guest, err error) {
		if err != nil || st.Owner != d.h.id || st.Phase != ownership.PhaseActive || st.Protection == to || d.w.at(d, stepProposeProtection) {
			return
		}
		if d.w.breach == passBeforePaused && to != ownership.ProtectionOn {
			d.gate.enter(gatePass)
		}
		d.propose(st, ownership.SwitchTo(to), ownership.Backup{}, func(_ ownership.Guest, err error) {
			if refused := (*ownership.Refused)(nil); errors.As(err, &refused) && tries > 1 {
				d.switchTo(to, tries-1)
			}
		})
	})
}

// force is the operator's forced failover to this host: from the image that it
// has, if that fits the disk, else the guest is booted anew.
func (d *daemon) force() {
	d.w.ledger.read(d, func(st ownership.Guest, err error) {
		if err != nil || st.Generation == 0 || st.Owner == d.h.id || st.Desired != ownership.Running || st.InSync && st.Backup.Host == d.h.id {
			return
		}
		if b := d.backup; b != nil && !d.w.disk.shared {
			if at, whole := b.core.At(); whole && !at.Image.IsZero() {
				b.post(backup.Forced{State: st})
				return
			}
		}
		if d.backup == nil && d.role != "released" && !st.KeptBy(d.h.id) && d.w.breach != forceOverGuest {
			return // what is left here would go on
		}
		if d.w.at(d, stepProposeForce) {
			return
		}
		d.propose(st, ownership.Force, ownership.Backup{}, func(ownership.Guest, error) {})
	})
}

// fence records that the other host is off. It is looked after that after the log
// was read, and the word of it takes a while: whoever starts there since begins a
// new generation.
func (d *daemon) fence(tries int) {
	d.w.ledger.read(d, func(st ownership.Guest, err error) {
		target := d.h.peer
		if err != nil || st.Fenced == target.id || st.Owner != target.id && st.Previous != target.id || target.up && d.w.breach != fenceUnseen {
			return
		}
		d.after(d.w.between(0, lease/2), func() { d.fenceIn(st, tries) })
	})
}

func (d *daemon) fenceIn(st ownership.Guest, tries int) {
	if d.w.at(d, stepProposeFence) {
		return
	}
	d.w.ledger.propose(d, ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Fence, Host: d.h.id, Target: d.h.peer.id,
		Generation: st.Generation, Revision: st.Revision}, 10*time.Second, func(_ ownership.Guest, err error) {
		if refused := (*ownership.Refused)(nil); errors.As(err, &refused) && tries > 1 && refused.State.Generation == st.Generation {
			d.fenceIn(refused.State, tries-1)
		}
	})
}

// startStopped is the operator's Start: the manager proposes it, once nothing of
// the guest is left here.
func (d *daemon) startStopped() {
	d.w.ledger.read(d, func(st ownership.Guest, err error) {
		if err != nil || st.Desired != ownership.Stopped || d.startable.Generation == 0 || d.w.at(d, stepProposeStart) {
			return // asked for again
		}
		st, d.startable, d.watch = d.startable, ownership.Guest{}, nil
		d.propose(st, ownership.Start, ownership.Backup{}, func(ownership.Guest, error) { d.after(0, d.manage) })
	})
}
