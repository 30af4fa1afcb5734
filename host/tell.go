package host

// This file tells what happens to the guests, for the record (package events): the
// manager's own part, and what the ownership log says. Primary and backup tell
// theirs.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy/backup"
	"understudy/clock"
	"understudy/events"
	"understudy/ownership"
	"understudy/primary"
)

// Events takes what happened. Add does not wait.
type Events interface {
	Add(e events.Event)
}

// sayings are what the record was told last. The manager's goroutine owns it, but for
// read.
type sayings struct {
	role         string
	roleSince    clock.Instant
	problem      string
	problemSince clock.Instant

	read  chan struct{} // closed when the log was read for the first time
	first sync.Once
}

func (m *manager) tell(e events.Event) {
	if to := m.host.cfg.Events; to != nil {
		e.Guest = m.Name
		to.Add(e)
	}
}

// tellRole says that this host plays another part.
func (m *manager) tellRole(role string) {
	if m.host.cfg.Events == nil || role == m.said.role {
		return
	}
	now := m.host.cfg.Clock.Now()
	e := events.Event{Kind: events.KindRoleChanged, Peer: m.settings.Load().Peer,
		Change: events.Change{From: m.said.role, To: role}, Text: fmt.Sprintf("this host's part is %s", role)}
	if m.said.role != "" {
		e.Duration = now.Sub(m.said.roleSince)
		e.Text += ", was " + m.said.role
	}
	m.said.role, m.said.roleSince = role, now
	m.tell(e)
}

// tellProblem says what is in the way, once, and when nothing is any more.
func (m *manager) tellProblem(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if m.host.cfg.Events == nil || text == m.said.problem || errors.Is(err, context.Canceled) {
		return
	}
	now := m.host.cfg.Clock.Now()
	if m.said.problem == "" {
		m.said.problemSince = now
	}
	m.said.problem = text
	if text != "" {
		m.tell(events.Event{Kind: events.KindProblem, Text: text})
		return
	}
	stood := now.Sub(m.said.problemSince)
	m.tell(events.Event{Kind: events.KindProblemOver, Duration: stood, Text: fmt.Sprintf("what was in the way has been overcome after %v", events.About(stood))})
}

// tellApplied says what the log has recorded of a proposal of the manager's. A
// start has more than one meaning: whoever proposes it says which.
func (m *manager) tellApplied(c ownership.Command, now ownership.Guest) {
	e := events.Event{Generation: now.Generation, Peer: m.settings.Load().Peer}
	switch c.Kind {
	case ownership.Adopt:
		e.Kind, e.Text = events.KindAdopted, "the guest that a former daemon left running goes on"
	case ownership.Surrender:
		e.Kind, e.Reason, e.Peer, e.Epoch = events.KindSurrendered, events.ReasonGuestLost, c.Backup.Host, c.Backup.Epoch
		e.Text = fmt.Sprintf("the guest is gone here: it is given to %s", c.Backup.Host)
	case ownership.Return:
		e.Kind, e.Peer = events.KindReturned, now.Owner
		e.Text = fmt.Sprintf("the guest could not be run here, and is given back to %s", now.Owner)
	case ownership.Reclaim:
		e.Kind, e.Text = events.KindTakenBack, "the guest was not taken over, and is taken back"
	case ownership.Stop:
		e.Kind, e.Text = events.KindStopped, "the guest could not go on from its checkpoint file, and stays stopped"
	default:
		return
	}
	m.tell(e)
}

// tellBegun says that a new life of the guest has begun.
func (m *manager) tellBegun(kind events.Kind, now ownership.Guest, took time.Duration, text string) {
	m.tell(events.Event{Kind: kind, Generation: now.Generation, Duration: took, Text: text})
}

// tellFirstOutput lets the gate say when the first frame leaves after a takeover.
func (m *manager) tellFirstOutput(state ownership.Guest) {
	if m.host.cfg.Events == nil {
		return
	}
	ran := m.host.cfg.Clock.Now()
	m.Gate.OnFirst(func() {
		took := m.host.cfg.Clock.Now().Sub(ran)
		m.tell(events.Event{Kind: events.KindFirstOutput, Generation: state.Generation, Peer: m.settings.Load().Peer, Duration: took,
			Text: fmt.Sprintf("the guest is heard again, %v after it ran here", events.About(took))})
	})
}

// tellOwners follows the ownership log. What it said before it was read for the
// first time here is of the past.
func (m *manager) tellOwners(ctx context.Context) {
	select {
	case <-m.said.read:
	case <-ctx.Done():
		return
	}
	m.mu.Lock()
	was := m.state
	m.mu.Unlock()
	for now := range m.host.cfg.Log.Watch(ctx, m.Name) {
		if now.Revision <= was.Revision {
			continue
		}
		if now.Generation != was.Generation {
			m.tell(events.Event{Kind: events.KindOwnerChanged, Generation: now.Generation, Change: events.Change{From: string(was.Owner), To: string(now.Owner)},
				Text: fmt.Sprintf("the log names %s the owner, in generation %d", now.Owner, now.Generation)})
		}
		was = now
	}
}

// primaryEvents and backupEvents keep no record from looking like one that is nil.
func (m *manager) primaryEvents() primary.Events {
	if m.host.cfg.Events == nil {
		return nil
	}
	return m.host.cfg.Events
}

func (m *manager) backupEvents() backup.Events {
	if m.host.cfg.Events == nil {
		return nil
	}
	return m.host.cfg.Events
}
