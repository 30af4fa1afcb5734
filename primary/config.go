package primary

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"understudy/epoch"
	"understudy/ownership"
	"understudy/protocol"
)

// Config holds a primary's settings. Start from DefaultConfig.
type Config struct {
	Guest string           // the guest's name
	Self  ownership.HostID // this host

	// Addresses are the guest's own, for announcing it; those seen in its
	// frames are announced in any case.
	Addresses []netip.Addr

	// PrintKey is the key of the fingerprints that references carry; Disks are
	// the guest's disks as both hosts must have them.
	PrintKey epoch.PrintKey
	Disks    []protocol.DiskSpec

	// Window is how many epochs may be captured and not yet acknowledged. Two
	// hide the way to the backup behind the next epoch; more only delay output
	// and need more memory.
	Window int
	// Floor and Ceiling bound the time between two checkpoints; within them
	// the length adapts around Target (pace.go). Floor == Ceiling fixes it.
	Floor, Target, Ceiling time.Duration

	// Lease is the length of a lease as the ownership log has it.
	Lease time.Duration
	// PauseMargin is how long before the end of the lease the guest is paused.
	PauseMargin time.Duration
	// LeaseGrace is how long after the end of a lease the session to the
	// backup is kept.
	LeaseGrace time.Duration
	// DetachAfter is how long a lost session may take to come back before the
	// backup is recorded as out of sync.
	DetachAfter time.Duration
	// AckTimeout is how long one epoch may stay unacknowledged on a live session.
	AckTimeout time.Duration
	// RestAfter is how long a guest whose captures kept failing is left alone
	// before it is tried again.
	RestAfter time.Duration
	// ReclaimAfter is how long a surrendered guest waits for its new owner, which
	// asks as soon as its log says so: time enough to elect another leader.
	ReclaimAfter time.Duration
	// TakeBackAfter is how long the host that takes this guest over may need to
	// activate it before this one, which keeps it, asks to have it back; 0: it
	// waits until the other returns. The log grants it only after the other's
	// lease. It must be 0 where the other could still write to a disk of both
	// after its lease, a disk without a lock: its replay would come late.
	TakeBackAfter time.Duration
	// Patience is how long a backup in sync is asked to wait for the next daemon
	// of this host when the guest is handed over to it.
	Patience time.Duration
	// Reconnect is the pause between two attempts to open a session, and
	// before an unsettled proposal is repeated.
	Reconnect time.Duration

	// SyncStep is how many pages one step of the initial synchronisation
	// sends; SyncEnough is how few may be left for the first checkpoint, and
	// SyncRounds how many steps may be spent on getting there.
	SyncStep, SyncEnough uint64
	SyncRounds           int

	// CaptureBytes is the memory for pages that were captured and not yet
	// sent. A checkpoint that needs more is still taken whole: the guest then
	// stands still until the network has taken the rest.
	CaptureBytes int
	// Encoder is the epoch encoder's configuration; MaxChunk bounds what one
	// message carries.
	Encoder epoch.EncoderConfig
	Effort  Compression
	// VerifyEvery is the time between two comparisons of the whole image on
	// both sides, spread over many checkpoints; 0 is never.
	VerifyEvery time.Duration
	// VerifyAll compares the whole image at every checkpoint: for tests.
	VerifyAll bool
}

// Compression says how hard the encoder works to save bytes.
type Compression string

const (
	CompressAuto  Compression = "auto"  // by what the link and the processor can bear
	CompressNone  Compression = "none"  // pages as they are
	CompressDelta Compression = "delta" // changes of pages sent before
	CompressFull  Compression = "full"  // and everything else compressed
)

// DefaultConfig returns the defaults for a lease of the given length.
func DefaultConfig(guest string, self ownership.HostID, lease time.Duration) Config {
	return Config{
		Guest: guest, Self: self,
		Window: 2, Floor: 5 * time.Millisecond, Target: 25 * time.Millisecond, Ceiling: 100 * time.Millisecond,
		Lease: lease, PauseMargin: min(lease/10, 50*time.Millisecond), LeaseGrace: 2 * lease,
		DetachAfter: lease / 2, AckTimeout: max(2*lease, 2*time.Second), ReclaimAfter: 2 * lease, TakeBackAfter: lease, RestAfter: 30 * time.Second,
		Patience:  5 * time.Second,
		Reconnect: 50 * time.Millisecond,
		SyncStep:  8192, SyncEnough: 2048, SyncRounds: 10_000,
		CaptureBytes: 96 << 20,
		Encoder:      epoch.EncoderConfig{DeltaCacheBytes: 64 << 20},
		Effort:       CompressAuto,
	}
}

// Validate checks each field and the relations between them.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	check(c.Guest != "" && c.Self != "", "guest and host need names")
	check(c.Window >= 1 && c.Window < maxWindow, "window of %d epochs: want 1 to %d", c.Window, maxWindow-1)
	check(c.Floor > 0 && c.Floor <= c.Target && c.Target <= c.Ceiling, "epoch floor %v, target %v, ceiling %v: want 0 < floor ≤ target ≤ ceiling", c.Floor, c.Target, c.Ceiling)
	check(c.Lease >= ownership.MinLease && c.Lease <= ownership.MaxLease, "lease %v: want %v to %v", c.Lease, ownership.MinLease, ownership.MaxLease)
	check(c.PauseMargin > 0 && c.PauseMargin < c.Lease/2, "pause margin %v: want less than half the lease %v", c.PauseMargin, c.Lease)
	check(c.DetachAfter > 0 && c.AckTimeout > 0 && c.ReclaimAfter > 0 && c.RestAfter > 0 && c.Reconnect > 0 && c.LeaseGrace > 0 && c.TakeBackAfter >= 0, "time limits must be positive")
	check(c.Patience > 0 && c.Patience <= protocol.MaxPatience, "patience %v: want more than nothing and at most %v", c.Patience, protocol.MaxPatience)
	check(c.SyncStep > 0 && c.SyncRounds > 0, "a sync step must send something")
	check(c.CaptureBytes >= 4*slabBytes, "capture memory of %d bytes: want at least %d", c.CaptureBytes, 4*slabBytes)
	check(uint64(c.CaptureBytes) >= c.SyncStep*epoch.PageSize/2, "capture memory of %d bytes is too small for sync steps of %d pages", c.CaptureBytes, c.SyncStep)
	switch c.Effort {
	case CompressAuto, CompressNone, CompressDelta, CompressFull:
	default:
		check(false, "compression %q: want auto, none, delta or full", c.Effort)
	}
	return errors.Join(errs...)
}

// slabBytes is the size of one piece of capture memory.
const slabBytes = 1 << 20
