package primary

import (
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
)

// Event is something that happened outside the core. Each is a plain value, so
// that a test or a simulation can feed any order of them.
type Event interface{ isEvent() }

type (
	// Tick: time has passed; the shell sends it when NextWake is due.
	Tick struct{}

	// LeaseRenewed: the raft leader answered a renewal of Generation. Until
	// counts from before the request was sent, by this host's clock.
	LeaseRenewed struct {
		Generation epoch.Generation
		Until      clock.Instant
	}

	// LogApplied: the ownership log on this host has applied State.
	LogApplied struct{ State ownership.Guest }

	// Proposed: a proposal ended. Err nil: State is the log after it. Err an
	// *ownership.Refused: it was certainly not applied. Any other error: it
	// may have been applied, or may yet be.
	Proposed struct {
		Command ownership.Command
		State   ownership.Guest
		Err     error
	}

	// LinkUp: a session is open and the backup's image stands at At, which is
	// a position of ours (Resumed) or a new, empty image.
	LinkUp struct {
		Peer    ownership.HostID
		At      epoch.Position
		Resumed bool
	}

	// LinkDown: the session, or the attempt to open one, failed. Refused: the
	// backup's host is there, and nobody listens on it.
	LinkDown struct {
		Err     error
		Refused bool
	}

	// Captured: an epoch's pages are in our buffers and on their way.
	Captured struct {
		Number    epoch.Number
		Kind      epoch.Kind
		Sent      uint64 // pages that this sync step sends
		Remaining uint64 // pages still to be sent after it, disks included
		Comparing bool   // the backup's copies of the disks are not all compared yet
		Cost      Cost
		// Stalled: the guest stood still because the backup took nothing, until
		// its session was closed.
		Stalled bool
	}

	// Postponed: the epoch cannot be captured yet, because writes of before
	// output commit are still on their way to a disk. Nothing was done.
	Postponed struct{ Number epoch.Number }

	// CaptureFailed: nothing of this epoch counts; its pages are dirty again.
	CaptureFailed struct {
		Number epoch.Number
		Err    error
	}

	// Acked: the backup holds everything up to Number.
	Acked struct{ Number epoch.Number }

	// Mismatch: the backup's memory differs from ours after Number.
	Mismatch struct{ Number epoch.Number }

	// HeldFull: held output nears its limit; only a commit frees it.
	HeldFull struct{}

	// GuestDid: the guest did something by itself.
	GuestDid struct{ Event hypervisor.Event }

	// Asked: an operator wants something. Still: the guest, which stands still,
	// must not run any more.
	Asked struct {
		Request Request
		Still   bool
	}

	// Patient: the backup does not take our silence for a failure for so long.
	Patient struct{ For time.Duration }

	// Remain: an operator's handover is given up.
	Remain struct{ Why string }

	// StayOn: the guest was to stop and stood still for it, but what had to be
	// done before could not be: it runs on.
	StayOn struct{}
)

// Request is what an operator can ask of a primary.
type Request uint8

const (
	RequestSwitchover Request = iota + 1 // hand the guest to the backup, nothing lost
	RequestStop                          // commit a last epoch, then end the guest
	// RequestHandover: commit a last epoch, and leave the guest, standing still,
	// to the next daemon of this host. A backup in sync stays so.
	RequestHandover
)

func (Tick) isEvent()          {}
func (LeaseRenewed) isEvent()  {}
func (LogApplied) isEvent()    {}
func (Proposed) isEvent()      {}
func (LinkUp) isEvent()        {}
func (LinkDown) isEvent()      {}
func (Captured) isEvent()      {}
func (CaptureFailed) isEvent() {}
func (Postponed) isEvent()     {}
func (Acked) isEvent()         {}
func (Mismatch) isEvent()      {}
func (HeldFull) isEvent()      {}
func (GuestDid) isEvent()      {}
func (Asked) isEvent()         {}
func (Patient) isEvent()       {}
func (Remain) isEvent()        {}
func (StayOn) isEvent()        {}

