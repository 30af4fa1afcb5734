package history

// This file is the checker. It walks the lines of one guest in the order of
// their times and keeps, for each host, what its gate must be by them:
//
//	rule one-gate       at no time are the gates of two hosts open
//	rule acknowledged   what is released was acknowledged, and what leaves was
//	                    released, or left while the log named no backup in sync
//	rule lease          the gate is open under the lease of the newest generation,
//	                    and a generation belongs to one host
//	rule rising         no host is granted a lease of a lower generation than
//	                    was granted before, to whomever
//	rule wire           no captured frame left a host whose gate was not open
//	rule answer         a backup acknowledges one epoch after the other; what it
//	                    acknowledges out of turn counts for nothing
//	rule history        nothing is written that the checker does not know

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"understudy/clock"
	"understudy/egress"
	"understudy/epoch"
	"understudy/ownership"
)

// Frame is one that was captured as it left a host.
type Frame struct {
	Host string
	At   clock.Instant
}

// RuleAnswer is the one rule that a peer can break all by itself.
const RuleAnswer = "answer"

// Breach is a rule that was broken.
type Breach struct {
	Rule string
	At   clock.Instant
	Text string
}

func (b Breach) String() string { return fmt.Sprintf("%s at %v: %s", b.Rule, b.At, b.Text) }

// Slack is how long a frame may take from the gate to the cable, and how
// exactly the two clocks can be compared.
const Slack = 30 * time.Millisecond

// gateKey names one gate.
type gateKey struct {
	host string
	gate int
}

// gateState is what one gate is by its history.
type gateState struct {
	mode  egress.What
	until clock.Instant
	seals []sealed
	free  uint64 // frames before this may leave
	open  []span
}

type sealed struct {
	epoch    epoch.Number
	position uint64
}

// span is a time in which a gate was open.
type span struct {
	from, to clock.Instant
}

// hostState is what a host knows.
type hostState struct {
	log        ownership.Guest
	known      bool
	generation epoch.Generation // of its last lease
	image      epoch.Incarnation
	acked      epoch.Number
}

// Checker judges the history of one guest, piece by piece.
type Checker struct {
	gates    map[gateKey]*gateState
	hosts    map[string]*hostState
	highest  epoch.Generation
	holder   map[epoch.Generation]string
	breaches []Breach
	lines    int
	acked    int
	batches  int
	frames   int
}

// NewChecker begins with a guest that never ran.
func NewChecker() *Checker {
	return &Checker{gates: map[gateKey]*gateState{}, hosts: map[string]*hostState{}, holder: map[epoch.Generation]string{}}
}

// Result is what has been looked at and found.
type Result struct {
	Lines, Acked, Batches, Frames int // Acked are epochs
	Breaches                      []Breach
}

// Result returns what was found so far.
func (c *Checker) Result() Result {
	return Result{Lines: c.lines, Acked: c.acked, Batches: c.batches, Frames: c.frames, Breaches: c.breaches}
}

// Lines takes all lines of all hosts up to some time. They need not be in
// order, except those of one host among themselves.
func (c *Checker) Lines(lines []Line) {
	lines = slices.Clone(lines)
	slices.SortStableFunc(lines, func(a, b Line) int { return cmp.Compare(a.At, b.At) })
	for i := range lines {
		c.lines++
		c.line(&lines[i])
	}
}

// Frames takes frames that were captured up to the time of the newest line.
func (c *Checker) Frames(frames []Frame) {
	c.frames += len(frames)
	for _, f := range frames {
		open := false
		for k, g := range c.gates {
			open = open || k.host == f.Host && slices.ContainsFunc(g.open, func(s span) bool {
				return f.At >= s.from.Add(-Slack) && f.At <= s.to.Add(Slack)
			})
		}
		if !open {
			c.breach("wire", f.At, "a frame left host %s, whose gate was shut", f.Host)
		}
	}
}

// Forget drops the times of open gates that were over before some time: no frame
// captured before it will be asked about any more.
func (c *Checker) Forget(before clock.Instant) {
	for _, g := range c.gates {
		g.open = slices.DeleteFunc(g.open, func(s span) bool { return s.to.Add(Slack) < before })
	}
}

func (c *Checker) breach(rule string, at clock.Instant, format string, a ...any) {
	c.breaches = append(c.breaches, Breach{rule, at, fmt.Sprintf(format, a...)})
}

func (c *Checker) gate(l *Line) *gateState {
	k := gateKey{l.Host, l.Gate}
	g := c.gates[k]
	if g == nil {
		g = &gateState{mode: egress.NoteHold}
		c.gates[k] = g
	}
	return g
}

func (c *Checker) host(name string) *hostState {
	h := c.hosts[name]
	if h == nil {
		h = &hostState{}
		c.hosts[name] = h
	}
	return h
}

