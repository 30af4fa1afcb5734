package main

// failover: bring a guest to the host that is asked, by the takeover that the log
// grants, or by force.

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy/host"
	"understudy/ownership"
)

func failoverCommand(f *common) *cobra.Command {
	var force, yes bool
	c := &cobra.Command{
		Use:   "failover GUEST",
		Short: "Bring a guest to this host: its own is lost",
		Long: `Bring a guest to this host, or to the one that --at names, when the host that runs it is lost. A host that
lives is left with "switchover", which loses nothing.

The backup in sync takes a guest over by itself as soon as its owner's lease has run out; failover waits for
that, and says why when nothing would come of it: the guest was paused, its backup was out of sync, another
host has it.

With --force the guest goes on here all the same. What is lost is said first, and has to be agreed to with
--yes, or by typing the guest's name. From an image that is whole, although the log does not name it, the guest
goes on from that image's epoch: whatever it did since is lost, also what the world has seen of it. Without one,
or where the hosts share a disk, it is booted anew from this host's disks, which may be behind. Even so it is
granted only when the lease of its owner has run out, unless that host is known to be off (understudy fence):
no guest runs twice. Its former owner finds itself superseded when it comes back.`,
		Example: "  understudy failover web\n  understudy failover web --force --at beta",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			guest := args[0]
			path := "/api/v1/guests/" + url.PathEscape(guest) + "/failover"
			r := host.FailoverRequest{Force: force}
			if force {
				var cost host.FailoverCost
				if err := c.Get(cmd.Context(), path, &cost); err != nil {
					return err
				}
				if cost.Way == host.WayImage || cost.Way == host.WayBoot {
					if err := agree(cmd, printCost(cost), guest, yes); err != nil {
						return err
					}
				}
				r.Lose = cost.Consent
			}
			var g ownership.Guest
			if err := c.Post(cmd.Context(), path, r, &g); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), g, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "guest %s runs on host %s (generation %d)\n", guest, g.Owner, g.Generation)
				return err
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "take it although something is lost by it, which is said first")
	c.Flags().BoolVar(&yes, "yes", false, "agree to what is lost without being asked")
	return c
}

// printCost is what an operator has to know before he forces a failover.
func printCost(c host.FailoverCost) string {
	var b strings.Builder
	fmt.Fprintf(&b, "guest %s is owned by host %s; %s.\n", c.Guest, c.Owner, c.Why)
	if c.Way == host.WayImage {
		fmt.Fprintf(&b, "By force it goes on at host %s from epoch %d, committed %v ago:\n", c.Host, c.Epoch, c.EpochAge.Round(time.Millisecond))
	} else {
		fmt.Fprintf(&b, "By force it is booted anew at host %s:\n", c.Host)
	}
	for _, l := range c.Loses {
		fmt.Fprintf(&b, "  - %s\n", l)
	}
	return b.String()
}

// agree shows what follows from a command, and returns nil if the operator agrees:
// by --yes, or by typing word on a terminal.
func agree(cmd *cobra.Command, what, word string, yes bool) error {
	if _, err := fmt.Fprint(cmd.ErrOrStderr(), what); err != nil {
		return err
	}
	if yes {
		return nil
	}
	in := cmd.InOrStdin()
	if file, is := in.(*os.File); is && !terminal(file) {
		return exitError{exitUsage, errors.New("this needs --yes, or a terminal to agree on")}
	}
	if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "Type %q to agree: ", word); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(in, 1024)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(line) != word {
		return errors.New("not agreed to: nothing was done")
	}
	return nil
}
