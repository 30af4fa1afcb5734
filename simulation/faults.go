package simulation

import (
	"time"

	"understudy/ownership"
	"understudy/primary"
)

// faults are what goes wrong in a world. Which kinds, and how often, is drawn
// from the seed: a story with few kinds goes deeper than one with all. Every
// other seed aims at a cell: a fault that strikes when a step is reached for the
// k-th time.
type faults struct {
	w    *world
	on   bool
	ends time.Duration // when the last fault has happened

	strikes      float64 // of a fault at any step
	lostRequest  float64
	lateRequest  float64
	lostAnswer   float64
	lagging      float64
	formerLeader float64 // of a request reaching a leader that was deposed
	slowCommit   float64
	slowLink     float64
	captureFails float64
	loadFails    float64
	diskFails    float64 // of a call of a store
	hostile      float64 // of a message of a session that nobody sent like that
	verifyAll    bool

	successorFails float64 // at a time that suits it
	resist         float64 // of a last epoch that is not captured
	othersStay     float64 // of a guest beside ours that cannot be left
	ownerLies      bool
	backupLies     bool

	aim   cell
	left  int           // times that the step is still to be reached before the fault strikes; 0: no more
	until time.Duration // if it does not, the faults go on for as long as that

	kinds []func()
	pause time.Duration // between two faults, at most
}

func (f *faults) init(w *world) {
	f.w, f.on, f.ends = w, true, faultTime
	rate := func(p float64) float64 {
		switch w.dice.IntN(3) {
		case 0:
			return p
		case 1:
			return p / 10
		}
		return 0
	}
	f.strikes = rate(0.01)
	f.lostRequest, f.lateRequest, f.lostAnswer = rate(0.2), rate(0.1), rate(0.2)
	f.lagging, f.slowLink = rate(0.3), rate(0.1)
	f.formerLeader, f.slowCommit = rate(0.3), rate(0.3)
	f.captureFails, f.loadFails, f.diskFails = rate(0.1), rate(0.6), rate(0.01)
	f.hostile = rate(0.03)
	f.verifyAll = w.chance(0.3)
	f.successorFails, f.othersStay = rate(0.5), rate(0.3)
	f.pause = time.Duration([]int{60, 200, 600, 1500}[w.dice.IntN(4)]) * time.Millisecond
	all := []func(){f.daemonDies, f.powerFails, f.guestExits, f.guestOff, w.breakSessions, f.cutOneWay, f.cutBothWays,
		f.cutVoters, f.stutter, f.newLeader, f.freezeHost, f.freezeDaemon, f.suspendHost, f.switchover, f.stop, f.protection, f.force, f.fence, f.upgrade, f.heldFull, f.corrupt, f.misread}
	for _, k := range all {
		if w.chance(0.4) {
			f.kinds = append(f.kinds, k)
		}
	}
	if c, aims := w.aimOf(w.seed); aims {
		f.takeAim(c)
	} else {
		switch w.dice.IntN(12) { // some go deep into one kind of trouble alone
		case 0:
			f.only(f.stutter)
			f.slowCommit, f.lagging = 0.5, 0.2
		case 1:
			f.only(f.newLeader)
		case 2:
			f.only(f.suspendHost)
		case 3:
			w.disk.slow, w.disk.lazy = true, true // to have something left to fill
			f.only(f.inSync(f.spoil))
		case 4:
			f.only(f.inSync(f.switchover))
			f.pause = 600 * time.Millisecond
		}
	}
	w.after(w.between(100*time.Millisecond, time.Second), f.next)
	w.after(f.ends, f.end)
}

func (f *faults) daemonOf(h *host) {
	h.killDaemon(f.w.chance(0.5))
	f.w.after(f.some(), h.boot)
}

// only leaves one kind of fault, once in a while, in a world that is well
// otherwise.
func (f *faults) only(kind func()) {
	*f = faults{w: f.w, on: true, ends: f.ends, aim: f.aim, left: f.left, until: f.until, verifyAll: f.verifyAll, kinds: []func(){kind}, pause: 1500 * time.Millisecond}
}

