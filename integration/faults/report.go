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
	p("\nTrials that ended as they must, of all, and the median time from the fault to the first line after the silence that it made; m: a trial went on only\nafter the mending; b: it booted anew, since no host had a copy of it any more\n\n")
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
				if t := &r.Trials[i]; t.Row == row && t.Fault == column {
					all = append(all, *t)
				}
			}
			p("\t%s", square(all))
		}
		p("\t\n")
	}
	p("\nmedians, of trials in which a silence was noticed; asked + to the grant + to running + to the line is what the first line is made of\n")
	p("fault\ttrials\tnoticed\tfirst line\tp99\tasked\tto the grant\tto running\tto the line\tlongest silence\tprotected again\n")
	for _, column := range columns {
		n, b := 0, parts{}
		for i := range r.Trials {
			if t := &r.Trials[i]; t.Fault == column && t.Outcome == goesOn {
				n++
				b.add(t)
			}
		}
		p("%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", column, n, len(b.first), ms(quantile(b.first, 50)), ms(quantile(b.first, 99)),
			ms(quantile(b.asked, 50)), ms(quantile(b.granted, 50)), ms(quantile(b.running, 50)), ms(quantile(b.line, 50)),
			ms(quantile(b.outage, 100)), ms(quantile(b.again, 50)))
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

// parts are what recovery times are made of.
type parts struct{ first, asked, granted, running, line, outage, again []time.Duration }

func (b *parts) add(t *trial) {
	b.outage, b.again = append(b.outage, t.Outage), append(b.again, t.Again)
	if t.FirstLine == 0 {
		return
	}
	b.first = append(b.first, t.FirstLine)
	if t.Asked == 0 || t.Granted < t.Asked || t.Running < t.Granted || t.FirstLine < t.Running {
		return // nobody took over, or not in one go
	}
	b.asked, b.granted = append(b.asked, t.Asked), append(b.granted, t.Granted-t.Asked)
	b.running, b.line = append(b.running, t.Running-t.Granted), append(b.line, t.FirstLine-t.Running)
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
