package main

// This file makes the report of what was measured: JSON for programs, a table for
// people.
//
//	cell.Run of each side ─> Summary ─> Row: both, and their ratios ─> Report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"understudy/integration/xen/remus/cell"
)

// What ours is to be at most, as a share of stock's.
const (
	targetPause = 1.0 / 5
	targetBytes = 1.0 / 4
)

// Report is all that was measured. Times are in microseconds.
type Report struct {
	Time  time.Time `json:"time"`
	Load  string    `json:"load_before"` // /proc/loadavg
	Notes []string  `json:"notes"`
	// WorstPause and WorstBytes are over all rows.
	WorstPause  float64 `json:"worst_pause_ratio"`
	TargetPause float64 `json:"target_pause_ratio"`
	WorstBytes  float64 `json:"worst_bytes_ratio"`
	TargetBytes float64 `json:"target_bytes_ratio"`
	Rows        []Row   `json:"rows"`
	Seconds     float64 `json:"seconds"`
}

// Row is one load at one interval.
type Row struct {
	Load       cell.Load `json:"load"`
	IntervalMS float64   `json:"interval_ms"`
	Stock      Summary   `json:"stock"`
	Ours       Summary   `json:"ours"`
	// Ours over stock's, of medians.
	PauseRatio   float64 `json:"pause_ratio"`
	SuspendRatio float64 `json:"suspend_ratio"`
	GapRatio     float64 `json:"gap_ratio"`
	BytesRatio   float64 `json:"bytes_ratio"`
}

// Summary is one side of a row.
type Summary struct {
	Epochs    int     `json:"epochs"`
	PerSecond float64 `json:"epochs_per_second"`
	Suspend   Spread  `json:"request_to_suspended_us"`
	Pause     Spread  `json:"suspended_to_resumed_us"`
	Gap       Spread  `json:"gap_in_guest_us"`
	Pages     Spread  `json:"pages"`
	Bytes     Spread  `json:"bytes"`
	Full      uint64  `json:"first_checkpoint_bytes"`
	Written   float64 `json:"pages_written_per_second"`
	Steps     *Steps  `json:"steps_us,omitempty"`
}

// Steps are medians of our side's.
type Steps struct {
	Scan   float64 `json:"scan"`
	Copy   float64 `json:"copy"`
	Device float64 `json:"device"`
	Resume float64 `json:"resume"`
	// Rest is what the others leave of the pause: waking up, looking at the domain.
	Rest float64 `json:"rest"`
}

// Spread summarises samples of one quantity.
type Spread struct {
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	Mean   float64 `json:"mean"`
}

func newReport() *Report {
	load, _ := os.ReadFile("/proc/loadavg")
	return &Report{
		Time: time.Now().UTC().Truncate(time.Second), Load: strings.TrimSpace(string(load)), TargetPause: targetPause, TargetBytes: targetBytes,
		Notes: []string{
			"One Xen host in QEMU's emulation, with one processor for Xen, its first domain and the guest: trust ratios.",
			"Stock: libxl_domain_remus_start, its stream into a pipe of 1 MiB that is drained and counted beside it, not to a network: what it costs to send is left out.",
			"Ours: the primary's loop and encoder over TLS to a backup outside of the host; bytes are what its connections were given to send.",
			"Interval: from a resume to the next request to suspend, on both sides. Both are taken in the first domain: libxl says that it asks, and that the domain has suspended, or we see it; resumed is the hypercall that lets it run.",
			"Gap: for how long a program of the guest did not run at a suspend, to 4 ms, as a process in the first domain sees it: a PVH guest's own clocks stand still meanwhile. That watch costs both sides the same.",
		},
	}
}

// readRuns reads what the first domain has written.
func readRuns(path string) ([]cell.Run, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var all []cell.Run
	for d := json.NewDecoder(f); ; {
		var r cell.Run
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("read what was measured: %w", err)
		}
		all = append(all, r)
	}
}

// add makes rows of runs: each of stock's with the next one of ours. What is left of
// them is an error, behind what was added.
func (r *Report) add(runs []cell.Run) (err error) {
	for len(runs) > 0 {
		if len(runs) < 2 || runs[0].Side != cell.Stock || runs[1].Side != cell.Ours || runs[0].Load != runs[1].Load || runs[0].Interval != runs[1].Interval {
			err = fmt.Errorf("%d runs are left, which are not one of each side", len(runs))
			break
		}
		r.Rows = append(r.Rows, row(runs[0], runs[1]))
		runs = runs[2:]
	}
	for _, one := range r.Rows {
		r.WorstPause, r.WorstBytes = max(r.WorstPause, one.PauseRatio), max(r.WorstBytes, one.BytesRatio)
	}
	r.Seconds = time.Since(r.Time).Seconds()
	return err
}

func row(stock, ours cell.Run) Row {
	one := Row{Load: stock.Load, IntervalMS: stock.Interval.Seconds() * 1000, Stock: summarise(stock), Ours: summarise(ours)}
	one.PauseRatio = ratio(one.Ours.Pause, one.Stock.Pause)
	one.SuspendRatio = ratio(one.Ours.Suspend, one.Stock.Suspend)
	one.GapRatio = ratio(one.Ours.Gap, one.Stock.Gap)
	one.BytesRatio = ratio(one.Ours.Bytes, one.Stock.Bytes)
	return one
}

