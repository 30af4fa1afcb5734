package events

import (
	"slices"
	"strings"
)

// Kind says what happened. Words are of lower-case letters, digits and hyphens.
// A reader must expect kinds that it does not know.
type Kind string

// Of the host.
const (
	// KindHostUp: the daemon takes part. Reason says how the one before it ended.
	KindHostUp Kind = "host-up"
	// KindHostDown: the daemon ends in good order. Duration: it was up.
	KindHostDown Kind = "host-down"
	// KindLeaderChanged: this voter knows of another leader of the ownership log;
	// Change has voters, an empty one is none.
	KindLeaderChanged Kind = "leader-changed"
	// KindUpgradeBegun: another daemon is ready to take this one's place; Change has
	// versions.
	KindUpgradeBegun Kind = "upgrade-begun"
	// KindUpgraded: it has; Change has versions.
	KindUpgraded Kind = "upgraded"
	// KindUpgradeFailed: it has not, and the former daemon goes on. Text says why.
	KindUpgradeFailed Kind = "upgrade-failed"
	// KindConfigChanged: the pair's configuration is another one.
	KindConfigChanged Kind = "config-changed"
)

// Of the part that the host plays for a guest.
const (
	// KindRoleChanged: Change has primary, backup, booting, recovering,
	// restoring, yielding, waiting, stopped. Duration: in the former role.
	KindRoleChanged Kind = "role-changed"
	// KindOwnerChanged: the ownership log, as applied here, has a new Generation.
	// Change has owners, which are equal after a restart on the same host.
	KindOwnerChanged Kind = "owner-changed"
	// KindProblem: something is in the way, and is tried again. Text says what.
	KindProblem Kind = "problem"
	// KindProblemOver: it is not any more. Duration: it was.
	KindProblemOver Kind = "problem-over"
)

// Of a guest's life.
const (
	// KindStarted: an operator's start of a stopped guest is recorded.
	KindStarted Kind = "started"
	// KindBooted: it was booted here, in a new Generation. Duration: that took.
	KindBooted Kind = "booted"
	// KindRestored: it goes on from a checkpoint file, in a new Generation.
	// Duration: that took.
	KindRestored Kind = "restored"
	// KindAdopted: a restarted daemon goes on with the guest that it found.
	KindAdopted Kind = "adopted"
	// KindStopAsked: an operator wants it stopped.
	KindStopAsked Kind = "stop-asked"
	// KindStopped: it is recorded as stopped; Reason says by whom.
	KindStopped Kind = "stopped"
	// KindGuestEvent: the guest did something by itself; Reason has what.
	KindGuestEvent Kind = "guest-event"
	// KindLeaseLost: the lease ran out, and the guest stands still.
	KindLeaseLost Kind = "lease-lost"
	// KindLeaseRenewed: there is one again, and the guest goes on. Duration: it
	// stood still.
	KindLeaseRenewed Kind = "lease-renewed-again"
)

// Of its protection.
const (
	// KindModeChanged: Change has modes of the primary: starting, alone, syncing,
	// entering, protected, detaching, leaving, yielded, ended.
	KindModeChanged Kind = "mode-changed"
	// KindProtected: the log names Peer as in sync at Epoch. Duration: it was not
	// protected.
	KindProtected Kind = "protected"
	// KindUnprotected: the backup cannot be counted on, for Reason. Duration: it
	// was protected.
	KindUnprotected Kind = "unprotected"
	// KindProtectionChanged: an operator has set the switch; Change has on, paused,
	// off.
	KindProtectionChanged Kind = "protection-changed"
	// KindMismatch: the backup's memory differs from the guest's after Epoch.
	KindMismatch Kind = "mismatch"
	// KindImageGivenUp: nothing is ever continued from the backup's image.
	KindImageGivenUp Kind = "image-given-up"
	// KindDiskTrouble: a disk's writes do not become durable. Text says why.
	KindDiskTrouble Kind = "disk-trouble"
	// KindDiskWell: they do again. Duration: they did not.
	KindDiskWell Kind = "disk-well"
)

