// Package crash lets two hosts, made of the real disks, index, encoder, decoder
// and rebuild table, protect a guest step by step, breaks one of them at a step,
// and compares what is left with an oracle.
//
//	gate     a host; every call of its stores waits for the world     gate_test.go
//	guest    memory, requests, what it must find                      guest_test.go
//	oracle   what the guest wrote, and what may follow from it        oracle_test.go
//	owner    capture, send, acknowledgements (package primary)        owner_test.go
//	backup   stage, fill, commit (package backup)                     backup_test.go
//	world    turns, crashes, what both sides do about them            world_test.go
//	takeover and what the guest finds after it                        takeover_test.go
//
// A run is one testing/synctest bubble, and one goroutine decides all.
package crash

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"understudy/disk/disktest"
	"understudy/epoch"
)

// The steps at which something can happen, in the order of an epoch's life.
const (
	stepWrite        = "write accepted"
	stepDiscard      = "discard accepted"
	stepZeroes       = "zeroes accepted"
	stepFlush        = "flush accepted"
	stepReadBegun    = "read begun"
	stepReadEnded    = "read completed"
	stepSeal         = "sealed"
	stepReported     = "flushed-through reported"
	stepCollect      = "dirty pages collected"
	stepCopy         = "pages copied"
	stepEncode       = "encoding begun"
	stepChunk        = "chunk sent"
	stepEnd          = "end sent"
	stepStage        = "staged"
	stepRoom         = "fill before an overwrite begun"
	stepFilledBefore = "filled before an overwrite"
	stepAckSent      = "acknowledgement sent"
	stepApply        = "pages applied"
	stepAdd          = "references added"
	stepCommit       = "writes committed"
	stepDropped      = "flushed writes dropped"
	stepAckReceived  = "acknowledgement received"
	stepRelease      = "released"
	stepFlushWrite   = "flush: write begun"
	stepFlushWritten = "flush: written"
	stepFlushSync    = "flush: sync begun"
	stepFlushSynced  = "flush: synced"
	stepFillBegun    = "background fill begun"
	stepFillEnded    = "background fill ended"
	stepCopyWrite    = "own copy: write begun"
	stepCopyWritten  = "own copy: written"
	stepCopySync     = "own copy: sync begun"
	stepCopySynced   = "own copy: synced"

	// After the owner was frozen:
	stepAsked      = "takeover asked"
	stepEager      = "filled for the takeover"
	stepLazy       = "activated lazily"
	stepActivated  = "disks activated"
	stepFirst      = "first write of the new owner"
	stepLate       = "late write of the old owner"
	stepReplay     = "replay: write begun"
	stepReplayed   = "replay: written"
	stepReplaySync = "replay: sync begun"
	stepReplaySafe = "replay: synced"
)

// side is what breaks.
type side uint8

const (
	nobody side = iota
	ownerDies
	backupDies
	sessionDies
	ownerFreezes // and its late writes land after the takeover
	daemonDies   // the owner's alone: the guest lives, and so does the journal
)

var sideNames = []string{"nobody", "A dies", "B dies", "session", "A frozen", "A's daemon"}

func (s side) String() string { return sideNames[s] }

// config is a kind of world.
type config struct {
	shared, unfenced, lazy bool
	xen                    bool // the guest is one of Xen's
	window                 int
}

func (c config) String() string {
	name := "replicated"
	if c.shared {
		name = "shared"
	}
	if c.unfenced {
		name = "unfenced"
	}
	if c.xen {
		name = "xen/" + name
	}
	if c.lazy {
		return fmt.Sprintf("%s/lazy/%d", name, c.window)
	}
	return fmt.Sprintf("%s/eager/%d", name, c.window)
}

// strike says what breaks, and when: at the nth time that a step is reached, or
// at the nth step of any kind.
type strike struct {
	step string
	nth  int
	side side
}

