package leases

// property_test.go: two hosts, the log, and leaders that follow each other, each
// with a Book and a clock of its own. Messages take any time; a deposed leader
// goes on for a while. After every event an oracle that sees all clocks checks
// that nobody holds a lease but the owner that the log names, and so never two.

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"understudy/clock"
	"understudy/epoch"
	"understudy/ownership"
)

// breach is a way for the shell, or the book's maker, to break the rules.
type breach int

const (
	honest           breach = iota
	proposesHastily         // does not wait
	beginsInThePast         // a new leader does not wait out what an earlier one granted
	settlesEarly            // before the fate is known
	settlesUnknown          // takes an unknown fate for a refusal
	forgetsTheTaker         // does not count a takeover as a renewal
	confirmsNothing         // a leader renews without asking whether it leads
	countsFromAnswer        // writes a renewal down as of its request's sending
	forgetsAtOnce           // the longest lease, when the length is shortened
	breaches
)

var breachNames = [breaches]string{"honest", "proposes hastily", "begins in the past", "settles early", "settles what is unknown",
	"forgets the taker", "confirms nothing", "counts from the sending", "forgets the longest at once"}

// ticker is a clock: off by so many ppm, and by anything.
type ticker struct {
	ppm    int64
	offset clock.Instant
}

func (c ticker) at(t time.Duration) clock.Instant {
	return c.offset.Add(t + t*time.Duration(c.ppm)/1e6)
}

type leader struct {
	clock   ticker
	book    *Book
	over    bool
	last    ownership.Guest // what it had applied when it was deposed
	pending []*proposal     // appended, not committed
}

type proposal struct {
	kind     ownership.Kind
	host     int
	revision uint64
	ticket   Ticket
	by       *leader
}

type renewal struct {
	host       int
	generation epoch.Generation
	sent       clock.Instant // the host's clock
	by         *leader       // nil: on its way to one
	received   clock.Instant // the leader's
	confirmed  bool
	granted    time.Duration
}

type story struct {
	die    func(n int) int
	breach breach

	now    time.Duration
	clocks [2]ticker
	until  [2]clock.Instant    // of each host's lease
	of     [2]epoch.Generation // whose it is
	gaveUp [2]epoch.Generation // the host uses no lease up to this one

	log       ownership.Guest
	lengths   Lengths
	began     time.Duration // when the log's owner came to own it
	least     time.Duration // of the lengths since; what it must have had time for
	leader    *leader       // nil: an election
	former    *leader       // deposed
	lost      []*proposal   // that the last leader left behind
	renewals  []*renewal
	unsettled []func()
	takes     int
	renewed   int
}

var hosts = [2]ownership.HostID{hostA, hostB}

func pick[T any](s *story, from []T) (i int, ok bool) {
	if len(from) == 0 {
		return 0, false
	}
	return s.die(len(from)), true
}

func (s *story) ticker() ticker {
	return ticker{ppm: int64(s.die(1201)) - 600, offset: clock.Instant(time.Hour) * clock.Instant(1+s.die(3))}
}

// tell plays steps events and returns what the oracle found wrong.
func tell(die func(n int) int, b breach, steps int) (*story, error) {
	s := &story{die: die, breach: b, lengths: long, least: lease}
	s.clocks = [2]ticker{s.ticker(), s.ticker()}
	s.log = ownership.Guest{Generation: 1, Revision: 1, Owner: hostA, Phase: ownership.PhaseActive, Desired: ownership.Running}
	var events []func() error
	for _, e := range []struct {
		weight int
		do     func() error
	}{{4, s.passes}, {3, s.send}, {4, s.receive}, {4, s.confirm}, {3, s.grant}, {4, s.answer}, {3, s.propose}, {3, s.commit},
		{3, s.settle}, {1, s.depose}, {2, s.elect}, {1, s.resize}, {1, s.keep}} {
		events = append(events, slices.Repeat([]func() error{e.do}, e.weight)...)
	}
	for range steps {
		err := events[s.die(len(events))]()
		if err == nil {
			err = s.check()
		}
		if err != nil {
			return s, err
		}
	}
	return s, s.ends()
}

