package daemon

// A guest does not go home by itself while a drill runs, which moves guests and
// brings them back.

import (
	"context"
	"sync"
	"time"
)

// drillTime bounds the question whether a drill runs: a host that does not answer runs
// none that could go on.
const drillTime = 3 * time.Second

// drilling asks every host for the drill that it runs.
func drilling(peers *Peers) func(ctx context.Context) string {
	return func(ctx context.Context) string {
		ctx, cancel := context.WithTimeout(ctx, drillTime)
		defer cancel()
		all := peers.Hosts()
		ids := make([]string, len(all))
		var asking sync.WaitGroup
		for i, h := range all {
			asking.Go(func() { ids[i], _ = hosts{peers: peers}.Busy(ctx, h) }) // who cannot be asked runs none
		}
		asking.Wait()
		for _, id := range ids {
			if id != "" {
				return id
			}
		}
		return ""
	}
}
