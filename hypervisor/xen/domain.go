package xen

// This file is what a Guest needs of a running domain: xenctl.Domain has it from
// Xen, tests have it from a map.

import (
	"context"
	"errors"
	"fmt"

	"understudy/hypervisor/xen/xenstore"
)

// Info is what a domain is at one moment.
type Info struct {
	Domain  uint32
	UUID    [16]byte
	HVM     bool // PVH, too
	Nested  bool // paging by hardware, which log-dirty needs here
	Dying   bool
	Crashed bool
	// Shutdown says that it stands still after a shutdown of its own, for the
	// reason given: one of the Reason constants.
	Shutdown bool
	Reason   uint
	Paused   bool
	Pages    uint64 // that it has now, with those for Xen's own use
	MaxKiB   uint64
	Online   uint32 // virtual processors
	MaxVCPU  uint32 // number of the last virtual processor
	Shared   uint64 // the frame at which it has put the page that it shares with Xen
}

// Reasons of a shutdown (Xen's public/sched.h).
const (
	ReasonPowerOff  = 0
	ReasonReboot    = 1
	ReasonSuspend   = 2
	ReasonCrash     = 3
	ReasonWatchdog  = 4
	ReasonSoftReset = 5
)

// Domain is a running PVH or HVM domain. Its methods are called by one goroutine
// at a time, but for Await and Info, which another may be in.
type Domain interface {
	// Info returns syscall.ESRCH when the domain is gone.
	Info() (Info, error)
	// Memory is the domain's memory, the pages of its image in their order. It stays
	// readable until Close, also when the domain is gone.
	Memory() []byte
	// Plot is what the back ends of its devices need, but for the frames.
	Plot() Plot
	// Answers reports whether the guest has drivers that answer a request to suspend.
	Answers() (bool, error)
	// Still is called when the domain has suspended, or was found so. When it has
	// returned, its device model writes nothing to its memory until Resume. That of a
	// domain that is paused, and did not suspend, may have a request to answer, for
	// which a processor of the domain waits.
	Still(ctx context.Context) error
	// Clean returns a bit for each frame that was written since it was called last,
	// valid until the next call. whole: nobody writes to the domain's memory without the
	// log telling of it, but for those whom Written tells of.
	Clean() (words []uint64, whole bool, err error)
	// Moved returns how many pages of its image the domain, which stands still, has
	// elsewhere than in Memory: it has taken them away, and put others in their place.
	// Pages that it has only taken away are none.
	Moved() (uint64, error)
	// Limit bounds the pages that the domain may have, from here on.
	Limit(pages uint64) error
	// Written calls yield with each frame that somebody has mapped for writing, of
	// which Clean tells only when that ends.
	Written(yield func(frame uint64) bool) error
	// State fills s in with what is not memory, using its memory again. The domain
	// stands still.
	State(ctx context.Context, s *State) error
	// Resume lets a domain go on that has suspended, and its device model.
	Resume(ctx context.Context) error
	// Await returns when something has happened to the domain, or ctx has ended.
	// It may return for nothing.
	Await(ctx context.Context) error
	// Destroy ends the domain.
	Destroy() error
	// Close lets go of it.
	Close() error
}

// Asker asks a guest to suspend.
type Asker interface {
	Ask(ctx context.Context) error
	// Withdraw takes back what was asked. It reports false if the guest has
	// answered already, and will suspend.
	Withdraw(ctx context.Context) (bool, error)
	// Resumed is called after the domain was resumed.
	Resumed(ctx context.Context) error
}

// Control asks by xenstore's control/shutdown, as the toolstack does. It implements
// Asker.
type Control struct {
	Store  *xenstore.Client
	Domain uint32
}

func (c Control) path() string { return fmt.Sprintf("/local/domain/%d/control/shutdown", c.Domain) }

const askSuspend = "suspend"

// Ask writes the request. A guest without drivers for Xen never reads it.
func (c Control) Ask(ctx context.Context) error {
	return c.Store.Write(ctx, 0, c.path(), askSuspend)
}

// Withdraw looks and takes back in one transaction: the guest may answer at this
// very moment.
func (c Control) Withdraw(ctx context.Context) (withdrawn bool, err error) {
	err = c.Store.Transact(ctx, func(tx xenstore.Tx) error {
		withdrawn = false
		is, err := c.Store.Read(ctx, tx, c.path())
		if errors.Is(err, errNotThere) || err == nil && is != askSuspend {
			return nil
		}
		if err != nil {
			return err
		}
		withdrawn = true
		return c.Store.Write(ctx, tx, c.path(), "")
	})
	return withdrawn && err == nil, err
}

// Resumed has xenstored tell of the domain's next end.
func (c Control) Resumed(ctx context.Context) error { return c.Store.Resumed(ctx, c.Domain) }
