package main

// This file is what is written down: one report for all worlds, made anew after
// each trial, and the matrix in the end. The times are in timetable.go.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/google/renameio/v2"
)

// Report is what a run came to, and those that it went on from.
type Report struct {
	Build   string        `json:"build"`  // of the daemons of this run
	Builds  []string      `json:"builds"` // and of all trials
	Seed    uint64        `json:"seed"`
	Mixed   int           `json:"mixed,omitempty"` // trials drawn at random
	Disk    string        `json:"disk"`
	Memory  int           `json:"memory_mib"`
	Verify  bool          `json:"verify_all"` // all memory at every checkpoint
	Workers int           `json:"workers"`
	Times   times         `json:"settings"`
	Started time.Time     `json:"started"`
	Took    time.Duration `json:"took_ns"`
	Worlds  int           `json:"worlds"`
	Trials  []trial       `json:"trials"`
}

func newReport(o options, build string) *Report {
	return &Report{Build: build, Builds: []string{build}, Seed: o.seed, Mixed: o.mixed, Disk: string(o.mode), Memory: o.memory,
		Verify: o.verify, Workers: o.workers, Started: time.Now()}
}

// goOnFrom takes over an earlier run's trials. other: also another build's.
func (r *Report) goOnFrom(earlier *Report, other bool) error {
	switch {
	case earlier.Disk != r.Disk || earlier.Memory != r.Memory || earlier.Verify != r.Verify:
		return fmt.Errorf("it is of a %s disk, %d MiB, all memory compared: %v; this run of %s, %d, %v: give it the same flags, or another -report",
			earlier.Disk, earlier.Memory, earlier.Verify, r.Disk, r.Memory, r.Verify)
	case earlier.Mixed != r.Mixed || r.Mixed > 0 && earlier.Seed != r.Seed:
		return fmt.Errorf("it is of %d mixed trials by seed %d, this run of %d by seed %d", earlier.Mixed, earlier.Seed, r.Mixed, r.Seed)
	}
	for i := range earlier.Trials {
		b := earlier.Trials[i].Build
		if b != r.Build && !other {
			return fmt.Errorf("it is of build %s, this is %s: -other-build goes on all the same", b, r.Build)
		}
		if !slices.Contains(r.Builds, b) {
			r.Builds = append(r.Builds, b)
		}
	}
	r.Trials = append(r.Trials, earlier.Trials...)
	r.Started, r.Took, r.Worlds, r.Times = earlier.Started, earlier.Took, earlier.Worlds, earlier.Times
	return nil
}

// counts reports whether a trial is one of the matrix. One that failed with an
// earlier build is named, and is no judgement of this one.
func (r *Report) counts(t *trial) bool { return t.ok() || t.Build == r.Build }

// Failed counts the trials that did not end as they must.
func (r *Report) Failed() (n int) {
	for i := range r.Trials {
		if t := &r.Trials[i]; r.counts(t) && !t.ok() {
			n++
		}
	}
	return n
}

// Write writes the report as JSON; a file is there as it was, or whole.
func (r *Report) Write(path string) error {
	b, err := json.Marshal(struct {
		*Report
		Recoveries []Recovery `json:"recoveries"`
		Phases     []Phase    `json:"phases"`
	}{r, r.Recoveries(), r.Phases()})
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	b = append(b, '\n')
	if info, statErr := os.Stat(path); statErr == nil && !info.Mode().IsRegular() {
		err = os.WriteFile(path, b, 0o644) // a pipe, a terminal
	} else {
		err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), renameio.WriteFile(path, b, 0o644))
	}
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) error {
	var rows, columns []string
	for i := range r.Trials {
		t := &r.Trials[i]
		if !slices.Contains(rows, t.Row) {
			rows = append(rows, t.Row)
		}
		if !slices.Contains(columns, t.Fault) {
			columns = append(columns, t.Fault)
		}
	}
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(out, format, a...) } // Flush tells errors
	p("\nTrials that ended as they must, of all, and the median time from the fault to the first line after the silence that it made; m: a trial went on only\nafter the mending, where that may be; b: it booted anew, since no host had a copy of it any more\n\n")
	for i, column := range columns {
		p("%d: %s\n", i+1, column)
	}
	p("\n")
	for i := range columns {
		p("\t%d", i+1)
	}
	p("\t\n")
	for _, row := range rows {
		p("%s", row)
		for _, column := range columns {
			var all []trial
			for i := range r.Trials {
				if t := &r.Trials[i]; t.Row == row && t.Fault == column && r.counts(t) {
					all = append(all, *t)
				}
			}
			p("\t%s", square(all))
		}
		p("\t\n")
	}
	r.printParts(p, columns)
	r.printTimes(p)
	r.printPhases(p)
	if err := out.Flush(); err != nil {
		return err
	}
	return r.printEnd(w)
}

// printEnd names what failed, and sums up.
func (r *Report) printEnd(w io.Writer) error {
	var all seen
	trials, breaches := 0, 0
	for i := range r.Trials {
		t := &r.Trials[i]
		all.Lines += t.Seen.Lines
		all.Acked += t.Seen.Acked
		all.Batches += t.Seen.Batches
		all.Frames += t.Seen.Frames
		breaches += len(t.Breaches)
		earlier := ""
		if r.counts(t) {
			trials++
		} else {
			earlier = " (build " + t.Build + ")"
		}
		if !t.ok() {
			if _, err := fmt.Fprintf(w, "\n%s%s: %s: %s\n", t.Outcome, earlier, t.name(), t.Why); err != nil {
				return err
			}
		}
	}
	for _, b := range r.Builds {
		if _, err := fmt.Fprintf(w, "\nbuild %s", b); err != nil {
			return err
		}
	}
	compared := ""
	if r.Verify {
		compared = " (all memory compared at every checkpoint)"
	}
	_, err := fmt.Fprintf(w, "\nseed %d, %s disk, %d MiB, lease %v: %d of %d trials as they must be, in %v by %d at a time, %d worlds; %d lines of history with %d acknowledged epochs%s, %d batches of frames and %d captured frames: %d breaches\n",
		r.Seed, r.Disk, r.Memory, r.Times.Lease, trials-r.Failed(), trials, r.Took.Round(time.Second), r.Workers, r.Worlds, all.Lines, all.Acked, compared, all.Batches, all.Frames, breaches)
	return err
}

// square is one square of the matrix.
func square(all []trial) string {
	if len(all) == 0 {
		return ""
	}
	good, booted, mended := 0, "", ""
	var first []time.Duration
	for i := range all {
		t := &all[i]
		switch {
		case !t.ok():
			continue
		case t.Outcome == boots:
			booted = "b"
		case t.Mended:
			mended = "m"
		}
		good++
		if t.FirstLine > 0 {
			first = append(first, t.FirstLine)
		}
	}
	text := fmt.Sprintf("%d/%d", good, len(all))
	if good < len(all) {
		text += "!"
	}
	if len(first) > 0 {
		text += fmt.Sprintf(" %.1fs", quantile(first, 50).Seconds())
	}
	return text + mended + booted
}
