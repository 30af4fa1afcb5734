//go:build !race

package checkpoint

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"understudy/epoch"
)

// What is done for each page allocates nothing: a round of pages of every sort
// allocates for its goroutines, and no more for a large round than for a small
// one. (The race detector makes its own.)
func TestPagesAllocateNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 16))
	d := newDisk(500, rng)
	m := mixed(leafPages, d, rng)
	path := filepath.Join(t.TempDir(), "x")
	w, err := Create(path, testHead(m.Pages()), Options{Finder: d})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Abort() }()
	w.records = make([]record, 0, 1<<16) // it grows with the file, not with a page
	set := all(m.Pages())
	per := testing.AllocsPerRun(5, func() {
		for i := range m.Pages() { // no page is as it was
			if p := m.page(epoch.GFN(i)); i%3 == 0 {
				p[9]++
			}
		}
		if err := w.Image(t.Context(), m, set, nil); err != nil {
			t.Fatal(err)
		}
	})
	if per > 20 {
		t.Errorf("a round of %d pages allocates %v times", m.Pages(), per)
	}
	per = testing.AllocsPerRun(5, func() {
		for i := range epoch.GFN(64) {
			m.page(i)[17]++
		}
		if err := w.Pages(0, m.bytes[:64*epoch.PageSize]); err != nil {
			t.Fatal(err)
		}
	})
	if per > 0 {
		t.Errorf("64 pages of their own allocate %v times", per)
	}

	save(t, path, m, d, Options{})
	p, err := newPending(mustOpen(t, path), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, epoch.PageSize)
	content := func() {
		for i := range epoch.GFN(m.Pages()) {
			if err := p.Content(i, dst); err != nil {
				t.Fatal(err)
			}
		}
	}
	content() // the cache's buffers
	if per := testing.AllocsPerRun(2, content); per > 0 {
		t.Errorf("%d pages of a lazy restore allocate %v times", m.Pages(), per)
	}
}
