package drill

// The report for a terminal.

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	p("drill\t%s\n", r.ID)
	p("what\t%s\n", line(r.Spec.title()))
	p("result\t%s%s\n", strings.ToUpper(string(r.State)), line(problem(r.Why)))
	p("began\t%s on %s, took %s\n", r.Began.UTC().Format(time.RFC3339), line(string(r.Host)), about(r.Took))
	if r.From != "" {
		p("guest\t%s, owned by %s, backup %s when it began\n", line(r.Spec.Guest), line(string(r.From)), line(string(r.To)))
	}
	for _, f := range r.figures() {
		p("%s\t%s\n", f.Name, line(f.Text))
	}
	if len(r.Checks) > 0 {
		p("\nchecks\t\n")
		for _, c := range r.Checks {
			p("  %s\t%s\t%s\n", mark(c.Verdict), line(c.Name), line(c.Text))
			if c.Verdict != Yes && c.Output != "" {
				for _, l := range strings.Split(strings.TrimRight(clip(c.Output, maxText), "\n"), "\n") {
					p("  \t\t| %s\n", line(l))
				}
			}
		}
	}
	if len(r.Guarantees) > 0 {
		p("\nguarantees\t\n")
		for _, g := range r.Guarantees {
			p("  %s\t%s\t%s\n", mark(g.Verdict), line(g.Name), line(g.Evidence))
		}
	}
	for _, l := range r.Left {
		p("\nLEFT OVER\t%s\n", line(l))
	}
	if r.State == Refused || r.State == Skipped {
		p("\nconditions\t\n")
		conditions(p, r.Conditions)
	}
	if err := t.Flush(); err != nil || len(r.Timeline) == 0 {
		return err
	}
	p("\ntimeline, by the clock of %s\n", line(string(r.Host)))
	for _, s := range r.Timeline {
		if s.Kind == stepPhase {
			p("-- %s\n", line(s.Text))
			continue
		}
		p("  %s\t%s\t%s\t%s\n", at(s), line(string(s.Host)), line(s.Kind), line(s.Text))
	}
	return t.Flush()
}

// at is when a step was, with its error where another clock was read.
func at(s Step) string {
	text := fmt.Sprintf("%+.3fs", s.At.Seconds())
	if s.Error > 0 {
		text += " ±" + about(s.Error)
	}
	return text
}

// figure is a named result.
type figure struct{ Name, Text string }

func (r *Report) figures() []figure {
	var all []figure
	if r.RTO.Text != "" {
		all = append(all, figure{"RTO", r.RTO.Text})
	}
	if p := r.RPO; p != nil {
		text := "output: " + p.OutputLost
		if p.Age != nil {
			text = fmt.Sprintf("the guest went on from epoch %d, committed %s before the strike; %s", p.Resumed, p.Age, text)
		}
		all = append(all, figure{"RPO", text})
	}
	if b := r.Bubble; b != nil {
		text := fmt.Sprintf("a copy of epoch %d ran %s after it was asked for", b.Epoch, about(b.Started))
		if b.Text != "" {
			text += "; " + b.Text
		}
		all = append(all, figure{"bubble", text})
	}
	return all
}

func mark(v Verdict) string {
	switch v {
	case Yes:
		return "held"
	case No:
		return "BROKEN"
	}
	return "UNKNOWN"
}

// line is text on one line, without what a terminal would obey.
func line(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		return r
	}, clip(s, 2*maxText))
}

func conditions(p func(string, ...any), all []Condition) {
	for _, c := range all {
		is := "holds"
		if !c.Holds {
			is = "MISSING"
		}
		p("  %s\t%s\t%s\n", is, line(c.Name), line(c.Text))
	}
}

// WriteTable writes the plan for people.
func (pl *Plan) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) }
	p("drill\t%s, run by %s\n", line(pl.Spec.title()), line(string(pl.Host)))
	possible := "yes, right now"
	if !pl.Possible {
		possible = "NO"
	}
	p("possible\t%s\n", possible)
	p("outage\tabout %s: %s\n", about(pl.Outage.Time), line(pl.Outage.Why))
	p("\nconditions\t\n")
	conditions(p, pl.Conditions)
	p("\nit would\t\n")
	for i, s := range pl.Steps {
		p("  %d.\t%s\n", i+1, line(s))
	}
	for _, s := range pl.Risks {
		p("\nrisk\t%s\n", line(s))
	}
	return t.Flush()
}

// WriteTable writes the forecast for people.
func (f *Forecast) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) }
	p("if %s failed now\n\n", line(f.Fail))
	voters := "NO MAJORITY: nothing could be decided"
	if f.Majority {
		voters = fmt.Sprintf("%s would decide", list(f.Voters))
	}
	p("voters\t%s\n", line(voters))
	p("log\t%s\n", line(f.Leader))
	for _, u := range f.Unknown {
		p("not known\t%s\n", line(u))
	}
	for _, g := range f.Guests {
		p("\nguest %s\t%s\n", line(g.Guest), line(g.verdict()))
		if g.After != nil {
			p("  silent for\tabout %s\n", about(*g.After))
		}
		p("  lost\t%s\n", line(g.Loses))
		for _, why := range g.Why {
			p("  why\t%s\n", line(why))
		}
	}
	return t.Flush()
}

// verdict is the outcome in words.
func (g *Fate) verdict() string {
	switch g.Outcome {
	case Unaffected:
		return fmt.Sprintf("goes on at %s as before", g.Owner)
	case Unprotected:
		return fmt.Sprintf("goes on at %s, NOT PROTECTED", g.Owner)
	case FailsOver:
		return fmt.Sprintf("goes on at %s", g.To)
	case Waits:
		return "STANDS STILL until the failure is over"
	case Lost:
		return "IS LOST"
	case NotRunning:
		return "does not run"
	}
	return "not known"
}
