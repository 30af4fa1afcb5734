// Package hypervisor says what a guest and a standby are, whatever runs them.
// hypervisor/qemu, hypervisor/xen and hypervisor/sim are the adapters;
// hypervisor/hypervisortest is the suite that each of them has to pass.
//
// A guest's whole state is an image (pages) and a device state (bytes). The
// primary reads both from a Guest, the backup keeps both for a Standby, and
// when the guest's host is lost the Standby becomes a Guest:
//
//	Guest:   Pause → AppendDeviceState ∥ CollectDirty+ReadPages → Resume
//	Standby: WritePages … → Load(device state) → Run → Guest
package hypervisor

import (
	"context"

	"understudy/epoch"
)

// Image is a guest's memory: RAM first, then every other RAM block.
type Image interface {
	// Pages is the size of the image, in pages of epoch.PageSize bytes. It
	// does not change during the life of a guest.
	Pages() uint64
	// ReadPages copies len(dst)/epoch.PageSize pages, starting at first, into
	// dst. It allocates nothing. It may run while the guest runs; then a page
	// may be torn, but every write after the last CollectDirty is reported by
	// the next.
	ReadPages(first epoch.GFN, dst []byte) error
}

// Guest is a virtual machine that this process runs. Its methods may be called
// from several goroutines; Pause and Resume are called by one.
type Guest interface {
	Image
	// Spec describes the machine, so that a Standby able to take this guest's
	// state can be made from it on another host.
	Spec() Spec
	// Pause stops every vCPU and lets running device requests settle. After it
	// has returned nothing writes to the image until Resume, and the guest
	// emits nothing more. Pausing a paused guest is no error.
	Pause(ctx context.Context) error
	// Resume lets a paused guest run on.
	Resume(ctx context.Context) error
	// CollectDirty adds to set every page written since the page was last
	// collected, by whatever part of the machine, and forgets them: the caller
	// now answers for them. The first call reports every page. When it fails,
	// nothing is known and the caller must count every page as dirty.
	CollectDirty(set *epoch.PageSet) error
	// AppendDeviceState appends the state of vCPUs and devices to dst and
	// returns the longer slice. The guest must be paused. It writes nothing to
	// the image, and may run beside CollectDirty and ReadPages.
	AppendDeviceState(ctx context.Context, dst []byte) ([]byte, error)
	// Fill returns once the given pages are in the image. Only a guest that was
	// activated while its Standby's Filler still missed some has anything to do:
	// whoever touches the image otherwise than by this interface (our own disk
	// back end, through its own mapping) calls it first (RULES 18).
	Fill(first epoch.GFN, count uint64) error
	// Alive returns an error once the machine is gone, without waiting for
	// anything: Events tells the same, later.
	Alive() error
	// Events tells what the guest does by itself. The channel is closed when
	// the guest is gone. The guest's owner must keep reading it.
	Events() <-chan Event
	// Detach lets go of the guest without stopping it, so that a later process
	// can adopt it. The Guest must not be used afterwards.
	Detach() error
	// Destroy ends the guest at once and frees what it held on this host.
	// It returns after the guest is gone; a second call does nothing.
	Destroy() error
}

// Booting is a Guest whose own drivers have a part in its Pause.
type Booting interface {
	// Ready returns why the guest cannot be paused yet, nil once it can.
	Ready() error
}

// Standby is a guest that is not running yet: an image kept up to date, and a
// machine started ahead that will take it over.
type Standby interface {
	Image
	// WritePages copies data into the image, starting at page first. It
	// allocates nothing. It must not be called after Load.
	WritePages(first epoch.GFN, data []byte) error
	// Load puts the device state of the last commit into the waiting machine,
	// which stays paused. A failure leaves the image as it was; Reset then
	// brings a fresh machine for another attempt.
	//
	// missing, if not nil, supplies the pages that the image lacks: from here on
	// each is fetched when the machine first touches it, and, once the guest
	// runs, also behind it, one after the other, until none is left. Pages
	// outside of main memory are fetched before Load returns.
	Load(ctx context.Context, deviceState []byte, missing Filler) error
	// Fill is Guest.Fill of the machine that has been loaded: its disks' back
	// end needs pages as soon as the machine begins to run, before Run has
	// returned the Guest. It may be called from Load to the end of that Guest,
	// also while Run is under way.
	Fill(first epoch.GFN, count uint64) error
	// Reset replaces the waiting machine by a fresh one on the same image.
	Reset(ctx context.Context) error
	// Run lets the loaded machine run and returns it as a Guest of this host.
	// The Standby must not be used afterwards.
	Run(ctx context.Context) (Guest, error)
	// Destroy ends the waiting machine and frees the image.
	Destroy() error
}