// Of a change of owner. On the new owner a failover is takeover-asked,
// takeover-granted, takeover-running, activated, first-output, protected.
const (
	// KindSwitchoverAsked: an operator wants it on the backup.
	KindSwitchoverAsked Kind = "switchover-asked"
	// KindFailbackBegun: the guest goes back to its own host, Peer, by the
	// configuration's policy. Duration: for how long it has to be protected first.
	KindFailbackBegun Kind = "failback-begun"
	// KindSurrendered: the owner has shut its gate and given the guest up, as of
	// Epoch, to Peer.
	KindSurrendered Kind = "surrendered"
	// KindTakeoverAsked: the backup acknowledges nothing any more and asks for
	// the guest, at Epoch; Reason says why. Duration: nothing was heard of the
	// owner.
	KindTakeoverAsked Kind = "takeover-asked"
	// KindTakeoverGranted: the log names it the owner of Generation. Duration:
	// since it first asked.
	KindTakeoverGranted Kind = "takeover-granted"
	// KindTakeoverRefused: the log does not.
	KindTakeoverRefused Kind = "takeover-refused"
	// KindTakeoverRunning: the guest runs here, from Epoch on. Duration: since it
	// first asked.
	KindTakeoverRunning Kind = "takeover-running"
	// KindActivated: the log has recorded that it runs here: output may leave.
	KindActivated Kind = "activated"
	// KindFirstOutput: the first frame of the guest since the takeover has left.
	// Duration: since it ran.
	KindFirstOutput Kind = "first-output"
	// KindForced: an operator has taken the guest from Peer by force; Reason says
	// how it goes on, Text what is lost: after Epoch, where it goes on from an image.
	KindForced Kind = "forced"
	// KindFenceAsked: this host has Peer fenced; Reason is policy for the
	// configuration's command, operator for a confirmation by hand.
	KindFenceAsked Kind = "fence-asked"
	// KindFenced: the log says of a guest that Peer, its owner or former owner, is
	// off. Duration: since it was asked for.
	KindFenced Kind = "fenced"
	// KindFenceFailed: it is not known to be off. Text says why.
	KindFenceFailed Kind = "fence-failed"
	// KindUnfenced: this host was fenced, and says that it is back.
	KindUnfenced Kind = "unfenced"
	// KindReturned: the new owner could not run it, and has given it back to Peer.
	KindReturned Kind = "returned"
	// KindTakenBack: the former owner has it again, and keeps it.
	KindTakenBack Kind = "taken-back"
)

// Of a copy of the guest that the backup starts in isolation.
const (
	// KindBubbleBegun: it is asked for.
	KindBubbleBegun Kind = "bubble-begun"
	// KindBubbleEnded: nothing of it is left. It was of Epoch; Reason says how it
	// went. Duration: since it was begun.
	KindBubbleEnded Kind = "bubble-ended"
)

// Of a drill's strike on this host.
const (
	// KindStruck: the host is about to be struck, for Guest's sake; Reason is kill,
	// freeze or cut. Duration: until it is undone.
	KindStruck Kind = "struck"
	// KindStrikeUndone: it is. Duration: since it struck.
	KindStrikeUndone Kind = "strike-undone"
)

const (
	// KindMissed stands, in what Log.Follow gives, for Missed events that are
	// not to be had any more. Seq is the last of them. It is not in the record.
	KindMissed Kind = "missed"
	// DrillPrefix begins the kinds of the drill engine.
	DrillPrefix Kind = "drill-"
	// KindDrillBegun: a drill of the guest begins here; Text has its ID.
	KindDrillBegun = DrillPrefix + "begun"
	// KindDrillEnded: it is over. Reason is how: held, failed, refused, skipped,
	// aborted, interrupted. Duration: it took.
	KindDrillEnded = DrillPrefix + "ended"
)

