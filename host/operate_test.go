package host

import (
	"context"
	"errors"
	"strings"
	"testing"

	"understudy/ownership"
)

// told is an ownership log that says these states, one after the other, and
// nothing more.
type told struct {
	Ownership
	states []ownership.Guest
}

func (l told) Watch(ctx context.Context, _ string) <-chan ownership.Guest {
	c := make(chan ownership.Guest)
	go func() {
		defer close(c)
		for _, s := range l.states {
			select {
			case c <- s:
			case <-ctx.Done():
				return
			}
		}
		<-ctx.Done()
	}()
	return c
}

// Read says the last of them.
func (l told) Read(context.Context, string) (ownership.Guest, error) {
	return l.states[len(l.states)-1], nil
}

// TestASwitchoverComesToAnEnd: an operator is told the outcome as soon as the
// log has it, also when there is none to wait for.
func TestASwitchoverComesToAnEnd(t *testing.T) {
	before := ownership.Guest{Generation: 4, Revision: 10, Owner: "alpha", Phase: ownership.PhaseActive, Desired: ownership.Running,
		InSync: true, Backup: ownership.Backup{Host: "beta", Epoch: 1}}
	then := func(g ownership.Guest, change func(g *ownership.Guest)) ownership.Guest {
		g.Revision++
		change(&g)
		return g
	}
	surrendered := then(before, func(g *ownership.Guest) { g.Phase = ownership.PhaseSurrendered })
	activating := then(surrendered, func(g *ownership.Guest) {
		g.Generation, g.Owner, g.Previous, g.Phase, g.InSync = 5, "beta", "alpha", ownership.PhaseActivating, false
	})
	for _, c := range []struct {
		name   string
		states []ownership.Guest
		want   string // of the error; "" for success
	}{
		{"handed over", []ownership.Guest{before, surrendered, activating,
			then(activating, func(g *ownership.Guest) { g.Phase = ownership.PhaseActive })}, ""},
		{"nobody comes", []ownership.Guest{before, surrendered,
			then(surrendered, func(g *ownership.Guest) { g.Generation, g.Phase, g.InSync = 5, ownership.PhaseActive, false })}, "taken back"},
		{"given back", []ownership.Guest{before, surrendered, activating,
			then(activating, func(g *ownership.Guest) { g.Generation, g.Owner, g.Phase = 6, "alpha", ownership.PhaseActive })}, "taken back"},
		{"the backup is lost", []ownership.Guest{before,
			then(before, func(g *ownership.Guest) { g.InSync, g.Backup = false, ownership.Backup{} })}, "is not protected"},
		{"the log was behind", []ownership.Guest{{Generation: 4, Revision: 9, Owner: "alpha", Phase: ownership.PhaseActive}, before, surrendered, activating,
			then(activating, func(g *ownership.Guest) { g.Phase = ownership.PhaseActive })}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &manager{Guest: Guest{Name: "web"}, host: &Host{cfg: Config{Log: told{states: c.states}}}}
			got, err := m.await(t.Context(), "the switchover", nil, func(s ownership.Guest) (bool, error) { return switched(before, s) })
			switch {
			case c.want == "" && (err != nil || got.Owner != "beta"):
				t.Errorf("got %+v, %v; want the guest on beta", got, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "switchover of web")):
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// TestAStopComesToAnEnd: with the guest's, or with the news that this one will not
// be.
func TestAStopComesToAnEnd(t *testing.T) {
	before := ownership.Guest{Generation: 4, Revision: 10, Owner: "alpha", Phase: ownership.PhaseActive, Desired: ownership.Running,
		InSync: true, Backup: ownership.Backup{Host: "beta", Epoch: 1}}
	then := func(g ownership.Guest, change func(g *ownership.Guest)) ownership.Guest {
		g.Revision++
		change(&g)
		return g
	}
	stopped := then(before, func(g *ownership.Guest) { g.Desired, g.InSync = ownership.Stopped, false })
	surrendered := then(before, func(g *ownership.Guest) { g.Phase = ownership.PhaseSurrendered })
	ended := make(chan struct{})
	close(ended)
	for _, c := range []struct {
		name   string
		over   <-chan struct{}
		states []ownership.Guest
		want   string // of the error; "" for success
	}{
		{"stopped", nil, []ownership.Guest{before, stopped}, ""},
		{"the backup is lost first", nil, []ownership.Guest{before, then(before, func(g *ownership.Guest) { g.InSync = false }),
			then(stopped, func(*ownership.Guest) {})}, ""},
		{"it dies and its backup goes on", nil, []ownership.Guest{before, surrendered,
			then(surrendered, func(g *ownership.Guest) { g.Generation, g.Owner, g.Phase = 5, "beta", ownership.PhaseActivating })}, "host beta"},
		{"it dies and is booted anew", nil, []ownership.Guest{before,
			then(before, func(g *ownership.Guest) { g.Generation, g.InSync = 5, false })}, "host alpha"},
		{"its primary has ended with it", ended, []ownership.Guest{before, stopped}, ""},
		{"its primary has ended without it", ended, []ownership.Guest{before}, "given up"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &manager{Guest: Guest{Name: "web"}, host: &Host{cfg: Config{Log: told{states: c.states}}}}
			got, err := m.await(t.Context(), "the stop", c.over, func(s ownership.Guest) (bool, error) { return stoppedSince(before, s) })
			switch {
			case c.want == "" && (err != nil || got.Desired != ownership.Stopped):
				t.Errorf("got %+v, %v; want it stopped", got, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "the stop of web")):
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m := &manager{Guest: Guest{Name: "web"}, host: &Host{cfg: Config{Log: told{states: []ownership.Guest{{Owner: "alpha"}}}}}}
	_, err := m.await(ctx, "the stop", nil, func(ownership.Guest) (bool, error) { cancel(); return false, nil })
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the log names alpha the owner") {
		t.Errorf("got %v, want the context's error and the log's state", err)
	}
}
