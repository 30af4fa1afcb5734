package simulation

// This file plays many seeds and adds up what they came to.

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// FullRun is how many seeds a run needs for an empty cell to count as a failure:
// every other seed aims at a cell, so each is aimed at twice or more, and what is
// aimed at is nearly always struck.
const FullRun = 10_000

// Options say what to play.
type Options struct {
	Seeds   int
	First   uint64 // the first of them
	Workers int    // 0: one for each processor
	// Progress, if not nil, is told now and then how many seeds were played, by
	// one goroutine at a time.
	Progress func(played int)
}

// Failure is a seed whose story breaks a guarantee.
type Failure struct {
	Seed uint64 `json:"seed"`
	What string `json:"what"`
}

// maxFailures ends a run.
const maxFailures = 20

// Report is what a run came to.
type Report struct {
	First     uint64        `json:"first"`
	Seeds     int           `json:"seeds"` // that were played
	Took      time.Duration `json:"took_ns"`
	Events    int           `json:"events"`
	FakeTime  time.Duration `json:"fake_time_ns"`
	Epochs    int           `json:"epochs"` // committed
	Frames    int           `json:"frames"` // that left
	Takeovers int           `json:"takeovers"`
	Failbacks int           `json:"failbacks"` // takeovers by a host that had lost the guest before

	Failures []Failure      `json:"failures"`
	Visits   map[string]int `json:"-"` // of modes, roles and commands of the log
	Cells    Cells          `json:"-"`

	CellsPossible int      `json:"cells_possible"`
	CellsVisited  int      `json:"cells_visited"`
	CellsEmpty    []string `json:"cells_empty"`
	Steps         []Row    `json:"steps"`
}

// Run plays seeds until all are played, ctx ends, or too many have failed.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Seeds < 1 {
		return nil, fmt.Errorf("simulate %d seeds: want at least one", o.Seeds)
	}
	if o.Workers < 1 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	began := time.Now()
	r := &Report{First: o.First, Visits: map[string]int{}}
	var (
		next    atomic.Int64
		mu      sync.Mutex
		workers sync.WaitGroup
	)
	for range min(o.Workers, o.Seeds) {
		workers.Go(func() {
			for ctx.Err() == nil {
				n := next.Add(1) - 1
				if n >= int64(o.Seeds) {
					return
				}
				seed := o.First + uint64(n)
				res := play(seed, honest, false)
				mu.Lock()
				r.add(seed, &res)
				if o.Progress != nil {
					o.Progress(r.Seeds)
				}
				enough := len(r.Failures) >= maxFailures
				mu.Unlock()
				if enough {
					return
				}
			}
		})
	}
	workers.Wait()
	r.Took = time.Since(began)
	slices.SortFunc(r.Failures, func(a, b Failure) int {
		if a.Seed < b.Seed {
			return -1
		}
		return 1
	})
	r.CellsPossible, r.CellsVisited = r.Cells.Count()
	r.CellsEmpty, r.Steps = r.Cells.Empty(0), r.Cells.Rows()
	return r, ctx.Err()
}

func (r *Report) add(seed uint64, res *result) {
	r.Seeds++
	r.Events += res.events
	r.FakeTime += res.fakeTime
	r.Epochs += res.commits
	r.Frames += res.frames
	r.Takeovers += res.takeovers
	r.Failbacks += res.failbacks
	for k, n := range res.visits {
		r.Visits[k] += n
	}
	r.Cells.add(&res.cells)
	if res.failed != "" {
		r.Failures = append(r.Failures, Failure{Seed: seed, What: res.failed})
	}
}

// Err says what is wrong with a run: seeds that failed, or, after a full one,
// cells that nobody came to.
func (r *Report) Err() error {
	switch {
	case len(r.Failures) > 0:
		f := r.Failures[0]
		return fmt.Errorf("%d of %d seeds break a guarantee; the first is %d: %s (to see its story: understudy simulate --seed %d --story)",
			len(r.Failures), r.Seeds, f.Seed, f.What, f.Seed)
	case r.Seeds >= FullRun && len(r.CellsEmpty) > 0:
		return fmt.Errorf("%d of %d cells stay empty after %d seeds: %v", len(r.CellsEmpty), r.CellsPossible, r.Seeds, r.CellsEmpty)
	}
	return nil
}

// Print writes a report for people.
func (r *Report) Print(w io.Writer) error {
	if err := r.Cells.Print(w); err != nil {
		return err
	}
	p := printer{w: w}
	p.f("\n%d seeds from %d: %d events, %v of fake time, %d epochs, %d frames, %d takeovers, %d of them failbacks; %d of %d cells visited; in %v\n",
		r.Seeds, r.First, r.Events, r.FakeTime.Round(time.Second), r.Epochs, r.Frames, r.Takeovers, r.Failbacks,
		r.CellsVisited, r.CellsPossible, r.Took.Round(time.Millisecond))
	for _, f := range r.Failures {
		p.f("seed %d: %s\n", f.Seed, f.What)
	}
	return p.err
}

// Story plays one seed and tells it. failed is "" if every guarantee held.
func Story(seed uint64) (story, failed string) {
	r := play(seed, honest, true)
	return r.story, r.failed
}
