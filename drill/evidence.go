package drill

// What is known after a drill: the hosts' records since it began, in one order,
// and from them the timeline, RTO and RPO. guarantees.go judges the same.

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"understudy/epoch"
	"understudy/events"
	"understudy/ownership"
	"understudy/primary"
)

// recorded is an event of a host's record, by the drill's clock.
type recorded struct {
	events.Event
	at, error time.Duration
}

// evidence is all that the guarantees are judged by.
type evidence struct {
	spec     Spec
	from, to ownership.HostID
	before   ownership.Guest
	after    ownership.Guest // the log's newest word at the end
	// records are the guest's events and the hosts' own of all hosts, by time;
	// unread are the hosts whose record could not be read.
	records []recorded
	unread  map[ownership.HostID]string
	seen    watched

	struckAt, struckErr time.Duration
	moved, returned     bool
	protected           bool // at the end
	verified            *primary.VerifyResult
	drained             string
	drainedOK           bool
	bubble              *Bubbled
	lagBefore, lagIn    time.Duration
}

// evidence reads the records, and says what follows from them.
func (r *run) evidence(ctx context.Context) {
	if !r.acted || ctx.Err() != nil {
		return
	}
	e := evidence{spec: r.spec, from: r.report.From, to: r.report.To, before: r.before, unread: map[ownership.HostID]string{},
		struckAt: r.struckAt, struckErr: r.struckEr, moved: r.moved, returned: r.returned, verified: r.verified,
		drained: r.drained, drainedOK: r.drainedOK, bubble: r.report.Bubble}
	for _, m := range r.view.Members {
		call, cancel := context.WithTimeout(ctx, 5*askTime)
		found, err := r.c.Events(call, m.Host, r.marks[m.Host])
		cancel()
		if err != nil {
			e.unread[m.Host] = clip(err.Error(), 200)
			continue
		}
		for _, one := range found {
			if one.Guest != "" && one.Guest != r.spec.Guest {
				continue
			}
			at, give := r.clocks[m.Host].event(one, r.began)
			e.records = append(e.records, recorded{one, at, give})
		}
	}
	slices.SortStableFunc(e.records, func(a, b recorded) int { return cmp.Compare(a.at, b.at) })
	now := Look(ctx, r.c, r.spec.Guest)
	e.after, _ = now.log(r.spec.Guest)
	e.protected = e.after.Owner != "" && unprotected(r.spec.Guest, e.after, now) == ""
	r.watch.mu.Lock()
	e.seen = r.watch.facts
	longest, since := r.watch.pulse.longest, r.watch.pulse.since
	r.watch.mu.Unlock()
	if r.spec.Kind == Bubble {
		e.lagBefore, e.lagIn = r.lag, r.watch.typicalLag(r.struckAt)
	}
	for _, one := range e.records {
		r.report.Timeline = append(r.report.Timeline, Step{At: one.at, Error: one.error, Host: one.Host, Kind: string(one.Kind), Text: one.Text})
	}
	slices.SortStableFunc(r.report.Timeline, func(a, b Step) int { return cmp.Compare(a.At, b.At) })

	if r.spec.Kind != Bubble {
		r.report.RTO = e.rto()
		r.report.RPO = e.rpo()
	}
	if r.spec.Probe != "" {
		r.report.RTO.Outage = &Measured{Took: longest, Error: knockEvery}
		r.report.RTO.Text = joinText(r.report.RTO.Text, fmt.Sprintf("the probe had no answer for at most %s, from %s on", about(longest), about(since)))
	}
	if r.spec.MaxOutage > 0 {
		r.report.Checks = append(r.report.Checks, outageCheck(r.report.RTO, r.spec.MaxOutage))
	}
	r.report.Guarantees = e.guarantees()
}

