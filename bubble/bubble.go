// Package bubble starts the backup's copy of a guest in isolation, while the
// primary goes on protected, and throws it away: a drill that harms nothing.
//
//	Run (run.go) ── surroundings: machine, disks, network (Ground, Place)
//	     │
//	     ├─ Fork (fork.go): between two commits the backup hands over its image as
//	     │   of one commit; later commits copy a page before they overwrite it, and
//	     │   a copier brings the rest
//	     ├─ the copy runs: Load, Run
//	     ├─ Check (check.go): a command, in the bubble's network
//	     └─ everything is taken away
//
// What the bubble's guest writes stays in memory, what it sends stays in a
// network of its own (bubble/isolate). The backup comes first: whatever goes
// wrong with a bubble ends the bubble, a takeover ends it at once, and no
// acknowledgement depends on it.
package bubble

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"understudy/epoch"
)

// Spec says what to do in a bubble.
type Spec struct {
	// Check is a command and its arguments, which looks at the guest from inside
	// the bubble's network; empty: none is run.
	Check []string `json:"check,omitempty"`
	// Timeout bounds Check; 0: DefaultTimeout.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
	// Hold leaves the bubble there so long after Check, for somebody to look at.
	Hold time.Duration `json:"hold_ns,omitempty"`
	// Address is the host's own in the bubble's network, with its prefix length;
	// "": the configured one.
	Address string `json:"address,omitempty"`
}

// Bounds of a Spec.
const (
	DefaultTimeout = 30 * time.Second
	MaxTimeout     = 10 * time.Minute
	MaxHold        = time.Hour
	maxArguments   = 64
	maxArgument    = 4096 // bytes
)

// Validate says what is wrong with a Spec.
func (s Spec) Validate() error {
	switch {
	case s.Timeout < 0 || s.Timeout > MaxTimeout:
		return fmt.Errorf("bubble: a time limit of %v for the check: want at most %v", s.Timeout, MaxTimeout)
	case s.Hold < 0 || s.Hold > MaxHold:
		return fmt.Errorf("bubble: to be held for %v: want at most %v", s.Hold, MaxHold)
	case len(s.Check) > maxArguments:
		return fmt.Errorf("bubble: a check of %d words: want at most %d", len(s.Check), maxArguments)
	case len(s.Check) > 0 && s.Check[0] == "":
		return errors.New("bubble: the check has no program")
	}
	for i, word := range s.Check {
		if len(word) > maxArgument {
			return fmt.Errorf("bubble: word %d of the check has %d bytes: want at most %d", i, len(word), maxArgument)
		}
	}
	if s.Address != "" {
		if p, err := netip.ParsePrefix(s.Address); err != nil || p.Addr().IsUnspecified() || p.Addr().IsMulticast() {
			return fmt.Errorf("bubble: address %q: want one with its prefix length, like 192.0.2.1/24", s.Address)
		}
	}
	return nil
}

// Result is how a bubble went. Times are in nanoseconds when encoded as JSON.
type Result struct {
	Guest string `json:"guest"`
	// Epoch and Image name the commit that was forked.
	Epoch epoch.Number `json:"epoch"`
	Image string       `json:"image"`
	// CommitAge is how old that commit was as the fork was made.
	CommitAge time.Duration `json:"commit_age_ns"`
	// Prepared is how long the surroundings took: network, disks, waiting machine.
	Prepared time.Duration `json:"prepared_ns"`
	// ForkTime is how long the backup stood still for the fork.
	ForkTime time.Duration `json:"fork_ns"`
	// CopyTime is from the fork to the whole copy.
	CopyTime time.Duration `json:"copy_ns"`
	// RunsAfter is from the fork to the running copy.
	RunsAfter time.Duration `json:"runs_after_ns"`
	// Check is what the command said; missing: there was none.
	Check *Check `json:"check,omitempty"`
	// Pages is the size of the image. Ahead of them were copied because a later
	// commit was about to overwrite them, Filled were still only on a disk.
	Pages  uint64 `json:"pages"`
	Ahead  uint64 `json:"pages_copied_ahead"`
	Filled uint64 `json:"pages_filled"`
	// SetAside is what of the disks was kept because it was about to be
	// overwritten, Written what the bubble's guest wrote and nobody else saw, in
	// bytes.
	SetAside uint64 `json:"disk_bytes_set_aside"`
	Written  uint64 `json:"disk_bytes_written"`
	// Commits is how many later epochs the backup committed meanwhile. HeldUp is
	// for how long the bubble kept the backup from its work for them in all, and
	// HeldUpMost for one of them: an upper bound of what the primary could notice.
	Commits    uint64        `json:"commits_meanwhile"`
	HeldUp     time.Duration `json:"held_up_ns"`
	HeldUpMost time.Duration `json:"held_up_most_ns"`
	// Took is from the request to its end, when nothing of the bubble was left.
	Took time.Duration `json:"took_ns"`
}

// Well reports whether the copy came up and its check, if there was one, found
// nothing wrong.
func (r Result) Well() bool { return r.Check == nil || r.Check.Well() }

// Check is what became of the command.
type Check struct {
	Command []string `json:"command"`
	// Exit is its exit status, -1 if it was ended by a signal or never ran.
	Exit     int           `json:"exit"`
	TimedOut bool          `json:"timed_out"`
	Took     time.Duration `json:"took_ns"`
	// Output is what it wrote to its standard output and error, at most MaxOutput
	// bytes of it.
	Output    string `json:"output"`
	Truncated bool   `json:"truncated"`
	// Error says why it could not be run.
	Error string `json:"error,omitempty"`
}

// Well reports whether the command ended by itself with status 0.
func (c Check) Well() bool { return c.Exit == 0 && !c.TimedOut && c.Error == "" }

// MaxOutput bounds what is kept of a check's output, in bytes.
const MaxOutput = 64 << 10

// Progress is told how far a bubble is: done of total, in pages for StageCopy,
// in milliseconds for StageHold, and no measure otherwise.
type Progress func(stage string, done, total uint64)

// The stages of a bubble, in order.
const (
	StagePrepare = "preparing" // network, disks, the waiting machine
	StageFork    = "forking"   // the next moment between two commits
	StageCopy    = "copying"
	StageStart   = "starting"
	StageCheck   = "checking"
	StageHold    = "holding"
	StageEnd     = "ending"
)

func (p Progress) tell(stage string, done, total uint64) {
	if p != nil {
		p(stage, done, total)
	}
}

// Why a bubble ends before its time.
var (
	// ErrTakeover: this host takes the guest over, or tries to.
	ErrTakeover = errors.New("the backup is about to take the guest over, which comes first")
	// ErrImageGone: the backup's image is replaced or given up.
	ErrImageGone = errors.New("the backup's image is gone")
	// ErrNotFed: the primary's session has ended, so that nobody tells any more
	// what becomes of a shared disk.
	ErrNotFed = errors.New("the primary's session has ended, and the guest has a disk that both hosts share: " +
		"what was on it at the commit is not known any more")
	// ErrEnded: somebody asked for its end.
	ErrEnded = errors.New("the bubble was ended on request")
)
