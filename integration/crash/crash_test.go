package crash

import (
	"flag"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
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
	for _, how := range []config{{}, {lazy: true}, {xen: true}} { // a Xen guest has all of its memory before it runs
		for _, window := range []int{1, 2} {
			for _, c := range []config{{}, {shared: true}, {shared: true, unfenced: true}} {
				c.lazy, c.xen, c.window = how.lazy, how.xen, window
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

// cell is what came of one step and side.
type cell struct{ played, hit, failed int }

// table collects what came of all of them.
type table struct {
	mu    sync.Mutex
	cells map[string]map[side]*cell
	count counters
	runs  int
}

// play plays one world and notes what came of it.
func (b *table) play(t *testing.T, c config, step string, s side, plan, later strike) {
	w, err := play(t, c, tableSeed, "", plan, later, tableStory)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.runs++
	b.count.add(w.count)
	if b.cells[step] == nil {
		b.cells[step] = map[side]*cell{}
	}
	if b.cells[step][s] == nil {
		b.cells[step][s] = &cell{}
	}
	b.cells[step][s].played++
	if w.struck && (later.side == nobody || w.later.side == nobody) {
		b.cells[step][s].hit++
	}
	if err != nil {
		b.cells[step][s].failed++
		t.Errorf("%v: %+v, %+v: %v", c, plan, later, err)
	}
}

func (b *table) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%-32s", "step")
	for _, s := range sides {
		fmt.Fprintf(&text, "%12v", s)
	}
	for _, step := range slices.Concat(before, after) {
		fmt.Fprintf(&text, "\n%-32s", step)
		for _, s := range sides {
			switch x := b.cells[step][s]; {
			case x == nil:
				fmt.Fprintf(&text, "%12s", "-")
			case x.failed > 0:
				fmt.Fprintf(&text, "%12s", fmt.Sprintf("%d/%d BAD", x.failed, x.played))
			default:
				fmt.Fprintf(&text, "%12s", fmt.Sprintf("%d/%d ok", x.hit, x.played))
			}
		}
	}
	return text.String()
}

// TestACrashAtEveryStep crosses every step with every side, store, way of
// rebuilding and window. What breaks after a takeover was asked for comes on top
// of a frozen owner.
func TestACrashAtEveryStep(t *testing.T) {
	b := &table{cells: map[string]map[side]*cell{}}
	kinds := configs()
	const group = 3 // the stores of one way of rebuilding and window
	t.Run("kinds", func(t *testing.T) {
		for i, c := range kinds {
			t.Run(c.String(), func(t *testing.T) {
				t.Parallel()
				b.kind(t, c, func(step, side int) bool {
					return !fewer || *all || (step+side)%(len(kinds)/group) == i/group
				})
			})
		}
	})
	t.Logf("%d worlds of %d kinds: %+v; how often it came to the crash:\n%v", b.runs, len(kinds), b.count, b)
	for step, row := range b.cells {
		for s, x := range row {
			if x.hit == 0 {
				t.Errorf("%v never happens at %q", s, step)
			}
		}
	}
}

// kind plays the worlds of one kind.
func (b *table) kind(t *testing.T, c config, wanted func(step, side int) bool) {
	dry, err := play(t, c, tableSeed, "", strike{}, strike{}, tableStory)
	if err != nil {
		t.Fatalf("no crash but the last: %v", err)
	}
	for i, step := range before {
		n := dry.seen[step]
		if n == 0 && happens(c, step) {
			t.Errorf("nobody comes to %q", step)
		}
		for k, s := range sides {
			if c.unfenced && s != ownerFreezes || !wanted(i, k) {
				continue // unfenced makes no difference to others
			}
			for _, nth := range times(n) {
				b.play(t, c, step, s, strike{step, nth, s}, strike{})
			}
		}
	}
	for i, step := range after {
		for k, s := range sides {
			if s == sessionDies || !happens(c, step) || !wanted(i, k) && step != stepEager && step != stepLazy {
				continue
			}
			for _, freeze := range []string{stepFlushWrite, stepFlushSync} {
				if freeze == stepFlushWrite || *all {
					b.play(t, c, step, s, strike{freeze, 1 + dry.seen[freeze]/2, ownerFreezes}, strike{step, 1, s})
				}
			}
		}
	}
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
