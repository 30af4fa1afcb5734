package simulation

// Every other seed aims at a cell of the matrix, in turn: the disk is made one
// that suits it, the world is led to the step again and again, and the fault
// strikes there.

import (
	"time"

	"understudy/ownership"
	"understudy/primary"
)

// everyCell is what seeds aim at, in turn.
var everyCell = allCells()

// aimOf is the cell that a seed aims at, if it does.
func (w *world) aimOf(seed uint64) (c cell, aims bool) {
	if seed%2 != 0 {
		return cell{}, false
	}
	if c, alone := needsAim[w.breach]; alone {
		return c, true
	}
	return everyCell[seed/2%uint64(len(everyCell))], true
}

// mustLive reports whether what is struck at a cell is the host from which the
// guest is taken over, or the guest that is left there.
func (c cell) mustLive() bool {
	p := stepTable[c.step].path
	return (p == lostHost || p == badLoads || p == forcing) && (c.fault == faultGuest || c.fault == faultPeer)
}

// suits changes the disk so that a cell can be reached: a backup that has a copy
// of its own seldom has anything left to replay, and a host that lives does not
// let go of a fenced disk by itself.
func (c cell) suits(k *diskKind) {
	k.shared = k.shared || c.step == stepReplayWrite
	k.unfenced = k.unfenced || c.mustLive()
	k.slow = k.slow || stepTable[c.step].path == spoiling // to have something left to fill
}

// takeAim leads the world to a step, where a fault strikes. Half of those worlds
// are well otherwise.
func (f *faults) takeAim(c cell) {
	w := f.w
	f.aim, f.left = c, 1
	if w.chance(0.25) {
		f.left = 2
	}
	switch p := stepTable[c.step].path; p {
	case calm:
		if f.left = 1 + w.dice.IntN(3); w.chance(0.5) {
			f.left = 1 + w.dice.IntN(60)
		}
		if w.chance(0.5) {
			f.only(f.lead(calm))
		}
	case seldom:
		if w.chance(0.75) {
			f.only(f.unlink)
		}
	default:
		f.only(f.lead(p))
		if p == badLoads {
			f.loadFails = 0.9
		}
		if p == spoiling { // what is spoilt is often superseded before anybody needs it; who verifies an image fills it
			f.left, f.pause, f.ends, f.verifyAll = 1, 500*time.Millisecond, 2*faultTime, false
		}
		switch p {
		case resisting:
			f.slowCommit, f.slowLink = 0.1, 0.5
			if f.othersStay = 0.7; c.step != stepStay {
				f.othersStay, f.resist = 0.1, 0.9
			}
		case succeeding:
			f.successorFails = 0.7
		}
		if p == unheard {
			f.ends = 4 * faultTime // the guest is taken back after long
		}
	}
	if w.chance(0.3) {
		f.lostRequest, f.lostAnswer, f.lagging, f.slowCommit = 0.05, 0.05, 0.1, 0.1
	}
	if w.chance(0.3) { // and once more
		w.after(w.between(faultTime/3, faultTime), func() { f.left = max(f.left, 1) })
	}
	f.until = f.ends + 3*faultTime
	w.say("", "the fault %q waits for the step %q", c.fault, c.step)
}

// aimAgain gives a fault that has not struck some more time: too much has gone wrong
// before, maybe.
func (f *faults) aimAgain() {
	switch stepTable[f.aim.step].path {
	case calm:
		f.only(func() {})
	case seldom:
		f.only(f.unlink)
	}
	f.left, f.ends = 1, f.w.now+faultTime/2
}

