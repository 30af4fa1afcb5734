package host

// This file is about hosts that are known to be off.
//
//	a takeover is asked for and not done ── fencing.Core ──> the configuration's
//	command (Config.Fence) ──> Fence of this guest
//	an operator has seen it ── FenceConfirm ──> Fence of every guest of that host
//	this host was fenced, and holds no guest ──> Unfence
//
// The log is read before anybody looks whether the host is off, and Fence holds
// only in the generation that was read: who starts there since begins another.

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"understudy/events"
	"understudy/fencing"
	"understudy/ownership"
)

// Fences is what this host knows of hosts that are off.
type Fences struct {
	Host   ownership.HostID `json:"host"` // who answers
	Guests []FencedGuest    `json:"guests"`
}

// FencedGuest is a guest, and the host of it that the log knows to be off.
type FencedGuest struct {
	Guest  string           `json:"guest"`
	Owner  ownership.HostID `json:"owner"`
	Fenced ownership.HostID `json:"fenced"` // "" if none is
	Error  string           `json:"error,omitempty"`
}

// Fences lists the guests of this host with what the log says.
func (h *Host) Fences() Fences {
	f := Fences{Host: h.cfg.Self, Guests: []FencedGuest{}}
	for _, g := range h.Status() {
		f.Guests = append(f.Guests, FencedGuest{Guest: g.Name, Owner: g.Log.Owner, Fenced: g.Log.Fenced})
	}
	return f
}

// FenceConfirm takes an operator's word that a host is off, for every guest of
// this host that it owns, or has owned until a takeover that is under way.
func (h *Host) FenceConfirm(ctx context.Context, target ownership.HostID) (Fences, error) {
	if target == h.cfg.Self {
		return Fences{}, fmt.Errorf("host %s answers, so it is not off: ask another host", target)
	}
	ctx, cancel := context.WithTimeout(ctx, switchTime)
	defer cancel()
	f := Fences{Host: h.cfg.Self, Guests: []FencedGuest{}}
	done := 0
	for _, m := range h.all() {
		state, err := h.cfg.Log.Read(ctx, m.Name)
		if err != nil {
			return f, fmt.Errorf("read the ownership log: %w", err)
		}
		if state.Owner != target && state.Previous != target {
			continue
		}
		m.tell(events.Event{Kind: events.KindFenceAsked, Peer: target, Reason: events.ReasonOperator,
			Text: fmt.Sprintf("an operator has seen that %s is off", target)})
		one := FencedGuest{Guest: m.Name, Owner: state.Owner, Fenced: target}
		if err := m.fenced(ctx, state, target, events.ReasonOperator, 0); err != nil {
			one.Fenced, one.Error = "", err.Error()
		} else {
			done++
		}
		f.Guests = append(f.Guests, one)
	}
	switch {
	case len(f.Guests) == 0:
		return f, fmt.Errorf("host %s owns none of the guests of host %s: nothing waits for it", target, h.cfg.Self)
	case done == 0:
		return f, errors.New(f.Guests[0].Error)
	}
	return f, nil
}

// all returns the managers by name.
func (h *Host) all() []*manager {
	h.mu.RLock()
	defer h.mu.RUnlock()
	all := make([]*manager, 0, len(h.managers))
	for _, m := range h.managers {
		all = append(all, m)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all
}

// fenced records that target is off, if the guest is still in the generation of
// state, which was read before anybody looked.
func (m *manager) fenced(ctx context.Context, state ownership.Guest, target ownership.HostID, why events.Reason, took time.Duration) error {
	generation := state.Generation
	for {
		if state.Fenced == target {
			return nil
		}
		c := m.command(state, ownership.Fence, ownership.Backup{})
		c.Target = target
		next, err := m.host.cfg.Log.Propose(ctx, c)
		refused := (*ownership.Refused)(nil)
		switch {
		case err == nil:
			m.tell(events.Event{Kind: events.KindFenced, Generation: next.Generation, Peer: target, Reason: why, Duration: took,
				Text: fmt.Sprintf("the log knows that %s is off: nobody waits for its lease, nor for its locks", target)})
			return nil
		case errors.As(err, &refused) && refused.State.Generation == generation && refused.State.Revision > state.Revision:
			state = refused.State // something else was recorded meanwhile, and nobody began anew
			continue
		}
		err = fmt.Errorf("record that %s is off: %w", target, err)
		m.tell(events.Event{Kind: events.KindFenceFailed, Peer: target, Reason: why, Text: err.Error()})
		return err
	}
}

// lookEvery is how often it is looked whether a takeover stands still.
const lookEvery = 200 * time.Millisecond

// fenceSilent has the host fenced from which a takeover is asked for here, and is
// not done in time. It ends with ctx.
func (m *manager) fenceSilent(ctx context.Context) {
	if m.host.cfg.Fence == nil {
		return
	}
	var core fencing.Core
	for {
		if sleep(ctx, lookEvery); ctx.Err() != nil {
			return
		}
		target, asked := m.waitsFor()
		after, has := m.host.cfg.FenceAfter(target)
		if !core.Step(m.host.cfg.Clock.Now(), string(target), asked && has, after) {
			continue
		}
		m.tell(events.Event{Kind: events.KindFenceAsked, Peer: target, Reason: events.ReasonPolicy,
			Text: fmt.Sprintf("the takeover from %s is not done after %v: %s is fenced", target, after, target)})
		began := m.host.cfg.Clock.Now()
		state, err := m.host.cfg.Log.Read(ctx, m.Name)
		if err == nil {
			err = m.host.cfg.Fence(ctx, target)
		}
		if err != nil {
			m.tell(events.Event{Kind: events.KindFenceFailed, Peer: target, Reason: events.ReasonPolicy, Text: err.Error()})
		} else {
			err = m.fenced(ctx, state, target, events.ReasonPolicy, m.host.cfg.Clock.Now().Sub(began))
		}
		if err != nil && ctx.Err() == nil {
			m.slog.Warn("the host is not fenced: tried again later", "host", target, "err", err, "after", fencing.Retry)
			core.Failed(m.host.cfg.Clock.Now())
		}
	}
}

// waitsFor returns the host from which a takeover is asked for here, or granted
// and not done.
func (m *manager) waitsFor() (target ownership.HostID, asked bool) {
	self := m.host.cfg.Self
	m.mu.Lock()
	b := m.backup
	m.mu.Unlock()
	if b == nil || b.Status().State != "asking" {
		return "", false
	}
	log, ok := m.host.applied(m.Name)
	switch {
	case !ok || log.Phase == ownership.PhaseSurrendered:
		return "", false
	case log.Owner == self:
		target = log.Previous
	default:
		target = log.Owner
	}
	return target, target != "" && target != log.Fenced
}

// unfence says that this host is back: nothing of the guest runs here.
func (m *manager) unfence(ctx context.Context, state ownership.Guest) error {
	next, err := m.propose(ctx, state, ownership.Unfence, ownership.Backup{})
	if err == nil {
		m.tell(events.Event{Kind: events.KindUnfenced, Generation: next.Generation, Text: "this host was fenced, and is back"})
	}
	return err
}
