package main

// status --all: what every host says, and where they differ. A host that does not
// answer is shown as unknown, with the reason.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status"
)

// hostStatus is one host's part of `status --all --output json`.
type hostStatus struct {
	Host ownership.HostID `json:"host"`
	// Report is missing where the host is unknown, for the reason in Unknown.
	Report  *status.Report `json:"report,omitempty"`
	Unknown string         `json:"unknown,omitempty"`
}

func statusOfAll(cmd *cobra.Command, f *common) error {
	local, err := f.local()
	if err != nil {
		return err
	}
	names, err := hosts(cmd.Context(), local)
	if err != nil {
		return err
	}
	all := []hostStatus{}
	for _, one := range everyHost(cmd.Context(), local, names, hostLimit, func(ctx context.Context, c *status.Client) (status.Report, error) { return c.Status(ctx) }) {
		s := hostStatus{Host: one.Host}
		if one.Err != nil {
			s.Unknown = one.Err.Error()
		} else {
			s.Report = &one.Value
		}
		all = append(all, s)
	}
	if err := f.print(cmd.OutOrStdout(), all, func(w io.Writer) error { return printAll(w, all) }); err != nil {
		return err
	}
	for _, s := range all {
		if s.Report != nil {
			if err := unprotected(*s.Report); err != nil {
				return err
			}
		}
	}
	for _, s := range all {
		if s.Unknown != "" {
			return exitError{exitNoDaemon, fmt.Errorf("host %s has not answered", s.Host)}
		}
	}
	return nil
}

// unprotected is the error of a host whose guest is not.
func unprotected(r status.Report) error {
	for _, g := range r.Guests {
		if g.Protected == host.ProtectedNo {
			why := ""
			if said := notWanted(g, time.Now()); said != "" {
				why = ": its " + said
			}
			return exitError{exitUnprotected, fmt.Errorf("guest %s is not protected%s", g.Name, why)}
		}
	}
	return nil
}

func printAll(w io.Writer, all []hostStatus) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	p("host\tleader\tlease\tlog heard\tversion\n")
	for _, s := range all {
		if s.Report == nil {
			p("%s\tunknown: %s\n", s.Host, s.Unknown)
			continue
		}
		p("%s\t%s\t%v\t%s\t%s\n", s.Host, orNone(s.Report.Leader), s.Report.Lease, age(s.Report.LogAge), s.Report.Version)
	}
	for _, s := range all {
		if s.Report != nil {
			for _, said := range runningOut(*s.Report, time.Now()) {
				p("%s\n", said)
			}
		}
	}
	for _, name := range guestsOf(all) {
		p("\nguest %s\n", name)
		p("  %s\n", strings.Join(summaries(all, name), "\n  "))
		p("  host\trole\towner\tgeneration\tphase\tmeant to be\tin sync\n")
		var logs []ownership.Guest
		for _, s := range all {
			if s.Report == nil {
				p("  %s\tunknown\n", s.Host)
				continue
			}
			g, ok := find(*s.Report, name)
			if !ok {
				continue // the witness has no part in it
			}
			logs = append(logs, g.Log)
			inSync := "-"
			if g.Log.InSync {
				inSync = string(g.Log.Backup.Host)
			}
			p("  %s\t%s\t%s\t%d\t%s\t%s\t%s\n", s.Host, roleOf(g), orNone(g.Log.Owner), g.Log.Generation, g.Log.Phase, g.Log.Desired, inSync)
		}
		if slices.ContainsFunc(logs, func(g ownership.Guest) bool { return g.Revision != logs[0].Revision }) {
			p("  the hosts know different states of the ownership log: the one with the highest generation is the newest\n")
		}
	}
	return t.Flush()
}

func orNone(h ownership.HostID) string {
	if h == "" {
		return "none known"
	}
	return string(h)
}

func age(d *time.Duration) string {
	if d == nil {
		return "never"
	}
	return d.Round(time.Millisecond).String() + " ago"
}

func roleOf(g host.GuestStatus) string {
	if g.Role == "" {
		return "starting"
	}
	return g.Role
}

func find(r status.Report, guest string) (host.GuestStatus, bool) {
	i := slices.IndexFunc(r.Guests, func(g host.GuestStatus) bool { return g.Name == guest })
	if i < 0 {
		return host.GuestStatus{}, false
	}
	return r.Guests[i], true
}

func guestsOf(all []hostStatus) (names []string) {
	for _, s := range all {
		if s.Report == nil {
			continue
		}
		for _, g := range s.Report.Guests {
			if !slices.Contains(names, g.Name) {
				names = append(names, g.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// summaries are the first lines on a guest: its primary's word, or if there is
// none to be had, everybody's.
func summaries(all []hostStatus, guest string) (lines []string) {
	for _, s := range all {
		if s.Report == nil {
			continue
		}
		g, ok := find(*s.Report, guest)
		switch {
		case ok && g.Primary != nil:
			return []string{summary(g, s.Report.Lease)}
		case ok:
			lines = append(lines, string(s.Host)+": "+summary(g, s.Report.Lease))
		}
	}
	return lines
}

// summary answers in one line: is it protected, how far behind is the backup, and
// what would a failover cost now.
func summary(g host.GuestStatus, lease time.Duration) string {
	switch p, b := g.Primary, g.Backup; {
	case p != nil && g.Protected == host.ProtectedYes:
		return fmt.Sprintf("protected by %s, %v behind; a failover now: %s", p.Backup, roughly(p.EpochAge), cost(p, lease))
	case p != nil:
		return "NOT protected (" + strings.TrimPrefix(protectedText(g), "NO: ") + "); a failover now: none, nobody can go on with it if this host is lost"
	case b != nil && b.InSync:
		return fmt.Sprintf("stands by here, %v behind the owner %s; a failover now would go on from epoch %d", roughly(b.EpochAge), g.Log.Owner, b.Epoch)
	case b != nil:
		return fmt.Sprintf("stands by here for %s, not in sync (%s): could not take over", g.Log.Owner, b.State)
	case g.Log.Desired == ownership.Stopped:
		return "stopped"
	case g.Log.Owner == g.Host:
		return fmt.Sprintf("%s here, NOT protected", roleOf(g))
	case g.Log.Owner == "":
		return fmt.Sprintf("%s here; %s", roleOf(g), noOwner)
	}
	return fmt.Sprintf("%s here; ask host %s, the owner", roleOf(g), g.Log.Owner)
}

// cost is what it would take to go on at the backup if the owner fell silent now:
// its lease has to run out first, and what the guest did since the last commit is
// done again or differently; nobody has seen it.
func cost(p *primary.Status, lease time.Duration) string {
	wait := p.LeaseLeft
	if wait <= 0 {
		wait = lease
	}
	back := max(p.EpochAge, p.Lag.P99)
	return fmt.Sprintf("granted within %v (what is left of the lease), set back by %v at most; no output that was seen is lost", roughly(wait), roughly(back))
}

// roughly is a time for people.
func roughly(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

var errAtAndAll = errors.New("--at asks one host and --all every one: give one of them")
