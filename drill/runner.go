package drill

// Runner is the drill engine in a daemon: one drill at a time, by hand or by
// schedule, with a history.
//
//	Start, schedule → begin → Run → Save → Report, List
//	a daemon that died under a drill: interrupted, Clean

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy/config"
	"understudy/events"
)

// RunnerConfig is what a Runner is made of.
type RunnerConfig struct {
	Cluster Cluster
	History *History
	// Specs are the configured drills, now.
	Specs func() []Spec
	// Record is told when a drill begins and ends; nil: nobody is.
	Record func(events.Event)
	Slog   *slog.Logger
}

// Runner runs drills. Its goroutines end with Run's context.
type Runner struct {
	cfg RunnerConfig

	mu      sync.Mutex
	life    context.Context // Run's; nil: it does not run
	now     *Report         // of the drill under way
	abort   chan struct{}   // closed to give it up
	given   bool            // it is closed
	began   time.Time       // of Run
	last    map[string]time.Time
	workers sync.WaitGroup
	// changed is closed when the configuration may be another one.
	changed chan struct{}
}

// NewRunner returns a Runner; Run starts it.
func NewRunner(c RunnerConfig) *Runner {
	if c.Slog == nil {
		c.Slog = slog.New(slog.DiscardHandler)
	}
	if c.Record == nil {
		c.Record = func(events.Event) {}
	}
	if c.Specs == nil {
		c.Specs = func() []Spec { return nil }
	}
	return &Runner{cfg: c, last: map[string]time.Time{}, changed: make(chan struct{}, 1)}
}

// Run cleans up after drills that a former daemon left, and then begins those
// that are scheduled, until ctx ends. It returns when no drill runs any more.
func (r *Runner) Run(ctx context.Context) {
	r.recover(ctx)
	r.mu.Lock()
	r.life, r.began = ctx, time.Now()
	r.mu.Unlock()
	r.schedule(ctx)
	r.mu.Lock()
	r.life = nil
	r.mu.Unlock()
	r.workers.Wait()
}

// Changed tells that the configuration may be another one.
func (r *Runner) Changed() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Errors of Start and Abort.
var (
	ErrBusy       = errors.New("a drill runs already")
	ErrNotRunning = errors.New("this drill does not run")
	ErrNoDrill    = errors.New("no such drill is configured")
)

// Resolve returns the drill that is meant: the configured one, if only its name
// is given. What is described ad hoc runs no command of its own: a check is
// one of the configuration's.
func (r *Runner) Resolve(s Spec) (Spec, error) {
	specs := r.cfg.Specs()
	if s.Kind == "" && s.Name != "" {
		for _, c := range specs {
			if c.Name == s.Name {
				c.SetDefaults()
				return c, nil
			}
		}
		return s, fmt.Errorf("%w: %.80q", ErrNoDrill, s.Name)
	}
	s.Name, s.Schedule = "", ""
	s.SetDefaults()
	if err := s.Validate(); err != nil {
		return s, err
	}
	if len(s.Check) > 0 && !slices.ContainsFunc(specs, func(c Spec) bool { return slices.Equal(c.Check, s.Check) }) {
		return s, errors.New("a check of a drill that is described ad hoc must be that of a configured one: commands are taken from the configuration alone")
	}
	return s, nil
}

// Start begins a drill and returns its ID.
func (r *Runner) Start(s Spec) (id string, err error) {
	if s, err = r.Resolve(s); err != nil {
		return "", err
	}
	return r.begin(s, false)
}

func (r *Runner) begin(s Spec, scheduled bool) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.life == nil || r.life.Err() != nil:
		return "", errors.New("the daemon is not ready for drills, or ends")
	case r.now != nil:
		return "", fmt.Errorf("%w: %s", ErrBusy, r.now.ID)
	}
	now := time.Now()
	random := make([]byte, 3)
	rand.Read(random)
	id := NewID(now, s, hex.EncodeToString(random))
	first := Report{ID: id, Spec: s, State: Running, Host: r.cfg.Cluster.Self(), Began: now.Round(0).UTC(), Scheduled: scheduled}
	if err := r.cfg.History.Save(first); err != nil {
		return "", err // without a report it would not be known after the daemon's death
	}
	r.now, r.abort, r.given = &first, make(chan struct{}), false
	abort, life := r.abort, r.life
	r.workers.Go(func() { r.drill(life, s, Options{ID: id, Scheduled: scheduled, Abort: abort}) })
	return id, nil
}

