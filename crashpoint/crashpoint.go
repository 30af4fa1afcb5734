// Package crashpoint names the steps of the protocol at which a test can stop a
// daemon, to kill, freeze or cut off something exactly there.
//
//	the engine ── At(Captured) ──> nothing, in a program that people run
//	                          └──> with the build tag crashpoints: a test that has
//	                               armed that point hears of it, and At returns
//	                               when it says so
//
// The points are in the shells, never in a pure core. At stops the goroutine it
// is called by, nothing else: what the rest of the daemon does meanwhile is part
// of the trial.
package crashpoint

// Point is one step.
type Point string

// The primary's steps.
const (
	Hello             Point = "hello"            // a session's Hello is about to be sent
	SyncBegun         Point = "sync-begun"       // every page counts as dirty for a new image
	HoldBegun         Point = "hold-begun"       // output is about to be held
	InSyncProposed    Point = "in-sync-proposed" // about to be proposed, as all that are "proposed"
	OutOfSyncProposed Point = "out-of-sync-proposed"
	SurrenderProposed Point = "surrender-proposed"
	ActivatedProposed Point = "activated-proposed"
	StopProposed      Point = "stop-proposed"
	CapturePaused     Point = "capture-paused"  // the guest stands still, nothing is copied
	Captured          Point = "captured"        // the guest runs again, the epoch is on its way
	Sent              Point = "sent"            // the whole epoch is sent
	AckReceived       Point = "ack-received"    // and not acted upon
	Released          Point = "released"        // the epoch's output may leave
	LeaseRenewed      Point = "lease-renewed"   // and the gate does not know of it
	LeaseLost         Point = "lease-not-given" // a renewal failed
)

// The backup's steps.
const (
	Staged         Point = "staged"          // a whole epoch is verified, nothing is acknowledged
	AckSent        Point = "ack-sent"        // and nothing is applied, unless the epoch is verified: then all is
	Applied        Point = "applied"         // pages and writes of the epoch are in the image
	Materialised   Point = "materialised"    // pages that were left out are filled
	TakeoverAsked  Point = "takeover-asked"  // about to be proposed
	ReturnProposed Point = "return-proposed" // a grant is about to be given back
	Loaded         Point = "loaded"          // the device state is in the waiting machine
	Granted        Point = "granted"
	DisksActivated Point = "disks-activated" // this host writes to the disks
	Running        Point = "running"         // the machine runs here, the log does not know
)

// The disks' steps, on whichever host.
const (
	FlushWritten Point = "flush-written" // held writes are written, not yet durable
	Flushed      Point = "flushed"       // and durable, but still in the log of held writes
)

// The steps of a host that comes back.
const (
	AdoptionBegun Point = "adoption-begun" // before the guest is looked for
	Adopted       Point = "adopted"        // found and taken over, the log does not know
	Surrendering  Point = "surrendering"   // its guest is gone, its backup is in sync
	Booting       Point = "booting"
)

// The leader's steps.
const (
	LeaseGranted    Point = "lease-granted"    // a renewal is about to be answered
	TakeoverDecided Point = "takeover-decided" // the lease is waited out, renewals are shut, the entry is not written
	TakeoverApplied Point = "takeover-applied" // and now it is, but not answered
)

// All lists every point.
func All() []Point {
	return []Point{
		Hello, SyncBegun, HoldBegun, InSyncProposed, OutOfSyncProposed, SurrenderProposed, ActivatedProposed, StopProposed,
		CapturePaused, Captured, Sent, AckReceived, Released, LeaseRenewed, LeaseLost,
		Staged, AckSent, Applied, Materialised, TakeoverAsked, ReturnProposed, Loaded, Granted, DisksActivated, Running,
		FlushWritten, Flushed,
		AdoptionBegun, Adopted, Surrendering, Booting,
		LeaseGranted, TakeoverDecided, TakeoverApplied,
	}
}