// check: whoever holds a lease is the owner.
func (s *story) check() error {
	for h, name := range hosts {
		holds := s.clocks[h].at(s.now).Before(s.until[h]) && s.of[h] > s.gaveUp[h]
		if holds && (s.log.Owner != name || s.log.Generation != s.of[h]) {
			return fmt.Errorf("%s holds a lease of generation %d for another %s, the log is at generation %d of %s",
				name, s.of[h], s.until[h].Sub(s.clocks[h].at(s.now)), s.log.Generation, s.log.Owner)
		}
	}
	return nil
}

func (s *story) passes() error {
	s.now += []time.Duration{time.Millisecond, lease / 200, lease / 50, lease / 20, lease / 10, lease / 5, lease / 2, lease}[s.die(8)]
	return nil
}

func (s *story) send() error {
	h := s.die(2)
	if s.log.Generation > s.gaveUp[h] && len(s.renewals) < 8 {
		s.renewals = append(s.renewals, &renewal{host: h, generation: s.log.Generation, sent: s.clocks[h].at(s.now)})
	}
	return nil
}

// some picks a renewal, and drops it now and then.
func (s *story) some(fits func(*renewal) bool) *renewal {
	var all []*renewal
	for _, r := range s.renewals {
		if fits(r) {
			all = append(all, r)
		}
	}
	i, ok := pick(s, all)
	if !ok {
		return nil
	}
	if s.die(30) == 0 {
		s.drop(all[i])
		return nil
	}
	return all[i]
}

func (s *story) drop(r *renewal) {
	s.renewals = slices.DeleteFunc(s.renewals, func(o *renewal) bool { return o == r })
}

func (s *story) receive() error {
	l := s.leader
	if l == nil || s.former != nil && s.die(3) == 0 {
		l = s.former // whoever asks may not know yet that another leads
	}
	if r := s.some(func(r *renewal) bool { return r.by == nil }); r != nil && l != nil {
		r.by, r.received = l, l.clock.at(s.now)
		if s.breach == countsFromAnswer {
			r.received -= clock.Instant(lease) // as if by the owner's clock, which is another
		}
	}
	return nil
}

func (s *story) confirm() error {
	if r := s.some(func(r *renewal) bool { return r.by != nil }); r != nil && (!r.by.over || s.breach == confirmsNothing) {
		r.confirmed = true
	}
	return nil
}

func (s *story) grant() error {
	r := s.some(func(r *renewal) bool { return r.confirmed && r.granted == 0 })
	if r == nil {
		return nil
	}
	applied := s.log
	if r.by.over {
		applied = r.by.last
	}
	switch a := r.by.book.Renew(Renewal{Guest: web, Who: hosts[r.host], Generation: r.generation, Received: r.received}, applied, s.lengths).(type) {
	case Granted:
		r.granted = a.Length
	default:
		s.drop(r)
	}
	return nil
}

func (s *story) answer() error {
	if r := s.some(func(r *renewal) bool { return r.granted > 0 }); r != nil {
		s.drop(r)
		if r.generation >= s.of[r.host] {
			s.of[r.host] = r.generation
			s.renewed++
			s.until[r.host] = max(s.until[r.host], r.sent.Add(r.granted))
		}
	}
	return nil
}

// after is what a command of a host leads to, if it applies.
func (s *story) after(k ownership.Kind, host int) (ownership.Guest, bool) {
	g, owner := s.log, s.log.Owner == hosts[host]
	switch {
	case k == ownership.Takeover && !owner && g.Phase != ownership.PhaseActivating:
		g.Previous, g.Owner, g.Phase = g.Owner, hosts[host], ownership.PhaseActivating
		g.Generation++
	case k == ownership.Return && g.Phase == ownership.PhaseActivating: // by the taker, or the former owner
		g.Owner, g.Phase = g.Previous, ownership.PhaseActive
		g.Generation++
	case k == ownership.Activated && owner && g.Phase == ownership.PhaseActivating:
		g.Phase = ownership.PhaseActive
	case k == ownership.Surrender && owner && g.Phase == ownership.PhaseActive:
		g.Phase = ownership.PhaseSurrendered
	default:
		return g, false
	}
	g.Revision++
	return g, true
}

