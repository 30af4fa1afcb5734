package disk

import (
	"fmt"
	"time"

	"understudy/clock"
	"understudy/epoch"
)

// This file is the core of a Set: all that is decided about held writes. It has
// no lock, no clock, no goroutine, no I/O and no bytes; the Set around it tells it
// what has happened, under its lock, and does what it says.
//
//	events ──> facts ─┬─ next(lane, now) ──> action: what the flusher of a disk does next (plan.go)
//	                  └─ holds, passes, mayWrite, readable, settled …: what may be done now
//
// Every decision asks the facts anew, always in the same order, so that no rule
// depends on the order in which events came.

// core is the facts about all disks of a guest.
type core struct {
	unfenced bool          // SetConfig.Unfenced
	peerOff  bool          // see Set.PeerOff
	guard    time.Duration // SetConfig.Guard
	lanes    []*lane       // by disk
	log      *entries

	role       role
	mode       Mode
	owned      bool // own came: the stores are to be acquired
	heir       bool // own found a backup's disks, and whether activate follows is not known yet: nothing is begun
	quiet      bool // nothing is begun
	settling   bool // a standBy is under way: nothing is begun
	closed     bool
	watched    bool // somebody is told before a block is overwritten
	draining   int  // who waits for everything to be durable
	until      clock.Instant
	generation epoch.Generation
	seq        uint64 // of the last write
	released   uint64 // index: entries before it may reach the disk
	before     uint64 // index: entries before it are from before Hold
	sealed     uint64 // index: entries before it belong to a sealed epoch
	seals      []seal // ascending
	spare      []seal // to be used again
	last       epoch.Number
	pressed    bool   // pressure was reported since the last seal
	asOf       uint64 // index: a backup reads entries before it
}

// role says whose disks these are.
type role uint8

const (
	roleNone    role = iota // nobody has said yet: every request waits
	roleOwner               // the guest runs here
	roleStandBy             // the guest runs elsewhere
)

// seal says that the entries from..to belong to epoch n. The rest is the Set's
// cargo.
type seal struct {
	n        epoch.Number
	from, to uint64

	state  []byte
	writes []epoch.DiskWrite
	listed bool
}

// lane is the facts about one disk.
type lane struct {
	id       epoch.DiskID
	shared   bool
	readOnly bool

	pending  uint64 // entries that are not durable
	cursor   uint64 // index: entries of this disk before it are durable
	flushed  uint64 // seq of the last write that is durable
	barred   bool   // nothing was accepted since the last barrier, nor written straight
	direct   int    // changes on their way straight to the store
	landing  int    // reads on their way straight into guest memory
	unsynced bool   // the store has direct writes that are not durable
	acquired bool   // this host is the writer of the store …
	since    epoch.Generation
	failing  bool // the last job failed

	job      job           // what the flusher is at
	failures int           // in a row
	retry    clock.Instant // nothing is tried before
	unsure   bool          // the last sync failed: what was written before it may be lost
	plan     plan
}

// What may be done now.

// mayWrite reports whether a write to a disk's store may be begun at this moment:
// rule 12, and "nothing after the lease".
func (c *core) mayWrite(l *lane, now clock.Instant) bool {
	if c.closed || c.quiet || c.settling || c.heir || l.readOnly {
		return false
	}
	switch c.role {
	case roleStandBy:
		return !l.shared // our own copy, which no guest writes to
	case roleOwner:
		return l.acquired && l.since == c.generation && c.mode != ModeShut && now.Add(c.guard).Before(c.until)
	}
	return false
}

// wants reports whether this host is to become the writer of the store.
func (c *core) wants(l *lane) bool {
	if c.quiet || c.settling || l.readOnly || l.acquired && l.since == c.generation {
		return false
	}
	return c.role == roleOwner && c.owned
}

// holds reports whether changes are accepted into the held log now.
func (c *core) holds(l *lane) bool {
	if c.closed || c.role != roleOwner || c.heir || c.quiet || c.settling || l.readOnly {
		return false
	}
	return c.mode == ModeHold || c.mode == ModePass && c.lockless() && l.shared && !l.acquired
}

// passes reports whether the guest is not protected, and nothing that it wrote
// when it was is still on its way: a change may go straight to the store once
// mayWrite says so, too.
func (c *core) passes(l *lane) bool {
	return !c.closed && c.mode == ModePass && l.pending == 0 && !c.holds(l)
}

// readable reports whether the guest may read the disk now.
func (c *core) readable(l *lane) bool {
	return !c.closed && c.role == roleOwner && !c.heir && !c.quiet && !c.settling && (l.acquired || c.lockless() || l.readOnly)
}

