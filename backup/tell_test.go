package backup

// What the record is told at the side that stands by; the way of a takeover that
// succeeds is told by package host's tests.

import (
	"errors"
	"slices"
	"testing"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/events"
	"understudy/ownership"
)

type notes struct{ all []events.Event }

func (n *notes) Add(e events.Event) { n.all = append(n.all, e) }

func (n *notes) kinds() (all []events.Kind) {
	for _, e := range n.all {
		all = append(all, e.Kind)
	}
	return all
}

// TestATakeoverIsToldWithItsEnd plays what the log answers, and what happens to
// the core meanwhile.
func TestATakeoverIsToldWithItsEnd(t *testing.T) {
	image := epoch.NewIncarnation()
	state := ownership.Guest{Generation: 3, Revision: 9, Owner: "a", Phase: ownership.PhaseActive, Desired: ownership.Running,
		InSync: true, Backup: ownership.Backup{Host: "b", Image: image, Epoch: 5}}
	ask := ownership.Command{ID: ownership.NewCommandID(), Guest: "web", Kind: ownership.Takeover, Host: "b", Generation: 3, Revision: 9,
		Backup: ownership.Backup{Host: "b", Image: image, Epoch: 7}}
	granted, err := ownership.Apply(state, ask)
	if err != nil {
		t.Fatal(err)
	}
	back := granted
	back.Generation, back.Revision, back.Owner, back.Phase = 5, 11, "a", ownership.PhaseActive
	for _, c := range []struct {
		name  string
		story func(b *Backup)
		want  []events.Kind
	}{
		{"refused, and asked anew", func(b *Backup) {
			b.core.asking = false
			b.tell(Proposed{Command: ask, Err: &ownership.Refused{Command: ask, Reason: "another", State: state}}, false)
			b.core.asking = true
			b.tellProposal(ask)
		}, []events.Kind{events.KindTakeoverAsked, events.KindTakeoverRefused, events.KindTakeoverAsked}},
		{"no answer, and asked again", func(b *Backup) {
			b.tell(Proposed{Command: ask, Err: errors.New("no answer")}, false)
			b.tellProposal(ask)
			b.core.granted, b.core.log = true, granted
			b.tell(Proposed{Command: ask, State: granted}, false)
			b.tellRunning(7)
		}, []events.Kind{events.KindTakeoverAsked, events.KindTakeoverGranted, events.KindTakeoverRunning}},
		{"given back", func(b *Backup) {
			b.core.granted, b.core.log = true, granted
			b.tell(Proposed{Command: ask, State: granted}, false)
			b.core.granted, b.core.asking, b.core.log = false, false, back
			b.tell(Proposed{Command: ownership.Command{Kind: ownership.Return}, State: back}, true)
		}, []events.Kind{events.KindTakeoverAsked, events.KindTakeoverGranted, events.KindReturned}},
		{"taken back", func(b *Backup) {
			b.core.granted, b.core.log = true, granted
			b.tell(Proposed{Command: ask, State: granted}, false)
			b.core.granted, b.core.asking, b.core.log = false, false, back
			b.tell(LogApplied{back}, true)
			b.tell(LogApplied{back}, false)
		}, []events.Kind{events.KindTakeoverAsked, events.KindTakeoverGranted, events.KindTakenBack}},
		{"the image is gone", func(b *Backup) {
			gone := ownership.Command{Kind: ownership.OutOfSync, Backup: ownership.Backup{Host: "b", Image: image}}
			b.tell(Proposed{Command: gone, State: state}, false) // of a former process
			b.image = image
			b.tellGivenUp(errors.New("a page cannot be rebuilt"))
			b.tell(Proposed{Command: gone, State: state}, false) // is told already
		}, []events.Kind{events.KindTakeoverAsked, events.KindImageGivenUp, events.KindImageGivenUp}},
	} {
		n := &notes{}
		b := &Backup{cfg: DefaultConfig("web", "b", time.Second, 1<<20), Deps: Deps{Events: n, Clock: clock.Boot{}}, core: NewCore(Config{Self: "b"}, state)}
		b.core.asking, b.core.lostAt = true, b.Clock.Now().Add(-time.Second)
		b.tellProposal(ask)
		c.story(b)
		if got := n.kinds(); !slices.Equal(got, c.want) {
			t.Errorf("%s: told %v, want %v", c.name, got, c.want)
		}
		first := n.all[0]
		if first.Guest != "web" || first.Peer != "a" || first.Epoch != 7 || first.Generation != 3 || first.Reason != events.ReasonOwnerSilent || first.Duration < time.Second {
			t.Errorf("%s: told %+v", c.name, first)
		}
		for _, e := range n.all[1:] {
			if e.Peer != "a" || e.Text == "" {
				t.Errorf("%s: told %+v", c.name, e)
			}
		}
	}
}

// TestASurrenderIsTakenWithoutSilence: a switchover, or a guest that died there.
func TestASurrenderIsTakenWithoutSilence(t *testing.T) {
	n := &notes{}
	b := &Backup{Deps: Deps{Events: n, Clock: clock.Boot{}}, core: NewCore(Config{}, ownership.Guest{Owner: "a", Phase: ownership.PhaseSurrendered})}
	b.tellProposal(ownership.Command{Kind: ownership.Return})
	b.tellProposal(ownership.Command{Kind: ownership.Takeover})
	if len(n.all) != 1 || n.all[0].Reason != events.ReasonSurrendered || n.all[0].Duration != 0 {
		t.Errorf("told %+v", n.all)
	}
}
