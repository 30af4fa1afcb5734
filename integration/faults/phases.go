package main

// This file tells where a trial's time goes.

import (
	"slices"
	"sync"
	"time"
)

// phase is a part of a trial. Those that ran beside each other are part of the
// one that waited for all of them, and named after it.
type phase struct {
	Name string        `json:"name"`
	Took time.Duration `json:"took_ns"`
}

// stopwatch takes the times of one trial.
type stopwatch struct {
	mu     sync.Mutex
	last   time.Time
	phases []phase
}

func newStopwatch() *stopwatch { return &stopwatch{last: time.Now()} }

// lap ends a phase: it began where the last one ended.
func (w *stopwatch) lap(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.phases = append(w.phases, phase{name, now.Sub(w.last)})
	w.last = now
}

// beside ends a part of the phase that is going on.
func (w *stopwatch) beside(name string, began time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phases = append(w.phases, phase{name, time.Since(began)})
}

func (w *stopwatch) all() []phase {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.phases)
}
