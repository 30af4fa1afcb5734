package primary

// This file tells what happens to the guest, for the record (package events).
// The loop tells, in step, from the facts of the core before and after it; while
// nothing changes it only compares.

import (
	"fmt"

	"understudy/clock"
	"understudy/epoch"
	"understudy/events"
	"understudy/ownership"
)

// Events takes what happened. Add does not wait.
type Events interface {
	Add(e events.Event)
}

// sayings are what the record was told last. The loop owns it.
type sayings struct {
	cover      events.Kind // protected, unprotected, or "" at first
	since      clock.Instant
	generation epoch.Generation    // of cover
	proposed   ownership.Command   // the last one
	applied    ownership.CommandID // the last one that was told of
	leaseLost  clock.Instant       // 0: it was not
}

// tell says what one step of the core has brought, before its actions are
// carried out: what they cause is told later.
func (p *Primary) tell(ev Event, was Mode) {
	if p.Events == nil {
		return
	}
	c := p.core
	switch ev := ev.(type) {
	case LogApplied:
		// Also of a proposal whose outcome was not known.
		if ev.State.LastCommand == p.said.proposed.ID {
			p.tellApplied(ev.State)
		}
	case Proposed:
		if ev.Err == nil && ev.Command.ID == p.said.proposed.ID {
			p.tellApplied(ev.State)
		}
	case Mismatch:
		p.add(events.Event{Kind: events.KindMismatch, Epoch: ev.Number, Peer: c.peer,
			Text: fmt.Sprintf("the memory of %s differs from the guest's after epoch %d", c.peer, ev.Number)})
	case GuestDid:
		text := "the guest: " + ev.Event.Kind.String()
		if ev.Event.Detail != "" {
			text += ": " + ev.Event.Detail
		}
		p.add(events.Event{Kind: events.KindGuestEvent, Reason: events.Reason(ev.Event.Kind.String()), Text: text})
	case Asked:
		if ev.Request == RequestSwitchover {
			p.add(events.Event{Kind: events.KindSwitchoverAsked, Peer: c.peer, Text: fmt.Sprintf("an operator asks for a switchover to %s", c.peer)})
		} else {
			p.add(events.Event{Kind: events.KindStopAsked, Text: "an operator asks the guest to stop"})
		}
	}
	if is := c.Mode(); is != was {
		p.tellMode(was, is)
	}
}

// tellMode says that protection has gone from one mode to another, and what that
// means for the guest.
func (p *Primary) tellMode(was, is Mode) {
	c := p.core
	p.add(events.Event{Kind: events.KindModeChanged, Epoch: c.acked, Peer: c.peer, Change: events.Change{From: was.String(), To: is.String()},
		Text: fmt.Sprintf("protection goes from %s to %s", was, is)})
	switch is {
	case ModeProtected:
		p.tellCover(events.KindProtected, "", fmt.Sprintf("%s is in sync: whatever leaves is committed there", c.peer))
	case ModeAlone, ModeSyncing, ModeEntering, ModeDetaching:
		reason, text := p.uncovered()
		p.tellCover(events.KindUnprotected, reason, text)
	}
}

func (p *Primary) tellCover(is events.Kind, reason events.Reason, text string) {
	if p.said.cover == is {
		return
	}
	e := events.Event{Kind: is, Epoch: p.core.acked, Peer: p.core.peer, Reason: reason, Text: text}
	now := p.Clock.Now()
	if p.said.cover != "" {
		e.Duration = now.Sub(p.said.since)
	}
	p.said.cover, p.said.since, p.said.generation = is, now, p.core.generation
	p.add(e)
}

