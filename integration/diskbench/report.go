package main

// The report: for each load what every back end reached, the median of the
// rounds, and of the ratios of each round, which alone count on a shared machine.

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Sample is one measurement. Times are in microseconds.
type Sample struct {
	IOPS float64 `json:"iops"`
	P50  float64 `json:"p50_us"`
	P99  float64 `json:"p99_us"`
	// CPU is what the back end's process took for one operation; 0: not measured.
	CPU float64 `json:"cpu_us,omitempty"`
	ops float64
}

// Row is one load.
type Row struct {
	Load  string `json:"load"`
	Block int    `json:"block_bytes"`
	// Sides are the back ends' medians, Samples what they are of.
	Sides   map[string]Sample   `json:"sides"`
	Samples map[string][]Sample `json:"samples"`
	// Ratios are of IOPS, "one:other".
	Ratios map[string]float64 `json:"ratios"`
	order  []string
}

func newRow(load string, block int) Row {
	return Row{Load: load, Block: block, Sides: map[string]Sample{}, Samples: map[string][]Sample{}}
}

func (r *Row) add(side string, s Sample) {
	if !slices.Contains(r.order, side) {
		r.order = append(r.order, side)
	}
	r.Samples[side] = append(r.Samples[side], s)
	all := r.Samples[side]
	r.Sides[side] = Sample{
		IOPS: medianOf(all, func(s Sample) float64 { return s.IOPS }),
		P50:  medianOf(all, func(s Sample) float64 { return s.P50 }),
		P99:  medianOf(all, func(s Sample) float64 { return s.P99 }),
		CPU:  medianOf(all, func(s Sample) float64 { return s.CPU }),
	}
}

func medianOf(all []Sample, of func(Sample) float64) float64 {
	values := make([]float64, len(all))
	for i, s := range all {
		values[i] = of(s)
	}
	return median(values)
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile is the value that a share q of values does not exceed; 0 without any.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// speed is IOPS of one side as a multiple of another's: the median over the
// rounds, since what is measured side by side has met the same machine.
func (r *Row) speed(side, of string) float64 {
	var ratios []float64
	for i, s := range r.Samples[of] {
		if i < len(r.Samples[side]) && s.IOPS > 0 {
			ratios = append(ratios, r.Samples[side][i].IOPS/s.IOPS)
		}
	}
	return median(ratios)
}

// compare notes the ratios of the sides in pairs.
func (r *Row) compare(pairs [][2]string) {
	r.Ratios = map[string]float64{}
	for _, p := range pairs {
		r.Ratios[p[0]+":"+p[1]] = r.speed(p[0], p[1])
	}
}

// line is the row for whoever watches.
func (r *Row) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-36s", r.Load)
	for _, side := range r.order {
		s := r.Sides[side]
		fmt.Fprintf(&b, "  %s %.0f/s p50 %.0f p99 %.0f CPU %.1f µs", side, s.IOPS, s.P50, s.P99, s.CPU)
	}
	return b.String()
}

// table writes rows with one column for each side, and ratios of their IOPS.
func table(w io.Writer, title string, rows []Row, ratios [][2]string) error {
	if len(rows) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(w, "\n%s\n", title) // tabwriter keeps the first error
	head := "\t"
	for _, side := range rows[0].order {
		head += side + " IOPS\tp50 µs\tp99 µs\tCPU µs\t"
	}
	for _, r := range ratios {
		head += fmt.Sprintf("%s : %s\t", r[0], r[1])
	}
	_, _ = fmt.Fprintln(t, head)
	var all []float64
	for _, row := range rows {
		all = append(all, row.speed(ratios[0][0], ratios[0][1]))
		line := row.Load + "\t"
		for _, side := range row.order {
			s := row.Sides[side]
			line += fmt.Sprintf("%.0f\t%.0f\t%.0f\t", s.IOPS, s.P50, s.P99)
			if s.CPU > 0 {
				line += fmt.Sprintf("%.1f", s.CPU)
			}
			line += "\t"
		}
		for _, r := range ratios {
			line += fmt.Sprintf("%.2f\t", row.speed(r[0], r[1]))
		}
		_, _ = fmt.Fprintln(t, line)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s : %s, median of all loads: %.2f\n", ratios[0][0], ratios[0][1], median(all))
	return err
}