// world is one run.
type world struct {
	cfg     config
	broken  string // the rule that is not kept
	dice    *rand.Rand
	hosts   [2]*host
	owner   *owner
	backup  *standby
	history [disks]history
	truths  map[epoch.Number]*truth
	stamps  uint64

	inSync     bool // as the ownership log has it
	generation epoch.Generation
	writer     atomic.Int32 // host that may write to a shared disk

	actor   *host
	plan    strike
	later   strike // for after a freeze
	armed   bool
	taking  bool
	seen    map[string]int
	total   int
	struck  bool
	handled bool
	frozen  *host // the old owner
	copied  bool  // the backup's own copy has been whole once
	over    bool

	mu     sync.Mutex
	breach error

	count counters
}

// counters say that a run was worth it.
type counters struct {
	takeovers, references, copies, named, forced, epochs, lazyFills, lates uint64
}

func (c *counters) add(d counters) {
	c.takeovers += d.takeovers
	c.references += d.references
	c.copies += d.copies
	c.named += d.named
	c.forced += d.forced
	c.epochs += d.epochs
	c.lazyFills += d.lazyFills
	c.lates += d.lates
}

// violation is what the oracle throws, death what ends a host's part, ending
// what ends a story in which no host is left.
type violation struct{ err error }
type death struct{}
type ending struct{}

func (w *world) violated(format string, a ...any) { panic(violation{fmt.Errorf(format, a...)}) }

func (w *world) must(err error) {
	if err != nil {
		w.violated("%w", err)
	}
}

func (w *world) rest() { synctest.Wait() }
func (w *world) pass() { time.Sleep(10 * time.Millisecond) }

// play runs a story in a world of its own and returns what the oracle found.
func play(t *testing.T, cfg config, seed uint64, broken string, plan, later strike, story func(w *world)) (w *world, err error) {
	synctest.Test(t, func(t *testing.T) {
		w = &world{cfg: cfg, broken: broken, dice: rand.New(rand.NewPCG(seed, 1)), plan: plan, later: later, seen: map[string]int{}, truths: map[epoch.Number]*truth{}}
		defer func() {
			if p := recover(); p != nil {
				switch p := p.(type) {
				case violation:
					err = p.err
				case ending:
				default:
					panic(p)
				}
			}
			w.close()
		}()
		w.begin(t)
		story(w)
		w.check()
	})
	return w, err
}

// begin makes two hosts, one of which runs the guest, unprotected.
func (w *world) begin(t *testing.T) {
	for i := range w.hosts {
		w.hosts[i] = &host{w: w, id: i, name: string(rune('A' + i)), key: epoch.PrintKey(100 + i)}
		for d := range disks {
			if i == 1 && w.cfg.shared {
				w.hosts[i].media[d] = w.hosts[0].media[d]
				continue
			}
			w.hosts[i].media[d] = disktest.NewMedia(sectors, w.cfg.shared)
		}
	}
	for d := range disks {
		content := make([]byte, sectors*512)
		for s := 0; s < len(content); s += 512 {
			w.stamp(content[s : s+512])
		}
		w.hosts[0].media[d].Set(content)
		w.history[d] = history{base: content, all: true}
	}
	if w.plan.side == daemonDies || w.later.side == daemonDies {
		w.hosts[0].journal, w.hosts[1].journal = t.TempDir(), t.TempDir()
	}
	w.hosts[0].open()
	w.hosts[1].open()
	w.generation = 1
	w.owner = newOwner(w, w.hosts[0], newGuest(w, w.hosts[0]))
	w.owner.h.guest = w.owner.g
	w.own()
	w.owner.g.plug(true)
	w.owner.pass()
	for p := range epoch.GFN(dataPages) {
		w.owner.g.store(p, 0)
	}
	w.backup = &standby{w: w, h: w.hosts[1]}
}

// own is what a primary says to its disks first.
func (w *world) own() {
	h := w.owner.h
	w.writer.Store(int32(h.id))
	h.set.Own(w.generation)
	w.must(h.set.Allow(leaseEnd))
	w.rest()
}

