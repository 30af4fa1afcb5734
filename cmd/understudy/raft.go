package main

// raft list-peers: the ownership log's voters, as a host sees them.

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"understudy/status"
)

func raftCommand(f *common) *cobra.Command {
	return group("raft", "The ownership log: who votes, who leads",
		"Look at the ownership log, a raft log of three voters, in which it is recorded who owns each guest.",
		"",
		raftPeersCommand(f))
}

func raftPeersCommand(f *common) *cobra.Command {
	return &cobra.Command{
		Use:   "list-peers",
		Short: "The voters of the ownership log, its leader, term and indexes",
		Long: `List the voters of the ownership log as this host (or with --at another one) sees
them: who leads, and how long ago each was heard. Hosts that do not lead hear little
of each other. Two of three have to be heard of by the leader.`,
		Example: "  understudy raft list-peers\n  understudy raft list-peers --at witness",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			var v status.Cluster
			if err := c.Get(cmd.Context(), "/api/v1/cluster", &v); err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), v, func(w io.Writer) error { return printCluster(w, v) })
		},
	}
}

func printCluster(w io.Writer, v status.Cluster) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format, a...) } // Flush tells errors
	p("as host %s sees it: term %d, applied %d, committed %d, last %d; its leader was heard %s\n\n", v.Host, v.Term, v.Applied, v.Committed, v.Last, age(v.Contact))
	p("Voter\tAddress\tState\tKind\tLast heard\n")
	for _, o := range v.Voters {
		state, kind, heard := "follower", "host", age(o.Heard)
		switch {
		case o.Leader:
			state = "leader"
		case v.Leader == "":
			state = "unknown"
		}
		if o.Witness {
			kind = "witness"
		}
		if o.Host == v.Host {
			heard = "this host"
		}
		p("%s\t%s\t%s\t%s\t%s\n", o.Host, o.Address, state, kind, heard)
	}
	return t.Flush()
}
