// Package primary is the side that runs the guest. This file is its pure core:
// events in (events.go), typed actions out, no clock, no goroutine, no I/O. The
// shell around it is in primary.go.
//
// The core keeps facts (what the log says, until when the lease holds, what is
// in flight; absorb.go) and after every event asks, in a fixed order, what the
// facts now demand (decide). So no rule depends on the order in which events arrived.
//
//	starting: the log does not say yet that the guest runs here; the gate is shut
//
//	         LinkUp           few pages left        InSync applied
//	alone ──────────> syncing ──────────────> entering ──────────> protected
//	  ^                  │ LinkDown               │                    │
//	  │<─────────────────┘                        │ link lost, no ack, │ mismatch
//	  │                                           v                    v
//	  └────────────────── OutOfSync applied ── detaching <─────────────┘
//
// While alone or syncing the gate passes frames, because the log says that the
// guest runs unprotected. In every other mode a frame waits for its epoch. A
// guest whose protection the operator has paused or given up is alone, and
// stays so: the command that says so in the log is an OutOfSync as well.
package primary

import (
	"fmt"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

// Mode is where the guest's protection stands.
type Mode uint8

const (
	// ModeAlone: unprotected, and the log says so.
	ModeAlone Mode = iota + 1
	// ModeSyncing: unprotected; the backup's image is being filled.
	ModeSyncing
	// ModeEntering: full output commit; InSync is not known to be recorded.
	ModeEntering
	// ModeProtected: full output commit; the log names the backup in sync.
	ModeProtected
	// ModeDetaching: full output commit, the backup is lost; nothing more is
	// released until the log has recorded it as out of sync.
	ModeDetaching
	// ModeLeaving: a last epoch, then surrender or stop.
	ModeLeaving
	// ModeYielded: another host owns the guest or is taking it over; the guest
	// here stands still behind a shut gate.
	ModeYielded
	// ModeEnded: over.
	ModeEnded
)

var modeNames = [...]string{ModeAlone: "alone", ModeSyncing: "syncing", ModeEntering: "entering",
	ModeProtected: "protected", ModeDetaching: "detaching", ModeLeaving: "leaving", ModeYielded: "yielded", ModeEnded: "ended"}

func (m Mode) String() string {
	if int(m) < len(modeNames) && modeNames[m] != "" {
		return modeNames[m]
	}
	return "starting"
}

// MarshalText encodes a mode by its name.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (m *Mode) UnmarshalText(text []byte) error {
	for i, name := range modeNames {
		if name == string(text) || i == 0 && string(text) == "starting" {
			*m = Mode(i)
			return nil
		}
	}
	return fmt.Errorf("mode %q is not known", text)
}

// commits reports whether output waits for its epoch in this mode.
func (m Mode) commits() bool { return m >= ModeEntering }

// holds reports whether the gate is in full output commit: it lets out what is
// released, and is not shut for somebody else to take the guest over.
func (c *Core) holds() bool {
	return c.mode == ModeEntering || c.mode == ModeProtected || c.mode == ModeDetaching
}

// Core is the primary's decision maker. It is not safe for concurrent use.
type Core struct {
	cfg Config
	now clock.Instant
	out []Action

	mode       Mode
	since      clock.Instant // when mode was entered
	log        ownership.Guest
	generation epoch.Generation
	leaseUntil clock.Instant

	begun     bool          // the first Step has been taken
	continues bool          // Continue was called, and the log agreed
	running   bool          // what the shell was last told
	grace     clock.Instant // until when a guest that was taken over running may wait for its first lease
	guestOff  bool          // the guest powered itself off
	guestErr  bool          // the guest's process is gone
	still     bool          // it stopped for good in the pause of its save

	linked     bool
	connecting bool
	connectAt  clock.Instant
	peer       ownership.HostID
	image      epoch.Incarnation
	linkLost   clock.Instant // when the link went down, while it is
	deserted   bool          // nobody listens at the backup: its daemon has died, and the image with it

	sealed, acked epoch.Number
	sealedAt      [maxWindow]clock.Instant // of epoch n at n % maxWindow
	capturing     bool                     // one was asked for: Captured or CaptureFailed will follow
	unseal        bool                     // a capture that failed may have sealed output
	firstWhole    epoch.Number             // first checkpoint of this entering; 0: none yet
	syncRounds    int
	bulk          epoch.Number  // the last sync step that sends more than SyncEnough pages
	entered       clock.Instant // when output was held for the first checkpoint, last
	remaining     uint64        // pages the last sync step left
	comparing     bool          // the backup's copies of the disks are not all compared yet
	epochAt       clock.Instant
	againAt       clock.Instant // a capture that failed or was postponed is not tried again before
	pace          pace
	heldFull      bool
	owed          clock.Instant // since when output waits, over however many sessions; 0: none does
	silentAt      clock.Instant // when a backup was last given up because it waited too long

	proposing   bool
	retry       *ownership.Command // outcome unknown: asked again with the same ID
	retryAt     clock.Instant
	inSyncMaybe bool // an InSync of ours may be, or may become, applied

	leave      Request
	bid        bool         // the backup was asked for patience, and has not answered
	patient    bool         // it has
	final      epoch.Number // the last epoch of ModeLeaving; 0: not captured yet
	reclaimAt  clock.Instant
	takeBackAt clock.Instant // 0: the log does not say that another is taking it over
	mismatched bool
	stalled    bool          // a backup that would stop the guest again and again
	failing    clock.Instant // since when no capture succeeds; 0: the last one did
}

