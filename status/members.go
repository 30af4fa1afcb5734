package status

// Who votes: a voter of the ownership log is replaced by another. The answer is a
// stream as those of stream.go, whose stages are what is being done.

import (
	"context"
	"errors"
	"net/http"

	"understudy/host"
	"understudy/ownership"
)

// Members is who votes (package failover).
type Members interface {
	// Replace puts fresh into the place of old in the log, and tells what it does.
	// Asked for again, it goes on where it was interrupted.
	Replace(ctx context.Context, old, fresh ownership.HostID, tell func(string)) (Cluster, error)
}

// ReplaceRequest is the body of POST /api/v1/cluster/replace.
type ReplaceRequest struct {
	Old ownership.HostID `json:"old"`
	New ownership.HostID `json:"new"`
}

func memberRoutes(m Members) []route {
	serve := streamed(func(ctx context.Context, _ string, q ReplaceRequest, p host.Progress) (Cluster, error) {
		switch {
		case m == nil:
			return Cluster{}, errors.New("who votes is not known here")
		case q.Old == "" || q.New == "":
			return Cluster{}, errors.New("want the old host and the new one")
		}
		return m.Replace(ctx, q.Old, q.New, func(text string) { p(text, 0, 0) })
	})
	return []route{{"POST /api/v1/cluster/replace", Operate, func(w http.ResponseWriter, r *http.Request) { serve(w, r) }}}
}

// Replace asks for a voter to be replaced.
func (c *Client) Replace(ctx context.Context, old, fresh ownership.HostID, tell func(string)) (Cluster, error) {
	var done Cluster
	err := c.streamFrom(ctx, "/api/v1/cluster/replace", ReplaceRequest{Old: old, New: fresh}, &done,
		func(stage string, _, _ uint64) { tell(stage) })
	return done, err
}