// Filler supplies the pages of an image that were left out of its checkpoints
// (package rebuild). Its methods may be called from several goroutines.
type Filler interface {
	// Missing adds to set every page that is not in the image yet.
	Missing(set *epoch.PageSet)
	// Content puts a missing page's content into dst, which is one page long.
	// It may wait for a disk. After an error, which says that the page cannot
	// be had (now), it may be asked again.
	Content(page epoch.GFN, dst []byte) error
	// Filled says that a page is in the image now.
	Filled(page epoch.GFN)
}

// Sweeper is a Filler that can supply what nobody waits for in the order in which
// it is quickest to come by, many pages at a time.
type Sweeper interface {
	Filler
	// Sweep calls put with adjacent pages that may still be missing, and their
	// content, for all that are, and returns after the last call, or after ctx
	// has ended, or an error of put. What cannot be had is left out: Content says
	// why. Put is called by one goroutine at a time and keeps nothing of content.
	Sweep(ctx context.Context, put func(first epoch.GFN, content []byte) error) error
}

// Spec describes a machine to another host of the same adapter.
type Spec struct {
	// Pages is the size of the image in pages.
	Pages uint64 `json:"pages"`
	// Machine is the adapter's own description: what must be equal on both
	// hosts and what the standby needs before the first checkpoint. Bounded by
	// MaxSpec; the receiving adapter checks every field of it.
	Machine []byte `json:"machine"`
}

// MaxSpec bounds Spec.Machine, in bytes.
const MaxSpec = 64 << 20

// Driver runs guests on this host. One Driver serves one configured guest.
type Driver interface {
	// Start boots the guest from nothing. It returns with the guest paused:
	// the caller lets it run once ownership allows it.
	Start(ctx context.Context) (Guest, error)
	// Adopt finds a guest that a former process of this host detached from or
	// died under, and takes it on. It returns ErrNoGuest if there is none.
	// The guest comes back paused, every page dirty.
	Adopt(ctx context.Context) (Guest, error)
	// Standby prepares a machine on this host that can take over the guest
	// that spec describes, with an image of its own.
	Standby(ctx context.Context, spec Spec) (Standby, error)
	// Clean ends whatever a former process left of this guest on this host:
	// running machines, images, sockets. It returns after they are gone.
	Clean(ctx context.Context) error
}

// Resumer is a Driver that can take a guest on as a former process of this host
// left it.
type Resumer interface {
	// Resume is Adopt. exact says that the guest stood still all the time, and that
	// its next CollectDirty reports what was written since the former process
	// collected last, and nothing else; otherwise it reports every page.
	Resume(ctx context.Context) (g Guest, exact bool, err error)
}

// Leftover is a Driver that can tell cheaply whether a former process of this host
// may have left something of the guest.
type Leftover interface{ Left() bool }

// Whole is a Driver whose machines cannot wait for a page: Load fetches all that is
// missing. Who has the pages at hand gives them before.
type Whole interface{ Whole() }

// Beginner is a Driver that hands a Standby out while its machine is being made.
type Beginner interface {
	// BeginStandby is Standby, but returns as soon as the image can be written.
	// Made returns when the machine is there, or why it cannot be: then Destroy
	// is all that is left to do. Load, Reset and Destroy wait for the machine
	// by themselves. ctx is of its making, too: it must last until made returns.
	BeginStandby(ctx context.Context, spec Spec) (standby Standby, made func() error, err error)
}

// Event is something the guest did by itself.
type Event struct {
	Kind   EventKind
	Detail string // the hypervisor's own words
}

// EventKind says what happened. After every kind but EventReset the guest
// stands still, and stays so until the owner acts (RULES 6: nothing vanishes
// by itself).
type EventKind uint8

const (
	EventShutdown EventKind = iota + 1 // the guest powered itself off
	EventReset                         // the guest rebooted and runs on
	EventPanic                         // the guest's kernel reported a panic
	EventExited                        // the hypervisor process is gone
	EventFault                         // the hypervisor stopped the guest on an error, or a page of it cannot be rebuilt
)

func (k EventKind) String() string {
	switch k {
	case EventShutdown:
		return "shutdown"
	case EventReset:
		return "reset"
	case EventPanic:
		return "panic"
	case EventExited:
		return "exited"
	case EventFault:
		return "fault"
	}
	return "unknown"
}
