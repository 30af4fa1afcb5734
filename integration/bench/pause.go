package main

// The pause, step by step, against the floor and against QEMU's own means; and
// what goes over the wire for it.

import (
	"context"
	"fmt"
	"time"

	"understudy/epoch"
	"understudy/guest/client"
	"understudy/primary"
)

const (
	pageBytes = epoch.PageSize
	// areaMiB bounds the dirty pages per epoch.
	areaMiB = 128
	// touchShare is the part of a guest's memory that it has used before
	// anything is measured, so that its page tables are those of a guest that
	// has been up for a while.
	touchShare = 2
	// settleEpochs is how many epochs pass between a change of load and the
	// first sample.
	settleEpochs = 10
	// burstsPerEpoch spreads an epoch's writes.
	burstsPerEpoch = 10
)

// workingSet is what the guest's writer walks through, in MiB: what the
// primary remembers of sent pages by default, if that is enough.
func workingSet(pages int) int {
	const remembered = 48
	if pages*pageBytes > remembered<<20 {
		return areaMiB
	}
	return remembered
}

// epochFor is the epoch length of a scenario: one that two cores, which also
// run the guest and the backup, can keep up with. The pause does not depend on
// it, only on the dirty pages.
func epochFor(pages int) time.Duration {
	if pages > 10_000 {
		return 250 * time.Millisecond
	}
	return 100 * time.Millisecond
}

// PauseReport is one scenario. Times are in microseconds.
type PauseReport struct {
	GuestMiB   int     `json:"guest_mib"`
	PagesAsked int     `json:"pages_asked"`
	EpochMs    float64 `json:"epoch_ms"`
	Dirty      Spread  `json:"dirty_pages"`

	Pause Spread      `json:"pause_us"`
	Steps PauseSteps  `json:"pause_steps_us"`
	Floor FloorReport `json:"floor_us"`
	// Ratio is the median pause over the median floor, whose steps follow each
	// other; RatioOverlapped sets it against a floor that saves the device
	// state while it scans and copies, as the engine does.
	Ratio           float64 `json:"pause_to_floor_ratio"`
	RatioOverlapped float64 `json:"pause_to_overlapped_floor_ratio"`
	// Migrate is stop, `migrate` with x-ignore-shared and cont, without the
	// copy of any page.
	Migrate Spread     `json:"migrate_us"`
	Wire    WireReport `json:"wire"`
}

// PauseSteps are medians. Device runs beside Seal, Scan and Copy; Rest is what
// the pause has beyond Stop, the longer of the two, and Resume.
type PauseSteps struct {
	Stop   float64 `json:"stop"`
	Seal   float64 `json:"seal"`
	Scan   float64 `json:"scan"`
	Copy   float64 `json:"copy"`
	Device float64 `json:"device"`
	Resume float64 `json:"resume"`
	Rest   float64 `json:"rest"`
}

// FloorReport is the floor, measured round by round between the pauses.
type FloorReport struct {
	Spread
	Overlapped float64 `json:"overlapped_median"`
	Stop       float64 `json:"stop"`
	Scan       float64 `json:"scan"`
	Device     float64 `json:"device"`
	Copy       float64 `json:"copy"`
	Cont       float64 `json:"cont"`
	Pages      float64 `json:"pages"`
}

// WireReport compares what was sent for the dirty pages with the pages.
type WireReport struct {
	RawBytes    uint64  `json:"raw_bytes_per_epoch"`
	WireBytes   uint64  `json:"wire_bytes_per_epoch"`
	Ratio       float64 `json:"wire_to_raw_ratio"`
	ZeroPages   uint64  `json:"zero_pages"`
	SamePages   uint64  `json:"same_pages"`
	DeltaPages  uint64  `json:"delta_pages"`
	PackedPages uint64  `json:"packed_pages"`
	RawPages    uint64  `json:"raw_pages"`
}

