package daemon

// Drills on this host: package drill reaches the hosts through the peers' clients.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"understudy/bubble"
	"understudy/config"
	"understudy/drill"
	"understudy/events"
	"understudy/ownership"
	"understudy/status"
)

// hosts are what a drill needs of the cluster, by its configuration and through
// the peers' clients.
type hosts struct {
	config func() *config.Config // that which runs
	peers  *Peers
}

// newRunner returns what runs drills on this host, and where its reports are.
func newRunner(o Options, self config.Host, running func() *config.Config, peers *Peers) (*drill.Runner, error) {
	history, err := drill.OpenHistory(filepath.Join(o.Config.DirsOf(self).State, "drills"))
	if err != nil {
		return nil, err
	}
	h := hosts{running, peers}
	return drill.NewRunner(drill.RunnerConfig{Cluster: h, History: history, Specs: h.specs, Record: o.record.Add, Slog: o.Slog}), nil
}

// specs are the configured drills.
func (h hosts) specs() []drill.Spec {
	drills := h.config().Drill
	all := make([]drill.Spec, 0, len(drills))
	for _, d := range drills {
		all = append(all, drill.Spec{Name: d.Name, Guest: d.Guest, Kind: drill.Kind(d.Kind), Fault: drill.Fault(d.Fault), FaultFor: d.FaultFor.Std(),
			Check: d.Check, CheckTimeout: d.CheckTimeout.Std(), Probe: d.Probe, MaxOutage: d.MaxOutage.Std(), Stay: !d.Returns(), Patience: d.Patience.Std(),
			Schedule: d.Schedule.String()})
	}
	return all
}

func (h hosts) Self() ownership.HostID { return h.peers.Self() }

func (h hosts) Members() []drill.Member {
	members := h.config().Hosts
	all := make([]drill.Member, 0, len(members))
	for _, one := range members {
		all = append(all, drill.Member{Host: ownership.HostID(one.Name), Witness: one.Witness})
	}
	return all
}

func (h hosts) Facts(guest string) (drill.Facts, bool) {
	g, ok := h.config().Guest(guest)
	f := drill.Facts{Host: ownership.HostID(g.Host), Backup: ownership.HostID(g.Backup), DetachAfter: g.Protection.DetachAfter.Std()}
	for _, d := range g.Disks {
		f.Shared = f.Shared || d.Mode == config.Shared
		f.Unfenced = f.Unfenced || d.Unfenced
	}
	return f, ok
}

func (h hosts) Status(ctx context.Context, at ownership.HostID) (drill.Seen, error) {
	c, err := h.peers.Client(at)
	if err != nil {
		return drill.Seen{}, err
	}
	r, err := c.Status(ctx)
	return drill.Seen{Host: r.Host, Leader: r.Leader, Lease: r.Lease, LogAge: r.LogAge, Guests: r.Guests}, err
}

// Clock leaves out what it takes to connect.
func (h hosts) Clock(ctx context.Context, at ownership.HostID) (drill.Reading, error) {
	c, err := h.peers.Client(at)
	if err != nil {
		return drill.Reading{}, err
	}
	var asked, heard time.Time
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest:         func(httptrace.WroteRequestInfo) { asked = time.Now() },
		GotFirstResponseByte: func() { heard = time.Now() },
	})
	var got status.Clock
	if err := c.Get(ctx, "/api/v1/clock", &got); err != nil {
		return drill.Reading{}, err
	}
	got.Reading.Asked, got.Reading.Heard = asked, heard
	return got.Reading, nil
}

func (h hosts) Last(ctx context.Context, at ownership.HostID) (uint64, error) {
	list, err := h.list(ctx, at, "?limit=1")
	return list.Last, err
}

func (h hosts) Events(ctx context.Context, at ownership.HostID, after uint64) ([]events.Event, error) {
	const most, pages = 1000, 10
	var all []events.Event
	for range pages {
		list, err := h.list(ctx, at, fmt.Sprintf("?since=%d&limit=%d", after, most))
		if err != nil {
			return nil, err
		}
		for _, line := range list.Events {
			e, err := events.Parse(line)
			if err != nil {
				return nil, fmt.Errorf("the record of %s: %w", at, err)
			}
			all = append(all, e)
		}
		if len(list.Events) < most {
			return all, nil
		}
		after = list.Last
	}
	return nil, fmt.Errorf("the record of %s has more than %d events since the drill began", at, most*pages)
}

func (h hosts) list(ctx context.Context, at ownership.HostID, query string) (status.EventList, error) {
	var list status.EventList
	c, err := h.peers.Client(at)
	if err == nil {
		err = c.Get(ctx, "/api/v1/events"+query, &list)
	}
	return list, err
}

