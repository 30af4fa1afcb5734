package main

// Continuous protection of a guest that works on its disk, with and without
// leaving out what is on it:
//
//	boot ─> protected by a backup in a process of its own, on the same disk
//	─> for each load: the guest's caches dropped, the load, what its epochs cost
//
// The two ways take turns, each with a guest of its own.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy/exclusion"
	"understudy/primary"
)

// protectEpoch is long enough that two processors, which run the guest and the
// backup as well, keep up.
const protectEpoch = 100 * time.Millisecond

// protectedWorks are the loads.
func protectedWorks(quick bool) []work {
	all := []work{
		{name: "read", title: "reading a source tree", steps: []string{"read-tree files=5000"}, quick: []string{"read-tree files=1000"}},
		{name: "compile", title: "compile job", steps: []string{"compile files=25"}, quick: []string{"compile files=4"}},
		{name: "mail", title: "mail spool (PostMark-like)", steps: []string{"postmark files=1000 transactions=2000"}, quick: []string{"postmark"}},
		{name: "database", title: "database load", steps: []string{"database ops=2000"}, quick: []string{"database ops=200"}},
	}
	for i := range all {
		all[i].steps = all[i].stepsFor(quick)
	}
	return all
}

// costs collects what a primary tells of its checkpoints.
type costs struct {
	mu  sync.Mutex
	all []primary.Cost
}

func (c *costs) observe(one primary.Cost) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, one)
}

func (c *costs) take() []primary.Cost {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.all
	c.all = nil
	return all
}

// measureProtection measures every load, protected in both ways.
func (b *savedBench) measureProtection(ctx context.Context) (rows []ProtectedRow, err error) {
	there, err := b.place.config(&b.o.options, b.o.mib, hostB)
	if err != nil {
		return nil, err
	}
	there.Served, there.Append, there.FreePageReporting = b.own.cfg.Served, b.own.cfg.Append, b.own.cfg.FreePageReporting
	standby, err := startStandby(task{Here: there, There: b.own.cfg, Place: *b.place, Disk: b.image.path, Verbose: b.o.verbose})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, standby.close()) }()
	dial, err := dialer(standby.address, b.place.tls(), b.place.Log)
	if err != nil {
		return nil, err
	}
	rounds := 2
	if b.o.quick {
		rounds = 1
	}
	for i := range 2 * rounds {
		exclude := i%2 == 1
		b.say("protection: %d of %d, exclusion %t", i+1, 2*rounds, exclude)
		some, err := b.protectedGuest(ctx, dial, exclude)
		rows = append(rows, some...)
		if err != nil {
			return rows, fmt.Errorf("protection, exclusion %t: %w", exclude, err)
		}
	}
	return rows, nil
}

// protectedGuest does every load in one guest.
func (b *savedBench) protectedGuest(ctx context.Context, dial primary.Dial, exclude bool) (rows []ProtectedRow, err error) {
	var seen costs
	c := primary.DefaultConfig(guestName, hostA, leaseTime)
	c.Floor, c.Target, c.Ceiling = protectEpoch, protectEpoch, protectEpoch
	if err := b.own.boot(ctx, exclude, c, primary.Deps{Dial: dial, Observe: seen.observe}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.own.end()) }()
	if err := b.protected(ctx); err != nil {
		return nil, err
	}
	for _, w := range protectedWorks(b.o.quick) {
		if err := b.own.control.DropCaches(ctx); err != nil {
			return rows, err
		}
		seen.take()
		before, out, cpu, begin := b.own.primary.Status().Totals, b.own.disks.Excluded(), processorTime(), time.Now()
		if _, err := do(ctx, b.own.control, w.steps); err != nil {
			return rows, err
		}
		took, after := time.Since(begin), b.own.primary.Status()
		if after.Mode != primary.ModeProtected {
			return rows, fmt.Errorf("%s: the guest is %s: %s", w.title, after.Mode, after.LinkError)
		}
		r := protectedRow(w.title, exclude, took, processorTime()-cpu, seen.take(), before, after.Totals, out, b.own.disks.Excluded())
		rows = append(rows, r)
	}
	return rows, nil
}

