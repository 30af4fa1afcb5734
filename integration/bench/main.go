// Command bench measures what protection costs, on a real Linux guest under
// QEMU, and sets the pause against the floor that no checkpoint can go below,
// measured in the same run on the same guest.
//
// Data flows like this: options (options.go) say which guests and scenarios; a
// place (place.go) is made for them; a pair (pair.go) is a guest there, with a
// probe (probe.go) around it, and a backup in a process of its own
// (standby.go); pause.go and load.go measure it; stats.go reduces the samples;
// report.go writes what came out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"understudy/hypervisor/qemu/dirty"
)

// What this program is started as by itself.
const (
	helperCommand  = "dirty-helper"
	standbyCommand = "standby"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == helperCommand {
		os.Exit(dirty.HelperMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == checkpointCommand {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err := runSaved(ctx, os.Args[2:])
		stop()
		os.Exit(exit(err))
	}
	if len(os.Args) > 1 && os.Args[1] == standbyCommand {
		// The terminal's interrupt is for the parent, whose end ends this one.
		signal.Ignore(os.Interrupt, syscall.SIGTERM)
		os.Exit(exit(standbyMain()))
	}
	o, err := parseOptions(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = run(ctx, &o)
		stop()
	}
	os.Exit(exit(err))
}

func exit(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, o *options) (err error) {
	if err := o.checkGuest(); err != nil {
		return err
	}
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	begin := time.Now()
	report := newReport(o)
	p, err := newPlace(newLog(o.verbose))
	if err != nil {
		return err
	}
	say := func(format string, a ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, a...))
	}
	for i, mib := range o.guests {
		if i > 0 && !o.wants(sectionPause) {
			break
		}
		if err = measure(ctx, p, o, mib, i == 0, report, say); err != nil {
			break
		}
	}
	if err = errors.Join(err, p.close()); err != nil {
		return err
	}
	report.Seconds = time.Since(begin).Seconds()
	report.conclude()
	return write(o, report)
}

// measure measures one guest; the first one in every respect.
func measure(ctx context.Context, p *place, o *options, mib int, first bool, report *Report, say func(string, ...any)) (err error) {
	say("booting a guest of %d MiB", mib)
	r, err := newPair(ctx, p, o, mib)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.touch(ctx, mib); err != nil {
		return err
	}
	if o.wants(sectionPause) {
		pauses, err := r.measurePauses(ctx, o, mib, say)
		report.Pauses = append(report.Pauses, pauses...)
		if err != nil {
			return err
		}
	}
	if !first {
		return nil
	}
	if o.wants(sectionWire) {
		if report.Wire, err = r.measureWire(ctx, o, say); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		name    string
		into    *[]Compared
		measure func(context.Context, *options, func(string, ...any)) ([]Compared, error)
	}{
		{sectionSpeed, &report.Speed, r.measureSpeed},
		{sectionLatency, &report.Latency, r.measureLatency},
		{sectionThroughput, &report.Throughput, r.measureThroughput},
	} {
		if !o.wants(s.name) {
			continue
		}
		if *s.into, err = s.measure(ctx, o, say); err != nil {
			return err
		}
	}
	return nil
}

func write(o *options, report *Report) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if o.report != "" {
		if err := os.MkdirAll(filepath.Dir(o.report), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(o.report, text, 0o644); err != nil {
			return err
		}
	}
	if o.output == "json" {
		_, err = os.Stdout.Write(text)
		return err
	}
	return report.print(os.Stdout)
}

func newLog(verbose bool) *slog.Logger {
	if !verbose {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil))
}
