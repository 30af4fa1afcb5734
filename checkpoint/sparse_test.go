package checkpoint

import (
	"path/filepath"
	"testing"

	"understudy/epoch"
	"understudy/hypervisor"
)

// holey is an image that knows that its pages from one on were never touched.
type holey struct {
	*image
	t    *testing.T
	from epoch.GFN
}

func (h holey) Hole(first epoch.GFN, count uint64) uint64 {
	if first < h.from {
		return 0
	}
	return count
}

func (h holey) ReadPages(first epoch.GFN, dst []byte) error {
	if end := first + epoch.GFN(len(dst)/epoch.PageSize); first >= h.from && end > h.from {
		h.t.Errorf("pages %d to %d are holes, and were read", first, end)
	}
	return h.image.ReadPages(first, dst)
}

var _ hypervisor.Image = holey{}

// Holes are not read. A page that was written before, and was given back since,
// becomes a hole in a later round.
func TestHolesAreNotRead(t *testing.T) {
	m := newImage(256)
	for f := range epoch.GFN(128) {
		m.page(f)[9] = byte(f + 1)
	}
	path := filepath.Join(t.TempDir(), "web")
	w, err := Create(path, testHead(256), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Image(t.Context(), holey{m, t, 128}, all(256), nil); err != nil {
		t.Fatal(err)
	}
	for f := epoch.GFN(64); f < 128; f++ {
		clear(m.page(f))
	}
	if err := w.Image(t.Context(), holey{m, t, 64}, all(256), nil); err != nil {
		t.Fatal(err)
	}
	info := finish(t, w, m, nil, epoch.NewPageSet(256))
	if p := info.Summary.Pages; p.Hole != 192 || p.Zero != 0 || p.Sum() != 256 {
		t.Errorf("%+v, want 192 holes", p)
	}
	mustEqual(t, mustOpen(t, path), m, nil)
}
