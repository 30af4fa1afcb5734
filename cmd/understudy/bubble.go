package main

// bubble: the copy that this host keeps of a guest, started in isolation, looked at
// and thrown away.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"understudy/bubble"
)

func bubbleCommand(f *common) *cobra.Command {
	var spec bubble.Spec
	var line string
	var end bool
	c := &cobra.Command{
		Use:   "bubble GUEST [flags] [-- CHECK ARGUMENT…]",
		Short: "Start the backup's copy of a guest in isolation, check it, throw it away",
		Long: `Start the copy that the backup keeps of a guest, as of its last commit, while the
guest runs on and stays protected. The copy has a network of its own that leads
nowhere, and what it writes to its disks is kept in memory and forgotten. Ask the
backup's host.

Words behind -- (or --check, for the shell) are a command that looks at the copy from inside that network; the
copy has the guest's own addresses. Its status is this command's: 0 if it ended
with 0, else ` + fmt.Sprint(exitDiffers) + `. In its environment are UNDERSTUDY_GUEST, UNDERSTUDY_EPOCH and
UNDERSTUDY_NETWORK, which is what "ip netns exec" calls the network.

A takeover ends a bubble at once.`,
		Example: `  understudy bubble web -- /usr/local/bin/check-web --host 192.0.2.10
  understudy bubble web --hold 10m        # look around by hand; --end ends it`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Check = args[1:]
			if at := cmd.ArgsLenAtDash(); len(args) > 1 && (at != 1 || line != "") {
				return exitError{exitUsage, errors.New("one guest, and its check either in --check or behind --")}
			}
			if line != "" {
				spec.Check = []string{"/bin/sh", "-c", line}
			}
			if err := spec.Validate(); err != nil {
				return exitError{exitUsage, err}
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			if end {
				return c.EndBubble(cmd.Context(), args[0])
			}
			bar := newBar(f, os.Stderr)
			r, err := c.Bubble(cmd.Context(), args[0], spec, func(stage string, done, total uint64) {
				if stage != bubble.StageCopy {
					total = 0 // not of pages
				}
				bar.show(stage, done, total)
			})
			bar.end()
			if err != nil {
				return err
			}
			if err := f.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printBubble(w, r) }); err != nil {
				return err
			}
			if !r.Well() {
				return exitError{exitDiffers, errors.New("the check found something wrong with the copy")}
			}
			return nil
		},
	}
	c.Flags().StringVar(&line, "check", "", "the check, as a `command` line for the shell")
	c.Flags().DurationVar(&spec.Timeout, "timeout", bubble.DefaultTimeout, "how long the check may take")
	c.Flags().DurationVar(&spec.Hold, "hold", 0, "leave the copy there so long after the check")
	c.Flags().StringVar(&spec.Address, "address", "", "the host's own `address` in the copy's network, like 192.0.2.1/24 (default: bubble_address)")
	c.Flags().BoolVar(&end, "end", false, "end the bubble that there is")
	return c
}

func printBubble(w io.Writer, r bubble.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	ms := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	p("copy of\tguest %s, epoch %d, %v old when it was forked off\n", r.Guest, r.Epoch, ms(r.CommitAge))
	p("ran\t%v after the fork (all of its memory: %v)\n", ms(r.RunsAfter), ms(r.CopyTime))
	if c := r.Check; c != nil {
		verdict := fmt.Sprintf("FAILED with status %d", c.Exit)
		switch {
		case c.Well():
			verdict = "well"
		case c.TimedOut:
			verdict = "NOT DONE in time"
		case c.Error != "":
			verdict = "CANNOT BE RUN: " + c.Error
		}
		p("check\t%s, after %v: %s\n", verdict, ms(c.Took), strings.Join(c.Command, " "))
	}
	p("memory\t%d pages, %d of them copied ahead of a commit, %d only on a disk\n", r.Pages, r.Ahead, r.Filled)
	p("disks\t%s set aside, %s written by the copy and forgotten\n", size(r.SetAside), size(r.Written))
	p("backup\t%d epochs committed meanwhile, kept waiting for %v in all, %v at most\n", r.Commits, ms(r.HeldUp), ms(r.HeldUpMost))
	if err := t.Flush(); err != nil {
		return err
	}
	if c := r.Check; c != nil && c.Output != "" {
		end := ""
		if c.Truncated {
			end = "… (more was not kept)\n"
		}
		_, err := fmt.Fprintf(w, "the check said:\n%s\n%s", strings.TrimRight(c.Output, "\n"), end)
		return err
	}
	return nil
}
