package crash

import (
	"flag"
	"fmt"
	"runtime/debug"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // each world takes some megabytes, for some milliseconds
	goleak.VerifyTestMain(m)
}

var (
	seeds = flag.Int("crash.seeds", 4, "how many random worlds to play for each kind")
	seed  = flag.Uint64("crash.seed", 0, "play this random world alone")
	all   = flag.Bool("crash.all", false, "crash every time a step is reached, not once for each kind of world")
)

// configs are the kinds of worlds.
func configs() (list []config) {
	for _, lazy := range []bool{false, true} {
		for _, window := range []int{1, 2} {
			for _, c := range []config{{}, {shared: true}, {shared: true, unfenced: true}} {
				c.lazy, c.window = lazy, window
				list = append(list, c)
			}
		}
	}
	return list
}

// before are the steps of a guest under protection, after those of a takeover.
var (
	before = []string{stepWrite, stepDiscard, stepZeroes, stepFlush, stepReadBegun, stepReadEnded, stepSeal, stepReported, stepCollect, stepCopy,
		stepEncode, stepChunk, stepEnd, stepStage, stepRoom, stepFilledBefore, stepAckSent, stepApply, stepAdd, stepCommit, stepDropped,
		stepAckReceived, stepRelease, stepFlushWrite, stepFlushWritten, stepFlushSync, stepFlushSynced, stepFillBegun, stepFillEnded,
		stepCopyWrite, stepCopyWritten, stepCopySync, stepCopySynced}
	after = []string{stepAsked, stepEager, stepLazy, stepActivated, stepReplay, stepReplayed, stepReplaySync, stepReplaySafe, stepFirst, stepLate}
	sides = []side{ownerDies, backupDies, sessionDies, ownerFreezes, daemonDies}
)

// happens says whether a kind of world has a step at all.
func happens(c config, step string) bool {
	switch step {
	case stepCopyWrite, stepCopyWritten, stepCopySync, stepCopySynced:
		return !c.shared
	case stepDropped:
		return c.shared
	case stepEager:
		return !c.lazy
	case stepLazy:
		return c.lazy
	}
	return true
}

// tableStory is a guest's life from its protection to the loss of its host.
func tableStory(w *world) {
	for range 10 {
		w.request()
	}
	w.armed = true
	w.protect()
	for turn := 0; turn < 170 && !w.over && w.count.takeovers == 0; turn++ {
		w.turn()
	}
	if w.over || w.count.takeovers > 0 {
		return
	}
	w.plan, w.struck, w.handled = strike{side: ownerDies}, true, false
	w.fall(w.owner.h)
	w.react()
}

const tableSeed = 7

func TestACrashAtEveryStep(t *testing.T) {
	type cell struct{ played, failed int }
	table := map[string]map[side]*cell{}
	for _, step := range append(before, after...) {
		table[step] = map[side]*cell{}
		for _, s := range sides {
			table[step][s] = &cell{}
		}
	}
	var count counters
	runs := 0
	for _, c := range configs() {
		dry, err := play(t, c, tableSeed, "", strike{}, strike{}, tableStory)
		if err != nil {
			t.Fatalf("%v, no crash but the last: %v", c, err)
		}
		for _, step := range before {
			n := dry.seen[step]
			if n == 0 && happens(c, step) {
				t.Errorf("%v: nobody comes to %q", c, step)
			}
			for _, s := range sides {
				if c.unfenced && s != ownerFreezes {
					continue // no difference to the shared store
				}
				for _, nth := range times(n) {
					w, err := play(t, c, tableSeed, "", strike{step, nth, s}, strike{}, tableStory)
					runs++
					table[step][s].played++
					count.add(w.count)
					if err != nil {
						table[step][s].failed++
						t.Errorf("%v: %v at the %d. %q: %v", c, s, nth, step, err)
					}
				}
			}
		}
		for _, step := range after {
			if !happens(c, step) {
				continue
			}
			for _, s := range sides {
				if s == sessionDies {
					continue
				}
				// Frozen with a write, or a sync, on its way.
				for _, freeze := range []string{stepFlushWrite, stepFlushSync} {
					if freeze == stepFlushSync && !*all {
						continue
					}
					w, err := play(t, c, tableSeed, "", strike{freeze, 2, ownerFreezes}, strike{step, 1, s}, tableStory)
					runs++
					table[step][s].played++
					count.add(w.count)
					if err != nil {
						table[step][s].failed++
						t.Errorf("%v: frozen at %q, then %v at %q: %v", c, freeze, s, step, err)
					}
				}
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-32s", "step")
	for _, s := range sides {
		fmt.Fprintf(&b, "%12v", s)
	}
	for _, step := range append(before, after...) {
		fmt.Fprintf(&b, "\n%-32s", step)
		for _, s := range sides {
			switch x := table[step][s]; {
			case x.played == 0:
				fmt.Fprintf(&b, "%12s", "-")
			case x.failed > 0:
				fmt.Fprintf(&b, "%12s", fmt.Sprintf("%d/%d BAD", x.failed, x.played))
			default:
				fmt.Fprintf(&b, "%12s", fmt.Sprintf("%d ok", x.played))
			}
		}
	}
	t.Logf("%d worlds of %d kinds: %+v\n%s", runs, len(configs()), count, b.String())
}

// times says at which of the n times that a step is reached there is a crash.
func times(n int) []int {
	switch {
	case n == 0:
		return nil
	case *all:
		list := make([]int, n)
		for i := range list {
			list[i] = i + 1
		}
		return list
	}
	return []int{1 + n/2}
}
