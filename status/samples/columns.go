package samples

// What a sample says, and how it comes of two looks at a guest's primary.

import (
	"time"

	"understudy/clock"
	"understudy/host"
	"understudy/primary"
)

// Of a sample: durations in nanoseconds, rates in bytes a second.
const (
	protected   = iota // 1 or 0
	pause              // mean of the checkpoints since the sample before
	pauseP50           // of the primary's last checkpoints, and so on
	pauseP99           //
	epochLength        // mean time from one checkpoint to the next
	lag                // mean, from a checkpoint until the backup has it
	lagP50             //
	lagP99             //
	dirty              // pages that the last checkpoint found written
	heldFrames         // now
	heldBytes          //
	heldWrites         // bytes of disk writes that wait
	raw                // written by the guest
	sent               // of it, in whatever form
	onDisk             // left out: on the disk
	equal              // … equal to another page
	zero               // … zero
	unchanged          // … written with what was there
	packed             // … what differences and compression have saved
	columns
)

// Columns are the names of a sample's values.
var Columns = [columns]string{
	protected: "protected",
	pause:     "pause_ns", pauseP50: "pause_p50_ns", pauseP99: "pause_p99_ns", epochLength: "epoch_ns", lag: "lag_ns", lagP50: "lag_p50_ns", lagP99: "lag_p99_ns",
	dirty: "dirty_pages", heldFrames: "held_frames", heldBytes: "held_bytes", heldWrites: "held_write_bytes",
	raw: "raw_bytes_per_second", sent: "sent_bytes_per_second", onDisk: "on_disk_bytes_per_second", equal: "equal_bytes_per_second",
	zero: "zero_bytes_per_second", unchanged: "unchanged_bytes_per_second", packed: "packed_bytes_per_second",
}

// pageSize is that of the pages that are counted, in bytes.
const pageSize = 4096

func nothing() (v [columns]Value) {
	for i := range v {
		v[i] = Unknown()
	}
	return v
}

// look is what a host says of a guest at a moment. Its generation is 0 where the
// host does not run it.
type look struct {
	at         clock.Instant
	generation uint64
	totals     primary.Totals
	now        [columns]Value // what one look tells by itself
}

func lookAt(at clock.Instant, g host.GuestStatus) look {
	p := g.Primary
	l := look{at: at, now: nothing()}
	if p == nil || p.Mode == primary.ModeYielded || p.Mode == primary.ModeEnded { // another host runs it, or nobody does
		return l
	}
	l.generation, l.totals = uint64(p.Generation), p.Totals
	v := &l.now
	v[protected] = 0
	if g.Protected == host.ProtectedYes {
		v[protected] = 1
	}
	if p.Pause.Samples > 0 {
		v[pauseP50], v[pauseP99], v[dirty] = Value(p.Pause.Median), Value(p.Pause.P99), Value(p.Dirty)
	}
	if p.Lag.Samples > 0 {
		v[lagP50], v[lagP99] = Value(p.Lag.Median), Value(p.Lag.P99)
	}
	v[heldFrames], v[heldBytes] = Value(p.Held), Value(p.HeldBytes)
	if g.Disks != nil {
		v[heldWrites] = Value(g.Disks.Bytes)
	}
	return l
}

// between fills in what happened between two looks at the same primary.
func between(a, b look, v *[columns]Value) {
	elapsed := b.at.Sub(a.at)
	if elapsed <= 0 {
		return
	}
	if n := b.totals.Checkpoints - a.totals.Checkpoints; n > 0 {
		v[pause] = Value(float64(b.totals.PauseTime-a.totals.PauseTime) / float64(n))
		v[epochLength] = Value(float64(elapsed) / float64(n))
	}
	if n := b.totals.Commits - a.totals.Commits; n > 0 {
		v[lag] = Value(float64(b.totals.LagTime-a.totals.LagTime) / float64(n))
	}
	grown := func(of func(t primary.Totals) uint64, unit float64) float64 {
		return max(0, float64(of(b.totals))-float64(of(a.totals))) * unit / (float64(elapsed) / float64(time.Second))
	}
	all := grown(func(t primary.Totals) uint64 { return t.RawBytes }, 1)
	wire := grown(func(t primary.Totals) uint64 { return t.WireBytes }, 1)
	left := [...]struct {
		column int
		rate   float64
	}{
		{onDisk, grown(func(t primary.Totals) uint64 { return t.ReferencePages }, pageSize)},
		{equal, grown(func(t primary.Totals) uint64 { return t.CopyPages }, pageSize)},
		{zero, grown(func(t primary.Totals) uint64 { return t.ZeroPages }, pageSize)},
		{unchanged, grown(func(t primary.Totals) uint64 { return t.SamePages }, pageSize)},
	}
	rest := all - wire
	for _, l := range left {
		v[l.column] = Value(l.rate)
		rest -= l.rate
	}
	v[raw], v[sent], v[packed] = Value(all), Value(wire), Value(max(0, rest))
}
