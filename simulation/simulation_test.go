package simulation

import (
	"flag"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

var (
	oneSeed = flag.Uint64("seed", 0, "play this seed alone, and tell its story")
	seeds   = flag.Int("seeds", 1000, "how many seeds TestSimulation plays")
	first   = flag.Uint64("first", 1, "the first of them")
)

// TestSimulation plays many stories of faults and checks the guarantees after
// every event of each.
func TestSimulation(t *testing.T) {
	if *oneSeed != 0 {
		story, failed := Story(*oneSeed)
		t.Logf("seed %d:\n%s", *oneSeed, story)
		if failed != "" {
			t.Fatalf("seed %d: %s", *oneSeed, failed)
		}
		return
	}
	r, err := Run(t.Context(), Options{Seeds: *seeds, First: *first})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := r.Print(&text); err != nil {
		t.Fatal(err)
	}
	t.Logf("visited: %v\n%s", r.Visits, &text)
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	for _, what := range mustVisit {
		if r.Visits[what] == 0 && *seeds >= 1000 {
			t.Errorf("no seed led to %q: the faults are too tame", what)
		}
	}
}

// mustVisit are the states that a normal run has to have seen.
var mustVisit = []string{"alone", "syncing", "entering", "protected", "detaching", "leaving", "yielded", "ended",
	"log start", "log adopt", "log in-sync", "log out-of-sync", "log takeover", "log activated", "log return",
	"log surrender", "log reclaim", "log stop", "log pause", "log unprotect", "log protect", "log force", "log fence", "log unfence", "host stopped", "host released", "host recovering", "host booting", "host backup"}

// TestReplay: a seed is the same story each time it is played.
func TestReplay(t *testing.T) {
	for seed := uint64(1); seed <= 10; seed++ {
		a, b := play(seed, honest, false), play(seed, honest, false)
		if a.events != b.events || a.fakeTime != b.fakeTime || a.frames != b.frames || a.cells != b.cells {
			t.Errorf("seed %d: %d events in %v, then %d in %v", seed, a.events, a.fakeTime, b.events, b.fakeTime)
		}
	}
}

// TestWhatIsAimedAtIsStruck: the steps that a world seldom comes to by itself are
// come to, and the fault strikes there, when a seed aims at it; the second does if
// the first does not.
func TestWhatIsAimedAtIsStruck(t *testing.T) {
	for n, c := range everyCell {
		switch p := stepTable[c.step].path; {
		case p == forcing, p == fencing, p == spoiling, c.step.handover():
		default:
			continue
		}
		struck := false
		for seed := uint64(2 * n); !struck && seed < uint64(4*len(everyCell)); seed += uint64(2 * len(everyCell)) {
			r := play(seed, honest, false)
			if r.failed != "" {
				t.Fatalf("seed %d: %s", seed, r.failed)
			}
			struck = r.cells.struck[c.step][c.fault] > 0
		}
		if !struck {
			t.Errorf("%v × %s: no seed that aims at it came there", c.step, faultTable[c.fault].short)
		}
	}
}

// TestEveryCellIsNamed: the tables have a line for each step and each fault.
func TestEveryCellIsNamed(t *testing.T) {
	names := map[string]bool{}
	for s := range steps {
		if s.String() == "" || names[s.String()] {
			t.Errorf("step %d is called %q", s, s)
		}
		names[s.String()] = true
	}
	for f := range faultKinds {
		if f.String() == "" || faultTable[f].short == "" {
			t.Errorf("fault %d has no name", f)
		}
	}
}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			os.Stderr.WriteString(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}
