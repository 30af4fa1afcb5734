package main

// upgrade: another daemon takes the place of this host's, under running guests.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"understudy/host"
	"understudy/status"
)

// upgradeLimit is how long the new daemon may take to take part.
const upgradeLimit = time.Minute

func upgradeCommand(f *common) *cobra.Command {
	var binary string
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Put another daemon in this one's place, under running guests",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			if binary != "" {
				if binary, err = filepath.Abs(binary); err != nil {
					return err
				}
			}
			u, err := c.Upgrade(cmd.Context(), binary)
			if err != nil {
				return err
			}
			took, err := awaitUpgrade(cmd.Context(), c, u)
			if err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), u, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "version %s has taken the place of version %s, as process %d, in %v\n", u.To, u.From, u.PID, took.Round(time.Millisecond))
				return err
			})
		},
	}
	c.Flags().StringVar(&binary, "binary", "", "the new daemon's `program` (default: the path that the old one was started from)")
	return c
}

// awaitUpgrade waits until a daemon answers again, and says whether it is the new
// one.
func awaitUpgrade(ctx context.Context, c *status.Client, u status.Upgrade) (time.Duration, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, upgradeLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	gone := false // the old one does not answer any more
	for {
		r, err := c.Status(ctx)
		switch {
		case err == nil && r.PID == u.PID && !adopting(r):
			return time.Since(began), nil
		case err == nil && r.PID == u.PID:
			// It takes part, and the guests are not all its own yet.
		case err == nil && gone:
			return 0, errors.New("the new daemon did not come up, and the old one goes on: see `understudy events` and the daemon's log")
		case err != nil && ctx.Err() == nil:
			gone = true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("the new daemon, process %d, does not answer: %w", u.PID, ctx.Err())
		}
	}
}

// adopting reports whether a guest that this host owns is not run by its daemon yet.
func adopting(r status.Report) bool {
	return slices.ContainsFunc(r.Guests, func(g host.GuestStatus) bool {
		return (g.Role == "" || g.Role == "recovering") && g.Log.Owner == r.Host
	})
}
