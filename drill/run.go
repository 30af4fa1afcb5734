package drill

// This file is a drill from its first phase to its report. The phases are in
// phases.go, in their order; cleanup.go undoes, evidence.go collects, and
// guarantees.go judges.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/epoch"
	"understudy/ownership"
	"understudy/primary"
)

// Options are what a drill is run with.
type Options struct {
	ID        string
	Scheduled bool
	// Abort, once closed, gives the drill up: what it has done is undone.
	Abort <-chan struct{}
	// Tell is told how far the drill is, after each step; nil: nobody is. What it
	// is given is its own.
	Tell func(Report)
}

// ErrRefused marks a strike or an operation that a host has refused: nothing was
// done.
var ErrRefused = errors.New("refused")

var (
	errAborted = errors.New("the drill was aborted")
	errEnding  = errors.New("the daemon that runs the drill ends")
)

// refusal is a drill that was not begun.
type refusal struct{ why string }

func (r refusal) Error() string { return r.why }

// run is a drill under way.
type run struct {
	c      Cluster
	spec   Spec
	tell   func(Report)
	report Report
	began  time.Time

	view   View
	before ownership.Guest // the log when it began
	marks  map[ownership.HostID]uint64
	clocks map[ownership.HostID]measured
	watch  *watcher

	// What was done, so that it can be undone.
	acted    bool // from then on there may be something
	struck   *StrikeOrder
	struckAt time.Duration // by the drill's clock, give or take struckErr
	struckEr time.Duration
	undone   bool // the strike
	bubbling bool
	ended    bool // by the operation's own answer: nothing to undo

	moved     bool // the guest has gone to report.To
	returned  bool
	protected bool // … and is so at the end
	verified  *primary.VerifyResult
	drained   string // evidence
	drainedOK bool
	lag       time.Duration // commit lag before the bubble
}

// Run runs one drill and returns its report. It returns after everything is
// undone, or could not be in the time there is, which the report says. When ctx
// ends, the daemon ends: then little is undone here, and Clean goes on later.
func Run(ctx context.Context, spec Spec, c Cluster, o Options) Report {
	spec.SetDefaults()
	r := newRun(spec, c, o.Tell)
	r.report = Report{ID: o.ID, Spec: spec, State: Running, Host: c.Self(), Began: r.began.Round(0).UTC(), Scheduled: o.Scheduled}
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-o.Abort:
			cancel(errAborted)
		case <-work.Done():
		case <-ended:
		}
	}()

	err := r.play(work)
	if errors.As(err, new(refusal)) && !r.acted {
		r.report.State, r.report.Why = Refused, err.Error()
		if o.Scheduled {
			r.report.State = Skipped
		}
		return r.finish()
	}
	r.enter(PhaseCleanup, "undoing what the drill has done")
	r.clean(ctx)
	r.enter(PhaseEvidence, "reading the hosts' records")
	r.evidence(ctx)
	switch {
	case ctx.Err() != nil:
		r.report.State, r.report.Why = Interrupted, errEnding.Error()
	case errors.Is(err, errAborted):
		r.report.State, r.report.Why = Aborted, "it was given up"
	default:
		if err != nil {
			r.report.Checks = append(r.report.Checks, Check{Name: string(r.failedIn()), Verdict: No, Text: err.Error()})
		}
		r.report.conclude()
	}
	return r.finish()
}

// newRun returns a run that begins now.
func newRun(spec Spec, c Cluster, tell func(Report)) *run {
	if tell == nil {
		tell = func(Report) {}
	}
	return &run{c: c, spec: spec, tell: tell, began: time.Now(), clocks: map[ownership.HostID]measured{}, marks: map[ownership.HostID]uint64{}}
}

// play goes through the phases until one fails, or ctx ends.
func (r *run) play(ctx context.Context) error {
	defer func() {
		if r.watch != nil {
			r.watch.stop()
		}
	}()
	for _, p := range []struct {
		phase Phase
		text  string
		do    func(context.Context) error
	}{
		{PhasePreconditions, "looking whether all is well before", r.preconditions},
		{PhaseClocks, "measuring the hosts' clocks", r.measureClocks},
		{PhaseAct, r.plannedAct(), r.act},
		{PhaseWait, "waiting until the guest is there", r.wait},
		{PhaseChecks, "checking the guest", r.check},
		{PhaseReturn, "bringing the guest back", r.goBack},
		{PhaseVerify, "comparing all memory of both hosts", r.verify},
	} {
		if p.phase == PhaseWait && r.spec.Kind == Bubble || p.phase == PhaseReturn && r.spec.Kind == Bubble {
			continue
		}
		r.enter(p.phase, p.text)
		err := p.do(ctx)
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) plannedAct() string {
	switch r.spec.Kind {
	case Switchover:
		return "asking for a switchover"
	case Failover:
		return fmt.Sprintf("striking the owner: %s for %v", r.spec.Fault, r.faultFor())
	}
	return "starting the backup's copy in a bubble"
}

// failedIn is the phase before the cleanup.
func (r *run) failedIn() Phase {
	last := PhasePreconditions
	for _, s := range r.report.Timeline {
		if p := Phase(s.Text); s.Kind == stepPhase && p != PhaseCleanup && p != PhaseEvidence {
			last = p
		}
	}
	return last
}

// Kinds of steps that are the drill's own.
const (
	stepPhase   = "phase"
	stepNote    = "note"
	stepStrike  = "strike"
	stepOperate = "operation"
)

// enter begins a phase.
func (r *run) enter(p Phase, text string) {
	r.report.Phase = p
	r.step(stepPhase, "%s", string(p))
	r.step(stepNote, "%s", text)
}

// step adds a line to the timeline, by the drill's clock.
func (r *run) step(kind, format string, a ...any) {
	now := time.Since(r.began)
	r.report.Timeline = append(r.report.Timeline, Step{At: now, Host: r.c.Self(), Kind: kind, Text: clip(fmt.Sprintf(format, a...), maxText)})
	r.say()
}

// say tells how far it is.
func (r *run) say() {
	r.report.Took = time.Since(r.began)
	r.tell(r.report.clone())
}

// finish closes the report.
func (r *run) finish() Report {
	r.report.Phase = ""
	if r.watch != nil {
		r.watch.mu.Lock()
		r.report.Samples, r.report.Probe = r.watch.samples, r.watch.knocks
		r.watch.mu.Unlock()
	}
	r.report.bound()
	r.say()
	return r.report
}

// clone copies what grows while a drill runs.
func (r *Report) clone() Report {
	c := *r
	c.Timeline, c.Checks, c.Guarantees = slices.Clone(r.Timeline), slices.Clone(r.Checks), slices.Clone(r.Guarantees)
	c.Conditions, c.Clocks, c.Left = slices.Clone(r.Conditions), slices.Clone(r.Clocks), slices.Clone(r.Left)
	c.Probe, c.Samples = slices.Clone(r.Probe), slices.Clone(r.Samples)
	return c
}

// faultFor is how long the fault lasts: a takeover waits for the lease, and then
// takes a while.
func (r *run) faultFor() time.Duration {
	if r.spec.FaultFor > 0 {
		return r.spec.FaultFor
	}
	return min(max(MinFault, 4*r.view.lease()), MaxFault)
}

// generation is the log's when the drill began.
func (r *run) generation() epoch.Generation { return r.before.Generation }
