package main

// The report of bench checkpoint: JSON, tables, ratios against the targets.

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"understudy/checkpoint"
)

// What the figures should come to.
const (
	targetReads   = 0.85 // smaller than migrate's, rows that read
	targetSize    = 0.81 // smaller than migrate's, mean over all rows
	targetTime    = 0.80 // less than migrate's
	targetRestore = 1.0  // of migrate's, at most
)

// SavedReport is all that was measured.
type SavedReport struct {
	Time       time.Time             `json:"time"`
	Machine    Machine               `json:"machine"`
	Notes      []string              `json:"notes"`
	Rows       []SavedRow            `json:"rows,omitempty"`
	Protection []ProtectedRow        `json:"protection,omitempty"`
	Summary    SavedSummary          `json:"summary"`
	Compared   []ProtectedComparison `json:"protection_compared,omitempty"`
	Seconds    float64               `json:"seconds"`
}

// SavedRow is one workload. Sizes are in bytes, times in seconds, medians.
type SavedRow struct {
	Name      string   `json:"name"`
	Title     string   `json:"title"`
	Reads     bool     `json:"read_heavy"`
	MiB       int      `json:"guest_mib"`
	Work      []string `json:"work"`
	StockWork []string `json:"work_on_qemu"`
	Seconds   float64  `json:"seconds"` // that measuring it took

	Ours    SaveFigures `json:"understudy"`
	Migrate SaveFigures `json:"migrate"`
	Savevm  SaveFigures `json:"savevm"`

	// Pages are the last save's, by reason.
	Pages checkpoint.Counts `json:"pages"`

	Lazy     RestoreFigures `json:"restore_lazy"`
	Eager    RestoreFigures `json:"restore_eager"`
	Incoming RestoreFigures `json:"restore_migrate"`
	Loadvm   RestoreFigures `json:"restore_loadvm"`

	// Smaller and Faster are 1 - understudy/QEMU. FasterUnsynced leaves out, on
	// both sides, what the disk took in the end: migrate does not wait for it.
	SmallerThanMigrate float64 `json:"smaller_than_migrate"`
	SmallerThanSavevm  float64 `json:"smaller_than_savevm"`
	FasterUnsynced     float64 `json:"faster_than_migrate_unsynced"`
	FasterSynced       float64 `json:"faster_than_migrate_synced"`
	FasterThanSavevm   float64 `json:"faster_than_savevm"`
	LazyToMigrate      float64 `json:"lazy_to_migrate_restore"`
	EagerToMigrate     float64 `json:"eager_to_migrate_restore"`
	LazyToLoadvm       float64 `json:"lazy_to_loadvm"`
}

// SaveFigures are of one way to save.
type SaveFigures struct {
	Bytes    float64   `json:"bytes"`
	Synced   float64   `json:"seconds"`
	Unsynced float64   `json:"seconds_without_fsync,omitempty"` // 0: not known
	Pause    float64   `json:"pause_seconds,omitempty"`
	Rounds   float64   `json:"rounds,omitempty"`
	Samples  []float64 `json:"samples_seconds"`
}

// RestoreFigures are of one way to restore.
type RestoreFigures struct {
	Answer  float64   `json:"answer_seconds"`
	Loaded  float64   `json:"loaded_seconds,omitempty"`
	Run     float64   `json:"running_seconds,omitempty"`
	Whole   float64   `json:"memory_whole_seconds"`
	Samples []float64 `json:"samples_seconds"`
}

// SavedSummary is over all rows.
type SavedSummary struct {
	Smaller      float64 `json:"mean_smaller_than_migrate"`
	SmallerReads float64 `json:"worst_smaller_read_heavy"`
	Faster       float64 `json:"mean_faster_than_migrate_unsynced"`
	FasterSynced float64 `json:"mean_faster_than_migrate_synced"`
	WorstLazy    float64 `json:"worst_lazy_to_migrate_restore"`
	WorstEager   float64 `json:"worst_eager_to_migrate_restore"`
}