// maxWindow bounds Config.Window; see Core.sealedAt.
const maxWindow = 16

// NewCore returns the core of a primary whose guest stands as the log says in
// state. running tells whether the guest runs already (after a takeover).
func NewCore(cfg Config, state ownership.Guest, running bool) *Core {
	return &Core{cfg: cfg, log: state, generation: state.Generation, running: running, pace: pace{cfg: cfg}}
}

// Continue makes the core that of a guest which a former process of this host
// left standing still (OutcomeHandedOver), protected, with everything up to
// left.At acknowledged. It is called before the first Step. It returns false if
// the log says otherwise by now, or nothing can be continued with these settings:
// the guest then is one that was found here.
func (c *Core) Continue(left Left) bool {
	b, at := c.log.Backup, left.At
	if c.begun || !left.Protected() || left.Generation != c.generation || left.PrintKey != c.cfg.PrintKey ||
		c.log.Owner != c.cfg.Self || c.log.Phase != ownership.PhaseActive || c.log.Desired != ownership.Running ||
		!c.log.InSync || b.Image != at.Image || at.Number < b.Epoch {
		return false
	}
	c.peer, c.image = b.Host, at.Image
	c.sealed, c.acked, c.firstWhole = at.Number, at.Number, b.Epoch
	c.continues = true
	return true
}

// Mode returns where protection stands.
func (c *Core) Mode() Mode { return c.mode }

// Spoilt reports whether the backup's image is known to differ: no session may
// continue from it.
func (c *Core) Spoilt() bool { return c.mismatched }

// Step takes one event and returns what must happen now. The slice is valid
// until the next call.
func (c *Core) Step(now clock.Instant, ev Event) []Action {
	c.now, c.out = now, c.out[:0]
	if c.mode == ModeEnded {
		return nil
	}
	if !c.begun {
		c.begun = true
		if c.running {
			c.grace = now.Add(c.cfg.Lease)
		}
	}
	c.absorb(ev)
	for c.mode != ModeEnded {
		mode, actions := c.mode, len(c.out)
		c.decide()
		if c.mode == mode && len(c.out) == actions {
			break // the facts demand nothing more
		}
	}
	return c.out
}

// decide asks what the facts demand, the most urgent first.
func (c *Core) decide() {
	switch {
	case !c.owns():
		c.decideYield()
		return
	case c.log.Desired == ownership.Stopped:
		c.decideStopped()
		return
	}
	c.decideRun()
	if c.log.Fenced == c.cfg.Self && !c.running && !c.now.Before(c.leaseUntil) {
		// Said to be off, and it is not: it gets no lease before it says so. It
		// has none any more that somebody did not wait for, and runs nothing.
		c.propose(ownership.Unfence, ownership.Backup{})
		return
	}
	if c.guestErr {
		c.decideGuestGone()
		return
	}
	switch c.mode {
	case 0:
		switch {
		case c.continues:
			// The backup is patient: a new process takes longer to its first session
			// than an old one to its next.
			c.linkLost = c.now.Add(c.cfg.DetachAfter)
			c.enter(ModeProtected)
			c.emit(Hold{})
		case c.log.Phase == ownership.PhaseActivating:
			// Until the log knows that the guest runs here, a crash here gives
			// it back to its former owner: nothing may leave before.
		case c.log.InSync:
			// The log names a backup of an earlier time: it must not be able to
			// take over from a guest that goes on alone.
			c.enter(ModeDetaching)
			c.emit(Hold{})
		default:
			c.enter(ModeAlone)
		}
	case ModeAlone:
		switch {
		case c.linked && !c.wanted(): // one that was being opened
			c.drop(c.unwanted())
		case c.linked:
			c.mismatched = false
			c.enter(ModeSyncing)
		}
	case ModeSyncing:
		switch {
		case !c.wanted():
			c.drop(c.unwanted())
			c.enter(ModeAlone)
		case c.givenUp():
			c.drop("the guest cannot be captured")
			c.enter(ModeAlone)
		case c.converged():
			c.enter(ModeEntering)
		}
	case ModeEntering:
		c.decideEntering()
	case ModeProtected:
		switch {
		case !c.log.InSync: // the operator says so, or the backup that its image is gone
			if c.linked {
				c.drop(c.outOfSync())
			}
			c.enter(ModeAlone)
		case c.lost():
			c.enter(ModeDetaching)
		}
	case ModeDetaching:
		c.proposeOutOfSync()
	}
	c.decideUnseal()
	c.decideLeave()
	c.decideConnect()
	c.decideEpoch()
}

