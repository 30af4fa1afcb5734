// Package ownership is the pure part of the ownership log: what the log holds
// for each guest, the commands that change it, and the one function, Apply,
// that decides whether a command holds. Package failover replicates it with
// raft; primary and backup propose commands and obey what was applied.
//
// Every command is conditional on the (generation, revision) its proposer last
// saw. A proposal whose outcome is unknown is therefore resolved by reading the
// state through a barrier, or by proposing the stricter command at the current
// revision: once that has been applied, the lost one can never apply any more
// (RULES 4).
package ownership

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"understudy/epoch"
)

// HostID is the name of a host in the configuration.
type HostID string

// Desired is what the operator wants of a guest.
type Desired string

const (
	Running Desired = "running"
	Stopped Desired = "stopped"
)

// Protection is whether the operator wants the guest protected.
type Protection string

const (
	// ProtectionOn: a backup is to be in sync. It is what a log of before there
	// was a switch says.
	ProtectionOn Protection = ""
	// ProtectionPaused: none is, for a while; the backup keeps its image, so that
	// what has changed since is all that must travel afterwards.
	ProtectionPaused Protection = "paused"
	// ProtectionOff: none is; the backup keeps nothing.
	ProtectionOff Protection = "off"
)

// Known reports whether p is one of the three.
func (p Protection) Known() bool {
	return p == ProtectionOn || p == ProtectionPaused || p == ProtectionOff
}

// String names what the log says; on has no word there.
func (p Protection) String() string {
	if p == ProtectionOn {
		return "on"
	}
	return string(p)
}

// Phase says how far the owner of a generation has come.
type Phase string

const (
	// PhaseActive: the owner may run the guest and, holding a lease, let its
	// output out.
	PhaseActive Phase = "active"
	// PhaseActivating: the owner has been granted a takeover and brings the
	// guest up. The former owner keeps its paused guest until PhaseActive.
	PhaseActivating Phase = "activating"
	// PhaseSurrendered: the owner has shut its gate, drained its I/O and given
	// the guest up; the backup in sync may take over without waiting for the
	// lease.
	PhaseSurrendered Phase = "surrendered"
)

// Backup names an image that can continue the guest.
type Backup struct {
	Host  HostID            `json:"host"`
	Image epoch.Incarnation `json:"image"`
	// Epoch is the epoch at which the image became in sync, or at which the
	// owner surrendered. The backup may hold later ones.
	Epoch epoch.Number `json:"epoch"`
}

// Guest is what the log holds for one guest. The zero value means "never
// started".
type Guest struct {
	Generation epoch.Generation `json:"generation"`
	// Revision grows by one with every applied command.
	Revision uint64  `json:"revision"`
	Owner    HostID  `json:"owner"`
	Phase    Phase   `json:"phase"`
	Desired  Desired `json:"desired"`
	// Backup is meaningful while InSync.
	Backup Backup `json:"backup"`
	InSync bool   `json:"in_sync"`
	// Previous is the owner before the last takeover; a takeover that fails is
	// returned to it.
	Previous HostID `json:"previous,omitempty"`
	// Protection outlives daemons, hosts and failovers. While it is not on,
	// nothing is InSync.
	Protection Protection `json:"protection,omitempty"`
	// ProtectionSince is when the operator chose it, in milliseconds since 1970 by
	// the clock of the host that was asked; 0: never, or not known.
	ProtectionSince int64 `json:"protection_since,omitempty"`
	// Fenced is an owner, or the one before it, that is known to be off: by a
	// fencing command, or by an operator who has seen it. It gets no lease, and
	// nobody waits for one that it had, until it says that it is back.
	Fenced HostID `json:"fenced,omitempty"`
	// LastCommand is the command that led to this revision.
	LastCommand CommandID `json:"last_command"`
}

// KeptBy reports whether a host that has lost the guest to another one still has
// it, as new as any: the other has yet to let it run. Everywhere else an older guest
// is of no use once the log names another owner.
func (g Guest) KeptBy(host HostID) bool {
	return g.Owner != host && g.Phase == PhaseActivating && g.Previous == host
}

// CommandID tells one proposal from another; a retry keeps its ID.
type CommandID [16]byte

// NewCommandID draws a fresh ID.
func NewCommandID() CommandID {
	var id CommandID
	rand.Read(id[:]) // never fails, see crypto/rand
	return id
}

