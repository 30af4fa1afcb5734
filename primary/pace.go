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

// pauseShare is the part of the guest's time that adaptive epochs may spend in
// pauses: one tenth.
const pauseShare = 10

// pace chooses how long the guest runs before its next checkpoint. While
// nothing waits for a commit there is no reason to hurry: the ceiling. While
// frames wait, each is delayed by up to an epoch: as short as pauses of a tenth
// of the time allow.
type pace struct{ cfg Config }

// after returns the running time that should follow a checkpoint of this cost.
func (p pace) after(c Cost) time.Duration {
	if p.cfg.Floor == p.cfg.Ceiling {
		return max(p.cfg.Ceiling-c.Pause, p.cfg.Ceiling/pauseShare)
	}
	if c.Held == 0 {
		return p.cfg.Ceiling
	}
	return min(max(p.cfg.Floor, (pauseShare-1)*c.Pause), p.cfg.Ceiling)
}
