package status

// The metrics: what a scrape of a made-up host gives (testdata/metrics.txt), by
// the rules of Prometheus' own linter and ours; METRICS.md names each, and no
// other; and nothing that counts ever goes back.

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"pgregory.net/rapid"

	"understudy/disk"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

func moment() scene {
	return scene{uptime: 90 * time.Second, cluster: known(), report: Report{Host: "alpha", Lease: time.Second, Guests: []host.GuestStatus{standing(), running()},
		Certificates: []Certificate{{"host", runsOut}, {"authority", runsOut.AddDate(5, 0, 0)}},
		Config:       ConfigBrief{Hash: "0123abcd", Others: map[ownership.HostID]string{"beta": "0123abcd", "witness": "ffff0000"}}}}
}

func gather(t testing.TB, c *collector) []*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// golden compares got with a file, or writes it anew.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("it is not %s (go test ./status -update):\n%s", path, got)
	}
}

func TestAScrapeIsTheGoldenFile(t *testing.T) {
	var b bytes.Buffer
	e := expfmt.NewEncoder(&b, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range gather(t, newCollector(moment)) {
		if err := e.Encode(f); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, filepath.Join("testdata", "metrics.txt"), bytes.ReplaceAll(b.Bytes(), []byte(runtime.Version()), []byte("GOVERSION")))
}

// TestTheEndpointsOwnCertificateIsToldOf, while it is on the network.
func TestTheEndpointsOwnCertificateIsToldOf(t *testing.T) {
	r := newRig(t, Read)
	a := r.ask(r.caller(""), "GET /metrics", http.MethodGet, "/metrics", "", "")
	got := regexp.MustCompile(`(?m)^understudy_certificate_expiry_timestamp_seconds{certificate="endpoint"} (\S+)$`).FindStringSubmatch(a.body)
	if got == nil {
		t.Fatalf("not told:\n%s", a.body)
	}
	if at, err := strconv.ParseFloat(got[1], 64); err != nil || at < float64(time.Now().Unix()) {
		t.Errorf("it runs out at %s: %v", got[1], err)
	}
}

// units are what a name's end says of its unit; what counts things names them.
var units = regexp.MustCompile(`_(seconds|bytes|info|total|code|pages|frames|writes|unfilled|index|term|generation|epoch)$`)

func TestNamesAndUnitsKeepTheConventions(t *testing.T) {
	families := gather(t, newCollector(moment))
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	emitted := map[string]*dto.MetricFamily{}
	for _, f := range families {
		emitted[f.GetName()] = f
	}
	name := regexp.MustCompile(`^understudy_[a-z]+(_[a-z]+)*$`)
	for _, m := range metrics {
		f := emitted[m.name]
		state := len(m.labels) == 1 && m.ofGuest != nil && emitted[m.name+"_code"] != nil
		flag := f != nil && m.kind == gauge && strings.Contains(m.help, "1 ")
		switch {
		case !name.MatchString(m.name):
			t.Errorf("%s: the name", m.name)
		case f == nil:
			t.Errorf("%s is in the table and never emitted", m.name)
		case !units.MatchString(m.name) && !state && !flag:
			t.Errorf("%s has no unit, and is no state", m.name)
		case (m.kind == counter) != strings.HasSuffix(m.name, "_total"):
			t.Errorf("%s: _total is for what counts, and only for that", m.name)
		case !strings.HasSuffix(m.help, "."):
			t.Errorf("%s: its help is no sentence: %q", m.name, m.help)
		}
		delete(emitted, m.name)
	}
	for name := range emitted {
		t.Errorf("%s is emitted, and not in the table", name)
	}
}

func TestMetricsAreDocumented(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Metrics of `GET /metrics`\n\nMade from the table in metriclist.go (`go test ./status -update`). A metric of a guest has the label `guest`. " +
		"What is not known has no series.\nThe usual `go_*` and `process_*` are there as well.\n\n| name | type | labels | |\n|---|---|---|---|\n")
	kinds := [...]string{gauge: "gauge", counter: "counter", summary: "summary"}
	for _, m := range metrics {
		labels := strings.Join(m.labels, ", ")
		if m.ofGuest != nil {
			labels = strings.TrimSuffix("guest, "+labels, ", ")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, kinds[m.kind], labels, m.help)
	}
	golden(t, "METRICS.md", []byte(b.String()))
}

// TestWhatCountsNeverGoesBack: whatever the host says, in whatever order.
func TestWhatCountsNeverGoesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := moment()
		c := newCollector(func() scene { return now })
		registry := prometheus.NewRegistry()
		registry.MustRegister(c)
		last := map[string]float64{}
		for range rapid.IntRange(1, 8).Draw(t, "scrapes") {
			g := running()
			n := rapid.Uint64Range(0, 1000)
			if rapid.Bool().Draw(t, "primary") {
				g.Primary.Totals = primary.Totals{Checkpoints: n.Draw(t, "checkpoints"), PauseTime: time.Duration(n.Draw(t, "pause")), RawPages: n.Draw(t, "pages")}
			} else {
				g.Primary = nil
			}
			g.Earlier = nil
			g.Disks = &disk.Status{Reads: n.Draw(t, "reads")}
			now.report.Guests = []host.GuestStatus{g}
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					key := f.GetName() + m.String()[:0] + fmt.Sprint(m.GetLabel())
					for about, v := range map[string]float64{"": m.GetCounter().GetValue(), " sum": m.GetSummary().GetSampleSum(), " count": float64(m.GetSummary().GetSampleCount())} {
						if v < last[key+about] {
							t.Fatalf("%s%s went from %g to %g", key, about, last[key+about], v)
						}
						last[key+about] = v
					}
				}
			}
		}
	})
}

func TestAScrapeOverTheNetworkIsWellFormed(t *testing.T) {
	r := newRig(t, Read)
	a := r.ask(r.caller(""), "GET /metrics", http.MethodGet, "/metrics", "", "")
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"understudy_guest_lease_left_seconds", "understudy_guest_in_sync", "go_goroutines", "process_start_time_seconds"} {
		if families[want] == nil {
			t.Errorf("there is no %s", want)
		}
	}
}
