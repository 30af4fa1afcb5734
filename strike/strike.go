// Package strike lets a drill strike this host, and undoes it.
//
//	Spec ── Check ──> Record (what will be done, and how it is undone), on the disk
//	                    │
//	       agent: `understudyd strike RECORD`, a process of its own, which
//	       outlives the daemon it kills (agent.go)
//	                    │ at Record.At            │ at Record.Undo
//	                  strike ── Acts ──> undo ──> the record is removed
//
// kill ends the daemon and one guest's machine, and starts the daemon again;
// freeze stops both; cut drops the pair's TCP port from and to the other hosts.
//
// What is not undone by the agent, since that was killed itself, is undone by
// the next daemon, as it starts (Undo). Until then: a cut is mended by the kernel
// in time, whoever dies (its rules match a set whose elements run out); a killed
// daemon stays dead until it is started; a frozen one, and its machine, stay
// frozen: `kill -CONT` wakes them, and the record names them.
package strike

import (
	"errors"
	"fmt"
	"regexp"
	"time"
)

// Kind is what is done.
type Kind string

const (
	Kill   Kind = "kill"   // SIGKILL to the daemon and the guest's machine; the daemon is started again
	Freeze Kind = "freeze" // SIGSTOP to both, SIGCONT later
	Cut    Kind = "cut"    // the pair's TCP port is cut off from the other hosts
)

const (
	// DefaultFor is how long a strike lasts that does not say it.
	DefaultFor = 10 * time.Second
	MinFor     = 100 * time.Millisecond
	MaxFor     = 5 * time.Minute
	// Lead is the time from the answer to the strike: the answer has to get away.
	Lead = 500 * time.Millisecond
	// MaxID is the longest ID, in bytes.
	MaxID = 64
)

// Spec is a strike that is asked for.
type Spec struct {
	// ID names it: letters, digits, dots, dashes and underscores.
	ID   string `json:"id"`
	Kind Kind   `json:"kind"`
	// For is until it is undone, in nanoseconds: MinFor to MaxFor; 0 is DefaultFor.
	For time.Duration `json:"for_ns,omitempty"`
}

// ids are names of files.
var ids = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func checkID(id string) error {
	if len(id) > MaxID || !ids.MatchString(id) {
		return fmt.Errorf("the strike's id %.80q: want 1 to %d letters, digits, dots, dashes and underscores", id, MaxID)
	}
	return nil
}

// Check fills in what was left out and says what is wrong.
func (s *Spec) Check() error {
	if s.For == 0 {
		s.For = DefaultFor
	}
	if err := checkID(s.ID); err != nil {
		return err
	}
	switch s.Kind {
	case Kill, Freeze, Cut:
	default:
		return fmt.Errorf("a strike of kind %.40q: want %s, %s or %s", s.Kind, Kill, Freeze, Cut)
	}
	if s.For < MinFor || s.For > MaxFor {
		return fmt.Errorf("a strike for %v: want %v to %v", s.For, MinFor, MaxFor)
	}
	return nil
}

// Struck is what becomes of a Spec: when, by this host's clock, and whom.
type Struck struct {
	ID    string `json:"id"`
	Kind  Kind   `json:"kind"`
	Guest string `json:"guest"`
	// At is when it strikes, shortly after the answer; Undo when it is undone.
	At   time.Time `json:"at"`
	Undo time.Time `json:"undo"`
	// Machines are the processes of the guest that are struck with the daemon,
	// which is Daemon; none for a guest that is simulated in it.
	Daemon   int   `json:"daemon,omitempty"`
	Machines []int `json:"machines"`
	// Also are the other guests that this host has a part in: the daemon serves
	// all, so they lose their primary or their backup here, too.
	Also []string `json:"also_struck"`
	// Restart says who starts a killed daemon again: AgentStarts or ManagerStarts.
	Restart string `json:"restart,omitempty"`
}

// Who starts a killed daemon again.
const (
	AgentStarts   = "agent"           // as it was: its program, arguments, directory and environment
	ManagerStarts = "service-manager" // systemd, as its unit says
)

// ErrBusy: one strike at a time on a host.
var ErrBusy = errors.New("this host is being struck already")
