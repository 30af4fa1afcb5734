package checkpoint

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"understudy/epoch"
)

// A lazy restore reads adjacent blocks together, keeps what it has read only
// until it is filled, and is not misled by what is written meanwhile.
func TestPendingReadsAhead(t *testing.T) {
	const pages = 100
	rng := rand.New(rand.NewPCG(3, 3))
	d := newDisk(pages, rng)
	m := newImage(pages)
	for i := range pages { // two runs
		copy(m.page(epoch.GFN(i)), d.block((i+50)%pages))
	}
	path := filepath.Join(t.TempDir(), "web")
	save(t, path, m, d, Options{})
	p, err := newPending(mustOpen(t, path), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, epoch.PageSize)
	fetch := func(page epoch.GFN) {
		t.Helper()
		if err := p.Content(page, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, m.page(page)) {
			t.Fatalf("page %d has other content", page)
		}
	}
	d.reads = 0
	for page := range epoch.GFN(32) {
		fetch(page)
		p.Filled(page)
	}
	if d.reads != 2 || len(p.ahead) != 0 {
		t.Errorf("32 adjacent pages took %d reads, %d are kept", d.reads, len(p.ahead))
	}
	fetch(45) // with the four behind it, up to the end of the run
	if len(p.ahead) != 4 {
		t.Errorf("%d pages were read ahead, want 4", len(p.ahead))
	}
	overwrite := func(page int) { // the block that this page is on
		t.Helper()
		block := (page + 50) % pages
		if err := p.Overwrite(2, uint64(block*epoch.PageSectors), epoch.PageSectors); err != nil {
			t.Fatal(err)
		}
		d.overwrite(block, rng)
	}
	overwrite(47) // read ahead: not read again, and there as often as one likes
	fetch(47)
	p.Filled(47)
	fetch(47)
	overwrite(52) // not read yet
	fetch(50)     // goes as far as 51
	fetch(52)
	if len(p.ahead) != 4 || len(p.aside) != 2 {
		t.Errorf("%d pages are ahead and %d aside, want 4 and 2", len(p.ahead), len(p.aside))
	}
	// One that was overwritten without a word is found out, and no other suffers.
	d.overwrite((62+50)%pages, rng)
	fetch(61)
	fetch(63)
	if err := p.Content(62, got); !errors.Is(err, ErrStale) {
		t.Errorf("a block that was overwritten: %v", err)
	}
	for page := range epoch.GFN(pages) {
		if page != 62 {
			fetch(page)
		}
		p.Filled(page)
	}
	<-p.Done()
	if len(p.ahead) != 0 {
		t.Errorf("%d pages are kept after all", len(p.ahead))
	}
}