// decideUnseal holds anew what a failed capture has sealed, before the next one.
// Hold does that to every epoch that is not released, and the sender reads what
// belongs to one in flight: those are waited for. If the session is lost with them,
// the next welcome says which of them the backup has, and the rest is held anew then.
func (c *Core) decideUnseal() {
	switch {
	case !c.unseal:
	case !c.holds():
		c.unseal = false
	case c.linked && c.acked >= c.sealed:
		c.unseal = false
		c.emit(Hold{})
	}
}

// owns reports whether the log lets this primary act for the guest. A new
// generation of our own (Return, Reclaim) is taken on here.
func (c *Core) owns() bool {
	if c.log.Owner != c.cfg.Self {
		return false
	}
	if c.log.Phase == ownership.PhaseSurrendered {
		return false
	}
	if c.log.Generation != c.generation {
		c.generation, c.leaseUntil = c.log.Generation, 0
		c.emit(UseGeneration{c.generation})
		c.inSyncMaybe = false
		c.leave, c.final, c.takeBackAt = 0, 0, 0
		c.bid, c.patient = false, false
		if c.guestOff || c.still {
			c.leave = RequestStop
		}
		if c.linked {
			c.drop("its generation is over")
		}
		if c.mode != 0 {
			// Given back, maybe before we knew that it was taken: the log names
			// no backup in sync, whatever this mode says.
			c.enter(ModeAlone)
		}
	}
	return true
}

// decideRun lets the guest run exactly while the lease holds and nothing else
// forbids it.
func (c *Core) decideRun() {
	// A guest just taken over runs behind a gate without a lease, which lets
	// nothing out; pausing it until the first renewal would only cost time.
	leased := c.leaseHolds() || c.leaseUntil == 0 && c.now.Before(c.grace)
	want := leased && !c.guestOff && !c.guestErr && !c.still && c.final == 0
	switch {
	case want && !c.running:
		c.running = true
		c.emit(ResumeGuest{})
	case !want && c.running && !leased:
		c.stop("the lease ran out")
	}
}

func (c *Core) stop(why string) {
	if c.running {
		c.running = false
		if !c.guestErr {
			c.emit(PauseGuest{why})
		}
	}
}

// decideGuestGone: the hypervisor died under a live daemon. What was
// acknowledged has left or may leave; the rest never happened.
func (c *Core) decideGuestGone() {
	c.running, c.leave = false, 0
	switch {
	case c.log.InSync && !c.mismatched:
		if c.mode != ModeLeaving {
			c.enter(ModeLeaving)
			c.emit(Shut{})
		}
		c.surrender(c.acked)
	case c.log.Phase == ownership.PhaseActivating && c.log.Previous != "":
		// Nothing of it has left, and its former owner has kept it (RULES 10).
		c.propose(ownership.Return, ownership.Backup{})
	case c.log.InSync || c.inSyncMaybe: // and nobody may go on from that image
		c.proposeOutOfSync()
	default:
		c.emit(Shut{})
		c.end(OutcomeLost)
	}
}

// converged reports whether what is left of the initial synchronisation is
// small enough for a pause, or will not get smaller. Output, which is held from the
// first checkpoint on, is not to wait for the bulk of it as well.
func (c *Core) converged() bool {
	switch {
	case c.syncRounds == 0, !c.linked, c.comparing:
		return false
	case c.syncRounds > c.cfg.SyncRounds:
		return true
	}
	return c.remaining <= c.cfg.SyncEnough && c.acked >= c.bulk
}

