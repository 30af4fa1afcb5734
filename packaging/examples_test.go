package packaging

import (
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"understudy/config"
)

// TestTheExamplesHold: `understudy config check` would accept each, and each says
// what it is.
func TestTheExamplesHold(t *testing.T) {
	t.Parallel()
	found, err := filepath.Glob("examples/*.toml")
	if err != nil || len(found) < 4 {
		t.Fatalf("examples: %q, %v", found, err)
	}
	for _, path := range found {
		c, err := config.Load(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if len(c.Guests) == 0 || !strings.HasPrefix(read(t, path), "# ") {
			t.Errorf("%s has %d guests, or does not say what it is", path, len(c.Guests))
		}
	}
}

// TestTheRecipesAgree: what a recipe begins with is in what it ends with.
func TestTheRecipesAgree(t *testing.T) {
	t.Parallel()
	c, err := config.Load("examples/libvirt.toml")
	if err != nil {
		t.Fatal(err)
	}
	var domain struct {
		Name string `xml:"name"`
		VCPU int    `xml:"vcpu"`
		OS   struct {
			Type struct {
				Machine string `xml:"machine,attr"`
			} `xml:"type"`
		} `xml:"os"`
		Model string `xml:"cpu>model"`
		MAC   struct {
			Address string `xml:"address,attr"`
		} `xml:"devices>interface>mac"`
		Source struct {
			File string `xml:"file,attr"`
		} `xml:"devices>disk>source"`
	}
	if err := xml.Unmarshal([]byte(read(t, "examples/libvirt.xml")), &domain); err != nil {
		t.Fatal(err)
	}
	g := c.Guests[0]
	if g.Name != domain.Name || g.CPUs != domain.VCPU || g.Machine != domain.OS.Type.Machine || g.CPU != domain.Model ||
		g.Disks[0].Path != domain.Source.File || g.NICs[0].MAC.String() != domain.MAC.Address {
		t.Errorf("the domain %+v became %+v", domain, g)
	}
	if c, err = config.Load("examples/qemu.toml"); err != nil {
		t.Fatal(err)
	}
	line := read(t, "examples/qemu.md")
	g = c.Guests[0]
	for _, want := range []string{"file=" + g.Disks[0].Path, "file=" + g.Disks[1].Path, "mac=" + g.NICs[0].MAC.String(), "-machine " + g.Machine, "br=" + g.NICs[0].Bridge} {
		if !strings.Contains(line, want) {
			t.Errorf("qemu.md has no %s", want)
		}
	}
	for _, doc := range []string{"examples/qemu.md", "examples/libvirt.md"} {
		for _, m := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(read(t, doc), -1) {
			if _, err := os.Stat(filepath.Join("examples", m[1])); err != nil {
				t.Errorf("%s: %v", doc, err)
			}
		}
	}
}

// TestThePrometheusExample names the files that the package brings.
func TestThePrometheusExample(t *testing.T) {
	t.Parallel()
	var c struct {
		RuleFiles []string `yaml:"rule_files"`
		Scrape    []struct {
			Job string `yaml:"job_name"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "examples/prometheus.yml")), &c); err != nil {
		t.Fatal(err)
	}
	stage := read(t, "build/stage.go")
	for _, f := range c.RuleFiles {
		if !strings.Contains(stage, `"`+f+`"`) {
			t.Errorf("the package has no %s", f)
		}
	}
	if len(c.RuleFiles) != 2 || len(c.Scrape) != 1 || c.Scrape[0].Job != "understudy" {
		t.Errorf("%+v", c)
	}
}

// TestSystemdAcceptsTheUnit, and finds the daemon not altogether exposed.
func TestSystemdAcceptsTheUnit(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=70", "systemd/understudyd.service").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	unit := read(t, "systemd/understudyd.service")
	for _, want := range []string{"Type=notify", "KillMode=process", "RuntimeDirectoryPreserve=yes", "WatchdogSec=", "ExecStartPre=/usr/bin/understudy config check", "ExecReload=kill -HUP $MAINPID", "Restart=on-failure"} {
		if !strings.Contains(unit, "\n"+want) {
			t.Errorf("the unit has no %s", want)
		}
	}
}
