package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/integration/onevoter"
	"understudy/ownership"
)

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		args string
		want func(options) bool
		fail string
	}{
		{"", func(o options) bool {
			return o.rounds == 100 && o.repeat == 4 && slices.Equal(o.guests, []int{512, 4096}) && slices.Equal(o.pages, []int{0, 1000, 5000, 20000}) && o.wants(sectionSpeed)
		}, ""},
		{"--quick", func(o options) bool { return o.rounds == 20 && o.repeat == 1 && slices.Equal(o.guests, []int{512}) }, ""},
		{"--quick --rounds 7 --guests 256,1024", func(o options) bool { return o.rounds == 7 && slices.Equal(o.guests, []int{256, 1024}) }, ""},
		{"--sections pause,wire", func(o options) bool { return o.wants(sectionPause) && !o.wants(sectionLatency) }, ""},
		{"--sections pause,disk", nil, `"disk"`},
		{"--pages 1000,many", nil, `"many"`},
		{"--pages 40000", nil, `"40000"`},
		{"--guests 64", nil, `"64"`},
		{"--rounds -1", nil, "1 or more"},
		{"--output xml", nil, `"xml"`},
		{"all", nil, `"all"`},
	} {
		o, err := parseOptions(strings.Fields(c.args), &bytes.Buffer{})
		switch {
		case c.fail == "" && (err != nil || !c.want(o)):
			t.Errorf("%q: %+v, %v", c.args, o, err)
		case c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)):
			t.Errorf("%q: error %v does not name %s", c.args, err, c.fail)
		}
	}
	var out bytes.Buffer
	if _, err := parseOptions([]string{"--help"}, &out); !errors.Is(err, flag.ErrHelp) || !strings.Contains(out.String(), "make guest") {
		t.Errorf("help: %v, %s", err, out.String())
	}
}

// Bursts add up to what was asked for, or the report would be about less.
func TestEveryScenarioFitsItsWorkingSet(t *testing.T) {
	for _, pages := range []int{1000, 5000, 20000, areaMiB << 20 / pageBytes} {
		if workingSet(pages)<<20/pageBytes < pages {
			t.Errorf("%d pages do not fit into %d MiB", pages, workingSet(pages))
		}
	}
}

// The log of one voter grants leases, applies commands and tells of each.
func TestGrants(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g := onevoter.New(hostA, leaseTime)
	states := g.Watch(ctx, guestName)
	first := <-states
	if first.Owner != hostA || first.Generation != 1 {
		t.Fatalf("the log begins with %+v", first)
	}
	if until, err := g.Renew(ctx, guestName, 1); err != nil || until == 0 {
		t.Fatalf("lease until %v, %v", until, err)
	}
	b := ownership.Backup{Host: hostB, Image: epoch.NewIncarnation(), Epoch: 1}
	cmd := ownership.Command{ID: ownership.NewCommandID(), Guest: guestName, Kind: ownership.InSync, Host: hostA, Generation: 1, Revision: 1, Backup: b}
	if _, err := g.Propose(ctx, cmd); err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-states:
		if !s.InSync || s.Backup != b {
			t.Errorf("after InSync: %+v", s)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody was told of InSync")
	}
	cancel()
	for range states { //nolint:revive // until its goroutine has ended
	}
}
