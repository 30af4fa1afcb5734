package failover

// members.go: who votes changes, one voter at a time, through raft's own
// configuration changes.
//
//	Replace: the leader is not the one that goes → the new one is added, to be
//	filled → it votes → the old one is removed
//
// Replace runs where an operator asks for it and keeps nothing: what is next
// follows from what the leader says is so. Each step is the leader's (members),
// which checks it for itself; it may be asked for again at any time.
//
// Why there are never two majorities: see ARCHITECTURE.md. In short: each step
// changes one voter, so that the majorities before and after it have a voter in
// common; raft begins a step only when the one before is committed, and when the
// leader has committed an entry in its own term; and confirmOnce counts by the
// same configuration as raft does.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"understudy/ownership"
)

// Member is a voter, or one that is to become one, as in the log.
type Member struct {
	ID    ownership.HostID `json:"id"`
	Votes bool             `json:"votes"`
}

// step is what the leader is asked for.
type step string

const (
	stepList    step = "list"    // who votes
	stepYield   step = "yield"   // let another lead
	stepAdd     step = "add"     // Host is to be filled; it does not vote
	stepPromote step = "promote" // Host, which is filled, votes
	stepRemove  step = "remove"  // Host does not vote any more
)

// Progress is told what Replace is doing.
type Progress func(text string)

// Replace puts the voter fresh into the place of old in the log. fresh has to be in
// the configuration of the other voters, and old in none of them (SetPeers); its
// own daemon runs. It takes as long as ctx allows; interrupted, it is asked for
// again, and goes on. Where both are the same name, it waits until the fresh voter
// of that name has been filled.
func (n *Node) Replace(ctx context.Context, old, fresh ownership.HostID, tell Progress) error {
	fail := func(err error) error {
		return fmt.Errorf("replace voter %s by %s: %w; what was done so far stays, and the same command goes on from there", old, fresh, err)
	}
	if !n.configured(fresh) {
		return fail(fmt.Errorf("%s is not in the configuration of this host: put it there in the place of %s, on every host, and apply it", fresh, old))
	}
	if old == fresh {
		return n.refilled(ctx, fresh, tell)
	}
	if n.configured(old) {
		return fail(fmt.Errorf("%s is still in the configuration of this host: put %s into its place, on every host, and apply it", old, fresh))
	}
	for {
		a, err := n.ask(ctx, stepList, "")
		if err != nil {
			return fail(err)
		}
		leaves, comes := find(a.Members, old), find(a.Members, fresh)
		var do step
		of := fresh
		switch {
		case leaves != nil && a.Leader == old:
			do, of = stepYield, old
			tell(fmt.Sprintf("%s leads the ownership log: another voter is to lead", old))
		case comes == nil:
			if err := n.everybodyKnows(ctx, a.Members, fresh); err != nil {
				return fail(err)
			}
			do = stepAdd
			tell(fmt.Sprintf("%s is given the ownership log; it does not vote yet", fresh))
		case !comes.Votes:
			do = stepPromote
			tell(fmt.Sprintf("%s votes as soon as it has all of the ownership log", fresh))
		case leaves != nil:
			do, of = stepRemove, old
			tell(fmt.Sprintf("%s is not to vote any more", old))
		default:
			tell(fmt.Sprintf("%s is a voter in the place of the former one", fresh))
			return nil
		}
		if _, err := n.ask(ctx, do, of); err != nil {
			return fail(err)
		}
	}
}

func find(all []Member, id ownership.HostID) *Member {
	if i := slices.IndexFunc(all, func(m Member) bool { return m.ID == id }); i >= 0 {
		return &all[i]
	}
	return nil
}

// ask asks the leader for a step, until it has been done, was refused, or ctx ends.
func (n *Node) ask(ctx context.Context, do step, of ownership.HostID) (routed, error) {
	out, err := n.route(ctx, kindMembers, request{Step: do, Host: of}, func(c code) bool { return c == codeOK || c == codeRefused })
	if err == nil && out.Code == codeRefused {
		err = errors.New(out.Text)
	}
	return out, err
}

