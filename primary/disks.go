package primary

// This file is the guest's disks as its capture sees them. They take part in a
// checkpoint as the gate does: what the guest wrote is sealed in the pause,
// travels with the epoch, and reaches the real disk when the epoch is released.

import (
	"context"

	"understudy/clock"
	"understudy/epoch"
)

// Disks are the guest's disks (package disk).
type Disks interface {
	// Own says that this host owns the guest in generation g: it takes the
	// stores' locks (in the background; nothing is written before they are
	// got) and may write as far as Allow says. It is called before the guest
	// runs here, at every new generation, and again after a Quiesce that led to
	// nothing.
	Own(g epoch.Generation)
	// Seal is called while the guest stands still: every write accepted and not
	// released before belongs to epoch n. It takes down what Sealed returns.
	Seal(n epoch.Number) error
	// Sealed returns the writes of epoch n in the order in which they were
	// accepted, and the disks' own state for the backup (requests in flight,
	// what has been flushed). Both are valid until n is released, or until
	// Hold or Pass make the writes part of a later epoch. It may be called by
	// another goroutine than Seal.
	Sealed(n epoch.Number) (writes []epoch.DiskWrite, state []byte)
	// Release lets the writes of every epoch up to through reach the disk, in
	// order, behind the guest's back.
	Release(through epoch.Number)
	// Hold takes writes at once and keeps them until they are released. Those
	// sealed and not released wait for the next epoch that is sealed.
	Hold()
	// Settled reports whether no write from before Hold is on its way to a disk
	// any more; only then a checkpoint may be taken.
	Settled() bool
	// Pass lets everything held reach the disk, then every write as it comes.
	Pass()
	// Shut takes no request any more and lets nothing reach the disk any more,
	// not even what was released.
	Shut()
	// Allow lets the disks be written until the given instant and not later.
	Allow(until clock.Instant) error
	// Pressure tells that held writes near their limit.
	Pressure() <-chan struct{}
	// Drain waits until everything released has reached the disk durably and
	// nothing is on its way; the guest stands still.
	Drain(ctx context.Context) error
	// Quiesce stops writing, waits until nothing is on its way to a disk, and
	// lets the disks go for another host. The guest stands still.
	Quiesce(ctx context.Context) error

	// Snapshot returns, while the guest stands still, every write that was
	// accepted and has not reached the disk durably, in order, and the disks'
	// state, as Sealed does. It changes nothing, and the writes are copies.
	Snapshot() (writes []epoch.DiskWrite, state []byte, err error)

	// CollectDirty adds to set the pages that were written through our own
	// mapping since the last call (RULES 15), and pages whose reference in an
	// earlier epoch the backup may not be able to keep any more (RULES 17).
	CollectDirty(set *epoch.PageSet)
	// Encoding returns what decides on the pages of epoch n while it is encoded;
	// nil: nothing is left out.
	Encoding(n epoch.Number) epoch.Excluder
	// Materialised says that the backup has filled every reference up to n.
	Materialised(n epoch.Number)
	// Void says that no reference sent so far counts: the backup's image is
	// another one, or an epoch was lost. Their pages count as dirty from here
	// on; see CollectDirty.
	Void()

	// BackupHas says which of the files that the guest was started with the backup
	// has, before an epoch goes to it: pages may be left out for those alone that
	// are the same here.
	BackupHas(boot []epoch.BootFile)

	// SyncAll says that nothing is known of the backup's own copies of the disks
	// (the replicated store): they are to be compared, see NextHashes.
	SyncAll()
	// Equal says the contrary of SyncAll: a former process of this host knew the
	// backup's copies to be equal, and nothing was written since but what is held.
	Equal()
	// Unsynced returns how many bytes of the disks are known to differ or have
	// not been compared. 0 for the shared store.
	Unsynced() (differ, compare uint64)
	// NextHashes returns the next hashes to send to the backup, at most max of
	// them, or false if all have been sent.
	NextHashes(max int) (h epoch.DiskHashes, more bool, err error)
	// Differ notes the backup's answer to the hashes from first on.
	Differ(d epoch.DiskDiffers) error
	// SyncWrites returns up to max bytes of what differs, as WriteSync, and
	// counts it as sent with epoch n; in a checkpoint max is unlimited (0).
	SyncWrites(n epoch.Number, max uint64) ([]epoch.DiskWrite, error)
	// Synced says that the backup has committed epoch n: what SyncWrites sent
	// with it need not be sent again.
	Synced(n epoch.Number)
}

// noDisks are the disks of a guest that has none.
type noDisks struct{}

func (noDisks) Own(epoch.Generation)                                       {}
func (noDisks) Seal(epoch.Number) error                                    { return nil }
func (noDisks) Sealed(epoch.Number) ([]epoch.DiskWrite, []byte)            { return nil, nil }
func (noDisks) Release(epoch.Number)                                       {}
func (noDisks) Hold()                                                      {}
func (noDisks) Settled() bool                                              { return true }
func (noDisks) Pass()                                                      {}
func (noDisks) Shut()                                                      {}
func (noDisks) Allow(clock.Instant) error                                  { return nil }
func (noDisks) Pressure() <-chan struct{}                                  { return nil }
func (noDisks) Drain(context.Context) error                                { return nil }
func (noDisks) Quiesce(context.Context) error                              { return nil }
func (noDisks) Snapshot() ([]epoch.DiskWrite, []byte, error)               { return nil, nil, nil }
func (noDisks) CollectDirty(*epoch.PageSet)                                {}
func (noDisks) Encoding(epoch.Number) epoch.Excluder                       { return nil }
func (noDisks) Materialised(epoch.Number)                                  {}
func (noDisks) Void()                                                      {}
func (noDisks) BackupHas([]epoch.BootFile)                                 {}
func (noDisks) SyncAll()                                                   {}
func (noDisks) Equal()                                                     {}
func (noDisks) Unsynced() (differ, compare uint64)                         { return 0, 0 }
func (noDisks) NextHashes(int) (epoch.DiskHashes, bool, error)             { return epoch.DiskHashes{}, false, nil }
func (noDisks) Differ(epoch.DiskDiffers) error                             { return nil }
func (noDisks) SyncWrites(epoch.Number, uint64) ([]epoch.DiskWrite, error) { return nil, nil }
func (noDisks) Synced(epoch.Number)                                        {}