// Action is what the shell must do next. Actions are carried out in the order
// they were returned; that order is part of the guarantees (Hold before the
// first Capture that counts, Shut before a Surrender is proposed).
type Action interface{ isAction() }

type (
	// SyncStep: collect the dirty pages while the guest runs, and send some.
	SyncStep struct{ Number epoch.Number }

	// Capture: pause, take a whole checkpoint, resume (unless Final), send.
	Capture struct {
		Number epoch.Number
		Final  bool // the guest stays paused
	}

	// Forget: the backup has everything up to Through; those pages need not be
	// sent again.
	Forget struct{ Through epoch.Number }

	// Restore: epochs after the acknowledged one are void; their pages count
	// as dirty again.
	Restore struct{}

	// Refill: the backup's image is new; every page counts as dirty.
	Refill struct{}

	// Release: frames of epochs up to Through may leave.
	Release struct{ Through epoch.Number }

	// Hold: frames that were not released wait for the next epoch captured.
	Hold struct{}

	// Pass: the log has recorded that the guest runs unprotected; what is held
	// leaves, and frames leave as they come.
	Pass struct{}

	// Shut: nothing leaves any more, whatever the lease says.
	Shut struct{}

	// PauseGuest stops the vCPUs.
	PauseGuest struct{ Why string }

	// ResumeGuest continues them.
	ResumeGuest struct{}

	// Propose: put a command to the ownership log; answer with Proposed.
	Propose struct{ Command ownership.Command }

	// UseGeneration: renew leases under this generation from now on.
	UseGeneration struct{ Generation epoch.Generation }

	// Connect: open a session; answer with LinkUp or LinkDown.
	Connect struct{}

	// Disconnect: close the session and drop its epochs; no answer.
	Disconnect struct{ Why string }

	// Bid: ask the backup for patience; answer with Patient. 0 takes it back,
	// and is not answered.
	Bid struct{ For time.Duration }

	// Warn: tell the operator.
	Warn struct{ Text string }

	// End: the primary's part is over.
	End struct{ Outcome Outcome }
)

func (SyncStep) isAction()      {}
func (Capture) isAction()       {}
func (Forget) isAction()        {}
func (Restore) isAction()       {}
func (Refill) isAction()        {}
func (Release) isAction()       {}
func (Hold) isAction()          {}
func (Pass) isAction()          {}
func (Shut) isAction()          {}
func (PauseGuest) isAction()    {}
func (ResumeGuest) isAction()   {}
func (Propose) isAction()       {}
func (UseGeneration) isAction() {}
func (Connect) isAction()       {}
func (Disconnect) isAction()    {}
func (Bid) isAction()           {}
func (Warn) isAction()          {}
func (End) isAction()           {}

// Outcome says why a primary ended, and so what its host has to do with the
// guest, which is paused or gone.
type Outcome uint8

const (
	// OutcomeSuperseded: another host owns the guest and runs it. The guest
	// here must be destroyed.
	OutcomeSuperseded Outcome = iota + 1
	// OutcomeStopped: the log says stopped. The guest here must be destroyed.
	OutcomeStopped
	// OutcomeLost: the guest died. Either it was surrendered to the backup in
	// sync, which has yet to take it, or there is none and only a cold boot is
	// left.
	OutcomeLost
	// OutcomeDetached: the daemon is going down; the guest stays for a later
	// process to adopt.
	OutcomeDetached
	// OutcomeHandedOver: the guest stands still for a later process to go on
	// with; what was acknowledged may leave still. See Primary.Left.
	OutcomeHandedOver
)

func (o Outcome) String() string {
	switch o {
	case OutcomeSuperseded:
		return "superseded"
	case OutcomeStopped:
		return "stopped"
	case OutcomeLost:
		return "lost"
	case OutcomeDetached:
		return "detached"
	case OutcomeHandedOver:
		return "handed over"
	}
	return "running"
}