// everybodyKnows makes sure that the voters that stay can reach the fresh one: it
// may have to lead them.
func (n *Node) everybodyKnows(ctx context.Context, all []Member, fresh ownership.HostID) error {
	for _, m := range all {
		if !m.Votes || m.ID == n.cfg.Self || !n.configured(m.ID) {
			continue
		}
		l := n.link(m.ID)
		if l == nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, 4*n.cfg.Profile.Attempt+time.Second)
		a, err := l.call(call, kindStatus, request{Host: fresh})
		cancel()
		switch {
		case err != nil:
			return fmt.Errorf("%s has to know of %s, and does not answer: %w", m.ID, fresh, err)
		case !a.Knows:
			return fmt.Errorf("%s is not in the configuration of host %s yet: put it there and apply it (understudy config apply)", fresh, m.ID)
		}
	}
	return nil
}

// refilled waits until a voter whose disk is new has been filled.
func (n *Node) refilled(ctx context.Context, id ownership.HostID, tell Progress) error {
	tell(fmt.Sprintf("%s votes under its former name: it votes again once it has all of the ownership log", id))
	for {
		a, err := n.ask(ctx, stepList, "")
		if err != nil {
			return err
		}
		why := fmt.Errorf("%s is no voter", id)
		if m := find(a.Members, id); m != nil && m.Votes {
			if why = n.isFilled(ctx, id, a.Index); why == nil {
				tell(fmt.Sprintf("%s votes", id))
				return nil
			}
		}
		select {
		case <-time.After(n.cfg.Profile.Heartbeat / 2):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), why)
		}
	}
}

// isFilled asks a voter whether it votes and has the log up to index.
func (n *Node) isFilled(ctx context.Context, id ownership.HostID, index uint64) error {
	var a answer
	if id == n.cfg.Self {
		a = n.status(request{})
	} else {
		l := n.link(id)
		if l == nil {
			return fmt.Errorf("%s is not known here", id)
		}
		call, cancel := context.WithTimeout(ctx, 2*n.cfg.Profile.Attempt)
		defer cancel()
		var err error
		if a, err = l.call(call, kindStatus, request{}); err != nil {
			return fmt.Errorf("%s does not answer: does its daemon run? %w", id, err)
		}
	}
	switch {
	case a.Waits:
		return fmt.Errorf("%s has not been filled up to what was committed when it asked", id)
	case a.Index < index:
		return fmt.Errorf("%s has the log up to entry %d of %d", id, a.Index, index)
	}
	return nil
}

// changeMembers is the leader's part.
func (r *reign) changeMembers(ctx context.Context, req request) answer {
	n := r.n
	if err := r.rounds.confirm(ctx); err != nil {
		return r.later(err)
	}
	r.membering.Lock() // one at a time
	defer r.membering.Unlock()
	refused := func(format string, a ...any) answer {
		return answer{Code: codeRefused, Text: fmt.Sprintf(format, a...)}
	}
	var all []Member
	for _, s := range n.members() {
		all = append(all, Member{ID: ownership.HostID(s.ID), Votes: s.Suffrage == raft.Voter})
	}
	at, voters := find(all, req.Host), slices.DeleteFunc(slices.Clone(all), func(m Member) bool { return !m.Votes })
	id, address := raft.ServerID(req.Host), raft.ServerAddress(req.Host)
	configured, _, _ := n.Peers()
	var f raft.Future
	switch req.Step {
	case stepList:
		return answer{Code: codeOK, Members: all, Leader: n.cfg.Self, Index: n.raft.CommitIndex()}
	case stepYield:
		if req.Host != n.cfg.Self {
			return answer{Code: codeOK} // it does not lead
		}
		f = n.raft.LeadershipTransfer()
	case stepAdd:
		if at != nil {
			return answer{Code: codeOK}
		}
		if i := slices.IndexFunc(all, func(m Member) bool { return !m.Votes }); i >= 0 {
			return refused("%s is being made a voter: finish that first, or remove it", all[i].ID)
		}
		if !n.configured(req.Host) {
			return refused("%s is not in the configuration of the leader, %s: put it there and apply it", req.Host, n.cfg.Self)
		}
		if len(voters) != len(configured) {
			return refused("%d voters are in the log, the configuration has %d: finish the replacement that was begun first", len(voters), len(configured))
		}
		if err := n.oneDiffers(voters, req.Host); err != nil {
			return refused("%v", err)
		}
		f = n.raft.AddNonvoter(id, address, 0, enqueueTimeout(ctx))
	case stepPromote:
		switch {
		case at == nil:
			return refused("%s is not to become a voter", req.Host)
		case at.Votes:
			return answer{Code: codeOK}
		case !n.configured(req.Host):
			return refused("%s is not in the configuration of the leader, %s", req.Host, n.cfg.Self)
		}
		if err := n.isFilled(ctx, req.Host, n.raft.CommitIndex()); err != nil {
			return answer{Code: codeLater, Text: err.Error()}
		}
		f = n.raft.AddVoter(id, address, 0, enqueueTimeout(ctx))
	case stepRemove:
		switch {
		case at == nil:
			return answer{Code: codeOK}
		case req.Host == n.cfg.Self:
			return answer{Code: codeLater, Text: "another voter is to lead first"}
		case n.configured(req.Host):
			return refused("%s is in the configuration of the leader, %s: put another host into its place first", req.Host, n.cfg.Self)
		case at.Votes && len(voters) <= len(configured):
			return refused("there is no voter in the place of %s yet", req.Host)
		}
		if at.Votes {
			if a := r.mayGo(ctx, req.Host, voters); a != nil {
				return *a
			}
			defer r.stay()
		}
		f = n.raft.RemoveServer(id, 0, enqueueTimeout(ctx))
	default:
		return refused("unknown step %q", req.Step)
	}
	if err := n.raftWait(ctx, f); err != nil {
		// Done or not, who votes says so when it is asked for the next time.
		return answer{Code: codeLater, Text: fmt.Sprintf("%s %s: %v", req.Step, req.Host, err)}
	}
	n.log.Info("who votes has changed", "step", string(req.Step), "voter", req.Host)
	return answer{Code: codeOK}
}

