package dashboard_test

// What the host that is made up does when it is asked to: it notes it.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"understudy/bubble"
	"understudy/drill"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status"
)

// Switchover implements status.Operations.
func (s *stage) Switchover(_ context.Context, guest string) (ownership.Guest, error) {
	return ownership.Guest{Owner: "beta", Generation: 4}, s.did("switchover " + guest)
}

// Verify implements status.Operations.
func (s *stage) Verify(_ context.Context, guest string) (primary.VerifyResult, error) {
	return primary.VerifyResult{Identical: true, Pages: 65536, Epochs: 7}, s.did("verify " + guest)
}

// Pause implements status.Operations.
func (s *stage) Pause(_ context.Context, guest string) (ownership.Guest, error) {
	return ownership.Guest{Owner: "alpha"}, s.did("pause " + guest)
}

// Unprotect implements status.Operations.
func (s *stage) Unprotect(_ context.Context, guest string) (ownership.Guest, error) {
	return ownership.Guest{Owner: "alpha"}, s.did("unprotect " + guest)
}

// Protect implements status.Operations.
func (s *stage) Protect(_ context.Context, guest string) (ownership.Guest, error) {
	return ownership.Guest{Owner: "alpha"}, s.did("protect " + guest)
}

// Failback implements status.Operations.
func (s *stage) Failback(_ context.Context, guest string) (ownership.Guest, error) {
	return ownership.Guest{Owner: "beta", Generation: 4}, s.did("failback " + guest)
}

// FailoverCost implements status.Operations.
func (s *stage) FailoverCost(context.Context, string) (host.FailoverCost, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cost, nil
}

// Failover implements status.Operations.
func (s *stage) Failover(_ context.Context, guest string, r host.FailoverRequest) (ownership.Guest, error) {
	return ownership.Guest{Owner: "alpha", Generation: 9}, s.did(fmt.Sprintf("failover %s force %v lose %q", guest, r.Force, r.Lose))
}

// FenceConfirm implements status.Operations.
func (s *stage) FenceConfirm(_ context.Context, target ownership.HostID) (host.Fences, error) {
	return host.Fences{Host: "alpha", Guests: []host.FencedGuest{{Guest: "web", Owner: target, Fenced: target}}}, s.did("fence " + string(target))
}

// Bubble implements status.Bubbles.
func (s *stage) Bubble(context.Context, string, bubble.Spec, bubble.Progress) (bubble.Result, error) {
	return bubble.Result{}, errors.New("not from here")
}

// EndBubble implements status.Bubbles.
func (s *stage) EndBubble(_ context.Context, guest string) error {
	return s.did("end the bubble of " + guest)
}

// Resume implements status.Operations.
func (s *stage) Resume(_ context.Context, guest string) (ownership.Guest, error) {
	return ownership.Guest{Owner: "alpha"}, s.did("resume " + guest)
}

// drills are a history that is made up, and a runner.
type drills struct{ *stage }

// List implements status.Drills.
func (d drills) List(int) (drill.List, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return drill.List{Drills: append([]drill.Summary(nil), d.drilled...)}, nil
}

// Report implements status.Drills.
func (d drills) Report(id string) (drill.Report, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, there := d.reports[id]
	if !there {
		return r, drill.ErrNoReport
	}
	return r, nil
}

// Start implements status.Drills.
func (d drills) Start(spec drill.Spec) (string, error) {
	id := "a-drill"
	r := drill.Report{ID: id, Spec: spec, State: drill.Running, Phase: drill.PhaseAct, Host: "alpha", Began: time.Now()}
	d.mu.Lock()
	d.reports[id], d.stage.drilled = r, append(d.drilled, r.Summary())
	d.mu.Unlock()
	return id, d.did(fmt.Sprintf("drill %s %s %s", spec.Kind, spec.Fault, spec.Guest))
}

// Abort implements status.Drills.
func (d drills) Abort(id string) error {
	d.mu.Lock()
	r := d.reports[id]
	r.State, r.Why = drill.Aborted, "an operator gave it up"
	d.reports[id], d.stage.drilled = r, []drill.Summary{r.Summary()}
	d.mu.Unlock()
	return d.did("give up " + id)
}

// Plan implements status.Drills.
func (d drills) Plan(_ context.Context, spec drill.Spec) (drill.Plan, error) {
	p := drill.Plan{Spec: spec, Host: "alpha", Possible: spec.Fault != drill.Cut, Steps: []string{"start the copy of web on beta in isolation"}, Risks: []string{},
		Conditions: []drill.Condition{{Name: "the guest is protected", Holds: true}}, Outage: drill.Expected{Why: "it goes on at alpha"}}
	if spec.Kind == drill.Failover {
		p.Steps, p.Risks, p.Outage = []string{"strike alpha: kill its daemon and the guest there"}, []string{"every guest that alpha runs is struck"}, drill.Expected{Time: 1050 * time.Millisecond, Why: "the lease runs out"}
	}
	if !p.Possible {
		p.Conditions = append(p.Conditions, drill.Condition{Name: "the owner lets itself be struck", Text: "alpha has strikes = false in [drills]"})
	}
	return p, nil
}

// Foretell implements status.Drills.
func (d drills) Foretell(context.Context, string, ...string) (drill.Forecast, error) {
	return drill.Forecast{}, errors.New("not asked for")
}

// peers are the other hosts.
func (s *stage) peers() status.Peers {
	if s.others == nil {
		return nil
	}
	return peers{s}
}

type peers struct{ *stage }

// Hosts implements status.Peers.
func (p peers) Hosts() []ownership.HostID { return []ownership.HostID{"alpha", "beta", "witness"} }

// Client implements status.Peers.
func (p peers) Client(h ownership.HostID) (*status.Client, error) {
	return status.NewPeerClient(h, func(ctx context.Context) (net.Conn, error) {
		address := p.others[h]
		if address == "" {
			return nil, errors.New("no route to host")
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}), nil
}
