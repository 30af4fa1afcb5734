package primary

import "time"

// Cost is what one checkpoint cost, step by step. The guest stood still from
// the start of Stop to the end of Resume.
type Cost struct {
	Stop   time.Duration // vCPUs asked to stop → stopped
	Seal   time.Duration // held frames drained and sealed
	Device time.Duration // device state saved, beside Scan and Copy
	Scan   time.Duration // dirty pages collected
	Copy   time.Duration // pages copied into capture memory
	Resume time.Duration
	Pause  time.Duration // all of it
	Dirty  uint64        // pages
	Held   int           // frames that wait for this epoch
}

// Shares of the guest's time that adaptive epochs may spend in pauses: a tenth,
// or a fifth while frames wait, for then somebody waits with them.
const (
	quietShare = 10
	heldShare  = 5
)

// pace chooses how long the guest runs before its next checkpoint. While frames
// wait for a commit, each is delayed by up to an epoch: the floor, as far as
// the pauses' share allows. While none waits, the target. Long pauses stretch
// both, up to the ceiling.
type pace struct{ cfg Config }

// after returns the running time that should follow a checkpoint of this cost.
func (p pace) after(c Cost) time.Duration {
	if p.cfg.Floor == p.cfg.Ceiling {
		return max(p.cfg.Ceiling-c.Pause, p.cfg.Ceiling/quietShare)
	}
	want, least := p.cfg.Target, (quietShare-1)*c.Pause
	if c.Held > 0 {
		want, least = p.cfg.Floor, (heldShare-1)*c.Pause
	}
	return min(max(want, least), p.cfg.Ceiling)
}
