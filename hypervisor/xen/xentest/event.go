// Package xentest has what tests of Xen back ends share.
package xentest

import (
	"errors"
	"sync"
)

// Event is both ends of an event channel: the back end's (Wait, Notify, Close), and
// the guest's (Kick, Told, Closed).
type Event struct {
	kicked, told, closed chan struct{}
	once                 sync.Once
}

// NewEvent makes a channel that is open.
func NewEvent() *Event {
	return &Event{kicked: make(chan struct{}, 1), told: make(chan struct{}, 1), closed: make(chan struct{})}
}

// Kick is the guest telling the back end.
func (e *Event) Kick() { pend(e.kicked) }

// Told is received from when the back end has told the guest.
func (e *Event) Told() <-chan struct{} { return e.told }

// Closed is closed when the back end has closed its end.
func (e *Event) Closed() <-chan struct{} { return e.closed }

// Wait waits for the guest to tell us, and fails once the channel is closed.
func (e *Event) Wait() error {
	select {
	case <-e.kicked:
		return nil
	case <-e.closed:
		return errors.New("closed")
	}
}

// Notify tells the guest.
func (e *Event) Notify() error {
	pend(e.told)
	return nil
}

// Close ends a Wait.
func (e *Event) Close() error {
	e.once.Do(func() { close(e.closed) })
	return nil
}

// pend: as of an event channel's bit, what is pending already stays so.
func pend(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
