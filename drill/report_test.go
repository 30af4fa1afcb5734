package drill

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/html"

	"understudy/ownership"
)

var update = flag.Bool("update", false, "write the golden reports in testdata anew")

const hostile = "<script>alert(1)</script>\"'&\x00\x1b[31m\u202e]]>--><!--"

// hostileReport has in every text what a page, a terminal or an XML reader would
// obey.
func hostileReport() Report {
	lag := 20 * time.Millisecond
	r := Report{ID: "20260405t030000000z-weekly-1f2e3d", State: Failed, Why: hostile, Host: "witness", Began: time.Date(2026, 4, 5, 3, 0, 0, 0, time.UTC),
		Took: 14300 * time.Millisecond, From: "alpha", To: "beta",
		Spec:       Spec{Name: "weekly", Guest: hostile, Kind: Failover, Fault: Kill, Probe: "192.0.2.10:22", Check: []string{"/bin/x"}},
		Conditions: []Condition{{"the guest runs", true, hostile}, {hostile, false, "no"}},
		Clocks:     []Offset{{hostile, 3 * time.Second, time.Millisecond, 8}},
		Timeline: []Step{{0, 0, "witness", stepPhase, "act"}, {time.Second, time.Millisecond, "alpha", stepStrike, "kill for 10s"},
			{2100 * time.Millisecond, time.Millisecond, ownership.HostID(hostile), "first-output", hostile}, {3 * time.Second, 0, "witness", stepPhase, "return"}},
		RTO: RTO{FirstOutput: &Measured{1050 * time.Millisecond, 2 * time.Millisecond}, Outage: &Measured{1100 * time.Millisecond, 50 * time.Millisecond}, Text: "first output 1.05s ±2ms after the strike"},
		RPO: &RPO{Committed: 2447, SeenBefore: 3 * time.Millisecond, Resumed: 2448, Age: &Measured{40 * time.Millisecond, time.Millisecond}, OutputLost: hostile},
		Checks: []Check{{Name: "check", Verdict: No, Text: "exit status 3", Took: time.Second, Output: hostile + "\n" + strings.Repeat("x", 200)},
			{Name: "outage within 3s", Verdict: Yes, Text: "1.1s"}},
		Guarantees: []Guarantee{{"never two owners", Yes, "the records"}, {hostile, No, hostile}, {"held output left", Unknown, "it was not looked for"}},
		Left:       []string{hostile},
	}
	for i := range 100 {
		at := time.Duration(i) * 140 * time.Millisecond
		r.Probe = append(r.Probe, Knock{at, time.Duration(i%7+1) * time.Millisecond, i < 7 || i > 15})
		r.Samples = append(r.Samples, Sample{At: at, Host: "alpha", Role: "primary", Lag: &lag, HeldBytes: int64(i * 100)},
			Sample{At: at, Host: ownership.HostID(hostile), Role: "backup"})
	}
	return r
}

// TestGoldenReports keeps the formats in sight.
func TestGoldenReports(t *testing.T) {
	r := hostileReport()
	for name, write := range map[string]func(io.Writer) error{"report.txt": r.WriteTable, "report.xml": r.WriteJUnit, "report.html": r.WriteHTML} {
		var got bytes.Buffer
		if err := write(&got); err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(golden, got.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s is another (go test ./drill -run Golden -update):\n%s", golden, got.Bytes())
		}
	}
}

