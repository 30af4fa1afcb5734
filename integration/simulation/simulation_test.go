package simulation

import (
	"flag"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	oneSeed = flag.Uint64("seed", 0, "play this seed alone, and tell its story")
	seeds   = flag.Int("seeds", normalSeeds, "how many seeds TestSimulation plays")
	first   = flag.Uint64("first", 1, "the first of them")
)

// TestSimulation plays many stories of faults and checks the guarantees after
// every event of each.
func TestSimulation(t *testing.T) {
	if *oneSeed != 0 {
		r := play(*oneSeed, honest, true)
		t.Logf("seed %d:\n%s", *oneSeed, r.story)
		if r.failed != "" {
			t.Fatalf("seed %d: %s", *oneSeed, r.failed)
		}
		return
	}
	began := time.Now()
	var (
		next    atomic.Uint64
		mu      sync.Mutex
		total   result
		failed  []uint64
		workers sync.WaitGroup
	)
	total.visits = map[string]int{}
	next.Store(*first)
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for {
				seed := next.Add(1) - 1
				if seed >= *first+uint64(*seeds) {
					return
				}
				r := play(seed, honest, false)
				mu.Lock()
				total.events += r.events
				total.frames += r.frames
				total.takeovers += r.takeovers
				total.commits += r.commits
				total.fakeTime += r.fakeTime
				for k, n := range r.visits {
					total.visits[k] += n
				}
				if r.failed != "" {
					failed = append(failed, seed)
					t.Errorf("seed %d: %s", seed, r.failed)
				}
				stop := len(failed) >= 20
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d seeds from %d: %d events, %v of fake time, %d checkpoints, %d frames, %d takeovers, in %v",
		*seeds, *first, total.events, total.fakeTime.Round(time.Second), total.commits, total.frames, total.takeovers, time.Since(began).Round(time.Millisecond))
	t.Logf("visited: %v", total.visits)
	if len(failed) > 0 {
		t.Fatalf("to see the story: go test ./integration/simulation -run TestSimulation -seed %d", failed[0])
	}
	for _, what := range mustVisit {
		if total.visits[what] == 0 && *seeds >= normalSeeds {
			t.Errorf("no seed led to %q: the faults are too tame", what)
		}
	}
}

// mustVisit are the states that a normal run has to have seen.
var mustVisit = []string{"alone", "syncing", "entering", "protected", "detaching", "leaving", "yielded", "ended",
	"log start", "log adopt", "log in-sync", "log out-of-sync", "log takeover", "log activated", "log return",
	"log surrender", "log reclaim", "log stop", "host stopped", "host recovering", "host booting", "host backup"}

// TestReplay: a seed is the same story each time it is played.
func TestReplay(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		a, b := play(seed, honest, false), play(seed, honest, false)
		if a.events != b.events || a.fakeTime != b.fakeTime || a.frames != b.frames {
			t.Errorf("seed %d: %d events in %v, then %d in %v", seed, a.events, a.fakeTime, b.events, b.fakeTime)
		}
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(m.Run())
}
