// Package disk is a guest's virtual disk: what stands between the front end
// that speaks with the guest (disk/vhost; the simulated guest) and the store
// that keeps the bytes (disk/store).
//
// This file is the contract with a front end: it hands over Requests and says
// when the bytes of a read have landed in the guest.
package disk

import (
	"context"
	"errors"
	"time"

	"understudy/epoch"
)

// ErrAgain is returned by Backend.Do when the request must be offered to
// Backend.Accept again.
var ErrAgain = errors.New("the disk holds writes now: offer the request again")

// Op is what a request asks for.
type Op uint8

const (
	OpRead Op = iota + 1
	OpWrite
	OpFlush
	OpDiscard
	OpWriteZeroes
)

// Segment is a piece of guest memory that a request reads from or writes to.
type Segment struct {
	Data []byte    // in the front end's mapping of guest memory
	Page epoch.GFN // of the first byte; segments are contiguous in the image
	At   int       // offset of the first byte in Page
}

// Request is one request of the guest. The front end fills the first group and
// may reuse a Request once it is complete.
type Request struct {
	Op       Op
	Sector   uint64
	Sectors  uint32    // segments hold Sectors × 512 bytes for OpRead and OpWrite
	Segments []Segment // guest memory, in order
	Unmap    bool      // OpWriteZeroes: space may be given back

	// Buffer receives what an OpRead has read: Sectors × 512 bytes, made by the
	// front end, private to it. The front end copies it into Segments once the
	// guest may see it, and then calls Backend.Landed. nil: the read goes into
	// Segments themselves, see Splitter.Direct.
	Buffer []byte

	// Ticket is the backend's own: when the request was begun.
	Ticket uint64
	bounce *buffer   // the backend's own: what a Transfer writes
	began  time.Time // the backend's own: of a direct one
}

// Info is what the guest is told of a disk.
type Info struct {
	Sectors  uint64 // size
	Serial   string // at most 20 bytes: answer to GET_ID
	ReadOnly bool
	// MaxSectors bounds one read or write; MaxZeroSectors one discard or
	// write-zeroes.
	MaxSectors, MaxZeroSectors uint32
}

// Backend serves the requests of one disk. A front end uses it so, for each
// request, under its own lock only where that is said:
//
//	Accept (under the ring's lock; never blocks) ── taken ──> complete at once
//	   └── not taken ──> Do (no lock held; may block for as long as the disk
//	                     takes) ──> read: copy Buffer into the guest under the
//	                     ring's lock, Landed, complete
type Backend interface {
	Info() Info
	// Accept takes a write, discard, write-zeroes or flush whose effect may
	// wait for its epoch's commit: it has copied what it needs from Segments
	// and the guest may be told so. It reports false if the request must go
	// through Do. A request of a stopped front end must not be given to it.
	Accept(r *Request) (taken bool, err error)
	// Do carries a request out. ErrAgain: the disk began to hold writes
	// meanwhile; offer the request to Accept again.
	Do(ctx context.Context, r *Request) error
	// Landed is called when a read's bytes are in Segments, after they were
	// written and under the ring's lock: the pages are dirty now, and their
	// content is that of the disk.
	Landed(r *Request)
	// Touched is called after the front end itself has written to guest memory
	// (used ring, status bytes, event index): length bytes from the start of
	// page on.
	Touched(page epoch.GFN, length int)
	// Fill makes sure that pages that a lazy rebuild has yet to fill are there
	// before the front end reads or writes them through its mapping (RULES 18).
	// It costs a nil check once everything is filled.
	Fill(page epoch.GFN, count int) error
}

// Transfer is what is left of a request for its front end to do: one read or
// write of a file, or an fdatasync(2) of it. Without Data or Sync there is
// nothing left.
type Transfer struct {
	File   int // descriptor
	Write  bool
	Sync   bool
	Data   []byte // stays where it is
	Offset int64  // bytes
	// Direct: the bytes are those of the request's Segments, and Data is nil.
	Direct bool
}

// Splitter is a Backend whose Do can be split in two around the wait for the
// disk, so that the front end may have many requests under way without a
// goroutine for each:
//
//	Begin ── ok ──> the front end makes the transfer ──> End, with what came of it
//	   └── not ok ──> Do
//
// A transfer may be a direct one, between the file and guest memory itself, which
// saves two copies. The front end sees to it that none is under way where guest
// memory must not be touched: it does not say that it has stopped before they are
// over, and calls Landed for a read as soon as it is, whatever came of it.
type Splitter interface {
	Backend
	// Direct reports whether Begin would make a direct transfer of a read or
	// write now: a read needs no Buffer then. Begin may still find that it must
	// not, and says so by ok being false; with a Buffer it does not.
	Direct(r *Request) bool
	// Begin begins a request, without waiting, that was not accepted. After an
	// ok End follows, exactly once, and Do does not.
	Begin(r *Request) (t Transfer, ok bool)
	// End is what Do would have returned.
	End(r *Request, err error) error
}

// Frontend is the device as the guest's capture sees it.
type Frontend interface {
	// AppendInFlight appends, while the guest stands still, the requests that
	// were taken from the guest and not completed, in a form that Resubmit of
	// a front end on another host understands. At most MaxInFlight bytes.
	AppendInFlight(dst []byte) []byte
	// Resubmit is called before the guest runs on a new host, with what
	// AppendInFlight gave at the checkpoint: those requests are begun anew
	// once the guest runs. nil: none.
	Resubmit(state []byte) error
	// Stopped reports whether the front end has stopped touching guest memory
	// (the guest is paused, and the hypervisor has told us so).
	Stopped() bool
}

// MaxInFlight bounds Frontend.AppendInFlight, in bytes.
const MaxInFlight = 64 << 10
