// Package backup is the side that stands by. This file is its pure core: events
// in (events.go), typed actions out. The shell around it is in backup.go.
//
// Acknowledging and taking over are decided in this one place, one event at a
// time, so no epoch can be acknowledged once a takeover was asked for (RULES 5):
//
//	idle ── Greeted ──> fed ── session lost, in sync ──> asking ── granted ──> running
//	  ^                  │ Staged: Commit                  │
//	  └──────────────────┴───────────── refused ───────────┘
//
// While the operator has paused the guest's protection, its primary ends the
// session and opens none: the image waits, and nothing can be asked for. When
// protection is given up, so is the image.
package backup

import (
	"errors"
	"fmt"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
	"understudy/protocol"
)

// Config holds a backup's settings. Start from DefaultConfig.
type Config struct {
	Guest string
	Self  ownership.HostID
	// AskAfter is how long a lost session may take to come back before the
	// backup asks for a takeover. The raft leader waits for the end of the
	// owner's lease in any case, so a part of the lease costs nothing.
	AskAfter time.Duration
	// Retry is the pause before an unsettled proposal or load is repeated.
	Retry time.Duration
	// Loads is how often loading the device state is tried before a granted
	// takeover is given back.
	Loads int
	// Lazy lets the guest run before every page that was left out of its
	// checkpoints is filled; otherwise they are filled first.
	Lazy bool
	// DiskWait bounds the wait, at a takeover, for the disks' locks: as long as
	// the former owner has one, it may still write.
	DiskWait time.Duration
	// MaxReferences bounds the references that are not filled yet; past it
	// acknowledgements wait.
	MaxReferences int
	// Disks are the guest's disks as this host has them.
	Disks []protocol.DiskSpec
	// MaxStage bounds the decoded pages of one epoch, in bytes.
	MaxStage uint64
	// TakeoverWait bounds one request for a takeover: the wait for the end of
	// the lease included.
	TakeoverWait time.Duration
}

// DefaultConfig returns the defaults for a lease of the given length. An epoch
// may hold every page of the image once, each in a run of its own, and the
// largest device state.
func DefaultConfig(guest string, self ownership.HostID, lease time.Duration, imageBytes uint64) Config {
	return Config{Guest: guest, Self: self, AskAfter: lease / 4, Retry: 20 * time.Millisecond, Loads: 3,
		Lazy: true, DiskWait: 3 * time.Second, MaxReferences: 1 << 18,
		MaxStage: epoch.StageLimit(imageBytes/epoch.PageSize, 128<<20), TakeoverWait: max(10*lease, 10*time.Second)}
}

var errSpoilt = errors.New("a page that was left out of a checkpoint cannot be rebuilt")

// Core is the backup's decision maker. It is not safe for concurrent use.
type Core struct {
	cfg Config
	now clock.Instant
	out []Action

	log   ownership.Guest
	at    epoch.Position // where the image stands
	whole bool           // the last commit was a checkpoint

	session   epoch.Generation // of the session that feeds the image; 0: none
	preparing epoch.Generation // of the session being welcomed; 0: none
	lostAt    clock.Instant
	patient   clock.Instant // until when silence is no failure
	asking    bool          // no acknowledgement any more
	forced    bool          // an operator asks, for an image that the log need not name
	granted   bool
	grant     epoch.Generation // of what was granted
	machine   machine
	loads     int
	spoilt    bool // the image cannot be made whole
	proposing bool
	retry     *ownership.Command
	retryAt   clock.Instant
	ended     bool
}

// machine is the state of the waiting machine.
type machine uint8

const (
	machineFresh      machine = iota // can be loaded
	machineLoading                   // Load was asked for
	machineLoaded                    // holds the last commit
	machineActivating                // Activate was asked for
	machineReady                     // can run
	machineSpoilt                    // a load failed, or is no longer wanted
)

// NewCore returns the core of a backup that holds no image yet.
func NewCore(cfg Config, state ownership.Guest) *Core { return &Core{cfg: cfg, log: state} }

// Log returns the newest state of the ownership log that the core knows.
func (c *Core) Log() ownership.Guest { return c.log }

// At returns where the image stands.
func (c *Core) At() (at epoch.Position, whole bool) { return c.at, c.whole }

// InSync reports whether the log names this image as able to take over.
func (c *Core) InSync() bool {
	b := c.log.Backup
	return c.log.InSync && b.Host == c.cfg.Self && b.Image == c.at.Image && !c.at.Image.IsZero() &&
		c.whole && !c.spoilt && c.at.Number >= b.Epoch && c.log.Desired == ownership.Running
}

// Step takes one event and returns what must happen now. The slice is valid
// until the next call.
func (c *Core) Step(now clock.Instant, ev Event) []Action {
	c.now, c.out = now, c.out[:0]
	if c.ended {
		return nil
	}
	c.absorb(ev)
	if !c.ended {
		c.decide()
	}
	return c.out
}

