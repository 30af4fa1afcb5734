package drill

import (
	"strings"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/events"
	"understudy/ownership"
	"understudy/primary"
)

// sound is the evidence of a failover and back in which everything held.
func sound() *evidence {
	at := func(ms int, h ownership.HostID, e events.Event) recorded {
		e.Host, e.Guest = h, guest
		return recorded{e, time.Duration(ms) * time.Millisecond, time.Millisecond}
	}
	change := func(from, to ownership.HostID) events.Change {
		return events.Change{From: string(from), To: string(to)}
	}
	return &evidence{spec: spec(Failover), from: home, to: other, unread: map[ownership.HostID]string{}, struckAt: time.Second,
		before: ownership.Guest{Generation: 3, Owner: home, InSync: true, Backup: ownership.Backup{Host: other, Epoch: 5}},
		after:  ownership.Guest{Generation: 5, Owner: home, InSync: true, Backup: ownership.Backup{Host: other, Epoch: 7}},
		records: []recorded{
			at(2000, other, events.Event{Kind: events.KindOwnerChanged, Generation: 4, Change: change(home, other)}),
			at(2000, other, events.Event{Kind: events.KindTakeoverRunning, Generation: 4, Epoch: 102}),
			at(2010, other, events.Event{Kind: events.KindActivated, Generation: 4, Text: "it runs"}),
			at(2050, other, events.Event{Kind: events.KindFirstOutput, Generation: 4}),
			at(9000, home, events.Event{Kind: events.KindOwnerChanged, Generation: 5, Change: change(other, home)}),
			at(9000, home, events.Event{Kind: events.KindTakeoverRunning, Generation: 5, Epoch: 300}),
		},
		seen: watched{answers: 99, acked: map[epoch.Generation]acked{3: {101, 900 * time.Millisecond}},
			image: map[epoch.Generation]imaged{3: {102, 980 * time.Millisecond, time.Millisecond}},
			runs: map[epoch.Generation]map[ownership.HostID]span{3: {home: {0, 990 * time.Millisecond}}, 4: {other: {2100 * time.Millisecond, 8900 * time.Millisecond}},
				5: {home: {9100 * time.Millisecond, 12 * time.Second}}}},
		moved: true, returned: true, protected: true, verified: &primary.VerifyResult{Pages: 10, Identical: true}, drained: "nothing is held", drainedOK: true}
}

// TestEachGuaranteeCanFail: one thing at a time is not as it should be, and the
// guarantee that it breaks says so, with what was found.
func TestEachGuaranteeCanFail(t *testing.T) {
	add := func(e *evidence, h ownership.HostID, one events.Event) {
		one.Host, one.Guest = h, guest
		e.records = append(e.records, recorded{one, 10 * time.Second, time.Millisecond})
	}
	for _, c := range []struct {
		name    string
		change  func(*evidence)
		breaks  string
		verdict Verdict
		says    string
	}{
		{"sound", func(*evidence) {}, "", Yes, ""},
		{"a generation too many", func(e *evidence) { e.after.Generation = 6 }, "generations only rose", No, "explains 5"},
		{"the log went back", func(e *evidence) { e.after.Generation = 2 }, "generations only rose", No, "it was 3, and is 2"},
		{"a record went back", func(e *evidence) { add(e, home, events.Event{Kind: events.KindOwnerChanged, Generation: 4}) }, "generations only rose", No, "alpha recorded generation 4 after 5"},
		{"two owners in the records", func(e *evidence) { add(e, home, events.Event{Kind: events.KindActivated, Generation: 4}) }, "never two owners", No, "generation 4 is beta's"},
		{"two names in the logs", func(e *evidence) {
			add(e, witness, events.Event{Kind: events.KindOwnerChanged, Generation: 5, Change: events.Change{To: "beta"}})
		}, "never two owners", No, "has beta as its owner"},
		{"two ran at one time", func(e *evidence) { e.seen.runs[3][home] = span{0, 5 * time.Second} }, "never two owners", No, "alpha ran the guest in generation 3 under a lease 5s"},
		{"another ran in it", func(e *evidence) { e.seen.runs[3][other] = span{0, time.Second} }, "never two owners", No, "beta was seen to run"},
		{"a record cannot be read", func(e *evidence) { e.unread[home] = "silence" }, "never two owners", Unknown, "silence"},
		{"nobody took over", func(e *evidence) { e.moved, e.returned, e.after.Generation = false, false, 3 }, "the guest went on", No, "it did not"},
		{"the record lacks it", func(e *evidence) { e.records = e.records[:2]; e.returned, e.after.Generation = false, 4 }, "the guest went on", Unknown, "does not say so"},
		{"a stale image", func(e *evidence) { e.records[1].Epoch = 4; e.seen.acked = nil }, "no stale image", No, "asks for 5"},
		{"taken back", func(e *evidence) { e.seen.acked[3] = acked{103, 990 * time.Millisecond} }, "every epoch seen acknowledged", No, "LOST"},
		{"nothing was seen", func(e *evidence) { e.seen.acked = nil }, "every epoch seen acknowledged", Unknown, "not checked"},
		{"rebooted", func(e *evidence) { add(e, other, events.Event{Kind: events.KindBooted, Generation: 4, Text: "booted"}) }, "the guest was not rebooted", No, "booted"},
		{"reset itself", func(e *evidence) { add(e, other, events.Event{Kind: events.KindGuestEvent, Text: "reset"}) }, "the guest was not rebooted", No, "reset"},
		{"not protected", func(e *evidence) { e.protected = false }, "the guest is protected", No, "in sync"},
		{"memory differs", func(e *evidence) { e.verified.Identical = false }, "all memory is the same", No, "differ"},
		{"not compared", func(e *evidence) { e.verified = nil }, "all memory is the same", Unknown, "not compared"},
		{"output stays", func(e *evidence) { e.drainedOK, e.drained = false, "waited 30s" }, "held output left", No, "waited 30s"},
		{"not looked for", func(e *evidence) { e.drainedOK, e.drained = false, "" }, "held output left", Unknown, "not looked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := sound()
			c.change(e)
			found := c.breaks == ""
			for _, g := range e.guarantees() {
				if c.breaks == "" && g.Verdict != Yes {
					t.Errorf("%+v", g)
				}
				if c.breaks != "" && strings.HasPrefix(g.Name, c.breaks) {
					found = true
					if g.Verdict != c.verdict || !strings.Contains(g.Evidence, c.says) {
						t.Errorf("%+v, want %s: %s", g, c.verdict, c.says)
					}
				}
			}
			if !found {
				t.Errorf("there is no guarantee %q", c.breaks)
			}
		})
	}
}

