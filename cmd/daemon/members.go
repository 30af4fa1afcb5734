package daemon

// This file is what a change of the voters needs beside the ownership log's own part
// (failover.Node.Replace): who may connect, and where the hosts are.

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"understudy/config"
	"understudy/failover"
	"understudy/ownership"
	"understudy/status"
	"understudy/transport"
)

// followMembers keeps port and book in line with who votes, until ctx ends: a host
// that was replaced may not connect any more.
func followMembers(ctx context.Context, o Options, voter *failover.Node, b *book, port *transport.Port) {
	for {
		_, former, changed := voter.Peers()
		if err := b.forget(former); err != nil {
			o.Slog.Warn("where the hosts are is not kept", "err", err)
		}
		b.admit(port)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// members is the daemon's voter as the endpoint offers it.
type members struct{ voter *failover.Node }

// Replace implements status.Members.
func (m members) Replace(ctx context.Context, old, fresh ownership.HostID, tell func(string)) (status.Cluster, error) {
	if err := m.voter.Replace(ctx, old, fresh, tell); err != nil {
		return status.Cluster{}, err
	}
	return clusterOf(m.voter.View()), nil
}

// exchange says why the hosts of another configuration cannot be those of this one
// now; "": they can. One at a time is replaced, and the one before is finished first.
func exchange(voter *failover.Node, next *config.Config) string {
	var stay, leave []string
	for _, v := range voter.View().Voters {
		if !v.Member {
			continue
		}
		if _, ok := next.Host(string(v.ID)); ok {
			stay = append(stay, string(v.ID))
		} else {
			leave = append(leave, string(v.ID))
		}
	}
	if len(leave) <= 1 {
		return ""
	}
	slices.Sort(leave)
	return fmt.Sprintf("%s vote, and would all have to be replaced: one at a time, each finished (understudy host replace OLD NEW) before the next (staying: %s)",
		strings.Join(leave, " and "), strings.Join(stay, ", "))
}
