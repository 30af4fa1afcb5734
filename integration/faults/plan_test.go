package main

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/config"
	"understudy/crashpoint"
	"understudy/ownership"
)

// TestPromises: one failure is survived by itself, whatever it is; of two it
// depends on what is left.
func TestPromises(t *testing.T) {
	for _, c := range []struct {
		cells string // a pattern
		mode  config.DiskMode
		want  promise
	}{
		// One failure of whoever, at any step.
		{"^(protected: .*|any time) / (kill (owner|backup|witness).*|(freeze|cut) .*|stall)$", config.Replicated, mustGoOn},
		{"^(protected: .*|any time) / (kill (owner|backup|witness).*|(freeze|cut) .*|stall)$", config.Shared, mustGoOn},
		{"^any time / (no room|EIO|ENOSPC|torn|short|slow|backup|stranger with|owner's disk fails)", config.Replicated, mustGoOn},
		{"/ kill both$", config.Replicated, mayWait},
		// A stalled step is no failure.
		{"^(resync|backup lost|switchover|owner lost|owner back at once|adoption|owner cut off|standby does not load): .* / stall$", config.Replicated, mustGoOn},
		// While the guest changes hands, one of the hosts may fail.
		{"^switchover: .* / (kill|freeze|cut) (owner|witness)", config.Replicated, mustGoOn},
		{"^switchover: .* / (kill|freeze|cut) backup", config.Replicated, mustGoOn},
		{"^switchover: (surrender-proposed|takeover-asked) / (kill|freeze|cut) backup", config.Shared, mustGoOn},
		{"^switchover: (loaded|granted|disks-activated|running|activated-proposed) / (kill backup|kill backup's daemon|freeze backup|cut backup)$", config.Shared, mayWait},
		// A second failure takes the last copy, or the majority.
		{"^owner lost: .* / (kill backup|kill backup's daemon|freeze backup|cut backup|kill witness)$", config.Replicated, mayWait},
		{"^owner lost: .* / (kill|freeze|cut) owner", config.Replicated, mustGoOn},
		{"^backup lost: .* / (kill (owner|witness).*|(freeze|cut) owner)$", config.Replicated, mayWait},
		{"^backup lost: .* / (kill|freeze|cut) backup", config.Replicated, mustGoOn},
		{"^resync: .* / (kill|freeze|cut) owner", config.Replicated, mayWait},
		{"^resync: .* / (kill (backup|witness)|(freeze|cut) backup)", config.Replicated, mustGoOn},
		{"^owner cut off: .* / (kill|freeze|cut) (backup|backup's daemon|witness)$", config.Replicated, mayWait},
		{"^owner cut off: .* / (kill|freeze|cut) owner", config.Replicated, mustGoOn},
		{"^adoption: .* / (kill|freeze|cut) (owner|witness)", config.Replicated, mayWait},
		{"^standby does not load: .* / (kill|freeze|cut) owner", config.Replicated, mayWait},
		{"^standby does not load: .* / (kill backup|kill witness|freeze backup|cut backup)$", config.Replicated, mustGoOn},
		{"^standby does not load: .* / (kill backup|freeze backup|cut backup)$", config.Shared, mayWait},
		// It was asked to be off.
		{"^(stop|start): ", config.Replicated, mayWait},
	} {
		found := cells(regexp.MustCompile(c.cells), c.mode, true)
		if len(found) == 0 {
			t.Errorf("no cell fits %q", c.cells)
		}
		for _, x := range found {
			if got := x.promise(c.mode); got != c.want {
				t.Errorf("%s, %s disk: %q, want %q", x, c.mode, got, c.want)
			}
		}
	}
}

// TestEveryPromiseIsExplained: who promises says how long it may take, but for
// hosts that were started anew on the way.
func TestEveryPromiseIsExplained(t *testing.T) {
	lease := config.Duration(time.Second)
	c := config.Config{Lease: lease, Heartbeat: lease / 5, Guests: []config.Guest{{Name: web, Host: "a", Backup: "b",
		Protection: config.Protection{DetachAfter: lease}}}}
	at := timesOf(&c, web)
	if at.Lease != time.Second || at.Detach != time.Second || at.Notice != 750*time.Millisecond || at.Reclaim != 2*time.Second || at.Ask != 250*time.Millisecond {
		t.Errorf("the settings are %+v", at)
	}
	if at.Lease < ownership.MinLease || at.Drift <= 0 || at.Elect <= 0 || at.Elect >= at.Lease {
		t.Errorf("the settings are %+v", at)
	}
	for _, mode := range []config.DiskMode{config.Replicated, config.Shared} {
		for _, x := range cells(regexp.MustCompile(""), mode, true) {
			e, ok := x.explain(at, mode)
			if want := x.promise(mode) == mustGoOn && !x.situation.restarts; ok != want {
				t.Errorf("%s, %s disk: explained: %v, want %v", x, mode, ok, want)
			}
			if ok && e.Why == "" {
				t.Errorf("%s: explained by nothing", x)
			}
		}
	}
	for _, c := range []struct {
		cell string
		want time.Duration
	}{
		{"protected: captured / kill owner", at.Lease + at.Drift + resend},
		{"any time / kill backup's daemon", at.Refused},
		{"any time / backup's certificate expired", at.Detach},
		{"any time / cut backup", at.Notice + at.Detach},
		{"any time / kill owner's QEMU", at.Renew + resend},
		{"any time / kill witness", 0},
		{"any time / EIO on owner's writes", 0},
		{"any time / EIO on owner's reads", 2 * at.Lease},
		{"protected: captured / cut owner, in", at.Notice + at.Ask + at.Lease + at.Drift + resend},
		{"switchover: takeover-asked / kill backup", at.Reclaim + at.Renew},
		{"switchover: granted / freeze backup", 2*at.Lease + at.Drift},
	} {
		found := cells(regexp.MustCompile("^"+regexp.QuoteMeta(c.cell)+"$"), config.Replicated, true)
		if len(found) != 1 {
			t.Fatalf("%d cells are called %q", len(found), c.cell)
		}
		if e, _ := found[0].explain(at, config.Replicated); e.Most != c.want {
			t.Errorf("%s: at most %v by %q, want %v", c.cell, e.Most, e.Why, c.want)
		}
	}
}

// TestEveryPointIsPlanned: no point of the protocol is without a way to it.
func TestEveryPointIsPlanned(t *testing.T) {
	if m := missing(); len(m) > 0 {
		t.Errorf("no situation leads to %v", m)
	}
	seen := map[string]bool{}
	for _, c := range cells(regexp.MustCompile(""), config.Replicated, true) {
		if seen[c.String()] {
			t.Errorf("cell %q is there twice", c)
		}
		seen[c.String()] = true
	}
}

// TestGranted: the points at which the log may name a taker are those of the
// taker, in their order.
func TestGranted(t *testing.T) {
	for _, s := range situations {
		for _, p := range s.points {
			c := cell{&s, p, &faults[0]}
			if c.granted() && !slices.Contains([]role{standby}, s.on) {
				t.Errorf("%s is granted, on the %s", strings.TrimSpace(c.row()), s.on)
			}
		}
	}
	if (cell{point: crashpoint.TakeoverAsked}).granted() {
		t.Error("granted before it is asked")
	}
}
