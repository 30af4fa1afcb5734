package primary

// This file leaves a guest to the next daemon of this host, and goes on with one
// that a former daemon left:
//
//	HandOver ─ Asked{RequestHandover} ─> core: Bid … Patient, last epoch, its
//	   acknowledgement ─> End{OutcomeHandedOver} ─ Run ends ─> Left
//	Left ─ by way of the host, who keeps it for the next process ─> Deps.Left:
//	   the core begins protected, and the first session continues from Left.At
//
// From the last epoch on the guest stands still and nothing is in flight. So a
// position and the pages that still count as dirty are all that has to be known;
// what is written from there on the hypervisor tells the next process.

import (
	"context"
	"errors"
	"fmt"

	"understudy/epoch"
	"understudy/ownership"
	"understudy/protocol"
)

// Left is what a primary knew of a guest when it handed it over. The zero Left is
// of a guest that was not protected: nothing of it can be continued.
type Left struct {
	Generation epoch.Generation
	// Backup is in sync; its image stands at At.
	Backup ownership.HostID
	At     epoch.Position
	// Dirty pages differ from the image, though nothing has written to them since.
	Dirty *epoch.PageSet
	// PrintKey is the key of the fingerprints that the backup knows.
	PrintKey epoch.PrintKey
}

// Protected reports whether a backup can be continued from.
func (l Left) Protected() bool { return !l.At.Image.IsZero() }

// ErrNotHandedOver marks a guest that runs on under this primary.
var ErrNotHandedOver = errors.New("the guest is not handed over")

// HandOver makes the guest stand still for the next daemon of this host to go on
// with, and returns when Run is about to end with OutcomeHandedOver. If ctx ends
// before, the guest runs on.
func (p *Primary) HandOver(ctx context.Context) error {
	err := p.errand(ctx, func(loop context.Context) error {
		if p.saving != nil {
			return errors.New("a checkpoint file is being written: wait for its end")
		}
		p.step(loop, Asked{Request: RequestHandover})
		if p.outcome == 0 && p.core.Leaving() != RequestHandover {
			return errors.New("it is being handed to its backup, or stopped")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotHandedOver, err)
	}
	select {
	case <-p.over:
	case <-ctx.Done():
		// Only a primary that has ended is not asked.
		_ = p.errand(context.WithoutCancel(ctx), func(loop context.Context) error {
			p.step(loop, Remain{Why: "it took too long"})
			return nil
		})
		select {
		case <-p.over:
		default:
			return fmt.Errorf("%w: its protection is %s, and its last epoch was not acknowledged in time: %w", ErrNotHandedOver, p.Status().Mode, ctx.Err())
		}
	}
	if p.outcome != OutcomeHandedOver {
		return fmt.Errorf("%w: its primary has ended, %s", ErrNotHandedOver, p.outcome)
	}
	return nil
}

// Left is what was left, once Run has returned OutcomeHandedOver.
func (p *Primary) Left() Left { return p.left }

// leaveAs notes what is left. The loop calls it before anything is closed.
func (p *Primary) leaveAs() {
	p.left = Left{Generation: epoch.Generation(p.generation.Load())}
	l := p.link
	if l == nil {
		return
	}
	l.mu.Lock()
	at, leaves := l.sent[0], p.core.Leaves(l.sent)
	l.mu.Unlock()
	if !leaves {
		return // unprotected, or not as it has to be
	}
	p.restore()
	p.Disks.Void() // what the backup has yet to fill is sent again
	if err := p.collect(p.pending); err != nil {
		p.Slog.Warn("what is dirty could not be told to the next daemon: it begins anew", "err", err)
		return
	}
	p.left.Backup, p.left.At, p.left.PrintKey = l.peer, at, p.cfg.PrintKey
	p.left.Dirty = epoch.NewPageSet(p.pending.Pages())
	p.left.Dirty.Union(p.pending)
}

// goOn makes the primary that of a guest which was left.
func (p *Primary) goOn(left Left) {
	if !p.core.Continue(left) {
		return
	}
	p.known = []epoch.Position{left.At}
	p.pending.Clear()
	p.pending.Union(left.Dirty)
	p.Disks.Equal()
}

// Continues reports whether a guest that was left is gone on with as it was, or
// would begin its protection anew: then the log has to be told so first
// (ownership.Adopt).
func (l Left) Continues(state ownership.Guest, self ownership.HostID) bool {
	return NewCore(Config{Self: self, PrintKey: l.PrintKey}, state, false).Continue(l)
}

// bid asks the backup for patience.
func (l *link) bid(ctx context.Context, a Bid) {
	b := protocol.AppendPatience(make([]byte, 0, protocol.PatienceSize), a.For)
	if err := l.session.Send(ctx, protocol.KindPatience, b); err != nil {
		l.p.Slog.Debug("patience not asked for", "err", err) // the receiver sees the session's end
	}
}
