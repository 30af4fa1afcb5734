package checkpoint

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"understudy/epoch"
	"understudy/exclusion"
)

var _ Constant = (*exclusion.Index)(nil)

// constant is a disk that counts what is lost on it, and questions.
type constant struct {
	*disk
	losses uint64
	asked  int
}

func (c *constant) Losses() uint64 { return c.losses }

func (c *constant) FindPrint(page epoch.GFN, print epoch.Fingerprint) (epoch.Reference, bool, bool) {
	c.asked++
	return c.disk.FindPrint(page, print)
}

// While a finder has lost nothing, its references are not asked for again; once
// it has, those that do not hold are found, in a parent as well.
func TestReferencesAreAskedForAgainOnlyAfterALoss(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	d := newDisk(50, rng)
	m := newImage(100)
	for i := range 50 {
		copy(m.page(epoch.GFN(i)), d.block(i))
	}
	c := &constant{disk: d}
	dir := t.TempDir()
	create := func(name string, opts Options) *Writer {
		t.Helper()
		opts.Finder, opts.Workers = c, 1
		w, err := Create(filepath.Join(dir, name), testHead(m.Pages()), opts)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	stale := func(w *Writer, asked bool, want ...epoch.GFN) {
		t.Helper()
		set := epoch.NewPageSet(m.Pages())
		c.asked = 0
		if err := w.Stale(set); err != nil {
			t.Fatal(err)
		}
		if (c.asked > 0) != asked {
			t.Errorf("%d questions, want some: %t", c.asked, asked)
		}
		if set.Count() != uint64(len(want)) {
			t.Errorf("%d pages are stale, want %d", set.Count(), len(want))
		}
		for _, f := range want {
			if !set.Contains(f) {
				t.Errorf("page %d is not stale", f)
			}
		}
		if err := w.Image(t.Context(), m, set, nil); err != nil {
			t.Fatal(err)
		}
	}
	overwrite := func(i int) {
		d.overwrite(i, rng)
		c.losses++
	}

	w := create("parent", Options{})
	if err := w.Image(t.Context(), m, all(m.Pages()), nil); err != nil {
		t.Fatal(err)
	}
	stale(w, false)
	overwrite(7)
	stale(w, true, 7)
	stale(w, false)
	overwrite(9)
	finish(t, w, m, d, epoch.NewPageSet(m.Pages()))
	parent := mustOpen(t, filepath.Join(dir, "parent"))
	mustEqual(t, parent, m, d)

	overwrite(11) // before there is a child to see it
	w = create("child", Options{Parent: parent})
	stale(w, true, 11)
	stale(w, false)
	overwrite(13)
	finish(t, w, m, d, epoch.NewPageSet(m.Pages()))
	mustEqual(t, mustOpen(t, filepath.Join(dir, "child")), m, d)
}
