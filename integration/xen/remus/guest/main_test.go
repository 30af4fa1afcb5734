package main

import (
	"bytes"
	"testing"
	"time"

	"understudy/integration/xen/remus/cell"
)

// As many pages are written as are due, each time others, and of each no more than was
// asked for.
func TestPagesAreWrittenAtTheirRate(t *testing.T) {
	w := writer{area: make([]byte, cell.AreaPages*cell.PageSize), random: 1}
	written := uint64(0)
	for range 100 {
		written += w.due(cell.Load{Pages: 5000, Bytes: 8}, 2100*time.Microsecond)
	}
	if written < 1049 || written > 1050 { // 10.5 pages each time
		t.Errorf("%d pages in 210 ms", written)
	}
	for n := range uint64(cell.AreaPages) {
		page := w.area[n*cell.PageSize:][:cell.PageSize]
		if got, want := !bytes.Equal(page[:8], make([]byte, 8)), n < written; got != want || !bytes.Equal(page[8:], make([]byte, cell.PageSize-8)) {
			t.Fatalf("page %d is written: %v, want %v, or behind what was asked for", n, got, want)
		}
	}
	// It was held up, and catches up.
	load := cell.Load{Pages: 5000, Bytes: 8}
	n, times := w.due(load, 100*time.Millisecond), 1
	for ; w.owed >= 1; times++ {
		if next := w.due(load, 0); next > few {
			t.Fatalf("%d pages at once", next)
		} else {
			n += next
		}
	}
	if n < 499 || n > 501 || times < 31 {
		t.Errorf("%d pages in 100 ms, at %d times", n, times)
	}
	w.due(load, time.Hour)
	if w.owed > cell.AreaPages {
		t.Errorf("after an hour %v pages are due", w.owed)
	}
	if n := w.due(cell.Load{}, time.Hour); n != 0 || w.owed != 0 {
		t.Errorf("an idle guest writes %d pages, and owes %v", n, w.owed)
	}
}
