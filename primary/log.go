package primary

// This file is the primary's part in ownership: it renews the lease, watches
// the log, and carries proposals to it. The renewer opens the gate by itself,
// so that a loop busy with a long pause loses no lease; what the gate may do
// until then is bounded by the lease, not by the loop.

import (
	"context"
	"log/slog"
	"time"

	"understudy/crashpoint"
	"understudy/epoch"
	"understudy/ownership"
)

// renew keeps the lease: a quarter of it after each success, an eighth after
// each failure.
func (p *Primary) renew(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing := false
	var announced epoch.Generation
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		g := epoch.Generation(p.generation.Load())
		call, cancel := context.WithTimeout(ctx, p.cfg.Lease/2)
		until, err := p.Log.Renew(call, p.cfg.Guest, g)
		cancel()
		if err != nil {
			if !failing && ctx.Err() == nil {
				p.Slog.Warn("lease not renewed", "generation", g, "err", err)
			}
			crashpoint.At(crashpoint.LeaseLost)
			failing = true
			timer.Reset(p.cfg.Lease / 8)
			continue
		}
		if failing {
			p.Slog.Info("lease renewed again", "generation", g)
		}
		failing = false
		crashpoint.At(crashpoint.LeaseRenewed)
		if err := p.Gate.Allow(until); err != nil {
			p.Slog.Error("the gate did not take the lease", "err", err)
		}
		if err := p.Disks.Allow(until); err != nil {
			p.Slog.Error("the disks did not take the lease", "err", err)
		}
		p.stats.lease(g, until)
		if announced != g {
			announced = g
			if err := p.Gate.Announce(p.cfg.Addresses...); err != nil {
				p.Slog.Warn("the network was not told where the guest is", "err", err)
			}
		}
		p.send(ctx, LeaseRenewed{Generation: g, Until: until})
		timer.Reset(p.cfg.Lease / 4)
	}
}

// watch forwards what the log has applied.
func (p *Primary) watch(ctx context.Context) {
	for state := range p.Log.Watch(ctx, p.cfg.Guest) {
		p.send(ctx, LogApplied{state})
	}
}

// propose carries one command to the log; last is the will of a guest that is
// to stop, or nil.
func (p *Primary) propose(ctx context.Context, c ownership.Command, last *will) {
	limit := max(2*p.cfg.Lease, 2*time.Second)
	call, cancel := context.WithTimeout(ctx, limit)
	err := p.settleDisks(call, c.Kind)
	cancel()
	switch {
	case err != nil:
	case c.Kind == ownership.Stop:
		err = p.carryOut(ctx, last)
	case c.Kind == ownership.Activated:
		// Once that is recorded, the guest that the former owner keeps is ended: the
		// last thing before it is asked for is a look at this one.
		crashpoint.At(crashpoint.ActivatedProposed)
		err = p.Guest.Alive()
	}
	if err != nil {
		// Not proposed; the core asks again after a while.
		p.Slog.Warn("what goes before a change of the ownership log failed; it is asked again", "command", c.Kind, "err", err)
		p.send(ctx, Proposed{Command: c, Err: err})
		return
	}
	call, cancel = context.WithTimeout(ctx, limit)
	defer cancel()
	crashpoint.At(pointOf[c.Kind])
	state, err := p.Log.Propose(call, c)
	p.Slog.Log(ctx, level(err), "ownership", "command", c.Kind, "id", c.ID, "generation", state.Generation, "err", err)
	p.send(ctx, Proposed{Command: c, State: state, Err: err})
}

// settleDisks does what the disks owe before the guest is given away, or back, or
// is recorded as stopped: after a surrender nothing of ours may still be on its way
// to them (RULES 7), and a stopped guest has nobody who would write what is left.
func (p *Primary) settleDisks(ctx context.Context, kind ownership.Kind) error {
	switch kind {
	case ownership.Surrender, ownership.Return:
		return p.Disks.Quiesce(ctx)
	case ownership.Stop:
		return p.Disks.Drain(ctx)
	}
	return nil
}

// pointOf names what is about to be proposed, but for Activated, see propose.
var pointOf = map[ownership.Kind]crashpoint.Point{
	ownership.InSync: crashpoint.InSyncProposed, ownership.OutOfSync: crashpoint.OutOfSyncProposed,
	ownership.Surrender: crashpoint.SurrenderProposed,
	ownership.Stop:      crashpoint.StopProposed, ownership.Return: crashpoint.ReturnProposed,
}

func level(err error) slog.Level {
	if err != nil {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}
