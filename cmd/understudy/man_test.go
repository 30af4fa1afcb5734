package main

// The manual says what the commands say, in a form that readers of man pages
// accept without a complaint.

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/cmd/manual"
)

func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	c := root(&common{})
	if err := manual.Check(c); err != nil {
		t.Errorf("%v\nsay it beside the command, or in help.go", err)
	}
	known := map[string]bool{}
	for _, sub := range manual.Commands(c) {
		known[strings.TrimPrefix(strings.TrimPrefix(sub.CommandPath(), "understudy"), " ")] = true
	}
	for path := range texts {
		if !known[path] {
			t.Errorf("help.go tells of a command %q that is not there", path)
		}
	}
}

// TestTheManualIsReadable: mandoc and groff find nothing wrong with any page, and
// what a reader looks for is there.
func TestTheManualIsReadable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, program := range []string{"understudy", "understudyd"} {
		if out, err := exec.Command(filepath.Join(programs, program), "man", "--dir", dir, "--date", "2026-01-02").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	pages, err := filepath.Glob(filepath.Join(dir, "man[158]", "understudy*"))
	if err != nil || len(pages) < len(manual.Commands(root(&common{}))) {
		t.Fatalf("pages: %q, %v", pages, err)
	}
	lint := exec.Command("mandoc", append([]string{"-T", "lint", "-W", "warning"}, pages...)...)
	if out, err := lint.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s: %v\n%s", lint, err, out)
	}
	for _, page := range pages {
		man := exec.Command("man", "--warnings", "--encoding=UTF-8", "--local-file", page)
		man.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "MANWIDTH=100", "MAN_KEEP_FORMATTING="}
		var complaints strings.Builder
		man.Stderr = &complaints
		text, err := man.Output()
		if err != nil || complaints.Len() > 0 {
			t.Errorf("%s: %v\n%s", man, err, complaints.String())
		}
		for _, want := range map[string][]string{
			"understudy-status.1": {"NAME", "SYNOPSIS", "EXIT STATUS", "A guest that this host runs is not protected", "understudy(1)", "--output", "jq '.guests[]"},
			"understudy.toml.5":   {"[[guest]]", "heartbeat", "understudyd(8)"},
			"understudyd.8":       {"--log-format", "/var/lib/understudy", "Ended by SIGINT"},
			"understudy.1":        {"understudy-switchover(1)", "/etc/understudy/understudy.toml"},
		}[filepath.Base(page)] {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s does not say %q:\n%s", filepath.Base(page), want, text)
			}
		}
	}
}

func TestADateForTheManual(t *testing.T) {
	t.Parallel()
	page := string(about(time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)).Page(root(&common{})))
	if !strings.HasPrefix(page, `.TH "UNDERSTUDY" 1 2026-01-02`) {
		t.Errorf("%.100s", page)
	}
}