// protected waits until the backup is in sync.
func (b *savedBench) protected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, protectTime)
	defer cancel()
	for {
		s := b.own.primary.Status()
		if s.Mode == primary.ModeProtected {
			return nil
		}
		select {
		case err := <-b.own.ended:
			b.own.ended <- err
			return fmt.Errorf("the primary ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("not protected after %v: %s, %d pages left, %s", protectTime, s.Mode, s.Remaining, s.LinkError)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func protectedRow(name string, exclude bool, took, cpu time.Duration, costs []primary.Cost, a, b primary.Totals, out, now exclusion.Stats) ProtectedRow {
	r := ProtectedRow{
		Name: name, Exclusion: exclude, Seconds: took.Seconds(), Epochs: b.Checkpoints - a.Checkpoints,
		Total: float64(b.WireBytes - a.WireBytes),
		Pause: spread(pick(costs, func(c primary.Cost) float64 { return micros(c.Pause) })),
		Dirty: spread(pick(costs, func(c primary.Cost) float64 { return float64(c.Dirty) })),
		CPU:   ratio(cpu.Seconds(), took.Seconds()),

		Mapped: now.Mapped - out.Mapped, Indexed: now.Indexed - out.Indexed, Copied: now.Copied - out.Copied,
		Zero: b.ZeroPages - a.ZeroPages, Same: b.SamePages - a.SamePages,
	}
	raw, epochs := float64(b.RawBytes-a.RawBytes), float64(r.Epochs)
	r.RawBytes, r.WireBytes = ratio(raw, epochs), ratio(r.Total, epochs)
	r.PerPage = ratio(micros(cpu), raw/pageBytes)
	return r
}

// compareProtection sets each load with exclusion beside the same one without:
// medians over the rounds.
func compareProtection(rows []ProtectedRow) (all []ProtectedComparison) {
	var names []string
	for _, r := range rows {
		if !slices.Contains(names, r.Name) {
			names = append(names, r.Name)
		}
	}
	for _, name := range names {
		of := func(exclude bool, value func(ProtectedRow) float64) float64 {
			var s []float64
			for _, r := range rows {
				if r.Name == name && r.Exclusion == exclude {
					s = append(s, value(r))
				}
			}
			return median(s)
		}
		rat := func(value func(ProtectedRow) float64) float64 { return ratio(of(true, value), of(false, value)) }
		perRaw := func(r ProtectedRow) float64 { return ratio(r.WireBytes, r.RawBytes) }
		all = append(all, ProtectedComparison{
			Name:     name,
			WireLess: 1 - rat(func(r ProtectedRow) float64 { return r.WireBytes }), WirePerRawLess: 1 - rat(perRaw),
			PauseRatio: rat(func(r ProtectedRow) float64 { return r.Pause.Median }), Pause99: rat(func(r ProtectedRow) float64 { return r.Pause.P99 }),
			CPURatio: rat(func(r ProtectedRow) float64 { return r.PerPage }), SecondsRatio: rat(func(r ProtectedRow) float64 { return r.Seconds }),
			LeftOut: of(true, func(r ProtectedRow) float64 {
				return ratio(float64(r.Mapped+r.Indexed+r.Copied)*pageBytes, r.RawBytes*float64(r.Epochs))
			}),
		})
	}
	return all
}

func printProtection(rows []ProtectedRow, compared []ProtectedComparison, title func(string), line func(string, ...any)) {
	if len(rows) == 0 {
		return
	}
	title(fmt.Sprintf("Protection, epochs of %v: per epoch, pause in ms, processor of the primary's process", protectEpoch))
	line("load\texclusion\ts\tepochs\tdirty\traw KiB\twire KiB\tpause\tp99\tµs/page\ttraced\tby content\tequal\tzero\tunchanged\t")
	for _, r := range rows {
		line("%s\t%t\t%.1f\t%d\t%.0f\t%s\t%s\t%s\t%s\t%.2f\t%d\t%d\t%d\t%d\t%d\t", r.Name, r.Exclusion, r.Seconds, r.Epochs, r.Dirty.Median, kib(uint64(r.RawBytes)), kib(uint64(r.WireBytes)),
			ms(r.Pause.Median), ms(r.Pause.P99), r.PerPage, r.Mapped, r.Indexed, r.Copied, r.Zero, r.Same)
	}
	title("Exclusion beside none")
	line("load\twire bytes less\tper dirty byte less\tpages left out\tpause\tpause p99\tprocessor per page\tthe work takes\t")
	for _, c := range compared {
		line("%s\t%s\t%s\t%s\t×%.2f\t×%.2f\t×%.2f\t×%.2f\t", c.Name, percent(c.WireLess), percent(c.WirePerRawLess), percent(c.LeftOut), c.PauseRatio, c.Pause99, c.CPURatio, c.SecondsRatio)
	}
}