// String returns the first 4 bytes in hexadecimal, enough for logs.
func (id CommandID) String() string { return hex.EncodeToString(id[:4]) }

// MarshalText encodes all 16 bytes in hexadecimal.
func (id CommandID) MarshalText() ([]byte, error) {
	return []byte(hex.EncodeToString(id[:])), nil
}

// UnmarshalText is the inverse of MarshalText.
func (id *CommandID) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(id) {
		return fmt.Errorf("command id: want %d hexadecimal digits, got %d", 2*len(id), len(text))
	}
	if _, err := hex.Decode(id[:], text); err != nil {
		return fmt.Errorf("command id %q: %w", text, err)
	}
	return nil
}

// Kind names a command.
type Kind string

const (
	// Start begins a new life of the guest on Host: first boot, boot after a
	// stop, or boot after the guest was lost with no backup in sync.
	Start Kind = "start"
	// Adopt lets a restarted daemon of the owner go on with the guest it found
	// running. The backup no longer counts as in sync.
	Adopt Kind = "adopt"
	// InSync records that Backup holds a whole checkpoint. The owner must be
	// in full output commit before it proposes this (RULES 1).
	InSync Kind = "in-sync"
	// OutOfSync records that the guest runs unprotected. Only after it has
	// been applied may the owner release output no backup acknowledged. The
	// backup says so, too, of an image of its own that is gone for good: whoever
	// waits for it to take the guest over, waits in vain.
	OutOfSync Kind = "out-of-sync"
	// Takeover makes the backup in sync the owner. The raft leader proposes it
	// only after the owner's lease has run out, or after a Surrender.
	Takeover Kind = "takeover"
	// Activated records that the new owner's guest runs.
	Activated Kind = "activated"
	// Return gives a takeover that was not completed back to the previous
	// owner, which still holds its paused guest. The new owner proposes it when
	// it cannot run the guest, the previous one when nothing is heard of the new
	// one: that is granted, as any change of owner, only after the lease of the
	// host it takes the guest from. Nothing that the guest did there has left:
	// output waits for Activated.
	Return Kind = "return"
	// Surrender gives the guest up to the backup in sync (switchover, or a
	// guest whose hypervisor died under a live daemon).
	Surrender Kind = "surrender"
	// Reclaim takes a surrendered guest back before the backup took it.
	Reclaim Kind = "reclaim"
	// Stop records that the guest is meant to be stopped.
	Stop Kind = "stop"
	// Pause, Unprotect and Protect are the operator's switch: ProtectionPaused,
	// ProtectionOff, ProtectionOn. The first two record, as OutOfSync does, that
	// the guest runs unprotected: from there on nobody takes it over, and its
	// owner need not wait for anybody.
	Pause     Kind = "pause"
	Unprotect Kind = "unprotect"
	Protect   Kind = "protect"
	// Force is the operator's: Host becomes the owner although the log would not
	// let it take the guest over, and what was acknowledged since may be lost. With
	// a Backup it goes on from that image of its own, as after a Takeover; without
	// one it boots the guest anew.
	Force Kind = "force"
	// Fence records that Target is off. Unfence is how it says that it is back; so
	// does every other command of its own, and an InSync that names it.
	Fence   Kind = "fence"
	Unfence Kind = "unfence"
)

// switches are the commands of the operator's switch, and what each leads to.
var switches = map[Kind]Protection{Pause: ProtectionPaused, Unprotect: ProtectionOff, Protect: ProtectionOn}

// SwitchTo returns the command that leads to p.
func SwitchTo(p Protection) Kind {
	switch p {
	case ProtectionPaused:
		return Pause
	case ProtectionOff:
		return Unprotect
	}
	return Protect
}

// Command is one conditional change of one guest's state.
type Command struct {
	ID    CommandID `json:"id"`
	Guest string    `json:"guest"`
	Kind  Kind      `json:"kind"`
	// Host is the proposer.
	Host HostID `json:"host"`
	// Generation and Revision are what the proposer saw; both must still hold.
	Generation epoch.Generation `json:"generation"`
	Revision   uint64           `json:"revision"`
	// Backup is the image meant: by InSync, OutOfSync, Takeover, Surrender, Force.
	Backup Backup `json:"backup"`
	// Target is the host that is off: of Fence.
	Target HostID `json:"target,omitempty"`
	// At is when the operator asked, in milliseconds since 1970 by the proposer's
	// clock: of Pause, Unprotect, Protect.
	At int64 `json:"at,omitempty"`
}

