package status

import (
	"context"
	"fmt"

	"understudy/host"
	"understudy/ownership"
)

func (f *fake) FailoverCost(_ context.Context, g string) (host.FailoverCost, error) {
	return host.FailoverCost{Guest: g, Host: "alpha", Owner: "beta", Log: f.state, Way: host.WayImage, Why: "no backup is in sync", Epoch: 7,
		Loses: []string{"everything since epoch 7"}, Consent: "image 1"}, f.err
}

func (f *fake) Fences() host.Fences {
	return host.Fences{Host: "alpha", Guests: []host.FencedGuest{{Guest: "web", Owner: "beta", Fenced: "beta"}}}
}

func (f *fake) FenceConfirm(ctx context.Context, h ownership.HostID) (host.Fences, error) {
	return f.Fences(), f.do(ctx, "fence", string(h))
}

func (f *fake) Failover(ctx context.Context, g string, r host.FailoverRequest) (ownership.Guest, error) {
	return f.state, f.do(ctx, fmt.Sprintf("failover %+v", r), g)
}

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
