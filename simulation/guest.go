package simulation

import (
	"fmt"
	"time"

	"understudy/clock"
	"understudy/epoch"
)

// pages is how many pages a guest has: few, so that they are written often.
const pages = 16

// somePage is a warm one, mostly.
func (w *world) somePage() int {
	if w.chance(0.02) {
		return w.dice.IntN(pages)
	}
	return w.dice.IntN(warm)
}

// memory is a guest's memory: each page holds the number of the write that
// wrote it last.
type memory [pages]uint64

// bits is a set of pages.
type bits uint32

const everyPage bits = 1<<pages - 1

func (b bits) count() (n uint64) {
	for page := range pages {
		n += uint64(b >> page & 1)
	}
	return n
}

// warm is how many of them the guest's processor writes all the time; in the
// others stays what a disk has brought.
const warm = 12

// state is a moment in a guest's life: how many steps it has made, and on which
// branch. A takeover starts a branch from the checkpoint it goes on from.
type state struct{ branch, step int }

// branches are where each branch began. A life's first branch begins nowhere.
type branch struct {
	from state
	root bool
	life int
}

// within reports whether y goes on from x: x is on the way to y.
func (o *oracle) within(x, y state) bool {
	for y.branch != x.branch {
		b := o.branches[y.branch]
		if b.root {
			return false
		}
		y = b.from
	}
	return x.step <= y.step
}

// guest is a virtual machine on a host. It outlives the daemon.
type guest struct {
	w       *world
	h       *host
	memory  memory
	at      state
	dirty   bits
	running bool
	gone    bool // its process has ended
	off     bool // it powered itself off
	still   bool // since a daemon has left it
	fresh   bool // the log does not know of it yet
	frozen  time.Duration
	ticking bool
	since   time.Duration // it runs
	nic     []state       // frames that nobody has read yet

	disk     content     // as far as the guest knows it,
	known    bits        // which it does of these blocks
	barriers int         // flushes it has asked for
	open     []openWrite // what it has written and is not known to be durable, in order
	request  *request    // in flight
	missing  bits        // pages that a lazy rebuild has yet to fill
	filler   filler
	truth    memory // what they are
	damaged  bool   // some of them cannot be filled
}

// newGuest boots a guest: a new life.
func newGuest(h *host) *guest {
	o := &h.w.oracle
	o.lives++
	o.branches = append(o.branches, branch{root: true, life: o.lives})
	return &guest{w: h.w, h: h, at: state{branch: len(o.branches) - 1}, dirty: everyPage}
}

// continued makes a guest from a checkpoint.
func continued(h *host, m memory, at state) *guest {
	o := &h.w.oracle
	o.branches = append(o.branches, branch{from: at, life: o.branches[at.branch].life})
	return &guest{w: h.w, h: h, memory: m, at: state{branch: len(o.branches) - 1}, dirty: everyPage}
}

func (g *guest) resume() {
	if g.gone || g.off || g.running {
		return
	}
	g.running, g.still, g.since = true, false, g.w.now
	if !g.ticking {
		g.ticking = true
		g.w.after(g.w.between(0, guestTicks), g.tick)
	}
}

func (g *guest) pause() { g.running = false }

func (g *guest) kill() { g.running, g.gone = false, true }

// tick is one step of the guest: it writes some pages and says something about
// the step it has made.
func (g *guest) tick() {
	if !g.running {
		g.ticking = false
		return
	}
	g.w.after(g.w.between(guestTicks/2, guestTicks*3/2), g.tick)
	if g.w.now < g.frozen {
		return
	}
	g.at.step++
	for range 1 + g.w.dice.IntN(3) {
		g.write(g.w.somePage())
	}
	if g.missing != 0 && (!g.w.disk.slow && g.w.chance(0.4) || g.w.chance(0.02)) {
		g.fillOne()
	}
	if g.request == nil && g.w.chance(0.6) {
		g.ask()
	}
	g.submit()
	if !g.running {
		return // something struck
	}
	if g.w.chance(0.7) {
		g.nic = append(g.nic, g.at)
		if d := g.h.daemon; d != nil && d.guest == g {
			if !d.isFrozen() {
				d.gate.collect()
			}
		} else {
			g.nic = g.nic[:0] // nobody listens
		}
	}
	g.w.oracle.ran(g)
}

func (g *guest) write(page int) {
	if g.touch(page) != nil {
		return // it waits for the page
	}
	g.w.values++
	g.memory[page] = g.w.values
	g.dirty |= 1 << page
}

// frame is what a guest said, and when.
type frame struct {
	said  state
	epoch epoch.Number // it waits for; 0: the next one to be sealed
	free  bool
}

type gateMode uint8

const (
	gateHold gateMode = iota
	gatePass
	gateShut
)

// guard is how long before the end of the lease the last frame leaves.
const guard = 2 * time.Millisecond

// gate is package egress' gate, between a guest and the outside world.
type gate struct {
	d      *daemon
	mode   gateMode
	held   []frame
	sealed epoch.Number
	until  clock.Instant
}

// collect takes what the guest has said.
func (g *gate) collect() {
	if g.d.guest == nil {
		return
	}
	for _, s := range g.d.guest.nic {
		g.held = append(g.held, frame{said: s, free: g.mode == gatePass})
	}
	g.d.guest.nic = g.d.guest.nic[:0]
	g.flush()
}

func (g *gate) inTime() bool {
	return g.d.clock().Before(g.until.Add(-guard)) || g.d.w.breach == gateIgnoresLease && g.until != 0
}

func (g *gate) flush() {
	for g.mode != gateShut && len(g.held) > 0 && g.held[0].free && g.inTime() {
		f := g.held[0]
		g.held = g.held[1:]
		g.d.w.oracle.left(g, f)
	}
}

func (g *gate) seal(n epoch.Number) error {
	if n <= g.sealed {
		return fmt.Errorf("epoch %d is sealed already", g.sealed)
	}
	g.collect()
	g.sealed = n
	for i := range g.held {
		if !g.held[i].free && g.held[i].epoch == 0 {
			g.held[i].epoch = n
		}
	}
	return nil
}

func (g *gate) release(n epoch.Number) {
	for i := range g.held {
		if e := g.held[i].epoch; e != 0 && e <= n {
			g.held[i].free = true
		}
	}
	g.flush()
}

func (g *gate) enter(m gateMode) {
	g.mode, g.sealed = m, 0
	for i := range g.held {
		g.held[i].epoch = 0
		g.held[i].free = g.held[i].free || m == gatePass
	}
	g.flush()
}

func (g *gate) shut() { g.mode = gateShut }

func (g *gate) discard() {
	g.held = nil
	if g.d.guest != nil {
		g.d.guest.nic = nil
	}
	g.sealed = 0
}

func (g *gate) allow(until clock.Instant) {
	g.until = until
	g.flush()
}

// open reports whether a frame could leave now.
func (g *gate) open() bool { return g.mode != gateShut && g.inTime() }