// next lets one thing go wrong, and the next after a while.
func (f *faults) next() {
	if !f.on || len(f.kinds) == 0 {
		return
	}
	f.kinds[f.w.dice.IntN(len(f.kinds))]()
	f.w.after(f.w.between(f.pause/10, f.pause), f.next)
}

// end heals the world, unless the cell that is aimed at was not struck.
func (f *faults) end() {
	w := f.w
	if w.now < f.until && w.cells.struck[f.aim.step][f.aim.fault] == 0 {
		f.aimAgain()
		w.after(f.ends-w.now, f.end)
		return
	}
	w.say("", "--- the faults end")
	*f = faults{w: w, ends: f.ends, verifyAll: f.verifyAll}
	for i := range 2 {
		w.unblock(i, 1-i)
		f.joinVoters(i)
		w.hosts[i].boot()
	}
	if w.ledger.reign == nil {
		w.ledger.elect(100 * time.Millisecond)
	}
	f.operate()
}

// operate is the operator, who starts what was stopped, and wants it protected.
func (f *faults) operate() {
	if d := f.host().daemon; d != nil && f.w.ledger.state.Desired == ownership.Stopped {
		d.startStopped()
	}
	if f.w.ledger.state.Protection != ownership.ProtectionOn {
		f.switchTo(ownership.ProtectionOn)
	}
	f.w.after(500*time.Millisecond, f.operate)
}

// at is told of each step before it is made; d is the daemon that makes it. It
// reports whether the daemon has died of what struck.
func (w *world) at(d *daemon, s step) (died bool) {
	f := &w.faults
	w.cells.reached[s]++
	w.twisted = noTwist
	if !f.on {
		return false
	}
	if f.left > 0 && f.aim.step == s {
		if f.left--; f.left == 0 {
			f.strike(d, s, f.aim.fault)
		}
	}
	if w.chance(f.strikes) {
		for range 4 {
			if x := fault(w.dice.IntN(int(faultKinds))); impossible(s, x) == "" {
				f.strike(d, s, x)
				break
			}
		}
	}
	return !d.alive
}

// twist is what becomes of the message of the step that is being made.
type twist struct {
	step  step
	fault fault
}

var noTwist = twist{steps, faultKinds}

// twist takes the fate of the message that is about to be sent.
func (w *world) twist() fault {
	t := w.twisted
	w.twisted = noTwist
	if t == noTwist {
		return faultKinds
	}
	w.cells.struck[t.step][t.fault]++
	w.say("", "its message: %s", faultTable[t.fault].name)
	return t.fault
}

// strike lets a fault happen at a step, as far as there is something for it.
func (f *faults) strike(d *daemon, s step, x fault) {
	w, h := f.w, d.h
	struck := true
	if x < faultLost {
		w.say(h.name, "at the step %q: %s", s, x)
	}
	switch x {
	case faultDaemon:
		f.daemonOf(h)
	case faultHeld:
		h.fresh = true
		f.daemonOf(h)
	case faultPower:
		f.power(h)
	case faultGuest:
		g := h
		if h.guest == nil || h.guest.gone {
			g = h.peer
		}
		struck = g.guest != nil && !g.guest.gone
		f.exit(g)
	case faultPeer:
		struck = h.peer.up
		f.power(h.peer)
	case faultBoth:
		f.power(h)
		f.power(h.peer)
	case faultFreeze:
		f.freeze(d, w.between(lease*11/10, 3*lease), true)
	case faultStall:
		f.freeze(d, w.between(time.Millisecond, 2*lease), false)
	case faultSuspend:
		h.suspend(w.between(lease/2, 5*lease))
	case faultSession:
		w.breakSessions()
	case faultCutOut:
		f.cutWay(h.index, h.peer.index)
	case faultCutIn:
		f.cutWay(h.peer.index, h.index)
	case faultCut:
		f.cut(f.some(), true, true)
	case faultVoters:
		f.cutFromVoters(h, f.some())
	case faultLeader:
		w.ledger.elect(w.between(20*time.Millisecond, 500*time.Millisecond))
	case faultStale:
		w.ledger.elect(w.between(20*time.Millisecond, 500*time.Millisecond))
		f.withFormer(h.index, f.some())
	case faultPaused:
		struck = f.unprotect(ownership.ProtectionPaused)
	case faultUnprotected:
		struck = f.unprotect(ownership.ProtectionOff)
	case faultForced:
		f.force()
	case faultSuccessor:
		struck = f.failSuccessor()
	case faultTakeover:
		struck = f.untilTaken()
	case faultOwnerLies:
		f.ownerLies = true
	case faultBackupLies:
		f.backupLies = true
	case faultDisk:
		h.diskFails = w.now + w.between(5*time.Millisecond, 2*lease)
	default: // counted when a message takes it
		w.twisted = twist{s, x}
		return
	}
	switch {
	case struck:
		w.cells.struck[s][x]++
	case f.aim == cell{s, x}:
		f.left = max(f.left, 1) // there may be something the next time
	}
}