// uncovered says why the backup cannot be counted on, see Core.lost. The session
// may have been closed since.
func (p *Primary) uncovered() (events.Reason, string) {
	c := p.core
	switch oldest := c.unanswered(); {
	case !c.wanted():
		return events.ReasonOperator, fmt.Sprintf("an operator has set the guest's protection to %s", c.log.Protection)
	case p.said.cover == "":
		return events.ReasonNoBackupYet, p.began() + ", and no backup is in sync yet"
	case c.generation != p.said.generation:
		return events.ReasonTakenBack, "the guest came back, and no backup is in sync with it yet"
	case !c.log.InSync, c.log.Backup.Image != c.image:
		return events.ReasonImageLost, fmt.Sprintf("%s has lost its image", c.peer)
	case c.mismatched:
		return events.ReasonImageDiffers, fmt.Sprintf("the image of %s differs", c.peer)
	case c.stalled:
		return events.ReasonBackupStalled, fmt.Sprintf("%s took nothing while the guest stood still for it", c.peer)
	case c.givenUp():
		return events.ReasonNoCapture, fmt.Sprintf("no checkpoint of the guest could be taken for %v", events.About(c.now.Sub(c.failing)))
	case c.acked < c.sealed && !c.now.Before(oldest.Add(c.cfg.AckTimeout)):
		return events.ReasonNoAck, fmt.Sprintf("%s has not acknowledged epoch %d for %v", c.peer, c.acked+1, events.About(c.now.Sub(oldest)))
	case c.overdue():
		return events.ReasonNoAck, fmt.Sprintf("%s has acknowledged nothing for %v", c.peer, events.About(c.now.Sub(c.owed)))
	case !c.linked && c.deserted:
		return events.ReasonBackupGone, fmt.Sprintf("nobody listens at %s: its daemon has died, and the image with it", c.peer)
	}
	return events.ReasonBackupSilent, fmt.Sprintf("nothing is heard of %s", c.peer)
}

// began says how the guest came to run here.
func (p *Primary) began() string {
	switch {
	case p.State.Phase == ownership.PhaseActivating && p.State.Previous != "":
		return fmt.Sprintf("the guest has come here from %s", p.State.Previous)
	case p.Running:
		return "the guest was found running here"
	}
	return "the guest begins here"
}

// tellApplied says what the log has recorded of the last proposal. Protection has
// its own events.
func (p *Primary) tellApplied(now ownership.Guest) {
	c := p.said.proposed
	if c.ID == p.said.applied {
		return
	}
	p.said.applied = c.ID
	e := events.Event{Generation: now.Generation, Peer: p.core.peer}
	switch c.Kind {
	case ownership.Surrender:
		e.Kind, e.Peer, e.Epoch, e.Reason = events.KindSurrendered, c.Backup.Host, c.Backup.Epoch, events.ReasonOperator
		e.Text = fmt.Sprintf("the guest is handed to %s, as of epoch %d", c.Backup.Host, c.Backup.Epoch)
		if p.core.guestErr {
			e.Reason, e.Text = events.ReasonGuestLost, fmt.Sprintf("the guest was lost here: it is given to %s, as of epoch %d", c.Backup.Host, c.Backup.Epoch)
		}
	case ownership.Stop:
		e.Kind, e.Reason, e.Text = events.KindStopped, events.ReasonOperator, "the guest is stopped"
		if p.core.guestOff {
			e.Reason, e.Text = events.ReasonShutdown, "the guest has powered itself off"
		}
	case ownership.Activated:
		e.Kind, e.Text = events.KindActivated, "it is recorded that the guest runs here: its output may leave"
	case ownership.Return:
		e.Kind, e.Text = events.KindReturned, fmt.Sprintf("the guest could not be run here, and is given back to %s", now.Owner)
		e.Peer = now.Owner
		if now.Owner == p.cfg.Self {
			e.Kind, e.Peer = events.KindTakenBack, p.core.peer
			e.Text = "the guest is taken back from a host that did not run it in time"
		}
	case ownership.Reclaim:
		e.Kind, e.Text = events.KindTakenBack, "the guest was not taken over, and is taken back"
	default:
		return
	}
	p.add(e)
}

// tellPaused says that the guest stands still for want of a lease.
func (p *Primary) tellPaused() {
	c := p.core
	if p.Events == nil || p.said.leaseLost != 0 || c.leaseHolds() || c.mode == ModeYielded || c.log.Desired == ownership.Stopped {
		return
	}
	p.said.leaseLost = p.Clock.Now()
	p.add(events.Event{Kind: events.KindLeaseLost, Text: "no voter renews the lease: the guest stands still, and nothing leaves"})
}

// tellResumed says that it has one again.
func (p *Primary) tellResumed() {
	if p.Events == nil || p.said.leaseLost == 0 {
		return
	}
	stood := p.Clock.Now().Sub(p.said.leaseLost)
	p.said.leaseLost = 0
	p.add(events.Event{Kind: events.KindLeaseRenewed, Duration: stood, Text: fmt.Sprintf("the lease is renewed again: the guest goes on after %v", events.About(stood))})
}

func (p *Primary) add(e events.Event) {
	e.Guest = p.cfg.Guest
	if e.Generation == 0 {
		e.Generation = p.core.generation
	}
	p.Events.Add(e)
}
