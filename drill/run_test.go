package drill

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"understudy/ownership"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func spec(kind Kind) Spec {
	s := Spec{Name: "weekly", Guest: guest, Kind: kind, Check: []string{"/bin/well"}, MaxOutage: 3 * time.Second, Probe: "192.0.2.10:22"}
	if kind == Failover {
		s.Fault = Kill
	}
	return s
}

// TestEveryOutcome tells what becomes of a drill in a cluster where something
// goes wrong, and which check or guarantee says so.
func TestEveryOutcome(t *testing.T) {
	for _, c := range []struct {
		name  string
		spec  Spec
		s     script
		state State
		fails string // the beginning of the name of what did not hold
		left  bool   // something could not be undone
	}{
		{name: "a switchover and back", spec: spec(Switchover), state: Held},
		{name: "the owner is killed", spec: spec(Failover), state: Held},
		{name: "the owner is frozen", spec: with(spec(Failover), func(s *Spec) { s.Fault = Freeze }), state: Held},
		{name: "the owner is cut off", spec: with(spec(Failover), func(s *Spec) { s.Fault = Cut }), state: Held},
		{name: "it stays there", spec: with(spec(Failover), func(s *Spec) { s.Stay = true }), state: Held},
		{name: "a bubble", spec: spec(Bubble), state: Held},
		{name: "the strike's answer is lost", spec: spec(Failover), s: script{lostAnswer: true}, state: Held},
		{name: "a guest that says nothing", spec: with(spec(Switchover), func(s *Spec) { s.Probe = "" }), s: script{mute: true}, state: Failed, fails: "outage within"},
		{name: "the backup never comes", spec: spec(Failover), s: script{neverTakesOver: true}, state: Failed, fails: "the guest went on"},
		{name: "it comes and gives the guest back", spec: spec(Failover), s: script{takesBack: true}, state: Failed, fails: "the guest went on"},
		{name: "the guest is rebooted", spec: spec(Failover), s: script{reboots: true}, state: Failed, fails: "the guest was not rebooted"},
		{name: "a second owner", spec: with(spec(Failover), func(s *Spec) { s.Fault = Freeze }), s: script{secondOwner: true}, state: Failed, fails: "never two owners"},
		{name: "an acknowledged epoch is gone", spec: spec(Failover), s: script{loses: true}, state: Failed, fails: "every epoch seen acknowledged"},
		{name: "memory differs", spec: spec(Switchover), s: script{differs: true}, state: Failed, fails: "all memory is the same"},
		{name: "held output stays", spec: spec(Switchover), s: script{held: true}, state: Failed, fails: "held output left"},
		{name: "the check fails", spec: spec(Switchover), s: script{badCheck: true}, state: Failed, fails: "check"},
		{name: "the check fails in the bubble", spec: spec(Bubble), s: script{badCheck: true}, state: Failed, fails: "check in the bubble"},
		{name: "the outage is too long", spec: with(spec(Failover), func(s *Spec) { s.MaxOutage = 500 * time.Millisecond }), state: Failed, fails: "outage within"},
		{name: "the bubble disturbs", spec: spec(Bubble), s: script{disturbs: true}, state: Failed, fails: "the primary did not notice"},
		{name: "the bubble fails", spec: spec(Bubble), s: script{bubbleFails: true, bubbleStays: 3}, state: Failed, fails: "act"},
		{name: "strikes are not wanted", spec: spec(Failover), s: script{noStrikes: true}, state: Refused},
		{name: "the witness is down", spec: spec(Switchover), s: script{lostAt: lost(witness, 0, time.Hour)}, state: Refused},
		{name: "the backup is lost for good in the middle", spec: with(spec(Switchover), func(s *Spec) { s.Patience = time.Minute }),
			s: script{lostAt: lost(home, 3*time.Second, 10*time.Hour)}, state: Failed, fails: "return", left: true},
		{name: "the strike is not undone", spec: spec(Failover), s: script{staysStruck: true}, state: Failed, fails: "return", left: true},
		{name: "the first two switchovers back are refused", spec: spec(Failover), s: script{refusals: 2}, state: Held},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(c.s)
				r := Run(t.Context(), c.spec, w, Options{ID: "a-drill"})
				if r.State != c.state {
					t.Errorf("%s (%s), want %s\n%s", r.State, r.Why, c.state, tellAll(r))
				}
				if c.fails != "" && !failed(r, c.fails) {
					t.Errorf("nothing named %q has failed:\n%s", c.fails, tellAll(r))
				}
				if c.left != (len(r.Left) > 0) {
					t.Errorf("left over: %q", r.Left)
				}
				left := w.leftOver()
				if c.spec.Stay {
					if left != "beta owns the guest" {
						t.Errorf("it was to stay: %s", left)
					}
				} else if left != "" && !c.left {
					t.Errorf("left over: %s\n%s", left, tellAll(r))
				}
				if r.State == Held {
					measuredRight(t, c.spec, r)
				}
			})
		})
	}
}

func with(s Spec, f func(*Spec)) Spec {
	f(&s)
	return s
}

func lost(h ownership.HostID, from, to time.Duration) map[ownership.HostID][]outage {
	return map[ownership.HostID][]outage{h: {{from, to}}}
}