func (f *faults) host() *host { return f.w.hosts[f.w.dice.IntN(2)] }

// some draws a duration that is short or long against a lease.
func (f *faults) some() time.Duration {
	if f.w.chance(0.5) {
		return f.w.between(5*time.Millisecond, lease/2)
	}
	return f.w.between(lease/2, 4*lease)
}

func (f *faults) daemonDies() { f.daemonOf(f.host()) }

func (f *faults) powerFails() { f.power(f.host()) }

func (f *faults) power(h *host) {
	h.powerOff()
	f.w.after(f.some(), h.boot)
}

func (f *faults) guestExits() { f.exit(f.host()) }

func (f *faults) exit(h *host) {
	if g := h.guest; g != nil && !g.gone {
		f.w.say(h.name, "the guest's hypervisor dies")
		g.kill()
		if h.daemon != nil {
			h.daemon.guestSays(g)
		}
	}
}

func (f *faults) guestOff() {
	h := f.host()
	if g := h.guest; g != nil && g.running && f.w.chance(0.5) {
		f.w.say(h.name, "the guest powers itself off")
		g.running, g.off = false, true
		if h.daemon != nil {
			h.daemon.guestSays(g)
		}
	}
}

func (f *faults) cutOneWay() {
	from := f.w.dice.IntN(2)
	f.cutWay(from, 1-from)
}

func (f *faults) cutWay(from, to int) {
	f.w.say("", "from %s to %s nothing gets through", f.w.hosts[from].name, f.w.hosts[to].name)
	f.w.block(from, to)
	f.w.after(f.some(), func() { f.w.unblock(from, to) })
}

func (f *faults) cutBothWays() { f.cut(f.some(), true, true) }

func (f *faults) cut(long time.Duration, there, back bool) {
	f.w.say("", "between the hosts nothing gets through")
	if there {
		f.w.block(0, 1)
	}
	if back {
		f.w.block(1, 0)
	}
	f.w.after(long, func() { f.w.unblock(0, 1); f.w.unblock(1, 0) })
}

func (f *faults) cutVoters() { f.cutFromVoters(f.host(), f.some()) }

func (f *faults) cutFromVoters(h *host, long time.Duration) {
	l := f.w.ledger
	f.w.say(h.name, "is cut off from the voters")
	l.cut[h.index] = true
	if f.w.chance(0.3) { // it led
		l.elect(f.w.between(50*time.Millisecond, 400*time.Millisecond))
	}
	f.w.after(long, func() { f.joinVoters(h.index) })
}

