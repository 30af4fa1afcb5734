package drill

// This file is the report: what was done, what was measured, what was found, and
// with what evidence. Its JSON is the format of the history, too.

import (
	"fmt"
	"slices"
	"time"

	"understudy/epoch"
	"understudy/ownership"
)

// State says how far a drill is, or how it ended.
type State string

const (
	Running State = "running"
	// Held: every check and every guarantee held.
	Held State = "held"
	// Failed: it ran, and a check or a guarantee did not hold, or could not be
	// shown to.
	Failed State = "failed"
	// Refused: a precondition did not hold; nothing was done.
	Refused State = "refused"
	// Skipped: as Refused, of a scheduled drill.
	Skipped State = "skipped"
	// Aborted: it was given up; what it had done was undone.
	Aborted State = "aborted"
	// Interrupted: its daemon ended under it.
	Interrupted State = "interrupted"
)

// Over reports whether the drill has ended.
func (s State) Over() bool { return s != Running }

// Report is all of a drill. Times that are durations since Began are by the
// clock of the host that ran it.
type Report struct {
	ID    string           `json:"id"`
	Spec  Spec             `json:"spec"`
	State State            `json:"state"`
	Why   string           `json:"why,omitempty"` // in a sentence, if not Held
	Host  ownership.HostID `json:"host"`          // that ran it
	Began time.Time        `json:"began"`
	Took  time.Duration    `json:"took_ns"`
	// Scheduled: by its schedule, not by hand.
	Scheduled bool  `json:"scheduled,omitempty"`
	Phase     Phase `json:"phase,omitempty"` // while it runs

	// From owned the guest when it began, To was its backup.
	From ownership.HostID `json:"from,omitempty"`
	To   ownership.HostID `json:"to,omitempty"`

	Conditions []Condition `json:"conditions"`
	Clocks     []Offset    `json:"clocks"`
	Timeline   []Step      `json:"timeline"`
	RTO        RTO         `json:"rto"`
	RPO        *RPO        `json:"rpo,omitempty"`
	Checks     []Check     `json:"checks"`
	Guarantees []Guarantee `json:"guarantees"`
	Bubble     *Bubbled    `json:"bubble,omitempty"`
	// Left is what could not be undone, with what to do about it.
	Left []string `json:"left,omitempty"`

	Probe   []Knock  `json:"probe,omitempty"`
	Samples []Sample `json:"samples,omitempty"`
}

// Phase is a part of a drill.
type Phase string

const (
	PhasePreconditions Phase = "preconditions"
	PhaseClocks        Phase = "clocks"
	PhaseAct           Phase = "act"
	PhaseWait          Phase = "wait"
	PhaseChecks        Phase = "checks"
	PhaseReturn        Phase = "return"
	PhaseVerify        Phase = "verify"
	PhaseCleanup       Phase = "cleanup"
	PhaseEvidence      Phase = "evidence"
)

// Condition is what has to hold before a drill.
type Condition struct {
	Name  string `json:"name"`
	Holds bool   `json:"holds"`
	Text  string `json:"text"`
}

// Offset is a host's clock against that of the drill: what is to be subtracted
// from it, give or take Error, which is half of the best round trip.
type Offset struct {
	Host   ownership.HostID `json:"host"`
	Offset time.Duration    `json:"offset_ns"`
	Error  time.Duration    `json:"error_ns"`
	Trips  int              `json:"trips"`
}

// Step is one line of the timeline.
type Step struct {
	At time.Duration `json:"at_ns"`
	// Error is by how much At may be wrong either way, if Host's clock was read.
	Error time.Duration `json:"error_ns"`
	// Host is whose clock measured it.
	Host ownership.HostID `json:"host"`
	// Kind is an event's, or "phase", "strike", "operation", "cleanup".
	Kind string `json:"kind"`
	Text string `json:"text"`
}

// Measured is a time between two things, give or take Error.
type Measured struct {
	Took  time.Duration `json:"took_ns"`
	Error time.Duration `json:"error_ns"`
}

// RTO is how long the guest was away: from the strike, or from the operator's
// word.
type RTO struct {
	// Running until it ran at its new host; FirstOutput until its first frame
	// left there. Missing: not seen.
	Running     *Measured `json:"running,omitempty"`
	FirstOutput *Measured `json:"first_output,omitempty"`
	// Outage is the longest time in which the probe got no answer.
	Outage *Measured `json:"outage,omitempty"`
	Text   string    `json:"text"`
}

// worst is the longest time that a client could have seen.
func (r RTO) worst() (time.Duration, bool) {
	var longest time.Duration
	found := false
	for _, m := range []*Measured{r.FirstOutput, r.Outage} {
		if m != nil {
			longest, found = max(longest, m.Took), true
		}
	}
	return longest, found
}

// RPO is what was lost.
type RPO struct {
	// Committed is the last epoch that the owner was seen to have acknowledged
	// in the generation that ended, SeenBefore how long before the strike;
	// negative: after it, which makes it the last of all.
	Committed  epoch.Number  `json:"committed_epoch"`
	SeenBefore time.Duration `json:"seen_before_ns"`
	// Resumed is the epoch from which the guest went on.
	Resumed epoch.Number `json:"resumed_epoch"`
	// Age of that commit at the strike: what the guest itself was set back.
	// Missing: not known.
	Age *Measured `json:"age_ns,omitempty"`
	// OutputLost says what is known of output that had left and was taken back.
	OutputLost string `json:"output_lost"`
}

// Verdict is what is known of a check or a guarantee.
type Verdict string

