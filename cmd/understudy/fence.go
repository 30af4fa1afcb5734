package main

// fence: what the log knows of hosts that are off, and an operator's word for it.

import (
	"fmt"
	"io"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"understudy/host"
)

func fenceCommand(f *common) *cobra.Command {
	return group("fence", "Hosts that are known to be off",
		`A host that is known to be off need not be waited for: not for its lease, and not for its lock of a
shared disk. The command of [fencing] makes sure of it when a takeover stands still; where there is none, or it
fails, an operator looks, and says so.`,
		"  understudy fence status\n  understudy fence confirm alpha",
		fenceConfirmCommand(f), fenceStatusCommand(f))
}

func fenceConfirmCommand(f *common) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "confirm HOST",
		Short: "Say that a host is off: somebody has seen it",
		Long: `Say that a host is powered off, after somebody has seen it: its power is cut, or it is pulled out.

From then on its guests may be taken over at once: nobody waits for the lease that it may still have, and a
takeover goes through although the host has not let go of a shared disk. If it is not off, a guest can run
twice, and both write to the disk. So the consequences have to be agreed to with --yes, or by typing the
host's name. It holds until the host's daemon is started anew.`,
		Example: "  understudy fence confirm alpha",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			if err := agree(cmd, fmt.Sprintf(`You say that host %[1]s is powered off, and that somebody has seen it.
  - its guests may be taken over at once, without waiting for its lease or its locks
  - if it is not off, a guest can run twice, and its disk is damaged
`, args[0]), args[0], yes); err != nil {
				return err
			}
			var fences host.Fences
			if err := c.Post(cmd.Context(), "/api/v1/fence/"+url.PathEscape(args[0]), nil, &fences); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), fences, func(w io.Writer) error { return printFences(w, fences) })
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "agree to the consequences without being asked")
	return c
}

func fenceStatusCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Which hosts the log knows to be off",
		Long:    `List the guests of this host, with the host that owns each, and the one that the ownership log knows to be off.`,
		Example: "  understudy fence status",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			var fences host.Fences
			if err := c.Get(cmd.Context(), "/api/v1/fence", &fences); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), fences, func(w io.Writer) error { return printFences(w, fences) })
		},
	}
}

func printFences(w io.Writer, f host.Fences) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "GUEST\tOWNER\tKNOWN TO BE OFF") // Flush tells errors
	for _, g := range f.Guests {
		off := string(g.Fenced)
		switch {
		case g.Error != "":
			off = g.Error
		case off == "":
			off = "none"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", g.Guest, g.Owner, off)
	}
	return t.Flush()
}
