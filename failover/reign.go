package failover

// reign.go: one node's time as the leader, of one term. It begins after a
// barrier in that term and ends with it; what a leader remembers (the leases
// it granted, the takeovers under way) belongs to its reign and dies with it.
//
// A reign's start is taken after the barrier, so it lies after the election.
// Whatever an earlier leader granted, it granted for requests that arrived
// before the election: see confirm. So a full lease after the start no lease
// of an earlier reign is alive (RULES 3).

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"understudy/clock"
	"understudy/ownership"
)

type reign struct {
	n      *Node
	term   uint64
	start  clock.Instant
	ctx    context.Context // done when the reign is over
	leases leaseBook
	rounds rounds

	membering sync.Mutex   // a change of who votes is under way
	leaving   sync.RWMutex // held while a proposal goes into the log
	leaver    ownership.HostID
}

// reigns holds the current reign, if any.
type reigns struct {
	n       *Node
	mu      sync.Mutex
	current *reign
	leads   bool          // raft says we lead, the barrier may still be due
	changed chan struct{} // closed and replaced at each change
}

var errNotLeader = errors.New("this voter does not lead")

// wait returns the reign, waiting for a new leader's barrier.
func (rs *reigns) wait(ctx context.Context) (*reign, error) {
	for {
		rs.mu.Lock()
		r, leads, changed := rs.current, rs.leads, rs.changed
		rs.mu.Unlock()
		if r != nil {
			return r, nil
		}
		if !leads {
			return nil, errNotLeader
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("the new leader's barrier has not returned: %w", ctx.Err())
		}
	}
}

// set replaces the current reign.
func (rs *reigns) set(r *reign, leads bool) {
	rs.current, rs.leads = r, leads
	close(rs.changed)
	rs.changed = make(chan struct{})
}

// follow is the goroutine that begins and ends reigns, owned by the Node, ended
// with its context. notify is raft's NotifyCh: it carries every change in
// order, and raft stands still until we take it, so nothing is waited for here.
func (rs *reigns) follow(notify <-chan bool) {
	end := func() {}
	defer func() { end() }()
	for {
		select {
		case leads := <-notify:
			end()
			end = func() {}
			if leads {
				end = rs.begin()
			}
		case <-rs.n.ctx.Done():
			return
		}
	}
}

// begin starts the goroutine of a reign and returns what ends it.
func (rs *reigns) begin() (end func()) {
	ctx, cancel := context.WithCancel(rs.n.ctx)
	rs.mu.Lock()
	rs.set(nil, true)
	rs.mu.Unlock()
	rs.n.spawn(func() { rs.reign(ctx) })
	return func() {
		rs.mu.Lock()
		defer rs.mu.Unlock()
		cancel()
		rs.set(nil, false)
	}
}

// publish makes r the current reign, unless it has been ended meanwhile.
func (rs *reigns) publish(r *reign) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if r.ctx.Err() != nil {
		return false
	}
	rs.set(r, true)
	return true
}