// touch has the guest use its memory once, as one that has been up for a while.
func (r *pair) touch(ctx context.Context, mib int) error {
	d := client.Dirty{Pages: 0, Every: time.Second, AreaMiB: mib / touchShare}
	if err := r.control.Dirty(ctx, d); err != nil {
		return err
	}
	return r.control.StopDirty(ctx)
}

// load has the guest dirty so many distinct pages in each interval, in bursts
// spread over it.
func (r *pair) load(ctx context.Context, pages int, interval time.Duration, bytes int) error {
	if pages == 0 {
		return nil
	}
	return r.control.Dirty(ctx, client.Dirty{Pages: pages / burstsPerEpoch, Every: interval / burstsPerEpoch, AreaMiB: workingSet(pages), Bytes: bytes})
}

func (r *pair) unload(ctx context.Context, pages int) error {
	if pages == 0 {
		return nil
	}
	return r.control.StopDirty(ctx)
}

// measurePauses measures each scenario on one guest.
func (r *pair) measurePauses(ctx context.Context, o *options, mib int, say func(string, ...any)) ([]PauseReport, error) {
	var all []PauseReport
	var now time.Duration // epoch length of the primary that runs
	for _, pages := range o.pages {
		length := epochFor(pages)
		if length != now {
			if err := r.unprotect(ctx); err != nil {
				return all, err
			}
			if err := r.protect(ctx, length, length); err != nil {
				return all, err
			}
			now = length
		}
		say("pause: %d MiB, %d pages per epoch", mib, pages)
		report, err := r.measurePause(ctx, pages, length, o.rounds)
		if err != nil {
			return all, fmt.Errorf("pause of a %d MiB guest at %d pages: %w", mib, pages, err)
		}
		report.GuestMiB = mib
		all = append(all, report)
	}
	return all, r.unprotect(ctx)
}

func (r *pair) measurePause(ctx context.Context, pages int, length time.Duration, rounds int) (PauseReport, error) {
	report := PauseReport{PagesAsked: pages, EpochMs: micros(length) / 1000}
	if err := r.load(ctx, pages, length, 0); err != nil {
		return report, err
	}
	if err := r.epochs(ctx, settleEpochs); err != nil {
		return report, err
	}
	before := r.primary.Status().Totals
	r.probe.begin()
	for {
		n, err := r.probe.progress()
		if err != nil {
			return report, err
		}
		if n >= rounds {
			break
		}
		if err := r.epochs(ctx, 1); err != nil {
			return report, err
		}
	}
	s, err := r.probe.end()
	if err != nil {
		return report, err
	}
	report.Wire = wireBetween(before, r.primary.Status().Totals)
	summarise(&report, s)
	return report, r.unload(ctx, pages)
}

// epochs waits until so many further checkpoints are committed.
func (r *pair) epochs(ctx context.Context, n uint64) error {
	from := r.primary.Status().Totals.Commits
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for {
		s := r.primary.Status()
		switch {
		case s.Mode != primary.ModeProtected:
			return fmt.Errorf("the guest is %s: %s", s.Mode, s.LinkError)
		case s.Totals.Commits >= from+n:
			return nil
		}
		select {
		case <-limit.C:
			return fmt.Errorf("no %d epochs in a minute", n)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond): // rarely, it shares the processors with what is measured
		}
	}
}

