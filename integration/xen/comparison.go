package main

// The figures of the comparison: JSON for programs, a table for people.

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"understudy/checkpoint"
)

// target is how much smaller a file, and how much shorter its making, is to be than
// xl's: what the paper that this follows reports (VEE 2011).
type target struct{ smaller, faster float64 }

func targets() map[string]target {
	return map[string]target{pv: {0.81, 0.74}, "pvh": {0.64, 0.62}, "hvm": {0.64, 0.62}}
}

// Comparison is all that was measured.
type Comparison struct {
	Time    time.Time         `json:"time"`
	Notes   []string          `json:"notes"`
	Rows    []ComparedRow     `json:"rows"`
	Kinds   []ComparedSummary `json:"kinds"`
	Seconds float64           `json:"seconds"`
}

// ComparedRow is one kind of guest after one piece of work.
type ComparedRow struct {
	Kind  string      `json:"kind"`
	Name  string      `json:"name"`
	Title string      `json:"title"`
	Work  []string    `json:"work"`
	Ours  SaveFigures `json:"understudy"`
	Xl    SaveFigures `json:"xl_save"`
	// Smaller and Faster are 1 - understudy/xl.
	Smaller float64 `json:"smaller"`
	Faster  float64 `json:"faster"`
	// LessStill is how much shorter the guest stands still than for xl's save.
	LessStill float64 `json:"shorter_standstill"`
	// Pages are the last save's, by reason.
	Pages checkpoint.Counts `json:"pages"`
}

// SaveFigures are medians.
type SaveFigures struct {
	Bytes   float64   `json:"bytes"`
	Seconds float64   `json:"seconds"`                      // until the file is durable
	Still   float64   `json:"standstill_seconds,omitempty"` // 0: all of it
	Samples []float64 `json:"samples_seconds"`
}

// ComparedSummary is over all rows of a kind.
type ComparedSummary struct {
	Kind          string  `json:"kind"`
	Smaller       float64 `json:"mean_smaller"`
	Faster        float64 `json:"mean_faster"`
	LessStill     float64 `json:"mean_shorter_standstill"`
	TargetSmaller float64 `json:"target_smaller"`
	TargetFaster  float64 `json:"target_faster"`
}

func newComparison(o options) *Comparison {
	load, _ := os.ReadFile("/proc/loadavg")
	return &Comparison{Time: time.Now(), Notes: []string{
		fmt.Sprintf("Guests of %d MiB with a Debian on their disk, one Xen host with one processor in QEMU's emulation, %d saves of each kind in turn, medians; files on the host's ext4. Load before: %s.",
			comparedMemory>>20, o.repeat, strings.TrimSpace(string(load))),
		"A save's time is from the command to a durable file (fsync), on both sides. understudy's PVH and HVM guests run for most of it; those of xl save -c stand still.",
		"PV: one guest under xl, saved by xl save -c and by checkpoint import --domain in turn. The import's time has the search of the disk in it, during which the guest runs; its standstill has not.",
	}}
}

func newComparedRow(kind string, w work, ours, xls []sample) ComparedRow {
	r := ComparedRow{Kind: kind, Name: w.name, Title: w.title, Work: w.steps, Ours: figures(ours), Xl: figures(xls), Pages: ours[len(ours)-1].pages}
	r.Smaller, r.Faster = less(r.Ours.Bytes, r.Xl.Bytes), less(r.Ours.Seconds, r.Xl.Seconds)
	r.LessStill = less(r.Ours.Still, r.Xl.Seconds)
	return r
}

func figures(all []sample) SaveFigures {
	var f SaveFigures
	var bytes, still []float64
	for _, s := range all {
		bytes, still = append(bytes, float64(s.bytes)), append(still, s.stood.Seconds())
		f.Samples = append(f.Samples, s.took.Seconds())
	}
	f.Bytes, f.Seconds, f.Still = median(bytes), median(f.Samples), median(still)
	return f
}

func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

// less is how much less a is than b, as a share of b.
func less(a, b float64) float64 { return 1 - a/b }

// conclude computes what follows from the rows.
func (c *Comparison) conclude(now time.Time) {
	c.Seconds = now.Sub(c.Time).Seconds()
	for _, r := range c.Rows {
		at := slices.IndexFunc(c.Kinds, func(k ComparedSummary) bool { return k.Kind == r.Kind })
		if at < 0 {
			t := targets()[r.Kind]
			c.Kinds = append(c.Kinds, ComparedSummary{Kind: r.Kind, TargetSmaller: t.smaller, TargetFaster: t.faster})
			at = len(c.Kinds) - 1
		}
		n := float64(len(c.of(r.Kind)))
		k := &c.Kinds[at]
		k.Smaller, k.Faster, k.LessStill = k.Smaller+r.Smaller/n, k.Faster+r.Faster/n, k.LessStill+r.LessStill/n
	}
}

// of returns the rows of a kind.
func (c *Comparison) of(kind string) []ComparedRow {
	return slices.DeleteFunc(slices.Clone(c.Rows), func(r ComparedRow) bool { return r.Kind != kind })
}

// write prints the table, and writes the report.
func (c *Comparison) write(path string) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format+"\n", a...) } // Flush tells of errors
	for _, n := range c.Notes {
		fmt.Println(n)
	}
	line("type\tafter\tMB\txl MB\tsmaller\ts\txl s\tless\tstands still s\tless\ttraced\tby content\tzero\tcopies\tkept\t")
	for _, r := range c.Rows {
		all := float64(r.Pages.Sum())
		share := func(n uint64) string { return percent(float64(n) / all) }
		line("%s\t%s\t%.1f\t%.1f\t%s\t%.2f\t%.2f\t%s\t%.3f\t%s\t%s\t%s\t%s\t%s\t%s\t", r.Kind, r.Title, r.Ours.Bytes/1e6, r.Xl.Bytes/1e6, percent(r.Smaller),
			r.Ours.Seconds, r.Xl.Seconds, percent(r.Faster), r.Ours.Still, percent(r.LessStill),
			share(r.Pages.Mapped), share(r.Pages.Content), share(r.Pages.Zero+r.Pages.Hole), share(r.Pages.Copy), share(r.Pages.Packed+r.Pages.Raw))
	}
	for _, k := range c.Kinds {
		line("%s\tall\t\t\t%s%s\t\t\t%s%s\t\t%s\t\t\t\t\t\t", k.Kind, percent(k.Smaller), missed(k.Smaller, k.TargetSmaller), percent(k.Faster), missed(k.Faster, k.TargetFaster), percent(k.LessStill))
	}
	if err := t.Flush(); err != nil || path == "" {
		return err
	}
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func percent(x float64) string { return fmt.Sprintf("%.1f%%", 100*x) }

func missed(x, target float64) string {
	if x >= target {
		return ""
	}
	return fmt.Sprintf(" (misses %s)", percent(target))
}
