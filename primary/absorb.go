package primary

// This file is the first half of a step: an event becomes facts. Nothing is
// decided here; what the facts demand is asked afterwards, in decide (core.go).

import (
	"errors"
	"fmt"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
)

// absorb turns an event into facts.
func (c *Core) absorb(ev Event) {
	switch ev := ev.(type) {
	case Tick:
	case LeaseRenewed:
		if ev.Generation == c.generation && c.leaseUntil.Before(ev.Until) {
			c.leaseUntil = ev.Until
		}
	case LogApplied:
		c.absorbLog(ev.State)
	case Proposed:
		c.absorbProposed(ev)
	case LinkUp:
		c.absorbLinkUp(ev)
	case LinkDown:
		c.connecting = false
		c.connectAt = c.now.Add(c.cfg.Reconnect)
		if c.linked {
			c.unlink()
		} else {
			c.deserted = ev.Refused
		}
	case Captured:
		c.absorbCaptured(ev)
	case CaptureFailed:
		c.capturing = false
		c.emit(Warn{fmt.Sprintf("epoch %d was not captured: %v", ev.Number, ev.Err)})
		c.sealed = ev.Number - 1
		c.final = 0
		c.epochAt = c.now.Add(c.cfg.Ceiling)
		c.againAt = c.epochAt
		if c.failing == 0 {
			c.failing = c.now
		}
		c.unseal = c.holds() // its output may be sealed: it waits for the next attempt
	case Postponed:
		c.capturing = false
		c.sealed, c.final = ev.Number-1, 0
		if c.firstWhole == ev.Number {
			c.firstWhole = 0
		}
		c.epochAt = c.now.Add(c.cfg.Floor)
		c.againAt = c.epochAt
	case Acked:
		c.absorbAcked(ev.Number)
	case Mismatch:
		c.mismatched = true
		c.emit(Warn{fmt.Sprintf("the backup's memory differs after epoch %d: its image is given up and made anew", ev.Number)})
	case HeldFull:
		c.heldFull = true
	case GuestDid:
		c.absorbGuest(ev.Event)
	case Asked:
		if c.leave == 0 {
			c.leave = ev.Request
		}
		if ev.Still {
			c.leave, c.still, c.running = RequestStop, true, false
		}
	case Patient:
		if c.bid && ev.For > 0 {
			c.bid, c.patient = false, true
		}
	case Remain:
		if c.leave == RequestHandover {
			c.abandonLeave("handover given up: " + ev.Why)
		}
	case StayOn:
		if c.still {
			c.still = false
			c.abandonLeave("stop given up: what had to be done before could not be")
		}
	}
}

func (c *Core) absorbLog(g ownership.Guest) {
	if g.Revision <= c.log.Revision {
		return
	}
	if c.log.Protection != ownership.ProtectionOn && g.Protection == ownership.ProtectionOn {
		c.connectAt = 0 // at once
	}
	c.log = g
}

func (c *Core) absorbProposed(ev Proposed) {
	c.proposing = false
	leaving := c.mode == ModeLeaving // and if not any more, see abandonLeave
	var refused *ownership.Refused
	switch {
	case ev.Err == nil:
		c.retry = nil
		c.absorbLog(ev.State)
		switch ev.Command.Kind {
		case ownership.OutOfSync, ownership.Stop:
			// Applied at the newest revision: no lost InSync can follow it.
			c.inSyncMaybe = false
			if c.mode == ModeDetaching {
				c.enter(ModeAlone)
			}
		case ownership.Reclaim:
			c.inSyncMaybe = false
		}
	case errors.As(ev.Err, &refused):
		c.retry = nil
		c.absorbLog(refused.State)
		if ev.Command.Kind == ownership.InSync {
			c.inSyncMaybe = false
		}
		if ev.Command.Kind == ownership.Surrender && c.leave == RequestSwitchover {
			c.abandonLeave("switchover given up: surrender was refused: " + refused.Reason)
		}
		c.retryAt = c.now.Add(c.cfg.Reconnect)
	default:
		cmd := ev.Command
		c.retry, c.retryAt = &cmd, c.now.Add(c.cfg.Reconnect)
	}
	if k := ev.Command.Kind; (k == ownership.Surrender || k == ownership.Return) && !leaving && !c.guestErr &&
		c.log.Owner == c.cfg.Self && c.log.Phase == ownership.PhaseActive && c.log.Generation == c.generation {
		// The disks are let go of before either is proposed, and the log was quicker
		// than that: they had been taken on by then, and the guest runs.
		c.emit(UseGeneration{c.generation})
	}
}

