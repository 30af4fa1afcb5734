// Command remus compares our continuous protection of a Xen domain with stock Remus,
// which libxl has: the same guest on the same Xen host, in QEMU's emulation, protected
// by one and the other in turn, at the same intervals, under the same loads. Nothing is
// asserted: it writes down what was measured.
//
//	main.go     options, and what follows what
//	host.go     the Xen host, and what it is given
//	dom0/       what runs there: the guest, and both sides; guest/ runs in the guest
//	standby.go  our backup's host: this process, beside the Xen host
//	report.go   what came out
//
// The host has one processor, on which Xen, its first domain and the guest take turns.
//
//	go run ./integration/xen/remus
//	go run ./integration/xen/remus -intervals 200ms -loads 0:0
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
	"syscall"
	"time"

	"understudy/guest/image"
)

type options struct {
	images    string
	boots     string
	report    string
	raw       string
	intervals string
	loads     string
	epochs    int
	limit     time.Duration
	verbose   bool
}

func main() {
	var o options
	flag.StringVar(&o.images, "image", "build/xen", "where the Xen host's image is, or is made (make xen-dom0)")
	flag.StringVar(&o.boots, "guest-files", "build/guest", "where the guest's vmlinuz is (make guest)")
	flag.StringVar(&o.report, "report", "", "write the report as JSON to this `file`")
	flag.StringVar(&o.raw, "raw", "", "keep each epoch's figures in this `file`")
	flag.StringVar(&o.intervals, "intervals", "200ms,50ms", "from a resume to the next suspend")
	flag.StringVar(&o.loads, "loads", "0:0,5000:8,5000:4096", "PAGES:BYTES: pages that the guest writes in a second, and random bytes that it writes in each")
	flag.IntVar(&o.epochs, "epochs", 60, "checkpoints that are measured of each run")
	flag.DurationVar(&o.limit, "limit", 20*time.Minute, "everything ends after that")
	flag.BoolVar(&o.verbose, "verbose", false, "log what primary and backup do to standard error")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "remus:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("it is not over after %v", o.limit))
	defer cancel()
	report := newReport()
	dom0, err := image.MakeDom0(ctx, o.images)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "understudy-remus-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	share := filepath.Join(dir, "share")
	if err := files(ctx, share, o); err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	if o.verbose {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	backup, err := startStandby(ctx, filepath.Join(share, tlsDir), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backup.close()) }()
	// What was measured before something went wrong is told, too.
	broken := measure(ctx, dom0, dir, share, backup.port, o)
	defer func() { err = errors.Join(err, broken) }()
	runs, err := readRuns(filepath.Join(share, results))
	if err != nil || len(runs) == 0 {
		return err
	}
	if o.raw != "" {
		if err := writeJSON(o.raw, runs); err != nil {
			return err
		}
	}
	broken = errors.Join(broken, report.add(runs))
	if o.report != "" {
		if err := writeJSON(o.report, report); err != nil {
			return err
		}
	}
	return report.print(os.Stdout)
}

func writeJSON(path string, what any) error {
	text, err := json.MarshalIndent(what, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
