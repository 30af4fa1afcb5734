package main

// This file is the times: how long guests were silent, beside what the design
// explains, what takeovers are made of, and where the trials' own time went.

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// printer writes into a table.
type printer func(format string, a ...any)

// printParts prints what the first line after a takeover is made of.
func (r *Report) printParts(p printer, columns []string) {
	p("\nmedians, of trials in which a silence was noticed; asked + to the grant + to running + to the line is what the first line is made of\n")
	p("fault\ttrials\tnoticed\tfirst line\tasked\tto the grant\tto running\tto the line\tprotected again\n")
	for _, column := range columns {
		n, b := 0, parts{}
		for i := range r.Trials {
			if t := &r.Trials[i]; t.Fault == column && t.Outcome == goesOn {
				n++
				b.add(t)
			}
		}
		p("%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", column, n, len(b.first), ms(quantile(b.first, 50)),
			ms(quantile(b.asked, 50)), ms(quantile(b.granted, 50)), ms(quantile(b.running, 50)), ms(quantile(b.line, 50)), ms(quantile(b.again, 50)))
	}
}

// Recovery is how long guests were silent by one kind of fault in one kind of
// situation, beside the silence that the design explains.
type Recovery struct {
	Situation string        `json:"situation"` // "one failure", or what had happened before the fault
	Fault     string        `json:"fault"`
	Trials    int           `json:"trials"`
	Noticed   int           `json:"noticed"` // silences long enough to count
	Silence   Spread        `json:"silence"`
	FirstLine Spread        `json:"first_line"` // from the fault on, of those noticed
	Explained time.Duration `json:"explained_ns"`
	Why       string        `json:"explained"`
}

// Spread summarises durations.
type Spread struct {
	Median time.Duration `json:"p50_ns"`
	P99    time.Duration `json:"p99_ns"`
	Max    time.Duration `json:"max_ns"`
}

func spread(d []time.Duration) Spread {
	return Spread{quantile(d, 50), quantile(d, 99), quantile(d, 100)}
}

func (s Spread) String() string {
	if s.Max == 0 {
		return "-\t-\t-"
	}
	return fmt.Sprintf("%d\t%d\t%d", s.Median.Milliseconds(), s.P99.Milliseconds(), s.Max.Milliseconds())
}

// oneFailure is a situation in which nothing has happened before the fault.
const oneFailure = "one failure"

// Recoveries sums up the trials of which the design promises that the guest goes
// on by itself, single failures first.
func (r *Report) Recoveries() (all []Recovery) {
	type key struct {
		situation, fault, why string
		explained             time.Duration
	}
	silences, firsts := map[key][]time.Duration{}, map[key][]time.Duration{}
	var order []key
	for i := range r.Trials {
		t := &r.Trials[i]
		if t.Outcome != goesOn || t.Promise != mustGoOn || t.ExplainedWhy == "" {
			continue
		}
		k := key{t.situation(), t.Fault, t.ExplainedWhy, t.Explained}
		if _, ok := silences[k]; !ok {
			order = append(order, k)
		}
		silences[k] = append(silences[k], t.Outage)
		if t.FirstLine > 0 {
			firsts[k] = append(firsts[k], t.FirstLine)
		}
	}
	rank := func(k key) int {
		if k.situation == oneFailure {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(order, func(a, b key) int { return cmp.Compare(rank(a), rank(b)) })
	for _, k := range order {
		all = append(all, Recovery{k.situation, k.fault, len(silences[k]), len(firsts[k]), spread(silences[k]), spread(firsts[k]), k.explained, k.why})
	}
	return all
}

func (r *Report) printTimes(p printer) {
	p("\nsilence of the guest at its client, and from the fault to the first line after it, in ms, where the design promises that the guest goes on by itself\n")
	p("after\tfault\ttrials\tsilence\tp99\tmax\tnoticed\tfirst line\tp99\tmax\texplained\tby\n")
	for _, x := range r.Recoveries() {
		p("%s\t%s\t%d\t%s\t%d\t%s\t≤ %d\t%s\n", x.Situation, x.Fault, x.Trials, x.Silence, x.Noticed, x.FirstLine, x.Explained.Milliseconds(), x.Why)
	}
}

// Phase is where trials' time went.
type Phase struct {
	Name  string        `json:"name"`
	Times int           `json:"times"`
	Took  Spread        `json:"took"`
	Mean  time.Duration `json:"mean_ns"` // of all trials
}

// Phases sums the trials' phases up, in the order in which they came.
func (r *Report) Phases() (all []Phase) {
	took := map[string][]time.Duration{}
	for i := range r.Trials {
		for _, ph := range r.Trials[i].Phases {
			if _, ok := took[ph.Name]; !ok {
				all = append(all, Phase{Name: ph.Name})
			}
			took[ph.Name] = append(took[ph.Name], ph.Took)
		}
	}
	for i := range all {
		a := &all[i]
		for _, d := range took[a.Name] {
			a.Mean += d
		}
		a.Times, a.Took, a.Mean = len(took[a.Name]), spread(took[a.Name]), a.Mean/time.Duration(len(r.Trials))
	}
	return all
}

func (r *Report) printPhases(p printer) {
	p("\nwhere the trials' time went, in ms; what follows a colon ran beside the rest of its phase\n")
	p("phase\ttimes\tmedian\tp99\tmax\tmean of all trials\n")
	for _, x := range r.Phases() {
		p("%s\t%d\t%s\t%d\n", x.Name, x.Times, x.Took, x.Mean.Milliseconds())
	}
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
