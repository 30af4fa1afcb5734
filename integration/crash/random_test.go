package crash

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// randomStory is the life of a guest that is protected, taken over, protected
// again the other way round, with a crash at a random step each time.
func randomStory(rounds int) func(w *world) {
	return func(w *world) {
		journals := w.hosts[0].journal != ""
		for range 10 {
			w.request()
		}
		for range rounds {
			w.armed = true
			w.protect()
			for turn := 0; turn < 130 && !w.over && !w.struck; turn++ {
				w.turn()
			}
			for turn := 0; turn < 60 && !w.over && w.backup.h.up && w.owner.mode == protected; turn++ {
				w.turn() // after what happened
			}
			if w.over {
				return
			}
			if w.owner.mode == protected { // and then the owner's host
				w.plan, w.struck, w.handled = strike{side: ownerDies}, true, false
				w.fall(w.owner.h)
				w.react()
			}
			if w.over {
				return
			}
			// Failback.
			h := w.hosts[1-w.owner.h.id]
			w.backup.end()
			h.kill()
			h.rebooted = true
			h.guest = nil
			h.open()
			w.backup = &standby{w: w, h: h}
			w.plan, w.later = strikes(w.dice, journals)
			w.plan.nth += w.total
			w.struck, w.handled = false, false
		}
	}
}

// strikes draws what breaks.
func strikes(dice *rand.Rand, journals bool) (plan, later strike) {
	n := len(sides)
	if !journals {
		n-- // the last is the daemon's end
	}
	plan = strike{nth: 1 + dice.IntN(250), side: sides[dice.IntN(n)]}
	if dice.IntN(2) == 0 {
		later = strike{step: after[dice.IntN(len(after))], nth: 1, side: sides[dice.IntN(n)]}
	}
	return plan, later
}

// random plays one random world.
func random(t *testing.T, n uint64, broken string) (*world, config, error) {
	dice := rand.New(rand.NewPCG(n, 2))
	list := configs()
	c := list[dice.IntN(len(list))]
	plan, later := strikes(dice, dice.IntN(4) == 0)
	w, err := play(t, c, n, broken, plan, later, randomStory(3))
	if err != nil {
		err = fmt.Errorf("-crash.seed %d: %v: %w", n, c, err)
	}
	return w, c, err
}

func TestRandomCrashes(t *testing.T) {
	if *seed != 0 {
		w, c, err := random(t, *seed, "")
		t.Logf("%v: %+v, first %+v, then %+v", c, w.count, w.plan, w.later)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	var count counters
	start := rand.Uint64()>>33 + 1
	for n := range uint64(*seeds * len(configs())) {
		w, _, err := random(t, start+n, "")
		if err != nil {
			t.Error(err)
		}
		count.add(w.count)
	}
	t.Logf("%d worlds from seed %d on: %+v", *seeds*len(configs()), start, count)
	if count.takeovers == 0 || count.references == 0 || count.forced == 0 || count.lazyFills == 0 {
		t.Error("these worlds are too quiet to prove anything")
	}
}

// rules are broken one at a time, and the oracle has to notice each.
var rules = []string{
	"a write reaches the disk before its epoch is acknowledged",
	"the backup acknowledges before it has filled what the epoch overwrites",
	"a page is left out for a write that is held",
	"an overtaken reference does not make its page dirty",
	"B forgets a write before it is flushed",
	"blocks are overwritten although references to them are not filled",
	staleHints,
	"pages that we wrote ourselves are not reported",
	"a write names a page that has changed since",
	"an epoch that was lost is not sent again",
	"newer content does not supersede a reference",
	"a checkpoint is taken before the disks have settled",
	"a disk says durable, and it is not",
	"a frozen owner goes on where it stopped",
	"the journal ends with the daemon",
}

func TestTheOracleHasTeeth(t *testing.T) {
	const most = 600
	for _, rule := range rules {
		noticed := false
		for n := range uint64(most) {
			if _, _, err := random(t, 1000+n, rule); err != nil {
				t.Logf("%q: noticed in world %d: %.160s", rule, n+1, err)
				noticed = true
				break
			}
		}
		if !noticed {
			t.Errorf("%q goes unnoticed in %d worlds", rule, most)
		}
	}
}
