package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// options are what the command line says.
type options struct {
	guests   []int // memory of each guest, in MiB
	pages    []int // dirty pages per epoch
	sections []string
	rounds   int // measured pauses per scenario
	repeat   int // protected/unprotected pairs
	quick    bool
	machine  string
	cpus     int
	accel    string
	images   string // directory of vmlinuz and initrd
	report   string
	output   string
	profile  string
	verbose  bool
}

// The sections of the report.
const (
	sectionPause      = "pause"
	sectionWire       = "wire"
	sectionSpeed      = "speed"
	sectionLatency    = "latency"
	sectionThroughput = "throughput"
)

var sections = []string{sectionPause, sectionWire, sectionSpeed, sectionLatency, sectionThroughput}

const help = `bench measures what protecting a real Linux guest costs on this machine.

  make guest && make bench           in full, under 12 minutes
  make bench BENCH_FLAGS=--quick     fewer rounds, the smaller guest only, under 3 minutes
  go run ./integration/bench --guests 512 --pages 5000 --sections pause

It runs as root: a guest under QEMU, a primary that protects it, a backup in a
process of its own fed over TLS on loopback, and a client in a network namespace.
Everything it starts or makes is gone when it ends.

`

// parseOptions reads the command line. The error is flag.ErrHelp after help was
// asked for, and written to w.
func parseOptions(args []string, w io.Writer) (options, error) {
	o := options{}
	var guests, pages, which string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(w)
	f.Usage = func() {
		_, _ = io.WriteString(w, help)
		f.PrintDefaults()
	}
	f.StringVar(&guests, "guests", "", "memory of the guests in `MiB` (default 512,4096, quick 512)")
	f.StringVar(&pages, "pages", "0,1000,5000,20000", "dirty `pages` per epoch, 0 is an idle guest")
	f.StringVar(&which, "sections", strings.Join(sections, ","), "which `sections` to measure; all but pause use the first guest")
	f.IntVar(&o.rounds, "rounds", 0, "measured pauses per scenario, and as many of the floor (0: 100, quick 20)")
	f.IntVar(&o.repeat, "repeat", 0, "protected/unprotected pairs of the other sections (0: 4, quick 1)")
	f.BoolVar(&o.quick, "quick", false, "fewer rounds")
	f.StringVar(&o.machine, "machine", "q35", "QEMU machine `type`")
	f.IntVar(&o.cpus, "cpus", 1, "virtual processors")
	f.StringVar(&o.accel, "accel", "auto", "accelerator: kvm, tcg or auto")
	f.StringVar(&o.images, "guest-dir", "build/guest", "`directory` that make guest wrote")
	f.StringVar(&o.report, "report", "", "write the report as JSON to this `file`")
	f.StringVar(&o.output, "output", "text", "what to print: text or json")
	f.StringVar(&o.profile, "cpuprofile", "", "write a profile of the primary's process to this `file`")
	f.BoolVar(&o.verbose, "verbose", false, "log what primary and backup do to standard error")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var errs []error
	if f.NArg() > 0 {
		errs = append(errs, fmt.Errorf("argument %q is not known: see --help", f.Arg(0)))
	}
	numbers := func(name, list string, least, most int) (out []int) {
		for _, word := range strings.Split(list, ",") {
			n, err := strconv.Atoi(word)
			if err != nil || n < least || n > most {
				errs = append(errs, fmt.Errorf("--%s: %q: want numbers from %d to %d, with commas between them", name, word, least, most))
				continue
			}
			out = append(out, n)
		}
		return out
	}
	if guests == "" {
		guests = "512,4096"
		if o.quick {
			guests = "512"
		}
	}
	o.guests = numbers("guests", guests, 256, 1<<20)
	o.pages = numbers("pages", pages, 0, areaMiB<<20/pageBytes)
	for _, s := range strings.Split(which, ",") {
		if !slices.Contains(sections, s) {
			errs = append(errs, fmt.Errorf("--sections: %q: want some of %s", s, strings.Join(sections, ",")))
		}
		o.sections = append(o.sections, s)
	}
	if o.output != "text" && o.output != "json" {
		errs = append(errs, fmt.Errorf("--output %q: want text or json", o.output))
	}
	if o.rounds < 0 || o.repeat < 0 {
		errs = append(errs, errors.New("--rounds and --repeat: want 1 or more"))
	}
	for given, defaults := range map[*int][2]int{&o.rounds: {100, 20}, &o.repeat: {4, 1}} {
		if *given != 0 {
			continue
		}
		*given = defaults[0]
		if o.quick {
			*given = defaults[1]
		}
	}
	var err error
	if o.images, err = filepath.Abs(o.images); err != nil {
		errs = append(errs, err)
	}
	return o, errors.Join(errs...)
}

func (o *options) wants(section string) bool { return slices.Contains(o.sections, section) }