// measuredRight: the hosts' clocks are seconds apart, and the figures are right.
func measuredRight(t *testing.T, s Spec, r Report) {
	t.Helper()
	for _, o := range r.Clocks {
		if got := o.Offset - skew(o.Host); got.Abs() > o.Error {
			t.Errorf("the clock of %s is off by %v ±%v, measured %v", o.Host, skew(o.Host), o.Error, o.Offset)
		}
	}
	if s.Kind == Bubble {
		return
	}
	want := 70 * time.Millisecond // 40 to take over, 30 until it is heard
	if s.Kind == Failover {
		want = aLease + 50*time.Millisecond
	}
	if r.RTO.FirstOutput == nil || (r.RTO.FirstOutput.Took-want).Abs() > r.RTO.FirstOutput.Error+10*time.Millisecond {
		t.Errorf("first output %v, want %v (%s)", r.RTO.FirstOutput, want, r.RTO.Text)
	}
	if r.RTO.Outage == nil || (r.RTO.Outage.Took-want).Abs() > 2*knockEvery {
		t.Errorf("the probe's outage %v, want about %v", r.RTO.Outage, want)
	}
	if r.RPO == nil || r.RPO.Resumed == 0 || r.RPO.Committed > r.RPO.Resumed {
		t.Errorf("RPO %+v", r.RPO)
	}
	if s.Kind == Failover && (r.RPO.Age == nil || (r.RPO.Age.Took-commitAge).Abs() > r.RPO.Age.Error+10*time.Millisecond) {
		t.Errorf("the guest was set back by %v, want %v", r.RPO.Age, commitAge)
	}
	for i, step := range r.Timeline {
		if i > 0 && step.At < r.Timeline[i-1].At {
			t.Errorf("the timeline goes back: %+v after %+v", step, r.Timeline[i-1])
		}
	}
}

func failed(r Report, name string) bool {
	for _, c := range r.Checks {
		if c.Verdict != Yes && strings.HasPrefix(c.Name, name) {
			return true
		}
	}
	for _, g := range r.Guarantees {
		if g.Verdict != Yes && strings.HasPrefix(g.Name, name) {
			return true
		}
	}
	return false
}

func tellAll(r Report) string {
	var b strings.Builder
	for _, s := range r.Timeline {
		fmt.Fprintf(&b, "%9v ±%v %s %s: %s\n", s.At.Round(time.Millisecond), s.Error, s.Host, s.Kind, s.Text)
	}
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "check %s: %s: %s\n", c.Name, c.Verdict, c.Text)
	}
	for _, g := range r.Guarantees {
		fmt.Fprintf(&b, "guarantee %s: %s: %s\n", g.Name, g.Verdict, g.Evidence)
	}
	fmt.Fprintf(&b, "RTO %s; RPO %+v; left %q\n", r.RTO.Text, r.RPO, r.Left)
	return b.String()
}

// TestAbortAtEveryPhase: whenever a drill is given up, nothing of it is left.
func TestAbortAtEveryPhase(t *testing.T) {
	for _, kind := range []Kind{Switchover, Failover, Bubble} {
		for _, at := range []Phase{PhasePreconditions, PhaseClocks, PhaseAct, PhaseWait, PhaseChecks, PhaseReturn, PhaseVerify, PhaseCleanup, PhaseEvidence} {
			t.Run(string(kind)+" "+string(at), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(script{bubbleStays: 2})
					abort := make(chan struct{})
					given := false
					r := Run(t.Context(), spec(kind), w, Options{ID: "a-drill", Abort: abort, Tell: func(r Report) {
						if r.Phase == at && !given {
							given = true
							close(abort)
						}
					}})
					late := at == PhaseCleanup || at == PhaseEvidence || !given
					if r.State != Aborted && !late || r.State != Held && late {
						t.Errorf("%s (%s)\n%s", r.State, r.Why, tellAll(r))
					}
					if left := w.leftOver(); left != "" || len(r.Left) > 0 {
						t.Errorf("left over: %s; the report says %q\n%s", left, r.Left, tellAll(r))
					}
				})
			})
		}
	}
}

// TestTheDaemonEndsInEveryPhase: the drill ends at once, and the daemon's next
// life undoes what it has left.
func TestTheDaemonEndsInEveryPhase(t *testing.T) {
	for _, kind := range []Kind{Switchover, Failover, Bubble} {
		for _, at := range []Phase{PhaseClocks, PhaseAct, PhaseWait, PhaseChecks, PhaseReturn, PhaseVerify, PhaseCleanup} {
			for _, killed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s killed=%v", kind, at, killed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(script{})
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						var kept Report // as of the phase's begin: what a killed daemon leaves
						r := Run(ctx, spec(kind), w, Options{ID: "a-drill", Tell: func(r Report) {
							if r.Phase == at && ctx.Err() == nil {
								kept = r
								cancel()
							}
						}})
						if kept.ID == "" {
							return // it has no such phase
						}
						if r.State != Interrupted {
							t.Fatalf("%s (%s)", r.State, r.Why)
						}
						if killed {
							r = kept
						}
						time.Sleep(time.Second) // the daemon is started anew
						r = Clean(t.Context(), r, w, nil)
						if r.State != Interrupted || len(r.Left) > 0 {
							t.Errorf("%s, left %q", r.State, r.Left)
						}
						if left := w.leftOver(); left != "" {
							t.Errorf("left over: %s\n%s", left, tellAll(r))
						}
					})
				})
			}
		}
	}
}

// withEnd runs a drill that is given up, or whose daemon ends, after a time.
func withEnd(ctx context.Context, s Spec, w *world, end string, at time.Duration) Report {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	abort := make(chan struct{})
	switch end {
	case "aborted":
		defer time.AfterFunc(at, func() { close(abort) }).Stop()
	case "daemon ends":
		defer time.AfterFunc(at, cancel).Stop()
	}
	return Run(ctx, s, w, Options{ID: "a-drill", Abort: abort})
}