// ratio is that of medians, 0 if there is nothing to compare with.
func ratio(a, b Spread) float64 {
	if b.Median == 0 {
		return 0
	}
	return a.Median / b.Median
}

func summarise(r cell.Run) Summary {
	of := func(what func(cell.Epoch) float64) Spread { return spread(pick(r.Epochs, what)) }
	s := Summary{
		Epochs: len(r.Epochs), Full: r.Full,
		Suspend: of(func(e cell.Epoch) float64 { return micros(e.Suspend) }),
		Pause:   of(func(e cell.Epoch) float64 { return micros(e.Pause) }),
		Gap:     spread(pick(r.Gaps, micros)),
		Pages:   of(func(e cell.Epoch) float64 { return float64(e.Pages) }),
		Bytes:   of(func(e cell.Epoch) float64 { return float64(e.Bytes) }),
	}
	if t := r.Took.Seconds(); t > 0 {
		s.PerSecond, s.Written = float64(s.Epochs)/t, float64(r.Written)/t
	}
	step := func(what func(*cell.Steps) time.Duration) float64 {
		return of(func(e cell.Epoch) float64 { return micros(what(e.Steps)) }).Median
	}
	if len(r.Epochs) > 0 && r.Epochs[0].Steps != nil {
		s.Steps = &Steps{
			Scan:   step(func(s *cell.Steps) time.Duration { return s.Scan }),
			Copy:   step(func(s *cell.Steps) time.Duration { return s.Copy }),
			Device: step(func(s *cell.Steps) time.Duration { return s.Device }),
			Resume: step(func(s *cell.Steps) time.Duration { return s.Resume }),
			Rest: of(func(e cell.Epoch) float64 {
				return micros(e.Pause - max(e.Steps.Device, e.Steps.Scan+e.Steps.Copy) - e.Steps.Resume)
			}).Median,
		}
	}
	return s
}

func spread(s []float64) Spread {
	n := len(s)
	if n == 0 {
		return Spread{}
	}
	slices.Sort(s)
	sum := 0.0
	for _, v := range s {
		sum += v
	}
	return Spread{Median: (s[(n-1)/2] + s[n/2]) / 2, P99: s[min(n-1, n*99/100)], Mean: sum / float64(n)}
}

func pick[T any](all []T, of func(T) float64) []float64 {
	s := make([]float64, len(all))
	for i, v := range all {
		s[i] = of(v)
	}
	return s
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// print writes the table.
func (r *Report) print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format+"\n", a...) } // Flush tells of errors
	for _, n := range r.Notes {
		line("%s", n)
	}
	line("load before: %s; medians and, behind them, 99th percentiles; times in ms, bytes in KiB", r.Load)
	_ = t.Flush()
	line("\nload\tinterval\tside\tepochs/s\tto suspended\tp99\tto resumed\tp99\tgap\tp99\tpages\tKiB\tp99\t")
	for _, one := range r.Rows {
		for _, side := range []struct {
			name string
			Summary
		}{{"stock", one.Stock}, {"ours", one.Ours}} {
			s := side.Summary
			line("%s\t%.0f ms\t%s\t%.1f\t%s\t%s\t%s\t%s\t%s\t%s\t%.0f\t%s\t%s\t", loadName(one.Load), one.IntervalMS, side.name, s.PerSecond,
				ms(s.Suspend.Median), ms(s.Suspend.P99), ms(s.Pause.Median), ms(s.Pause.P99), ms(s.Gap.Median), ms(s.Gap.P99), s.Pages.Median, kib(s.Bytes.Median), kib(s.Bytes.P99))
		}
		line("\t\tratio\t\t%.2f\t\t%.2f\t\t%.2f\t\t\t%.3f\t\t", one.SuspendRatio, one.PauseRatio, one.GapRatio, one.BytesRatio)
	}
	_ = t.Flush()
	line("\nour steps, medians\tinterval\tscan\tcopy\tdevice (beside both)\tresume\trest\tfirst, KiB\tstock's first\t")
	for _, one := range r.Rows {
		s := one.Ours.Steps
		line("%s\t%.0f ms\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t", loadName(one.Load), one.IntervalMS, ms(s.Scan), ms(s.Copy), ms(s.Device), ms(s.Resume), ms(s.Rest), kib(float64(one.Ours.Full)), kib(float64(one.Stock.Full)))
	}
	_ = t.Flush()
	line("\nsuspended to resumed: at worst %.2f of stock's, target %.2f; bytes: at worst %.3f, target %.2f", r.WorstPause, r.TargetPause, r.WorstBytes, r.TargetBytes)
	return t.Flush()
}

func loadName(l cell.Load) string {
	if l.Pages == 0 {
		return "idle"
	}
	return fmt.Sprintf("%d pages/s, %d bytes", l.Pages, l.Bytes)
}

func ms(us float64) string     { return fmt.Sprintf("%.1f", us/1000) }
func kib(bytes float64) string { return fmt.Sprintf("%.1f", bytes/1024) }