const (
	Yes     Verdict = "held"
	No      Verdict = "broken"
	Unknown Verdict = "unknown" // it could not be shown
)

// Check is one check of the drill's own.
type Check struct {
	Name    string        `json:"name"`
	Verdict Verdict       `json:"verdict"`
	Text    string        `json:"text"`
	Took    time.Duration `json:"took_ns"`
	Output  string        `json:"output,omitempty"`
}

// Guarantee is one of the engine's promises, with the evidence that it held.
type Guarantee struct {
	Name     string  `json:"name"`
	Verdict  Verdict `json:"verdict"`
	Evidence string  `json:"evidence"`
}

// Knock is one connection of the probe.
type Knock struct {
	At   time.Duration `json:"at_ns"` // when it was begun
	Took time.Duration `json:"took_ns"`
	OK   bool          `json:"ok"`
}

// Sample is what a host said of the guest at one moment.
type Sample struct {
	At   time.Duration    `json:"at_ns"`
	Host ownership.HostID `json:"host"`
	Role string           `json:"role"` // "" if it did not answer
	// Lag is the age of the last commit; missing where nothing is fed.
	Lag       *time.Duration `json:"lag_ns,omitempty"`
	HeldBytes int64          `json:"held_bytes,omitempty"`
	Epoch     epoch.Number   `json:"epoch,omitempty"`
	Protected bool           `json:"protected,omitempty"`
}

// Summary is a report's line in a list.
type Summary struct {
	ID        string           `json:"id"`
	Name      string           `json:"name,omitempty"`
	Guest     string           `json:"guest"`
	Kind      Kind             `json:"kind"`
	Fault     Fault            `json:"fault,omitempty"`
	State     State            `json:"state"`
	Why       string           `json:"why,omitempty"`
	Host      ownership.HostID `json:"host"`
	Began     time.Time        `json:"began"`
	Took      time.Duration    `json:"took_ns"`
	Phase     Phase            `json:"phase,omitempty"`
	Outage    *time.Duration   `json:"outage_ns,omitempty"` // the longest that was measured
	Scheduled bool             `json:"scheduled,omitempty"`
	// Steps is how many lines the timeline has so far.
	Steps int `json:"steps"`
}

// Summary returns the report's line.
func (r *Report) Summary() Summary {
	s := Summary{ID: r.ID, Name: r.Spec.Name, Guest: r.Spec.Guest, Kind: r.Spec.Kind, Fault: r.Spec.Fault, State: r.State, Why: r.Why,
		Host: r.Host, Began: r.Began, Took: r.Took, Phase: r.Phase, Scheduled: r.Scheduled, Steps: len(r.Timeline)}
	if worst, ok := r.RTO.worst(); ok {
		s.Outage = &worst
	}
	return s
}

// conclude sets the state of a drill that ran to its end.
func (r *Report) conclude() {
	var broken []string
	for _, c := range r.Checks {
		if c.Verdict != Yes {
			broken = append(broken, fmt.Sprintf("%s: %s", c.Name, c.Text))
		}
	}
	for _, g := range r.Guarantees {
		if g.Verdict != Yes {
			broken = append(broken, fmt.Sprintf("%s: %s", g.Name, g.Evidence))
		}
	}
	for _, l := range r.Left {
		broken = append(broken, "left over: "+l)
	}
	if len(broken) == 0 {
		r.State = Held
		return
	}
	r.State, r.Why = Failed, clip(broken[0], maxText)
	if len(broken) > 1 {
		r.Why += fmt.Sprintf("; and %d more", len(broken)-1)
	}
}

const (
	maxText    = 1024 // bytes of a text
	maxSteps   = 600
	maxKnocks  = 2400
	maxSamples = 2400
)

// bound keeps a report within what its readers accept: the newest steps, and
// every second sample as often as it takes.
func (r *Report) bound() {
	r.Why = clip(r.Why, maxText)
	for i := range r.Timeline {
		r.Timeline[i].Text = clip(r.Timeline[i].Text, maxText)
		r.Timeline[i].Kind = clip(r.Timeline[i].Kind, maxWord)
	}
	if n := len(r.Timeline); n > maxSteps {
		r.Timeline = slices.Delete(r.Timeline, maxSteps/2, n-maxSteps/2)
	}
	r.Probe = thinKnocks(r.Probe, maxKnocks)
	r.Samples = thinSamples(r.Samples, maxSamples)
	for i := range r.Checks {
		r.Checks[i].Text, r.Checks[i].Output = clip(r.Checks[i].Text, maxText), clip(r.Checks[i].Output, MaxOutput)
	}
	for i := range r.Guarantees {
		r.Guarantees[i].Evidence = clip(r.Guarantees[i].Evidence, maxText)
	}
	for i := range r.Left {
		r.Left[i] = clip(r.Left[i], maxText)
	}
}

// thinKnocks joins neighbours until few enough are left; the worse of two counts.
func thinKnocks(all []Knock, most int) []Knock {
	for len(all) > most {
		kept := all[:0]
		for i := 0; i < len(all); i += 2 {
			k := all[i]
			if i+1 < len(all) {
				next := all[i+1]
				k.OK = k.OK && next.OK
				k.Took = max(k.Took, next.Took)
			}
			kept = append(kept, k)
		}
		all = kept
	}
	return all
}

// thinSamples leaves out every second sample of each host until few enough are
// left.
func thinSamples(all []Sample, most int) []Sample {
	for len(all) > most {
		odd := map[ownership.HostID]bool{}
		all = slices.DeleteFunc(all, func(s Sample) bool {
			odd[s.Host] = !odd[s.Host]
			return !odd[s.Host]
		})
	}
	return all
}