// drill runs one.
func (r *Runner) drill(ctx context.Context, s Spec, o Options) {
	r.cfg.Record(events.Event{Kind: events.KindDrillBegun, Guest: s.Guest, Text: fmt.Sprintf("drill %s begins: %s", o.ID, s.title())})
	phase := Phase("")
	o.Tell = func(report Report) {
		r.mu.Lock()
		r.now = &report
		r.mu.Unlock()
		if report.Phase != phase && report.Phase != "" {
			// On the disk before the phase does anything: see recover.
			phase = report.Phase
			if err := r.cfg.History.Save(report); err != nil {
				r.cfg.Slog.Warn("a drill's report is not kept", "drill", report.ID, "err", err)
			}
		}
	}
	report := Run(ctx, s, r.cfg.Cluster, o)
	r.ended(report)
	r.mu.Lock()
	r.now = nil
	r.mu.Unlock()
}

// ended keeps the report and says so.
func (r *Runner) ended(report Report) {
	if err := errors.Join(r.cfg.History.Save(report), r.cfg.History.Prune()); err != nil {
		r.cfg.Slog.Error("a drill's report is not kept", "drill", report.ID, "err", err)
	}
	text := fmt.Sprintf("drill %s: %s", report.ID, report.State)
	if report.Why != "" {
		text += ": " + report.Why
	}
	r.cfg.Record(events.Event{Kind: events.KindDrillEnded, Guest: report.Spec.Guest, Duration: report.Took, Reason: events.Reason(report.State), Text: text})
	r.cfg.Slog.Info("a drill has ended", "drill", report.ID, "state", report.State, "took", report.Took.Round(time.Millisecond), "why", report.Why)
}

// Abort gives a drill up; it is over when it has cleaned up.
func (r *Runner) Abort(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil || r.now.ID != id || r.abort == nil {
		return fmt.Errorf("%w: %.80q", ErrNotRunning, id)
	}
	if !r.given {
		r.given = true
		close(r.abort)
	}
	return nil
}

// Busy returns the drill under way, "" if none.
func (r *Runner) Busy() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil {
		return ""
	}
	return r.now.ID
}

// Report returns a drill's report, as far as it is.
func (r *Runner) Report(id string) (Report, error) {
	r.mu.Lock()
	now := r.now
	r.mu.Unlock()
	if now != nil && now.ID == id {
		return *now, nil
	}
	return r.cfg.History.Load(id)
}

// List is the history of this host, the newest first; unreadable are files that
// are not as they should be.
type List struct {
	Drills     []Summary `json:"drills"`
	Running    string    `json:"running,omitempty"`
	Unreadable []string  `json:"unreadable,omitempty"`
}

// List returns the newest drills, at most limit of them.
func (r *Runner) List(limit int) (List, error) {
	out := List{Drills: []Summary{}, Running: r.Busy()}
	ids, err := r.cfg.History.IDs()
	if err != nil {
		return out, err
	}
	for _, id := range ids[:min(limit, len(ids))] {
		report, err := r.Report(id)
		if err != nil {
			out.Unreadable = append(out.Unreadable, clip(err.Error(), maxText))
			continue
		}
		out.Drills = append(out.Drills, report.Summary())
	}
	return out, nil
}

// Plan tells what a drill would do now.
func (r *Runner) Plan(ctx context.Context, s Spec) (Plan, error) {
	s, err := r.Resolve(s)
	if err != nil {
		return Plan{}, err
	}
	c := r.cfg.Cluster
	v := Look(ctx, c, s.Guest)
	if id := r.Busy(); id != "" {
		v.Busy[c.Self()] = id
	}
	return MakePlan(s, c.Self(), v), nil
}

