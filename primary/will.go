package primary

// This file is the last will of a guest that is to stop: what is done after its
// disks are drained and before the log records the stop. It is carried out by
// the goroutine that proposes the stop, while the loop goes on renewing what has
// to be renewed:
//
//	pause of the save ─ Asked{RequestStop, Still} ─> core: last epoch, Propose Stop
//	   ─> settleDisks: drained ─> carryOut ─┬─ done: the stop is proposed
//	                                        └─ failed: StayOn ─> the guest runs on

import (
	"context"
	"errors"
	"sync"
)

// errNotStopped says that the guest was not stopped because its last will could
// not be carried out.
var errNotStopped = errors.New("the guest runs on")

// will is carried out once, or revoked.
type will struct {
	last func(ctx context.Context) error

	mu   sync.Mutex
	over bool
	err  error
	done chan struct{}
}

func newWill() *will { return &will{done: make(chan struct{})} }

// settle runs f unless the will is settled already, and returns how it was.
func (w *will) settle(f func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.over, w.err = true, f()
		close(w.done)
	}
	return w.err
}

// stopWith has the guest, which stands still, stop with a will. The loop calls
// it.
func (p *Primary) stopWith(ctx context.Context, w *will) {
	p.will = w
	p.step(ctx, Asked{Request: RequestStop, Still: true})
}

// carryOut carries out the will, if there is one. The goroutine that proposes a
// stop calls it.
func (p *Primary) carryOut(ctx context.Context, w *will) error {
	if w == nil {
		return nil
	}
	err := w.settle(func() error { return w.last(ctx) })
	if err != nil {
		p.send(ctx, StayOn{})
		return errors.Join(errNotStopped, err)
	}
	return nil
}

// await waits until the will is carried out. If ctx ends before that begins, it
// is revoked.
func (p *Primary) await(ctx context.Context, w *will) error {
	select {
	case <-w.done:
	case <-p.over:
		return w.settle(func() error { return errors.New("this host is not the guest's primary any more") })
	case <-ctx.Done():
		_ = w.settle(ctx.Err) // or it is carried out already
	}
	if w.err != nil {
		// Only a primary that has ended is not asked.
		_ = p.errand(context.WithoutCancel(ctx), func(loop context.Context) error {
			p.will = nil
			p.step(loop, StayOn{})
			return nil
		})
	}
	return w.err
}
