package main

// status, switchover, stop, start, verify: what an operator does while it runs.

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"understudy/disk"
	"understudy/epoch"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status"
)

func statusCommand(f *common) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Is my guest protected, how far behind is the backup, since when",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all && f.at != "" {
				return exitError{exitUsage, errAtAndAll}
			}
			if all {
				return statusOfAll(cmd, f)
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			r, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if err := f.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printStatus(w, r) }); err != nil {
				return err
			}
			return unprotected(r)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "ask every host, and show where they differ")
	return c
}

func printStatus(w io.Writer, r status.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	leader := string(r.Leader)
	if leader == "" {
		leader = "none known"
	}
	p("host %s, ownership led by %s, lease %v\n", r.Host, leader, r.Lease)
	for _, said := range runningOut(r, time.Now()) {
		p("%s\n", said)
	}
	p("\n")
	for _, g := range r.Guests {
		p("guest\t%s\n", g.Name)
		p("  now\t%s\n", summary(g, r.Lease))
		p("  protected\t%s\n", protectedText(g))
		if said := notWanted(g, time.Now()); said != "" {
			p("  switched\t%s\n", said)
		}
		if g.Log.Owner == "" {
			p("  owner\tnot known: %s\n", noOwner)
		} else {
			p("  owner\t%s, generation %d, %s, meant to be %s\n", g.Log.Owner, g.Log.Generation, g.Log.Phase, g.Log.Desired)
		}
		p("  here\t%s\n", roleOf(g))
		if s := g.Primary; s != nil {
			p("  last commit\tepoch %d, %v ago\n", s.Epoch, s.EpochAge.Round(time.Millisecond))
			p("  pause\t%v median, %v p99\n", s.Pause.Median.Round(10*time.Microsecond), s.Pause.P99.Round(10*time.Microsecond))
			p("  commit lag\t%v median, %v p99\n", s.Lag.Median.Round(10*time.Microsecond), s.Lag.P99.Round(10*time.Microsecond))
			t := s.Totals
			left := 0.0
			if t.RawBytes > 0 {
				left = 100 * (1 - float64(t.WireBytes)/float64(t.RawBytes))
			}
			p("  sent\t%s for %s of dirty pages (%.0f%% left out)\n", size(t.WireBytes), size(t.RawBytes), left)
			if x := g.Excluded; x != nil {
				p("  not sent\t%d pages read from the disk, %d found on it by content, %d equal to another, %d zero, %d unchanged\n",
					x.Mapped, x.Indexed, x.Copied, t.ZeroPages, t.SamePages)
				p("  sent all the same\t%d on no disk, %d changed since, %d whose block was overwritten, %d not verified there, %d past the limit\n",
					x.Unknown, x.Changed, x.Overwritten, x.Unverified, x.Full)
			}
			p("  held output\t%d frames, %s\n", s.Held, size(uint64(max(0, s.HeldBytes))))
			if s.LinkError != "" {
				p("  last trouble\t%s\n", s.LinkError)
			}
		}
		if s := g.Backup; s != nil {
			p("  image\t%s, epoch %d, committed %v ago, could take over: %v\n", s.State, s.Epoch, s.EpochAge.Round(time.Millisecond), s.InSync)
		}
		if d := g.Disks; d != nil {
			printDisks(p, *d)
		}
		if g.Missing > 0 {
			p("  restoring\t%s of memory are still only in the checkpoint file\n", size(g.Missing*epoch.PageSize))
		}
		if g.Problem != "" {
			p("  problem\t%s\n", g.Problem)
		}
		for _, e := range r.Exits[g.Name] {
			p("  way out\t%s: %s\n", e.Device, e.Treatment)
		}
	}
	return t.Flush()
}

// expiryNotice is how long before a certificate runs out it is spoken of: as long
// as before the alert (packaging/prometheus/alerts.yaml).
const expiryNotice = 30 * 24 * time.Hour

// runningOut says which of a host's certificates run out soon, or have.
func runningOut(r status.Report, now time.Time) (said []string) {
	for _, c := range r.Certificates {
		left := c.Until.Sub(now)
		if left >= expiryNotice {
			continue
		}
		when := "runs out on " + c.Until.UTC().Format(time.DateOnly)
		if left <= 0 {
			when = "ran out on " + c.Until.UTC().Format(time.DateOnly) + ": nobody new can connect"
		}
		whose := fmt.Sprintf("host %s's certificate", r.Host)
		switch c.Of {
		case "authority":
			whose = "the certificate authority"
		case "endpoint":
			whose = fmt.Sprintf("the certificate of host %s's status endpoint", r.Host)
		}
		said = append(said, fmt.Sprintf("%s %s (see the guide)", whose, when))
	}
	return said
}

