package primary

// This file asks for proof that the backup's memory is ours: each verification
// walks the image slice by slice, one slice a checkpoint, so that its hash
// lengthens a pause by a bounded time and not by the size of the guest.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy/epoch"
	"understudy/protocol"
)

// VerifySlice is how many pages one checkpoint's hash covers when an operator
// asks: 64 MiB, some 10 ms of pause.
const VerifySlice = 64 << 20 / epoch.PageSize

// VerifyResult tells what a verification found.
type VerifyResult struct {
	Pages     uint64       `json:"pages"`
	Epochs    int          `json:"epochs"` // checkpoints that carried a slice
	First     epoch.Number `json:"first_epoch"`
	Last      epoch.Number `json:"last_epoch"`
	Identical bool         `json:"identical"`
}

// ErrNotProtected is returned by Verify while no backup is being fed.
var ErrNotProtected = errors.New("no backup is in sync: there is nothing to compare with")

// verifier knows which slice is next. The capture, the link's receiver and the
// operator call it from different goroutines.
type verifier struct {
	mu    sync.Mutex
	every bool // hash the whole image at every checkpoint
	run   *verification
}

type verification struct {
	pages, sent, done uint64 // of the image, asked for, compared
	result            VerifyResult
	err               error
	ended             chan struct{}
}

// Verify compares the whole image on both hosts while the guest runs.
func (p *Primary) Verify(ctx context.Context) (VerifyResult, error) {
	if !p.Status().Mode.commits() {
		return VerifyResult{}, ErrNotProtected
	}
	r, err := p.verifies.begin(p.Guest.Pages())
	if err != nil {
		return VerifyResult{}, err
	}
	select {
	case <-r.ended:
		return r.result, r.err
	case <-ctx.Done():
		p.verifies.abandon(r)
		return VerifyResult{}, fmt.Errorf("verify: %d of %d pages compared: %w", r.done, r.pages, ctx.Err())
	}
}

// verifyRegularly compares the image as often as verifyEvery said last; 0 is
// never. A difference is acted upon where it is found, in link.receive.
func (p *Primary) verifyRegularly(ctx context.Context) {
	var tick *time.Ticker
	var due <-chan time.Time
	stop := func() {
		if tick != nil {
			tick.Stop()
		}
		tick, due = nil, nil
	}
	defer func() { stop() }()
	var every time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case is := <-p.verifyEvery:
			if is != every {
				stop()
			}
			if every = is; every > 0 && tick == nil {
				tick = time.NewTicker(every)
				due = tick.C
			}
			continue
		case <-due:
		}
		r, err := p.Verify(ctx)
		if err == nil {
			p.Slog.Info("memory compared", "pages", r.Pages, "identical", r.Identical, "first", r.First, "last", r.Last)
		}
	}
}

// always says whether the whole image is compared at every checkpoint.
func (v *verifier) always(every bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.every = every
}

func (v *verifier) begin(pages uint64) (*verification, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.run != nil {
		return nil, errors.New("verify: another verification of this guest is under way")
	}
	v.run = &verification{pages: pages, ended: make(chan struct{})}
	return v.run, nil
}

func (v *verifier) abandon(r *verification) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.run == r {
		v.run = nil
	}
}

// fail ends the verification that is under way: protection was lost.
func (v *verifier) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.run != nil {
		v.run.err = err
		close(v.run.ended)
		v.run = nil
	}
}

// next returns what the next checkpoint is to hash.
func (v *verifier) next(pages uint64) protocol.Verify {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.run
	switch {
	case v.every:
		return protocol.Verify{Count: pages}
	case r == nil || r.sent == r.pages:
		return protocol.Verify{}
	}
	ask := protocol.Verify{First: epoch.GFN(r.sent), Count: min(VerifySlice, r.pages-r.sent)}
	r.sent += ask.Count
	return ask
}

// compare takes the backup's answer for one slice and reports whether it was
// equal. A verification ends with the last slice, or with the first difference.
func (v *verifier) compare(n epoch.Number, want expect, got epoch.Hash) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	equal := want.hash == got
	r := v.run
	if r == nil || uint64(want.verify.First) != r.done {
		return equal // nobody waits for it any more
	}
	if r.result.First == 0 {
		r.result.First = n
	}
	r.done += want.verify.Count
	r.result.Last, r.result.Pages = n, r.done
	r.result.Epochs++
	if !equal || r.done == r.pages {
		r.result.Identical = equal
		close(r.ended)
		v.run = nil
	}
	return equal
}

// rewind asks again for what a lost session left unanswered.
func (v *verifier) rewind() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.run != nil {
		v.run.sent = v.run.done
	}
}