func saveFigures(all []savedSample) SaveFigures {
	took := pick(all, func(s savedSample) float64 { return s.took.Seconds() })
	f := SaveFigures{
		Bytes:    median(pick(all, func(s savedSample) float64 { return float64(s.bytes) })),
		Unsynced: median(pick(all, func(s savedSample) float64 { return (s.took - s.synced).Seconds() })),
		Pause:    median(pick(all, func(s savedSample) float64 { return s.pause.Seconds() })),
		Rounds:   median(pick(all, func(s savedSample) float64 { return float64(s.rounds) })),
		Samples:  append([]float64(nil), took...),
	}
	f.Synced = median(took)
	return f
}

func restoreFigures(all []restored) RestoreFigures {
	answer := pick(all, func(r restored) float64 { return r.answer.Seconds() })
	f := RestoreFigures{
		Loaded:  median(pick(all, func(r restored) float64 { return r.loaded.Seconds() })),
		Run:     median(pick(all, func(r restored) float64 { return r.run.Seconds() })),
		Whole:   median(pick(all, func(r restored) float64 { return r.whole.Seconds() })),
		Samples: append([]float64(nil), answer...),
	}
	f.Answer = median(answer)
	return f
}

// less is how much less a is than b, as a share of b.
func less(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return 1 - a/b
}

func (r *SavedRow) summariseSaves(ours, migrates, savevms []savedSample) {
	r.Ours, r.Migrate, r.Savevm = saveFigures(ours), saveFigures(migrates), saveFigures(savevms)
	r.Savevm.Unsynced = 0 // it waits for the disk itself
	r.Pages = ours[len(ours)-1].pages
	r.SmallerThanMigrate, r.SmallerThanSavevm = less(r.Ours.Bytes, r.Migrate.Bytes), less(r.Ours.Bytes, r.Savevm.Bytes)
	r.FasterUnsynced, r.FasterSynced = less(r.Ours.Unsynced, r.Migrate.Unsynced), less(r.Ours.Synced, r.Migrate.Synced)
	r.FasterThanSavevm = less(r.Ours.Synced, r.Savevm.Synced)
}

func (r *SavedRow) summariseRestores(lazy, eager, incoming, loadvm []restored) {
	r.Lazy, r.Eager, r.Incoming, r.Loadvm = restoreFigures(lazy), restoreFigures(eager), restoreFigures(incoming), restoreFigures(loadvm)
	r.LazyToMigrate, r.EagerToMigrate = ratio(r.Lazy.Answer, r.Incoming.Answer), ratio(r.Eager.Answer, r.Incoming.Answer)
	r.LazyToLoadvm = ratio(r.Lazy.Answer, r.Loadvm.Answer)
}

func newSavedReport(o *savedOptions) *SavedReport {
	base := newReport(&o.options)
	where := "files on a disk"
	if o.tmpfs {
		where = "files and disks in memory (tmpfs)"
	}
	if o.extra != "" {
		where += "; more kernel parameters in both guests: " + o.extra
	}
	return &SavedReport{Time: base.Time, Machine: base.Machine, Notes: []string{
		fmt.Sprintf("Guests of %d MiB, the same work in both: ours with a served raw disk (O_DIRECT), QEMU's with its own virtio-blk on a qcow2 overlay (its default cache). %s, %d saves and restores of each kind in turn, medians; %s.",
			o.mib, "One guest of each kind goes through all rows, its caches stay from row to row", o.repeat, where),
		fmt.Sprintf("Guests that tell their host of free memory (virtio-balloon, free page reporting): %s.", map[string]string{"both": "both", "ours": "ours only", "none": "none"}[o.free]),
		"migrate: to a file descriptor, default capabilities, bandwidth unlimited, the guest running; QEMU 7.2 has no mapped-ram and no multifd to a file. savevm: into the qcow2, the guest stopped.",
		"A save's time is from the request until the file is complete under its name; \"without fsync\" leaves out the wait for the disk on both sides (migrate does not wait by itself, savevm does).",
		"A restore's time is from the request, the QEMU not started yet and the file not in the page cache, until a TCP request to the guest is answered; on the disks as they were at the row's last save.",
	}}
}

