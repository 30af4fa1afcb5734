package daemon

// How the configuration says that other hosts are made sure to be off.

import (
	"context"
	"fmt"
	"time"

	"understudy/config"
	"understudy/fencing"
	"understudy/ownership"
)

// fence runs the command for a host.
func fence(c *config.Config) func(ctx context.Context, host ownership.HostID) error {
	return func(ctx context.Context, host ownership.HostID) error {
		h, ok := c.Host(string(host))
		if !ok {
			return fmt.Errorf("fence %s: there is no such host in the configuration", host)
		}
		f, _ := c.FencingOf(h)
		return fencing.Run(ctx, fencing.Way{Command: f.Command, Verify: f.Verify, Timeout: f.Timeout.Std()}, h.Name)
	}
}

// fenceAfter says how long a takeover from a host may stand still, and whether
// there is a command for it.
func fenceAfter(c *config.Config) func(host ownership.HostID) (time.Duration, bool) {
	return func(host ownership.HostID) (time.Duration, bool) {
		h, known := c.Host(string(host))
		f, has := c.FencingOf(h)
		return f.After.Std(), known && has
	}
}
