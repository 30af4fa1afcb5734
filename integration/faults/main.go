// Command faults strikes real daemons with real guests at every step of the
// protocol, and judges what comes of it: `make faults`.
//
//	plan.go       the table of situations, points and faults, and what each promises
//	build.go      the daemon, and the name of its build
//	queue.go      several worlds that take trials from one queue; what was played before
//	trial.go      one fault at one point
//	stage.go      a world with one guest
//	strikes.go    what can be done to its hosts
//	whole.go      whether all is as it must be
//	control.go    stopping daemons at points
//	mounts.go     file systems that fail when they are told to
//	strangers.go  wrong certificates, other machines
//	hostile.go    bad intentions
//	explain.go    the times that the design explains
//	phases.go     where a trial's time goes
//	report.go     the matrix and the times
//
// Needs root. The daemons are built with the tag crashpoints.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"

	"understudy/config"
	"understudy/guest/image"
)

// options are what the command line says.
type options struct {
	pattern *regexp.Regexp
	repeat  int
	mixed   int
	seed    uint64
	list    bool
	every   bool
	json    bool
	out     string
	resume  string
	other   bool
	workers int
	program string
	verify  bool
	mode    config.DiskMode
	memory  int
	images  string
	prefix  string
	logs    string
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	failed := 0
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		failed, err = run(ctx, o, os.Stdout)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(2)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

// maxWorkers is how many worlds have a letter of their own.
const maxWorkers = 26

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("faults", flag.ContinueOnError)
	pattern := f.String("cells", "", "only cells whose `pattern` (a regular expression) fits \"situation: point / fault\"")
	f.IntVar(&o.repeat, "repeat", 3, "how often each cell is played")
	f.IntVar(&o.mixed, "mixed", 0, "instead of all cells in order, so many of them at random")
	f.Uint64Var(&o.seed, "seed", 1, "of all dice")
	f.BoolVar(&o.every, "every", false, "every fault at every point, also those of which another of the kind strikes there")
	f.BoolVar(&o.list, "list", false, "list the cells, with what each promises, and do nothing")
	output := f.String("output", "text", "text or json, on standard output")
	f.StringVar(&o.out, "report", "", "also write the report as JSON into this `file`, anew after each trial")
	f.StringVar(&o.resume, "resume", "", "go on from the report in this `file`: what was played well by the same build is not played again")
	f.BoolVar(&o.other, "other-build", false, "with -resume: also take what another build has played; the report names both")
	f.IntVar(&o.workers, "workers", 1, "play in so many worlds side by side")
	f.StringVar(&o.program, "daemon", "", "strike this understudyd (built with the tag crashpoints) instead of building one")
	f.BoolVar(&o.verify, "verify-all", false, "have the daemons compare all memory of both hosts at every checkpoint")
	mode := f.String("disk", string(config.Replicated), "the guest's disk: replicated, or shared (and unfenced)")
	f.IntVar(&o.memory, "memory", 112, "the guest's memory in MiB")
	f.StringVar(&o.images, "guest", "build/guest", "the `directory` of the guest (make guest)")
	f.StringVar(&o.prefix, "prefix", "usfaults", "begins the names of what is made on the machine, at most 15 lower-case letters")
	f.StringVar(&o.logs, "logs", "", "keep the daemons' logs below this `directory`")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.json, o.mode = *output == "json", config.DiskMode(*mode)
	if o.pattern, err = regexp.Compile(*pattern); err != nil {
		return o, fmt.Errorf("-cells: %w", err)
	}
	if o.mode != config.Replicated && o.mode != config.Shared {
		return o, fmt.Errorf("-disk %q: want replicated or shared", *mode)
	}
	if o.workers < 1 || o.workers > maxWorkers {
		return o, fmt.Errorf("-workers %d: want 1 to %d", o.workers, maxWorkers)
	}
	return o, nil
}

func run(ctx context.Context, o options, out io.Writer) (failed int, err error) {
	all := cells(o.pattern, o.mode, o.every)
	if len(all) == 0 {
		return 0, errors.New("no cell fits: see -list")
	}
	if o.list {
		for _, c := range all {
			if _, err := fmt.Fprintf(out, "%s\t%s\n", c, c.promise(o.mode)); err != nil {
				return 0, err
			}
		}
		return 0, nil
	}
	images, err := filepath.Abs(o.images)
	if err != nil {
		return 0, err
	}
	small, err := image.Small(ctx, images)
	if err != nil {
		return 0, err
	}
	if o.program == "" {
		program, remove, err := buildDaemon(ctx)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, remove()) }()
		o.program = program
	}
	build, err := identify(o.program)
	if err != nil {
		return 0, err
	}
	q := queue{ctx: ctx, out: o.out, say: os.Stderr, waiting: plan(all, o), setup: setup{
		daemon: o.program, kernel: filepath.Join(images, "vmlinuz"), initrd: filepath.Join(images, "initrd"),
		image: small, mode: o.mode, memory: config.Size(o.memory) * config.MiB, prefix: o.prefix, logs: o.logs, verify: o.verify,
	}, report: newReport(o, build)}
	if o.resume != "" {
		if err := q.resume(o.resume, o.other); err != nil {
			return 0, err
		}
	}
	err = q.play(o.workers)
	if o.json {
		err = errors.Join(err, q.report.Write("/dev/stdout"))
	} else {
		err = errors.Join(err, q.report.Print(out))
	}
	return q.report.Failed(), err
}

// plan is the order of the trials: all cells, row by row, or some at random.
func plan(all []cell, o options) (order []job) {
	if o.mixed > 0 {
		dice := rand.New(rand.NewPCG(o.seed, 0))
		for range o.mixed {
			order = append(order, job{cell: all[dice.IntN(len(all))]})
		}
	} else {
		for _, c := range all {
			for range o.repeat {
				order = append(order, job{cell: c})
			}
		}
	}
	for i := range order {
		order[i].number = i + 1
	}
	return order
}