func joinText(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// generation is that which the guest got by moving.
func (e *evidence) generation() epoch.Generation { return e.before.Generation + 1 }

// find returns the first event of a kind that a host recorded of the generation;
// 0 is any.
func (e *evidence) find(at ownership.HostID, kind events.Kind, g epoch.Generation) (recorded, bool) {
	i := slices.IndexFunc(e.records, func(r recorded) bool {
		return r.Host == at && r.Kind == kind && (g == 0 || r.Generation == g) && r.Guest == e.spec.Guest
	})
	if i < 0 {
		return recorded{}, false
	}
	return e.records[i], true
}

// rto is the time from the strike, or from the operator's word, to the guest's
// life at its new host.
func (e *evidence) rto() RTO {
	if !e.moved {
		return RTO{Text: "the guest did not go on at " + string(e.to)}
	}
	var out RTO
	since := func(kind events.Kind) *Measured {
		got, ok := e.find(e.to, kind, e.generation())
		if !ok {
			return nil
		}
		return &Measured{Took: got.at - e.struckAt, Error: got.error + e.struckErr}
	}
	out.Running, out.FirstOutput = since(events.KindTakeoverRunning), since(events.KindFirstOutput)
	word := "the strike"
	if e.spec.Kind == Switchover {
		word = "the operator's word"
	}
	switch {
	case out.FirstOutput != nil:
		out.Text = fmt.Sprintf("first output %s after %s", out.FirstOutput, word)
	case out.Running != nil:
		out.Text = fmt.Sprintf("it ran %s after %s; no output of it was seen, it may have had none", out.Running, word)
	default:
		out.Text = "the record of " + string(e.to) + " does not tell when it ran"
	}
	return out
}

// String is the time with its error.
func (m *Measured) String() string { return fmt.Sprintf("%s ±%s", about(m.Took), about(m.Error)) }

// rpo is what was committed against what was lost.
func (e *evidence) rpo() *RPO {
	out := &RPO{}
	if last, ok := e.seen.acked[e.before.Generation]; ok {
		out.Committed, out.SeenBefore = last.epoch, e.struckAt-last.at
	}
	if ran, ok := e.find(e.to, events.KindTakeoverRunning, e.generation()); ok {
		out.Resumed = ran.Epoch
	} else if asked, ok := e.find(e.to, events.KindTakeoverAsked, 0); ok {
		out.Resumed = asked.Epoch
	}
	if i, ok := e.seen.image[e.before.Generation]; ok && i.epoch == out.Resumed && out.Resumed > 0 && e.spec.Kind == Failover {
		out.Age = &Measured{Took: e.struckAt - i.committed, Error: i.error + e.struckErr}
	}
	given, surrendered := e.find(e.from, events.KindSurrendered, 0)
	switch {
	case out.Resumed == 0:
		out.OutputLost = "not known: the record does not tell from which epoch the guest went on"
	case surrendered && given.Epoch == out.Resumed:
		out.OutputLost = fmt.Sprintf("none: %s gave the guest up at epoch %d, its gate shut, and %s went on from there", e.from, given.Epoch, e.to)
	case out.Committed > out.Resumed:
		out.OutputLost = fmt.Sprintf("LOST: epoch %d was acknowledged, and its output may have left; the guest went on from %d", out.Committed, out.Resumed)
	case out.Committed == 0:
		out.OutputLost = "not checked: the owner's acknowledged epochs were not seen"
	case out.SeenBefore <= 0:
		out.OutputLost = fmt.Sprintf("none: the last epoch that %s had acknowledged, by its own word after the strike, is %d; the guest went on from %d", e.from, out.Committed, out.Resumed)
	default:
		out.OutputLost = fmt.Sprintf("none up to %s before the strike (epoch %d; the guest went on from %d); the rest was not checked",
			about(out.SeenBefore), out.Committed, out.Resumed)
	}
	return out
}

func outageCheck(r RTO, most time.Duration) Check {
	c := Check{Name: "outage within " + most.String(), Verdict: Unknown, Text: "no outage was measured: give the drill a probe"}
	if worst, ok := r.worst(); ok {
		c.Verdict, c.Text = Yes, fmt.Sprintf("%s, at most %s is allowed", about(worst), most)
		if worst > most {
			c.Verdict = No
		}
	}
	return c
}