func (h hosts) Busy(ctx context.Context, at ownership.HostID) (string, error) {
	c, err := h.peers.Client(at)
	if err != nil {
		return "", err
	}
	l, err := c.DrillList(ctx, 1)
	return l.Running, err
}

func (h hosts) Operate(ctx context.Context, at ownership.HostID, guest, operation string, result any) error {
	c, err := h.peers.Client(at)
	if err != nil {
		return err
	}
	return c.Operate(ctx, guest, operation, result)
}

func (h hosts) Check(ctx context.Context, argv []string) drill.Ran { return drill.RunCheck(ctx, argv) }

func (h hosts) Connect(ctx context.Context, address string) error { return drill.Connect(ctx, address) }

// refused marks an answer that says that nothing was done.
func refused(err error) error {
	var r *status.Refused
	if errors.As(err, &r) && r.Status < http.StatusInternalServerError {
		return fmt.Errorf("%w: %w", drill.ErrRefused, err)
	}
	return err
}

// strikeOrder and struck are a strike as the endpoint has it.
type strikeOrder struct {
	ID   string        `json:"id"`
	Kind drill.Fault   `json:"kind"`
	For  time.Duration `json:"for_ns"`
}

type struck struct {
	ID   string    `json:"id"`
	At   time.Time `json:"at"`
	Undo time.Time `json:"undo"`
}

func (h hosts) Strike(ctx context.Context, at ownership.HostID, guest string, o drill.StrikeOrder) (drill.Struck, error) {
	c, err := h.peers.Client(at)
	if err != nil {
		return drill.Struck{}, err
	}
	var s struck
	err = c.Post(ctx, "/api/v1/guests/"+url.PathEscape(guest)+"/strike", strikeOrder(o), &s)
	return drill.Struck(s), refused(err)
}

func (h hosts) Strikes(ctx context.Context, at ownership.HostID) (bool, []drill.Struck, error) {
	c, err := h.peers.Client(at)
	if err != nil {
		return false, nil, err
	}
	var list struct {
		Allowed bool     `json:"allowed"`
		Strikes []struck `json:"strikes"`
	}
	err = c.Get(ctx, "/api/v1/strikes", &list)
	if r := (*status.Refused)(nil); errors.As(err, &r) && r.Status == http.StatusNotFound {
		return false, nil, nil // a daemon that cannot be struck
	}
	var left []drill.Struck
	for _, s := range list.Strikes {
		left = append(left, drill.Struck(s))
	}
	return list.Allowed, left, err
}

func (h hosts) Bubble(ctx context.Context, at ownership.HostID, guest string, o drill.BubbleOrder, progress func(string)) (drill.Bubbled, error) {
	c, err := h.peers.Client(at)
	if err != nil {
		return drill.Bubbled{}, err
	}
	stage := ""
	r, err := c.Bubble(ctx, guest, bubble.Spec{Check: o.Check, Timeout: o.Timeout}, func(now string, _, _ uint64) {
		if now != stage {
			stage = now
			progress(now)
		}
	})
	if err != nil {
		return drill.Bubbled{}, refused(err)
	}
	return bubbled(r), nil
}

// bubbled is what a drill wants to know of a bubble. That it has come back says
// that nothing of it is left.
func bubbled(r bubble.Result) drill.Bubbled {
	out := drill.Bubbled{Epoch: r.Epoch, Started: r.RunsAfter, Ended: true, Text: fmt.Sprintf(
		"forked in %v from a commit %v old; %d epochs were committed meanwhile, for which the backup was kept from its work for %v at most; %d bytes were written by the copy and forgotten",
		events.About(r.ForkTime), events.About(r.CommitAge), r.Commits, events.About(r.HeldUpMost), r.Written)}
	if c := r.Check; c != nil {
		ran := drill.Ran{Status: c.Exit, Output: c.Output, Took: c.Took, Error: c.Error}
		if c.TimedOut {
			ran.Error = "it was not done in time"
		}
		out.Check = &ran
	}
	return out
}

func (h hosts) EndBubble(ctx context.Context, at ownership.HostID, guest string) error {
	c, err := h.peers.Client(at)
	if err != nil {
		return err
	}
	// The answer comes before the end: that it is over is known when there is none.
	err = c.EndBubble(ctx, guest)
	if r := (*status.Refused)(nil); errors.As(err, &r) && strings.Contains(r.Why, "has no bubble") {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("the bubble of %s on %s is ending", guest, at)
	}
	return err
}
