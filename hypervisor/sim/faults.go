package sim

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// Lie is a way in which a guest breaks the hypervisor's contract, for tests
// that have to show that they would notice.
type Lie uint32

const (
	// LieForgetDirty: each CollectDirty but the first leaves out one page.
	LieForgetDirty Lie = 1 << iota
	// LieLateWrite: a device writes a page after each CollectDirty, although
	// the guest is paused.
	LieLateWrite
	// LieStateWrites: saving the device state writes a page.
	LieStateWrites
	// LieLoadWrites: loading a device state changes the image, also if it fails.
	LieLoadWrites
	// LieResetWrites: Reset changes the image.
	LieResetWrites
)

// Faults is what a test makes go wrong with a guest. The zero value is no
// fault at all; it may be changed while the guest runs.
type Faults struct {
	collect, deviceState, load failures

	mu    sync.Mutex
	block chan struct{} // not nil while Pause stalls

	lying atomic.Uint32
}

// FailCollect makes the next n calls of CollectDirty fail. Each failure loses
// the dirty information, as the contract allows.
func (f *Faults) FailCollect(n int) { f.collect.set("collecting dirty pages", n) }

// FailDeviceState makes the next n calls of AppendDeviceState fail.
func (f *Faults) FailDeviceState(n int) { f.deviceState.set("saving the device state", n) }

// FailLoad makes the next n calls of Standby.Load fail.
func (f *Faults) FailLoad(n int) { f.load.set("loading the device state", n) }

// StallPause makes Pause wait until release is called or its context is over.
func (f *Faults) StallPause() (release func()) {
	block := make(chan struct{})
	f.mu.Lock()
	f.block = block
	f.mu.Unlock()
	return sync.OnceFunc(func() {
		f.mu.Lock()
		if f.block == block {
			f.block = nil
		}
		f.mu.Unlock()
		close(block)
	})
}

// Lie makes the guest break the contract from now on. Zero makes it honest.
func (f *Faults) Lie(l Lie) { f.lying.Store(uint32(l)) }

func (f *Faults) lies(l Lie) bool { return f.lying.Load()&uint32(l) != 0 }

func (f *Faults) stall(ctx context.Context) error {
	f.mu.Lock()
	block := f.block
	f.mu.Unlock()
	if block == nil {
		return nil
	}
	select {
	case <-block:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// failures counts down the calls that have still to fail.
type failures struct {
	mu   sync.Mutex
	what string
	left int
}

func (f *failures) set(what string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.what, f.left = what, n
}

func (f *failures) next() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left == 0 {
		return nil
	}
	f.left--
	return fmt.Errorf("injected fault: %s fails (%d more to come)", f.what, f.left)
}