// lead returns what brings the world to the steps of a path.
func (f *faults) lead(p path) func() {
	w := f.w
	switch p {
	case lostHost, badLoads:
		if f.aim.mustLive() {
			return f.inSync(func() { f.isolate(f.owner(), w.between(3*lease, 8*lease)) })
		}
		return f.inSync(func() {
			h := f.owner()
			h.powerOff()
			w.after(w.between(100*time.Millisecond, 4*lease), h.boot)
		})
	case lostLink:
		return f.inSync(f.unlink)
	case lostVoters:
		return func() { f.cutFromVoters(f.owner(), w.between(lease/2, 3*lease)) }
	case lostDaemon:
		return func() {
			h := f.owner()
			h.killDaemon(w.chance(0.5))
			w.after(w.between(5*time.Millisecond, lease), h.boot) // before anybody takes over, mostly
		}
	case switching:
		return f.inSync(f.switchover)
	case pausing:
		pause := f.inSync(f.protection)
		return func() {
			if w.ledger.state.Protection != ownership.ProtectionOn {
				f.switchTo(ownership.ProtectionOn)
			} else {
				pause()
			}
		}
	case forcing:
		if w.breach == forceOverGuest {
			f.lagging = 1
		}
		return func() {
			if w.ledger.state.Protection == ownership.ProtectionOn {
				f.switchTo([]ownership.Protection{ownership.ProtectionPaused, ownership.ProtectionOff}[w.dice.IntN(2)])
				return
			}
			h := f.owner()
			switch {
			case w.breach == forceOverGuest:
				f.isolate(h, 4*lease)
				w.after(4*lease+time.Millisecond, f.force)
			case f.aim.mustLive():
				f.isolate(h, w.between(4*lease, 8*lease))
			default:
				h.powerOff()
				w.after(w.between(2*lease, 8*lease), h.boot)
			}
			w.after(w.between(0, lease), f.force)
			w.after(9*lease, func() { f.switchTo(ownership.ProtectionOn) })
		}
	case fencing:
		return f.inSync(func() {
			h := f.owner()
			if w.breach == fenceUnseen {
				f.isolate(h, 2*lease)
				w.after(w.between(0, lease/2), f.fence)
				return
			}
			h.powerOff()
			switch f.aim {
			case cell{stepProposeFence, faultGuest}: // there is one while the takeover is under way
				w.after(w.between(2*lease, 4*lease), h.boot)
				f.soon(2*time.Millisecond, func() bool { return w.ledger.state.Phase == ownership.PhaseActivating }, f.fence)
			case cell{stepProposeFence, faultPeer}: // it is back before the log knows that it was off
				w.after(w.between(lease/16, lease/4), h.boot)
				w.after(w.between(0, lease/16), f.fence)
			default:
				w.after(w.between(lease/2, 4*lease), h.boot)
				w.after(w.between(0, lease/2), f.fence)
			}
		})
	case stopping:
		return func() {
			if w.ledger.state.Desired == ownership.Stopped {
				f.stop()
			} else {
				f.ask(primary.RequestStop)
			}
		}
	case spoiling:
		return f.inSync(func() { f.misreadSoon(2000, func() {}) })
	case upgrading, succeeding, resisting:
		return f.inSync(func() { f.upgradeOf(f.owner()) })
	case retiring:
		return f.inSync(func() { f.upgradeOf(f.owner().peer) })
	case witnessing:
		return f.inSync(f.upgradeWitness)
	case unheard:
		return f.inSync(func() {
			f.cutFromVoters(f.owner().peer, w.between(18*lease, 26*lease))
			w.after(w.between(0, lease), f.switchover)
		})
	}
	return func() {}
}

// owner is the host that the log names.
func (f *faults) owner() *host {
	if f.w.ledger.state.Owner == f.w.hosts[1].id {
		return f.w.hosts[1]
	}
	return f.w.hosts[0]
}

// inSync lets something happen as soon as a backup is in sync.
func (f *faults) inSync(do func()) func() {
	waits := false
	return func() {
		if !waits {
			waits = true
			f.soon(20*time.Millisecond, func() bool { return f.w.ledger.state.InSync }, func() { waits = false; do() })
		}
	}
}

// soon lets something happen when it is so, and looks after that now and then.
func (f *faults) soon(every time.Duration, is func() bool, do func()) {
	switch {
	case !f.on:
	case is():
		do()
	default:
		f.w.after(every, func() { f.soon(every, is, do) })
	}
}

// unlink lets the session between the hosts be lost, one way or the other.
func (f *faults) unlink() {
	switch f.w.dice.IntN(3) {
	case 0:
		f.w.breakSessions()
	case 1:
		f.cut(f.some(), true, true)
	case 2:
		f.daemonOf(f.owner().peer)
	}
}

// isolate cuts a host off from everything.
func (f *faults) isolate(h *host, long time.Duration) {
	f.cutFromVoters(h, long)
	f.cut(long, true, true)
}
