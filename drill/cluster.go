package drill

// This file is what a drill needs of the hosts, and what they say.

import (
	"context"
	"slices"
	"time"

	"understudy/clock"
	"understudy/epoch"
	"understudy/events"
	"understudy/host"
	"understudy/ownership"
)

// Cluster is the hosts, as the one that runs the drill reaches them. Every call
// ends with its context; the drill gives each a time limit. An error of a call
// that asks says that the host does not answer, or not as it should.
type Cluster interface {
	// Self is the host that runs the drill.
	Self() ownership.HostID
	Members() []Member
	// Facts are what the configuration says of a guest.
	Facts(guest string) (Facts, bool)

	Status(ctx context.Context, at ownership.HostID) (Seen, error)
	Clock(ctx context.Context, at ownership.HostID) (Reading, error)
	// Last is the number of the newest event in a host's record, Events those
	// after it, oldest first.
	Last(ctx context.Context, at ownership.HostID) (uint64, error)
	Events(ctx context.Context, at ownership.HostID, after uint64) ([]events.Event, error)
	// Busy returns the drill that another host runs, "" if none.
	Busy(ctx context.Context, at ownership.HostID) (id string, err error)

	// Operate asks the owner for switchover or verify; the answer is decoded into
	// result.
	Operate(ctx context.Context, at ownership.HostID, guest, operation string, result any) error
	Strike(ctx context.Context, at ownership.HostID, guest string, order StrikeOrder) (Struck, error)
	// Strikes are those that are not undone yet; allowed: the host lets itself be
	// struck.
	Strikes(ctx context.Context, at ownership.HostID) (allowed bool, left []Struck, err error)
	// Bubble returns when the bubble has ended; progress is told of each step.
	Bubble(ctx context.Context, at ownership.HostID, guest string, order BubbleOrder, progress func(string)) (Bubbled, error)
	// EndBubble ends a guest's bubble; that there is none is no error.
	EndBubble(ctx context.Context, at ownership.HostID, guest string) error

	// Check runs a command here. Connect makes a TCP connection and closes it.
	Check(ctx context.Context, argv []string) Ran
	Connect(ctx context.Context, address string) error
}

// Member is one of the voters.
type Member struct {
	Host    ownership.HostID `json:"host"`
	Witness bool             `json:"witness,omitempty"`
}

// Facts are what the configuration says of a guest, and no status does.
type Facts struct {
	Host, Backup ownership.HostID
	// DetachAfter is how long output waits for a silent backup.
	DetachAfter time.Duration
	// Shared: a disk that both hosts reach; Unfenced: it is taken from a silent
	// host without proof that it has let go.
	Shared, Unfenced bool
}

// Seen is what a host said of itself when it was asked.
type Seen struct {
	Host   ownership.HostID   `json:"host"`
	Leader ownership.HostID   `json:"leader"` // of the ownership log, "" if unknown
	Lease  time.Duration      `json:"lease_ns"`
	LogAge *time.Duration     `json:"log_age_ns,omitempty"` // since it heard of the log
	Guests []host.GuestStatus `json:"guests"`
}

// Guest returns what the host says of a guest.
func (s *Seen) Guest(name string) (host.GuestStatus, bool) {
	i := slices.IndexFunc(s.Guests, func(g host.GuestStatus) bool { return g.Name == name })
	if i < 0 {
		return host.GuestStatus{}, false
	}
	return s.Guests[i], true
}

// Reading is a host's clocks at one moment.
type Reading struct {
	Time   time.Time     `json:"time"`
	Boot   clock.Instant `json:"boot_ns"`
	BootID string        `json:"boot_id,omitempty"`
	// Asked and Heard are when the question went out and the answer came in, by
	// the clock of whoever asked; zero: as the whole call.
	Asked time.Time `json:"-"`
	Heard time.Time `json:"-"`
}

// StrikeOrder is a strike that is asked for.
type StrikeOrder struct {
	ID   string
	Kind Fault
	For  time.Duration
}

// Struck is a strike that was done: when, and when it undoes itself, by the
// clock of the host that was struck.
type Struck struct {
	ID       string
	At, Undo time.Time
}

// BubbleOrder is a bubble that is asked for.
type BubbleOrder struct {
	Check   []string
	Timeout time.Duration
}

// Bubbled is what came of a bubble.
type Bubbled struct {
	// Epoch is the commit that the copy was started from, Started how long that
	// took until it ran.
	Epoch   epoch.Number  `json:"epoch,omitempty"`
	Started time.Duration `json:"started_ns"`
	// Check is what the command said inside; nil if there was none.
	Check *Ran `json:"check,omitempty"`
	// Ended: nothing is left of it.
	Ended bool   `json:"ended"`
	Text  string `json:"text,omitempty"`
}

// Ran is a command that was run.
type Ran struct {
	// Status is its exit status, -1 if it was killed or could not be run.
	Status int           `json:"status"`
	Output string        `json:"output,omitempty"` // both streams, see MaxOutput
	Took   time.Duration `json:"took_ns"`
	Error  string        `json:"error,omitempty"` // why it has no exit status
}

// MaxOutput bounds what is kept of a command's output, in bytes.
const MaxOutput = 64 << 10

// Engine is the host that runs drills of a guest: the witness, else the host
// that is neither of the guest's two, else its backup.
func Engine(members []Member, f Facts) ownership.HostID {
	for _, m := range members {
		if m.Witness {
			return m.Host
		}
	}
	for _, m := range members {
		if m.Host != f.Host && m.Host != f.Backup {
			return m.Host
		}
	}
	return f.Backup
}
