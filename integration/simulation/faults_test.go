package simulation

import (
	"time"

	"understudy/primary"
)

// faults are what goes wrong in a world. Which kinds, and how often, is drawn
// from the seed: a story with few kinds goes deeper than one with all.
type faults struct {
	w  *world
	on bool

	strikes      float64 // of a death between two actions of a core
	lostRequest  float64
	lateRequest  float64
	lostAnswer   float64
	lagging      float64
	formerLeader float64 // of a request reaching a leader that was deposed
	slowCommit   float64
	slowLink     float64
	captureFails float64
	loadFails    float64
	verifyAll    bool

	kinds []func()
	pause time.Duration // between two faults, at most
}

func (f *faults) init(w *world) {
	f.w, f.on = w, true
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
	f.captureFails, f.loadFails = rate(0.1), rate(0.6)
	f.verifyAll = w.chance(0.3)
	f.pause = time.Duration([]int{60, 200, 600, 1500}[w.dice.IntN(4)]) * time.Millisecond
	all := []func(){f.daemonDies, f.powerFails, f.guestExits, f.guestOff, w.breakSessions, f.cutOneWay, f.cutBothWays,
		f.cutVoters, f.stutter, f.newLeader, f.freezeHost, f.freezeDaemon, f.switchover, f.stop, f.heldFull, f.corrupt}
	for _, k := range all {
		if w.chance(0.4) {
			f.kinds = append(f.kinds, k)
		}
	}
	// Some seeds go deep into one kind of trouble alone.
	switch w.dice.IntN(12) {
	case 0:
		f.only(f.stutter)
		f.slowCommit, f.lagging = 0.5, 0.2
	case 1:
		f.only(f.newLeader)
	}
	w.after(w.between(100*time.Millisecond, time.Second), f.next)
	w.after(faultTime, f.end)
}

// only leaves one kind of fault, once in a while, in a world that is well
// otherwise.
func (f *faults) only(kind func()) {
	*f = faults{w: f.w, on: true, kinds: []func(){kind}, pause: 1500 * time.Millisecond}
}

// next lets one thing go wrong, and the next after a while.
func (f *faults) next() {
	if !f.on || len(f.kinds) == 0 {
		return
	}
	f.kinds[f.w.dice.IntN(len(f.kinds))]()
	f.w.after(f.w.between(f.pause/10, f.pause), f.next)
}

// end heals the world.
func (f *faults) end() {
	w := f.w
	w.say("", "--- the faults end")
	*f = faults{w: w, verifyAll: f.verifyAll}
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

// operate is the operator, who starts what was stopped.
func (f *faults) operate() {
	if d := f.host().daemon; d != nil && f.w.ledger.state.Desired == "stopped" {
		d.startStopped()
	}
	f.w.after(500*time.Millisecond, f.operate)
}

// strike may kill the daemon, or the host, between two of its actions.
func (f *faults) strike(d *daemon) (died bool) {
	if !f.on || !f.w.chance(f.strikes) {
		return false
	}
	w := f.w
	switch w.dice.IntN(5) {
	case 0:
		d.h.killDaemon(w.chance(0.5))
		w.after(w.between(10*time.Millisecond, 800*time.Millisecond), d.h.boot)
	case 1:
		d.h.powerOff()
		w.after(w.between(50*time.Millisecond, 1500*time.Millisecond), d.h.boot)
	case 2:
		f.exit(d.h)
	case 3:
		w.breakSessions()
	case 4:
		f.freeze(d, w.between(time.Millisecond, 3*lease), w.chance(0.5))
	}
	return !d.alive
}

func (f *faults) host() *host { return f.w.hosts[f.w.dice.IntN(2)] }

// some draws a duration that is short or long against a lease.
func (f *faults) some() time.Duration {
	if f.w.chance(0.5) {
		return f.w.between(5*time.Millisecond, lease/2)
	}
	return f.w.between(lease/2, 4*lease)
}

func (f *faults) daemonDies() {
	h := f.host()
	h.killDaemon(f.w.chance(0.5))
	f.w.after(f.some(), h.boot)
}

func (f *faults) powerFails() {
	h := f.host()
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
	f.w.say("", "from %s to %s nothing gets through", f.w.hosts[from].name, f.w.hosts[1-from].name)
	f.w.block(from, 1-from)
	f.w.after(f.some(), func() { f.w.unblock(from, 1-from) })
}

func (f *faults) cutBothWays() {
	f.w.say("", "between the hosts nothing gets through")
	f.w.block(0, 1)
	f.w.block(1, 0)
	f.w.after(f.some(), func() { f.w.unblock(0, 1); f.w.unblock(1, 0) })
}

func (f *faults) cutVoters() {
	i := f.w.dice.IntN(2)
	l := f.w.ledger
	f.w.say(f.w.hosts[i].name, "is cut off from the voters")
	l.cut[i] = true
	if f.w.chance(0.3) { // it led
		l.elect(f.w.between(50*time.Millisecond, 400*time.Millisecond))
	}
	f.w.after(f.some(), func() { f.joinVoters(i) })
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
		i, long := w.dice.IntN(2), f.some()
		w.say(w.hosts[i].name, "is alone with the former leader for %v", long)
		w.ledger.stays[i] = w.now + long
		w.block(0, 1)
		w.block(1, 0)
		w.after(long, func() { f.joinVoters(i); w.unblock(0, 1); w.unblock(1, 0) })
	}
}

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
	if f.w.ledger.state.Desired == "stopped" {
		if d := f.host().daemon; d != nil {
			d.after(0, d.startStopped)
		}
	} else if f.w.chance(0.3) {
		f.ask(primary.RequestStop)
	}
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
