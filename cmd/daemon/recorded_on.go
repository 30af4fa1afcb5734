//go:build crashpoints

package daemon

// This file makes a daemon built for tests write histories (package history):
// around the gate, the ownership log and the session, none of which know of it.

import (
	"context"
	"errors"
	"path/filepath"

	"understudy/clock"
	"understudy/config"
	past "understudy/crashpoint/history"
	"understudy/egress"
	"understudy/epoch"
	"understudy/host"
	"understudy/ownership"
	"understudy/protocol"
)

// recorder writes the history of one guest, or none without Options.Histories.
type recorder struct{ *past.Writer }

func (o Options) recorder(self config.Host, g config.Guest) (recorder, error) {
	if o.Histories == "" {
		return recorder{}, nil
	}
	w, err := past.Create(filepath.Join(o.Histories, g.Name+"."+self.Name+".history"), self.Name, g.Name, clock.Boot{})
	return recorder{w}, err
}

func (r recorder) gate(i int) egress.Recorder {
	if r.Writer == nil {
		return nil
	}
	return r.Gate(i)
}

// recordedSession notes what the backup says.
type recordedSession struct {
	protocol.Session
	recorder
}

func (r recorder) session(s protocol.Session) protocol.Session {
	if r.Writer == nil {
		return s
	}
	return recordedSession{s, r}
}

// Receive notes welcomes and acknowledgements.
func (s recordedSession) Receive(ctx context.Context) (protocol.Message, error) {
	m, err := s.Session.Receive(ctx)
	if err != nil {
		return m, err
	}
	switch m.Kind {
	case protocol.KindWelcome:
		if w, err := protocol.ParseWelcome(m.Payload); err == nil {
			s.Write(past.Line{What: past.Welcome, Image: w.At.Image, Epoch: w.At.Number})
		}
	case protocol.KindAck:
		if a, err := protocol.ParseAck(m.Payload); err == nil {
			s.Write(past.Line{What: past.Acked, Image: a.At.Image, Epoch: a.At.Number})
		}
	}
	return m, nil
}

// recordedLog notes what the ownership log says, before anyone acts upon it.
type recordedLog struct {
	host.Ownership
	guests map[string]recorder
}

func (o Options) recorded(log host.Ownership, guests map[string]recorder) host.Ownership {
	if o.Histories == "" {
		return log
	}
	return recordedLog{log, guests}
}

func (l recordedLog) note(guest string, s ownership.Guest) {
	l.guests[guest].Write(past.Line{What: past.Log, Generation: s.Generation, Owner: s.Owner, Phase: s.Phase, InSync: s.InSync, Revision: s.Revision})
}

// Renew notes a lease that was granted.
func (l recordedLog) Renew(ctx context.Context, guest string, g epoch.Generation) (clock.Instant, error) {
	until, err := l.Ownership.Renew(ctx, guest, g)
	if err == nil {
		l.guests[guest].Write(past.Line{What: past.Renewed, Generation: g, Until: until})
	}
	return until, err
}

// Propose notes the state after it: a refusal tells of one, too, and may be the
// first to do so.
func (l recordedLog) Propose(ctx context.Context, c ownership.Command) (ownership.Guest, error) {
	s, err := l.Ownership.Propose(ctx, c)
	var refused *ownership.Refused
	switch {
	case err == nil:
		l.note(c.Guest, s)
	case errors.As(err, &refused):
		l.note(c.Guest, refused.State)
	}
	return s, err
}

// Read notes the state.
func (l recordedLog) Read(ctx context.Context, guest string) (ownership.Guest, error) {
	s, err := l.Ownership.Read(ctx, guest)
	if err == nil {
		l.note(guest, s)
	}
	return s, err
}

// Watch notes every state.
func (l recordedLog) Watch(ctx context.Context, guest string) <-chan ownership.Guest {
	states := make(chan ownership.Guest)
	go func() { // ends with ctx, as the watch behind it does
		defer close(states)
		for s := range l.Ownership.Watch(ctx, guest) {
			l.note(guest, s)
			select {
			case states <- s:
			case <-ctx.Done():
				return
			}
		}
	}()
	return states
}
