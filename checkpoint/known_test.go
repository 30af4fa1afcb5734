package checkpoint

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"understudy/epoch"
)

// unread is an image some of whose pages must not be looked at.
type unread struct {
	*image
	not *epoch.PageSet
}

var errLooked = errors.New("a page was read that is known")

func (u unread) ReadPages(first epoch.GFN, dst []byte) error {
	for i := range uint64(len(dst)) / epoch.PageSize {
		if u.not.Contains(first + epoch.GFN(i)) {
			return errLooked
		}
	}
	return u.image.ReadPages(first, dst)
}

// Pages whose content is known are not read as long as a disk, or the parent, has
// it. One whose block was overwritten since is; and what is known is so once, for
// the pages that are written come again.
func TestKnownPagesAreNotRead(t *testing.T) {
	const pages = 200
	rng := rand.New(rand.NewPCG(5, 5))
	d, m := newDisk(pages, rng), newImage(pages)
	known := epoch.Known{Key: testHead(pages).Key, Pages: epoch.NewPageSet(pages), Prints: make([]epoch.Fingerprint, pages)}
	for i := range pages {
		switch page := m.page(epoch.GFN(i)); {
		case i%3 == 0:
			copy(page, d.block(pages-1-i))
			known.Prints[i] = known.Key.Of(page)
			known.Pages.Add(epoch.GFN(i))
		case i%3 == 1:
			scribble(page, rng)
		}
	}
	d.overwrite(pages-1-33, rng) // page 33 is not on the disk any more, and must be read
	not := epoch.NewPageSet(pages)
	not.Union(known.Pages)
	not.RemoveRange(33, 1)
	every := all(pages)
	dir := t.TempDir()
	create := func(path string, opts Options) *Writer {
		w, err := Create(path, testHead(pages), opts)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	path := filepath.Join(dir, "web")
	w := create(path, Options{Finder: d})
	other := known
	other.Key++
	for _, err := range []error{w.Known(other), w.Image(t.Context(), m, every, nil), w.Known(known), w.Image(t.Context(), unread{m, not}, every, nil)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	scribble(m.page(30), rng) // written since, it comes again and must be read
	written := epoch.NewPageSet(pages)
	written.Add(30)
	finish(t, w, m, d, written)
	parent := mustOpen(t, path)
	mustEqual(t, parent, m, d)
	if n := parent.Inspect().Summary.Pages; n.Mapped+n.Content != 65 {
		t.Errorf("%+v, want 65 pages left out for a block", n)
	}
	w = create(filepath.Join(dir, "child"), Options{Finder: d, Parent: parent})
	known.Pages.RemoveRange(30, 1) // page 33 is in the parent
	if err := errors.Join(w.Known(known), w.Image(t.Context(), unread{m, known.Pages}, every, nil)); err != nil {
		t.Fatal(err)
	}
	finish(t, w, m, d, epoch.NewPageSet(pages))
	child := mustOpen(t, filepath.Join(dir, "child"))
	mustEqual(t, child, m, d)
	if n := child.Inspect().Summary.Pages.Unchanged; n < 64 {
		t.Errorf("%d pages are as in the parent", n)
	}
}
