package drill

// The phases of a drill before its cleanup, in their order.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/events"
	"understudy/ownership"
	"understudy/primary"
)

const (
	// moveTime bounds the wait for a change of owner: leases and loading, on a
	// host that is busy.
	moveTime = time.Minute
	// heardTime bounds the wait for the first output behind it; a guest need not
	// have anything to say.
	heardTime = 5 * time.Second
	// quiet is how long is watched before the drill acts, so that there is
	// something to compare with.
	quiet = time.Second
	// looks is how often it is looked whether all is well before, lookAgain how
	// long after another.
	looks     = 3
	lookAgain = 300 * time.Millisecond
	// drainTime bounds the wait for held output.
	drainTime = 30 * time.Second
	// strikeCall bounds the order for a strike, openTime the wait for a probe to
	// be answered before anything is done.
	strikeCall = 15 * time.Second
	openTime   = 5 * time.Second
)

// preconditions looks whether the drill may be begun at all.
func (r *run) preconditions(ctx context.Context) error {
	var c Condition
	wrong := true
	for try := 0; wrong && try < looks; try++ {
		// What a host has applied of the log may be a moment old.
		if err := sleep(ctx, time.Duration(min(try, 1))*lookAgain); err != nil {
			return err
		}
		r.view = Look(ctx, r.c, r.spec.Guest)
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		r.report.Conditions = Conditions(r.spec, r.view)
		c, wrong = missing(r.report.Conditions)
	}
	r.before, _ = r.view.log(r.spec.Guest)
	r.report.From, r.report.To = r.before.Owner, r.before.Backup.Host
	switch {
	case wrong:
		return refusal{c.Name + ": " + c.Text}
	case r.report.From == r.c.Self() && r.spec.Kind != Bubble:
		return refusal{fmt.Sprintf("%s owns the guest: a drill is not run on the host that it takes the guest from", r.c.Self())}
	}
	for _, m := range r.view.Members {
		call, cancel := context.WithTimeout(ctx, askTime)
		last, err := r.c.Last(call, m.Host)
		cancel()
		if err != nil {
			return refusal{fmt.Sprintf("the record of %s: %v", m.Host, err)}
		}
		r.marks[m.Host] = last
	}
	return nil
}

// sleep waits, unless ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// measureClocks measures the clocks, and watches for a while what goes on.
func (r *run) measureClocks(ctx context.Context) error {
	for _, m := range r.view.Members {
		got, err := measure(ctx, r.c, m.Host, r.began)
		if err != nil {
			return refusal{fmt.Sprintf("the clock of %s: %v", m.Host, err)}
		}
		r.clocks[m.Host] = got
		r.report.Clocks = append(r.report.Clocks, got.offset(m.Host, r.began))
	}
	r.watch = watch(ctx, r.c, r.spec.Guest, r.spec.Probe, r.began)
	begin := r.watch.now()
	err := r.watch.until(ctx, quiet+openTime, "a quiet time in which every host answers", func(b board) (bool, error) {
		if _, ok := b.protected(); !ok && r.watch.now()-begin >= quiet {
			return false, refusal{"the guest is not protected any more: " + b.String()}
		}
		return r.watch.now()-begin >= quiet && r.watch.steady(b) && (r.spec.Probe == "" || r.watch.answered()), nil
	})
	if err != nil && r.spec.Probe != "" && !r.watch.answered() && ctx.Err() == nil {
		return refusal{fmt.Sprintf("the probe: nothing answers at %s before the drill, so no outage could be seen", r.spec.Probe)}
	}
	var refused refusal
	if err != nil && !errors.As(err, &refused) && ctx.Err() == nil {
		return refusal{err.Error()}
	}
	return err
}

// steady reports whether every host has answered just now.
func (w *watcher) steady(b board) bool {
	for _, m := range w.c.Members() {
		if t, ok := b[m.Host]; !ok || t.err != nil || w.now()-t.asked > 3*sampleEvery {
			return false
		}
	}
	return true
}

// answered reports whether a knock was.
func (w *watcher) answered() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pulse.beats > 0
}