// TestWhatABubbleMustNotDo is found in the records and in what the owner says.
func TestWhatABubbleMustNotDo(t *testing.T) {
	when := time.Second
	for name, change := range map[string]func(*evidence){
		"unprotected in the record": func(e *evidence) {
			e.records = append(e.records, recorded{Event: events.Event{Kind: events.KindUnprotected, Host: home, Guest: guest}})
		},
		"unprotected in the status": func(e *evidence) { e.seen.unprotected = &when },
		"a bubble that is there":    func(e *evidence) { e.bubble.Ended = false },
		"no bubble":                 func(e *evidence) { e.bubble = nil },
	} {
		e := sound()
		e.spec, e.records, e.moved, e.returned, e.after.Generation = spec(Bubble), nil, false, false, 3
		e.bubble = &Bubbled{Epoch: 7, Ended: true}
		for _, g := range e.guarantees() {
			if g.Verdict != Yes {
				t.Errorf("all is well, and %+v", g)
			}
		}
		change(e)
		bad := 0
		for _, g := range e.guarantees() {
			if g.Verdict != Yes {
				bad++
			}
		}
		if bad != 1 {
			t.Errorf("%s: %d guarantees notice", name, bad)
		}
	}
}

// TestWhatWasLost is said with what it was concluded from.
func TestWhatWasLost(t *testing.T) {
	e := sound()
	got := e.rpo()
	if got.Committed != 101 || got.Resumed != 102 || got.SeenBefore != 100*time.Millisecond || got.Age == nil || got.Age.Took != 20*time.Millisecond ||
		!strings.Contains(got.OutputLost, "none up to 100ms before the strike") || !strings.Contains(got.OutputLost, "not checked") {
		t.Errorf("%+v", got)
	}
	e.seen.acked[3] = acked{102, 1100 * time.Millisecond} // its own word after the strike
	if got := e.rpo(); !strings.HasPrefix(got.OutputLost, "none: the last epoch") {
		t.Errorf("%+v", got)
	}
	e.records = append([]recorded{{events.Event{Host: home, Guest: guest, Kind: events.KindSurrendered, Epoch: 102}, 0, 0}}, e.records...)
	if got := e.rpo(); !strings.HasPrefix(got.OutputLost, "none: alpha gave the guest up at epoch 102") {
		t.Errorf("%+v", got)
	}
	rto := e.rto()
	if rto.FirstOutput.Took != 1050*time.Millisecond || rto.Running.Took != time.Second || rto.FirstOutput.Error != time.Millisecond {
		t.Errorf("%+v", rto)
	}
}
