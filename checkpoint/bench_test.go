package checkpoint

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"understudy/epoch"
)

// benchGuest is a guest like the one of the targets, a quarter of its size:
// of 256 MiB 160 MiB are page cache, 24 MiB are used and the rest is zero.
func benchGuest(b *testing.B) (*image, *disk) {
	rng := rand.New(rand.NewPCG(9, 9))
	const cache, used, pages = 160 << 20 / epoch.PageSize, 24 << 20 / epoch.PageSize, 256 << 20 / epoch.PageSize
	d := newDisk(cache, rng)
	m := newImage(pages)
	for i := range cache {
		copy(m.page(epoch.GFN(i)), d.block(i^0x55))
	}
	for i := range used {
		scribble(m.page(epoch.GFN(cache+i)), rng)
	}
	return m, d
}

func benchDir(b *testing.B) string {
	if _, err := os.Stat("/dev/shm"); err != nil {
		return b.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "checkpoint-*")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func BenchmarkSave(b *testing.B) {
	m, d := benchGuest(b)
	path := filepath.Join(benchDir(b), "web")
	b.SetBytes(int64(len(m.bytes)))
	b.ReportAllocs()
	var info Info
	for b.Loop() {
		info = save(b, path, m, d, Options{Replace: true})
	}
	b.ReportMetric(float64(info.FileBytes)/float64(184<<20)*100, "%of-used")
}

// A second file of a guest that has not changed: what a round costs by itself.
func BenchmarkSaveChild(b *testing.B) {
	m, d := benchGuest(b)
	dir := benchDir(b)
	save(b, filepath.Join(dir, "web"), m, d, Options{})
	parent := mustOpen(b, filepath.Join(dir, "web"))
	b.SetBytes(int64(len(m.bytes)))
	for b.Loop() {
		save(b, filepath.Join(dir, "child"), m, d, Options{Replace: true, Parent: parent})
	}
}

func BenchmarkRestore(b *testing.B) {
	m, d := benchGuest(b)
	path := filepath.Join(benchDir(b), "web")
	save(b, path, m, d, Options{})
	for _, lazy := range []bool{false, true} {
		b.Run(map[bool]string{false: "eager", true: "lazy-until-load"}[lazy], func(b *testing.B) {
			b.SetBytes(int64(len(m.bytes)))
			for b.Loop() {
				f, err := Open(path)
				if err != nil {
					b.Fatal(err)
				}
				s, _, err := Restore(b.Context(), f, &driver{}, d, RestoreOptions{Lazy: lazy, leaveFew: true})
				if err != nil {
					b.Fatal(err)
				}
				if !lazy && !bytes.Equal(s.(*image).bytes, m.bytes) {
					b.Fatal("another image")
				}
				_ = f.Close()
			}
		})
	}
}

// BenchmarkContent is one page of a lazy restore.
func BenchmarkContent(b *testing.B) {
	m, d := benchGuest(b)
	path := filepath.Join(benchDir(b), "web")
	save(b, path, m, d, Options{})
	f := mustOpen(b, path)
	p, err := newPending(f, d, nil)
	if err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, epoch.PageSize)
	rng := rand.New(rand.NewPCG(1, 1))
	for name, r := range map[string][2]int{"disk": {0, 40960}, "record": {40960, 6144}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(epoch.PageSize)
			for b.Loop() {
				if err := p.Content(epoch.GFN(r[0]+rng.IntN(r[1])), dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
