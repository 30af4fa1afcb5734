package failover

// fsm.go: the state every voter holds, and how a log entry changes it. raft
// calls Apply for each committed entry in order; the leader's lease table and
// the local watchers read the same state under its lock.

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"understudy/failover/leases"
	"understudy/ownership"
)

const (
	maxGuests = 1024
	maxHosts  = 16 // hosts that ever proposed for one guest
	// history is how many of a guest's last commands are remembered by ID, so
	// that a late retry can be told "applied" or "never applied" for certain.
	history = 64
)

// record is what the log holds for one guest, beyond the guest's own state.
type record struct {
	State ownership.Guest `json:"state"`
	// Recent holds the IDs that led to the last revisions; the last one led to
	// State.Revision.
	Recent   []ownership.CommandID        `json:"recent,omitempty"`
	Sessions map[ownership.HostID]session `json:"sessions,omitempty"`
}

// applied reports whether c was applied (yes), or certainly was not (no), or
// is too old to tell.
func (r *record) applied(c ownership.Command) (yes, known bool) {
	rev := c.Revision + 1 // the revision c leads to
	if rev == 0 || rev > r.State.Revision {
		return false, true
	}
	back := r.State.Revision - rev
	if back >= uint64(len(r.Recent)) {
		return false, false
	}
	return r.Recent[uint64(len(r.Recent))-1-back] == c.ID, true
}

// result is what applying one entry came to.
type result struct {
	State   ownership.Guest
	Session session
	Lease   leases.Lengths
	// Refused says why a command did not apply, "" if it did.
	Refused string
	// Void: refused only because its session is over.
	Void bool
	// Old: the command is older than the history: it may have been applied.
	Old bool
}

type fsm struct {
	fatal func(error) // told once when the log cannot be applied

	mu       sync.Mutex
	guests   map[string]*record
	lease    leases.Lengths
	broken   error
	watchers map[string]map[*Watch]struct{}
	members  chan struct{} // a signal that who votes has changed
}

func newFSM(fatal func(error)) *fsm {
	return &fsm{fatal: fatal, guests: map[string]*record{}, watchers: map[string]map[*Watch]struct{}{},
		members: make(chan struct{}, 1)}
}

// StoreConfiguration implements raft.ConfigurationStore: who votes is raft's to
// keep, here it is only told.
func (f *fsm) StoreConfiguration(uint64, raft.Configuration) {
	select {
	case f.members <- struct{}{}:
	default: // a signal is waiting already
	}
}

// Apply applies one committed entry. A damaged entry stops this voter: from
// there on it would differ from the others.
func (f *fsm) Apply(l *raft.Log) any {
	e, err := decodeEntry(l.Data)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return f.broken
	}
	if err != nil {
		f.broken = fmt.Errorf("ownership log, entry %d: %w", l.Index, err)
		f.fatal(f.broken)
		return f.broken
	}
	switch e.Kind {
	case entryCommand:
		return f.command(*e.Command, e.Session)
	case entrySession:
		return f.session(e)
	default:
		return f.setLease(e)
	}
}

// decide says what a command comes to, changing nothing.
func (f *fsm) decide(c ownership.Command, s session) (ownership.Guest, result) {
	r := f.guests[c.Guest]
	if r == nil {
		r = &record{}
		if len(f.guests) >= maxGuests {
			return r.State, result{Refused: fmt.Sprintf("the log holds %d guests already", maxGuests)}
		}
	}
	yes, known := r.applied(c)
	if yes {
		return r.State, result{State: r.State}
	}
	if r.Sessions[c.Host] != s {
		return r.State, result{State: r.State, Void: known, Old: !known,
			Refused: fmt.Sprintf("it was proposed in session %d of %s, which is over", s.Number, c.Host)}
	}
	next, err := ownership.Apply(r.State, c)
	if refused := (*ownership.Refused)(nil); errors.As(err, &refused) {
		return r.State, result{State: r.State, Refused: refused.Reason, Old: !known}
	}
	return next, result{State: next}
}

