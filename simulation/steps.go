package simulation

// This file is the list of what happens in the engine, step by step, and of
// what can go wrong at each. A step is reached when a core has decided it and
// its shell is about to carry it out, or when a part of it is done and the next
// is not.

// step is a moment of the protocol.
type step uint8

const (
	// A session and what the image needs first.
	stepConnect step = iota
	stepHello
	stepWelcome
	stepRefuse
	stepLinked
	stepRestore
	stepRefill
	stepSyncStep
	// Becoming protected.
	stepHold
	stepProposeInSync
	stepAppliedInSync
	// An epoch.
	stepPause
	stepSeal
	stepCollect
	stepCapture
	stepSend
	stepStage
	stepRoom
	stepAck
	stepApply
	stepCommit
	stepSpoilt
	stepGiveUp
	stepAckReceived
	stepForget
	stepRelease
	// The disks.
	stepWrite
	stepFlushWrite
	stepFlushSync
	stepFlushed
	stepReference
	stepMaterialise
	// Becoming unprotected.
	stepProposeOutOfSync
	stepAppliedOutOfSync
	stepPass
	// The lease.
	stepLeaseAsk
	stepLeaseGrant
	stepLeaseReceived
	stepPauseGuest
	stepResumeGuest
	// Handing over, stopping.
	stepShut
	stepLastEpoch
	stepDrained
	stepProposeSurrender
	stepAppliedSurrender
	stepProposeReclaim
	stepAppliedReclaim
	stepProposeStop
	stepAppliedStop
	// The operator's switch of protection.
	stepProposeProtection
	stepAppliedProtection
	// Taking over.
	stepLoad
	stepLoaded
	stepProposeTakeover
	stepAppliedTakeover
	stepActivate
	stepRun
	stepReplayWrite
	stepProposeActivated
	stepAppliedActivated
	stepReset
	stepProposeReturn
	stepAppliedReturn
	// The operator's force, and the word that a host is off.
	stepProposeForce
	stepAppliedForce
	stepProposeFence
	stepAppliedFence
	// A daemon that starts.
	stepReadLog
	stepBoot
	stepProposeStart
	stepAppliedStart
	stepAdopt
	stepProposeAdopt
	stepAppliedAdopt
	// A daemon that ends in good order, and the one after it.
	stepSuccessor
	stepLeadership
	stepBid
	stepAgree
	stepPatient
	stepLeaveEpoch
	stepLeft
	stepClose
	stepPassOn
	stepUp
	stepTooLong
	stepUnbid
	stepStay
	stepKept
	stepDecline
	stepFound
	stepContinue
	stepWitness

	steps // their number
)

// message says what is sent at a step.
type message uint8

const (
	noMessage       message = iota
	sessionMessage          // to the peer, on a session
	logMessage              // to the raft leader
	proposalMessage         // to the raft leader, and it changes the log
)

// path is what leads to a step.
type path uint8

const (
	calm       path = iota // it comes by itself, again and again
	seldom                 // it comes by itself, and with every new session
	lostHost               // the owner's host is lost, again and again
	lostLink               // the hosts hear nothing of each other for a while
	lostVoters             // the owner hears nothing of the voters for a while
	lostDaemon             // the owner's daemon is lost, its guest is not
	switching              // the operator hands the guest over
	pausing                // the operator switches protection off and on
	forcing                // the operator forces a failover of an unprotected guest
	fencing                // the owner's host is lost, and fenced
	stopping               // the operator stops and starts the guest
	badLoads               // the owner's host is lost, and no machine takes its state
	spoiling               // a block at the backup is not what the image needs
	upgrading              // the owner's daemon is replaced
	resisting              // the owner's daemon is to be replaced, and its guests cannot be left
	succeeding             // the owner's daemon is replaced by one that fails
	retiring               // the backup's daemon is replaced
	witnessing             // the witness' daemon is replaced
	unheard                // the guest is handed over to a host that hears nothing of the log
)