func (s *story) propose() error {
	kinds := []ownership.Kind{ownership.Takeover, ownership.Takeover, ownership.Return, ownership.Activated, ownership.Surrender}
	p := &proposal{kind: kinds[s.die(len(kinds))], host: s.die(2), revision: s.log.Revision, by: s.leader}
	next, ok := s.after(p.kind, p.host)
	if !ok || s.leader == nil || p.kind == ownership.Surrender && s.die(3) > 0 {
		return nil
	}
	if s.log.Owner == hosts[p.host] && (p.kind == ownership.Surrender || p.kind == ownership.Return) {
		s.gaveUp[p.host] = s.log.Generation // it has shut its gate before it proposes that
	}
	l := s.leader
	command := by(hosts[p.host], p.kind)
	now := l.clock.at(s.now)
	takes := next.Owner != s.log.Owner && command.Host != s.log.Owner
	v := l.book.Propose(now, command, s.log, next, s.lengths)
	if w, ok := v.(Wait); ok {
		if left := w.Until.Sub(now); s.breach == honest && !w.Deciding && (left <= 0 || left > s.lengths.Longest+Drift(s.lengths.Longest)) {
			return fmt.Errorf("waits for %s, the longest lease is %s", left, s.lengths.Longest)
		}
		if s.breach != proposesHastily {
			return nil
		}
	}
	if g, ok := v.(Go); ok {
		p.ticket = g.Ticket
	}
	owned := s.clocks[0].at(s.now).Sub(s.clocks[0].at(s.began))
	if takes && s.log.Phase != ownership.PhaseSurrendered && owned < s.least {
		return fmt.Errorf("%s by %s after %s: the owner has not had the time of a lease to renew", p.kind, command.Host, owned)
	}
	l.pending = append(l.pending, p)
	if s.breach == settlesEarly {
		l.book.Settle(now, p.ticket, Refused, s.lengths)
	}
	return nil
}

func (s *story) commit() error {
	if s.leader != nil && len(s.leader.pending) > 0 {
		p := s.leader.pending[0]
		s.leader.pending = s.leader.pending[1:]
		s.apply(p)
	}
	return nil
}

// apply commits a proposal; its leader learns of it later.
func (s *story) apply(p *proposal) {
	fate := Refused
	if next, ok := s.after(p.kind, p.host); ok && p.revision == s.log.Revision {
		if next.Owner != s.log.Owner {
			s.began, s.least = s.now, s.lengths.Length
			if hosts[p.host] == s.log.Owner {
				s.least = 0 // given back: it has had its time
			}
			s.takes++
		}
		s.log, fate = next, Applied
	}
	if s.breach == forgetsTheTaker {
		fate = Refused
	}
	s.unsettled = append(s.unsettled, func() { s.fate(p, fate) })
}

func (s *story) fate(p *proposal, f Fate) {
	if p.by.over {
		f = Unknown
	}
	p.by.book.Settle(p.by.clock.at(s.now), p.ticket, f, s.lengths)
}

func (s *story) settle() error {
	if i, ok := pick(s, s.unsettled); ok {
		s.unsettled[i]()
		s.unsettled = slices.Delete(s.unsettled, i, i+1)
	}
	return nil
}

func (s *story) depose() error {
	if l := s.leader; l != nil && s.die(3) == 0 {
		l.over, l.last = true, s.log
		s.lost, s.former, s.leader = l.pending, l, nil
		for _, p := range l.pending {
			if s.breach == settlesUnknown {
				l.book.Settle(l.clock.at(s.now), p.ticket, Refused, s.lengths)
			} else {
				l.book.Settle(l.clock.at(s.now), p.ticket, Unknown, s.lengths)
			}
		}
		l.pending = nil
	}
	return nil
}

