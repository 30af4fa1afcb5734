// Package drill proves on a running pair that a failure would be survived, and
// puts everything back. A drill goes, phase by phase,
//
//	Spec → preconditions → clocks → act → wait → checks → return → verify → cleanup
//	     → evidence (records, samples, probe) → guarantees → Report
//
// on a host that it does not strike (run.go). It reaches the hosts through the
// interface Cluster alone. What it does is undone on every path: strikes undo
// themselves, a bubble is ended, the guest is brought back (cleanup.go).
//
// Beside it stand what a drill would do (MakePlan) and what a failure would do
// (Foretell), both pure functions of what the hosts say of themselves; the
// report as table, JSON, JUnit XML and one HTML page; the history of reports
// (History); and Runner, which runs one drill at a time, by hand or by schedule.
package drill

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"understudy/config"
)

// Kind says what a drill does.
type Kind string

const (
	// Switchover moves the guest to its backup in good order.
	Switchover Kind = "switchover"
	// Failover strikes the guest's host, see Fault.
	Failover Kind = "failover"
	// Bubble starts the backup's copy where nobody sees it, while the guest goes on.
	Bubble Kind = "bubble"
)

// Fault is how a failover drill strikes the owner.
type Fault string

const (
	Kill   Fault = "kill"   // daemon and guest die at once
	Freeze Fault = "freeze" // both stand still for a time
	Cut    Fault = "cut"    // the host does not reach the others for a time
)

// Spec is one drill, as the configuration or an operator describes it.
type Spec struct {
	// Name is the configured drill's; "" for one that is described ad hoc.
	Name  string `json:"name,omitempty"`
	Guest string `json:"guest"`
	Kind  Kind   `json:"kind"`
	Fault Fault  `json:"fault,omitempty"` // of a failover
	// FaultFor is how long the fault lasts; 0: long enough for a takeover.
	FaultFor time.Duration `json:"fault_for_ns,omitempty"`
	// Check is a command that finds the guest well (exit status 0), run without a
	// shell on the host that runs the drill; of a bubble, inside its network.
	Check        []string      `json:"check,omitempty"`
	CheckTimeout time.Duration `json:"check_timeout_ns,omitempty"`
	// Probe is a TCP address that is connected to all the time, to see the outage
	// as a client does.
	Probe string `json:"probe,omitempty"`
	// MaxOutage is the longest outage that passes; 0: any.
	MaxOutage time.Duration `json:"max_outage_ns,omitempty"`
	// Stay leaves the guest where the drill brought it.
	Stay bool `json:"stay,omitempty"`
	// Patience bounds each wait for the guest to be protected, and the verify.
	Patience time.Duration `json:"patience_ns,omitempty"`
	// Schedule is when it runs by itself, see config.Schedule; "" for never.
	Schedule string `json:"schedule,omitempty"`
}

const (
	DefaultCheckTimeout = 30 * time.Second
	DefaultPatience     = 15 * time.Minute
	// MinFault is the least time of a strike that is not given, MaxFault the most
	// of any.
	MinFault = 10 * time.Second
	MaxFault = 5 * time.Minute

	maxWord     = 64 // bytes of a name
	maxArgs     = 64
	maxArgBytes = 4096 // of all arguments of a check together
)

// SetDefaults fills in what was left out.
func (s *Spec) SetDefaults() {
	if s.Kind == Failover && s.Fault == "" {
		s.Fault = Kill
	}
	if s.CheckTimeout == 0 {
		s.CheckTimeout = DefaultCheckTimeout
	}
	if s.Patience == 0 {
		s.Patience = DefaultPatience
	}
}

// Validate says everything that is wrong with the spec.
func (s *Spec) Validate() error {
	var all []error
	bad := func(format string, a ...any) { all = append(all, fmt.Errorf(format, a...)) }
	if s.Name != "" && !isName(s.Name) {
		bad("name %.80q: 1 to %d lower case letters, digits and inner dashes", s.Name, maxWord)
	}
	if s.Guest == "" || len(s.Guest) > maxWord || !utf8.ValidString(s.Guest) || strings.ContainsFunc(s.Guest, unicode.IsControl) {
		bad("guest %.80q is not the name of a guest", s.Guest)
	}
	switch s.Kind {
	case Switchover, Bubble:
		if s.Fault != "" || s.FaultFor != 0 {
			bad("a fault is for a failover, not for a %s", s.Kind)
		}
	case Failover:
		if s.Fault != Kill && s.Fault != Freeze && s.Fault != Cut {
			bad("fault %.40q is none of kill, freeze, cut", string(s.Fault))
		}
	default:
		bad("kind %.40q is none of switchover, failover, bubble", string(s.Kind))
	}
	for _, one := range []struct {
		name      string
		is        time.Duration
		low, high time.Duration
	}{
		{"fault time", s.FaultFor, 100 * time.Millisecond, MaxFault},
		{"check timeout", s.CheckTimeout, time.Millisecond, time.Hour},
		{"max outage", s.MaxOutage, time.Millisecond, 24 * time.Hour},
		{"patience", s.Patience, time.Second, 24 * time.Hour},
	} {
		if one.is != 0 && (one.is < one.low || one.is > one.high) {
			bad("%s %v is not between %v and %v", one.name, one.is, one.low, one.high)
		}
	}
	if err := checkArgs(s.Check); err != nil {
		bad("%w", err)
	}
	if s.Probe != "" {
		if err := checkProbe(s.Probe); err != nil {
			bad("%w", err)
		}
	}
	if s.Schedule != "" {
		if _, err := config.ParseSchedule(s.Schedule); err != nil {
			bad("%w", err)
		}
	}
	return errors.Join(all...)
}

func isName(s string) bool {
	return s != "" && len(s) <= maxWord && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-' && s[len(s)-1] != '-'
}

func checkArgs(argv []string) error {
	if len(argv) == 0 {
		return nil
	}
	total := 0
	for _, a := range argv {
		total += len(a)
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("check: the argument %.40q has a NUL", a)
		}
	}
	switch {
	case len(argv) > maxArgs || total > maxArgBytes:
		return fmt.Errorf("check: %d arguments of %d bytes, at most %d and %d", len(argv), total, maxArgs, maxArgBytes)
	case !strings.HasPrefix(argv[0], "/"):
		return fmt.Errorf("check: %.80q is not an absolute path of a command", argv[0])
	}
	return nil
}

func checkProbe(address string) error {
	name, port, err := net.SplitHostPort(address)
	n, notPort := strconv.ParseUint(port, 10, 16)
	if err != nil || name == "" || notPort != nil || n == 0 || len(name) > 253 {
		return fmt.Errorf("probe %.80q is not host:port, nor [IPv6]:port", address)
	}
	return nil
}

// title names the drill for people.
func (s *Spec) title() string {
	t := string(s.Kind)
	if s.Kind == Failover {
		t += " by " + string(s.Fault)
	}
	t += " of " + s.Guest
	if s.Name != "" {
		t = s.Name + ": " + t
	}
	return t
}
