// Package host is one host's part in a pair: it follows the ownership log and,
// guest by guest, is what the log says this host is.
//
//	log says                      this host
//	owner is me, active           runs the guest: package primary
//	owner is another              stands by: package backup
//	owner is me, no guest here    gives it up, adopts it or boots it (recover.go)
//
// Each guest has one goroutine (manager.go) that goes from role to role; a
// second one accepts the sessions of primaries on other hosts and hands each to
// the guest it is for (accept.go).
package host

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"understudy/backup"
	"understudy/bubble"
	"understudy/clock"
	"understudy/disk"
	"understudy/epoch"
	"understudy/exclusion"
	"understudy/hypervisor"
	"understudy/ownership"
	"understudy/primary"
	"understudy/protocol"
)

// Ownership is the ownership log, as package failover offers it.
type Ownership interface {
	Renew(ctx context.Context, guest string, g epoch.Generation) (clock.Instant, error)
	Propose(ctx context.Context, c ownership.Command) (ownership.Guest, error)
	Watch(ctx context.Context, guest string) <-chan ownership.Guest
	// Read returns the state as of some time after the call.
	Read(ctx context.Context, guest string) (ownership.Guest, error)
	// Lease is the length of a lease in the log, 0 while it is not known.
	Lease() time.Duration
}

// Gate is a guest's way to the network; it lives as long as the daemon.
type Gate interface {
	primary.Gate
	Discard()
	// OnFirst lets f be called, once, when the guest's next frame has left; nil:
	// nobody is told any more. f must not wait, nor call the gate.
	OnFirst(f func())
	Close() error
}

// Disks are the guest's disks, in whichever role this host plays; they live as
// long as the daemon.
type Disks interface {
	primary.Disks
	backup.Disks
	Status() disk.Status
	// Excluded counts the pages that were left out of checkpoints, by reason.
	Excluded() exclusion.Stats
	Close() error
}

// Guest is what this host needs to play its part for one guest. Home, Peer,
// Primary, Backup and Dial can change while it runs, see Change.
type Guest struct {
	Name string
	Home ownership.HostID // boots the guest the first time
	Peer ownership.HostID // the other host of the pair
	// Hypervisor is the adapter's name, for checkpoint files.
	Hypervisor string
	// Driver runs the guest here.
	Driver hypervisor.Driver
	// Gate is the guest's way out. The Host closes it.
	Gate Gate
	// Disks are the guest's; nil if it has none that can be written. The Host
	// closes them, after the driver has let go of the guest.
	Disks Disks
	// History is what checkpoint files need of Disks; nil if they are.
	History History
	// FailbackAfter is how long Home has to have protected the guest on Peer until
	// the daemon brings it back there by itself; 0: an operator does.
	FailbackAfter time.Duration
	// OnStop is what GoDown does with the guest where it runs.
	OnStop OnStop
	// Copies says that each host has a copy of its own of one of the disks.
	Copies bool
	// Shared says that one of the disks is one for both hosts.
	Shared bool
	// Primary and Backup make the two roles' settings for a lease length.
	Primary func(lease time.Duration) primary.Config
	Backup  func(lease time.Duration) backup.Config
	// Bubbles is where copies of the guest can run in isolation; nil: nowhere.
	Bubbles bubble.Ground
	// LeftFile is a file on a tmpfs, of this guest alone, for what a daemon leaves
	// to the next one; "": guests are not handed over. LeftPages is how many pages
	// an image may have.
	LeftFile  string
	LeftPages uint64
	// Dial opens a session to Peer.
	Dial func(ctx context.Context) (protocol.Session, error)
}

// Config is what a Host is made of.
type Config struct {
	Self   ownership.HostID
	Guests []Guest
	Log    Ownership
	// Accept returns the next session that another host opened, with the
	// host's verified name. It fails once ctx ends.
	Accept func(ctx context.Context) (protocol.Session, ownership.HostID, error)
	Clock  clock.Clock
	Slog   *slog.Logger
	// AdoptLater leaves running guests alone when Run ends, for the next
	// process to adopt; otherwise they are destroyed.
	AdoptLater bool
	// Fence makes sure that another host is off, and FenceAfter says how long a
	// takeover from it may stand still before, and whether there is a way at all.
	// nil: an operator does it (FenceConfirm).
	Fence      func(ctx context.Context, host ownership.HostID) error
	FenceAfter func(host ownership.HostID) (after time.Duration, has bool)
	// Drilling names a drill that runs on a host of the pair, "" if none is known of;
	// nil: there are none.
	Drilling func(ctx context.Context) (id string)
	// Events is told what happens; nil: nobody is.
	Events Events
}

// Host plays this host's part for all its guests.
type Host struct {
	cfg Config

	mu       sync.RWMutex
	managers map[string]*manager
	// begin starts the goroutines of a manager that Run waits for; nil while Run
	// does not run.
	begin func(m *manager)
}

// New returns a Host; Run starts it.
func New(cfg Config) (*Host, error) {
	h := &Host{cfg: cfg, managers: make(map[string]*manager)}
	for _, g := range cfg.Guests {
		if h.managers[g.Name] != nil {
			return nil, fmt.Errorf("guest %q is configured twice", g.Name)
		}
		h.managers[g.Name] = h.newManager(g)
	}
	return h, nil
}

func (h *Host) newManager(g Guest) *manager {
	m := &manager{Guest: g, host: h, sessions: make(chan backup.Opened),
		restores: make(chan *restoring), starts: make(chan *starting), slog: h.cfg.Slog.With("guest", g.Name),
		goOn: make(chan struct{}, 1), said: sayings{read: make(chan struct{})}, ended: make(chan struct{}), bubbles: bubbles{cleaned: make(chan struct{})}}
	m.settings.Store(&g)
	return m
}

// Run plays the part until ctx ends. It returns after every goroutine has
// ended and every gate is closed.
func (h *Host) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var workers sync.WaitGroup
	workers.Go(func() { h.accept(ctx) })
	h.mu.Lock()
	h.begin = func(m *manager) {
		ctx, cancel := context.WithCancel(ctx)
		m.cancel = cancel
		if h.cfg.Events != nil {
			workers.Go(func() { m.tellOwners(ctx) })
		}
		workers.Go(func() { m.goHome(ctx) })
		workers.Go(func() { m.fenceSilent(ctx) })
		workers.Go(func() {
			defer close(m.ended)
			var bubbles sync.WaitGroup
			bubbles.Go(func() { m.serveBubbles(ctx) })
			m.run(ctx)
			bubbles.Wait()
		})
	}
	for _, m := range h.managers {
		h.begin(m)
	}
	h.mu.Unlock()
	<-ctx.Done()
	h.mu.Lock()
	h.begin = nil // nobody comes any more
	h.mu.Unlock()
	workers.Wait()
	for _, m := range h.managers {
		m.close()
	}
	return nil
}

// close closes what the daemon has of a guest that its manager has left.
func (m *manager) close() {
	if err := m.Gate.Close(); err != nil {
		m.slog.Warn("gate not closed cleanly", "err", err)
	}
	if m.Disks != nil {
		if err := m.Disks.Close(); err != nil {
			m.slog.Warn("disks not closed cleanly", "err", err)
		}
	}
}

// manager returns the guest's manager.
func (h *Host) manager(guest string) (*manager, error) {
	h.mu.RLock()
	m := h.managers[guest]
	h.mu.RUnlock()
	if m == nil {
		return nil, fmt.Errorf("no guest %q on host %s: see the [[guest]] sections of the configuration", guest, h.cfg.Self)
	}
	return m, nil
}
