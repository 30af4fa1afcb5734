package main

// What protection costs the guest and its clients: unprotected and protected in
// turn, each pair one after the other, so that a machine that changes its pace
// meanwhile cancels out.

import (
	"context"
	"fmt"
	"time"

	"understudy/guest"
	"understudy/guest/client"
)

// protection is a way to be protected.
type protection struct {
	Name           string
	floor, ceiling time.Duration
}

var (
	every25  = protection{"25 ms", 25 * time.Millisecond, 25 * time.Millisecond}
	every100 = protection{"100 ms", 100 * time.Millisecond, 100 * time.Millisecond}
	adaptive = protection{"adaptive 5-25 ms", 5 * time.Millisecond, 25 * time.Millisecond}
)

// Compared is one quantity without and with protection: medians, and the median
// of the pairs' own ratios.
type Compared struct {
	Epochs      string  `json:"epochs"`
	Load        string  `json:"load"`
	Unit        string  `json:"unit"`
	Unprotected float64 `json:"unprotected"`
	Protected   float64 `json:"protected"`
	Ratio       float64 `json:"protected_to_unprotected_ratio"`
	// Unprotected99 and Protected99 are the 99th percentiles, of latencies only.
	Unprotected99 float64 `json:"unprotected_p99,omitempty"`
	Protected99   float64 `json:"protected_p99,omitempty"`
	Pairs         int     `json:"pairs"`
}

// load is what the guest's memory has to bear meanwhile.
type load struct {
	name  string
	pages int // per 100 ms
}

const loadInterval = 100 * time.Millisecond

// compare measures unprotected and protected in turn.
func (r *pair) compare(ctx context.Context, p protection, l load, repeat int, measure func() (float64, error)) (plain, guarded []float64, err error) {
	if err := r.load(ctx, l.pages, loadInterval, 0); err != nil {
		return nil, nil, err
	}
	for range repeat {
		value, err := measure()
		if err != nil {
			return nil, nil, err
		}
		plain = append(plain, value)
		if err := r.protect(ctx, p.floor, p.ceiling); err != nil {
			return nil, nil, err
		}
		if err := r.epochs(ctx, settleEpochs); err != nil {
			return nil, nil, err
		}
		if value, err = measure(); err != nil {
			return nil, nil, err
		}
		guarded = append(guarded, value)
		if err := r.unprotect(ctx); err != nil {
			return nil, nil, err
		}
	}
	return plain, guarded, r.unload(ctx, l.pages)
}

func compared(p protection, l load, unit string, plain, guarded []float64) Compared {
	return Compared{Epochs: p.Name, Load: l.name, Unit: unit, Pairs: min(len(plain), len(guarded)),
		Ratio: perPair(guarded, plain), Unprotected: median(plain), Protected: median(guarded)}
}

// speedTime is how long the guest computes for one figure.
const speedTime = 1500 * time.Millisecond

// measureSpeed has a loop of the lowest priority compute in the guest: what is
// left to it.
func (r *pair) measureSpeed(ctx context.Context, o *options, say func(string, ...any)) ([]Compared, error) {
	if err := r.control.StartSpeed(ctx); err != nil {
		return nil, err
	}
	var all []Compared
	for _, l := range []load{{"memory idle", 0}, {"5000 pages per 100 ms", 5000}} {
		for _, p := range []protection{every25, every100} {
			say("speed: %s, epochs of %s", l.name, p.Name)
			plain, guarded, err := r.compare(ctx, p, l, o.repeat, func() (float64, error) { return r.speed(ctx) })
			if err != nil {
				return all, fmt.Errorf("speed: %w", err)
			}
			all = append(all, compared(p, l, "million iterations per second", plain, guarded))
		}
	}
	return all, r.control.StopSpeed(ctx)
}

// speed is by this host's clock, since the guest's stands still in a pause. The
// guest counts when the request arrives; the way back, on which the answer is
// held, is not in the figure.
func (r *pair) speed(ctx context.Context) (float64, error) {
	begin := time.Now()
	first, _, err := r.control.Speed(ctx)
	if err != nil {
		return 0, err
	}
	wait := time.NewTimer(time.Until(begin.Add(speedTime)))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	end := time.Now()
	last, _, err := r.control.Speed(ctx)
	if err != nil {
		return 0, err
	}
	return float64(last-first) / micros(end.Sub(begin)), nil
}

// echoes is how many requests one figure is made of.
const echoes = 40

// measureLatency measures a request and its answer, one connection, one at a
// time: what is added is the wait for the end of the epoch and for its commit.
func (r *pair) measureLatency(ctx context.Context, o *options, say func(string, ...any)) ([]Compared, error) {
	conn, err := r.connect(ctx, guest.EchoPort)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	var all []Compared
	idle := load{"memory idle", 0}
	for _, p := range []protection{adaptive, every25, every100} {
		say("latency: epochs of %s", p.Name)
		var kept [2][]float64 // unprotected, protected, in turn
		turn := 0
		plain, guarded, err := r.compare(ctx, p, idle, o.repeat, func() (float64, error) {
			took := make([]float64, 0, echoes)
			for range echoes {
				d, err := client.Echo(ctx, conn, []byte("a request of some forty bytes or thereabouts\n"))
				if err != nil {
					return 0, err
				}
				took = append(took, micros(d))
			}
			kept[turn%2] = append(kept[turn%2], took...)
			turn++
			return median(took), nil
		})
		if err != nil {
			return all, fmt.Errorf("latency: %w", err)
		}
		c := compared(p, idle, "µs", plain, guarded)
		c.Unprotected99, c.Protected99 = quantile(kept[0], 0.99), quantile(kept[1], 0.99)
		all = append(all, c)
	}
	return all, nil
}

// streamBytes is how much one throughput figure moves.
const streamBytes = 8 << 20

// measureThroughput measures one TCP connection in each direction.
func (r *pair) measureThroughput(ctx context.Context, o *options, say func(string, ...any)) ([]Compared, error) {
	conn, err := r.connect(ctx, guest.ThroughputPort)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	var all []Compared
	for _, way := range []struct {
		name string
		move func() (time.Duration, error)
	}{
		{"guest sends", func() (time.Duration, error) { return client.Source(ctx, conn, streamBytes) }},
		{"guest receives", func() (time.Duration, error) { return client.Sink(ctx, conn, streamBytes) }},
	} {
		for _, p := range []protection{adaptive, every25, every100} {
			say("throughput: %s, epochs of %s", way.name, p.Name)
			l := load{way.name, 0}
			plain, guarded, err := r.compare(ctx, p, l, o.repeat, func() (float64, error) {
				took, err := way.move()
				if err != nil {
					return 0, err
				}
				return streamBytes / micros(took), nil
			})
			if err != nil {
				return all, fmt.Errorf("throughput: %w", err)
			}
			all = append(all, compared(p, l, "MB/s", plain, guarded))
		}
	}
	return all, nil
}
