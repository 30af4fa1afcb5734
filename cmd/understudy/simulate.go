package main

// understudy simulate: the engine's own cores under simulated faults, on nothing
// but this machine's processor.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"understudy/drill"
	"understudy/simulation"
)

type simulateFlags struct {
	seeds, workers int
	from, seed     uint64
	story, teeth   bool

	fail, guest string // of the pair that runs
}

func simulateCommand(f *common) *cobra.Command {
	var s simulateFlags
	c := &cobra.Command{
		Use:   "simulate",
		Short: "Play stories of faults against the engine's own decisions, and check every guarantee",
		Long: `Two hosts, three voters and a guest with a disk in one process, under a fake
clock: hosts are lost, frozen, suspended and cut off, messages are lost, late and
doubled, proposals commit after everyone has given them up. The decisions are
made by the same code as in the daemon; after every event all guarantees are
checked. A seed is a whole story, and the same one each time.

Printed is how often each fault has struck at each step of the protocol. After
10000 seeds or more a cell that nobody came to is a failure.

With --fail it is about the pair that runs: what would happen if a host or a link
failed now, and why. All hosts are asked; nothing is done.`,
		Example: `  understudy simulate --seeds 100000
  understudy simulate --seed 4711 --story
  understudy simulate --fail host alpha
  understudy simulate --fail link alpha beta --guest web`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if s.fail != "" || s.guest != "" {
				return s.foretell(cmd, f, args)
			}
			if len(args) > 0 {
				return exitError{exitUsage, fmt.Errorf("unknown argument %q", args[0])}
			}
			return s.run(cmd, f)
		},
	}
	c.Flags().IntVar(&s.seeds, "seeds", 1000, "how many stories to play")
	c.Flags().Uint64Var(&s.from, "from", 1, "the first of them")
	c.Flags().IntVar(&s.workers, "workers", 0, "how many at a time (default: one for each processor)")
	c.Flags().Uint64Var(&s.seed, "seed", 0, "play this one alone")
	c.Flags().BoolVar(&s.story, "story", false, "with --seed: tell the story")
	c.Flags().BoolVar(&s.teeth, "teeth", false, "break one rule at a time and count the seeds until that is noticed")
	_ = c.Flags().MarkHidden("teeth") // it is there
	c.Flags().StringVar(&s.fail, "fail", "", "host NAME, or link NAME NAME: what if that failed now")
	c.Flags().StringVar(&s.guest, "guest", "", "with --fail: this guest alone (default: all)")
	c.MarkFlagsMutuallyExclusive("seed", "seeds")
	c.MarkFlagsMutuallyExclusive("fail", "seeds", "seed", "teeth")
	c.MarkFlagsMutuallyExclusive("seed", "teeth")
	return c
}

// foretell asks what a failure would do to the pair that runs.
func (s *simulateFlags) foretell(cmd *cobra.Command, f *common, args []string) error {
	var fail string
	switch {
	case s.fail == "host" && len(args) == 1:
		fail = args[0]
	case s.fail == "link" && len(args) == 2:
		fail = "link:" + args[0] + "-" + args[1]
	default:
		return exitError{exitUsage, errors.New("say --fail host NAME, or --fail link NAME NAME")}
	}
	c, err := f.client()
	if err != nil {
		return err
	}
	guests := []string{s.guest}
	if s.guest == "" {
		conf, _, err := f.load()
		if err != nil {
			return err
		}
		guests = nil
		for _, g := range conf.Guests {
			guests = append(guests, g.Name)
		}
	}
	var all drill.Forecast
	for i, g := range guests {
		one, err := c.Simulate(cmd.Context(), g, fail)
		if err != nil {
			return err
		}
		if i == 0 {
			all = one
			continue
		}
		all.Guests = append(all.Guests, one.Guests...)
	}
	return f.print(cmd.OutOrStdout(), all, all.WriteTable)
}

func (s *simulateFlags) run(cmd *cobra.Command, f *common) error {
	switch {
	case cmd.Flags().Changed("seed"):
		return s.one(cmd, f)
	case s.story:
		return exitError{exitUsage, errors.New("--story tells one story: say --seed N")}
	case s.seeds < 1:
		return exitError{exitUsage, fmt.Errorf("--seeds %d: want at least one", s.seeds)}
	case s.teeth:
		return s.bite(cmd, f)
	}
	bar := newProgress(cmd.ErrOrStderr(), s.seeds)
	report, err := simulation.Run(cmd.Context(), simulation.Options{Seeds: s.seeds, First: s.from, Workers: s.workers, Progress: bar.set})
	bar.end()
	if report == nil {
		return err
	}
	return errors.Join(f.print(cmd.OutOrStdout(), report, report.Print), err, report.Err())
}

// one plays a single seed.
func (s *simulateFlags) one(cmd *cobra.Command, f *common) error {
	story, failed := simulation.Story(s.seed)
	out := struct {
		Seed   uint64 `json:"seed"`
		Failed string `json:"failed,omitempty"`
		Story  string `json:"story,omitempty"`
	}{s.seed, failed, ""}
	if s.story {
		out.Story = story
	}
	err := f.print(cmd.OutOrStdout(), out, func(w io.Writer) error {
		if failed == "" {
			_, err := fmt.Fprintf(w, "%sseed %d: every guarantee held\n", out.Story, s.seed)
			return err
		}
		_, err := io.WriteString(w, out.Story)
		return err
	})
	if failed != "" {
		err = errors.Join(err, fmt.Errorf("seed %d breaks a guarantee: %s", s.seed, failed))
	}
	return err
}

// bite prints how soon each broken rule is noticed.
func (s *simulateFlags) bite(cmd *cobra.Command, f *common) error {
	teeth, err := simulation.Teeth(cmd.Context(), s.seeds, s.workers)
	if perr := f.print(cmd.OutOrStdout(), teeth, func(w io.Writer) error { return simulation.PrintTeeth(w, teeth) }); perr != nil || err != nil {
		return errors.Join(err, perr)
	}
	for _, b := range teeth {
		if b.Seeds == 0 {
			return fmt.Errorf("%q goes unnoticed in %d seeds", b.Breach, s.seeds)
		}
	}
	return nil
}

// progress is a bar on a terminal, and nothing elsewhere.
type progress struct {
	w     io.Writer // nil: no terminal
	total int
	began time.Time
	next  time.Time
}

func newProgress(w io.Writer, total int) *progress {
	p := &progress{total: total, began: time.Now()}
	if file, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS); err == nil {
			p.w = w
		}
	}
	return p
}

func (p *progress) set(done int) {
	now := time.Now()
	if p.w == nil || now.Before(p.next) && done < p.total {
		return
	}
	p.next = now.Add(200 * time.Millisecond)
	const width = 40
	n := done * width / p.total
	left := time.Duration(float64(now.Sub(p.began)) / float64(done) * float64(p.total-done))
	_, _ = fmt.Fprintf(p.w, "\r[%s%s] %d of %d seeds, %v left  ", strings.Repeat("=", n), strings.Repeat(" ", width-n), done, p.total, left.Round(time.Second))
}

// end clears the bar's line.
func (p *progress) end() {
	if p.w != nil {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
	}
}
