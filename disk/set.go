package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"understudy/clock"
	"understudy/epoch"
)

// This file makes a Set, all disks of one guest on one host, and ends it. The way
// of a write through the package:
//
//	front end ── Device.Accept (device.go) ──> held log (held.go, journal.go),
//	   │                                       overlay (overlay.go)
//	   │                                          │ Seal, Sealed, Release (modes.go)
//	   └── Device.Do, unprotected ──> store <── flusher (flush.go)
//
// On the host that stands by, Commit (backup.go) puts the peer's writes into the
// same log, and Activate lets them go the same way.

// SetConfig says what a guest's disks are.
type SetConfig struct {
	// Pages is the size of the guest's image, for CollectDirty.
	Pages uint64
	// Disks are the guest's disks; a DiskID is an index into them. The Set
	// closes their stores.
	Disks []DiskConfig
	// Boot are files that the guest is started with. They need not be there; a
	// guest that has some needs no disk.
	Boot []BootFile
	// HeldBytes bounds the memory for held writes, and is taken at once; 0 means
	// DefaultHeldBytes, at least MinHeldBytes. Both hosts need the same.
	HeldBytes int
	// JournalDir is a directory on tmpfs, of this guest alone, where held writes
	// outlive this process; "" keeps them in this process's memory only.
	JournalDir string
	// Unfenced: after a takeover of a shared disk the guest runs before the
	// former owner's lock is got (RULES 12). Until then nothing is written, and
	// the guest's writes are kept up to HeldBytes.
	Unfenced bool
	// Guard is how long before the end of the lease the last write to a store is
	// begun: it has to cover the longest that one may take on its way. Zero
	// means DefaultGuard.
	Guard time.Duration
	Clock clock.Clock
	// Index learns what is on the disks; nil: nobody does.
	Index Index
	// Trouble, if not nil, is told that a disk fails, and with nil that it works
	// again. It must not wait, nor call the Set.
	Trouble func(disk epoch.DiskID, err error)
	// Log gets what an operator should know; nil means slog.Default.
	Log *slog.Logger
}

// DiskConfig is one disk.
type DiskConfig struct {
	Store    Store
	Serial   string // at most 20 bytes
	ReadOnly bool
}

const (
	// DefaultHeldBytes holds what a guest at 500 MB/s writes in an eighth of a
	// second.
	DefaultHeldBytes = 64 << 20
	// MinHeldBytes is room for a few requests of the largest size.
	MinHeldBytes = 4 * maxRecord
	// DefaultGuard is some writes to a disk that is not quite well.
	DefaultGuard = 100 * time.Millisecond
	maxSerial    = 20
)