func (c *Core) absorb(ev Event) {
	switch ev := ev.(type) {
	case Tick:
	case LogApplied:
		c.absorbLog(ev.State)
	case Greeted:
		c.absorbGreeted(ev)
	case Prepared:
		c.absorbPrepared(ev)
	case Staged:
		c.absorbStaged(ev)
	case CommitFailed:
		c.giveUp(ev.Err)
	case Away:
		if c.session != 0 && !c.asking {
			c.patient = 0
			if ev.For > 0 {
				c.patient = c.now.Add(ev.For)
				c.emit(Agree(ev))
			}
		}
	case Leaving:
		c.absorbLeaving()
	case SessionLost:
		if c.session != 0 || c.preparing != 0 {
			c.session, c.preparing, c.lostAt = 0, 0, c.now
		}
	case Spoilt:
		c.spoilt = true
		if c.asking {
			// A grant that comes all the same is given back.
			c.loads = c.cfg.Loads
			c.emit(Warn{fmt.Sprintf("the image cannot be made whole: %v", ev.Err)})
		} else {
			c.giveUp(ev.Err)
		}
	case Forced:
		c.absorbForced(ev)
	case Loaded:
		c.machine = machineLoaded
		if ev.Err != nil {
			c.machine = machineSpoilt
			c.retryAt = c.now.Add(c.cfg.Retry)
			c.emit(Warn{fmt.Sprintf("the waiting machine did not load the checkpoint: %v", ev.Err)})
		}
	case Activated:
		c.machine = machineReady
		if ev.Err != nil {
			c.machine = machineSpoilt
			c.retryAt = c.now.Add(c.cfg.Retry)
			c.emit(Warn{ev.Err.Error()})
		}
	case Proposed:
		c.absorbProposed(ev)
	case Ran:
		if ev.Err == nil {
			c.end(OutcomeTookOver)
			return
		}
		c.machine = machineSpoilt
		c.emit(Warn{fmt.Sprintf("the loaded machine did not run: %v", ev.Err)})
	}
}

func (c *Core) absorbLog(g ownership.Guest) {
	if g.Revision > c.log.Revision {
		c.log = g
	}
}

// absorbForced begins what an operator has asked for, if there is an image to go
// on from. From here on nothing is acknowledged, as for any takeover.
func (c *Core) absorbForced(ev Forced) {
	c.absorbLog(ev.State)
	switch {
	case c.asking:
		c.emit(Answer{errors.New("a takeover is being asked for already")})
	case c.at.Image.IsZero() || !c.whole || c.spoilt:
		c.emit(Answer{errors.New("there is no whole image here")})
	case c.log.Desired != ownership.Running:
		c.emit(Answer{fmt.Errorf("the guest is meant to be %s", c.log.Desired)})
	default:
		c.asking, c.forced = true, true
		if c.session != 0 || c.preparing != 0 {
			c.session, c.preparing, c.lostAt = 0, 0, c.now
			c.emit(Drop{"an operator forces a failover"})
		}
	}
}

// absorbLeaving ends the core with its process. The log is told that the image is
// gone: the primary need not wait for us, nor find out. Nothing is acknowledged any
// more; a takeover that was asked for may yet be granted, and is left alone.
func (c *Core) absorbLeaving() {
	c.emit(Drop{"the daemon goes down"})
	if c.InSync() && !c.asking {
		c.retry = nil
		c.propose(ownership.OutOfSync, c.log.Backup)
	}
	c.ended = true
}

// absorbGreeted decides on a session that wants to feed us.
func (c *Core) absorbGreeted(ev Greeted) {
	h := ev.Hello
	resumed := false
	for _, k := range h.Known {
		resumed = resumed || k == c.at && !c.at.Image.IsZero()
	}
	switch {
	case c.asking:
		c.emit(Refuse{"a takeover is being asked for"})
	case c.machine != machineFresh:
		c.emit(Refuse{"the waiting machine is being replaced"})
	case h.Guest != c.cfg.Guest:
		c.emit(Refuse{fmt.Sprintf("this is the backup of %q, not of %q", c.cfg.Guest, h.Guest)})
	case h.Host != c.log.Owner || h.Generation != c.log.Generation:
		c.emit(Refuse{fmt.Sprintf("the log here names %s the owner in generation %d, not %s in generation %d",
			c.log.Owner, c.log.Generation, h.Host, h.Generation)})
	case !resumed && c.InSync():
		// Making a new image would destroy the only one that may take over.
		c.emit(Refuse{fmt.Sprintf("the log still names %v as in sync, and this primary cannot continue from it", c.at)})
	default:
		// The session before it, if any, ends here, and only here: a refused one
		// harms nobody. The primary lives: the time of silence begins anew.
		c.session, c.preparing, c.lostAt, c.patient = 0, h.Generation, c.now, 0
		if !resumed {
			c.at, c.whole, c.spoilt, c.machine = epoch.Position{}, false, false, machineFresh
		}
		c.emit(Prepare{Fresh: !resumed})
	}
}

