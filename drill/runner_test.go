package drill

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/events"
)

// engine is a runner over a made-up cluster, with its record.
type engine struct {
	*Runner
	w      *world
	mu     sync.Mutex
	events []events.Event
	specs  []Spec
}

func newEngine(t *testing.T, w *world, h *History, specs ...Spec) *engine {
	t.Helper()
	e := &engine{w: w, specs: specs}
	e.Runner = NewRunner(RunnerConfig{Cluster: w, History: h, Specs: func() []Spec {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.specs
	}, Record: func(one events.Event) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.events = append(e.events, one)
	}})
	return e
}

// begin runs the engine, until end.
func (e *engine) begin(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	synctest.Wait()
	return func() { cancel(); <-done }
}

// over waits until no drill runs.
func (e *engine) over() {
	for e.Busy() != "" {
		time.Sleep(100 * time.Millisecond)
	}
}

func (e *engine) told() (kinds []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, one := range e.events {
		kinds = append(kinds, string(one.Kind)+" "+string(one.Reason))
	}
	return kinds
}

func TestTheRunnerRunsOneAtATime(t *testing.T) {
	h := openHistory(t)
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, newWorld(script{}), h, spec(Failover))
		if _, err := e.Start(Spec{Name: "weekly"}); err == nil {
			t.Error("a drill began before the runner")
		}
		end := e.begin(t.Context())
		defer end()
		id, err := e.Start(Spec{Name: "weekly"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Start(Spec{Guest: guest, Kind: Switchover}); !errors.Is(err, ErrBusy) {
			t.Errorf("a second one: %v", err)
		}
		time.Sleep(1500 * time.Millisecond)
		r, err := e.Report(id)
		if err != nil || r.State != Running || r.Phase != PhaseWait {
			t.Errorf("after 1.5s it is %s, %s, %v", r.State, r.Phase, err)
		}
		if l, err := e.List(10); err != nil || l.Running != id || len(l.Drills) != 1 || l.Drills[0].State != Running {
			t.Errorf("the list: %+v, %v", l, err)
		}
		if p, err := e.Plan(t.Context(), Spec{Name: "weekly"}); err != nil || p.Possible {
			t.Errorf("a plan beside a drill: %+v, %v", p.Conditions, err)
		}
		if err := e.Abort("another"); !errors.Is(err, ErrNotRunning) {
			t.Errorf("abort of another: %v", err)
		}
		e.over()
		r, err = e.Report(id)
		if err != nil || r.State != Held || r.Spec.Name != "weekly" {
			t.Errorf("it ended %s (%s), %v", r.State, r.Why, err)
		}
		if got := strings.Join(e.told(), ", "); got != "drill-begun , drill-ended held" {
			t.Errorf("the record has %s", got)
		}
		if err := e.Abort(id); !errors.Is(err, ErrNotRunning) {
			t.Errorf("abort of one that is over: %v", err)
		}
	})
}

func TestWhatIsDescribedRunsNoCommandOfItsOwn(t *testing.T) {
	e := newEngine(t, newWorld(script{}), openHistory(t), spec(Bubble))
	for _, c := range []struct {
		s    Spec
		want string
	}{
		{Spec{Guest: guest, Kind: Bubble, Check: []string{"/bin/sh", "-c", "evil"}}, "commands are taken from the configuration"},
		{Spec{Name: "nightly"}, "no such drill"},
		{Spec{Guest: guest, Kind: "explosion"}, "none of"},
		{Spec{}, "name of a guest"},
	} {
		if _, err := e.Resolve(c.s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.s, err)
		}
	}
	if s, err := e.Resolve(Spec{Guest: guest, Kind: Switchover, Check: []string{"/bin/well"}, Name: "x", Schedule: "every 1h"}); err != nil || s.Name != "" || s.Schedule != "" {
		t.Errorf("a configured check: %+v, %v", s, err)
	}
}

func TestAbortedByTheRunner(t *testing.T) {
	h := openHistory(t)
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, newWorld(script{}), h, spec(Failover))
		defer e.begin(t.Context())()
		id, err := e.Start(Spec{Name: "weekly"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		for range 2 { // twice is once
			if err := e.Abort(id); err != nil {
				t.Error(err)
			}
		}
		e.over()
		if r, err := e.Report(id); err != nil || r.State != Aborted || e.w.leftOver() != "" {
			t.Errorf("%s (%s), %v; left over: %s", r.State, r.Why, err, e.w.leftOver())
		}
	})
}