var stepTable = [steps]struct {
	name    string
	message message
	path    path
}{
	stepConnect:           {"session: asked for", noMessage, seldom},
	stepHello:             {"session: hello sent", sessionMessage, seldom},
	stepWelcome:           {"session: welcome sent", sessionMessage, seldom},
	stepRefuse:            {"session: refused", sessionMessage, lostLink},
	stepLinked:            {"session: open", noMessage, seldom},
	stepRestore:           {"session: lost epochs restored", noMessage, lostLink},
	stepRefill:            {"session: image refilled", noMessage, seldom},
	stepSyncStep:          {"full synchronisation: step", noMessage, calm},
	stepHold:              {"output held", noMessage, seldom},
	stepProposeInSync:     {"in sync: proposed", proposalMessage, seldom},
	stepAppliedInSync:     {"in sync: applied", noMessage, seldom},
	stepPause:             {"epoch: guest paused", noMessage, calm},
	stepSeal:              {"epoch: sealed", noMessage, calm},
	stepCollect:           {"epoch: dirty pages collected", noMessage, calm},
	stepCapture:           {"epoch: captured", noMessage, calm},
	stepSend:              {"epoch: sent", sessionMessage, calm},
	stepStage:             {"epoch: staged", noMessage, calm},
	stepRoom:              {"epoch: room made for its writes", noMessage, calm},
	stepAck:               {"epoch: acknowledged", sessionMessage, calm},
	stepApply:             {"epoch: pages applied", noMessage, calm},
	stepCommit:            {"epoch: writes kept", noMessage, calm},
	stepSpoilt:            {"image: a block is something else", noMessage, spoiling},
	stepGiveUp:            {"image: given up", noMessage, spoiling},
	stepAckReceived:       {"epoch: acknowledgement received", noMessage, calm},
	stepForget:            {"epoch: dirty pages forgotten", noMessage, calm},
	stepRelease:           {"epoch: output released", noMessage, calm},
	stepWrite:             {"disk: write accepted", noMessage, calm},
	stepFlushWrite:        {"disk: flush writes", noMessage, calm},
	stepFlushSync:         {"disk: flush syncs", noMessage, calm},
	stepFlushed:           {"disk: flushed", noMessage, calm},
	stepReference:         {"disk: reference sent", noMessage, calm},
	stepMaterialise:       {"disk: reference filled", noMessage, calm},
	stepProposeOutOfSync:  {"out of sync: proposed", proposalMessage, lostLink},
	stepAppliedOutOfSync:  {"out of sync: applied", noMessage, lostLink},
	stepPass:              {"output passes", noMessage, seldom},
	stepLeaseAsk:          {"lease: asked for", logMessage, calm},
	stepLeaseGrant:        {"lease: granted", noMessage, calm},
	stepLeaseReceived:     {"lease: received", noMessage, calm},
	stepPauseGuest:        {"lease: guest paused", noMessage, lostVoters},
	stepResumeGuest:       {"lease: guest resumed", noMessage, lostVoters},
	stepShut:              {"leave: output shut", noMessage, switching},
	stepLastEpoch:         {"leave: last epoch", noMessage, switching},
	stepDrained:           {"leave: disks drained", noMessage, switching},
	stepProposeSurrender:  {"surrender: proposed", proposalMessage, switching},
	stepAppliedSurrender:  {"surrender: applied", noMessage, switching},
	stepProposeReclaim:    {"reclaim: proposed", proposalMessage, unheard},
	stepAppliedReclaim:    {"reclaim: applied", noMessage, unheard},
	stepProposeStop:       {"stop: proposed", proposalMessage, stopping},
	stepAppliedStop:       {"stop: applied", noMessage, stopping},
	stepProposeProtection: {"protection: switch proposed", proposalMessage, pausing},
	stepAppliedProtection: {"protection: switch applied", noMessage, pausing},
	stepLoad:              {"takeover: asked, machine loads", noMessage, lostHost},
	stepLoaded:            {"takeover: machine loaded", noMessage, lostHost},
	stepProposeTakeover:   {"takeover: proposed", proposalMessage, lostHost},
	stepAppliedTakeover:   {"takeover: granted", noMessage, lostHost},
	stepActivate:          {"takeover: about to activate the disks", noMessage, lostHost},
	stepRun:               {"takeover: about to run", noMessage, lostHost},
	stepReplayWrite:       {"takeover: kept write replayed", noMessage, lostHost},
	stepProposeActivated:  {"activated: proposed", proposalMessage, lostHost},
	stepAppliedActivated:  {"activated: applied", noMessage, lostHost},
	stepReset:             {"takeover: machine replaced", noMessage, badLoads},
	stepProposeReturn:     {"return: proposed", proposalMessage, badLoads},
	stepAppliedReturn:     {"return: applied", noMessage, badLoads},
	stepProposeForce:      {"force: proposed", proposalMessage, forcing},
	stepAppliedForce:      {"force: granted", noMessage, forcing},
	stepProposeFence:      {"fence: proposed", proposalMessage, fencing},
	stepAppliedFence:      {"fence: applied", noMessage, fencing},
	stepReadLog:           {"daemon: log read", logMessage, seldom},
	stepBoot:              {"start: guest booted", noMessage, stopping},
	stepProposeStart:      {"start: proposed", proposalMessage, stopping},
	stepAppliedStart:      {"start: applied", noMessage, stopping},
	stepAdopt:             {"adopt: guest found", noMessage, lostDaemon},
	stepProposeAdopt:      {"adopt: proposed", proposalMessage, lostDaemon},
	stepAppliedAdopt:      {"adopt: applied", noMessage, lostDaemon},
	stepSuccessor:         {"upgrade: new daemon starts", noMessage, upgrading},
	stepLeadership:        {"upgrade: leadership handed on", noMessage, upgrading},
	stepBid:               {"handover: patience asked for", sessionMessage, upgrading},
	stepAgree:             {"handover: patience promised", sessionMessage, upgrading},
	stepPatient:           {"handover: promise received", noMessage, upgrading},
	stepLeaveEpoch:        {"handover: last epoch", noMessage, upgrading},
	stepLeft:              {"handover: guest left", noMessage, upgrading},
	stepClose:             {"handover: output shut", noMessage, upgrading},
	stepPassOn:            {"upgrade: everything passed on", noMessage, upgrading},
	stepUp:                {"upgrade: new daemon takes part", noMessage, upgrading},
	stepTooLong:           {"handover: took too long", noMessage, resisting},
	stepUnbid:             {"handover: patience taken back", sessionMessage, resisting},
	stepStay:              {"upgrade: given up, guest stays", noMessage, resisting},
	stepKept:              {"upgrade: old daemon begins anew", noMessage, succeeding},
	stepDecline:           {"upgrade: backup declines", proposalMessage, retiring},
	stepFound:             {"adopt: guest found as left", noMessage, upgrading},
	stepContinue:          {"adopt: guest gone on with", noMessage, upgrading},
	stepWitness:           {"upgrade: witness leads no more", noMessage, witnessing},
}

