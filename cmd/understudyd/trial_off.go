//go:build !crashpoints

package main

import (
	"github.com/spf13/cobra"

	"understudy/cmd/daemon"
)

// trial is what a daemon built for tests can be told besides: see trial_on.go.
type trial struct{}

func (*trial) flags(*cobra.Command) {}

func (*trial) begin(*daemon.Options) error { return nil }
