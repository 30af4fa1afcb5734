package status

// The operator's switch of a guest's protection, and the way home. What each
// does is in package host; each answers with the log's new state.

import (
	"context"

	"understudy/ownership"
)

// Control is what the endpoint offers of it (package host).
type Control interface {
	Pause(ctx context.Context, guest string) (ownership.Guest, error)
	Resume(ctx context.Context, guest string) (ownership.Guest, error)
	Unprotect(ctx context.Context, guest string) (ownership.Guest, error)
	Protect(ctx context.Context, guest string) (ownership.Guest, error)
	Failback(ctx context.Context, guest string) (ownership.Guest, error)
}

func (s *Server) controlRoutes(c Control) []route {
	one := func(name string, f func(ctx context.Context, guest string) (ownership.Guest, error)) route {
		return route{"POST /api/v1/guests/{guest}/" + name, Operate, s.operation(func(ctx context.Context, g string) (any, error) { return f(ctx, g) })}
	}
	return []route{
		one("pause", c.Pause), one("resume", c.Resume), one("unprotect", c.Unprotect), one("protect", c.Protect), one("failback", c.Failback),
	}
}
