// Package packaging tries what operators are given beside the programs: packages,
// units, examples, and here what their monitoring asks.
package packaging

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// ruleFile is a file of Prometheus' rules.
type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []rule
	}
}

type rule struct {
	Record, Alert, Expr, For string
	Labels, Annotations      map[string]string
}

func rules(t *testing.T, path string) (all []rule) {
	t.Helper()
	var f ruleFile
	text := read(t, path)
	d := yaml.NewDecoder(strings.NewReader(text))
	if err := d.Decode(&f); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, g := range f.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatalf("%s has no rules", path)
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// series are the names that may be asked for: those of METRICS.md, what
// Prometheus itself adds, and what our own rules record.
func series(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{"up": true}
	for _, m := range regexp.MustCompile("(?m)^\\| `(understudy_[a-z0-9_]+)` \\| (gauge|counter|summary|histogram) ").FindAllStringSubmatch(read(t, "../status/METRICS.md"), -1) {
		known[m[1]] = true
		if m[2] == "summary" || m[2] == "histogram" {
			known[m[1]+"_sum"], known[m[1]+"_count"] = true, true
		}
	}
	if len(known) < 20 {
		t.Fatalf("METRICS.md has %d series: is the pattern still right?", len(known))
	}
	for _, r := range rules(t, "prometheus/rules.yaml") {
		known[r.Record] = true
	}
	return known
}

// asked are the series that an expression names.
var asked = regexp.MustCompile(`\b(?:(?:guest|host|cluster):)?understudy_[a-zA-Z0-9_]+(?::[a-z0-9]+)?\b|\bup\b`)

func TestRulesAskForSeriesThatAreThere(t *testing.T) {
	known := series(t)
	for _, path := range []string{"prometheus/rules.yaml", "prometheus/alerts.yaml"} {
		for _, r := range rules(t, path) {
			names := asked.FindAllString(r.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s: %s%s asks for nothing: %s", path, r.Record, r.Alert, r.Expr)
			}
			for _, n := range names {
				if !known[n] {
					t.Errorf("%s: %s%s asks for %s, which nobody has", path, r.Record, r.Alert, n)
				}
			}
		}
	}
}

// TestEveryAlertSaysWhatToDo: who is woken at night finds what it is about, and
// what to do about it.
func TestEveryAlertSaysWhatToDo(t *testing.T) {
	runbook := read(t, "prometheus/runbook.md")
	var named []string
	for _, r := range rules(t, "prometheus/alerts.yaml") {
		named = append(named, r.Alert)
		for _, key := range []string{"summary", "description", "runbook_url"} {
			if r.Annotations[key] == "" {
				t.Errorf("%s has no %s", r.Alert, key)
			}
		}
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s has the severity %q", r.Alert, r.Labels["severity"])
		}
		if want := "/usr/share/doc/understudy/runbook.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url %s, want %s", r.Alert, r.Annotations["runbook_url"], want)
		}
		if !strings.Contains(runbook, "\n## "+r.Alert+"\n") {
			t.Errorf("runbook.md says nothing of %s", r.Alert)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(runbook, -1) {
		if !slices.Contains(named, m[1]) {
			t.Errorf("runbook.md tells of %s, which no alert is called", m[1])
		}
	}
}

// dashboard is what matters of Grafana's file.
type dashboard struct {
	UID, Title string
	Panels     []struct {
		ID          int
		Type, Title string
		GridPos     struct{ H, W, X, Y int }
		Targets     []struct{ Expr string }
	}
	Templating struct {
		List []struct{ Name string }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, "grafana/understudy.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestTheDashboardAsksForSeriesThatAreThere(t *testing.T) {
	known := series(t)
	d := readDashboard(t)
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%q lies over %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%q asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			names := asked.FindAllString(target.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%q asks for nothing: %s", p.Title, target.Expr)
			}
			for _, n := range names {
				if !known[n] {
					t.Errorf("%q asks for %s, which nobody has", p.Title, n)
				}
			}
		}
	}
	if d.UID != "understudy" || len(d.Panels) < 10 || len(d.Templating.List) != 2 {
		t.Errorf("uid %s, %d panels, %d variables", d.UID, len(d.Panels), len(d.Templating.List))
	}
}

// asRules writes the dashboard's expressions as rules, so that Prometheus' own
// parser can judge them.
func asRules(d dashboard) []byte {
	var b strings.Builder
	b.WriteString("groups:\n- name: dashboard\n  rules:\n")
	grafana := strings.NewReplacer("$__rate_interval", "1m", "$guest", ".*")
	n := 0
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			n++
			fmt.Fprintf(&b, "  - record: panel:%d\n    expr: %q\n", n, grafana.Replace(target.Expr))
		}
	}
	return []byte(b.String())
}

// TestAWrongSeriesIsNoticed makes sure that the tests above can fail.
func TestAWrongSeriesIsNoticed(t *testing.T) {
	known := series(t)
	for expr, want := range map[string]string{
		`rate(understudy_guest_pauses_total[5m])`:       "understudy_guest_pauses_total",
		`guest:understudy_guest_lag_seconds:p99 > 1`:    "guest:understudy_guest_lag_seconds:p99",
		`max(understudy_guest_pause_seconds_bucket{})`:  "understudy_guest_pause_seconds_bucket",
		`understudy_raft_leads == 1 and understudy_new`: "understudy_new",
	} {
		found := asked.FindAllString(expr, -1)
		if !slices.Contains(found, want) || known[want] {
			t.Errorf("%s: found %q, known: %v", expr, found, known[want])
		}
	}
}