// decideEntering: record the backup as in sync once it holds a whole
// checkpoint; output commit is in force since the mode was entered (RULES 1).
func (c *Core) decideEntering() {
	if c.log.InSync && c.log.Backup.Image == c.image && c.linked {
		c.enter(ModeProtected)
		return
	}
	if c.lost() {
		switch {
		case c.inSyncMaybe || c.log.InSync:
			c.enter(ModeDetaching)
			return
		case c.linked && !c.wanted():
			c.drop(c.unwanted())
		case c.linked: // a mismatch: its image is not to be continued from
			c.drop("the backup's image is given up")
		}
		c.enter(ModeAlone) // the log never said otherwise
		return
	}
	if c.linked && c.firstWhole != 0 && c.acked >= c.firstWhole {
		c.inSyncMaybe = true
		c.propose(ownership.InSync, ownership.Backup{Host: c.peer, Image: c.image, Epoch: c.acked})
	}
}

// wanted reports whether the operator wants the guest protected.
func (c *Core) wanted() bool { return c.log.Protection == ownership.ProtectionOn }

// unwanted says why a session ends whose guest is not to be protected.
func (c *Core) unwanted() string { return fmt.Sprintf("its protection is %s", c.log.Protection) }

// outOfSync says why a session ends when the log names no backup any more.
func (c *Core) outOfSync() string {
	if !c.wanted() {
		return c.unwanted()
	}
	return "the backup has lost its image"
}

// lost reports whether the backup can no longer be counted on.
func (c *Core) lost() bool {
	switch {
	case c.mismatched || c.stalled || c.givenUp() || c.overdue() || !c.wanted():
		return true
	case !c.linked:
		return c.deserted || c.mode == ModeEntering && !c.inSyncMaybe || !c.now.Before(c.linkLost.Add(c.cfg.DetachAfter))
	case c.log.InSync && c.log.Backup.Image != c.image:
		return true // it came back with another image
	case c.acked < c.sealed:
		return !c.now.Before(c.unanswered().Add(c.cfg.AckTimeout))
	}
	return false
}

// unanswered returns since when the oldest epoch in flight is waited for. A
// synchronisation may take as long as it takes: what is left of it in flight is waited
// for since output is held.
func (c *Core) unanswered() clock.Instant {
	return max(c.sealedAt[(c.acked+1)%maxWindow], c.entered)
}

// overdue reports whether output has waited too long for an acknowledgement: also
// of a backup that comes back each time, and each time refuses the same epoch.
func (c *Core) overdue() bool {
	return c.owed != 0 && !c.now.Before(c.owed.Add(c.cfg.AckTimeout))
}

// givenUp reports whether captures have failed for so long that waiting for one
// more only holds the guest's output back: a device that cannot be saved any
// more, for instance (RULES 25).
func (c *Core) givenUp() bool {
	return c.failing != 0 && !c.now.Before(c.failing.Add(c.cfg.AckTimeout))
}

func (c *Core) proposeOutOfSync() {
	c.propose(ownership.OutOfSync, c.log.Backup)
}

// decideConnect keeps a session open while there is something to protect.
func (c *Core) decideConnect() {
	switch {
	case c.mode == ModeLeaving, c.mode == ModeYielded:
	case c.linked && c.mode == ModeDetaching:
		c.drop("the backup is given up")
	case c.linked && !c.now.Before(c.leaseUntil.Add(c.cfg.LeaseGrace)):
		// Cut off from the voters, but not from the backup: fall silent, so
		// that the backup, which may reach them, asks to take over.
		c.drop("this host can renew no lease")
	case !c.linked && !c.connecting && c.wanted() && c.leaseHolds() && !c.now.Before(c.connectAt) &&
		c.log.Phase == ownership.PhaseActive && c.mode != ModeDetaching:
		c.connecting = true
		c.emit(Connect{})
	case c.log.Phase == ownership.PhaseActivating && !c.proposing:
		// A takeover of ours that is not recorded as done yet.
		c.propose(ownership.Activated, ownership.Backup{})
	}
}

// decideEpoch starts the next epoch when it is due and the window has room.
func (c *Core) decideEpoch() {
	if !c.linked || c.capturing || c.unseal || c.final != 0 || !c.running || c.sealed-c.acked >= epoch.Number(c.cfg.Window) {
		return
	}
	switch c.mode {
	case ModeSyncing:
		if !c.now.Before(c.epochAt) {
			c.emit(SyncStep{c.next()})
		}
	case ModeEntering, ModeProtected:
		if c.now.Before(c.epochAt) && !c.heldFull {
			return
		}
		c.heldFull = false
		n := c.next()
		if c.firstWhole == 0 {
			c.firstWhole = n
		}
		c.epochAt = c.now.Add(c.cfg.Ceiling) // until Captured sets it
		c.owe()
		c.emit(Capture{Number: n})
	}
}

