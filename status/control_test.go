package status

import (
	"context"

	"understudy/ownership"
)

func (f *fake) Pause(ctx context.Context, g string) (ownership.Guest, error) {
	return f.state, f.do(ctx, "pause", g)
}

func (f *fake) Resume(ctx context.Context, g string) (ownership.Guest, error) {
	return f.state, f.do(ctx, "resume", g)
}

func (f *fake) Unprotect(ctx context.Context, g string) (ownership.Guest, error) {
	return f.state, f.do(ctx, "unprotect", g)
}

func (f *fake) Protect(ctx context.Context, g string) (ownership.Guest, error) {
	return f.state, f.do(ctx, "protect", g)
}

func (f *fake) Failback(ctx context.Context, g string) (ownership.Guest, error) {
	return f.state, f.do(ctx, "failback", g)
}