// TestADaemonsNextLifeCleansUp: a daemon that ends, or is killed, leaves a report
// that says so, and the next one undoes what there is.
func TestADaemonsNextLifeCleansUp(t *testing.T) {
	for _, killed := range []bool{false, true} {
		h := openHistory(t)
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(script{})
			first := newEngine(t, w, h, spec(Failover))
			end := first.begin(t.Context())
			id, err := first.Start(Spec{Name: "weekly"})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
			kept, err := h.Load(id)
			if err != nil || kept.State != Running {
				t.Fatalf("on the disk is %s, %v", kept.State, err)
			}
			end()
			if r, err := h.Load(id); err != nil || r.State != Interrupted || len(r.Left) == 0 {
				t.Errorf("the daemon has ended, and the report is %s, left %q, %v", r.State, r.Left, err)
			}
			if killed { // then it had no time to write that
				if err := h.Save(kept); err != nil {
					t.Fatal(err)
				}
			}
			second := newEngine(t, w, h, spec(Failover))
			defer second.begin(t.Context())()
			if _, err := second.Start(Spec{Name: "weekly"}); !errors.Is(err, ErrBusy) {
				t.Errorf("while it cleans up another begins: %v", err)
			}
			second.over()
			r, err := second.Report(id)
			if err != nil || r.State != Interrupted || len(r.Left) > 0 || w.leftOver() != "" {
				t.Errorf("killed=%v: %s, left %q, %v; left over: %s", killed, r.State, r.Left, err, w.leftOver())
			}
		})
	}
}

// TestDrillsByTheirSchedule: they begin when they are due, on the host that runs
// them, one at a time, and not at all when something is not well.
func TestDrillsByTheirSchedule(t *testing.T) {
	h := openHistory(t)
	synctest.Test(t, func(t *testing.T) {
		s := spec(Switchover)
		s.Schedule = "every 6h"
		late := spec(Bubble)
		late.Name, late.Schedule = "other", "every 6h"
		w := newWorld(script{lostAt: lost(other, 17*time.Hour, 19*time.Hour)})
		e := newEngine(t, w, h, s, late)
		defer e.begin(t.Context())()
		states := func() (all []State) {
			l, err := e.List(100)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range l.Drills {
				if !d.Scheduled {
					t.Errorf("%s was not by its schedule", d.ID)
				}
				all = append(all, d.State)
			}
			return all
		}
		time.Sleep(5*time.Hour + 59*time.Minute)
		if got := states(); len(got) != 0 {
			t.Fatalf("before its time: %v", got)
		}
		time.Sleep(10 * time.Minute)
		if got := states(); len(got) != 2 {
			t.Fatalf("after 6h: %v", got)
		}
		count := map[State]int{}
		for _, s := range states() {
			count[s]++
		}
		if count[Held] != 1 || count[Skipped] != 1 {
			t.Errorf("two at one time: %v", count)
		}
		time.Sleep(12 * time.Hour) // 12h: as before; 18h: beta is down
		count = map[State]int{}
		for _, s := range states() {
			count[s]++
		}
		if count[Held] != 2 || count[Skipped] != 4 {
			t.Errorf("after 18h: %v", count)
		}
		l, err := e.List(1)
		if err != nil || !strings.Contains(l.Drills[0].Why, "beta does not answer") && !strings.Contains(l.Drills[0].Why, "runs already") {
			t.Errorf("why it was skipped: %+v, %v", l.Drills, err)
		}
		e.mu.Lock()
		e.specs = nil
		e.mu.Unlock()
		e.Changed()
		before := len(states())
		time.Sleep(24 * time.Hour)
		if n := len(states()); n != before {
			t.Errorf("no drill is configured any more, and %d were run", n-before)
		}
	})
}

func TestWhoRunsADrill(t *testing.T) {
	f := Facts{Host: "a", Backup: "b"}
	for _, c := range []struct {
		members []Member
		want    string
	}{
		{[]Member{{Host: "a"}, {Host: "b"}, {Host: "w", Witness: true}}, "w"},
		{[]Member{{Host: "a"}, {Host: "c"}, {Host: "b"}}, "c"},
		{[]Member{{Host: "a"}, {Host: "b"}}, "b"},
	} {
		if got := Engine(c.members, f); string(got) != c.want {
			t.Errorf("%v: %s, want %s", c.members, got, c.want)
		}
	}
}