func printDisks(p func(format string, a ...any), d disk.Status) {
	p("  held writes\t%d, %s of at most %s (%s)\n", d.Writes, size(d.Bytes), size(d.Limit), d.Mode)
	for i, one := range d.Disks {
		state := "read here"
		switch {
		case one.Waiting:
			state = "waits until another host lets go of it"
		case one.Writer:
			state = "written here"
		}
		if one.Differ+one.Compare > 0 {
			state += fmt.Sprintf("; the backup's copy: %s to compare, %s to send", size(one.Compare), size(one.Differ))
		}
		p("  disk %d\t%s, %s, %s\n", i, size(one.Sectors*512), one.Store, state)
	}
	for _, b := range d.Boot {
		state := "its pages are left out"
		switch {
		case b.Problem != "":
			state = "its pages are not left out: " + b.Problem
		case b.Lacking:
			state = "its pages are not left out: the backup has not the same file"
		}
		p("  disk %d\t%s, %s %s, %s\n", b.Disk, size(b.Sectors*512), b.Name, b.Path, state)
	}
	if d.Problem != "" {
		p("  disk trouble\t%s\n", d.Problem)
	}
}

// noOwner is why this host cannot say who owns a guest: right after its start, or
// while it hears nothing of the other voters.
const noOwner = "nothing of it was heard from the ownership log yet"

// protectedText is the first thing an operator wants to know.
func protectedText(g host.GuestStatus) string {
	switch {
	case g.Primary == nil && g.Log.Owner == "":
		return fmt.Sprintf("%s here (%s)", g.Protected, noOwner)
	case g.Primary == nil:
		return fmt.Sprintf("%s here (ask host %s, the owner)", g.Protected, g.Log.Owner)
	case g.Protected == host.ProtectedYes:
		return fmt.Sprintf("yes, by host %s, for %v", g.Primary.Backup, g.Primary.ModeFor.Round(time.Second))
	case g.Primary.Mode == primary.ModeProtected:
		return fmt.Sprintf("NO: host %s does not answer, output waits for it", g.Primary.Backup)
	case g.Log.Protection != ownership.ProtectionOn:
		return fmt.Sprintf("NO: %s by an operator", g.Log.Protection)
	case g.Primary.Remaining > 0 && g.Primary.Pages > 0:
		return fmt.Sprintf("NO: %s, %.0f%% done", g.Primary.Mode, 100*(1-float64(g.Primary.Remaining)/float64(g.Primary.Pages)))
	}
	return fmt.Sprintf("NO: %s for %v", g.Primary.Mode, g.Primary.ModeFor.Round(time.Second))
}

// size writes bytes for people.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1024, 0
	for v >= 1024 && u < len(units)-1 {
		v /= 1024
		u++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}

// operation makes a command that asks the daemon for one operation on a guest
// and prints the log's new state.
func operation(f *common, name, short string, say func(guest string, g ownership.Guest) string) *cobra.Command {
	return &cobra.Command{
		Use:   name + " GUEST",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			var g ownership.Guest
			if err := c.Operate(cmd.Context(), args[0], name, &g); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), g, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, say(args[0], g))
				return err
			})
		},
	}
}

func switchoverCommand(f *common) *cobra.Command {
	return operation(f, "switchover", "Move a guest to its backup; nothing is lost", func(guest string, g ownership.Guest) string {
		return fmt.Sprintf("guest %s runs on host %s (generation %d)", guest, g.Owner, g.Generation)
	})
}

func stopCommand(f *common) *cobra.Command {
	return operation(f, "stop", "Commit a last epoch and end a guest on purpose", func(guest string, g ownership.Guest) string {
		return fmt.Sprintf("guest %s is stopped (generation %d)", guest, g.Generation)
	})
}

func startCommand(f *common) *cobra.Command {
	return operation(f, "start", "Boot a guest that was stopped, on this host", func(guest string, g ownership.Guest) string {
		return fmt.Sprintf("guest %s is starting on host %s (generation %d)", guest, g.Owner, g.Generation)
	})
}

func verifyCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:   "verify GUEST",
		Short: "Compare a guest's whole memory on both hosts while it runs",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			var v primary.VerifyResult
			if err := c.Operate(cmd.Context(), args[0], "verify", &v); err != nil {
				return err
			}
			err = f.print(cmd.OutOrStdout(), v, func(w io.Writer) error {
				verdict := "identical"
				if !v.Identical {
					verdict = "DIFFERENT: the backup's image is given up and made anew"
				}
				_, err := fmt.Fprintf(w, "%d pages compared over %d checkpoints (%d to %d): %s\n", v.Pages, v.Epochs, v.First, v.Last, verdict)
				return err
			})
			if err == nil && !v.Identical {
				err = exitError{exitDiffers, errors.New("memory differs")}
			}
			return err
		},
	}
}
