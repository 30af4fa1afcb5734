// Command diskbench measures what our back end of the guest's disk costs, beside
// QEMU's own virtio-blk and qemu-storage-daemon's vhost-user-blk, all on the same
// file of a real disk and past the page cache, in turn and in the same run.
//
//	options ─> host.go: the two vhost-user back ends, driven without a guest
//	        ─> guest.go: one Linux guest with three disks, which are one file
//	        ─> protect.go: a guest on our disk, unprotected and protected, and its
//	           pauses with a disk that takes 200 ms
//	        ─> report.go
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"understudy/hypervisor/qemu/dirty"
)

const helperCommand = "dirty-helper"

// fileSize is the file that is read and written, in bytes.
const fileSize = 256 << 20

// options are what the command line says.
type options struct {
	quick     bool
	rounds    int
	hostTime  time.Duration // of one measurement without a guest
	guestTime time.Duration
	dir       string // on the disk that is measured
	images    string
	report    string
	aio       string
	profile   string
	only      string
	sections  string
}

func (o *options) wants(section string) bool { return strings.Contains(o.sections, section) }

func (o *options) matches(name string) bool { return strings.Contains(name, o.only) }

func parseOptions(args []string) (o options, err error) {
	f := flag.NewFlagSet("diskbench", flag.ContinueOnError)
	f.BoolVar(&o.quick, "quick", false, "one short round")
	f.IntVar(&o.rounds, "rounds", 0, "measurements of each load and back end (0: 3, quick 1)")
	f.StringVar(&o.dir, "dir", "/var/tmp", "`directory` on the disk that is measured")
	f.StringVar(&o.images, "guest-dir", "build/guest", "`directory` that make guest wrote")
	f.StringVar(&o.report, "report", "", "write the report as JSON to this `file`")
	f.StringVar(&o.aio, "aio", "native", "how QEMU and qemu-storage-daemon reach the file: threads, native or io_uring")
	f.StringVar(&o.profile, "cpuprofile", "", "write a profile of our back end, driven without a guest, to this `file`")
	f.StringVar(&o.only, "only", "", "only loads whose name has this `text`")
	f.StringVar(&o.sections, "sections", "host,guest,protected", "which `sections` to measure")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("argument %q is not known: see --help", f.Arg(0))
	}
	if o.rounds == 0 {
		if o.rounds = 3; o.quick {
			o.rounds = 1
		}
	}
	o.hostTime, o.guestTime = time.Second, 1200*time.Millisecond
	if o.quick {
		o.hostTime, o.guestTime = 400*time.Millisecond, 400*time.Millisecond
	}
	for _, path := range []*string{&o.dir, &o.images} {
		if *path, err = filepath.Abs(*path); err != nil {
			return o, err
		}
	}
	return o, nil
}

// Report is everything that was measured.
type Report struct {
	Begun   time.Time `json:"begun"`
	Seconds float64   `json:"seconds"`
	CPUs    int       `json:"cpus"`
	AIO     string    `json:"qemu_aio"`
	// Host: no guest, a driver of our own. Guest: one emulated guest, three
	// disks. Protected: a guest on our disk, with and without a backup.
	Host      []Row `json:"host,omitempty"`
	Guest     []Row `json:"guest,omitempty"`
	Protected []Row `json:"protected,omitempty"`
}

// Who is compared with whom.
var (
	hostRatios      = [][2]string{{nameOurs, nameQSD}}
	guestRatios     = [][2]string{{nameOurs, nameQSD}, {nameOurs, nameQEMU}}
	protectedRatios = [][2]string{{nameProtected, nameUnprotected}}
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case helperCommand:
			os.Exit(dirty.HelperMain(os.Args[2:]))
		case serveCommand:
			os.Exit(exit(serveMain(os.Args[2:])))
		}
	}
	// Children end with the thread that started them (Pdeathsig).
	runtime.LockOSThread()
	o, err := parseOptions(os.Args[1:])
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
		fmt.Fprintln(os.Stderr, "diskbench:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, o *options) (err error) {
	begin := time.Now()
	say := func(format string, a ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, a...))
	}
	dir, err := os.MkdirTemp(o.dir, "usdisk")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o711); err != nil { // QEMU's account passes through
		return err
	}
	report := &Report{Begun: begin, CPUs: runtime.NumCPU(), AIO: o.aio}
	for _, s := range []struct {
		name    string
		into    *[]Row
		measure func(context.Context, *options, string, func(string, ...any)) ([]Row, error)
	}{
		{"host", &report.Host, measureHost},
		{"guest", &report.Guest, measureGuest},
		{"protected", &report.Protected, measureProtected},
	} {
		if !o.wants(s.name) {
			continue
		}
		if *s.into, err = s.measure(ctx, o, dir, say); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for rows, pairs := range map[*[]Row][][2]string{&report.Host: hostRatios, &report.Guest: guestRatios, &report.Protected: protectedRatios} {
		for i := range *rows {
			(*rows)[i].compare(pairs)
		}
	}
	report.Seconds = time.Since(begin).Seconds()
	return report.write(o, os.Stdout)
}

func (r *Report) write(o *options, w io.Writer) error {
	if o.report != "" {
		text, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(o.report), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(o.report, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	return errors.Join(
		table(w, "Without a guest: a driver of our own", r.Host, hostRatios),
		table(w, "In a Linux guest under emulation, O_DIRECT", r.Guest, guestRatios),
		table(w, "The same guest on our disk, unprotected and protected", r.Protected, protectedRatios),
	)
}