// stutter cuts a host off from everything for about a lease, lets it get a few
// words through, and cuts it off again.
func (f *faults) stutter() {
	w, i := f.w, f.w.dice.IntN(2)
	cut := func() {
		w.say(w.hosts[i].name, "is cut off from everything")
		w.ledger.cut[i] = true
		w.block(0, 1)
		w.block(1, 0)
	}
	join := func() { f.joinVoters(i); w.unblock(0, 1); w.unblock(1, 0) }
	cut()
	first := w.between(lease, lease*3/2)
	w.after(first, join)
	again := first + w.between(5*time.Millisecond, 80*time.Millisecond)
	w.after(again, func() {
		if f.on {
			cut()
			w.after(w.between(lease, 3*lease), join)
		}
	})
}

func (f *faults) joinVoters(i int) {
	l := f.w.ledger
	l.cut[i], l.stays[i] = false, 0
	l.show(f.w.hosts[i], l.state)
}

func (f *faults) newLeader() {
	f.w.say("L", "is lost")
	w := f.w
	w.ledger.elect(w.between(20*time.Millisecond, 500*time.Millisecond))
	if w.chance(0.5) { // together with a host
		f.withFormer(w.dice.IntN(2), f.some())
	}
}

// withFormer leaves a host alone with the leader that was deposed.
func (f *faults) withFormer(i int, long time.Duration) {
	w := f.w
	w.say(w.hosts[i].name, "is alone with the former leader for %v", long)
	w.ledger.stays[i] = w.now + long
	w.block(0, 1)
	w.block(1, 0)
	w.after(long, func() { f.joinVoters(i); w.unblock(0, 1); w.unblock(1, 0) })
}

func (f *faults) suspendHost() { f.host().suspend(f.some()) }

func (f *faults) freezeHost() {
	if d := f.host().daemon; d != nil {
		f.freeze(d, f.some(), true)
	}
}

func (f *faults) freezeDaemon() {
	if d := f.host().daemon; d != nil {
		f.freeze(d, f.some(), false)
	}
}

// freeze stops the daemon, or the whole host, for a while.
func (f *faults) freeze(d *daemon, long time.Duration, guestToo bool) {
	w := f.w
	if d.isFrozen() {
		return
	}
	w.say(d.h.name, "stands still for %v, the guest too: %v", long, guestToo)
	d.frozen = w.now + long
	if g := d.h.guest; g != nil && guestToo {
		g.frozen = d.frozen
	}
	for _, e := range d.ends {
		if o := e.other; e.open && o.open {
			o.silent(func() bool { return d.isFrozen() && o.open })
		}
	}
	d.after(0, d.gate.collect)
	if guestToo && w.chance(0.3) { // it led
		w.ledger.elect(w.between(50*time.Millisecond, 400*time.Millisecond))
	}
}

func (f *faults) switchover() { f.ask(primary.RequestSwitchover) }

func (f *faults) stop() {
	if f.w.ledger.state.Desired == ownership.Stopped {
		if d := f.host().daemon; d != nil {
			d.after(0, d.startStopped)
		}
	} else if f.w.chance(0.3) {
		f.ask(primary.RequestStop)
	}
}

// force is the operator, who wants the guest on its other host whatever it costs.
func (f *faults) force() {
	f.w.say("", "the operator forces a failover")
	for _, h := range f.w.hosts {
		if d := h.daemon; d != nil {
			d.after(0, d.force)
		}
	}
}

// fence is the operator, who looks after a host that is silent.
func (f *faults) fence() {
	for _, h := range f.w.hosts {
		if d := h.daemon; d != nil {
			d.after(0, func() { d.fence(3) })
		}
	}
}

// upgrade is the operator, who replaces a daemon: the owner's, mostly.
func (f *faults) upgrade() {
	switch h := f.owner(); f.w.dice.IntN(5) {
	case 0:
		f.upgradeWitness()
	case 1:
		f.upgradeOf(h.peer)
	default:
		f.upgradeOf(h)
	}
}

func (f *faults) upgradeOf(h *host) {
	if d := h.daemon; d != nil {
		alone := f.w.chance(0.25)
		d.after(0, func() { d.upgrade(alone) })
	}
}