// Set is all disks of one guest on one host. It implements primary.Disks and
// backup.Disks, and lives as long as the daemon.
//
// One lock, mu, protects everything but the stores. It is never held while a
// store, a front end or a callback is called, so that a slow disk delays nobody
// who does not wait for that disk.
type Set struct {
	disks   []*Device
	boots   []*bootFile
	looking sync.Mutex // one look at the boot files at a time; taken before mu
	clock   clock.Clock
	index   Index
	tell    func(disk epoch.DiskID, err error) // of trouble; nil: nobody
	log     *slog.Logger
	dirty   dirtyPages
	filler  atomic.Pointer[fillFunc]

	mu        sync.Mutex
	changed   changes
	core      core // what is decided about held writes
	held      *held
	recovered Recovered
	watchers  []watcher // who is told before a block is overwritten
	watchID   int
	sent      []sentChunks     // synchronisation under way
	there     []epoch.BootFile // the backup's boot files …
	told      bool             // … if it has said so
	fresh     bool             // nobody can have a reference to a boot file that this host would have to fill
	count     counters

	pressure chan struct{}
	done     chan struct{}
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// fillFunc makes sure that pages which a lazy rebuild has yet to fill are there.
type fillFunc = func(first epoch.GFN, count uint64) error

// Recovered says what a former process left in the journal.
type Recovered struct {
	Writes     uint64           `json:"writes"` // accepted and not flushed
	Bytes      uint64           `json:"bytes"`
	Released   uint64           `json:"released"` // of Writes: they were committed, or the guest was unprotected
	Generation epoch.Generation `json:"generation"`
	// Missing: held writes outlive a process here, and none has left any. A guest
	// that is found running was told of writes which are lost.
	Missing bool `json:"missing,omitempty"`
}

// changes wakes everybody who waits for the Set to change.
type changes struct{ ch chan struct{} }

func (c *changes) wait() <-chan struct{} {
	if c.ch == nil {
		c.ch = make(chan struct{})
	}
	return c.ch
}

func (c *changes) tell() {
	if c.ch != nil {
		close(c.ch)
		c.ch = nil
	}
}

// signal leaves a token in a channel that has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ErrClosed is returned to whoever uses a Set after Close.
var ErrClosed = errors.New("the guest's disks are closed")

// NewSet opens the journal, takes in what a former process left there, and
// starts one flusher for each disk. Until Own, StandBy or Activate says whose
// disks these are, every request waits and nothing is written. On an error the
// stores stay the caller's.
func NewSet(c SetConfig) (*Set, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("disks: %w", err)
	}
	// A record may leave its own size unused at the ring's end.
	size := roundUp(uint64(c.HeldBytes), journalHeader) + roundUp(maxRecord, journalHeader)
	j, found, err := openJournal(c.JournalDir, size)
	if err != nil {
		return nil, fmt.Errorf("disks: %w", err)
	}
	s := &Set{
		clock: c.Clock, index: c.Index, tell: c.Trouble, log: c.Log, dirty: newDirtyPages(c.Pages), held: newHeld(j, uint64(c.HeldBytes)), fresh: true,
		pressure: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.core = core{unfenced: c.Unfenced, guard: c.Guard, log: s.held.entries, asOf: ^uint64(0)}
	for i, d := range c.Disks {
		s.disks = append(s.disks, newDevice(s, epoch.DiskID(i), d))
	}
	for _, b := range c.Boot {
		s.boots = append(s.boots, &bootFile{BootFile: b})
	}
	s.syncAllLocked()
	if found {
		if err := s.recover(); err != nil {
			return nil, errors.Join(fmt.Errorf("disks: %w", err), j.close())
		}
	}
	s.recovered.Missing = c.JournalDir != "" && s.recovered.Generation == 0
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	for _, d := range s.disks {
		s.running.Go(func() { d.flush(ctx) })
		s.running.Go(func() { d.learn(ctx) })
	}
	s.running.Go(func() { s.look() })
	return s, nil
}

func (c *SetConfig) check() error {
	if c.Clock == nil {
		return errors.New("a clock is needed")
	}
	if len(c.Disks)+len(c.Boot) == 0 || len(c.Disks) > epoch.MaxDisks {
		return fmt.Errorf("%d of them: want 1 to %d", len(c.Disks), epoch.MaxDisks)
	}
	if c.Pages > epoch.MaxPages {
		return fmt.Errorf("an image of %d pages: at most %d", c.Pages, uint64(epoch.MaxPages))
	}
	for _, b := range c.Boot {
		if int(b.ID) < len(c.Disks) || b.ID >= epoch.MaxDisks {
			return fmt.Errorf("the %s %s cannot be disk %d beside %d disks", b.Name, b.Path, b.ID, len(c.Disks))
		}
	}
	for i, d := range c.Disks {
		if d.Store == nil {
			return fmt.Errorf("disk %d has no store", i)
		}
		if n := d.Store.Sectors(); n == 0 || n > epoch.MaxSectors {
			return fmt.Errorf("disk %d has %d sectors: want 1 to %d", i, n, uint64(epoch.MaxSectors))
		}
		if len(d.Serial) > maxSerial {
			return fmt.Errorf("disk %d: serial %q is longer than %d bytes", i, d.Serial, maxSerial)
		}
	}
	if c.HeldBytes == 0 {
		c.HeldBytes = DefaultHeldBytes
	}
	if c.HeldBytes < MinHeldBytes {
		return fmt.Errorf("%d bytes for held writes: want at least %d", c.HeldBytes, MinHeldBytes)
	}
	if c.Guard == 0 {
		c.Guard = DefaultGuard
	}
	if c.Guard < 0 {
		return fmt.Errorf("a guard of %v: want more than nothing", c.Guard)
	}
	if c.Index == nil {
		c.Index = noIndex{}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return nil
}

// recover takes in what a former process held.
func (s *Set) recover() error {
	h := s.held
	released := h.j.word(wordReleased).Load()
	s.core.numbered(h.j.word(wordSeq).Load())
	err := h.recover(func(i uint64, e *entry) error {
		if err := s.checkEntry(e); err != nil {
			return fmt.Errorf("the journal of held writes does not fit these disks: %w", err)
		}
		s.recovered.Writes++
		s.recovered.Bytes += uint64(e.dataBytes())
		if e.pos < released {
			s.recovered.Released++
			s.core.releaseTo(i + 1)
		}
		s.disks[e.disk].take(i, e)
		s.core.numbered(e.seq)
		return nil
	})
	if err != nil {
		return err
	}
	s.core.recovered(epoch.Generation(h.j.word(wordGeneration).Load()))
	s.recovered.Generation = s.core.generation
	return nil
}

// checkEntry refuses a write that these disks cannot have.
func (s *Set) checkEntry(e *entry) error {
	if int(e.disk) >= len(s.disks) {
		return fmt.Errorf("a write to disk %d: there are %d", e.disk, len(s.disks))
	}
	if e.kind == epoch.WriteBarrier {
		return nil
	}
	return s.disks[e.disk].checkSectors(e.sector, e.sectors)
}

// Disk returns one of the guest's disks.
func (s *Set) Disk(id epoch.DiskID) *Device { return s.disks[id] }

// Disks returns how many there are.
func (s *Set) Disks() int { return len(s.disks) }

// Recovered says what was found in the journal as the Set was made.
func (s *Set) Recovered() Recovered {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recovered
}

// SetFiller names what makes sure that pages of the guest are in its memory
// before a front end touches them; nil: all are.
func (s *Set) SetFiller(f func(first epoch.GFN, count uint64) error) {
	if f == nil {
		s.filler.Store(nil)
		return
	}
	s.filler.Store(&f)
}

// kick wakes every flusher.
func (s *Set) kick() {
	for _, d := range s.disks {
		signal(d.kick)
	}
}

// waitLocked waits for the Set to change. The lock is held before and after.
func (s *Set) waitLocked(ctx context.Context) error {
	ch := s.changed.wait()
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close ends the flushers, after the store's call they are in, and closes the
// stores. What is held stays in the journal. No front end may use the Set any
// more, and nobody what Sealed has returned.
func (s *Set) Close() error {
	s.mu.Lock()
	if s.core.closed {
		s.mu.Unlock()
		return nil
	}
	s.core.close()
	close(s.done)
	s.changed.tell()
	s.stop()
	s.mu.Unlock()
	s.running.Wait()
	s.mu.Lock()
	for s.core.busy() { // requests that go straight to a store
		_ = s.waitLocked(context.Background()) // never cancelled
	}
	s.mu.Unlock()
	var err error
	for _, d := range s.disks {
		err = errors.Join(err, d.store.Close())
	}
	err = errors.Join(err, s.closeBoot())
	s.mu.Lock()
	defer s.mu.Unlock()
	if err = errors.Join(err, s.held.j.close()); err != nil {
		return fmt.Errorf("closing the guest's disks: %w", err)
	}
	return nil
}
