package backup

// This file tells what happens to the guest at the side that stands by, for the
// record (package events): asked → granted → running, or why not.

import (
	"errors"
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
	asked   bool // of the takeover that is being asked for
	at      clock.Instant
	from    ownership.HostID  // its former owner
	givenUp epoch.Incarnation // the image
}

// tellProposal says that a takeover is about to be asked for, the first time.
func (b *Backup) tellProposal(c ownership.Command) {
	if b.Events == nil || c.Kind != ownership.Takeover && c.Kind != ownership.Force || b.said.asked {
		return
	}
	log, now := b.core.log, b.Clock.Now()
	b.said.asked, b.said.at, b.said.from = true, now, log.Owner
	e := events.Event{Kind: events.KindTakeoverAsked, Generation: c.Generation, Epoch: c.Backup.Epoch, Peer: log.Owner}
	switch {
	case c.Kind == ownership.Force:
		e.Reason = events.ReasonOperator
		e.Text = fmt.Sprintf("an operator forces a failover from %s to the image of epoch %d, which was committed %v ago", log.Owner, c.Backup.Epoch, events.About(b.stats.age(now)))
	case log.Phase == ownership.PhaseSurrendered:
		e.Reason = events.ReasonSurrendered
		e.Text = fmt.Sprintf("%s has given the guest up: a takeover at epoch %d is asked for", log.Owner, c.Backup.Epoch)
	default:
		e.Reason, e.Duration = events.ReasonOwnerSilent, now.Sub(b.core.lostAt)
		e.Text = fmt.Sprintf("nothing was heard of %s for %v: a takeover at epoch %d is asked for", log.Owner, events.About(e.Duration), c.Backup.Epoch)
	}
	b.add(e)
}

// tell says what one step of the core has brought, before its actions are carried
// out; granted is as it was before it.
func (b *Backup) tell(ev Event, granted bool) {
	if b.Events == nil {
		return
	}
	if p, ok := ev.(Proposed); ok {
		b.tellProposed(p)
	}
	c := b.core
	if granted && !c.granted && c.log.Owner != c.cfg.Self && b.said.asked {
		b.add(events.Event{Kind: events.KindTakenBack, Generation: c.log.Generation, Peer: c.log.Owner,
			Text: fmt.Sprintf("%s has taken the guest back: the takeover took too long", c.log.Owner)})
	}
	if !c.asking {
		b.said.asked = false
	}
}

func (b *Backup) tellProposed(p Proposed) {
	e := events.Event{Generation: p.State.Generation, Epoch: p.Command.Backup.Epoch, Peer: b.said.from}
	var refused *ownership.Refused
	switch kind := p.Command.Kind; {
	case kind == ownership.Takeover && p.Err == nil:
		e.Kind, e.Duration = events.KindTakeoverGranted, b.Clock.Now().Sub(b.said.at)
		e.Text = fmt.Sprintf("the takeover from %s is granted after %v", b.said.from, events.About(e.Duration))
	case kind == ownership.Force && p.Err == nil:
		e.Kind, e.Reason, e.Duration = events.KindForced, events.ReasonImage, b.Clock.Now().Sub(b.said.at)
		e.Text = fmt.Sprintf("the guest is taken from %s by force: whatever it did after epoch %d, committed %v ago, is lost", b.said.from, e.Epoch, events.About(b.stats.age(b.Clock.Now())))
	case (kind == ownership.Takeover || kind == ownership.Force) && errors.As(p.Err, &refused):
		e.Kind, e.Generation, e.Text = events.KindTakeoverRefused, refused.State.Generation, "the takeover is refused: "+refused.Reason
	case kind == ownership.Return && p.Err == nil:
		e.Kind, e.Peer = events.KindReturned, p.State.Owner
		e.Text = fmt.Sprintf("the guest could not be run here, and is given back to %s", p.State.Owner)
		b.said.asked = false // and so it was not taken back
	case kind == ownership.OutOfSync && p.Err == nil && p.Command.Backup.Image != b.said.givenUp:
		e.Kind, e.Text = events.KindImageGivenUp, "the image that the log named is gone"
		e.Reason, e.Peer = events.ReasonImageLost, p.State.Owner
	default:
		return
	}
	b.add(e)
}

// tellGivenUp says that nothing is ever continued from the image.
func (b *Backup) tellGivenUp(err error) {
	if b.Events == nil {
		return
	}
	b.said.givenUp = b.image
	b.add(events.Event{Kind: events.KindImageGivenUp, Generation: b.core.log.Generation, Peer: b.core.log.Owner, Text: "the image is given up: " + err.Error()})
}

// tellRunning says that the guest runs here.
func (b *Backup) tellRunning(at epoch.Number) {
	if b.Events == nil {
		return
	}
	took := b.Clock.Now().Sub(b.said.at)
	b.add(events.Event{Kind: events.KindTakeoverRunning, Generation: b.core.log.Generation, Epoch: at, Peer: b.said.from, Duration: took,
		Text: fmt.Sprintf("the guest runs here from epoch %d on, %v after it was asked for", at, events.About(took))})
}

func (b *Backup) add(e events.Event) {
	e.Guest = b.cfg.Guest
	b.Events.Add(e)
}
