//go:build crashpoints

package main

import (
	"github.com/spf13/cobra"

	"understudy/cmd/daemon"
	"understudy/crashpoint"
)

// trial is what a daemon built for tests can be told besides.
type trial struct{ control, histories string }

func (t *trial) flags(c *cobra.Command) {
	c.Flags().StringVar(&t.control, "crashpoints", "", "obey the test that listens on this Unix `socket`")
	c.Flags().StringVar(&t.histories, "histories", "", "write the gates' histories into this `directory`")
}

func (t *trial) begin(o *daemon.Options) error {
	o.Histories = t.histories
	if t.control == "" {
		return nil
	}
	return crashpoint.Connect(t.control)
}
