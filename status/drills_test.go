package status

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"understudy/drill"
	"understudy/ownership"
)

// drills are a runner that is made up.
type drills struct{ host *fake }

func aReport() drill.Report {
	return drill.Report{ID: "a-drill", Spec: drill.Spec{Guest: "web", Kind: drill.Switchover}, State: drill.Held, Host: "witness", Began: time.Unix(1_800_000_000, 0).UTC(),
		Took: time.Minute, From: "alpha", To: "beta",
		Conditions: []drill.Condition{{Name: "the guest runs", Holds: true, Text: "on alpha"}}, Clocks: []drill.Offset{{Host: "alpha", Error: time.Millisecond, Trips: 8}},
		Timeline: []drill.Step{{At: time.Second, Host: "witness", Kind: "phase", Text: "act"}}, Checks: []drill.Check{{Name: "check", Verdict: drill.Yes}},
		Guarantees: []drill.Guarantee{{Name: "never two owners", Verdict: drill.Yes, Evidence: "the records"}},
		RTO:        drill.RTO{FirstOutput: &drill.Measured{Took: 70 * time.Millisecond, Error: time.Millisecond}, Text: "70ms"}}
}

func (d drills) List(limit int) (drill.List, error) {
	r := aReport()
	return drill.List{Drills: []drill.Summary{r.Summary()}[:min(1, limit)]}, d.host.err
}

func (d drills) Report(id string) (drill.Report, error) {
	if id != "a-drill" {
		return drill.Report{}, fmt.Errorf("%w: %s", drill.ErrNoReport, id)
	}
	return aReport(), d.host.err
}

func (d drills) Start(s drill.Spec) (string, error) {
	if s.Name == "busy" {
		return "", drill.ErrBusy
	}
	d.host.asked <- "drill " + s.Name + s.Guest
	return "a-drill", d.host.err
}

func (d drills) Abort(id string) error {
	if id != "a-drill" {
		return drill.ErrNotRunning
	}
	d.host.asked <- "abort " + id
	return d.host.err
}

func (d drills) Plan(_ context.Context, s drill.Spec) (drill.Plan, error) {
	d.host.asked <- "plan " + s.Name + s.Guest
	return drill.Plan{Spec: s, Host: "witness", Possible: true, Conditions: []drill.Condition{}, Steps: []string{"ask"}, Risks: []string{}}, d.host.err
}

func (d drills) Foretell(_ context.Context, fail string, guests ...string) (drill.Forecast, error) {
	if fail == "nowhere" {
		return drill.Forecast{}, errors.New("there is no host \"nowhere\"")
	}
	return drill.Forecast{Fail: fail, At: time.Now(), Voters: []ownership.HostID{"beta", "witness"}, Majority: true,
		Guests: []drill.Fate{{Guest: guests[0], Outcome: drill.FailsOver, Why: []string{"the lease"}}}}, nil
}

// TestDrillsAreAskedFor goes through the routes as an operator's tool does, and
// through what is refused.
func TestDrillsAreAskedFor(t *testing.T) {
	r := newRig(t, Nothing)
	c, err := NewRemoteClient("https://"+r.address, r.paper.settings(t, "operator"), "")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if id, err := c.RunDrill(ctx, drill.Spec{Name: "weekly"}); err != nil || id != "a-drill" {
		t.Errorf("run: %q, %v", id, err)
	}
	if asked := <-r.host.asked; asked != "drill weekly" {
		t.Errorf("the host was asked for %q", asked)
	}
	if p, err := c.PlanDrill(ctx, drill.Spec{Guest: "web", Kind: drill.Bubble}); err != nil || !p.Possible || <-r.host.asked != "plan web" {
		t.Errorf("plan: %+v, %v", p, err)
	}
	if got, err := c.Drill(ctx, "a-drill"); err != nil || got.State != drill.Held {
		t.Errorf("report: %+v, %v", got, err)
	}
	if l, err := c.DrillList(ctx, 10); err != nil || len(l.Drills) != 1 || *l.Drills[0].Outage != 70*time.Millisecond {
		t.Errorf("list: %+v, %v", l, err)
	}
	if err := c.AbortDrill(ctx, "a-drill"); err != nil || <-r.host.asked != "abort a-drill" {
		t.Errorf("abort: %v", err)
	}
	if f, err := c.Simulate(ctx, "web", "link:alpha-beta"); err != nil || f.Fail != "link:alpha-beta" || f.Guests[0].Guest != "web" {
		t.Errorf("simulate: %+v, %v", f, err)
	}
	asker := r.caller("operator")
	for _, one := range []struct {
		pattern, method, path, body string
		code                        int
		says                        string
	}{
		{"GET /api/v1/drills/{id}", http.MethodGet, "/api/v1/drills/another", "", http.StatusNotFound, "no such drill"},
		{"GET /api/v1/drills", http.MethodGet, "/api/v1/drills?limit=0", "", http.StatusBadRequest, "between 1 and"},
		{"POST /api/v1/drills", http.MethodPost, "/api/v1/drills", `{"name":"busy"}`, http.StatusConflict, "runs already"},
		{"POST /api/v1/drills", http.MethodPost, "/api/v1/drills", `{"nam":"x"}`, http.StatusBadRequest, "unknown field"},
		{"POST /api/v1/drills", http.MethodPost, "/api/v1/drills", `{}{}`, http.StatusBadRequest, "something follows"},
		{"POST /api/v1/drills/plan", http.MethodPost, "/api/v1/drills/plan", `[]`, http.StatusBadRequest, "the request's body"},
		{"DELETE /api/v1/drills/{id}", http.MethodDelete, "/api/v1/drills/another", "", http.StatusNotFound, "does not run"},
		{"GET /api/v1/guests/{guest}/simulate", http.MethodGet, "/api/v1/guests/web/simulate?fail=nowhere", "", http.StatusBadRequest, "there is no host"},
	} {
		a := r.ask(asker, one.pattern, one.method, one.path, "", one.body)
		if a.code != one.code || !strings.Contains(a.body, one.says) {
			t.Errorf("%s %s: %d %s, want %d %q", one.method, one.path, a.code, a.body, one.code, one.says)
		}
	}
	var clock Clock
	if err := c.Get(ctx, "/api/v1/clock", &clock); err != nil || clock.Host != "alpha" || clock.BootID != "a-boot" || time.Since(clock.Time).Abs() > time.Minute {
		t.Errorf("clock: %+v, %v", clock, err)
	}
}

// TestAHostWithoutDrillsSaysSo: the routes are there, and tell.
func TestAHostWithoutDrillsSaysSo(t *testing.T) {
	f := newFake()
	from := sourcesOf(f)
	from.Drills = nil
	c := fetch(t, NewServer(from))
	for path, code := range map[string]int{"GET /api/v1/drills": http.StatusOK, "GET /api/v1/drills/a-drill": http.StatusNotFound, "POST /api/v1/drills": http.StatusNotFound,
		"POST /api/v1/drills/plan": http.StatusNotFound, "DELETE /api/v1/drills/a-drill": http.StatusNotFound, "GET /api/v1/guests/web/simulate": http.StatusNotFound} {
		method, at, _ := strings.Cut(path, " ")
		if got := c(method, at); got != code {
			t.Errorf("%s: %d, want %d", path, got, code)
		}
	}
}

// fetch asks a server without a network, as root.
func fetch(t *testing.T, s *Server) func(method, path string) int {
	t.Helper()
	return func(method, path string) int {
		req := httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody)
		w := httptest.NewRecorder()
		s.handler(everything).ServeHTTP(w, req)
		return w.Code
	}
}
