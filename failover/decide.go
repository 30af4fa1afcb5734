package failover

// decide.go: the leader's side of proposals and reads. A proposal is tried
// against the applied state first, so that what cannot apply costs nothing;
// one that takes the guest from its owner waits for the lease (leases.go); then
// it goes into the log, and its fate there is the answer.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"understudy/crashpoint"
	"understudy/failover/leases"
	"understudy/ownership"
)

func (r *reign) propose(ctx context.Context, who ownership.HostID, req request) answer {
	c := *req.Command
	if c.Host != who {
		return answer{Code: codeRefused, Text: fmt.Sprintf("%s proposes in the name of %s", who, c.Host), State: r.n.fsm.guest(c.Guest)}
	}
	if c.Revision > r.n.fsm.guest(c.Guest).Revision {
		// The proposer has seen what this voter has committed, not yet applied.
		if err := r.n.raftWait(ctx, r.n.raft.Barrier(enqueueTimeout(ctx))); err != nil {
			return r.later(err)
		}
	}
	ticket, answered := r.leases.admit(ctx, c, req.Session)
	if answered != nil {
		return *answered
	}
	if ticket != (leases.Ticket{}) {
		crashpoint.At(crashpoint.TakeoverDecided)
	}
	res, a := r.apply(ctx, entry{Kind: entryCommand, Command: &c, Session: req.Session}, ticket)
	if c.Kind == ownership.Takeover {
		crashpoint.At(crashpoint.TakeoverApplied)
	}
	if a.Code == codeOK {
		a.State = res.State
	}
	return a
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

// apply puts e into the log and waits for its fate, which settles the ticket,
// maybe after apply has given up. When the fate stays unknown the reign is over
// soon: raft gives an entry up only when it steps down.
func (r *reign) apply(ctx context.Context, e entry, t leases.Ticket) (result, answer) {
	b, err := encodeEntry(e)
	if err != nil {
		r.leases.settle(t, leases.Refused)
		return result{}, answer{Code: codeRefused, Text: err.Error()}
	}
	r.leaving.RLock()
	if who := e.by(); who != "" && who == r.leaver {
		r.leaving.RUnlock()
		r.leases.settle(t, leases.Refused)
		return result{}, answer{Code: codeLater, Text: string(who) + " is being removed from the voters"}
	}
	f := r.n.raft.Apply(b, enqueueTimeout(ctx))
	r.leaving.RUnlock()
	fate := make(chan error, 1)
	if !r.n.spawn(func() {
		err := f.Error()
		r.leases.settle(t, fateOf(f, err))
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

// fateOf says what an entry's future, answered with err, has come to.
func fateOf(f raft.ApplyFuture, err error) leases.Fate {
	if err != nil {
		if notAppended(err) {
			return leases.Refused
		}
		return leases.Unknown
	}
	switch res, ok := f.Response().(result); {
	case !ok: // this voter's log is damaged: it stops
		return leases.Unknown
	case res.Refused != "":
		return leases.Refused
	}
	return leases.Applied
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
	_, a := r.apply(ctx, entry{Kind: entrySession, Guest: req.Guest, Host: who, From: req.From, Session: req.Session}, leases.Ticket{})
	return a
}