// act does what the drill is about.
func (r *run) act(ctx context.Context) error {
	switch r.spec.Kind {
	case Switchover:
		r.acted = true
		r.struckAt = time.Since(r.began)
		return r.switchover(ctx, r.report.From, r.report.To)
	case Failover:
		return r.strike(ctx)
	default:
		return r.bubble(ctx)
	}
}

// switchover moves the guest, and waits until it runs there.
func (r *run) switchover(ctx context.Context, from, to ownership.HostID) error {
	r.step(stepOperate, "switchover of %s from %s to %s", r.spec.Guest, from, to)
	call, cancel := context.WithTimeout(ctx, moveTime)
	defer cancel()
	var now ownership.Guest
	if err := r.c.Operate(call, from, r.spec.Guest, "switchover", &now); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("switchover from %s: %w", from, err)
	}
	return nil
}

// strike strikes the owner. If its answer is lost, the strike may have been done:
// it is then taken to be.
func (r *run) strike(ctx context.Context) error {
	order := StrikeOrder{ID: r.report.ID, Kind: r.spec.Fault, For: r.faultFor()}
	r.acted, r.struck = true, &order
	asked := time.Since(r.began)
	call, cancel := context.WithTimeout(ctx, strikeCall)
	defer cancel()
	done, err := r.c.Strike(call, r.report.From, r.spec.Guest, order)
	answered := time.Since(r.began)
	switch {
	case errors.Is(err, ErrRefused):
		r.acted, r.struck = false, nil
		return refusal{fmt.Sprintf("the strike of %s: %v", r.report.From, err)}
	case err != nil:
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		r.struckAt, r.struckEr = (asked+answered)/2, (answered-asked)/2
		r.step(stepStrike, "%s of %s for %v; the answer was lost (%v)", order.Kind, r.report.From, order.For, err)
	default:
		r.struckAt, r.struckEr = r.clocks[r.report.From].wallTime(done.At, r.began)
		r.report.Timeline = append(r.report.Timeline, Step{At: r.struckAt, Error: r.struckEr, Host: r.report.From, Kind: stepStrike,
			Text: fmt.Sprintf("%s for %v", order.Kind, order.For)})
		r.say()
	}
	return nil
}

// bubble runs the backup's copy in isolation.
func (r *run) bubble(ctx context.Context) error {
	r.acted, r.bubbling = true, true
	r.struckAt = time.Since(r.began)
	r.lag = r.watch.typicalLag(0)
	call, cancel := context.WithTimeout(ctx, r.spec.CheckTimeout+5*time.Minute)
	defer cancel()
	got, err := r.c.Bubble(call, r.report.To, r.spec.Guest, BubbleOrder{Check: r.spec.Check, Timeout: r.spec.CheckTimeout},
		func(text string) { r.step(stepNote, "bubble: %s", text) })
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, ErrRefused) {
		r.acted, r.bubbling = false, false
		return refusal{fmt.Sprintf("the bubble on %s: %v", r.report.To, err)}
	}
	if err != nil {
		return fmt.Errorf("the bubble on %s: %w", r.report.To, err)
	}
	r.ended = got.Ended
	if got.Check != nil {
		got.Check.Output = clip(got.Check.Output, MaxOutput)
	}
	r.report.Bubble = &got
	r.step(stepNote, "the bubble ran epoch %d %v after it was asked for", got.Epoch, about(got.Started))
	return nil
}

// wait waits until the guest has gone on at the backup's host, and is heard.
func (r *run) wait(ctx context.Context) error {
	from, to := r.report.From, r.report.To
	err := r.watch.until(ctx, moveTime+r.graceForFault(), fmt.Sprintf("%s to run the guest", to), func(b board) (bool, error) {
		log := b.log()
		if log.Generation > r.generation() && log.Owner == from && log.Phase == ownership.PhaseActive {
			return false, fmt.Errorf("%s did not go on with the guest: %s has it again, in generation %d", to, from, log.Generation)
		}
		return log.Owner == to && log.Generation > r.generation() && b.runs(to), nil
	})
	if err != nil {
		return err
	}
	r.moved = true
	r.step(stepNote, "%s runs the guest", to)
	return r.awaitOutput(ctx)
}