// troubled reports whether a disk refuses what the guest was already told of: no
// change is taken then (rule 14).
func (c *core) troubled() bool {
	for _, l := range c.lanes {
		if l.failing {
			return true
		}
	}
	return false
}

// busy reports whether something is on its way to a store.
func (c *core) busy() bool {
	for _, l := range c.lanes {
		if l.job != jobNone || l.direct > 0 {
			return true
		}
	}
	return false
}

// settled reports whether nothing from before Hold is on its way, and all of it
// is durable: an epoch may be sealed.
func (c *core) settled() bool {
	for _, l := range c.lanes {
		if l.direct > 0 || l.unsynced || l.landing > 0 {
			return false
		}
	}
	return c.log.first >= min(c.before, c.log.next)
}

// drained reports whether everything released is durable and nothing is on its
// way.
func (c *core) drained() bool {
	return c.log.first >= c.released && !c.busy() && c.settled()
}

// lockless reports whether the guest runs before the locks are got.
func (c *core) lockless() bool { return c.unfenced || c.peerOff }

// fenced reports whether no other host can write to the disk any more, or nobody
// has to wait for that.
func (c *core) fenced(l *lane) bool {
	return !c.owned || c.lockless() || !l.shared || l.readOnly || l.acquired
}

// drainsItself reports whether the oldest entry goes without the peer's help: it
// is kept for our own copy of a disk.
func (c *core) drainsItself() bool {
	return c.log.first < c.log.next && !c.lanes[c.log.at(c.log.first).disk].shared
}

// hasRoom reports whether a backup may take bytes more now. It need not wait where
// waiting is of no use.
func (c *core) hasRoom(bytes, limit uint64) bool {
	return c.log.first == c.log.next || c.log.used+min(bytes, limit) <= limit || !c.drainsItself()
}

// Whose disks these are.

// recovered: the log has what a former process held in generation g. It does not
// tell of direct writes.
func (c *core) recovered(g epoch.Generation) {
	for _, l := range c.lanes {
		l.unsynced = !l.readOnly
		// What was given a number and is not here any more is durable.
		if l.flushed = c.seq; l.pending > 0 {
			l.flushed = c.log.at(l.cursor).seq - 1
		}
	}
	c.released = max(c.released, c.log.first)
	c.sealed, c.before = c.released, c.released
	c.generation = g
}

// own: this host owns the guest in generation g.
func (c *core) own(g epoch.Generation) {
	if c.role == roleStandBy {
		c.heir = true
	}
	c.role, c.owned, c.quiet, c.generation = roleOwner, true, false, g
}

// standBy: the guest runs elsewhere. Nothing is begun before stoodBy.
func (c *core) standBy() {
	c.settling = true
	c.role, c.mode, c.owned, c.heir, c.until = roleStandBy, ModeHold, false, false, 0
}

// stoodBy: nothing is on its way any more, and nothing that was kept counts; it
// has been cut away.
func (c *core) stoodBy() {
	c.dropSeals()
	c.seq = 0
	c.quiet, c.settling = false, false
	c.asOf = c.log.next
	for _, l := range c.lanes {
		l.flushed, l.unsynced, l.failing, l.failures, l.retry = 0, false, false, 0, 0
	}
}

// activate makes a backup's disks an owner's, whose guest goes on from the last
// commit, and reports whether they were a backup's.
func (c *core) activate() bool {
	if c.role != roleStandBy && !c.heir {
		return false
	}
	c.role, c.mode, c.owned, c.quiet, c.heir = roleOwner, ModeHold, c.heir, false, false
	c.asOf, c.before = c.log.next, c.log.next
	c.releaseAll()
	return true
}

// disinherit makes a backup's disks those of a guest that is started anew.
func (c *core) disinherit() {
	c.heir, c.asOf = false, ^uint64(0)
	c.releaseAll()
}

// quiesce: nothing is begun, and the disks are let go.
func (c *core) quiesce() { c.quiet, c.owned = true, false }

// watch: whether somebody is told before a block is overwritten.
func (c *core) watch(on bool) { c.watched = on }

// drain: more, or fewer, wait for everything to be durable.
func (c *core) drain(more int) { c.draining += more }

// close: nothing is begun any more, for ever.
func (c *core) close() { c.closed = true }

// letGo: this host is not the writer of a store any more.
func (c *core) letGo(l *lane) { l.acquired = false }

// The epochs.

// enter: the mode is m from now on. Whatever was sealed is not; with ModePass
// everything is released.
func (c *core) enter(m Mode) {
	c.mode = m
	c.dropSeals()
	c.pressed = false
	if m == ModePass {
		c.releaseAll()
	} else {
		c.sealed, c.before = c.released, c.released
	}
}

