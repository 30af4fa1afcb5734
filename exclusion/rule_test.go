package exclusion

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
)

// TestReferencesAreTrue plays the world of the oracle with every rule kept: a
// takeover at any step finds every page as it was.
func TestReferencesAreTrue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := rapid.Uint64().Draw(t, "seed")
		w := newWorld(chooser(draw), "", rapid.IntRange(1, 12).Draw(t, "blocks"), rapid.IntRange(1, 8).Draw(t, "outstanding"))
		for range 400 {
			w.step()
			if complaint := w.check(); complaint != "" {
				t.Fatal(complaint)
			}
		}
	})
}

func chooser(seed uint64) func(n int) int {
	return rand.New(rand.NewPCG(seed, 1)).IntN
}

// TestTheWorldLeavesPagesOut makes sure that the test above is about something.
func TestTheWorldLeavesPagesOut(t *testing.T) {
	var references, copies int
	var sum Stats
	for seed := range uint64(2000) {
		w := newWorld(chooser(seed), "", 4, 2)
		for range 400 {
			w.step()
		}
		references, copies = references+w.references, copies+w.copies
		s := w.ix.Stats()
		sum.Mapped, sum.Indexed, sum.Changed = sum.Mapped+s.Mapped, sum.Indexed+s.Indexed, sum.Changed+s.Changed
		sum.Overwritten, sum.Full, sum.Evicted = sum.Overwritten+s.Overwritten, sum.Full+s.Full, sum.Evicted+s.Evicted
	}
	t.Logf("%d references and %d copies committed; %+v", references, copies, sum)
	if references < 1000 || copies < 100 || sum.Mapped*sum.Indexed*sum.Changed*sum.Overwritten*sum.Full*sum.Evicted == 0 {
		t.Errorf("too little happens")
	}
}

// TestTeeth breaks one rule at a time and demands that the oracle notices.
func TestTeeth(t *testing.T) {
	for _, broken := range []string{
		"a read is believed although a write ran beside it",
		"a read of held writes is believed",
		"a passing write makes no page dirty",
		"a discard is not accepted",
		"a write counts as over when it is accepted",
		"a held write counts as on the disk",
		"a held write reaches the disk at once",
		"a flush is believed although newer writes were accepted",
		"a checkpoint is taken before passing writes have settled",
		"the page's bytes are those of now, not of the pause",
		"the backup does not fill before it acknowledges",
		"a lost session voids nothing",
	} {
		t.Run(broken, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(5000) {
				w := newWorld(chooser(seed), broken, 8, 4)
				for range 400 {
					w.step()
					if complaint := w.check(); complaint != "" {
						t.Logf("seed %d: %s", seed, complaint)
						return
					}
				}
			}
			t.Errorf("the oracle did not notice")
		})
	}
}

// TestValid goes through every candidate: it holds in exactly one case.
func TestValid(t *testing.T) {
	same, other := epoch.Fingerprint{1}, epoch.Fingerprint{2}
	for bits := range 64 {
		c := Candidate{
			OnDisk: bits&1 != 0, Overwritten: bits&2 != 0, Verified: bits&4 != 0,
			Room: bits&8 != 0, Lapsed: bits&16 != 0, Page: same, Block: same,
		}
		if bits&32 != 0 {
			c.Block = other
		}
		want := c.OnDisk && !c.Overwritten && c.Verified && c.Room && !c.Lapsed && c.Page == c.Block
		if got := Valid(c); (got == Holds) != want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	for r := range reasons + 1 {
		t.Logf("%d: %v", uint8(r), r)
	}
}
