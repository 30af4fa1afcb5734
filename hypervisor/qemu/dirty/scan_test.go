package dirty

import (
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"understudy/epoch"
)

func attach(t testing.TB, cfg Config) *Tracker {
	t.Helper()
	tr, err := Attach(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

// collect returns the frames one Collect reports, in order.
func collect(t testing.TB, tr *Tracker, image uint64) []uint64 {
	t.Helper()
	set := epoch.NewPageSet(image)
	must(t, tr.Collect(set))
	return frames(set)
}

func frames(set *epoch.PageSet) []uint64 {
	all := []uint64{}
	for first, count := range set.Runs {
		for i := range count {
			all = append(all, uint64(first)+i)
		}
	}
	return all
}

func want(t testing.TB, got []uint64, frames ...uint64) {
	t.Helper()
	if !slices.Equal(got, frames) {
		t.Fatalf("collected %v, want %v", got, frames)
	}
}

func TestCollectReportsEveryPageThenOnlyTheWrittenOnes(t *testing.T) {
	tg := startTarget(t, 256, 0)
	tg.do(order{Do: "write", Pages: []uint64{1, 2}})
	tr := attach(t, tg.config())

	if got := collect(t, tr, tg.image()); uint64(len(got)) != tg.image() {
		t.Fatalf("the first Collect reported %d of %d pages", len(got), tg.image())
	}
	want(t, collect(t, tr, tg.image()))

	tg.do(order{Do: "write", Pages: []uint64{1, 7, 255}})
	want(t, collect(t, tr, tg.image()), 1, 7, 255)
	want(t, collect(t, tr, tg.image()))

	tg.do(order{Do: "write", Memory: 1, Pages: []uint64{0, anonPages - 1}}) // private memory
	tg.do(order{Do: "sysread", Pages: []uint64{3}})                         // written by the kernel
	want(t, collect(t, tr, tg.image()), 3, 256, 256+anonPages-1)
}

// A set keeps what is in it: Collect adds.
func TestCollectAdds(t *testing.T) {
	tg := startTarget(t, 16, 0)
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	set := epoch.NewPageSet(tg.image())
	set.Add(9)
	tg.do(order{Do: "write", Pages: []uint64{4}})
	must(t, tr.Collect(set))
	want(t, frames(set), 4, 9)
}

// Whatever four threads and system calls write, to either memory, is what the
// next Collect reports: no page more, none less. The memory is untouched at
// first and has more granules than one Collect settles.
func TestCollectEqualsOracle(t *testing.T) {
	tg := startTarget(t, 3*settleLimit*granuleSize/epoch.PageSize, 0)
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	rounds := 0
	page := func(n uint64) *rapid.Generator[[]uint64] { return rapid.SliceOfN(rapid.Uint64Range(0, n-1), 0, 200) }
	rapid.Check(t, func(rt *rapid.T) {
		for range rapid.IntRange(1, 5).Draw(rt, "epochs") {
			oracle := epoch.NewPageSet(tg.image())
			add := func(pages []uint64, offset uint64) []uint64 {
				for _, p := range pages {
					oracle.Add(epoch.GFN(p + offset))
				}
				return pages
			}
			tg.do(order{Do: "write", Threads: 4, Pages: add(page(tg.pages).Draw(rt, "file"), 0)})
			tg.do(order{Do: "write", Threads: 2, Memory: 1, Pages: add(page(anonPages).Draw(rt, "anon"), tg.pages)})
			tg.do(order{Do: "sysread", Pages: add(page(tg.pages).Draw(rt, "sysread"), 0)})
			if got, exp := collect(t, tr, tg.image()), frames(oracle); !slices.Equal(got, exp) {
				rt.Fatalf("collected %d pages %v, want %d pages %v", len(got), got, len(exp), exp)
			}
			rounds++
		}
	})
	if rounds < 200 {
		t.Fatalf("only %d rounds", rounds)
	}
	for _, r := range tr.regions {
		if r.waiting != 0 || !slices.Equal(r.touched, r.settled) || !slices.Contains(r.settled, true) {
			t.Fatalf("%v: %d granules still wait to be settled", r.Region, r.waiting)
		}
	}
}

// More runs than the result has room for, so that a walk takes several calls.
func TestCollectGoesOnWhenTheResultIsFull(t *testing.T) {
	const pages = 4*vectorLength + 10
	tg := startTarget(t, pages, 0)
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	tg.do(order{Do: "write", Stripe: 2, Count: pages / 2, Threads: 4})
	got := collect(t, tr, tg.image())
	if len(got) != pages/2 {
		t.Fatalf("collected %d pages, want %d", len(got), pages/2)
	}
	for i, f := range got {
		if f != uint64(2*i) {
			t.Fatalf("page %d of the answer is %d, want %d", i, f, 2*i)
		}
	}
	want(t, collect(t, tr, tg.image()))
}

// In settled memory even a page that is only read, for the first time, is not
// reported.
func TestReadingIsNotWriting(t *testing.T) {
	tg := startTarget(t, 64, 0)
	tg.do(order{Do: "write", Pages: []uint64{0}})
	tg.do(order{Do: "write", Pages: []uint64{0}, Memory: 1})
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	tg.do(order{Do: "look", Pages: []uint64{0, 1, 63}})
	tg.do(order{Do: "look", Pages: []uint64{0, 1, 63}, Memory: 1})
	want(t, collect(t, tr, tg.image()))
	tg.do(order{Do: "write", Pages: []uint64{1}})
	tg.do(order{Do: "write", Pages: []uint64{1, 2}, Memory: 1})
	want(t, collect(t, tr, tg.image()), 1, 65, 66)
}

// Settling marks what is empty and nothing else: pages written before it and
// not yet collected stay written.
func TestSettlingForgetsNothing(t *testing.T) {
	tg := startTarget(t, 4096, 0)
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	tg.do(order{Do: "write", Pages: []uint64{1, 600, 4095}})
	must(t, tr.check()) // finds the granules
	done, err := tr.settle(&tr.regions[0], 100)
	must(t, err)
	if done < 3 {
		t.Fatalf("%d granules settled, want those of three pages", done)
	}
	want(t, collect(t, tr, tg.image()), 1, 600, 4095)
}

// While four threads write without end, no write between two scans is lost:
// pages keep turning up, and after the last one stands still, none.
func TestCollectWhileTheTargetWrites(t *testing.T) {
	tg := startTarget(t, 64, 0)
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	tg.do(order{Do: "loop", Pages: []uint64{3, 9, 27}, Threads: 4})
	seen := epoch.NewPageSet(tg.image())
	// On a busy machine the threads may get a processor only after many rounds.
	deadline := time.Now().Add(20 * time.Second)
	for round := 0; round < 300 || seen.Count() < 3 && time.Now().Before(deadline); round++ {
		must(t, tr.Collect(seen))
	}
	tg.do(order{Do: "halt"})
	must(t, tr.Collect(seen))
	want(t, frames(seen), 3, 9, 27)
	want(t, collect(t, tr, tg.image()))
}

func TestResumeKeepsTheExactBits(t *testing.T) {
	tg := startTarget(t, 64, 0)
	cfg := tg.config()
	tr := attach(t, cfg)
	collect(t, tr, tg.image())
	must(t, tr.Close())
	tg.do(order{Do: "write", Pages: []uint64{5, 6}}) // nobody looks

	cfg.Resume = true
	cfg.Helper = nil // must not be needed
	tr = attach(t, cfg)
	if !tr.Resumed() {
		t.Fatal("tracking was not resumed")
	}
	want(t, collect(t, tr, tg.image()), 5, 6)
	must(t, tr.Close())

	// Without Resume the same anchor serves, and everything is reported once.
	cfg.Resume = false
	tr = attach(t, cfg)
	if got := collect(t, tr, tg.image()); tr.Resumed() || uint64(len(got)) != tg.image() {
		t.Fatalf("resumed %v, %d of %d pages", tr.Resumed(), len(got), tg.image())
	}
	anchors, err := findAnchors(cfg.PID)
	must(t, err)
	if len(anchors) != 1 {
		t.Fatalf("%d userfaultfds in the target, want the one", len(anchors))
	}
}

// If the target's copy goes too, tracking ends silently, and a Tracker that
// comes later must not take silence for "nothing written".
func TestResumeWithoutAnchorReportsEverything(t *testing.T) {
	tg := startTarget(t, 64, 0)
	cfg := tg.config()
	tr := attach(t, cfg)
	collect(t, tr, tg.image())
	must(t, tr.Close())
	tg.do(order{Do: "unanchor"})

	cfg.Resume = true
	tr = attach(t, cfg)
	if got := collect(t, tr, tg.image()); tr.Resumed() || uint64(len(got)) != tg.image() {
		t.Fatalf("resumed %v, %d of %d pages", tr.Resumed(), len(got), tg.image())
	}
	tg.do(order{Do: "write", Pages: []uint64{1}})
	want(t, collect(t, tr, tg.image()), 1)
}

func TestLostTrackingIsAnErrorNotSilence(t *testing.T) {
	tg := startTarget(t, 64, 0)
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	tg.do(order{Do: "unanchor"})
	want(t, collect(t, tr, tg.image())) // our own copy still holds

	must(t, unix.Close(tr.uffd))
	tr.uffd = -1
	if err := tr.Collect(epoch.NewPageSet(tg.image())); !errors.Is(err, ErrTrackingLost) {
		t.Fatalf("got %v, want ErrTrackingLost", err)
	}
}

func TestDeadTargetIsAnErrorNotSilence(t *testing.T) {
	tg := startTarget(t, 64, 0)
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	tg.end()
	if err := tr.Collect(epoch.NewPageSet(tg.image())); !errors.Is(err, ErrTargetGone) {
		t.Fatalf("got %v, want ErrTargetGone", err)
	}
}

func TestAfterAFailureEverythingIsReported(t *testing.T) {
	tg := startTarget(t, 64, 0)
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	good := tr.regions
	tr.regions = append(slices.Clone(good), tracked{Region: Region{Addr: 1 << 62, Length: 4096}, base: 1 << 62, touched: make([]bool, 1), settled: make([]bool, 1)})
	if err := tr.Collect(epoch.NewPageSet(tg.image())); err == nil {
		t.Fatal("a scan beyond the address space succeeded")
	}
	tr.regions = good
	if got := collect(t, tr, tg.image()); uint64(len(got)) != tg.image() {
		t.Fatalf("%d of %d pages", len(got), tg.image())
	}
}

// A target that is not root may only have the restricted kind of descriptor;
// what the kernel writes for it is seen all the same.
func TestUnprivilegedTarget(t *testing.T) {
	tg := startTarget(t, 64, 65534)
	tr := attach(t, tg.config())
	collect(t, tr, tg.image())
	tg.do(order{Do: "write", Pages: []uint64{1}, Threads: 2})
	tg.do(order{Do: "sysread", Pages: []uint64{2}})
	want(t, collect(t, tr, tg.image()), 1, 2)
}

func TestCollectRefusesASetTooSmall(t *testing.T) {
	tg := startTarget(t, 64, 0)
	tr := attach(t, tg.config())
	if err := tr.Collect(epoch.NewPageSet(tg.image() - 1)); err == nil {
		t.Fatal("no error")
	}
}

func TestAttachRefuses(t *testing.T) {
	tg := startTarget(t, 64, 0)
	good := tg.config()
	first := good.Regions[0]
	cases := map[string]func(*Config){
		"no regions":     func(c *Config) { c.Regions = nil },
		"empty region":   func(c *Config) { c.Regions = []Region{{Addr: first.Addr}} },
		"part of a page": func(c *Config) { c.Regions = []Region{{Addr: first.Addr, Length: 100}} },
		"past the end":   func(c *Config) { c.Regions = []Region{{Addr: ^uint64(0) - 4095, Length: 8192}} },
		"overlap":        func(c *Config) { c.Regions = []Region{first, first} },
		"unmapped":       func(c *Config) { c.Regions = []Region{{Addr: 4096, Length: 4096}} },
		"huge frame":     func(c *Config) { c.Regions = []Region{{Addr: first.Addr, Length: 4096, FirstPage: 1 << 60}} },
		"no such helper": func(c *Config) { c.Helper = []string{"/nonexistent"} },
		"no helper":      func(c *Config) { c.Helper = nil },
		"foreign helper": func(c *Config) { c.Helper = []string{"/bin/echo", "not a number"} },
		"failing helper": func(c *Config) { c.Helper = []string{"/bin/false"} },
		"no process":     func(c *Config) { c.PID = 1 << 29 },
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := good
			spoil(&cfg)
			tr, err := Attach(t.Context(), cfg)
			if err == nil {
				_ = tr.Close()
				t.Fatal("no error")
			}
		})
	}
}

func TestCollectAllocatesNothing(t *testing.T) {
	tg := startTarget(t, 1024, 0)
	tr := attach(t, tg.config())
	set := epoch.NewPageSet(tg.image())
	must(t, tr.Collect(set))
	tg.do(order{Do: "loop", Pages: []uint64{1, 3, 5, 1000}})
	allocs := testing.AllocsPerRun(50, func() { must(t, tr.Collect(set)) })
	tg.do(order{Do: "halt"})
	if allocs != 0 {
		t.Fatalf("%v allocations for a Collect", allocs)
	}
}