func (f *fsm) command(c ownership.Command, s session) result {
	next, res := f.decide(c, s)
	if res.Refused != "" {
		return res
	}
	r := f.record(c.Guest)
	if next.Revision == r.State.Revision {
		return res // a retry of what was applied before
	}
	r.State = next
	if len(r.Recent) == history {
		r.Recent = append(r.Recent[:0:0], r.Recent[1:]...)
	}
	r.Recent = append(r.Recent, c.ID)
	f.notify(c.Guest)
	return res
}

func (f *fsm) record(guest string) *record {
	r := f.guests[guest]
	if r == nil {
		r = &record{}
		f.guests[guest] = r
	}
	return r
}

// session moves a host on to a new session for a guest.
func (f *fsm) session(e entry) result {
	if f.guests[e.Guest] == nil && len(f.guests) >= maxGuests {
		return result{Refused: fmt.Sprintf("the log holds %d guests already", maxGuests)}
	}
	r := f.record(e.Guest)
	now := r.Sessions[e.Host]
	switch {
	case now == e.Session:
	case now != e.From || e.Session.Number != e.From.Number+1:
		return result{State: r.State, Session: now, Refused: fmt.Sprintf("%s is in session %d", e.Host, now.Number)}
	case len(r.Sessions) >= maxHosts && now == (session{}):
		return result{State: r.State, Session: now, Refused: fmt.Sprintf("%d hosts have proposed for this guest already", maxHosts)}
	default:
		if r.Sessions == nil {
			r.Sessions = map[ownership.HostID]session{}
		}
		r.Sessions[e.Host] = e.Session
	}
	return result{State: r.State, Session: e.Session}
}

func (f *fsm) setLease(e entry) result {
	if e.Revision != f.lease.Revision {
		return result{Lease: f.lease, Refused: fmt.Sprintf("the lease's length is at revision %d, not %d", f.lease.Revision, e.Revision)}
	}
	if e.Kind == entryLease {
		f.lease.Length = e.Lease
		f.lease.Longest = max(f.lease.Longest, e.Lease)
	} else {
		f.lease.Longest = f.lease.Length
	}
	f.lease.Revision++
	return result{Lease: f.lease}
}

// The reads.

func (f *fsm) guest(name string) ownership.Guest {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.guests[name]; r != nil {
		return r.State
	}
	return ownership.Guest{}
}

func (f *fsm) all() map[string]ownership.Guest {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := make(map[string]ownership.Guest, len(f.guests))
	for name, r := range f.guests {
		m[name] = r.State
	}
	return m
}

func (f *fsm) owns(h ownership.HostID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.guests {
		if r.State.Owner == h && r.State.Desired == ownership.Running {
			return true
		}
	}
	return false
}

func (f *fsm) sessionOf(guest string, h ownership.HostID) session {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.guests[guest]; r != nil {
		return r.Sessions[h]
	}
	return session{}
}

func (f *fsm) lengths() leases.Lengths {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lease
}

// preview says what c would come to now.
func (f *fsm) preview(c ownership.Command, s session) (before ownership.Guest, res result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.guests[c.Guest]; r != nil {
		before = r.State
	}
	_, res = f.decide(c, s)
	return before, res
}

// Snapshot copies the state; raft writes the copy while entries go on.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return nil, f.broken
	}
	b, err := encodeSnapshot(snapshot{Lease: f.lease, Guests: f.guests})
	return frozen(b), err
}

// frozen is an encoded snapshot.
type frozen []byte

func (b frozen) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(b); err != nil {
		return errors.Join(fmt.Errorf("write the ownership log's snapshot %s: %w", sink.ID(), err), sink.Cancel())
	}
	return sink.Close()
}

func (frozen) Release() {}

// Restore replaces the state by a snapshot's; on an error nothing is changed.
func (f *fsm) Restore(rc io.ReadCloser) error {
	b, err := io.ReadAll(io.LimitReader(rc, maxSnapshot+1))
	if err = errors.Join(err, rc.Close()); err != nil {
		return fmt.Errorf("read the ownership log's snapshot: %w", err)
	}
	s, err := decodeSnapshot(b)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lease, f.guests = s.Lease, s.Guests
	for g := range f.watchers {
		f.notify(g)
	}
	return nil
}