func (w *world) close() {
	for _, h := range w.hosts {
		if h != nil {
			h.kill()
		}
	}
	if w.backup != nil {
		w.backup.end()
	}
	w.rest()
}

// begun is told of each call of a store before it takes effect.
func (w *world) begun(h *host, c *call) {
	if c.op == disktest.Read || h.gate.dead {
		return
	}
	switch {
	case w.cfg.shared && int32(h.id) != w.writer.Load() && h.clock.Now() < leaseEnd:
		w.found(fmt.Errorf("host %s, which is not the owner, begins a %v", h.name, c))
	case w.cfg.shared && h.clock.Now() >= leaseEnd:
		w.found(fmt.Errorf("host %s begins a %v after its lease", h.name, c))
	}
}

// landed looks at what a call has left on the real disk.
func (w *world) landed(st *store, c *call, n uint32) {
	h := st.g.h
	if !w.cfg.shared && int32(h.id) != w.writer.Load() {
		return // a backup's own copy
	}
	now := make([]byte, n*512)
	if err := st.Store.ReadAt(now, c.sector); err != nil {
		w.found(err)
		return
	}
	for s := c.sector; s < c.sector+uint64(n); s++ {
		if _, _, ok := w.history[c.disk].match(s, now[(s-c.sector)*512:][:512]); !ok {
			w.found(fmt.Errorf("a %v of host %s brings something to sector %d that no acknowledged epoch has", c, h.name, s))
			return
		}
	}
}

func (w *world) found(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.breach = errors.Join(w.breach, err)
}

func (w *world) check() {
	w.mu.Lock()
	err := w.breach
	w.mu.Unlock()
	w.must(err)
}

// record says what the ownership log says about the real disks: everything may
// reach them, or only what was acknowledged from here on.
func (w *world) record(alone bool) {
	for d := range w.history {
		h := &w.history[d]
		h.allowed, h.all = len(h.versions), alone
	}
}

func (w *world) committed(n epoch.Number) {
	w.count.epochs++
	for d := range w.history {
		w.history[d].allowed = w.truths[n].at[d]
	}
}

// truth notes the guest as it stands.
func (w *world) truth(n epoch.Number) *truth {
	g := w.owner.g
	g.settle()
	t := &truth{number: n, mem: bytes.Clone(g.want), cpu: g.cpu}
	for d := range disks {
		t.disk[d], t.at[d] = bytes.Clone(g.disk[d]), len(w.history[d].versions)
		t.inFlight[d] = string(g.h.fronts[d].AppendInFlight(nil))
	}
	if w.cfg.xen {
		t.open = slices.Clone(g.reads)
	}
	return t
}

// at is called at each step.
func (w *world) at(step string) {
	w.check()
	plan := &w.plan
	if w.taking {
		plan = &w.later
	}
	if !w.armed || plan.side == nobody {
		w.seen[step]++
		return
	}
	w.seen[step]++
	w.total++
	if plan.step == step && w.seen[step] >= plan.nth || plan.step == "" && w.total == plan.nth {
		side := plan.side
		if w.taking {
			*plan = strike{}
			w.strikeLate(side)
			return
		}
		if w.struck {
			return
		}
		w.struck, w.handled = true, false
		w.hit(side)
	}
}

// hit breaks a side. Whoever breaks in the middle of its own work never comes
// back to it.
func (w *world) hit(s side) {
	h := w.owner.h
	switch s {
	case sessionDies:
		if l := w.owner.link; l != nil {
			l.open = false
		}
		return
	case backupDies:
		h = w.backup.h
	}
	if w.actor == h {
		panic(death{})
	}
	w.fall(h)
}

// fall is the end, or the standstill, of a host.
func (w *world) fall(h *host) {
	if w.plan.side == ownerFreezes {
		w.frozen = h
		if w.broken == "a frozen owner goes on where it stopped" {
			return
		}
		h.clock.now.Store(int64(leaseEnd)) // it wakes up after its lease
		return
	}
	h.kill()
	if w.plan.side == backupDies {
		w.backup.end()
	}
	if w.plan.side == ownerDies || w.plan.side == backupDies && !w.cfg.shared {
		h.losePower()
	}
	if w.plan.side == ownerDies {
		w.checkDurable(h, true)
	}
}