// elect: what the last leader appended is committed up to some entry, and lost
// from there, before the next one's reign begins.
func (s *story) elect() error {
	if s.leader != nil {
		return nil
	}
	for _, p := range s.lost[:s.die(len(s.lost)+1)] {
		s.apply(p)
	}
	s.lost = nil
	s.leader = &leader{clock: s.ticker()}
	start := s.leader.clock.at(s.now)
	if s.breach == beginsInThePast {
		start -= clock.Instant(time.Minute)
	}
	s.leader.book = Begin(start)
	return nil
}

// resize changes the length of a lease, in the log.
func (s *story) resize() error {
	if s.leader != nil && s.die(4) == 0 {
		s.lengths.Length = []time.Duration{lease / 4, lease / 2, lease}[s.die(3)]
		s.lengths.Longest = max(s.lengths.Longest, s.lengths.Length)
		if s.breach == forgetsAtOnce {
			s.lengths.Longest = s.lengths.Length
		}
		s.lengths.Revision++
		s.least = min(s.least, s.lengths.Length)
	}
	return nil
}

func (s *story) keep() error {
	if s.leader == nil {
		return nil
	}
	if d, _ := s.leader.book.Keep(s.leader.clock.at(s.now), s.lengths); d == Forget {
		s.lengths.Longest = s.lengths.Length
		s.lengths.Revision++
	}
	return nil
}

// ends: when nobody renews any more and everything is decided, a takeover waits
// once, no longer than a lease, and goes.
func (s *story) ends() error {
	if err := s.elect(); err != nil {
		return err
	}
	for len(s.leader.pending) > 0 {
		if err := errors.Join(s.commit(), s.check()); err != nil {
			return err
		}
	}
	for _, settle := range s.unsettled {
		settle()
	}
	l, taker := s.leader, hostB
	if s.log.Owner == taker {
		taker = hostA
	}
	next := with(s.log, func(g *ownership.Guest) { g.Owner = taker; g.Generation++ })
	for range 2 {
		switch v := l.book.Propose(l.clock.at(s.now), by(taker, ownership.Takeover), s.log, next, s.lengths).(type) {
		case Go:
			return nil
		case Wait:
			if v.Deciding {
				return errors.New("all is decided, and a proposal waits for another")
			}
			left := v.Until.Sub(l.clock.at(s.now))
			if s.breach == honest && left > s.lengths.Longest+Drift(s.lengths.Longest) {
				return fmt.Errorf("waits for %s", left)
			}
			s.now += left + left/500 // the leader's clock may be slow
		}
	}
	return errors.New("a takeover from a silent owner waits twice")
}

// Guarantee 1, RULES 3, 4, 7, 10: whatever happens, nobody holds a lease but the
// owner, and no owner loses its guest before it had a lease's time to renew.
func TestNobodyButTheOwnerHoldsALease(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		die := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "die") }
		if _, err := tell(die, honest, rapid.IntRange(1, 300).Draw(t, "steps")); err != nil {
			t.Fatal(err)
		}
	})
}

// The same with many cheaper seeds, and with each rule broken: the oracle must
// notice.
func TestTheOracleHasTeeth(t *testing.T) {
	const seeds = 2500
	for b := range breaches {
		t.Run(breachNames[b], func(t *testing.T) {
			t.Parallel()
			takes, renewed := 0, 0
			for seed := range uint64(seeds) {
				dice := rand.New(rand.NewPCG(seed, 1))
				s, err := tell(dice.IntN, b, 300)
				takes, renewed = takes+s.takes, renewed+s.renewed
				switch {
				case err != nil && b == honest:
					t.Fatalf("seed %d: %v", seed, err)
				case err != nil:
					t.Logf("noticed after %d seeds: %v", seed+1, err)
					return
				}
			}
			switch {
			case b != honest:
				t.Fatalf("nobody noticed within %d seeds", seeds)
			case takes < seeds || renewed < seeds:
				t.Fatalf("%d changes of the owner and %d renewals in %d seeds: the stories are too tame", takes, renewed, seeds)
			}
		})
	}
}
