package failover

// decide.go: the leader's side of proposals and reads. A proposal is tried
// against the applied state first, so that what cannot apply costs nothing;
// one that takes the guest from its owner waits for the lease; then it goes
// into the log, and its fate there is the answer.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"understudy/crashpoint"
	"understudy/ownership"
)

func (r *reign) propose(ctx context.Context, who ownership.HostID, req request) answer {
	c := *req.Command
	if c.Host != who {
		return answer{Code: codeRefused, Text: fmt.Sprintf("%s proposes in the name of %s", who, c.Host), State: r.n.fsm.guest(c.Guest)}
	}
	before, res := r.n.fsm.preview(c, req.Session)
	if c.Revision > before.Revision {
		// The proposer has seen what this voter has committed, not yet applied.
		if err := r.n.raftWait(ctx, r.n.raft.Barrier(enqueueTimeout(ctx))); err != nil {
			return r.later(err)
		}
		before, res = r.n.fsm.preview(c, req.Session)
	}
	if res.Refused != "" || res.State.Revision == before.Revision {
		return fromResult(res)
	}
	open := func() {}
	if takesFrom(before, res.State, c) {
		// A surrendered guest's owner has shut its gate: there is no lease to
		// wait for. Everybody else's is waited out (RULES 3, 7).
		wctx, cancel := context.WithTimeout(ctx, remaining(ctx)*4/5) // leave time to answer
		defer cancel()
		var err error
		if open, err = r.leases.shut(wctx, c.Guest, before.Phase != ownership.PhaseSurrendered); err != nil {
			return r.later(err)
		}
		crashpoint.At(crashpoint.TakeoverDecided)
	}
	res, a := r.apply(ctx, entry{Kind: entryCommand, Command: &c, Session: req.Session}, open)
	if c.Kind == ownership.Takeover {
		crashpoint.At(crashpoint.TakeoverApplied)
	}
	if a.Code == codeOK {
		a.State = res.State
	}
	return a
}

// takesFrom reports whether c gives a guest that has an owner to another host
// that is not the owner's doing.
func takesFrom(before, after ownership.Guest, c ownership.Command) bool {
	return before.Generation > 0 && after.Owner != before.Owner && c.Host != before.Owner
}

// fromResult is the answer for what applying came to.
func fromResult(res result) answer {
	a := answer{Code: codeOK, Text: res.Refused, State: res.State, Session: res.Session}
	switch {
	case res.Refused == "":
	case res.Old:
		a.Code, a.Text = codeUnknown, "the command is older than the log remembers: "+res.Refused
	case res.Void:
		a.Code = codeVoid
	default:
		a.Code = codeRefused
	}
	return a
}

func enqueueTimeout(ctx context.Context) time.Duration {
	return max(min(remaining(ctx), 10*time.Second), time.Millisecond)
}

// apply puts e into the log and waits for its fate. settled, if any, is called
// when the fate is known, which may be after apply has given up; it is never
// called if the fate stays unknown, and then the reign is over soon: raft gives
// an entry up only when it steps down.
func (r *reign) apply(ctx context.Context, e entry, settled func()) (result, answer) {
	if settled == nil {
		settled = func() {}
	}
	b, err := encodeEntry(e)
	if err != nil {
		settled()
		return result{}, answer{Code: codeRefused, Text: err.Error()}
	}
	f := r.n.raft.Apply(b, enqueueTimeout(ctx))
	fate := make(chan error, 1)
	if !r.n.spawn(func() {
		err := f.Error()
		if err == nil || notAppended(err) {
			settled()
		}
		fate <- err
	}) {
		return result{}, answer{Code: codeUnknown, Text: ErrClosed.Error()}
	}
	select {
	case err = <-fate:
	case <-ctx.Done():
		return result{}, answer{Code: codeUnknown, Text: "the log has not decided: " + ctx.Err().Error()}
	}
	switch {
	case err == nil:
	case notAppended(err):
		return result{}, answer{Code: codeNotLeader, Leader: r.n.otherLeader(), Text: err.Error()}
	default:
		return result{}, answer{Code: codeUnknown, Text: err.Error(), Leader: r.n.otherLeader()}
	}
	res, ok := f.Response().(result)
	if !ok {
		return result{}, answer{Code: codeUnknown, Text: fmt.Sprint(f.Response())}
	}
	return res, fromResult(res)
}

// notAppended reports errors of raft.Apply that are given before the entry is
// in any log (hashicorp/raft api.go ApplyLog, raft.go leaderLoop).
func notAppended(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress)
}

// read answers with the state after a barrier.
func (r *reign) read(ctx context.Context, req request) answer {
	if err := r.n.raftWait(ctx, r.n.raft.Barrier(enqueueTimeout(ctx))); err != nil {
		return r.later(err)
	}
	return answer{Code: codeOK, State: r.n.fsm.guest(req.Guest)}
}

// session opens a new session for who. Its log entry is a barrier as well.
func (r *reign) session(ctx context.Context, who ownership.HostID, req request) answer {
	_, a := r.apply(ctx, entry{Kind: entrySession, Guest: req.Guest, Host: who, From: req.From, Session: req.Session}, nil)
	return a
}