// checkDurable looks at a host's disks after a loss of power.
func (w *world) checkDurable(h *host, barriers bool) {
	for d := range disks {
		if err := w.history[d].checkDurable(h.media[d].Durable(), barriers); err != nil {
			w.violated("disk %d of host %s after a loss of power: %w", d, h.name, err)
		}
	}
}

// as does a part of a host's work.
func (w *world) as(h *host, f func()) {
	defer func() {
		w.actor = nil
		if p := recover(); p != nil {
			if _, dead := p.(death); !dead {
				panic(p)
			}
			w.fall(h)
		}
	}()
	w.actor = h
	f()
}

// flushSome lets up to n calls of the owner's flushers take effect.
func (w *world) flushSome(n int) {
	w.calls(w.owner.h, n, stepFlushWrite, stepFlushWritten, stepFlushSync, stepFlushSynced)
}

func (w *world) calls(h *host, n int, writing, written, syncing, synced string) {
	w.rest()
	for range n {
		c := h.gate.first(changing...)
		if c == nil {
			return
		}
		before, after := writing, written
		if !c.changes() {
			before, after = syncing, synced
		}
		w.at(before)
		if !h.up || w.frozen == h {
			return
		}
		h.gate.give(c, goOn)
		w.at(after)
	}
}

// turn does one thing that can be done now.
func (w *world) turn() {
	o, b := w.owner, w.backup
	switch n := w.dice.IntN(100); {
	case n < 36:
		w.as(o.h, w.request)
	case n < 46:
		w.as(o.h, o.capture)
	case n < 56:
		w.as(o.h, o.send)
	case n < 72:
		if b.h.up {
			w.as(b.h, func() { b.receive() })
		}
	case n < 82:
		w.as(o.h, o.receive)
	case n < 92:
		w.as(o.h, func() { w.flushSome(1 + w.dice.IntN(2)) })
	case n < 95:
		if b.h.up && b.table != nil {
			w.as(b.h, b.fillOne)
		}
	default:
		if b.h.up && !w.cfg.shared {
			w.as(b.h, func() { w.calls(b.h, 1+w.dice.IntN(2), stepCopyWrite, stepCopyWritten, stepCopySync, stepCopySynced) })
		}
	}
	w.copied = w.copied || w.owner.mode == protected && b.h.up && b.h.set.Status().Writes == 0
	w.react()
	w.check()
}

// request is something the guest does. Few blocks and pages, so that things
// meet.
func (w *world) request() {
	g, p, d := w.owner.g, epoch.GFN(w.dice.IntN(dataPages-1)), w.dice.IntN(disks)
	sector := uint64(w.dice.IntN(5)) * 8
	if w.dice.IntN(2) == 0 {
		sector = uint64(w.dice.IntN(16)) * 8
	}
	switch n := w.dice.IntN(23); {
	case n < 4:
		g.store(p, w.dice.IntN(9))
	case n < 8:
		g.write(d, sector, 8, p)
	case n < 9:
		g.write(d, sector+uint64(w.dice.IntN(8)), 1+uint32(w.dice.IntN(12)), p)
	case n < 10: // a fresh page, written at once: it may travel as its own name
		g.store(p, 0)
		g.write(d, sector, 8, p)
	case n < 11:
		g.discard(d, sector+uint64(w.dice.IntN(8)), 1+uint32(w.dice.IntN(10)))
	case n < 12:
		g.zeroes(d, sector, 3)
	case n < 14:
		g.flush(d)
	case n < 20:
		g.read(d, sector, 8<<w.dice.IntN(2), p)
	case n < 21 && len(g.reads) < 2:
		g.beginRead(d, sector+8, 8, p)
	default:
		g.endRead()
	}
}

