package dirty

import (
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

func memfd(t testing.TB, pages uint64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("dirty-holes", unix.MFD_CLOEXEC)
	must(t, err)
	f := os.NewFile(uintptr(fd), "memfd")
	t.Cleanup(func() { _ = f.Close() })
	must(t, f.Truncate(int64(pages*epoch.PageSize)))
	return f
}

func punch(t testing.TB, f *os.File, page, count uint64) {
	t.Helper()
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
		int64(page*epoch.PageSize), int64(count*epoch.PageSize)))
}

func fill(t testing.TB, f *os.File, page uint64) {
	t.Helper()
	_, err := f.WriteAt([]byte{1}, int64(page*epoch.PageSize))
	must(t, err)
}

// What a balloon takes away the scan does not see, and Holes does.
func TestHolesReportsWhatTheScanCannot(t *testing.T) {
	tg := startTarget(t, 64, 0)
	tr := attach(t, tg.config())
	tg.do(order{Do: "write", Stripe: 1, Count: 64})
	collect(t, tr, tg.image())
	h, err := NewHoles(tg.file, 0)
	must(t, err)
	t.Cleanup(func() { _ = h.Close() })

	punch(t, tg.file, 10, 3)
	want(t, collect(t, tr, tg.image()))
	set := epoch.NewPageSet(tg.image())
	must(t, h.Collect(set))
	want(t, frames(set), 10, 11, 12)

	// A hole that is written again is the scan's affair.
	tg.do(order{Do: "write", Pages: []uint64{11}})
	set.Clear()
	must(t, h.Collect(set))
	want(t, frames(set))
	want(t, collect(t, tr, tg.image()), 11)
}

func TestHolesEqualsOracle(t *testing.T) {
	const pages, first = 300, 7
	f := memfd(t, pages)
	h, err := NewHoles(f, first)
	must(t, err)
	t.Cleanup(func() { _ = h.Close() })
	rng := rand.New(rand.NewPCG(1, 2))
	held := map[uint64]bool{}
	for range 200 {
		before := map[uint64]bool{}
		for p, ok := range held {
			before[p] = ok
		}
		for range rng.IntN(40) {
			p := rng.Uint64N(pages)
			if rng.IntN(2) == 0 {
				fill(t, f, p)
				held[p] = true
				continue
			}
			count := min(rng.Uint64N(8)+1, pages-p)
			punch(t, f, p, count)
			for i := range count {
				delete(held, p+i)
			}
		}
		oracle := epoch.NewPageSet(pages + first)
		for p := range before {
			if !held[p] {
				oracle.Add(epoch.GFN(p + first))
			}
		}
		got := epoch.NewPageSet(pages + first)
		must(t, h.Collect(got))
		want(t, frames(got), frames(oracle)...)
	}
}

func TestHolesAfterAFailureReportsEverything(t *testing.T) {
	f := memfd(t, 8)
	h, err := NewHoles(f, 0)
	must(t, err)
	good := h.file
	r, w, err := os.Pipe() // has no holes to look for
	must(t, err)
	must(t, w.Close())
	h.file = r
	set := epoch.NewPageSet(8)
	if h.Collect(set) == nil {
		t.Fatal("no error")
	}
	must(t, r.Close())
	h.file = good
	must(t, h.Collect(set))
	if set.Count() != 8 {
		t.Fatalf("%d of 8 pages", set.Count())
	}
	must(t, h.Close())
}

func TestHolesAllocatesNothing(t *testing.T) {
	f := memfd(t, 256)
	for i := range uint64(128) {
		fill(t, f, 2*i)
	}
	h, err := NewHoles(f, 0)
	must(t, err)
	t.Cleanup(func() { _ = h.Close() })
	set := epoch.NewPageSet(256)
	if n := testing.AllocsPerRun(20, func() { must(t, h.Collect(set)) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkHoles(b *testing.B) {
	const pages = 512 << 20 / epoch.PageSize
	f := memfd(b, pages)
	must(b, unix.Fallocate(int(f.Fd()), 0, 0, pages*epoch.PageSize))
	h, err := NewHoles(f, 0)
	must(b, err)
	defer func() { _ = h.Close() }()
	set := epoch.NewPageSet(pages)
	for b.Loop() {
		must(b, h.Collect(set))
	}
}
