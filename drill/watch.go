package drill

// This file watches while a drill runs: every host is asked for its status again
// and again, the probe knocks at the guest's door, and whoever waits for
// something to become true is woken by each answer.

import (
	"context"
	"fmt"
	"sync"
	"time"

	"understudy/epoch"
	"understudy/host"
	"understudy/ownership"
)

const (
	sampleEvery = 100 * time.Millisecond
	knockEvery  = 50 * time.Millisecond
	// knockTime bounds a knock. A lost SYN is sent again after a second: another
	// knock finds the guest sooner.
	knockTime = time.Second
)

// told is what a host said last. Times are since the drill began.
type told struct {
	guest        host.GuestStatus
	seen         Seen
	asked, heard time.Duration
	err          error
}

// watcher asks and remembers.
type watcher struct {
	c     Cluster
	guest string
	began time.Time

	mu      sync.Mutex
	last    map[ownership.HostID]told
	samples []Sample
	knocks  []Knock
	pulse   pulse
	facts   watched
	news    chan struct{} // closed at the next answer

	workers sync.WaitGroup
	cancel  context.CancelFunc
}

// watched is what follows from all answers, however many were dropped.
type watched struct {
	answers int
	// acked is, for each generation, the highest epoch that its owner was seen to
	// have acknowledged, and when it was asked.
	acked map[epoch.Generation]acked
	// image is, for each generation, what its backup last said of its image.
	image map[epoch.Generation]imaged
	// runs is, for each generation, who was seen to run the guest under a lease,
	// and between when and when.
	runs map[epoch.Generation]map[ownership.HostID]span
	// unprotected is when the guest was first seen not to be.
	unprotected *time.Duration
}

type acked struct {
	epoch epoch.Number
	at    time.Duration
}

type imaged struct {
	epoch     epoch.Number
	committed time.Duration // when, by the drill's clock
	error     time.Duration
}

// span is from the first answer to the last question: surely then.
type span struct{ first, last time.Duration }

// watch begins; stop ends it.
func watch(ctx context.Context, c Cluster, guest, probe string, began time.Time) *watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{c: c, guest: guest, began: began, last: map[ownership.HostID]told{}, news: make(chan struct{}), cancel: cancel,
		facts: watched{acked: map[epoch.Generation]acked{}, image: map[epoch.Generation]imaged{}, runs: map[epoch.Generation]map[ownership.HostID]span{}}}
	for _, m := range c.Members() {
		w.workers.Go(func() { w.ask(ctx, m.Host) })
	}
	if probe != "" {
		w.workers.Go(func() { w.knock(ctx, probe) })
	}
	return w
}

func (w *watcher) stop() {
	w.cancel()
	w.workers.Wait()
}

func (w *watcher) now() time.Duration { return time.Since(w.began) }

func (w *watcher) ask(ctx context.Context, at ownership.HostID) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, askTime)
		t := told{asked: w.now()}
		t.seen, t.err = w.c.Status(call, at)
		cancel()
		if ctx.Err() != nil {
			return
		}
		t.heard = w.now()
		t.guest, _ = t.seen.Guest(w.guest)
		w.note(at, t)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// note takes an answer.
func (w *watcher) note(at ownership.HostID, t told) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last[at] = t
	close(w.news)
	w.news = make(chan struct{})
	s := Sample{At: t.heard, Host: at}
	if t.err == nil {
		s.Role = t.guest.Role
		w.facts.note(at, t)
	}
	switch p, b := t.guest.Primary, t.guest.Backup; {
	case p != nil:
		s.HeldBytes, s.Epoch, s.Protected = p.HeldBytes, p.Epoch, t.guest.Protected == host.ProtectedYes
		if s.Protected {
			lag := p.EpochAge
			s.Lag = &lag
		}
	case b != nil:
		s.Epoch = b.Epoch
	case t.err == nil:
		return // the witness has nothing to show
	}
	w.samples = thinSamples(append(w.samples, s), 2*maxSamples)
}

func (f *watched) note(at ownership.HostID, t told) {
	f.answers++
	if p := t.guest.Primary; p != nil {
		if was := f.acked[p.Generation]; p.Epoch >= was.epoch && p.Epoch > 0 {
			f.acked[p.Generation] = acked{p.Epoch, t.asked}
		}
		if p.Running && p.LeaseLeft > 0 {
			of := f.runs[p.Generation]
			if of == nil {
				of = map[ownership.HostID]span{}
				f.runs[p.Generation] = of
			}
			s, again := of[at]
			if !again {
				s.first = t.heard
			}
			s.last = t.asked
			of[at] = s
		}
		if t.guest.Protected != host.ProtectedYes && f.unprotected == nil {
			when := t.heard
			f.unprotected = &when
		}
	}
	if b := t.guest.Backup; b != nil && b.Epoch > 0 {
		f.image[t.guest.Log.Generation] = imaged{epoch: b.Epoch, committed: (t.asked+t.heard)/2 - b.EpochAge, error: (t.heard - t.asked) / 2}
	}
}

