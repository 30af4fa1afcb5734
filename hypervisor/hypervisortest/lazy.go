package hypervisortest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"understudy/epoch"
	"understudy/hypervisor"
)

// The stories of a standby that lacks pages when its time comes.

// Shelf is a hypervisor.Filler that has the whole content of an image.
type Shelf struct {
	content []byte

	mu      sync.Mutex
	missing *epoch.PageSet
	// fails says how often a page is still refused.
	fails  map[epoch.GFN]int
	filled int
	wrong  []string
}

var _ hypervisor.Filler = (*Shelf)(nil)

// errShelf is what a page that is refused fails with.
var errShelf = errors.New("this page cannot be had now")

// NewShelf returns a shelf with the content of an image, which lacks the pages
// of missing.
func NewShelf(content []byte, missing *epoch.PageSet) *Shelf {
	s := &Shelf{content: content, missing: epoch.NewPageSet(missing.Pages()), fails: map[epoch.GFN]int{}}
	s.missing.Union(missing)
	return s
}

// Fail makes the next requests for a page fail, count of them.
func (s *Shelf) Fail(page epoch.GFN, count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails[page] = count
}

// Left returns how many pages are missing, and how many have been filled.
func (s *Shelf) Left() (missing uint64, filled int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.missing.Count(), s.filled
}

// Wrong lists how the shelf has been misused.
func (s *Shelf) Wrong() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.wrong)
}

// Missing adds to set what has not been filled.
func (s *Shelf) Missing(set *epoch.PageSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set.Union(s.missing)
}

// Content copies a page.
func (s *Shelf) Content(page epoch.GFN, dst []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.missing.Contains(page) {
		s.wrong = append(s.wrong, fmt.Sprintf("page %d was asked for, which is not missing", page))
	}
	if s.fails[page] > 0 {
		s.fails[page]--
		return errShelf
	}
	copy(dst, s.content[uint64(page)*epoch.PageSize:][:epoch.PageSize])
	return nil
}

// Filled notes that a page is there.
func (s *Shelf) Filled(page epoch.GFN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.missing.Contains(page) {
		s.wrong = append(s.wrong, fmt.Sprintf("page %d was said to be filled, which was not missing", page))
	}
	s.missing.RemoveRange(page, 1)
	s.filled++
}

// Copy reads a whole image.
func Copy(image hypervisor.Image) ([]byte, error) {
	content := make([]byte, image.Pages()*epoch.PageSize)
	err := chunks(image.Pages(), func(first epoch.GFN, count uint64) error {
		return image.ReadPages(first, content[uint64(first)*epoch.PageSize:][:count*epoch.PageSize])
	})
	return content, err
}

// stale is what stands in a standby's page whose content was left out.
var stale = bytes.Repeat([]byte{0xde, 0xad}, epoch.PageSize/2)

// leaveOut makes a standby that holds a checkpoint lack two of three pages, of
// which every second keeps something stale.
func (s *stage) leaveOut(sb hypervisor.Standby) (shelf *Shelf, missing *epoch.PageSet) {
	s.Helper()
	content, err := Copy(sb)
	s.must(err, "read the standby's image")
	missing = epoch.NewPageSet(sb.Pages())
	for p := range sb.Pages() {
		if p%3 == 1 {
			continue
		}
		missing.Add(epoch.GFN(p))
		if p%2 == 0 {
			s.must(sb.WritePages(epoch.GFN(p), stale), "leave something stale in page %d", p)
		}
	}
	return NewShelf(content, missing), missing
}

func (s *stage) proper(shelf *Shelf) {
	s.Helper()
	if wrong := shelf.Wrong(); len(wrong) != 0 {
		s.Fatalf("%d wrong uses of the filler, the first: %s", len(wrong), wrong[0])
	}
}

