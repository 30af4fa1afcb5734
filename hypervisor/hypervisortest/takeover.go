package hypervisortest

import (
	"bytes"
	"testing"

	"understudy/epoch"
	"understudy/hypervisor"
)

// The stories of a guest and its standby: checkpoints, takeover, failback, and
// what a failed attempt must leave alone.

func takesOverAndFailsBack(t testing.TB, h Harness) {
	s := newStage(t, h)
	from, to := s.a, s.b
	g := s.startUp(from)
	// There, back, and there again: every former standby is protected in turn.
	for leg := range 3 {
		sb := s.standby(to, g.Spec())

		// The first copy is made while the guest runs, as a synchronisation is.
		all := s.collect(g)
		if all.Count() != g.Pages() {
			s.Fatalf("leg %d: the first collect reports %d pages of %d", leg, all.Count(), g.Pages())
		}
		s.copyPages(g, sb, all)

		for range s.Rounds {
			s.checkpoint(g, sb)
			s.workOn(g)
		}
		state := s.checkpoint(g, sb)
		committed, at := s.hash(sb), s.counter(g)

		// The guest runs on after the checkpoint; what it does then is lost.
		s.resume(g)
		s.awaitCounter(g, at+1)
		s.must(g.Destroy(), "leg %d: lose the guest", leg)

		s.must(sb.Load(s.ctx, state, nil), "leg %d: load the device state", leg)
		if now := s.hash(sb); now != committed {
			s.Fatalf("leg %d: loading the device state changed the image from %v to %v", leg, committed, now)
		}
		if now := s.counter(sb); now != at {
			s.Fatalf("leg %d: the standby's counter is %d, the checkpoint's %d", leg, now, at)
		}
		next, err := sb.Run(s.ctx)
		s.must(err, "leg %d: run the standby", leg)
		g = s.own(next)
		if now := s.counter(g); now < at {
			s.Fatalf("leg %d: the guest went on at %d, from before the checkpoint at %d", leg, now, at)
		}
		s.awaitCounter(g, at)
		from, to = to, from
	}
}

// pair is a guest that is up, paused at a checkpoint, and a standby that holds it.
func (s *stage) pair() (g *actor, sb hypervisor.Standby, state []byte) {
	s.Helper()
	g = s.startUp(s.a)
	sb = s.standby(s.b, g.Spec())
	return g, sb, s.checkpoint(g, sb)
}

func refusesGarbage(t testing.TB, h Harness) {
	s := newStage(t, h)
	g, sb, state := s.pair()
	at, image := s.counter(g), s.hash(sb)

	flipped := bytes.Clone(state)
	for i := range min(64, len(flipped)) {
		flipped[i] ^= 0xff
	}
	garbage := []struct {
		name  string
		state []byte
	}{
		{"nothing", nil},
		{"a page of noise", bytes.Repeat([]byte{0xa5, 0x5a, 0x13}, epoch.PageSize/3)},
		{"a torn state", state[:len(state)/2]},
		{"a state that begins wrongly", flipped},
	}
	for _, c := range garbage {
		s.refused(sb.Load(s.ctx, c.state, nil), "load %s", c.name)
		if now := s.hash(sb); now != image {
			s.Fatalf("loading %s failed, and changed the image from %v to %v", c.name, image, now)
		}
		s.must(sb.Reset(s.ctx), "reset after loading %s", c.name)
		if now := s.hash(sb); now != image {
			s.Fatalf("the reset after loading %s changed the image from %v to %v", c.name, image, now)
		}
	}
	s.must(g.Destroy(), "lose the guest")
	s.must(sb.Load(s.ctx, state, nil), "load the true state after %d failed attempts", len(garbage))
	next, err := sb.Run(s.ctx)
	s.must(err, "run the standby")
	s.awaitCounter(s.own(next), at)
}

func resetKeepsImage(t testing.TB, h Harness) {
	s := newStage(t, h)
	g, sb, state := s.pair()
	at, image := s.counter(g), s.hash(sb)
	s.must(g.Destroy(), "lose the guest")
	for range 2 {
		s.must(sb.Load(s.ctx, state, nil), "load the device state")
		s.must(sb.Reset(s.ctx), "reset the standby")
		if now := s.hash(sb); now != image {
			s.Fatalf("reset changed the image from %v to %v", image, now)
		}
	}
	s.must(sb.Load(s.ctx, state, nil), "load the device state")
	next, err := sb.Run(s.ctx)
	s.must(err, "run the standby")
	s.awaitCounter(s.own(next), at)
}

func refusesForeignSpec(t testing.TB, h Harness) {
	s := newStage(t, h)
	g := s.start(s.a)
	spec := g.Spec()
	bigger, smaller, huge := spec, spec, spec
	bigger.Pages++
	smaller.Pages--
	huge.Pages = 1 << 62
	foreign := []hypervisor.Spec{
		bigger, smaller, huge,
		{Pages: spec.Pages},
		{Pages: spec.Pages, Machine: []byte("{")},
		{Pages: spec.Pages, Machine: spec.Machine[:len(spec.Machine)-1]},
		{Pages: spec.Pages, Machine: append(bytes.Clone(spec.Machine), spec.Machine...)},
		{Pages: spec.Pages, Machine: make([]byte, hypervisor.MaxSpec+1)},
	}
	if h.ForeignSpecs != nil {
		foreign = append(foreign, h.ForeignSpecs(spec)...)
	}
	for i, f := range foreign {
		sb, err := s.b.Standby(s.ctx, f)
		if err == nil {
			s.dropStandby(sb)
		}
		s.refusal(err, "prepare a standby for foreign spec %d (%d pages, %d bytes)", i, f.Pages, len(f.Machine))
	}
	s.dropStandby(s.standby(s.b, spec))
}
