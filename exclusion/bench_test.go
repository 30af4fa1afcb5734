package exclusion

import (
	"encoding/binary"
	"testing"

	"understudy/epoch"
)

// paths are the ways a page, or a request, can take through an Index.
func paths() map[string]func(i int) {
	const pages = 1 << 16
	ix := NewIndex(Config{Pages: pages, Key: 9})
	content := make([][]byte, pages/16)
	for i := range content {
		content[i] = filled(1)
		binary.LittleEndian.PutUint64(content[i][100:], uint64(i))
		readOf(ix, 0, uint64(i)*8, epoch.GFN(i), content[i])
	}
	novel := make([][]byte, 4096)
	for i := range novel {
		novel[i] = filled(3)
		binary.LittleEndian.PutUint64(novel[i][100:], uint64(i))
	}
	e := ix.Encoding(1)
	ask := func(page epoch.GFN, content []byte, delta bool) {
		e.Exclude(page, content, delta)
		if ix.outstanding.live >= pages/2 {
			ix.Materialised(1)
		}
	}
	return map[string]func(i int){
		"exclude/mapped":  func(i int) { ask(epoch.GFN(i%len(content)), content[i%len(content)], false) },
		"exclude/indexed": func(i int) { ask(epoch.GFN(len(content)+i%len(content)), content[i*7%len(content)], false) },
		"exclude/unknown": func(i int) { ask(pages-1, novel[i%len(novel)], false) },
		"exclude/skipped": func(i int) { ask(epoch.GFN(i%len(content)), content[i%len(content)], true) },
		"find":            func(i int) { ix.Find(epoch.GFN(i%len(content)), content[i%len(content)]) },
		"accepted/4KiB":   func(i int) { ix.Accepted(1, uint64(i%100000)*8, 8, false) },
		"accepted/1MiB":   func(i int) { ix.Accepted(1, uint64(i%1000)*2048, 2048, false) },
		"passing/4KiB": func(i int) {
			w := ix.Accepted(2, uint64(i%100000)*8, 8, true)
			ix.WriteDone(w, 2, uint64(i%100000)*8, epoch.NoPage, novel[i%len(novel)])
			ix.Landed(w)
		},
		"read/4KiB": func(i int) { readOf(ix, 3, uint64(i%100000)*8, 9, novel[i%len(novel)]) },
		"flushed":   func(i int) { ix.Flushed(4, uint64(i%100000)*8, 9, novel[i%len(novel)]) },
	}
}

func BenchmarkIndex(b *testing.B) {
	for name, path := range paths() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				path(i)
			}
		})
	}
}

// TestNothingIsAllocated: neither for a page nor for a request.
func TestNothingIsAllocated(t *testing.T) {
	for name, path := range paths() {
		i := 0
		if n := testing.AllocsPerRun(1000, func() { path(i); i++ }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
