package main

import (
	"bytes"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"understudy/config"
)

// TestReportSaysWhatFailed prints one of each kind of outcome.
func TestReportSaysWhatFailed(t *testing.T) {
	r := Report{Build: "b2", Builds: []string{"b2", "b1"}, Trials: []trial{
		{Build: "b2", Row: "p: x", Fault: "kill", Outcome: goesOn, Promise: mustGoOn, Outage: 1200 * time.Millisecond, FirstLine: 1200 * time.Millisecond, Granted: 1000 * time.Millisecond,
			Running: 1010 * time.Millisecond, Explained: 1006 * time.Millisecond, ExplainedWhy: "the lease", Phases: []phase{{"settle", 2 * time.Second}}},
		{Build: "b1", Row: "p: x", Fault: "kill", Outcome: boots, Mended: true},
		{Build: "b2", Row: "p: y", Fault: "cut", Outcome: failed, Why: "it broke"},
		{Build: "b1", Row: "p: y", Fault: "cut", Outcome: failed, Why: "it broke before"},
	}}
	var out bytes.Buffer
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2/2 1.2sb", "1: kill", "0/1!", "1200 ms", "≤ 1006", "the lease", "FAILED: p: y / cut: it broke\n",
		"FAILED (build b1): p: y / cut: it broke before", "2 of 3 trials", "build b1", "settle"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
	if r.Failed() != 1 {
		t.Errorf("%d failed", r.Failed())
	}
}

// TestARunGoesOn: what was played well is not played again, and what another
// build played counts only when that is said.
func TestARunGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "report.json")
	all := cells(regexp.MustCompile("^protected: (sent|released) / kill (owner|backup)$"), config.Replicated, false)
	o := options{repeat: 2, seed: 3, mode: config.Replicated, memory: 112, workers: 2}
	first := queue{ctx: t.Context(), out: path, say: io.Discard, waiting: plan(all, o), report: newReport(o, "b1")}
	for i, outcome := range []string{goesOn, goesOn, goesOn, failed, boots} {
		j, _ := first.next()
		if j.number != i+1 {
			t.Fatalf("trial %d has the number %d", i+1, j.number)
		}
		first.done(trial{Number: j.number, Row: j.cell.row(), Fault: j.cell.fault.name, Outcome: outcome})
	}

	again := func(build string, other bool) (*queue, error) {
		q := queue{ctx: t.Context(), out: path, say: io.Discard, waiting: plan(all, o), report: newReport(o, build)}
		return &q, q.resume(path, other)
	}
	q, err := again("b1", false)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, j := range q.waiting {
		left = append(left, j.cell.String())
	}
	want := []string{all[1].String(), all[2].String(), all[3].String(), all[3].String()}
	if strings.Join(left, ", ") != strings.Join(want, ", ") {
		t.Errorf("left are %q, want %q", left, want)
	}
	if q.report.Failed() != 1 || len(q.report.Trials) != 5 {
		t.Errorf("%d trials, %d failed", len(q.report.Trials), q.report.Failed())
	}
	if _, err := again("b2", false); err == nil || !strings.Contains(err.Error(), "-other-build") {
		t.Errorf("another build: %v", err)
	}
	q, err = again("b2", true)
	if err != nil || len(q.waiting) != 4 || len(q.report.Builds) != 2 || q.report.Failed() != 0 {
		t.Errorf("another build that is welcome: %d left, builds %v, %d failed: %v", len(q.waiting), q.report.Builds, q.report.Failed(), err)
	}
	o.mode = config.Shared
	if _, err := again("b1", false); err == nil {
		t.Error("a report of another disk was gone on from")
	}
}

// TestMixedTrialsGoOnByNumber: their order is the seed's.
func TestMixedTrialsGoOnByNumber(t *testing.T) {
	o := options{mixed: 6, seed: 9, mode: config.Replicated}
	order := plan(cells(regexp.MustCompile(""), config.Replicated, false), o)
	for i, j := range plan(cells(regexp.MustCompile(""), config.Replicated, false), o) {
		if j.number != i+1 || j.cell.String() != order[i].cell.String() {
			t.Errorf("trial %d is %v of number %d, and was %v", i+1, j.cell, j.number, order[i].cell)
		}
	}
	r := newReport(o, "b")
	r.Trials = []trial{{Number: 2, Outcome: goesOn}, {Number: 4, Outcome: failed}}
	left := missingOf(order, r)
	if len(left) != 5 || left[1].number != 3 {
		t.Errorf("left are %v", left)
	}
}
