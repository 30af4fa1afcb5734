package primary

// This file is how the core's part ends: the guest goes to another host, which
// may not come for it, is stopped on purpose, or is left to the next daemon of
// this host. decide (core.go) asks each of these after every event.

import (
	"understudy/epoch"
	"understudy/ownership"
)

// decideYield: the guest is another's, or on its way there. It is kept, paused
// and shut in, until the new owner runs it (RULES 10).
func (c *Core) decideYield() {
	if c.mode != ModeYielded {
		c.enter(ModeYielded)
	}
	if c.linked { // also by an attempt that was under way
		c.drop("another host takes the guest over")
	}
	c.stop("another host takes the guest over")
	if c.log.Owner != c.cfg.Self {
		if c.log.Phase != ownership.PhaseActivating {
			c.end(OutcomeSuperseded)
			return
		}
		c.decideTakeBack()
		return
	}
	if c.guestErr {
		c.end(OutcomeLost) // the host waits for the backup, or boots the guest anew
		return
	}
	// Surrendered by us, and not taken: after a while take it back, or as soon as
	// nobody can take it any more.
	if c.now.Before(c.reclaimAt) && c.log.InSync {
		return
	}
	c.propose(ownership.Reclaim, ownership.Backup{})
}

// decideTakeBack: whoever was granted the guest may have died or been cut off
// before it ran, or had any output of it out. The guest here is whole, and as
// new as any.
func (c *Core) decideTakeBack() {
	if c.cfg.TakeBackAfter == 0 || c.guestErr || c.log.Previous != c.cfg.Self {
		return
	}
	if c.takeBackAt == 0 {
		c.takeBackAt = c.now.Add(c.cfg.TakeBackAfter)
	}
	if !c.now.Before(c.takeBackAt) {
		c.propose(ownership.Return, ownership.Backup{})
	}
}

func (c *Core) decideStopped() {
	c.stop("the guest is meant to be stopped")
	c.emit(Shut{})
	c.end(OutcomeStopped)
}

// decideLeave brings a switchover or a stop to its end.
func (c *Core) decideLeave() {
	switch c.leave {
	case 0:
		return
	case RequestHandover:
		c.decideHandover()
		return
	}
	switch c.mode {
	case ModeAlone, ModeSyncing:
		if c.leave == RequestSwitchover {
			c.abandonLeave("switchover given up: no backup is in sync")
			return
		}
		// Unprotected: nothing is held that could be lost.
		if c.final == 0 {
			c.final = c.sealed + 1
			c.stop("the guest is meant to be stopped")
		}
		c.propose(ownership.Stop, ownership.Backup{})
	case ModeEntering:
		if c.leave == RequestStop && !c.inSyncMaybe && !c.log.InSync {
			c.enter(ModeAlone) // not worth protecting any more
		}
	case ModeProtected:
		c.takeLast()
		if c.final != 0 && c.acked >= c.final {
			c.emit(Shut{})
			c.enter(ModeLeaving)
		}
	case ModeLeaving:
		if c.leave == RequestStop {
			c.propose(ownership.Stop, ownership.Backup{})
		} else {
			c.surrender(c.final)
		}
	}
}

// takeLast takes the last epoch, as soon as one can be taken. The guest stands
// still from then on.
func (c *Core) takeLast() {
	if c.final == 0 && c.linked && !c.capturing && !c.unseal && !c.now.Before(c.againAt) && c.sealed-c.acked < epoch.Number(c.cfg.Window) && c.leaseHolds() {
		c.final = c.next()
		c.running = false
		c.emit(Capture{Number: c.final, Final: true})
	}
}

// decideHandover leaves the guest to the next daemon. A protected one stays so:
// the backup is asked for patience while the guest still runs, then a last epoch
// is taken; once it is acknowledged everything that the guest has emitted may
// leave, and nothing of it changes any more. Modes that do not last are waited
// for.
func (c *Core) decideHandover() {
	switch c.mode {
	case ModeAlone, ModeSyncing:
		if c.linked {
			c.drop("the guest is left to the next daemon")
		}
		c.final = c.sealed + 1 // it does not go on
		c.stop("the guest is left to the next daemon")
		c.end(OutcomeHandedOver)
	case ModeProtected:
		switch {
		case !c.linked || c.bid:
		case !c.patient:
			c.bid = true
			c.emit(Bid{c.cfg.Patience})
		case c.final != 0 && c.acked >= c.final:
			c.end(OutcomeHandedOver)
		default:
			c.takeLast()
		}
	}
}

// Leaving returns what the guest is about to leave for; 0: it stays.
func (c *Core) Leaving() Request { return c.leave }

// Leaves reports, once the core has ended with OutcomeHandedOver, whether a next
// daemon can go on with the backup: sent are the last position that it has
// acknowledged and those in flight, of the session that is open; nil: none is.
func (c *Core) Leaves(sent []epoch.Position) bool {
	return len(sent) == 1 && sent[0].Number == c.acked && c.log.InSync && c.log.Backup.Image == sent[0].Image
}

func (c *Core) surrender(at epoch.Number) {
	c.propose(ownership.Surrender, ownership.Backup{Host: c.log.Backup.Host, Image: c.log.Backup.Image, Epoch: at})
}

// abandonLeave gives up a switchover or a stop; the guest runs on.
func (c *Core) abandonLeave(why string) {
	c.emit(Warn{why})
	if c.linked && (c.bid || c.patient) {
		c.emit(Bid{})
	}
	c.leave, c.final, c.bid, c.patient = 0, 0, false, false
	if c.mode == ModeLeaving {
		c.enter(ModeProtected)
		// The disks were let go of for the surrender, and the gate was shut.
		c.emit(UseGeneration{c.generation}, Hold{})
	}
}
