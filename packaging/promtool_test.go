package packaging

// Prometheus' own tool reads the rules, and plays nights through them: promtool
// out of Debian's package, which is unpacked, not installed.

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// cache holds what is fetched once: see make clean.
const cache = "../build/packaging"

// promtool returns the path of the program, which it fetches if need be.
func promtool(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(cache, "promtool"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o755); err != nil { // apt fetches as its own account
		t.Fatal(err)
	}
	says(t, dir, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "prometheus")
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("apt-get download made %q, %v", debs, err)
	}
	says(t, "", "dpkg-deb", "-x", debs[0], dir)
	if err := os.Rename(filepath.Join(dir, "usr/bin/promtool"), path); err != nil {
		t.Fatal(err)
	}
	return path
}

// says runs a program that must succeed, and returns what it says.
func says(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestPrometheusReadsTheRules(t *testing.T) {
	tool := promtool(t)
	panels := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(panels, asRules(readDashboard(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	out := says(t, "", tool, "check", "rules", "prometheus/rules.yaml", "prometheus/alerts.yaml", panels)
	if strings.Count(out, "SUCCESS") != 3 {
		t.Error(out)
	}
}

// TestTheAlertsFire: each on the night it is for, and on no quiet one. The words
// are left out: promtool would compare them all.
func TestTheAlertsFire(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("rules.yaml", read(t, "prometheus/rules.yaml"))
	put("alerts.yaml", regexp.MustCompile(`(?m)^        annotations:\n(          .*\n)+`).ReplaceAllString(read(t, "prometheus/alerts.yaml"), ""))
	nights := read(t, "prometheus/testdata/nights.yaml")
	put("nights.yaml", nights)
	if out := says(t, dir, promtool(t), "test", "rules", "nights.yaml"); !strings.Contains(out, "SUCCESS") {
		t.Error(out)
	}
	for _, r := range rules(t, "prometheus/alerts.yaml") {
		if !strings.Contains(nights, "alertname: "+r.Alert+"\n        exp_alerts:\n") {
			t.Errorf("no night for %s", r.Alert)
		}
	}
}