func (c *Checker) line(l *Line) {
	h := c.host(l.Host)
	switch l.What {
	case Born:
		*h = hostState{}
		for k, g := range c.gates {
			if k.host == l.Host {
				g.close(l.At) // its process is dead
				*g = gateState{mode: egress.NoteHold, open: g.open}
			}
		}
		return
	case Log:
		if !h.known || l.Revision > h.log.Revision {
			h.known = true
			h.log = ownership.Guest{Generation: l.Generation, Revision: l.Revision, Owner: l.Owner, Phase: l.Phase, InSync: l.InSync}
		}
		return
	case Renewed:
		h.generation = l.Generation
		if l.Generation < c.highest {
			c.breach("rising", l.At, "host %s was granted a lease of generation %d after one of %d", l.Host, l.Generation, c.highest)
		}
		c.highest = max(c.highest, l.Generation)
		if other, ok := c.holder[l.Generation]; ok && other != l.Host {
			c.breach("lease", l.At, "generation %d was granted to %s and to %s", l.Generation, other, l.Host)
		}
		c.holder[l.Generation] = l.Host
		return
	case Welcome:
		h.image, h.acked = l.Image, l.Epoch
		return
	case Acked:
		if l.Image != h.image || l.Epoch != h.acked+1 {
			c.breach(RuleAnswer, l.At, "host %s: epoch %d of image %v acknowledged after %d of %v", l.Host, l.Epoch, l.Image, h.acked, h.image)
			return
		}
		h.acked = l.Epoch
		c.acked++
		return
	}
	c.note(l, h, c.gate(l))
}

// note takes a line of the gate itself.
func (c *Checker) note(l *Line, h *hostState, g *gateState) {
	switch egress.What(l.What) {
	case egress.NoteAllow:
		if h.generation == 0 {
			c.breach("lease", l.At, "the gate of %s was opened without a lease", l.Host)
		}
		g.until = l.Until
		if g.mode != egress.NoteShut && g.until > l.At { // else it opens nothing any more
			c.oneGate(l)
			g.opened(l)
		}
	case egress.NoteSeal:
		g.seals = append(g.seals, sealed{l.Epoch, l.Position})
	case egress.NoteRelease:
		if l.Epoch > h.acked {
			c.breach("acknowledged", l.At, "host %s released epoch %d, acknowledged is %d", l.Host, l.Epoch, h.acked)
		}
		for len(g.seals) > 0 && g.seals[0].epoch <= l.Epoch {
			g.free = max(g.free, g.seals[0].position)
			g.seals = g.seals[1:]
		}
	case egress.NoteHold, egress.NotePass:
		g.enter(l)
		if g.mode == egress.NotePass {
			c.mayPass(l, h)
		}
		if g.until > l.At {
			c.oneGate(l)
			g.opened(l)
		}
	case egress.NoteShut:
		g.enter(l)
		g.close(l.At)
	case egress.NoteDiscard:
		g.seals, g.free = nil, l.Position
	case egress.NoteLeave:
		c.leave(l, h, g)
	case egress.NoteAnnounce:
		if g.mode == egress.NoteShut || l.At >= g.until {
			c.breach("lease", l.At, "host %s announced the guest behind a gate that is shut", l.Host)
		}
	default:
		c.breach("history", l.At, "host %s wrote %q, which nobody knows", l.Host, l.What)
	}
}

// leave judges a batch of frames.
func (c *Checker) leave(l *Line, h *hostState, g *gateState) {
	c.batches++
	end := l.Position + uint64(l.Frames)
	switch {
	case g.mode == egress.NoteShut:
		c.breach("lease", l.At, "host %s let %d frames out of a gate that is shut", l.Host, l.Frames)
	case l.At >= g.until:
		c.breach("lease", l.At, "host %s let %d frames out, its lease ended %v before", l.Host, l.Frames, l.At.Sub(g.until))
	case g.mode == egress.NotePass:
		c.mayPass(l, h)
	case end > g.free:
		c.breach("acknowledged", l.At, "host %s let frames %d to %d out, released were those before %d", l.Host, l.Position, end, g.free)
	}
}

// mayPass: everything leaves only while the log names no backup in sync, and
// the owner is who lets it out.
func (c *Checker) mayPass(l *Line, h *hostState) {
	if !h.known || h.log.InSync || string(h.log.Owner) != l.Host || h.log.Phase != ownership.PhaseActive {
		c.breach("acknowledged", l.At, "host %s lets everything out (%s), the log says: owner %s, %s, in sync: %v",
			l.Host, l.What, h.log.Owner, h.log.Phase, h.log.InSync)
	}
}

// enter changes the mode. What was on its way when everything was let out stays
// free.
func (g *gateState) enter(l *Line) {
	if g.mode == egress.NotePass || egress.What(l.What) == egress.NotePass {
		g.free = max(g.free, l.Position)
	}
	g.mode = egress.What(l.What)
	if g.mode != egress.NoteShut {
		g.seals = nil
	}
}

// opened notes that the gate is open from now to the end of its lease.
func (g *gateState) opened(l *Line) {
	if n := len(g.open); n > 0 && g.open[n-1].to >= l.At {
		g.open[n-1].to = max(g.open[n-1].to, g.until)
		return
	}
	g.open = append(g.open, span{from: l.At, to: g.until})
}

func (g *gateState) close(at clock.Instant) {
	if n := len(g.open); n > 0 && g.open[n-1].to > at {
		g.open[n-1].to = at
	}
}

// oneGate is asked when a gate opens, or goes on being open.
func (c *Checker) oneGate(l *Line) {
	for k, g := range c.gates {
		if n := len(g.open); k.host != l.Host && n > 0 && g.open[n-1].to > l.At {
			c.breach("one-gate", l.At, "the gate of %s opens, that of %s is open for another %v", l.Host, k.host, g.open[n-1].to.Sub(l.At))
		}
	}
}