// reign is the goroutine of one reign.
func (rs *reigns) reign(ctx context.Context) {
	n := rs.n
	term := n.raft.CurrentTerm()
	wait := n.cfg.Profile.Heartbeat / 4
	for {
		err := n.raftWait(ctx, n.raft.Barrier(0))
		if err == nil {
			break
		}
		n.log.Info("barrier of the new leader", "term", term, "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
	if n.raft.CurrentTerm() != term || ctx.Err() != nil {
		// Deposed, or elected again, in the meantime. Both are notified.
		return
	}
	r := &reign{n: n, term: term, start: n.cfg.Clock.Now(), ctx: ctx}
	r.leases.init(r)
	r.rounds.once, r.rounds.spawn = r.confirmOnce, n.spawn
	if !rs.publish(r) {
		return
	}
	n.log.Info("leading", "term", term)
	var duties sync.WaitGroup
	duties.Go(r.keepLength)
	duties.Go(r.place)
	duties.Wait()
}

// raftWait waits for a raft future, or for ctx; the future is left to itself
// then (raft answers every future, at the latest when it shuts down).
func (n *Node) raftWait(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	if !n.spawn(func() { done <- f.Error() }) {
		return ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rounds confirms that nobody else leads. Callers that come while a round is
// under way share the next one, so that many guests cost one round trip.
//
// raft's own VerifyLeader is asked, and it is not enough: it counts the answer
// to a heartbeat that was sent before it was asked (hashicorp/raft
// replication.go, heartbeat and notifyAll). A leader that was stopped for a
// while, a successor having been elected and having granted a takeover, would
// find such an answer in its socket and renew the old owner's lease. So the
// voters are asked for their term as well, in messages sent after the caller
// came: a voter still in our term has not voted for a successor, and with us
// it is a majority.
type rounds struct {
	once  func() error      // one round: confirmOnce
	spawn func(func()) bool // Node.spawn

	mu      sync.Mutex
	running bool
	next    *round
}

type round struct {
	done chan struct{}
	err  error
}

// confirm returns nil if, at some time after it was called, no later leader
// had been elected.
func (rs *rounds) confirm(ctx context.Context) error {
	rs.mu.Lock()
	if rs.next == nil {
		rs.next = &round{done: make(chan struct{})}
	}
	w := rs.next
	if !rs.running {
		if !rs.spawn(rs.run) {
			rs.mu.Unlock()
			return ErrClosed
		}
		rs.running = true
	}
	rs.mu.Unlock()
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run does rounds as long as somebody waits for one.
func (rs *rounds) run() {
	for {
		rs.mu.Lock()
		w := rs.next
		rs.next = nil
		rs.running = w != nil
		rs.mu.Unlock()
		if w == nil {
			return
		}
		w.err = rs.once()
		close(w.done)
	}
}

func (r *reign) confirmOnce() error {
	n := r.n
	ctx, cancel := context.WithTimeout(r.ctx, 2*n.cfg.Profile.Heartbeat)
	defer cancel()
	verified := n.raft.VerifyLeader()

	// By the newest configuration in the log, as raft counts (members.go).
	voting := n.voting()
	answers := make(chan error, len(voting))
	need := len(voting)/2 + 1 // a majority
	if slices.Contains(voting, n.cfg.Self) {
		need--
	}
	asked := 0
	for _, id := range voting {
		l := n.link(id)
		if l == nil { // ourselves, or nobody we could ask
			continue
		}
		if n.spawn(func() { answers <- r.ask(ctx, l) }) {
			asked++
		}
	}
	var failed []error
	for need > 0 {
		if asked < need { // to come
			return fmt.Errorf("no majority confirms that %s leads: %w", n.cfg.Self, errors.Join(failed...))
		}
		asked--
		if err := <-answers; err != nil {
			failed = append(failed, err)
		} else {
			need--
		}
	}
	if err := n.raftWait(ctx, verified); err != nil {
		return fmt.Errorf("verify that %s leads: %w", n.cfg.Self, err)
	}
	return r.holds()
}

func (r *reign) ask(ctx context.Context, l *link) error {
	a, err := l.call(ctx, kindConfirm, request{Term: r.term})
	if err != nil {
		return err
	}
	if a.Term != r.term {
		return fmt.Errorf("%s is in term %d, we led in %d", l.peer, a.Term, r.term)
	}
	return nil
}

// holds reports whether the reign may still be the current one. The term is
// read after the peers': see rounds.
func (r *reign) holds() error {
	if t := r.n.raft.CurrentTerm(); t != r.term || r.ctx.Err() != nil {
		return fmt.Errorf("%w: the term is %d, it led in %d", errNotLeader, t, r.term)
	}
	return nil
}

// later is the answer for what failed before anything was done.
func (r *reign) later(err error) answer {
	if errors.Is(err, errNotLeader) || r.ctx.Err() != nil {
		return answer{Code: codeNotLeader, Leader: r.n.otherLeader(), Text: err.Error()}
	}
	return answer{Code: codeLater, Text: err.Error()}
}

// otherLeader is the leader as raft knows it, unless that is this node, whose
// reign is over or has not begun.
func (n *Node) otherLeader() ownership.HostID {
	if l := n.Leader(); l != n.cfg.Self {
		return l
	}
	return ""
}

// now returns the current reign, nil if there is none.
func (rs *reigns) now() *reign {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.current
}