var kinds = [...]Kind{
	KindHostUp, KindHostDown, KindLeaderChanged, KindUpgradeBegun, KindUpgraded, KindUpgradeFailed, KindConfigChanged,
	KindRoleChanged, KindOwnerChanged, KindProblem, KindProblemOver,
	KindStarted, KindBooted, KindRestored, KindAdopted, KindStopAsked, KindStopped, KindGuestEvent, KindLeaseLost, KindLeaseRenewed,
	KindModeChanged, KindProtected, KindUnprotected, KindProtectionChanged, KindMismatch, KindImageGivenUp, KindDiskTrouble, KindDiskWell,
	KindSwitchoverAsked, KindFailbackBegun, KindSurrendered, KindTakeoverAsked, KindTakeoverGranted, KindTakeoverRefused, KindTakeoverRunning,
	KindActivated, KindFirstOutput, KindForced, KindReturned, KindTakenBack,
	KindFenceAsked, KindFenced, KindFenceFailed, KindUnfenced,
	KindBubbleBegun, KindBubbleEnded,
	KindStruck, KindStrikeUndone,
	KindMissed,
}

// Kinds returns every kind but those of drills.
func Kinds() []Kind { return slices.Clone(kinds[:]) }

// maxKind is the longest Kind, in bytes.
const maxKind = 64

// valid reports whether k is a word; it need not be a known one.
func (k Kind) valid() bool {
	return k != "" && len(k) <= maxKind && strings.Trim(string(k), "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// Reason says why, in a word that a program can compare; Text has the details.
// A reader must expect reasons that it does not know.
type Reason string

// Of KindHostUp.
const (
	ReasonFirst   Reason = "first"   // nothing is recorded before it
	ReasonClean   Reason = "clean"   // the daemon before it said host-down
	ReasonUnclean Reason = "unclean" // it did not: it was killed, or the host was lost
)

// Of KindUnprotected.
const (
	ReasonNoBackupYet   Reason = "no-backup-yet"  // it runs here since a moment ago: no image of it is in sync so far
	ReasonBackupSilent  Reason = "backup-silent"  // its session was lost, and did not come back in time
	ReasonBackupGone    Reason = "backup-gone"    // its host is there, and its daemon is dead
	ReasonNoAck         Reason = "no-ack"         // its session lives, and an epoch is not acknowledged in time
	ReasonBackupStalled Reason = "backup-stalled" // it took nothing while the guest stood still for it
	ReasonImageDiffers  Reason = "image-differs"  // its memory is not the guest's
	ReasonImageLost     Reason = "image-lost"     // its image is gone, or it came back with another
	ReasonNoCapture     Reason = "no-capture"     // no checkpoint of the guest can be taken
	ReasonTakenBack     Reason = "taken-back"     // the guest came back from it
)

// Of KindFailbackBegun.
const ReasonPolicy Reason = "policy" // the configuration's

// Of KindStopped, of KindSurrendered; ReasonOperator also of KindUnprotected and
// KindProtectionChanged.
const (
	ReasonOperator  Reason = "operator"
	ReasonShutdown  Reason = "shutdown"   // the guest powered itself off; also of KindGuestEvent
	ReasonGuestLost Reason = "guest-lost" // its hypervisor is gone: it goes on from the last commit
)

// Of KindForced.
const (
	ReasonImage Reason = "image" // from an image that the log did not name
	ReasonBoot  Reason = "boot"  // booted anew
)

// Of KindTakeoverAsked; ReasonOperator for one that is forced.
const (
	ReasonOwnerSilent Reason = "owner-silent"
	ReasonSurrendered Reason = "surrendered"
)

// Of KindBubbleEnded.
const (
	ReasonBubbleWell     Reason = "well"         // the copy ran, and its check, if there was one, was well
	ReasonBubbleCheck    Reason = "check-failed" // the copy ran, and its check was not
	ReasonBubbleTakeover Reason = "takeover"     // the backup was about to take the guest over
	ReasonBubbleFailed   Reason = "failed"       // it was ended, or could not be had
)