func (c *Core) absorbLinkUp(ev LinkUp) {
	c.linked, c.connecting, c.deserted = true, false, false
	c.peer, c.image = ev.Peer, ev.At.Image
	c.heldFull = false
	if ev.Resumed {
		// The Welcome counts as an acknowledgement of everything up to At.
		c.sealed = max(ev.At.Number, c.acked)
		c.absorbAcked(ev.At.Number)
		if c.firstWhole > c.acked {
			c.firstWhole = 0 // it was lost on the way, and the next one has its number or an earlier one
		}
		c.emit(Restore{})
		if c.holds() {
			c.emit(Hold{}) // the frames of lost epochs belong to the next one
			c.unseal = false
		}
		if c.final > c.sealed {
			c.final = 0 // the last epoch was lost on the way: taken again
		}
		return
	}
	if c.mode.commits() {
		c.mismatched = true // the image that the log names is gone
	}
	c.sealed, c.acked, c.firstWhole = 0, 0, 0
	c.emit(Refill{})
}

// unlink notes the loss of the session. What was in flight is void; should the
// backup have committed some of it, its next Welcome says so.
func (c *Core) unlink() {
	c.linked, c.bid, c.patient = false, false, false
	c.linkLost = c.now
	if c.holds() {
		c.owe()
	}
	if c.mode == ModeSyncing {
		c.enter(ModeAlone)
	}
}

// drop closes the session from this side.
func (c *Core) drop(why string) {
	c.unlink()
	c.connectAt = c.now.Add(c.cfg.Reconnect)
	c.emit(Disconnect{why})
}

func (c *Core) absorbCaptured(ev Captured) {
	c.capturing, c.failing = false, 0
	if ev.Stalled && ev.Kind == epoch.KindCheckpoint {
		c.stalled = true
	}
	if !c.linked || ev.Number <= c.acked || ev.Number > c.sealed {
		return // of a session that is gone
	}
	c.sealedAt[ev.Number%maxWindow] = c.now
	if ev.Kind == epoch.KindSync {
		c.remaining, c.comparing = ev.Remaining, ev.Comparing
		c.syncRounds++
		if ev.Sent > c.cfg.SyncEnough {
			c.bulk = ev.Number
		}
		if ev.Remaining <= c.cfg.SyncEnough && (ev.Comparing || c.acked < c.bulk) {
			c.epochAt = c.now.Add(c.cfg.Floor) // only the comparison, or the backup, is waited for
		} else {
			c.epochAt = 0
		}
		return
	}
	c.heldFull = false
	c.epochAt = c.now.Add(c.pace.after(ev.Cost))
}

func (c *Core) absorbAcked(n epoch.Number) {
	if n <= c.acked && n != 0 || n > c.sealed {
		return
	}
	c.acked, c.owed = n, 0
	if c.acked < c.sealed && c.holds() {
		c.owed = c.unanswered()
	}
	c.emit(Forget{n})
	if c.mode.commits() && c.mode != ModeYielded && c.firstWhole != 0 && n >= c.firstWhole {
		c.emit(Release{n})
	}
}

func (c *Core) absorbGuest(ev hypervisor.Event) {
	switch ev.Kind {
	case hypervisor.EventShutdown:
		c.guestOff, c.running = true, false
		if c.leave != RequestStop {
			c.leave, c.final = RequestStop, 0
		}
	case hypervisor.EventExited:
		c.guestErr = true
		c.emit(Warn{"the guest's hypervisor is gone: " + ev.Detail})
	case hypervisor.EventPanic:
		c.emit(Warn{"the guest's kernel panicked; what follows is the guest's own policy: " + ev.Detail})
		c.running = false // stopped by the hypervisor: decide resumes it
	case hypervisor.EventFault:
		c.emit(Warn{"the hypervisor stopped the guest: " + ev.Detail})
	case hypervisor.EventReset:
		c.emit(Warn{"the guest rebooted"})
	}
}
