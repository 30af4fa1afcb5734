package dirty

import (
	"fmt"
	"testing"

	"understudy/epoch"
)

// The scan of the pause path: nothing written, then 5,000 pages written since
// the last one, in one run or each alone.
func BenchmarkCollect(b *testing.B) {
	for _, size := range []uint64{512 << 20, 4 << 30} {
		pages := size / epoch.PageSize
		for _, c := range []struct {
			name          string
			stripe, count uint64
		}{{"idle", 1, 0}, {"5k-run", 1, 5000}, {"5k-scattered", pages / 5001, 5000}, {"20k-run", 1, 20000}} {
			b.Run(fmt.Sprintf("%dMiB/%s", size>>20, c.name), func(b *testing.B) {
				tg := startTarget(b, pages, 0)
				cfg := tg.config()
				cfg.Regions = cfg.Regions[:1]
				tr := attach(b, cfg)
				// A guest that uses a quarter of its memory, or 512 MiB of it.
				tg.do(order{Do: "write", Stripe: 4, Count: min(pages/4, 32768)})
				set := epoch.NewPageSet(pages)
				must(b, tr.Collect(set))
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					if c.count > 0 {
						tg.do(order{Do: "write", Stripe: c.stripe, Count: c.count})
					}
					set.Clear()
					b.StartTimer()
					must(b, tr.Collect(set))
					if set.Count() != c.count {
						b.Fatalf("%d pages, want %d", set.Count(), c.count)
					}
				}
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