// TestNothingInAReportIsObeyed: not by a terminal, not by a browser.
func TestNothingInAReportIsObeyed(t *testing.T) {
	r := hostileReport()
	var table, page bytes.Buffer
	if err := r.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, c := range table.String() {
		if c < ' ' && c != '\n' || c == '\u202e' {
			t.Fatalf("the table has %q:\n%q", c, table.String())
		}
	}
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	doc, err := html.Parse(bytes.NewReader(page.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	refers := []string{}
	svgs, captions := 0, 0
	for n := range doc.Descendants() {
		if n.Type == html.CommentNode {
			t.Errorf("the page has a comment %q", n.Data)
		}
		switch n.Data {
		case "script", "iframe", "object", "img", "link", "base", "form":
			if n.Type == html.ElementNode {
				t.Errorf("the page has a <%s>", n.Data)
			}
		case "svg":
			svgs++
		case "figcaption":
			captions++
		}
		for _, a := range n.Attr {
			switch {
			case strings.HasPrefix(a.Key, "on"), a.Key == "href", a.Key == "src", strings.Contains(a.Val, "NaN"), strings.Contains(a.Val, "ZgotmplZ"):
				t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
			case a.Key == "id" && ids[a.Val]:
				t.Errorf("two elements have the id %q", a.Val)
			case a.Key == "id":
				ids[a.Val] = true
			case a.Key == "aria-labelledby":
				refers = append(refers, strings.Fields(a.Val)...)
			}
		}
	}
	for _, id := range refers {
		if !ids[id] {
			t.Errorf("nothing has the id %q", id)
		}
	}
	if captions != 4 || svgs < 4 {
		t.Errorf("%d figures have captions, %d drawings; want timeline, probe, commit lag, held output", captions, svgs)
	}
}

// TestJUnitIsRead as a pipeline reads it: by its schema, and by its counts.
func TestJUnitIsRead(t *testing.T) {
	for _, c := range []struct {
		state                          State
		tests, failures, errors, skips int
		clear                          bool
	}{
		{state: Failed, tests: 6, failures: 4},
		{state: Aborted, tests: 7, failures: 4, errors: 1},
		{state: Skipped, clear: true, tests: 1, skips: 1},
		{state: Refused, clear: true, tests: 1, errors: 1},
		{state: Held, clear: true},
	} {
		r := hostileReport()
		r.State = c.state
		if c.clear {
			r.Checks, r.Guarantees, r.Left = nil, nil, nil
		}
		var text bytes.Buffer
		if err := r.WriteJUnit(&text); err != nil {
			t.Fatal(err)
		}
		var got junitSuites
		d := xml.NewDecoder(&text)
		d.Strict = true
		if err := d.Decode(&got); err != nil {
			t.Fatalf("%s: %v", c.state, err)
		}
		s := got.Suites[0]
		counted := [4]int{len(s.Cases), 0, 0, 0}
		for _, one := range s.Cases {
			if one.Class != "understudy.drill.failover" || one.Name == "" || !regexp.MustCompile(`^\d+\.\d{3}$`).MatchString(one.Time) {
				t.Errorf("%s: case %+v", c.state, one)
			}
			for i, x := range []*junitTrouble{one.Failure, one.Error, one.Skipped} {
				if x != nil {
					counted[i+1]++
				}
			}
		}
		want := [4]int{c.tests, c.failures, c.errors, c.skips}
		if said := [4]int{s.Tests, s.Failures, s.Errors, s.Skipped}; said != want || counted != want {
			t.Errorf("%s: says %v, has %v, want %v", c.state, said, counted, want)
		}
	}
}

// TestAReportOfARealRunHasItsFigures: what a drill leaves is drawn, and stays
// within its bounds however long the drill was.
func TestAReportOfARealRunHasItsFigures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := Run(t.Context(), spec(Failover), newWorld(script{syncTakes: 10 * time.Minute}), Options{ID: "a-drill"})
		if r.State != Held {
			t.Fatalf("%s\n%s", r.Why, tellAll(r))
		}
		if n := len(r.Probe); n == 0 || n > maxKnocks {
			t.Errorf("%d knocks", n)
		}
		if n := len(r.Samples); n == 0 || n > maxSamples {
			t.Errorf("%d samples", n)
		}
		if p := r.plots(); len(p) != 4 {
			t.Errorf("%d plots", len(p))
		}
		text, err := json.Marshal(r)
		if err != nil || len(text) > MaxReport/2 {
			t.Errorf("%d bytes, %v", len(text), err)
		}
		if again, err := ParseReport(text); err != nil || again.State != r.State || len(again.Timeline) != len(r.Timeline) {
			t.Errorf("read back: %v", err)
		}
	})
}

// TestPlansAndForecastsAreReadable: nothing of them is obeyed, either.
func TestPlansAndForecastsAreReadable(t *testing.T) {
	after := time.Second
	p := Plan{Spec: Spec{Guest: hostile, Kind: Bubble}, Host: "w", Conditions: []Condition{{hostile, true, hostile}}, Steps: []string{hostile}, Risks: []string{hostile}, Outage: Expected{time.Second, hostile}}
	f := Forecast{Fail: hostile, Leader: hostile, Unknown: []string{hostile}, Guests: []Fate{{Guest: hostile, Outcome: Waits, After: &after, Loses: hostile, Why: []string{hostile}}}}
	for _, write := range []func(io.Writer) error{p.WriteTable, f.WriteTable} {
		var b bytes.Buffer
		if err := write(&b); err != nil || b.Len() == 0 || strings.ContainsAny(b.String(), "\x1b\x00\u202e") {
			t.Errorf("%v: %q", err, b.String())
		}
	}
}