func (c *Core) absorbPrepared(ev Prepared) {
	if c.preparing == 0 {
		return
	}
	if ev.Err != nil {
		c.preparing = 0
		c.emit(Refuse{ev.Err.Error()})
		return
	}
	c.session, c.preparing = c.preparing, 0
	c.at, c.whole = ev.At, ev.Whole
}

func (c *Core) absorbStaged(ev Staged) {
	if c.asking || c.session == 0 || c.session != c.log.Generation && c.log.Generation != 0 {
		return // of a session that was dropped when that became so
	}
	c.at, c.whole = ev.At, ev.Kind == epoch.KindCheckpoint
	c.emit(Commit{})
}

func (c *Core) absorbProposed(ev Proposed) {
	c.proposing = false
	var refused *ownership.Refused
	switch {
	case ev.Err == nil:
		c.retry = nil
		c.absorbLog(ev.State)
		switch ev.Command.Kind {
		case ownership.Takeover:
			c.granted, c.grant = true, ev.Command.Generation+1
		case ownership.Force:
			c.granted, c.grant = true, ev.Command.Generation+1
			c.emit(Answer{})
		case ownership.Return:
			if !c.granted {
				break // the log has told of it, see decide: what is here now is another image
			}
			c.stopAsking()
			// The disks were made an owner's for the attempt: what they kept is not
			// what a session could continue from.
			c.at, c.whole = epoch.Position{}, false
		}
	case errors.As(ev.Err, &refused):
		c.retry = nil
		c.absorbLog(refused.State)
		if k := ev.Command.Kind; k == ownership.Takeover || k == ownership.Force {
			c.emit(Warn{fmt.Sprintf("%s: %v", k, refused)})
			c.giveUpForce(refused)
			c.stopAsking()
		}
		c.retryAt = c.now.Add(c.cfg.Retry)
	case ev.Command.Kind == ownership.Force && errors.Is(ev.Err, ownership.ErrNotProposed):
		// The owner's lease did not run out in time: whoever forces is told so.
		c.retry = nil
		c.giveUpForce(ev.Err)
		c.stopAsking()
	default:
		cmd := ev.Command
		c.retry, c.retryAt = &cmd, c.now.Add(c.cfg.Retry)
		c.emit(Warn{fmt.Sprintf("%s: outcome unknown: %v", cmd.Kind, ev.Err)})
	}
}

// giveUp makes sure that nothing is ever continued or activated from this image.
func (c *Core) giveUp(err error) {
	c.at, c.whole = epoch.Position{}, false
	if c.session != 0 || c.preparing != 0 {
		c.session, c.preparing, c.lostAt = 0, 0, c.now
	}
	c.emit(GiveUp{err})
}

// giveUpForce tells the operator that nothing comes of it.
func (c *Core) giveUpForce(err error) {
	if c.forced {
		c.forced = false
		c.emit(Answer{err})
	}
}

// stopAsking goes back to standing by. A machine that was loaded is of no use
// any more: the next load is of a later commit.
func (c *Core) stopAsking() {
	c.asking, c.granted, c.forced, c.loads = false, false, false, 0
	c.lostAt = c.now
}

func (c *Core) decide() {
	if c.spoilt && c.asking && !c.granted && !c.proposing {
		c.giveUpForce(errSpoilt)
		c.stopAsking()
		c.retry = nil
		c.giveUp(errSpoilt)
	}
	if c.granted && (c.log.Owner != c.cfg.Self || c.log.Generation != c.grant) {
		// The former owner has taken the guest back, or an operator has given it to
		// somebody, maybe to this host again: nothing of what was begun here
		// happened. The disks were, maybe, an owner's: see absorbProposed.
		if c.log.Owner == c.cfg.Self {
			c.emit(Warn{fmt.Sprintf("the takeover was granted for generation %d, this is generation %d: the image is too old", c.grant, c.log.Generation)})
		} else {
			c.emit(Warn{fmt.Sprintf("%s has taken the guest back: the takeover took too long", c.log.Owner)})
		}
		c.retry = nil
		c.stopAsking()
		c.at, c.whole = epoch.Position{}, false
	}
	if c.log.Owner == c.cfg.Self && !c.asking {
		c.end(OutcomeOwner)
		return
	}
	if c.log.Desired == ownership.Stopped && !c.proposing {
		c.end(OutcomeStopped)
		return
	}
	if c.log.Protection == ownership.ProtectionOff && !c.asking && !c.proposing {
		c.end(OutcomeReleased)
		return
	}
	if c.session != 0 && c.log.Generation > c.session {
		c.emit(Drop{fmt.Sprintf("generation %d is over", c.session)})
		c.session, c.lostAt = 0, c.now
	}
	c.decideAsk()
	c.decideDecline()
	c.decideMachine()
	c.decideProposal()
	switch {
	case c.spoilt:
	case c.granted && c.machine == machineLoaded:
		c.machine = machineActivating
		c.emit(Activate{c.log.Generation, c.log.Fenced != "" && c.log.Fenced == c.log.Previous})
	case c.granted && c.machine == machineReady:
		c.machine = machineSpoilt // until Ran says otherwise
		c.emit(Run{})
	}
}