// Foretell tells what a failure would do now to a guest, or to all ("").
func (r *Runner) Foretell(ctx context.Context, fail string, guests ...string) (Forecast, error) {
	f, err := ParseFailure(fail, r.cfg.Cluster.Members())
	if err != nil {
		return Forecast{}, err
	}
	return Foretell(f, guests, Look(ctx, r.cfg.Cluster, guests...)), nil
}

// recover marks the drills of a former daemon as interrupted, and cleans up
// after the newest.
func (r *Runner) recover(ctx context.Context) {
	ids, err := r.cfg.History.IDs()
	if err != nil {
		r.cfg.Slog.Error("the history of drills cannot be read", "err", err)
		return
	}
	newest := true
	for _, id := range ids {
		report, err := r.cfg.History.Load(id)
		if err != nil {
			r.cfg.Slog.Warn("a report of a drill is not as it should be", "err", err)
			continue
		}
		unfinished := report.State == Interrupted && slices.ContainsFunc(report.Left, func(s string) bool { return strings.Contains(s, nextLife) })
		if report.State == Running || unfinished {
			if newest {
				r.cleanUp(ctx, report)
			} else {
				report.State, report.Why = Interrupted, "the daemon that ran it was lost"
				r.ended(report)
			}
		}
		newest = false
		if ctx.Err() != nil {
			return
		}
	}
}

// cleanUp undoes what a former daemon's drill has left. No other drill begins
// meanwhile.
func (r *Runner) cleanUp(ctx context.Context, report Report) {
	r.mu.Lock()
	if r.now != nil {
		r.mu.Unlock()
		return
	}
	r.now, r.abort = &report, nil
	r.mu.Unlock()
	r.cfg.Slog.Warn("a drill was interrupted: what it has done is undone", "drill", report.ID)
	r.workers.Go(func() {
		done := Clean(ctx, report, r.cfg.Cluster, func(now Report) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.now = &now
		})
		r.ended(done)
		r.mu.Lock()
		r.now = nil
		r.mu.Unlock()
	})
}

// schedule begins drills when they are due.
func (r *Runner) schedule(ctx context.Context) {
	for from := time.Now(); ctx.Err() == nil; {
		now := time.Now()
		if now.Before(from) {
			from = now // the clock was set back
		}
		due, next := r.between(from, now)
		for _, s := range due {
			r.last[s.Name] = now
			r.due(s)
		}
		from = now
		// The clock may be set: an hour is the longest that is slept.
		sleep := time.Hour
		if !next.IsZero() {
			sleep = min(max(time.Until(next), 0), sleep)
		}
		timer := time.NewTimer(sleep)
		select {
		case <-timer.C:
		case <-r.changed:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// between returns the drills that this host has to run which were due after from
// and not after now, and when the next one is; zero if none ever is. Only
// schedule's goroutine calls it.
func (r *Runner) between(from, now time.Time) (due []Spec, next time.Time) {
	c := r.cfg.Cluster
	for _, s := range r.cfg.Specs() {
		when, err := config.ParseSchedule(s.Schedule)
		facts, known := c.Facts(s.Guest)
		if err != nil || when.Never() || !known || Engine(c.Members(), facts) != c.Self() {
			continue
		}
		began := r.began
		if last, ok := r.last[s.Name]; ok {
			began = last
		}
		at := when.Next(from, began)
		if !at.After(now) {
			due = append(due, s)
			at = when.Next(now, now)
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return due, next
}

// due begins a scheduled drill, or records why not.
func (r *Runner) due(s Spec) {
	s.SetDefaults()
	_, err := r.begin(s, true)
	if err == nil {
		return
	}
	now := time.Now()
	random := make([]byte, 3)
	rand.Read(random)
	r.ended(Report{ID: NewID(now, s, hex.EncodeToString(random)), Spec: s, State: Skipped, Why: err.Error(), Host: r.cfg.Cluster.Self(),
		Began: now.Round(0).UTC(), Scheduled: true})
}
