// Package simulation runs the two cores (primary.Core, backup.Core) and the
// ownership log (ownership.Apply) through seeded stories of faults, under a
// fake clock, and checks the guarantees of DESIGN.md after every event.
//
//	world     the clock, the queue of events, the dice            world.go
//	ledger    the ownership log, its leader and the leases        ledger.go
//	session   what two daemons say to each other                  session.go
//	hostile   what nobody has said like that                      hostile.go
//	guest     pages, frames, the gate                             guest.go
//	primary,  the shells around the two cores, as thin as the     primary.go
//	backup    real ones                                           backup.go, image.go
//	daemon    what package host does: from role to role           daemon.go
//	handover  a daemon that ends in good order, and the next      handover.go
//	steps     what happens, and what can go wrong at it           steps.go, cells.go
//	faults    what goes wrong, and when                           faults.go, aim.go
//	oracle    what must hold, whatever goes wrong                 oracle.go, promises.go
//	bound     how much may happen at one instant                  bound.go
//	run       many seeds, their sum                               run.go
//	teeth     the rules broken one at a time                      teeth.go
//
// A seed is a whole story: `understudy simulate --seed N --story` plays it
// again, exactly, and prints it.
package simulation

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// world is one run: everything in it happens on one goroutine.
type world struct {
	seed   uint64
	dice   *rand.Rand
	now    time.Duration
	queue  []event // a heap by (at, seq)
	seq    uint64
	breach breach
	busy   busy

	tell  bool // write the story down
	story strings.Builder

	hosts   [2]*host
	disk    diskKind
	ledger  *ledger
	blocked [2][2]bool // from, to: nothing gets through
	faults  faults
	twisted twist    // of the step that is being made
	upgrade *leaving // the last one that was begun
	cells   Cells
	oracle  oracle

	values    uint64 // of pages: each write makes a new one
	brought   uint64 // the last of those that the disks held at first
	positions uint64 // of image histories
	images    map[[16]byte]*image
	past      []sent // some epochs that were sent
}

type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

// violation is what the oracle throws.
type violation struct{ text string }

func (w *world) violated(format string, a ...any) {
	panic(violation{fmt.Sprintf(format, a...)})
}

func (w *world) say(who, format string, a ...any) {
	if w.tell {
		fmt.Fprintf(&w.story, "%10.3fms %-2s ", float64(w.now)/1e6, who)
		fmt.Fprintf(&w.story, format+"\n", a...)
	}
}

// chance is true with probability p.
func (w *world) chance(p float64) bool { return p > 0 && w.dice.Float64() < p }

// between draws a duration.
func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.dice.Int64N(int64(hi-lo)+1))
}

// after lets do happen d from now.
func (w *world) after(d time.Duration, do func()) {
	w.seq++
	w.queue = append(w.queue, event{w.now + max(d, 0), w.seq, do})
	for i := len(w.queue) - 1; i > 0; {
		up := (i - 1) / 2
		if !w.sooner(i, up) {
			break
		}
		w.queue[i], w.queue[up] = w.queue[up], w.queue[i]
		i = up
	}
}

func (w *world) sooner(i, j int) bool {
	a, b := &w.queue[i], &w.queue[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

// next takes the next event out of the queue and lets it happen.
func (w *world) next() {
	ev := w.queue[0]
	last := len(w.queue) - 1
	w.queue[0] = w.queue[last]
	w.queue[last] = event{}
	w.queue = w.queue[:last]
	for i := 0; ; {
		l := 2*i + 1
		if l >= last {
			break
		}
		if l+1 < last && w.sooner(l+1, l) {
			l++
		}
		if !w.sooner(l, i) {
			break
		}
		w.queue[i], w.queue[l] = w.queue[l], w.queue[i]
		i = l
	}
	w.now = ev.at
	w.happens()
	ev.do()
	w.oracle.after(w)
}

// result is what one run came to.
type result struct {
	failed    string // "" if every check held
	story     string
	events    int
	fakeTime  time.Duration
	takeovers int
	failbacks int
	frames    int
	commits   int
	visits    map[string]int
	cells     Cells
}

const (
	lease      = 300 * time.Millisecond
	faultTime  = 4 * time.Second  // faults happen in the first part, mostly,
	recovery   = 45 * time.Second // and this long after them all must be well
	wellFor    = 300 * time.Millisecond
	maxEvents  = 400_000
	guestTicks = 4 * time.Millisecond
)

// play runs one seed to its end.
func play(seed uint64, b breach, tell bool) (res result) {
	w := &world{seed: seed, dice: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), breach: b, tell: tell,
		images: map[[16]byte]*image{}, twisted: noTwist}
	defer func() {
		res.fakeTime, res.story, res.cells = w.now, w.story.String(), w.cells
		res.takeovers, res.failbacks = w.oracle.takeovers, w.oracle.failbacks
		res.frames, res.commits, res.visits = w.oracle.frames, w.oracle.commits, w.oracle.visits
		if r := recover(); r != nil {
			v, ok := r.(violation)
			if !ok {
				if !tell {
					v.text = fmt.Sprintf("panic: %v", r)
				} else {
					panic(fmt.Sprintf("%s\n%v", w.story.String(), r))
				}
			}
			res.failed = fmt.Sprintf("at %v: %s", w.now, v.text)
		}
	}()
	w.oracle.visits = map[string]int{}
	w.ledger = newLedger(w)
	w.disk = w.drawDisk()
	if c, aims := w.aimOf(seed); aims {
		c.suits(&w.disk)
	}
	w.say("", "the disk: %+v", w.disk)
	for i, name := range []string{"a", "b"} {
		w.hosts[i] = newHost(w, i, name)
	}
	w.brought = w.values
	defer w.hosts[0].free()
	defer w.hosts[1].free()
	w.hosts[0].peer, w.hosts[1].peer = w.hosts[1], w.hosts[0]
	w.ledger.elect(w.between(0, 50*time.Millisecond))
	for _, h := range w.hosts {
		h.boot()
	}
	w.faults.init(w)
	var well time.Duration // since when all is well after the faults
	for w.now < w.faults.ends+recovery {
		if res.events++; res.events > maxEvents {
			w.violated("no end after %d events", maxEvents)
		}
		w.next()
		switch {
		case w.faults.on || !w.allWell():
			well = 0
		case well == 0:
			well = w.now
		case w.now > well+wellFor:
			return res
		}
	}
	w.violated("the faults ended at %v, and %v later the guest is not protected: %s", w.faults.ends, recovery, w.standing())
	return res
}

// allWell: the guest runs, is protected, and what it says leaves.
func (w *world) allWell() bool {
	for _, h := range w.hosts {
		if d := h.daemon; d != nil && d.primary != nil && d.primary.protected() &&
			w.ledger.state.InSync && w.oracle.lastLeft > w.now-200*time.Millisecond {
			return true
		}
	}
	return false
}

// standing describes the world, for the report of a failure.
func (w *world) standing() string {
	s := fmt.Sprintf("log %+v", w.ledger.state)
	for _, h := range w.hosts {
		s += fmt.Sprintf("; %s: ", h.name)
		switch d := h.daemon; {
		case d == nil:
			s += "down"
		case d.primary != nil:
			s += fmt.Sprintf("%s %v", d.role, d.primary.core.Mode())
		default:
			s += d.role
		}
		if h.guest != nil {
			s += fmt.Sprintf(" guest running=%v gone=%v off=%v", h.guest.running, h.guest.gone, h.guest.off)
		}
	}
	return s
}