// graceForFault: a takeover may have to wait out the lease of a busy cluster.
func (r *run) graceForFault() time.Duration { return 4 * r.view.lease() }

// awaitOutput waits until the guest is heard again: by the record, and by the
// probe if there is one. A guest that says nothing is no failure.
func (r *run) awaitOutput(ctx context.Context) error {
	limit := time.NewTimer(heardTime)
	defer limit.Stop()
	tick := time.NewTicker(2 * sampleEvery)
	defer tick.Stop()
	for {
		if r.heard(ctx) {
			return nil
		}
		select {
		case <-tick.C:
		case <-limit.C:
			r.step(stepNote, "nothing was heard of the guest within %v", heardTime)
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (r *run) heard(ctx context.Context) bool {
	call, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if r.spec.Probe != "" && !r.watch.answeredSince(r.struckAt) {
		return false
	}
	found, err := r.c.Events(call, r.report.To, r.marks[r.report.To])
	if err != nil {
		return false
	}
	for _, e := range found {
		if e.Guest == r.spec.Guest && e.Kind == events.KindFirstOutput && e.Generation > r.generation() {
			return true
		}
	}
	return false
}

// answeredSince reports whether a knock begun after t was answered.
func (w *watcher) answeredSince(t time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(w.knocks) - 1; i >= 0; i-- {
		if k := w.knocks[i]; k.OK && k.At > t {
			return true
		}
	}
	return false
}

// check runs the drill's own check. A bubble has run it inside.
func (r *run) check(ctx context.Context) error {
	if r.spec.Kind == Bubble {
		if b := r.report.Bubble; b != nil && b.Check != nil {
			r.noteCheck("check in the bubble", *b.Check)
		}
		return nil
	}
	if len(r.spec.Check) == 0 {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, r.spec.CheckTimeout)
	defer cancel()
	r.noteCheck("check", r.c.Check(call, r.spec.Check))
	return nil
}

func (r *run) noteCheck(name string, ran Ran) {
	c := Check{Name: name, Took: ran.Took, Output: clip(ran.Output, MaxOutput), Verdict: Yes, Text: fmt.Sprintf("%s: exit status 0", r.spec.Check[0])}
	switch {
	case ran.Error != "":
		c.Verdict, c.Text = No, fmt.Sprintf("%s: %s", r.spec.Check[0], ran.Error)
	case ran.Status != 0:
		c.Verdict, c.Text = No, fmt.Sprintf("%s: exit status %d", r.spec.Check[0], ran.Status)
	}
	c.Text = clip(c.Text, maxText)
	r.report.Checks = append(r.report.Checks, c)
	r.step(stepNote, "%s: %s", c.Name, c.Text)
}

// goBack brings the guest back where it was, protected; with Stay it waits until
// it is protected where it is.
func (r *run) goBack(ctx context.Context) error {
	if err := r.awaitUndone(ctx, r.faultFor()+moveTime); err != nil {
		return err
	}
	if r.spec.Stay {
		return r.awaitProtected(ctx, r.report.To)
	}
	return r.bringBack(ctx)
}

// awaitUndone waits until the strike has undone itself.
func (r *run) awaitUndone(ctx context.Context, within time.Duration) error {
	if r.struck == nil || r.undone {
		return nil
	}
	limit := time.NewTimer(within)
	defer limit.Stop()
	tick := time.NewTicker(2 * sampleEvery)
	defer tick.Stop()
	for {
		call, cancel := context.WithTimeout(ctx, askTime)
		_, left, err := r.c.Strikes(call, r.report.From)
		cancel()
		if err == nil && !strikeIn(left, r.struck.ID) {
			r.undone = true
			r.step(stepStrike, "the strike of %s is undone", r.report.From)
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit.C:
			if err != nil {
				return fmt.Errorf("%s does not answer %v after the strike was to end: %w", r.report.From, within-r.faultFor(), err)
			}
			return fmt.Errorf("the strike of %s is not undone within %v: see state_dir/strikes there, and restart its daemon", r.report.From, within)
		}
	}
}

func strikeIn(all []Struck, id string) bool {
	for _, s := range all {
		if s.ID == id {
			return true
		}
	}
	return false
}

// awaitProtected waits until the guest is protected, owned by a host.
func (r *run) awaitProtected(ctx context.Context, owner ownership.HostID) error {
	err := r.watch.until(ctx, r.spec.Patience, "the guest to be protected again", func(b board) (bool, error) {
		_, ok := b.protected()
		return ok && b.log().Owner == owner, nil
	})
	if err == nil {
		r.protected = true
		r.step(stepNote, "the guest is protected, owned by %s", owner)
	}
	return err
}

// bringBack moves the guest to where the drill found it, if it is not there, and
// waits until it is protected.
func (r *run) bringBack(ctx context.Context) error {
	from, to := r.report.From, r.report.To
	tries := 0
	for {
		var owner ownership.HostID
		err := r.watch.until(ctx, r.spec.Patience, "the guest to be protected again", func(b board) (bool, error) {
			_, ok := b.protected()
			owner = b.log().Owner
			return ok, nil
		})
		if err != nil {
			return err
		}
		if owner == from {
			r.returned, r.protected = r.moved, true
			r.step(stepNote, "the guest is protected, owned by %s as before", from)
			return nil
		}
		if tries++; tries > 3 {
			return fmt.Errorf("%s still owns the guest after 3 switchovers", to)
		}
		if err := r.switchover(ctx, owner, from); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			r.step(stepNote, "%v", err)
		}
		err = r.watch.until(ctx, moveTime, fmt.Sprintf("%s to run the guest again", from), func(b board) (bool, error) {
			if b.log().Owner != owner {
				return b.runs(from), nil
			}
			_, still := b.protected()
			return still, nil // it was refused, and may be asked again
		})
		if err != nil {
			return err
		}
	}
}

// verify compares all memory, and sees held output go.
func (r *run) verify(ctx context.Context) error {
	owner := r.owner()
	call, cancel := context.WithTimeout(ctx, r.spec.Patience)
	defer cancel()
	var got primary.VerifyResult
	r.step(stepOperate, "verify of %s on %s", r.spec.Guest, owner)
	if err := r.c.Operate(call, owner, r.spec.Guest, "verify", &got); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("verify on %s: %w", owner, err)
	}
	r.verified = &got
	r.step(stepNote, "%d pages compared, identical: %v", got.Pages, got.Identical)
	return r.drain(ctx, owner)
}

// owner is who owns the guest, by the newest word of any host.
func (r *run) owner() ownership.HostID {
	b, _ := r.watch.board(0)
	return b.log().Owner
}

// drain waits until what was held when it was called has left: nothing is held,
// or so many epochs were acknowledged since that all of it was behind one.
func (r *run) drain(ctx context.Context, owner ownership.HostID) error {
	const window = 9 // more than can be in flight, and the one that is open
	var base *told
	err := r.watch.until(ctx, drainTime, "held output to leave", func(b board) (bool, error) {
		t := b[owner]
		if !b.answers(owner) || t.guest.Primary == nil {
			return false, nil
		}
		if base == nil {
			base = &t
		}
		p, was := t.guest.Primary, base.guest.Primary
		switch {
		case p.Held == 0:
			r.drained = fmt.Sprintf("nothing is held on %s at epoch %d", owner, p.Epoch)
		case p.Generation == was.Generation && p.Epoch >= was.Epoch+window:
			r.drained = fmt.Sprintf("%d frames were held on %s at epoch %d; epoch %d is acknowledged", was.Held, owner, was.Epoch, p.Epoch)
		default:
			return false, nil
		}
		r.drainedOK = true
		return true, nil
	})
	if err != nil && ctx.Err() == nil {
		r.drained = err.Error() // the guarantee says so
		return nil
	}
	return err
}

// typicalLag is the median age of the last commit since a time, 0 if unknown.
func (w *watcher) typicalLag(since time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lags []time.Duration
	for _, s := range w.samples {
		if s.Lag != nil && s.At >= since {
			lags = append(lags, *s.Lag)
		}
	}
	return median(lags)
}