// oneDiffers makes sure that one voter is replaced, and not more.
func (n *Node) oneDiffers(voters []Member, fresh ownership.HostID) error {
	var leave []ownership.HostID
	for _, m := range voters {
		if !n.configured(m.ID) {
			leave = append(leave, m.ID)
		}
	}
	if len(leave) != 1 {
		return fmt.Errorf("%d voters are to be replaced (%v): %s can take the place of one, one at a time", len(leave), leave, fresh)
	}
	return nil
}

// mayGo says why a voter must not be removed now; nil: it may, and has no more say
// until stay is called.
func (r *reign) mayGo(ctx context.Context, id ownership.HostID, voters []Member) *answer {
	n := r.n
	// Those that stay have to be a majority without it, before and after.
	confirmed := 1
	var silent []error
	for _, m := range voters {
		if m.ID == id || m.ID == n.cfg.Self {
			continue
		}
		err := fmt.Errorf("%s is not known here", m.ID)
		if l := n.link(m.ID); l != nil {
			call, cancel := context.WithTimeout(ctx, 2*n.cfg.Profile.Attempt)
			err = r.ask(call, l)
			cancel()
		}
		if err != nil {
			silent = append(silent, err)
			continue
		}
		confirmed++
	}
	if need := len(voters)/2 + 1; confirmed < need {
		a := answer{Code: codeLater, Text: fmt.Sprintf("without %s only %d voters of %d answer, %d have to: %v", id, confirmed, len(voters), need, errors.Join(silent...))}
		return &a
	}
	// From here on it takes nothing over: what it proposed before is applied first.
	r.leaving.Lock()
	r.leaver = id
	r.leaving.Unlock()
	if err := n.raftWait(ctx, n.raft.Barrier(enqueueTimeout(ctx))); err != nil {
		r.stay()
		a := r.later(err)
		return &a
	}
	for name, g := range n.fsm.all() {
		var why string
		switch {
		case g.Desired != ownership.Running || g.Generation == 0:
			continue
		case g.Owner == id:
			why = fmt.Sprintf("guest %s is owned by %s: switch it over; if %s is lost, let its backup take it over (understudy failover), or stop it", name, id, id)
		case g.InSync && g.Backup.Host == id:
			why = fmt.Sprintf("%s is the backup in sync of guest %s: apply the new configuration on host %s, its owner, and wait until it is protected", id, name, g.Owner)
		case g.Phase != ownership.PhaseActive && g.Previous == id:
			why = fmt.Sprintf("guest %s is just being taken over from %s", name, id)
		default:
			continue
		}
		r.stay()
		return &answer{Code: codeRefused, Text: why}
	}
	return nil
}

// stay ends what mayGo has begun.
func (r *reign) stay() {
	r.leaving.Lock()
	defer r.leaving.Unlock()
	r.leaver = ""
}