// takesOverWithMissingPages: a guest that is taken over by a standby which
// lacks pages finds each of them, goes on, and is protected again at once.
func takesOverWithMissingPages(t testing.TB, h Harness) {
	s := newStage(t, h)
	g, sb, state := s.pair()
	at := s.counter(g)
	shelf, missing := s.leaveOut(sb)
	count := missing.Count()
	s.must(g.Destroy(), "lose the guest")
	var bad []epoch.GFN
	for first := range missing.Runs {
		if len(bad) == 3 {
			break
		}
		bad = append(bad, first)
		shelf.Fail(first, 2)
	}
	var err error
	for try := 0; ; try++ {
		if err = sb.Load(s.ctx, state, shelf); err == nil {
			break
		}
		if try == 2*len(bad) || !errors.Is(err, errShelf) {
			s.Fatalf("load the device state with missing pages: %v", err)
		}
		s.must(sb.Reset(s.ctx), "reset after the filler failed")
	}
	next, err := sb.Run(s.ctx)
	s.must(err, "run the standby")
	again := s.own(next)
	s.awaitCounter(again, at)

	// Protected while it may still lack some.
	back := s.standby(s.a, again.Spec())
	all := s.collect(again)
	if all.Count() != again.Pages() {
		s.Fatalf("the first collect reports %d pages of %d", all.Count(), again.Pages())
	}
	s.copyPages(again, back, all)
	for range s.Rounds {
		s.checkpoint(again, back)
		s.workOn(again)
	}
	s.must(again.Fill(0, again.Pages()), "fill all pages")
	if left, filled := shelf.Left(); left != 0 || uint64(filled) != count {
		s.Fatalf("of %d missing pages %d are still missing, %d were filled", count, left, filled)
	}
	s.proper(shelf)
	page := make([]byte, epoch.PageSize)
	for p := range again.Pages() {
		s.must(again.ReadPages(epoch.GFN(p), page), "read page %d", p)
		if bytes.Equal(page, stale) {
			s.Fatalf("page %d still holds what was stale", p)
		}
	}
	// A few more, now that the filling is over.
	for range s.Rounds {
		s.checkpoint(again, back)
		s.workOn(again)
	}
	state = s.checkpoint(again, back)
	at = s.counter(again)
	s.must(again.Destroy(), "lose the guest again")
	s.must(back.Load(s.ctx, state, nil), "load the device state")
	last, err := back.Run(s.ctx)
	s.must(err, "run the standby")
	s.awaitCounter(s.own(last), at)
}

// resetsWithMissingPages: a load in vain fills some pages and leaves the others
// to the filler; the image can be written and loaded again.
func resetsWithMissingPages(t testing.TB, h Harness) {
	s := newStage(t, h)
	g, sb, state := s.pair()
	at, image := s.counter(g), s.hash(sb)
	shelf, missing := s.leaveOut(sb)
	s.must(g.Destroy(), "lose the guest")
	s.must(sb.Load(s.ctx, state, shelf), "load the device state")
	s.must(sb.Fill(0, min(100, sb.Pages())), "fill some pages")
	s.must(sb.Reset(s.ctx), "reset the standby")
	s.proper(shelf)

	// What is not filled may come otherwise: as pages of a later checkpoint.
	page := make([]byte, epoch.PageSize)
	for first, count := range missing.Runs {
		for p := first; p < first+epoch.GFN(count); p += 2 {
			left := epoch.NewPageSet(sb.Pages())
			if shelf.Missing(left); left.Contains(p) && p%5 == 0 {
				copy(page, shelf.content[uint64(p)*epoch.PageSize:])
				s.must(sb.WritePages(p, page), "write page %d after the reset", p)
				shelf.Filled(p)
			}
		}
	}
	s.must(sb.Load(s.ctx, state, shelf), "load the device state again")
	if now := s.hash(sb); now != image {
		s.Fatalf("with all pages filled the image is %v, it was %v", now, image)
	}
	if left, _ := shelf.Left(); left != 0 {
		s.Fatalf("the whole image was read, but %d pages are said to be missing", left)
	}
	s.proper(shelf)
	next, err := sb.Run(s.ctx)
	s.must(err, "run the standby")
	s.awaitCounter(s.own(next), at)
}
