package daemon

// This file makes one gate of the gates of a guest with several network
// devices, or none.

import (
	"errors"
	"net/netip"
	"sync"

	"understudy/clock"
	"understudy/egress"
	"understudy/epoch"
	"understudy/host"
)

// gates act as one. A guest without a network device has none of them.
type gates []*egress.Gate

// orOne spares a guest with one device the detour.
func (g gates) orOne() host.Gate {
	if len(g) == 1 {
		return g[0]
	}
	return newGateSet(g)
}

// gateSet is gates with one signal of pressure. It has a goroutine for each
// gate, which Close ends.
type gateSet struct {
	gates
	pressure chan struct{}
	quit     chan struct{}
	done     sync.WaitGroup
}

func newGateSet(g gates) *gateSet {
	s := &gateSet{gates: g, pressure: make(chan struct{}, 1), quit: make(chan struct{})}
	for _, one := range g {
		s.done.Go(func() {
			for {
				select {
				case <-one.Pressure():
				case <-s.quit:
					return
				}
				select {
				case s.pressure <- struct{}{}:
				default: // one is waiting already
				}
			}
		})
	}
	return s
}

// Pressure tells that one of the gates holds nearly all it can.
func (s *gateSet) Pressure() <-chan struct{} { return s.pressure }

// Close closes every gate.
func (s *gateSet) Close() error {
	close(s.quit)
	s.done.Wait()
	return s.gates.Close()
}

// Seal ends the epoch at every gate.
func (g gates) Seal(n epoch.Number) error {
	var errs []error
	for _, one := range g {
		errs = append(errs, one.Seal(n))
	}
	return errors.Join(errs...)
}

// Release lets frames of epochs up to through leave.
func (g gates) Release(through epoch.Number) {
	for _, one := range g {
		one.Release(through)
	}
}

// Hold holds at every gate.
func (g gates) Hold() {
	for _, one := range g {
		one.Hold()
	}
}

// Pass opens every gate.
func (g gates) Pass() {
	for _, one := range g {
		one.Pass()
	}
}

// Shut shuts every gate.
func (g gates) Shut() {
	for _, one := range g {
		one.Shut()
	}
}

// Discard forgets what every gate holds.
func (g gates) Discard() {
	for _, one := range g {
		one.Discard()
	}
}

// OnFirst lets f be called when a frame has left by any of the gates.
func (g gates) OnFirst(f func()) {
	if f != nil {
		f = sync.OnceFunc(f)
	}
	for _, one := range g {
		one.OnFirst(f)
	}
}

// Allow renews every gate's time limit.
func (g gates) Allow(until clock.Instant) error {
	var errs []error
	for _, one := range g {
		errs = append(errs, one.Allow(until))
	}
	return errors.Join(errs...)
}

// Announce announces the guest at every gate.
func (g gates) Announce(addrs ...netip.Addr) error {
	var errs []error
	for _, one := range g {
		errs = append(errs, one.Announce(addrs...))
	}
	return errors.Join(errs...)
}

// Held sums what the gates hold.
func (g gates) Held() (frames int, bytes int64) {
	for _, one := range g {
		f, b := one.Held()
		frames, bytes = frames+f, bytes+b
	}
	return frames, bytes
}

// Close closes every gate.
func (g gates) Close() error {
	var errs []error
	for _, one := range g {
		errs = append(errs, one.Close())
	}
	return errors.Join(errs...)
}