// knock connects every knockEvery, whatever became of those before.
func (w *watcher) knock(ctx context.Context, address string) {
	var under sync.WaitGroup
	defer under.Wait()
	tick := time.NewTicker(knockEvery)
	defer tick.Stop()
	for {
		under.Go(func() {
			k := Knock{At: w.now()}
			call, cancel := context.WithTimeout(ctx, knockTime)
			err := w.c.Connect(call, address)
			cancel()
			if err != nil && ctx.Err() != nil {
				return
			}
			k.OK, k.Took = err == nil, w.now()-k.At
			w.mu.Lock()
			defer w.mu.Unlock()
			w.knocks = thinKnocks(append(w.knocks, k), 2*maxKnocks)
			if k.OK {
				w.pulse.beat(k.At + k.Took)
			}
			close(w.news)
			w.news = make(chan struct{})
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// pulse finds the longest time without an answer to a knock.
type pulse struct {
	last, longest, since time.Duration // since: when the longest began
	beats                int
}

func (p *pulse) beat(at time.Duration) {
	if at < p.last {
		return // an answer that overtook an earlier one
	}
	if gap := at - p.last; p.beats > 0 && gap > p.longest {
		p.longest, p.since = gap, p.last
	}
	p.last = at
	p.beats++
}

// board is what all hosts said last.
type board map[ownership.HostID]told

// log is the newest word of the ownership log that is known.
func (b board) log() (newest ownership.Guest) {
	for _, t := range b {
		if t.err == nil && t.guest.Log.Revision > newest.Revision {
			newest = t.guest.Log
		}
	}
	return newest
}

// answers reports whether a host has answered.
func (b board) answers(h ownership.HostID) bool {
	t, ok := b[h]
	return ok && t.err == nil
}

// runs reports whether a host runs the guest, and may.
func (b board) runs(h ownership.HostID) bool {
	t := b[h]
	return b.answers(h) && t.guest.Primary != nil && t.guest.Primary.Running && t.guest.Log.Owner == h && t.guest.Log.Phase == ownership.PhaseActive
}

// protected reports whether the guest is protected, as its owner and the log say.
func (b board) protected() (by ownership.HostID, ok bool) {
	log := b.log()
	t, there := b[log.Owner]
	if !there || t.err != nil || !log.InSync || log.Phase != ownership.PhaseActive || t.guest.Log.Revision != log.Revision || t.guest.Protected != host.ProtectedYes {
		return "", false
	}
	return log.Backup.Host, true
}

// until waits until done says so of what the hosts have said since until was
// called (what they said before is of before), but not longer than within. Its
// error says what was waited for, and how things are.
func (w *watcher) until(ctx context.Context, within time.Duration, what string, done func(board) (bool, error)) error {
	limit := time.NewTimer(within)
	defer limit.Stop()
	since := w.now()
	for {
		b, news := w.board(since)
		if ok, err := done(b); ok || err != nil {
			return err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit.C:
			return fmt.Errorf("waited %v for %s; %s", within, what, b)
		}
	}
}

// board returns what the hosts have said of late to what they were asked since a
// time; news is closed when there is more.
func (w *watcher) board(since time.Duration) (b board, news <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b = make(board, len(w.last))
	for h, t := range w.last {
		if t.asked >= since {
			b[h] = t
		}
	}
	return b, w.news
}

// String tells how things are.
func (b board) String() string {
	log := b.log()
	if log.Owner == "" {
		return "no host that answers knows what the ownership log says"
	}
	s := fmt.Sprintf("the log names %s the owner in generation %d (%s, in sync: %v)", log.Owner, log.Generation, log.Phase, log.InSync)
	if t, ok := b[log.Owner]; ok {
		switch {
		case t.err != nil:
			s += fmt.Sprintf("; %s does not answer: %v", log.Owner, t.err)
		case t.guest.Problem != "":
			s += "; " + t.guest.Problem
		case t.guest.Primary != nil:
			s += fmt.Sprintf("; it is %s", t.guest.Primary.Mode)
		default:
			s += "; it is " + t.guest.Role
		}
	}
	return s
}