func (s step) String() string { return stepTable[s].name }

// fault is a kind of misfortune, as seen from the host at which a step is made.
type fault uint8

const (
	faultDaemon fault = iota
	faultPower
	faultGuest
	faultPeer
	faultBoth
	faultFreeze
	faultStall
	faultSuspend
	faultSession
	faultCutOut
	faultCutIn
	faultCut
	faultVoters
	faultLeader
	faultStale
	faultDisk
	faultHeld
	faultPaused
	faultUnprotected
	faultForced
	faultSuccessor
	faultTakeover
	faultOwnerLies
	faultBackupLies
	faultLost
	faultDelayed
	faultReordered
	faultDuplicated
	faultTorn
	faultForged
	faultAmbiguous

	faultKinds // their number
)

var faultTable = [faultKinds]struct{ name, short string }{
	faultDaemon:      {"the daemon dies and is started anew", "daemon"},
	faultPower:       {"the host loses its power", "power"},
	faultGuest:       {"the guest's hypervisor dies", "guest"},
	faultPeer:        {"the other host loses its power", "peer"},
	faultBoth:        {"both hosts lose their power", "both"},
	faultFreeze:      {"host and guest stand still for longer than the lease", "freeze"},
	faultStall:       {"the daemon alone stands still", "stall"},
	faultSuspend:     {"the host is suspended: its monotonic clock stands still, CLOCK_BOOTTIME does not", "suspend"},
	faultSession:     {"the connections between the hosts are reset", "reset"},
	faultCutOut:      {"nothing gets from this host to the other", "cut>"},
	faultCutIn:       {"nothing gets from the other host to this one", "cut<"},
	faultCut:         {"nothing gets through between the hosts", "cut"},
	faultVoters:      {"this host is cut off from the voters", "voters"},
	faultLeader:      {"the raft leader is lost, another one follows", "leader"},
	faultStale:       {"the raft leader is deposed, and this host does not hear of it", "stale"},
	faultDisk:        {"the host's disk fails every call for a while", "disk"},
	faultHeld:        {"the daemon dies, and the memory of held writes that outlives it is lost", "held"},
	faultPaused:      {"the operator pauses the guest's protection, and resumes it later", "paused"},
	faultUnprotected: {"the operator gives the guest's protection up, and wants it again later", "unprot"},
	faultForced:      {"the operator forces a failover", "forced"},
	faultSuccessor:   {"the new daemon fails, and the old one goes on", "next"},
	faultTakeover:    {"the owner stands still until its backup decides on a takeover", "taken"},
	faultOwnerLies:   {"the owner asks for the longest patience from now on, whatever it wants", "greedy"},
	faultBackupLies:  {"the backup does not keep what it promises from now on", "liar"},
	faultLost:        {"the message of this step is lost (on a session: with the session)", "lost"},
	faultDelayed:     {"the message comes late", "late"},
	faultReordered:   {"the message is overtaken by the next", "order"},
	faultDuplicated:  {"the message comes twice", "twice"},
	faultTorn:        {"the message comes damaged, or without its end", "torn"},
	faultForged:      {"before the message comes one of another session, image or generation", "forged"},
	faultAmbiguous:   {"the proposal times out, and commits later", "unsure"},
}

