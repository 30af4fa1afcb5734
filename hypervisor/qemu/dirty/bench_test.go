package dirty

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"understudy/epoch"
)

// The scan of the pause path: guests that have touched some or all of their
// memory, and wrote nothing, or 5,000 or 20,000 pages in one run, or 5,000
// each alone, since the last Collect.
func BenchmarkCollect(b *testing.B) {
	const MiB = 1 << 20 / epoch.PageSize
	for _, m := range []struct{ size, touched uint64 }{{512 * MiB, 512 * MiB}, {4096 * MiB, 512 * MiB}, {4096 * MiB, 4096 * MiB}} {
		for _, c := range []struct {
			name          string
			stripe, count uint64
		}{{"idle", 1, 0}, {"5k-run", 1, 5000}, {"5k-scattered", m.touched / 5001, 5000}, {"20k-run", 1, 20000}} {
			b.Run(fmt.Sprintf("%dMiB/%dMiB-touched/%s", m.size/MiB, m.touched/MiB, c.name), func(b *testing.B) {
				tg := startTarget(b, m.size, 0)
				cfg := tg.config()
				cfg.Regions = cfg.Regions[:1]
				tr := attach(b, cfg)
				// One page in eight is enough to have all the page tables.
				tg.do(order{Do: "write", Stripe: 8, Count: m.touched / 8})
				set := epoch.NewPageSet(m.size)
				for range m.size/MiB/2/settleLimit + 2 {
					must(b, tr.Collect(set))
				}
				b.ReportAllocs()
				var took []time.Duration
				for b.Loop() {
					b.StopTimer()
					if c.count > 0 {
						tg.do(order{Do: "write", Stripe: c.stripe, Count: c.count})
					}
					set.Clear()
					b.StartTimer()
					began := time.Now()
					must(b, tr.Collect(set))
					took = append(took, time.Since(began))
					if set.Count() != c.count {
						b.Fatalf("%d pages, want %d", set.Count(), c.count)
					}
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "median-µs")
			})
		}
	}
}

// The whole Attach with a fresh injection, the start of the helper process
// included, and the re-take of an anchor.
func BenchmarkAttach(b *testing.B) {
	tg := startTarget(b, 256, 0)
	cfg := tg.config()
	b.Run("inject", func(b *testing.B) {
		for b.Loop() {
			must(b, attach(b, cfg).Close())
			tg.do(order{Do: "unanchor"})
		}
	})
	b.Run("retake", func(b *testing.B) {
		for b.Loop() {
			must(b, attach(b, cfg).Close())
		}
	})
}

// What the helper process does to the target, from the first look at its maps
// to letting it go, its own start not counted.
func BenchmarkInjection(b *testing.B) {
	tg := startTarget(b, 256, 0)
	for b.Loop() {
		if _, err := helper([]string{fmt.Sprint(tg.cmd.Process.Pid)}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		tg.do(order{Do: "unanchor"})
		b.StartTimer()
	}
}
