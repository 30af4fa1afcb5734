package backup

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
)

// calls notes the order in which disks and machine are called.
type calls struct {
	noDisks
	hypervisor.Standby
	all    []string
	refuse error // of Activate
}

func (c *calls) SetFiller(func(epoch.GFN, uint64) error) { c.all = append(c.all, "filler") }
func (c *calls) Own(epoch.Generation)                    { c.all = append(c.all, "own") }
func (c *calls) Activate(context.Context, func(epoch.DiskID, uint64, uint32) error) error {
	c.all = append(c.all, "activate")
	return c.refuse
}
func (c *calls) Run(context.Context) (hypervisor.Guest, error) {
	c.all = append(c.all, "run")
	return nil, nil
}

// TestTheDisksAreOwnedBeforeTheyAreActivated: what Own finds kept from a
// generation before it, it drops; so the writes of committed epochs, which
// Activate releases, must come after it. And no guest runs before its disks.
func TestTheDisksAreOwnedBeforeTheyAreActivated(t *testing.T) {
	for _, row := range []struct {
		name   string
		refuse error
		want   []string
	}{
		{"a takeover", nil, []string{"filler", "own", "activate", "run"}},
		{"a store that another host holds", errors.New("locked"), []string{"filler", "own", "activate"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := &calls{refuse: row.refuse}
			state := ownership.Guest{Generation: 3, Revision: 5, Owner: "b", Phase: ownership.PhaseActivating, Previous: "a", Desired: ownership.Running}
			b := New(DefaultConfig("web", "b", time.Second, imagePages*epoch.PageSize), Deps{Disks: c, Log: stillLog{state},
				Clock: clock.Boot{}, Slog: slog.New(slog.DiscardHandler), State: state})
			b.standby = c
			b.core.asking, b.core.granted, b.core.grant, b.core.machine = true, true, state.Generation, machineLoading
			b.step(t.Context(), Loaded{})
			activated := (<-b.events).(Activated)
			if !errors.Is(activated.Err, row.refuse) {
				t.Errorf("got %v, want %v", activated.Err, row.refuse)
			}
			b.step(t.Context(), activated)
			if !slices.Equal(c.all, row.want) {
				t.Errorf("calls %q, want %q", c.all, row.want)
			}
		})
	}
}