func (c *core) dropSeals() {
	c.spare = append(c.spare, c.seals...)
	c.seals, c.last = c.seals[:0], 0
}

// shut: nothing reaches a disk any more.
func (c *core) shut() {
	if c.role == roleOwner {
		c.mode = ModeShut
	}
}

// allow: the disks may be written until then.
func (c *core) allow(until clock.Instant) { c.until = until }

// maySeal says why epoch n cannot be sealed now.
func (c *core) maySeal(n epoch.Number) error {
	switch {
	case c.closed:
		return ErrClosed
	case c.role != roleOwner:
		return fmt.Errorf("sealing the writes of epoch %d: the guest does not run on this host", n)
	case n <= c.last:
		return fmt.Errorf("sealing the writes of epoch %d: epoch %d is sealed already", n, c.last)
	case c.mode == ModeHold && !c.settled():
		return fmt.Errorf("sealing the writes of epoch %d: writes from before Hold are still on their way", n)
	}
	return nil
}

// spareSeal returns the cargo of an epoch that is over, if there is one.
func (c *core) spareSeal() (free seal) {
	if k := len(c.spare); k > 0 {
		free, c.spare = c.spare[k-1], c.spare[:k-1]
	}
	return free
}

// seal: every write accepted so far belongs to epoch n or to one before it. free
// has the cargo.
func (c *core) seal(n epoch.Number, free seal) {
	free.n, free.from, free.to, free.listed = n, c.sealed, c.log.next, false
	c.seals = append(c.seals, free)
	c.last, c.sealed, c.pressed = n, c.log.next, false
}

// release: the epochs up to through are acknowledged.
func (c *core) release(through epoch.Number) {
	k := 0
	for k < len(c.seals) && c.seals[k].n <= through {
		c.releaseTo(c.seals[k].to)
		c.spare = append(c.spare, c.seals[k])
		k++
	}
	c.seals = append(c.seals[:0], c.seals[k:]...)
}

// commit: a backup has an epoch's writes.
func (c *core) commit() {
	c.asOf = c.log.next
	c.releaseAll()
}

// releaseTo lets the entries before index reach the disk.
func (c *core) releaseTo(index uint64) {
	if !c.closed {
		c.released = max(c.released, index)
	}
}

func (c *core) releaseAll() {
	c.releaseTo(c.log.next)
	c.sealed = c.log.next
}

// The held log.

// take: an entry was added.
func (c *core) take(i uint64, e *entry) {
	l := c.lanes[e.disk]
	if l.pending == 0 {
		l.cursor = i
	}
	l.pending++
	l.barred = e.kind == epoch.WriteBarrier
}

// number is the next write's seq.
func (c *core) number() uint64 {
	c.seq++
	return c.seq
}

// numbered: a write came with its seq.
func (c *core) numbered(seq uint64) { c.seq = max(c.seq, seq) }

// durable: an entry has been flushed.
func (c *core) durable(l *lane, i uint64) {
	l.flushed = max(l.flushed, c.log.at(i).seq)
	l.cursor = i + 1
}

// dropped: an entry is durable somewhere, here or at the peer.
func (c *core) dropped(e *entry) { c.lanes[e.disk].pending-- }

// forgotten: the log was cut short. What is left is taken anew.
func (c *core) forgotten() {
	c.released, c.sealed = min(c.released, c.log.next), min(c.sealed, c.log.next)
	for _, l := range c.lanes {
		l.pending, l.cursor, l.barred = 0, c.log.next, false
	}
	for i := c.log.first; i < c.log.next; i++ {
		if e := c.log.at(i); !e.done {
			c.take(i, e)
		}
	}
}

// press reports whether held writes have just come near their limit: at half of
// it, once per sealed epoch.
func (c *core) press(limit uint64) bool {
	if c.log.used <= limit/2 || c.pressed {
		return false
	}
	c.pressed = true
	return true
}

// What goes past the held log.

// begin: a change, or a flush, goes straight to a store.
func (c *core) begin(l *lane, flush bool) {
	l.direct++
	if !flush {
		l.unsynced, l.barred = true, false
	}
}

// land: a read straight into guest memory is under way.
func (c *core) land(l *lane) { l.landing++ }

// landed: it is over. Reported is whether it was the last.
func (c *core) landed(l *lane) bool {
	l.landing--
	return l.landing == 0
}

// end: it is over. Reported is whether the flusher may have something to do.
func (c *core) end(l *lane, flush, ok bool) bool {
	l.direct--
	if l.direct > 0 {
		return false
	}
	if flush && ok {
		l.unsynced = false
	}
	return c.mode != ModePass || c.draining > 0 || c.quiet
}