// conclude computes what follows from the rows.
func (r *SavedReport) conclude() {
	s := SavedSummary{SmallerReads: 1}
	n := float64(len(r.Rows))
	for _, row := range r.Rows {
		s.Smaller += row.SmallerThanMigrate / n
		s.Faster += row.FasterUnsynced / n
		s.FasterSynced += row.FasterSynced / n
		if row.Reads {
			s.SmallerReads = min(s.SmallerReads, row.SmallerThanMigrate)
		}
		s.WorstLazy, s.WorstEager = max(s.WorstLazy, row.LazyToMigrate), max(s.WorstEager, row.EagerToMigrate)
	}
	r.Summary = s
	r.Compared = compareProtection(r.Protection)
}

// met marks a figure that misses its target.
func met(ok bool) string {
	if ok {
		return ""
	}
	return " misses"
}

func percent(x float64) string { return fmt.Sprintf("%.1f%%", 100*x) }

func megabytes(bytes float64) string { return fmt.Sprintf("%.1f", bytes/1e6) }

func (r *SavedReport) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format+"\n", a...) } // Flush tells of errors
	title := func(text string) {
		_ = t.Flush()
		line("\n%s", text)
		_ = t.Flush()
	}
	line("%s, %d processors, Linux %s\n%s, machine %s, %d vCPU, load before: %s", r.Machine.Model, r.Machine.Processors,
		r.Machine.Kernel, r.Machine.QEMU, r.Machine.GuestType, r.Machine.GuestCPUs, r.Machine.Load)
	for _, n := range r.Notes {
		line("%s", n)
	}
	if len(r.Rows) > 0 {
		title("Size in MB, and how much smaller")
		line("row\tunderstudy\tmigrate\tsavevm\tthan migrate\tthan savevm\t\t")
		for _, x := range r.Rows {
			miss := ""
			if x.Reads {
				miss = met(x.SmallerThanMigrate >= targetReads)
			}
			line("%s\t%s\t%s\t%s\t%s\t%s\t%s\t", x.Title, megabytes(x.Ours.Bytes), megabytes(x.Migrate.Bytes), megabytes(x.Savevm.Bytes),
				percent(x.SmallerThanMigrate), percent(x.SmallerThanSavevm), miss)
		}
		title("Time to save in s, with and without the wait for the disk, and how much less than migrate; pause in ms")
		line("row\tunderstudy\tw/o fsync\tpause\tmigrate\tw/o fsync\tsavevm\tless, w/o fsync\tless, with\tthan savevm\t\t")
		for _, x := range r.Rows {
			line("%s\t%.2f\t%.2f\t%.1f\t%.2f\t%.2f\t%.2f\t%s\t%s\t%s\t%s\t", x.Title, x.Ours.Synced, x.Ours.Unsynced, 1000*x.Ours.Pause,
				x.Migrate.Synced, x.Migrate.Unsynced, x.Savevm.Synced, percent(x.FasterUnsynced), percent(x.FasterSynced), percent(x.FasterThanSavevm), met(x.FasterUnsynced >= targetTime))
		}
		title("Pages by what became of them (share of the image)")
		line("row\tholes\tzero\ton disk, traced\ton disk, by content\tequal\tleft out in all\tpacked\traw\t")
		for _, x := range r.Rows {
			p, all := x.Pages, float64(x.Pages.Sum())
			share := func(n uint64) string { return percent(ratio(float64(n), all)) }
			line("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t", x.Title, share(p.Hole), share(p.Zero), share(p.Mapped), share(p.Content), share(p.Copy),
				share(p.Hole+p.Zero+p.Mapped+p.Content+p.Copy), share(p.Packed), share(p.Raw))
		}
		title("Restore: s until the guest answers; and s that the row took to measure")
		line("row\tlazy\tmemory whole\teager\tmigrate\tloadvm\tlazy/migrate\teager/migrate\tlazy/loadvm\tmeasured in\t\t")
		for _, x := range r.Rows {
			if len(x.Lazy.Samples) == 0 { // of a run that failed
				line("%s\t-\t-\t-\t-\t-\t-\t-\t-\t%.0f\t\t", x.Title, x.Seconds)
				continue
			}
			line("%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.0f\t%s\t", x.Title, x.Lazy.Answer, x.Lazy.Whole, x.Eager.Answer, x.Incoming.Answer, x.Loadvm.Answer,
				x.LazyToMigrate, x.EagerToMigrate, x.LazyToLoadvm, x.Seconds, met(x.LazyToMigrate <= targetRestore))
		}
	}
	printProtection(r.Protection, r.Compared, title, line)
	if s := r.Summary; len(r.Rows) > 0 {
		title("Against the targets")
		line("smaller than migrate, mean of all rows\t%s\tat least %s\t%s\t", percent(s.Smaller), percent(targetSize), met(s.Smaller >= targetSize))
		line("smaller than migrate, worst row that reads\t%s\tat least %s\t%s\t", percent(s.SmallerReads), percent(targetReads), met(s.SmallerReads >= targetReads))
		line("time less than migrate, mean, without fsync\t%s\tat least %s\t%s\t", percent(s.Faster), percent(targetTime), met(s.Faster >= targetTime))
		line("time less than migrate, mean, with fsync of both\t%s\tat least %s\t%s\t", percent(s.FasterSynced), percent(targetTime), met(s.FasterSynced >= targetTime))
		line("lazy restore to migrate's, worst row\t%.2f\tat most %.2f\t%s\t", s.WorstLazy, targetRestore, met(s.WorstLazy <= targetRestore))
		line("eager restore to migrate's, worst row\t%.2f\tat most %.2f\t%s\t", s.WorstEager, targetRestore, met(s.WorstEager <= targetRestore))
	}
	title(fmt.Sprintf("Measured in %.0f s", r.Seconds))
	return t.Flush()
}

