package drill

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"understudy/ownership"
)

// TestNothingIsLeftProperty: whatever fails for a time, in whatever order, and
// whenever the drill is given up or its daemon ends, in the end no strike and no
// bubble is left, and the guest is protected where it was.
func TestNothingIsLeftProperty(t *testing.T) {
	hosts := []ownership.HostID{home, other, witness}
	rapid.Check(t, func(rt *rapid.T) {
		s := spec(rapid.SampledFrom([]Kind{Switchover, Failover, Bubble}).Draw(rt, "kind"))
		if s.Kind == Failover {
			s.Fault = rapid.SampledFrom([]Fault{Kill, Freeze, Cut}).Draw(rt, "fault")
		}
		if rapid.Bool().Draw(rt, "no probe") {
			s.Probe = ""
		}
		sc := script{
			neverTakesOver: s.Kind == Failover && rapid.IntRange(0, 5).Draw(rt, "never") == 0,
			takesBack:      rapid.IntRange(0, 5).Draw(rt, "back") == 0,
			reboots:        rapid.IntRange(0, 5).Draw(rt, "reboots") == 0,
			loses:          rapid.IntRange(0, 5).Draw(rt, "loses") == 0,
			differs:        rapid.IntRange(0, 5).Draw(rt, "differs") == 0,
			mute:           rapid.Bool().Draw(rt, "mute"),
			held:           rapid.IntRange(0, 5).Draw(rt, "held") == 0,
			lostAnswer:     rapid.IntRange(0, 3).Draw(rt, "lost answer") == 0,
			badCheck:       rapid.IntRange(0, 3).Draw(rt, "bad check") == 0,
			bubbleFails:    rapid.IntRange(0, 3).Draw(rt, "bubble fails") == 0,
			bubbleStays:    rapid.IntRange(0, 5).Draw(rt, "bubble stays"),
			refusals:       rapid.IntRange(0, 2).Draw(rt, "refusals"),
			syncTakes:      time.Duration(rapid.IntRange(1, 30).Draw(rt, "sync")) * time.Second,
			lostAt:         map[ownership.HostID][]outage{},
		}
		for range rapid.IntRange(0, 3).Draw(rt, "outages") {
			h := rapid.SampledFrom(hosts).Draw(rt, "host")
			from := time.Duration(rapid.IntRange(0, 20000).Draw(rt, "from")) * time.Millisecond
			sc.lostAt[h] = append(sc.lostAt[h], outage{from, from + time.Duration(rapid.IntRange(1, 15000).Draw(rt, "for"))*time.Millisecond})
		}
		end := rapid.SampledFrom([]string{"runs", "aborted", "daemon ends"}).Draw(rt, "end")
		at := time.Duration(rapid.IntRange(0, 25000).Draw(rt, "at")) * time.Millisecond
		var wrong string
		synctest.Test(t, func(t *testing.T) { wrong = play(t, s, sc, end, at) })
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

// play runs a drill and says what is wrong afterwards.
func play(t *testing.T, s Spec, sc script, end string, at time.Duration) string {
	w := newWorld(sc)
	r := withEnd(t.Context(), s, w, end, at)
	if end == "daemon ends" && r.State == Interrupted {
		time.Sleep(5 * time.Second)
		r = Clean(t.Context(), r, w, nil)
	}
	time.Sleep(time.Minute) // what fails for a time is over, and the guest is synchronised
	left := w.leftOver()
	if left != "" || len(r.Left) > 0 {
		return fmt.Sprintf("left over: %s; the report says %q\n%s (%s)\n%s", left, r.Left, r.State, r.Why, tellAll(r))
	}
	if !r.State.Over() {
		return "the drill is not over: " + string(r.State)
	}
	broken := sc.takesBack || sc.neverTakesOver || sc.loses || sc.differs || sc.held || sc.badCheck
	if r.State == Held && broken && s.Kind == Failover {
		return "it held, and could not have:\n" + tellAll(r)
	}
	return ""
}
