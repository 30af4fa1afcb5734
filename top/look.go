// Package top is a view of a pair for a terminal: what `understudy top` shows.
//
//	Source.Look, every second → Model (rows, sparklines, events) → Frame → terminal
//
// A Look is what all hosts said at one moment; whoever does not answer is shown
// as silent, and what only it knows as unknown. Frame is pure: the same model and
// size give the same lines, which is what the tests and --once go by.
package top

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status"
	"understudy/status/samples"
)

// Look is what the hosts said at one moment.
type Look struct {
	At      time.Time
	Cluster status.Cluster // as the host sees it that was asked
	Lease   time.Duration
	Hosts   []Host
	Events  []Event // the newest last
	// Past is what the hosts remember of guests of which no look told before, by
	// their names.
	Past map[string][]samples.Series
	Err  error // nothing could be asked; the rest is empty
}

// Host is one host of the cluster.
type Host struct {
	Name    ownership.HostID
	Witness bool
	// Guests are what it said; Err, if not nil, is why it said nothing.
	Guests []host.GuestStatus
	Err    error
}

// Event is something that happened.
type Event struct {
	At    time.Time
	Guest string
	Text  string
}

// Source is where looks come from. A look that takes longer than ctx lasts holds
// the error of that.
type Source interface {
	Look(ctx context.Context) Look
}

// row is one guest as all hosts see it.
type row struct {
	name          string
	owner, backup ownership.HostID
	state         string // in words
	level         level
	at            *host.GuestStatus // its primary's, nil if none is known
	standby       *host.GuestStatus // its backup's
	problems      []string
}

// level is how good a state is.
type level int

const (
	good level = iota
	fair
	bad
)

// rows are the guests of a look, by name.
func (l Look) rows() []row {
	found := map[string]*row{}
	for _, h := range l.Hosts {
		for _, g := range h.Guests {
			r := found[g.Name]
			if r == nil {
				r = &row{name: g.Name}
				found[g.Name] = r
			}
			if g.Log.Owner != "" && (r.owner == "" || g.Role == "primary") {
				r.owner = g.Log.Owner
			}
			switch {
			case g.Primary != nil:
				r.at = &g
			case g.Backup != nil:
				r.standby, r.backup = &g, g.Host
			}
			if g.Problem != "" {
				r.problems = append(r.problems, fmt.Sprintf("%s: %s", h.Name, g.Problem))
			}
			if r.state == "" || g.Role == "primary" {
				r.state, r.level = stateOf(g)
			}
		}
	}
	all := make([]row, 0, len(found))
	for _, r := range found {
		if r.at != nil && r.at.Primary.Backup != "" {
			r.backup = r.at.Primary.Backup
		}
		if r.at == nil && r.standby != nil {
			r.state, r.level = unseen(*r.standby, l)
		}
		all = append(all, *r)
	}
	slices.SortFunc(all, func(a, b row) int { return cmp.Compare(a.name, b.name) })
	return all
}

// stateOf says how a guest is on one host.
func stateOf(g host.GuestStatus) (string, level) {
	p := g.Primary
	switch {
	case p == nil && g.Role == "":
		return "starting", fair
	case p == nil:
		return g.Role, fair
	case g.Protected == host.ProtectedYes:
		return "protected", good
	case p.Mode == primary.ModeProtected:
		return "NOT PROTECTED: no answer", bad
	case p.Mode == primary.ModeSyncing && p.Pages > 0:
		return fmt.Sprintf("NOT PROTECTED: sync %d%%", 100*(p.Pages-min(p.Pages, p.Remaining))/p.Pages), bad
	}
	return "NOT PROTECTED: " + p.Mode.String(), bad
}

// unseen is the state of a guest whose owner says nothing.
func unseen(g host.GuestStatus, l Look) (string, level) {
	if g.Log.Desired == ownership.Stopped {
		return "stopped", fair
	}
	for _, h := range l.Hosts {
		if h.Name == g.Log.Owner && h.Err == nil {
			return string(g.Log.Phase), fair
		}
	}
	return "unknown: owner is silent", bad
}
