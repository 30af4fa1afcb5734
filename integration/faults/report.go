package main

// This file is what is printed and written in the end: the matrix, and the times
// by kind of fault.

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

// Report is what a run came to.
type Report struct {
	Seed     uint64        `json:"seed"`
	Disk     string        `json:"disk"`
	Lease    time.Duration `json:"lease_ns"`
	Started  time.Time     `json:"started"`
	Took     time.Duration `json:"took_ns"`
	Worlds   int           `json:"worlds"`
	Lines    int           `json:"history_lines"`
	Batches  int           `json:"history_batches"`
	Frames   int           `json:"captured_frames"`
	Breaches int           `json:"breaches"`
	Trials   []trial       `json:"trials"`
}

// Failed counts the trials that did not end as they must.
func (r *Report) Failed() (n int) {
	for i := range r.Trials {
		if !r.Trials[i].ok() {
			n++
		}
	}
	return n
}

// Write writes the report as JSON.
func (r *Report) Write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, append(b, '\n'), 0o644)
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
	p("\nTrials that ended as they must, of all, and the median time to the first line after the fault; (m): only after the mending; (b): booted anew\n")
	for _, row := range rows {
		p("\n%s\n", row)
		for _, column := range columns {
			var all []trial
			for i := range r.Trials {
				if t := &r.Trials[i]; t.Row == row && t.Fault == column {
					all = append(all, *t)
				}
			}
			if len(all) > 0 {
				p("  %s\t%s\n", column, square(all))
			}
		}
	}
	p("\nfault\ttrials\tfirst line, median\tp99\tgranted, median\trunning after the grant\tlongest silence\tprotected again\n")
	for _, column := range columns {
		var first, granted, running, outage, again []time.Duration
		n := 0
		for i := range r.Trials {
			t := &r.Trials[i]
			if t.Fault != column || t.Outcome != goesOn {
				continue
			}
			n++
			first, outage, again = append(first, t.FirstLine), append(outage, t.Outage), append(again, t.Again)
			if t.Granted > 0 {
				granted = append(granted, t.Granted)
			}
			if t.Running > t.Granted && t.Granted > 0 {
				running = append(running, t.Running-t.Granted)
			}
		}
		p("%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", column, n, ms(quantile(first, 50)), ms(quantile(first, 99)), ms(quantile(granted, 50)),
			ms(quantile(running, 50)), ms(quantile(outage, 100)), ms(quantile(again, 50)))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	for i := range r.Trials {
		if t := &r.Trials[i]; !t.ok() {
			if _, err := fmt.Fprintf(w, "\n%s: %s / %s: %s\n", t.Outcome, t.Row, t.Fault, t.Why); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "\nseed %d, %s disk, lease %v: %d of %d trials as they must be, in %v, %d worlds; %d lines of history with %d batches of frames and %d captured frames: %d breaches\n",
		r.Seed, r.Disk, r.Lease, len(r.Trials)-r.Failed(), len(r.Trials), r.Took.Round(time.Second), r.Worlds, r.Lines, r.Batches, r.Frames, r.Breaches)
	return err
}

func square(all []trial) string {
	good := 0
	marks := ""
	var first []time.Duration
	for i := range all {
		t := &all[i]
		if t.ok() {
			good++
		} else {
			marks += " " + t.Outcome
		}
		if t.Outcome == boots {
			marks += " (b)"
		}
		if t.Mended && t.ok() {
			marks += " (m)"
		}
		if t.Outcome == goesOn {
			first = append(first, t.FirstLine)
		}
	}
	return fmt.Sprintf("%d/%d\t%s\t%s", good, len(all), ms(quantile(first, 50)), marks)
}

func ms(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
}

// quantile returns the p-th percentile, 0 of nothing.
func quantile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[min(len(d)-1, len(d)*p/100)]
}