// summarise turns samples into a report.
func summarise(r *PauseReport, s samples) {
	cost := func(of func(primary.Cost) time.Duration) []float64 {
		return pick(s.pauses, func(c primary.Cost) float64 { return micros(of(c)) })
	}
	floor := func(of func(floorSample) time.Duration) []float64 {
		return pick(s.floors, func(f floorSample) float64 { return micros(of(f)) })
	}
	r.Dirty = spread(pick(s.pauses, func(c primary.Cost) float64 { return float64(c.Dirty) }))
	r.Pause = spread(cost(func(c primary.Cost) time.Duration { return c.Pause }))
	r.Steps = PauseSteps{
		Stop:   median(cost(func(c primary.Cost) time.Duration { return c.Stop })),
		Seal:   median(cost(func(c primary.Cost) time.Duration { return c.Seal })),
		Scan:   median(cost(func(c primary.Cost) time.Duration { return c.Scan })),
		Copy:   median(cost(func(c primary.Cost) time.Duration { return c.Copy })),
		Device: median(cost(func(c primary.Cost) time.Duration { return c.Device })),
		Resume: median(cost(func(c primary.Cost) time.Duration { return c.Resume })),
		Rest:   median(cost(rest)),
	}
	r.Floor = FloorReport{
		Spread:     spread(floor(floorSample.sum)),
		Overlapped: median(floor(floorSample.overlapped)),
		Stop:       median(floor(func(f floorSample) time.Duration { return f.Stop })),
		Scan:       median(floor(func(f floorSample) time.Duration { return f.Scan })),
		Device:     median(floor(func(f floorSample) time.Duration { return f.Device })),
		Copy:       median(floor(func(f floorSample) time.Duration { return f.Copy })),
		Cont:       median(floor(func(f floorSample) time.Duration { return f.Cont })),
		Pages:      median(pick(s.floors, func(f floorSample) float64 { return float64(f.Pages) })),
	}
	r.Ratio = ratio(r.Pause.Median, r.Floor.Median)
	r.RatioOverlapped = ratio(r.Pause.Median, r.Floor.Overlapped)
	r.Migrate = spread(pick(s.migrations, micros))
}

// rest is what a pause has beyond its steps.
func rest(c primary.Cost) time.Duration {
	return c.Pause - c.Stop - max(c.Device, c.Seal+c.Scan+c.Copy) - c.Resume
}

// wireBetween is what was sent between two readings of the totals.
func wireBetween(a, b primary.Totals) WireReport {
	epochs := b.Checkpoints - a.Checkpoints
	if epochs == 0 {
		return WireReport{}
	}
	raw, wire := b.RawBytes-a.RawBytes, b.WireBytes-a.WireBytes
	return WireReport{
		RawBytes: raw / epochs, WireBytes: wire / epochs, Ratio: ratio(float64(wire), float64(raw)),
		ZeroPages: b.ZeroPages - a.ZeroPages, SamePages: b.SamePages - a.SamePages, DeltaPages: b.DeltaPages - a.DeltaPages,
		PackedPages: b.PackedPages - a.PackedPages, RawPages: b.RawPages - a.RawPages,
	}
}

// WireScenario is what a kind of write costs on the wire.
type WireScenario struct {
	PagesAsked   int `json:"pages_asked"`
	BytesPerPage int `json:"bytes_written_per_page"`
	WireReport
}

// wireEpoch and wirePages are chosen so that the guest can rewrite its pages
// whole.
const (
	wireEpoch = 100 * time.Millisecond
	wirePages = 2000
)

// measureWire measures how the bytes sent depend on how much of each page is
// written, always with content that does not compress.
func (r *pair) measureWire(ctx context.Context, o *options, say func(string, ...any)) ([]WireScenario, error) {
	if err := r.protect(ctx, wireEpoch, wireEpoch); err != nil {
		return nil, err
	}
	var all []WireScenario
	for _, bytes := range []int{8, 512, pageBytes} {
		say("wire: %d of 4096 bytes of each page written", bytes)
		if err := r.load(ctx, wirePages, wireEpoch, bytes); err != nil {
			return all, err
		}
		if err := r.epochs(ctx, 2*settleEpochs); err != nil { // the encoder gets used to it
			return all, err
		}
		before := r.primary.Status().Totals
		if err := r.epochs(ctx, uint64(20+10*o.repeat)); err != nil {
			return all, err
		}
		all = append(all, WireScenario{wirePages, bytes, wireBetween(before, r.primary.Status().Totals)})
	}
	if err := r.unload(ctx, wirePages); err != nil {
		return all, err
	}
	return all, r.unprotect(ctx)
}