// connect opens a session.
func (w *world) connect() {
	o, b := w.owner, w.backup
	s := &session{open: true, generation: w.generation}
	at, err := b.greet(s, o.known, o.h.key)
	w.must(err)
	o.adopt(s, at)
	w.rest()
}

// protect brings a backup into sync from nothing.
func (w *world) protect() {
	o, b := w.owner, w.backup
	armed := w.armed
	w.armed = false
	o.g.flush(0)
	o.g.flush(1)
	o.h.drain()
	for d := range disks {
		if got := o.h.media[d].Durable(); !bytes.Equal(got, o.g.disk[d]) {
			w.violated("disk %d of the guest alone, all flushed: %s", d, differ(got, o.g.disk[d], 512))
		}
		w.history[d] = history{base: bytes.Clone(o.g.disk[d]), all: true}
	}
	w.truths, w.copied = map[epoch.Number]*truth{}, false
	w.connect()
	o.mode = syncing
	for round := 0; ; round++ {
		for o.compare() {
			for b.receive() {
			}
			o.receive()
			w.request()
		}
		if round > 3 {
			break
		}
		o.syncStep()
		w.request()
		o.send()
		for b.receive() {
		}
		o.receive()
		if w.dice.IntN(3) == 0 {
			b.fillOne()
		}
	}
	o.mode, o.firstWhole = entering, 0
	w.record(false)
	o.h.set.Hold()
	w.armed = armed
	for range 300 {
		if o.mode == protected || w.over || w.owner != o {
			return
		}
		w.turn()
	}
	if w.owner.mode != protected && !w.over {
		w.violated("not protected after 300 turns: mode %d, sealed %d, acknowledged %d, settled %v", o.mode, o.sealed, o.acked, o.h.set.Settled())
	}
}

// react is what the others do about a crash.
func (w *world) react() {
	if !w.struck || w.handled {
		return
	}
	w.handled = true
	o, b := w.owner, w.backup
	switch w.plan.side {
	case ownerDies, ownerFreezes:
		w.deliver()
		w.takeover()
	case sessionDies:
		o.disconnect()
		b.drop()
		w.connect()
		if o.mode == alone {
			w.protect()
		}
	case backupDies:
		w.backup.h.rebooted = true
		o.disconnect()
		w.inSync = false // recorded before anything is let out
		o.pass()
		for range 6 {
			w.request()
		}
		b.h.open()
		w.backup = &standby{w: w, h: b.h}
		w.protect()
	case daemonDies:
		w.deliver()
		b.drop()
		w.adoptGuest()
	}
}

// deliver lets the backup take some of what the owner has sent before it fell
// silent.
func (w *world) deliver() {
	for range w.dice.IntN(12) {
		w.as(w.backup.h, func() { w.backup.receive() })
	}
}

// adoptGuest is a restart of the owner's daemon: host.manager.recover, Adopt,
// and a primary that finds a backup in sync on record.
func (w *world) adoptGuest() {
	h, g := w.owner.h, w.owner.g
	reads := g.reads
	if !w.cfg.xen { // else its ring has them
		g.reads = nil
		g.store(3, 0) // the guest's CPUs went on
	}
	h.rebooted = w.broken == "the journal ends with the daemon"
	h.open()
	w.generation++
	w.owner = newOwner(w, h, g)
	w.own()
	h.set.Hold()
	for d := range disks {
		g.seeDisk(d, "after the daemon's restart")
	}
	w.inSync = false
	w.owner.pass()
	if w.cfg.xen {
		g.paused = false // it may have stood still when the daemon died
		g.plug(false)
		for len(g.reads) > 0 {
			g.endRead()
		}
		g.store(3, 0)
		reads = nil
	}
	for _, r := range reads { // the front end takes them up again
		g.read(r.disk, r.r.Sector, r.r.Sectors, r.r.Segments[0].Page)
	}
	for range 6 {
		w.request()
	}
	g.seeAll("after the daemon's restart")
	w.protect()
}