// ErrNotProposed marks a proposal that was certainly not applied, and will not be.
var ErrNotProposed = errors.New("it was not proposed")

// Refused is the error of a command whose condition did not hold. The state is
// unchanged.
type Refused struct {
	Command Command
	Reason  string
	State   Guest // as it was when the command was refused
}

func (r *Refused) Error() string {
	return fmt.Sprintf("ownership of %s: %s by %s refused: %s", r.Command.Guest, r.Command.Kind, r.Command.Host, r.Reason)
}

// Apply returns the state after c, or a *Refused and the state unchanged. A
// command that was the last one applied is accepted again without effect.
func Apply(g Guest, c Command) (Guest, error) {
	refuse := func(format string, a ...any) (Guest, error) {
		return g, &Refused{Command: c, Reason: fmt.Sprintf(format, a...), State: g}
	}
	if c.Host == "" || c.ID == (CommandID{}) {
		return refuse("it names no proposer or has no ID")
	}
	if c.ID == g.LastCommand && g.Revision > 0 {
		return g, nil
	}
	if c.Generation != g.Generation || c.Revision != g.Revision {
		return refuse("it was meant for generation %d revision %d, the log is at generation %d revision %d",
			c.Generation, c.Revision, g.Generation, g.Revision)
	}
	owner := c.Host == g.Owner
	next := g
	switch c.Kind {
	case Start:
		switch {
		case g.Generation == 0, g.Desired == Stopped && g.Phase == PhaseActive:
		case !owner:
			return refuse("%s owns the guest", g.Owner)
		case g.InSync:
			return refuse("%s is in sync and can continue the guest: surrender it instead of booting it anew", g.Backup.Host)
		case g.Phase != PhaseActive:
			return refuse("the guest is %s", g.Phase)
		}
		next.Generation++
		next.Owner, next.Phase, next.Desired = c.Host, PhaseActive, Running
		next.Backup, next.InSync, next.Previous = Backup{}, false, ""
	case Adopt:
		if !owner || g.Phase != PhaseActive {
			return refuse("owner is %s, the guest is %s", g.Owner, g.Phase)
		}
		if g.Desired != Running {
			return refuse("the guest is meant to be %s", g.Desired)
		}
		next.Generation++
		next.Backup, next.InSync, next.Previous = Backup{}, false, ""
	case InSync:
		switch {
		case !owner || g.Phase != PhaseActive:
			return refuse("owner is %s, the guest is %s", g.Owner, g.Phase)
		case g.Desired != Running:
			return refuse("the guest is meant to be %s", g.Desired)
		case c.Backup.Host == "" || c.Backup.Host == g.Owner || c.Backup.Image.IsZero() || c.Backup.Epoch == 0:
			return refuse("%+v names no image of another host", c.Backup)
		case g.Protection != ProtectionOn:
			return refuse("its protection is %s", g.Protection)
		}
		next.Backup, next.InSync = c.Backup, true
	case OutOfSync:
		gone := g.InSync && c.Host == g.Backup.Host && c.Backup.Image == g.Backup.Image
		if !gone && (!owner || g.Phase != PhaseActive) {
			return refuse("owner is %s, the guest is %s", g.Owner, g.Phase)
		}
		next.Backup, next.InSync = Backup{}, false
	case Takeover:
		switch {
		case !g.InSync:
			return refuse("no backup is in sync")
		case c.Host != g.Backup.Host || c.Backup.Image != g.Backup.Image:
			return refuse("the backup in sync is image %s of %s, not image %s of %s",
				g.Backup.Image, g.Backup.Host, c.Backup.Image, c.Host)
		case c.Backup.Epoch < g.Backup.Epoch:
			return refuse("the image holds epoch %d, the log asks for %d or later", c.Backup.Epoch, g.Backup.Epoch)
		case g.Desired != Running:
			return refuse("the guest is meant to be %s", g.Desired)
		case g.Phase == PhaseActivating:
			return refuse("another takeover is under way")
		}
		next.Generation++
		next.Previous, next.Owner, next.Phase = g.Owner, c.Host, PhaseActivating
		next.Backup, next.InSync = Backup{}, false
	case Activated:
		if !owner || g.Phase != PhaseActivating {
			return refuse("owner is %s, the guest is %s", g.Owner, g.Phase)
		}
		next.Phase, next.Previous = PhaseActive, ""
	case Return:
		if g.Phase != PhaseActivating || g.Previous == "" || !owner && c.Host != g.Previous {
			return refuse("owner is %s, the guest is %s, the previous owner %q", g.Owner, g.Phase, g.Previous)
		}
		next.Generation++
		next.Owner, next.Phase, next.Previous = g.Previous, PhaseActive, ""
	case Surrender:
		switch {
		case !owner || g.Phase != PhaseActive:
			return refuse("owner is %s, the guest is %s", g.Owner, g.Phase)
		case !g.InSync || c.Backup.Image != g.Backup.Image:
			return refuse("image %s is not in sync", c.Backup.Image)
		case c.Backup.Epoch < g.Backup.Epoch:
			return refuse("epoch %d is older than the epoch %d that became in sync", c.Backup.Epoch, g.Backup.Epoch)
		}
		next.Phase, next.Backup.Epoch = PhaseSurrendered, c.Backup.Epoch
	case Reclaim:
		if !owner || g.Phase != PhaseSurrendered {
			return refuse("owner is %s, the guest is %s", g.Owner, g.Phase)
		}
		next.Generation++
		next.Phase, next.Backup, next.InSync = PhaseActive, Backup{}, false
	case Stop:
		if g.Generation == 0 {
			return refuse("the guest was never started")
		}
		if !owner || g.Phase != PhaseActive {
			return refuse("owner is %s, the guest is %s", g.Owner, g.Phase)
		}
		next.Desired, next.Backup, next.InSync = Stopped, Backup{}, false
	case Pause, Unprotect, Protect:
		if !owner || g.Phase != PhaseActive {
			return refuse("owner is %s, the guest is %s", g.Owner, g.Phase)
		}
		if next.Protection = switches[c.Kind]; next.Protection == g.Protection {
			return refuse("its protection is %s already", g.Protection)
		}
		next.ProtectionSince = max(c.At, 0)
		if next.Protection != ProtectionOn {
			next.Backup, next.InSync = Backup{}, false
		}
	case Force:
		switch {
		case g.Generation == 0:
			return refuse("the guest was never started")
		case owner:
			return refuse("%s owns the guest already", g.Owner)
		case g.Desired != Running:
			return refuse("the guest is meant to be %s", g.Desired)
		case c.Backup != Backup{} && (c.Backup.Host != c.Host || c.Backup.Image.IsZero() || c.Backup.Epoch == 0):
			return refuse("%+v names no image of %s", c.Backup, c.Host)
		}
		next.Generation++
		next.Owner, next.Phase, next.Previous = c.Host, PhaseActive, ""
		if c.Backup != (Backup{}) {
			next.Phase, next.Previous = PhaseActivating, g.Owner
		}
		next.Backup, next.InSync = Backup{}, false
	case Fence:
		switch {
		case g.Generation == 0:
			return refuse("the guest was never started")
		case c.Target == c.Host:
			return refuse("no host fences itself")
		case c.Target == "" || c.Target != g.Owner && c.Target != g.Previous:
			return refuse("owner is %s, the previous owner %q, not %q", g.Owner, g.Previous, c.Target)
		case c.Target == g.Fenced:
			return refuse("%s is fenced already", c.Target)
		}
		next.Fenced = c.Target
	case Unfence:
		if g.Fenced == "" || c.Host != g.Fenced {
			return refuse("fenced is %q", g.Fenced)
		}
	default:
		return refuse("unknown command %q", c.Kind)
	}
	if next.Fenced == c.Host || c.Kind == InSync && next.Fenced == c.Backup.Host {
		next.Fenced = "" // it lives
	}
	next.Revision++
	next.LastCommand = c.ID
	return next, nil
}

// MinLease and MaxLease bound the length of a lease. Below the minimum the
// scheduling noise of a busy host ends leases; above the maximum nobody waits.
const (
	MinLease = 100 * time.Millisecond
	MaxLease = 60 * time.Second
)