func (f fault) String() string { return faultTable[f].name }

// impossible says why a fault cannot strike at a step; "": it can.
func impossible(s step, f fault) string {
	m := stepTable[s].message
	switch f {
	case faultSuccessor, faultTakeover, faultOwnerLies, faultBackupLies:
		switch {
		case !s.handover():
			return "no daemon takes another one's place at this step"
		case s == stepKept && f == faultSuccessor:
			return "the new daemon has ended: that is why the old one begins anew"
		}
	case faultLost, faultDelayed, faultDuplicated:
		if m == noMessage {
			return "no message is sent at this step"
		}
	case faultReordered:
		switch {
		case m == noMessage:
			return "no message is sent at this step"
		case s == stepHello || s == stepWelcome || s == stepRefuse:
			return "it is the only message of its side until it is answered: nothing follows that could overtake it"
		}
	case faultTorn, faultForged:
		if m != sessionMessage {
			return "nothing is sent on a session at this step"
		}
	case faultAmbiguous:
		if m != proposalMessage {
			return "nothing is proposed at this step"
		}
	}
	return ""
}

// cell is a step and a fault.
type cell struct {
	step  step
	fault fault
}

// allCells are those that can be, in the order in which seeds aim at them.
func allCells() (list []cell) {
	for s := range steps {
		for f := range faultKinds {
			if impossible(s, f) == "" {
				list = append(list, cell{s, f})
			}
		}
	}
	return list
}
