// Command faults strikes real daemons with real guests at every step of the
// protocol, and judges what comes of it: `make faults`.
//
//	plan.go     the table of situations, points and faults
//	control.go  stopping daemons at points
//	stage.go    a world with one guest, and what can be done to its hosts
//	mounts.go   file systems that fail when they are told to
//	strangers.go  wrong certificates, other machines, bad intentions
//	trial.go    one fault at one point
//	report.go   the matrix and the times
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
	"time"

	"understudy/config"
	"understudy/demo/world"
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

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("faults", flag.ContinueOnError)
	pattern := f.String("cells", "", "only cells whose `pattern` (a regular expression) fits \"situation: point / fault\"")
	f.IntVar(&o.repeat, "repeat", 3, "how often each cell is played")
	f.IntVar(&o.mixed, "mixed", 0, "instead of all cells in order, so many of them at random")
	f.Uint64Var(&o.seed, "seed", 1, "of all dice")
	f.BoolVar(&o.every, "every", false, "every fault at every point, also those of which another of the kind strikes there")
	f.BoolVar(&o.list, "list", false, "list the cells and do nothing")
	output := f.String("output", "text", "text or json, on standard output")
	f.StringVar(&o.out, "report", "", "also write the report as JSON into this `file`")
	mode := f.String("disk", string(config.Replicated), "the guest's disk: replicated, or shared (and unfenced)")
	f.IntVar(&o.memory, "memory", 128, "the guest's memory in MiB")
	f.StringVar(&o.images, "guest", "build/guest", "the `directory` of the guest (make guest)")
	f.StringVar(&o.prefix, "prefix", "usfaults", "begins the names of what is made on the machine")
	f.StringVar(&o.logs, "logs", "", "keep the daemons' logs in this `directory`")
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
	return o, nil
}

func run(ctx context.Context, o options, out io.Writer) (failed int, err error) {
	all := cells(o.pattern, o.mode, o.every)
	if len(all) == 0 {
		return 0, errors.New("no cell fits: see -list")
	}
	if o.list {
		for _, c := range all {
			if _, err := fmt.Fprintln(out, c); err != nil {
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
	programs, err := world.Programs("crashpoints")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(programs)) }()
	r := runner{ctx: ctx, dice: rand.New(rand.NewPCG(o.seed, 0)), say: io.Writer(os.Stderr), setup: setup{
		daemon: filepath.Join(programs, "understudyd"), kernel: filepath.Join(images, "vmlinuz"), initrd: filepath.Join(images, "initrd"),
		image: small, mode: o.mode, memory: config.Size(o.memory) * config.MiB, prefix: o.prefix, logs: o.logs,
	}}
	r.report = Report{Seed: o.seed, Disk: string(o.mode), Started: time.Now()}
	err = r.run(plan(all, o, r.dice))
	r.report.Took = time.Since(r.report.Started)
	if o.out != "" {
		err = errors.Join(err, r.report.Write(o.out))
	}
	if o.json {
		err = errors.Join(err, r.report.Write("/dev/stdout"))
	} else {
		err = errors.Join(err, r.report.Print(out))
	}
	return r.report.Failed(), err
}

// plan is the order of the trials: all cells, row by row, or some at random.
func plan(all []cell, o options, dice *rand.Rand) (order []cell) {
	if o.mixed > 0 {
		for range o.mixed {
			order = append(order, all[dice.IntN(len(all))])
		}
		return order
	}
	for _, c := range all {
		for range o.repeat {
			order = append(order, c)
		}
	}
	return order
}

// runner plays trials, one after the other, in one world for as long as that
// works.
type runner struct {
	ctx    context.Context
	setup  setup
	dice   *rand.Rand
	say    io.Writer
	stage  *stage
	report Report
}

func (r *runner) run(order []cell) error {
	for i, c := range order {
		if r.stage == nil {
			s, err := newStage(r.ctx, r.setup)
			if err != nil {
				return fmt.Errorf("a world for the trials: %w", err)
			}
			r.stage = s
			r.report.Worlds++
			r.report.Lease = s.Lease()
		}
		t, err := r.stage.play(r.ctx, c, r.dice)
		t.Number = i + 1
		r.report.Trials = append(r.report.Trials, t)
		_, _ = fmt.Fprintf(r.say, "%d/%d %s: %s, silent for %s, until %s after the fault, %v in all %s\n", t.Number, len(order), c, t.Outcome, ms(t.Outage), ms(t.FirstLine),
			t.Took.Round(100*time.Millisecond), t.Why)
		if err != nil {
			if err := r.end(); err != nil {
				return err
			}
		}
		if r.ctx.Err() != nil {
			break
		}
	}
	return r.end()
}

// end takes the world down, and sums up what it saw.
func (r *runner) end() error {
	if r.stage == nil {
		return nil
	}
	res := r.stage.checker.Result()
	r.report.Lines += res.Lines
	r.report.Batches += res.Batches
	r.report.Frames += res.Frames
	r.report.Breaches += len(res.Breaches)
	err := r.stage.close()
	r.stage = nil
	return err
}