// upgradeWitness: the witness runs no guest, and may lead.
func (f *faults) upgradeWitness() {
	if d := f.owner().daemon; d != nil && f.w.ledger.reign != nil {
		f.w.at(d, stepWitness)
		f.w.ledger.elect(f.w.between(5*time.Millisecond, 60*time.Millisecond))
	}
}

// failSuccessor ends the new daemon of the upgrade that is under way.
func (f *faults) failSuccessor() bool {
	l := f.w.upgrade
	if l == nil || l.next == nil || !l.next.alive || l.up {
		return false
	}
	f.w.say(l.next.h.name, "the new daemon fails")
	if l.next.h.daemon == l.next {
		l.next.h.killDaemon(false)
	} else {
		l.next.alive = false
	}
	return true
}

// untilTaken lets the owner stand still until its backup has waited for long
// enough, and its lease is over: about.
func (f *faults) untilTaken() bool {
	w, h := f.w, f.owner()
	if h.daemon == nil || h.daemon.isFrozen() {
		return false
	}
	until := max(w.oracle.promises[h.peer.index].until, w.oracle.leases[h.index], w.now+lease/4)
	f.freeze(h.daemon, until-w.now+w.between(-20*time.Millisecond, lease/2), true)
	return true
}

// protection is the operator at the switch, who is not sure what to want.
func (f *faults) protection() {
	f.unprotect([]ownership.Protection{ownership.ProtectionPaused, ownership.ProtectionOff}[f.w.dice.IntN(2)])
}

// unprotect sets the switch, and back after a while.
func (f *faults) unprotect(to ownership.Protection) (asked bool) {
	f.w.after(f.some(), func() { f.switchTo(ownership.ProtectionOn) })
	return f.switchTo(to)
}

// switchTo asks both hosts: the owner does it.
func (f *faults) switchTo(to ownership.Protection) (asked bool) {
	f.w.say("", "the operator wants protection %s", to)
	for _, h := range f.w.hosts {
		if d := h.daemon; d != nil {
			asked = true
			d.after(0, func() { d.switchTo(to, 3) })
		}
	}
	return asked
}

func (f *faults) ask(r primary.Request) {
	for _, h := range f.w.hosts {
		if d := h.daemon; d != nil {
			d.after(0, func() { d.ask(r) })
		}
	}
}

func (f *faults) heldFull() {
	for _, h := range f.w.hosts {
		if d := h.daemon; d != nil && d.primary != nil {
			d.primary.later(primary.HeldFull{})
		}
	}
}

// corrupt damages a page of an image that every checkpoint verifies.
func (f *faults) corrupt() {
	for _, h := range f.w.hosts {
		if d := h.daemon; d != nil && d.backup != nil && d.backup.image != nil && f.verifyAll && f.w.chance(0.3) {
			f.w.say(h.name, "a page of the image is damaged")
			d.backup.image.memory[f.w.dice.IntN(pages)] ^= 1 << 60
			d.backup.image.corrupt = true
		}
	}
}

// misread lets a block at a backup read as something else than what a page was
// left out for.
func (f *faults) misread() { f.misreadSoon(1, func() {}) }

// spoil does so, and maybe takes the guest's host away soon after.
func (f *faults) spoil() {
	f.misreadSoon(2000, func() {
		if f.w.chance(0.5) {
			f.w.after(f.w.between(0, 3*lease), func() { f.power(f.owner()) })
		}
	})
}

// misreadSoon tries it until there is a page that waits to be filled.
func (f *faults) misreadSoon(times int, then func()) {
	if times == 0 || !f.on {
		return
	}
	for _, h := range f.w.hosts {
		if d := h.daemon; d != nil && d.backup != nil && d.backup.image != nil && d.backup.image.misreads(f.w) {
			f.w.say(h.name, "a block that a page was left out for reads as something else")
			then()
			return
		}
	}
	f.w.after(500*time.Microsecond, func() { f.misreadSoon(times-1, then) })
}
