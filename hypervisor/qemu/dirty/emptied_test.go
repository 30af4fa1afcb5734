package dirty

import (
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// shmFile is a file on tmpfs. Of a memfd's holes the kernel does not tell.
func shmFile(t testing.TB, pages uint64) *os.File {
	t.Helper()
	f, err := os.CreateTemp("/dev/shm", "dirty-test")
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	must(t, os.Remove(f.Name()))
	must(t, f.Truncate(int64(pages*epoch.PageSize)))
	return f
}

func punch(t testing.TB, f *os.File, page, count uint64) {
	t.Helper()
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
		int64(page*epoch.PageSize), int64(count*epoch.PageSize)))
}

func mapFile(t testing.TB, f *os.File, pages uint64) []byte {
	t.Helper()
	mem, err := unix.Mmap(int(f.Fd()), 0, int(pages*epoch.PageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Munmap(mem)) })
	return mem
}

func watchFile(t testing.TB, f *os.File, mem []byte) *Emptied {
	t.Helper()
	e, err := NewEmptied(f, mem)
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	return e
}

func changed(t testing.TB, e *Emptied, want bool) {
	t.Helper()
	got, err := e.Changed()
	must(t, err)
	if got != want {
		t.Fatalf("changed: %t, want %t", got, want)
	}
}

func unmapped(t testing.TB, e *Emptied, pages uint64) *epoch.PageSet {
	t.Helper()
	set := epoch.NewPageSet(pages)
	must(t, e.Unmapped(func(first, count uint64) { set.AddRange(epoch.GFN(first), count) }))
	return set
}

// What another process's balloon takes away, its scan does not see, and our
// page tables do: also of a page that was looked at again, whose content is
// zeros now and which is no hole. Writes of either side are no change.
func TestEmptiedTellsWhatTheScanCannot(t *testing.T) {
	tg := startTarget(t, 64, 0)
	tr := attach(t, tg.config())
	mem := mapFile(t, tg.file, 64)
	e := watchFile(t, tg.file, mem)
	changed(t, e, false)
	tg.do(order{Do: "write", Stripe: 1, Count: 64})
	collect(t, tr, tg.image())
	for i := range mem {
		mem[i]++
	}
	changed(t, e, false)
	want(t, frames(unmapped(t, e, 64)))

	punch(t, tg.file, 10, 3)
	punch(t, tg.file, 40, 1)
	want(t, collect(t, tr, tg.image()))
	tg.do(order{Do: "write", Pages: []uint64{11}})
	var again [1]byte // what the read of another process does
	other := mapFile(t, tg.file, 64)
	again[0] = other[12*epoch.PageSize]
	if again[0] != 0 {
		t.Fatalf("an emptied page holds %d", again[0])
	}
	changed(t, e, true)
	changed(t, e, false)
	want(t, frames(unmapped(t, e, 64)), 10, 11, 12, 40)
	want(t, collect(t, tr, tg.image()), 11)
}

// The page tables agree with what was touched and taken, whatever was done.
func TestEmptiedEqualsOracle(t *testing.T) {
	const pages = 2000
	f := shmFile(t, pages)
	mem, other := mapFile(t, f, pages), mapFile(t, f, pages)
	e := watchFile(t, f, mem)
	lacks := epoch.NewPageSet(pages)
	lacks.Fill()
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 200 {
		punched := false
		for range rng.IntN(60) {
			page := rng.Uint64N(pages)
			switch rng.IntN(4) {
			case 0, 1:
				mem[page*epoch.PageSize] = 1 // a write maps no other
				lacks.RemoveRange(epoch.GFN(page), 1)
			case 2:
				other[page*epoch.PageSize]++
			case 3:
				n := min(1+rng.Uint64N(30), pages-page)
				punch(t, f, page, n)
				lacks.AddRange(epoch.GFN(page), n)
				punched = true
			}
		}
		changed(t, e, punched)
		got := unmapped(t, e, pages)
		for p := range epoch.GFN(pages) {
			if got.Contains(p) != lacks.Contains(p) {
				t.Fatalf("round %d, page %d: unmapped %t, want %t", round, p, got.Contains(p), lacks.Contains(p))
			}
		}
	}
	if n := testing.AllocsPerRun(20, func() {
		must(t, e.Unmapped(func(uint64, uint64) {}))
		_, err := e.Changed()
		must(t, err)
	}); n != 0 {
		t.Errorf("a look allocates %v times", n)
	}
}

// What a look costs for 512 MiB: when nothing was taken, and when something was.
func BenchmarkEmptied(b *testing.B) {
	const pages = 512 << 20 / epoch.PageSize
	f := shmFile(b, pages)
	mem := mapFile(b, f, pages)
	must(b, unix.Madvise(mem, unix.MADV_POPULATE_WRITE))
	e := watchFile(b, f, mem)
	b.Run("nothing", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			changed(b, e, false)
		}
	})
	punch(b, f, 1000, 512)
	for i := range uint64(100) {
		punch(b, f, 5000+i*1024, 512)
	}
	b.Run("unmapped", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			must(b, e.Unmapped(func(uint64, uint64) {}))
		}
	})
	b.Run("seek", func(b *testing.B) {
		for b.Loop() {
			for at := int64(0); at < int64(len(mem)); {
				data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
				if err != nil {
					break
				}
				at, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
				must(b, err)
			}
		}
	})
}

// Where nobody tells of holes, nobody trusts that there are none.
func TestEmptiedNeedsToBeTold(t *testing.T) {
	fd, err := unix.MemfdCreate("dirty-emptied", unix.MFD_CLOEXEC)
	must(t, err)
	f := os.NewFile(uintptr(fd), "memfd")
	defer func() { _ = f.Close() }()
	must(t, f.Truncate(8*epoch.PageSize))
	if e, err := NewEmptied(f, mapFile(t, f, 8)); err == nil {
		changed(t, e, false)
		punch(t, f, 0, 1)
		changed(t, e, true) // a kernel that does tell
		must(t, e.Close())
	} else {
		t.Log(err)
	}
}