func (c *Core) next() epoch.Number {
	c.sealed++
	c.capturing = true
	c.sealedAt[c.sealed%maxWindow] = c.now
	return c.sealed
}

func (c *Core) leaseHolds() bool { return c.now.Before(c.leaseUntil.Add(-c.cfg.PauseMargin)) }

// propose puts a command to the log unless one is on its way. A command whose
// outcome is unknown is asked again with its ID, unless a different kind is
// wanted by now: that one is stricter and settles the lost one.
func (c *Core) propose(kind ownership.Kind, b ownership.Backup) {
	if c.proposing || c.now.Before(c.retryAt) {
		return
	}
	cmd := ownership.Command{ID: ownership.NewCommandID(), Guest: c.cfg.Guest, Kind: kind, Host: c.cfg.Self,
		Generation: c.log.Generation, Revision: c.log.Revision, Backup: b}
	if c.retry != nil && c.retry.Kind == kind {
		cmd = *c.retry
	}
	c.proposing = true
	c.emit(Propose{cmd})
}

// enter changes the mode and sets the gate accordingly.
func (c *Core) enter(m Mode) {
	c.mode, c.since = m, c.now
	switch m {
	case ModeAlone:
		c.firstWhole, c.stalled = 0, false
		c.rest()
		if c.givenUp() {
			c.emit(Warn{"the guest cannot be captured: it runs unprotected, and is tried again later"})
			c.connectAt, c.failing = c.now.Add(c.cfg.RestAfter), 0
		}
		c.emit(Pass{})
	case ModeSyncing:
		c.syncRounds, c.bulk, c.comparing = 0, 0, false
		if c.failing == 0 {
			c.epochAt = 0
		}
	case ModeEntering:
		c.firstWhole, c.owed, c.entered = 0, 0, c.now
		c.emit(Hold{})
	case ModeYielded:
		c.reclaimAt = c.now.Add(c.cfg.ReclaimAfter)
		c.emit(Shut{})
	}
}

// owe notes that output waits from now on, if none did.
func (c *Core) owe() {
	if c.owed == 0 {
		c.owed = c.now
	}
}

// rest leaves a backup alone for a while that is given up for its silence the
// second time in short: output would stand still again and again.
func (c *Core) rest() {
	if c.overdue() {
		if c.silentAt != 0 && c.now.Before(c.silentAt.Add(2*c.cfg.RestAfter)) {
			c.emit(Warn{"the backup acknowledges nothing, again: the guest runs unprotected, and it is tried again later"})
			c.connectAt = c.now.Add(c.cfg.RestAfter)
		}
		c.silentAt = c.now
	}
	c.owed = 0
}

func (c *Core) end(o Outcome) {
	c.mode, c.since = ModeEnded, c.now
	c.emit(End{o})
}

func (c *Core) emit(a ...Action) { c.out = append(c.out, a...) }

// NextWake returns when Step wants a Tick if nothing else happens.
func (c *Core) NextWake() clock.Instant {
	wake := c.now.Add(time.Second)
	sooner := func(t clock.Instant) {
		if c.now.Before(t) && t.Before(wake) {
			wake = t
		}
	}
	if c.running {
		// A timer stands still while the host is suspended, and the lease runs
		// out: the guest must not run on for what was left of a long one.
		sooner(c.now.Add(c.cfg.Lease / 8))
	}
	sooner(c.leaseUntil.Add(-c.cfg.PauseMargin))
	sooner(c.grace)
	sooner(c.retryAt)
	sooner(c.connectAt)
	sooner(c.reclaimAt)
	sooner(c.takeBackAt)
	sooner(c.leaseUntil.Add(c.cfg.LeaseGrace))
	if c.failing != 0 {
		sooner(c.failing.Add(c.cfg.AckTimeout))
	}
	if c.owed != 0 {
		sooner(c.owed.Add(c.cfg.AckTimeout))
	}
	if c.linked && (c.mode == ModeEntering || c.mode == ModeProtected || c.mode == ModeSyncing) {
		sooner(c.epochAt)
	}
	if !c.linked && c.mode.commits() {
		sooner(c.linkLost.Add(c.cfg.DetachAfter))
	}
	if c.acked < c.sealed {
		sooner(c.unanswered().Add(c.cfg.AckTimeout))
	}
	return wake
}
