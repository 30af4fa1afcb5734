package main

// This file plays trials in several worlds side by side. Each world belongs to
// one worker, which takes the next trial from the queue as soon as its last one
// is over; what a trial came to is in the report, and in its file, before the
// next one begins.
//
//	queue ── job ──> worker ── play ──> stage (a world)
//	  ^                 │
//	  └── trial: report <┘
//
// A trial's dice are its number's, so that it is the same whoever plays it.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"understudy/demo/world"
)

// job is a trial that is to be played.
type job struct {
	number int // in the plan, from 1
	cell   cell
}

// queue deals trials out and gathers what they came to.
type queue struct {
	ctx   context.Context
	setup setup
	out   string // where the report is written, "" for nowhere
	say   io.Writer

	mu      sync.Mutex
	waiting []job
	total   int
	played  int
	report  *Report
	errs    []error // of the report's file
}

// resume takes over what an earlier run has played, and takes it off the queue.
func (q *queue) resume(path string, other bool) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		_, _ = fmt.Fprintf(q.say, "there is no report %s yet: everything is played\n", path)
		return nil
	}
	var earlier Report
	if err == nil {
		err = json.Unmarshal(b, &earlier)
	}
	if err == nil {
		err = q.report.goOnFrom(&earlier, other)
	}
	if err != nil {
		return fmt.Errorf("go on from the report %s: %w", path, err)
	}
	total := len(q.waiting)
	q.waiting = missingOf(q.waiting, q.report)
	_, _ = fmt.Fprintf(q.say, "%d of %d trials were played before\n", total-len(q.waiting), total)
	return nil
}

// missingOf leaves what was not played well yet: of trials at random those of
// that number, else one for each good trial of the cell.
func missingOf(order []job, r *Report) (left []job) {
	numbers, good := map[int]bool{}, map[string]int{}
	for i := range r.Trials {
		if t := &r.Trials[i]; t.ok() {
			numbers[t.Number] = true
			good[t.name()]++
		}
	}
	for _, j := range order {
		name := j.cell.String()
		switch {
		case r.Mixed > 0:
			if numbers[j.number] {
				continue
			}
		case good[name] > 0:
			good[name]--
			continue
		}
		left = append(left, j)
	}
	return left
}

// play plays what is in the queue. It ends when everything is played, with the
// context, or when no worker has a world.
func (q *queue) play(workers int) error {
	began, before := time.Now(), q.report.Took
	for i := range maxWorkers { // a former run may have had more worlds than this one
		prefix := q.setup.world(i)
		if err := errors.Join(sweepMounts(prefix), world.Sweep(prefix)); err != nil {
			return fmt.Errorf("remove what a former run left: %w", err)
		}
	}
	q.total = len(q.waiting)
	errs := make([]error, workers)
	var done sync.WaitGroup
	for i := range workers {
		done.Go(func() {
			w := worker{queue: q, setup: q.setup}
			w.setup.prefix = q.setup.world(i)
			if w.setup.logs != "" {
				w.setup.logs = filepath.Join(w.setup.logs, w.setup.prefix)
			}
			if err := w.run(); err != nil {
				errs[i] = fmt.Errorf("world %s: %w", w.setup.prefix, err)
			}
		})
	}
	done.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.report.Took = before + time.Since(began)
	q.save()
	err := errors.Join(errors.Join(errs...), errors.Join(q.errs...))
	if n := len(q.waiting); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d trials were not played: -resume goes on with them", n))
	}
	return err
}

// world is the prefix of what a worker's worlds are called: the labs' prefixes are
// letters.
func (o setup) world(worker int) string { return o.prefix + string(rune('a'+worker)) }

// next takes the next trial off the queue.
func (q *queue) next() (job, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 || q.ctx.Err() != nil {
		return job{}, false
	}
	j := q.waiting[0]
	q.waiting = q.waiting[1:]
	return j, true
}

// putBack is for a trial that could not be played to its end.
func (q *queue) putBack(j job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append([]job{j}, q.waiting...)
}

// done notes what a trial came to.
func (q *queue) done(t trial) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.played++
	t.Build = q.report.Build
	q.report.Trials = append(q.report.Trials, t)
	_, _ = fmt.Fprintf(q.say, "%d/%d %s: %s, silent for %s, until %s after the fault, %v in all %s\n", q.played, q.total, t.name(), t.Outcome,
		ms(t.Outage), ms(t.FirstLine), t.Took.Round(100*time.Millisecond), t.Why)
	q.save()
}

// save writes the report, so that a run that is cut off has lost nothing. The
// queue is locked.
func (q *queue) save() {
	if q.out == "" {
		return
	}
	if err := q.report.Write(q.out); err != nil && len(q.errs) == 0 {
		q.errs = append(q.errs, err)
		_, _ = fmt.Fprintln(q.say, err)
	}
}

// worker plays trials, one after the other, in one world for as long as that
// works, and then in another.
type worker struct {
	queue *queue
	setup setup
	stage *stage
}

// Worlds that do not come up, one after the other, before a worker gives up;
// and its rest between two.
const (
	maxBadWorlds = 3
	badWorldRest = 5 * time.Second
)

func (w *worker) run() error {
	bad := 0
	for {
		j, ok := w.queue.next()
		if !ok {
			return w.end()
		}
		if w.stage == nil {
			s, err := newStage(w.queue.ctx, w.setup)
			if err != nil {
				w.queue.putBack(j)
				err = fmt.Errorf("a world for the trials: %w", err)
				if bad++; bad == maxBadWorlds || w.queue.ctx.Err() != nil {
					return err
				}
				_, _ = fmt.Fprintf(w.queue.say, "world %s: %v\n", w.setup.prefix, err)
				if err := world.Sleep(w.queue.ctx, badWorldRest); err != nil {
					return err
				}
				continue
			}
			w.stage, bad = s, 0
			w.queue.opened(s)
		}
		t, err := w.stage.play(w.queue.ctx, j.cell, rand.New(rand.NewPCG(w.queue.report.Seed, uint64(j.number))))
		if w.queue.ctx.Err() != nil {
			w.queue.putBack(j) // nobody can tell what it would have come to
			return w.end()
		}
		t.Number = j.number
		w.queue.done(t)
		if err != nil {
			if err := w.end(); err != nil {
				return err
			}
		}
	}
}

// opened notes that one more world has come up.
func (q *queue) opened(s *stage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.report.Worlds++
	q.report.Times = s.times()
}

// end takes the world down.
func (w *worker) end() error {
	if w.stage == nil {
		return nil
	}
	err := w.stage.close()
	w.stage = nil
	return err
}