func (r *SavedReport) write(o *savedOptions) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	for path, content := range map[string]func() []byte{o.report: func() []byte { return text }, o.plot: r.svg} {
		if path == "" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content(), 0o644); err != nil {
			return err
		}
	}
	if o.output == "json" {
		_, err = os.Stdout.Write(text)
		return err
	}
	return r.print(os.Stdout)
}

// ProtectedRow is a workload under protection. Times are in microseconds.
type ProtectedRow struct {
	Name      string  `json:"name"`
	Exclusion bool    `json:"exclusion"`
	Seconds   float64 `json:"seconds"` // the work took
	Epochs    uint64  `json:"epochs"`

	RawBytes  float64 `json:"raw_bytes_per_epoch"`
	WireBytes float64 `json:"wire_bytes_per_epoch"`
	Total     float64 `json:"wire_bytes"`
	Pause     Spread  `json:"pause_us"`
	Dirty     Spread  `json:"dirty_pages"`
	// CPU is the primary's processor time per second of the work.
	CPU float64 `json:"cpu_share"`
	// PerPage is the primary's processor time per dirty page, in microseconds.
	PerPage float64 `json:"cpu_us_per_dirty_page"`

	Mapped  uint64 `json:"pages_mapped"`
	Indexed uint64 `json:"pages_by_content"`
	Copied  uint64 `json:"pages_copied"`
	Zero    uint64 `json:"pages_zero"`
	Same    uint64 `json:"pages_same"`
}

// ProtectedComparison is one workload with exclusion beside without.
type ProtectedComparison struct {
	Name string `json:"name"`
	// WireLess is how much less is sent per epoch; WirePerRawLess, per dirty byte.
	WireLess       float64 `json:"wire_bytes_less"`
	WirePerRawLess float64 `json:"wire_per_dirty_byte_less"`
	PauseRatio     float64 `json:"pause_ratio"`
	Pause99        float64 `json:"pause_p99_ratio"`
	CPURatio       float64 `json:"cpu_per_page_ratio"`
	SecondsRatio   float64 `json:"work_seconds_ratio"`
	LeftOut        float64 `json:"share_of_dirty_pages_left_out"`
}
