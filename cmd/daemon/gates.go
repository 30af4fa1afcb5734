package daemon

// This file makes one gate of the gates of a guest with several network
// devices, or none.

import (
	"errors"
	"net/netip"

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
	return g
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

// Pressure is the first gate's: with several devices the others' limits are
// reached at the next checkpoint's pace. None for a guest without a device.
func (g gates) Pressure() <-chan struct{} {
	if len(g) == 0 {
		return nil
	}
	return g[0].Pressure()
}

// Close closes every gate.
func (g gates) Close() error {
	var errs []error
	for _, one := range g {
		errs = append(errs, one.Close())
	}
	return errors.Join(errs...)
}
