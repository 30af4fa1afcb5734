package backup

import (
	"time"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
	"understudy/protocol"
)

// Event is something that happened outside the core.
type Event interface{ isEvent() }

type (
	// Tick: time has passed.
	Tick struct{}
	// LogApplied: the ownership log on this host has applied State.
	LogApplied struct{ State ownership.Guest }
	// Greeted: a primary opened a session.
	Greeted struct{ Hello protocol.Hello }
	// Prepared: the image for the greeted session is ready, or Err.
	Prepared struct {
		At    epoch.Position
		Whole bool
		Err   error
	}
	// Staged: a whole, verified epoch is staged, and waits for the word.
	Staged struct {
		At   epoch.Position
		Kind epoch.Kind
	}
	// CommitFailed: the image refused the staged epoch, or a page of an earlier
	// one cannot be rebuilt.
	CommitFailed struct{ Err error }
	// Away: the primary will be silent for so long, and its guest stands still
	// meanwhile: its daemon is started anew. 0: it stays after all.
	Away struct{ For time.Duration }
	// Leaving: this process ends, and the image with it. Nothing is asked of the
	// core any more.
	Leaving struct{}
	// SessionLost: the session broke, or its peer broke the rules.
	SessionLost struct{ Err error }
	// Spoilt: the image cannot be made whole: a page that was left out of a
	// checkpoint is not on the disk any more.
	Spoilt struct{ Err error }
	// Forced: an operator wants the guest to go on from the image here, although
	// the log, as it was read for that, does not name it.
	Forced struct{ State ownership.Guest }
	// Loaded: the device state is in the waiting machine, or Err.
	Loaded struct{ Err error }
	// Activated: the disks are this host's, as the last commit left them, or Err.
	Activated struct{ Err error }
	// Proposed: a proposal ended; see primary.Proposed.
	Proposed struct {
		Command ownership.Command
		State   ownership.Guest
		Err     error
	}
	// Ran: the machine runs as a guest of this host, or Err.
	Ran struct {
		Guest hypervisor.Guest
		Err   error
	}
)

func (Tick) isEvent()         {}
func (LogApplied) isEvent()   {}
func (Greeted) isEvent()      {}
func (Prepared) isEvent()     {}
func (Staged) isEvent()       {}
func (CommitFailed) isEvent() {}
func (Away) isEvent()         {}
func (Leaving) isEvent()      {}
func (SessionLost) isEvent()  {}
func (Spoilt) isEvent()       {}
func (Forced) isEvent()       {}
func (Loaded) isEvent()       {}
func (Activated) isEvent()    {}
func (Proposed) isEvent()     {}
func (Ran) isEvent()          {}

// Action is what the shell must do next, in the order returned.
type Action interface{ isAction() }

type (
	// Prepare: close the session before, if there is one, and welcome the
	// greeted one, with the image as it is or, if Fresh, with a new one.
	Prepare struct{ Fresh bool }
	// Refuse: tell the peer why not, and close its session.
	Refuse struct{ Reason string }
	// Agree: tell the primary that its silence is not taken for a failure for so
	// long.
	Agree struct{ For time.Duration }
	// Commit: acknowledge the staged epoch and apply it.
	Commit struct{}
	// GiveUp: nothing is ever continued or activated from this image; close the
	// session and tell its primary.
	GiveUp struct{ Err error }
	// Drop: close the session.
	Drop struct{ Why string }
	// Load: put the last commit's device state into the waiting machine.
	Load struct{}
	// Reset: replace the waiting machine by a fresh one on the same image.
	Reset struct{}
	// Propose: put a command to the ownership log.
	Propose struct{ Command ownership.Command }
	// Activate: make the disks this host's in Generation, as the last commit left
	// them. It may wait for the former owner's locks, unless that host is known to
	// be off.
	Activate struct {
		Generation epoch.Generation
		PeerOff    bool
	}
	// Answer: tell the operator who forces a failover that the log has granted it,
	// or why nothing comes of it.
	Answer struct{ Err error }
	// Run: let the machine run.
	Run struct{}
	// Warn: tell the operator.
	Warn struct{ Text string }
	// End: the backup's part is over.
	End struct{ Outcome Outcome }
)

func (Prepare) isAction()  {}
func (Refuse) isAction()   {}
func (Agree) isAction()    {}
func (Commit) isAction()   {}
func (GiveUp) isAction()   {}
func (Drop) isAction()     {}
func (Load) isAction()     {}
func (Reset) isAction()    {}
func (Propose) isAction()  {}
func (Activate) isAction() {}
func (Answer) isAction()   {}
func (Run) isAction()      {}
func (Warn) isAction()     {}
func (End) isAction()      {}

// Outcome says why a backup ended.
type Outcome uint8

const (
	// OutcomeTookOver: the guest runs on this host, in Generation.
	OutcomeTookOver Outcome = iota + 1
	// OutcomeOwner: the log names this host the owner although no image here
	// was activated (a restart in mid-takeover).
	OutcomeOwner
	// OutcomeDetached: the daemon is going down.
	OutcomeDetached
	// OutcomeStopped: the guest is meant to be stopped; there is nothing to
	// stand by for.
	OutcomeStopped
	// OutcomeReleased: the operator has given the guest's protection up; image
	// and machine are not wanted.
	OutcomeReleased
)

func (o Outcome) String() string {
	switch o {
	case OutcomeTookOver:
		return "took over"
	case OutcomeOwner:
		return "owner"
	case OutcomeDetached:
		return "detached"
	case OutcomeStopped:
		return "stopped"
	case OutcomeReleased:
		return "released"
	}
	return "waiting"
}
