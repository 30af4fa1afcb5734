package hypervisortest

import (
	"bytes"
	"testing"

	"understudy/epoch"
)

// The stories of one guest on one host: running, pausing, and what its pages
// and its dirty set say.

func startsPaused(t testing.TB, h Harness) {
	s := newStage(t, h)
	g := s.start(s.a)
	if g.Pages() == 0 || g.Spec().Pages != g.Pages() {
		s.Fatalf("the guest has %d pages, its spec says %d", g.Pages(), g.Spec().Pages)
	}
	first := s.hash(g)
	s.collect(g)
	if set := s.collect(g); !set.Empty() {
		s.Fatalf("a guest that has not run dirtied %d pages", set.Count())
	}
	if again := s.hash(g); again != first {
		s.Fatalf("the image of a guest that has not run went from %v to %v", first, again)
	}
}

func runsAndPauses(t testing.TB, h Harness) {
	s := newStage(t, h)
	g := s.startUp(s.a)
	for range s.Rounds {
		s.pause(g)
		s.pause(g) // pausing a paused guest is no error
		at, image := s.counter(g), s.hash(g)
		if again, now := s.counter(g), s.hash(g); again != at || now != image {
			s.Fatalf("a paused guest counted from %d to %d, its image went from %v to %v", at, again, image, now)
		}
		s.resume(g)
		s.awaitCounter(g, at)
	}
}

func collectsAllThenNothing(t testing.TB, h Harness) {
	s := newStage(t, h)
	g := s.startUp(s.a)
	s.pause(g)
	if set := s.collect(g); set.Count() != g.Pages() {
		s.Fatalf("the first collect reports %d pages of %d", set.Count(), g.Pages())
	}
	for range 3 {
		if set := s.collect(g); !set.Empty() {
			s.Fatalf("a paused guest dirtied %d pages after they were collected", set.Count())
		}
	}
	s.workOn(g)
	s.pause(g)
	set := s.collect(g)
	if set.Empty() {
		s.Fatalf("the guest has counted on, but no page is dirty")
	}
	// What was in the caller's set stays in it.
	full := epoch.NewPageSet(g.Pages())
	full.Fill()
	s.must(g.CollectDirty(full), "collect into a full set")
	if full.Count() != g.Pages() {
		s.Fatalf("collecting into a set of %d pages left %d in it", g.Pages(), full.Count())
	}
}

// reportsEveryChange compares the whole image before and after, over many
// rounds, with collects in between while the guest runs.
func reportsEveryChange(t testing.TB, h Harness) {
	s := newStage(t, h)
	g := s.startUp(s.a)
	s.pause(g)
	s.collect(g)
	mirror := make([]byte, g.Pages()*epoch.PageSize)
	s.changed(g, mirror)

	var seen uint64
	for round := range s.Rounds {
		reported := epoch.NewPageSet(g.Pages())
		for range 3 {
			s.workOn(g)
			reported.Union(s.collect(g)) // while it runs
		}
		s.pause(g)
		reported.Union(s.collect(g))
		changed := s.changed(g, mirror)
		seen += changed.Count()
		var missed []epoch.GFN
		for first, count := range changed.Runs {
			for f := first; f < first+epoch.GFN(count); f++ {
				if !reported.Contains(f) {
					missed = append(missed, f)
				}
			}
		}
		if len(missed) != 0 {
			s.Fatalf("round %d: %d of %d changed pages were not reported dirty, the first is %d", round, len(missed), changed.Count(), missed[0])
		}
	}
	if seen == 0 {
		s.Fatalf("no page has changed in %d rounds: the guest does nothing that could be missed", s.Rounds)
	}
}

func readsInBounds(t testing.TB, h Harness) {
	s := newStage(t, h)
	g := s.start(s.a)
	sb := s.standby(s.b, g.Spec())
	s.dropStandby(sb)

	page := make([]byte, epoch.PageSize)
	two := make([]byte, 2*epoch.PageSize)
	pages := epoch.GFN(g.Pages())
	s.must(g.ReadPages(0, page), "read the first page")
	s.must(g.ReadPages(pages-1, page), "read the last page")
	s.must(g.ReadPages(pages-2, two), "read the last two pages")
	s.must(sb.WritePages(pages-1, page), "write the last page of a standby")
	outside := []struct {
		name  string
		first epoch.GFN
		buf   []byte
	}{
		{"a page past the end", pages, page},
		{"two pages from the last one", pages - 1, two},
		{"a page at the end of all numbers", ^epoch.GFN(0), page},
		{"a page whose offset overflows", epoch.GFN(1) << 52, page},
		{"a part of a page", 0, page[:100]},
	}
	for _, c := range outside {
		before := bytes.Clone(c.buf)
		s.refused(g.ReadPages(c.first, c.buf), "read %s of a guest", c.name)
		s.refused(sb.ReadPages(c.first, c.buf), "read %s of a standby", c.name)
		s.refused(sb.WritePages(c.first, c.buf), "write %s of a standby", c.name)
		if !bytes.Equal(before, c.buf) {
			s.Fatalf("reading %s failed, and changed the buffer", c.name)
		}
	}
}

func deviceStateRepeats(t testing.TB, h Harness) {
	s := newStage(t, h)
	g := s.startUp(s.a)
	s.pause(g)
	s.collect(g)
	image := s.hash(g)
	first := s.state(g)
	for range 3 {
		again := s.state(g)
		if !s.StateVaries && !bytes.Equal(first, again) {
			s.Fatalf("two device states of one pause differ (%d and %d bytes)", len(first), len(again))
		}
	}
	if set := s.collect(g); !set.Empty() {
		s.Fatalf("taking the device state dirtied %d pages", set.Count())
	}
	if now := s.hash(g); now != image {
		s.Fatalf("taking the device state changed the image from %v to %v", image, now)
	}
	s.workOn(g)
	s.pause(g)
	if later := s.state(g); bytes.Equal(first, later) {
		s.Fatalf("the guest has run on, but its device state has not changed")
	}
}
