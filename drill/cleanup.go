package drill

// This file undoes what a drill has done, on every path. Each step can be done
// again: an interrupted drill is cleaned up by the daemon's next life (Clean).

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// endTime bounds ending a bubble; hurryTime does so while the daemon ends.
	endTime   = time.Minute
	hurryTime = 3 * time.Second
)

// clean ends the bubble, waits for the strike to be undone and brings the guest
// back. What cannot be done is left over, and said.
func (r *run) clean(ctx context.Context) {
	if !r.acted {
		return
	}
	if ctx.Err() != nil {
		r.hurry(ctx)
		return
	}
	r.watch = r.again(ctx)
	defer r.watch.stop()
	r.endBubble(ctx, endTime)
	if r.struck != nil {
		// An aborted strike goes on to its end: it undoes itself, nobody else does.
		if err := r.awaitUndone(ctx, r.faultFor()+moveTime); err != nil {
			r.leave("%v", err)
		}
	}
	if r.spec.Kind != Bubble {
		r.putBack(ctx)
	}
}

// again goes on watching, in the same records.
func (r *run) again(ctx context.Context) *watcher {
	w := watch(ctx, r.c, r.spec.Guest, "", r.began)
	if was := r.watch; was != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.samples = append(was.samples, w.samples...)
		w.knocks, w.pulse = was.knocks, was.pulse
		w.facts.join(was.facts)
	}
	return w
}

// join adds what was seen before.
func (f *watched) join(was watched) {
	f.answers += was.answers
	for g, a := range was.acked {
		if a.epoch >= f.acked[g].epoch {
			f.acked[g] = a
		}
	}
	for g, i := range was.image {
		if _, newer := f.image[g]; !newer {
			f.image[g] = i
		}
	}
	for g, of := range was.runs {
		if f.runs[g] == nil {
			f.runs[g] = of
			continue
		}
		for h, s := range of {
			now, again := f.runs[g][h]
			if again {
				s.last = max(s.last, now.last)
			}
			f.runs[g][h] = s
		}
	}
	if was.unprotected != nil {
		f.unprotected = was.unprotected
	}
}

func (r *run) endBubble(ctx context.Context, within time.Duration) {
	if !r.bubbling || r.ended {
		return
	}
	limit, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var err error
	for limit.Err() == nil {
		call, done := context.WithTimeout(limit, askTime*5)
		err = r.c.EndBubble(call, r.report.To, r.spec.Guest)
		done()
		if err == nil {
			r.ended = true
			if r.report.Bubble != nil {
				r.report.Bubble.Ended = true
			}
			r.step(stepNote, "the bubble is ended")
			return
		}
		select {
		case <-time.After(2 * sampleEvery):
		case <-limit.Done():
		}
	}
	r.leave("the bubble on %s was not ended (%v); it ends by itself when its time is over", r.report.To, err)
}

// putBack brings the guest to where the drill found it, or, if it is to stay,
// waits until it is protected.
func (r *run) putBack(ctx context.Context) {
	if r.returned || r.spec.Stay && r.protected {
		return
	}
	err := r.settle(ctx)
	switch {
	case err != nil:
	case r.spec.Stay:
		err = r.awaitProtected(ctx, r.owner())
	default:
		err = r.bringBack(ctx)
	}
	if err == nil {
		return
	}
	if owner := r.owner(); owner != r.report.From && !r.spec.Stay {
		r.leave("guest %s is on %s and not on %s: %v. When it is protected: `understudy switchover %s`", r.spec.Guest, owner, r.report.From, err, r.spec.Guest)
		return
	}
	r.leave("guest %s: %v", r.spec.Guest, err)
}

// settle waits until no change of owner is under way: one that was aborted may
// still come to its end.
func (r *run) settle(ctx context.Context) error {
	begin := r.watch.now()
	var calm time.Duration
	if !r.moved {
		calm = quiet + 2*r.view.lease()
	}
	return r.watch.until(ctx, moveTime+r.graceForFault(), "the guest to run on one host", func(b board) (bool, error) {
		log := b.log()
		if !b.answers(log.Owner) {
			return false, nil
		}
		if log.Owner != r.report.From && log.Generation > r.generation() {
			r.moved = true
		}
		return b.runs(log.Owner) && r.watch.now()-begin >= calm, nil
	})
}

// hurry does what can be done while the daemon ends.
func (r *run) hurry(ctx context.Context) {
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), hurryTime)
	defer cancel()
	r.endBubble(short, hurryTime)
	if r.spec.Kind != Bubble {
		r.leave("guest %s: %s", r.spec.Guest, nextLife)
	}
}

// nextLife says what is left to Clean.
const nextLife = "the daemon that ran the drill has ended; its next life undoes the rest"

// leave says what could not be undone.
func (r *run) leave(format string, a ...any) {
	text := clip(fmt.Sprintf(format, a...), maxText)
	r.report.Left = append(r.report.Left, text)
	r.step(stepNote, "left over: %s", text)
}

// Clean undoes what is left of a drill that was interrupted, as its report tells
// of it, and returns the report with what came of that.
func Clean(ctx context.Context, report Report, c Cluster, tell func(Report)) Report {
	r := newRun(report.Spec, c, tell)
	r.report = report.clone()
	r.began = report.Began
	r.report.State, r.report.Left = Interrupted, nil
	r.report.Why = orWord(r.report.Why, "the daemon that ran it was lost")
	if report.From == "" || report.To == "" || !hasActed(report) {
		return r.finish()
	}
	r.view = Look(ctx, c, report.Spec.Guest)
	r.acted = true
	r.bubbling = report.Spec.Kind == Bubble
	if report.Spec.Kind == Failover {
		r.struck = &StrikeOrder{ID: report.ID, Kind: report.Spec.Fault, For: r.faultFor()}
	}
	r.moved = report.Spec.Kind != Bubble // as far as is known
	r.report.Timeline = append(r.report.Timeline, Step{At: time.Since(r.began), Host: c.Self(), Kind: stepPhase, Text: string(PhaseCleanup)})
	r.clean(ctx)
	if errors.Is(ctx.Err(), context.Canceled) && len(r.report.Left) == 0 {
		r.leave("%s", nextLife)
	}
	r.report.Samples, r.report.Probe = report.Samples, report.Probe
	r.watch = nil
	r.report.Took = time.Since(r.began)
	return r.finish()
}

// hasActed reports whether a drill came as far as doing something.
func hasActed(r Report) bool {
	for _, s := range r.Timeline {
		if s.Kind == stepPhase && Phase(s.Text) == PhaseAct {
			return true
		}
	}
	return false
}