// decideAsk stops acknowledging, for good as far as this session is concerned,
// before anything else is done about a takeover.
func (c *Core) decideAsk() {
	if c.asking || !c.InSync() {
		return
	}
	surrendered := c.log.Phase == ownership.PhaseSurrendered
	silent := c.session == 0 && c.preparing == 0 && !c.now.Before(c.lostAt.Add(c.cfg.AskAfter)) && !c.now.Before(c.patient)
	if !surrendered && !silent {
		return
	}
	c.asking = true
	if c.session != 0 {
		c.session = 0
		c.emit(Drop{"the guest was surrendered"})
	}
}

// decideDecline tells the log of an image that it names and that is gone: given
// up, replaced, or of a former process here. Nobody need wait for it.
func (c *Core) decideDecline() {
	b := c.log.Backup
	if c.asking || c.proposing || !c.log.InSync || b.Host != c.cfg.Self || b.Image == c.at.Image || c.now.Before(c.retryAt) {
		return
	}
	c.propose(ownership.OutOfSync, b)
}

// decideMachine brings the waiting machine to where it is needed: loaded while
// a takeover is asked for, fresh otherwise. Loading goes on beside the wait for
// the grant, so it costs the guest nothing.
func (c *Core) decideMachine() {
	if (c.machine == machineLoaded || c.machine == machineReady) && !c.asking {
		c.machine = machineSpoilt // loaded in vain
	}
	switch {
	case c.machine == machineSpoilt && c.at.Image.IsZero():
		c.machine = machineFresh // the next image brings a machine of its own
	case c.machine == machineSpoilt && !c.now.Before(c.retryAt):
		c.machine = machineFresh
		c.emit(Reset{})
		if c.asking && c.loads < c.cfg.Loads {
			c.load()
		}
	case c.machine == machineFresh && c.asking && c.loads < c.cfg.Loads:
		c.load()
	}
}

func (c *Core) load() {
	c.machine = machineLoading
	c.loads++
	c.emit(Load{})
}

// decideProposal asks for the takeover, or gives a grant back that cannot be
// used.
func (c *Core) decideProposal() {
	if !c.asking || c.proposing || c.now.Before(c.retryAt) && c.retry != nil {
		return
	}
	if c.forced && c.loads >= c.cfg.Loads && c.machine == machineSpoilt && !c.granted && c.retry == nil {
		c.giveUpForce(errors.New("no machine here takes the image's device state"))
		c.stopAsking()
		return
	}
	kind, b := ownership.Takeover, ownership.Backup{Host: c.cfg.Self, Image: c.at.Image, Epoch: c.at.Number}
	if c.forced {
		kind = ownership.Force
	}
	if c.granted {
		switch c.machine {
		case machineLoading, machineActivating:
			return
		case machineLoaded, machineReady:
			if !c.spoilt {
				return
			}
		default:
			if c.loads < c.cfg.Loads {
				return
			}
		}
		kind, b = ownership.Return, ownership.Backup{}
	}
	c.propose(kind, b)
}

// propose puts a command to the log; one of the same kind whose outcome is
// unknown is asked again with its ID.
func (c *Core) propose(kind ownership.Kind, b ownership.Backup) {
	cmd := ownership.Command{ID: ownership.NewCommandID(), Guest: c.cfg.Guest, Kind: kind, Host: c.cfg.Self,
		Generation: c.log.Generation, Revision: c.log.Revision, Backup: b}
	if c.retry != nil && c.retry.Kind == kind {
		cmd = *c.retry
	}
	c.proposing = true
	c.emit(Propose{cmd})
}

func (c *Core) end(o Outcome) {
	c.ended = true
	c.emit(End{o})
}

func (c *Core) emit(a ...Action) { c.out = append(c.out, a...) }

// NextWake returns when Step wants a Tick if nothing else happens.
func (c *Core) NextWake() clock.Instant {
	wake := c.now.Add(time.Second)
	for _, t := range []clock.Instant{c.lostAt.Add(c.cfg.AskAfter), c.patient, c.retryAt} {
		if c.now.Before(t) && t.Before(wake) {
			wake = t
		}
	}
	return wake
}
