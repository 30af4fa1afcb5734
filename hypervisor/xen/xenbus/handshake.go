package xenbus

// This file is the handshake by which the guest's driver and a back end find each
// other, by what each has written in xenstore. It is pure: Step is told the state
// of the guest's side and returns what to do, in order.
//
//	ours:   InitWait ─────────────────> Connected ──────────> Closing ─> Closed
//	guest:  Initialising ─> Initialised ─────────> Connected ─> Closing ─> Closed ─> Initialising …
//	                        (ring, event channel)
//
// Whoever carries it out has a watch on the guest's "state", and calls Step after
// each change, and at first, until there is nothing to do. What it is told is what
// there is, not what has changed: changes may be missed, and may come several in
// one.

import (
	"fmt"
	"strconv"
)

// State is the state of one side (public/io/xenbus.h).
type State uint8

const (
	StateUnknown State = iota // nothing is written (any more)
	StateInitialising
	StateInitWait
	StateInitialised
	StateConnected
	StateClosing
	StateClosed
)

// ParseState reads a state. "" is StateUnknown: the side is not there.
func ParseState(s string) (State, error) {
	if s == "" {
		return StateUnknown, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || State(n) > StateClosed {
		return StateUnknown, fmt.Errorf("a driver is in state %.20q, which is none", s)
	}
	return State(n), nil
}

// String is the state as it is written.
func (s State) String() string { return strconv.Itoa(int(s)) }

// Action is what to do.
type Action uint8

const (
	// Write our state: Handshake.State, with what the back end offers before it for
	// StateInitWait, and what it says of itself for StateConnected, all in one
	// transaction.
	Write Action = iota + 1
	// Connect to what the guest's driver has written of, before Connected is written.
	Connect
	// Disconnect from it.
	Disconnect
)

// Handshake is our side. The zero Handshake has written nothing yet.
type Handshake struct {
	// State is ours, as it is to be written.
	State State

	connected bool
}

// Resume is the handshake of a back end that goes on where a former process has
// left it: ours is the state that this has written. connect says that both sides
// are connected, and so has to be what the back end does first.
func Resume(ours, guest State) (h Handshake, connect bool) {
	h.State = ours
	h.connected = ours == StateConnected && (guest == StateInitialised || guest == StateConnected)
	return h, h.connected
}

// Step looks at the guest's side.
func (h *Handshake) Step(guest State) []Action {
	switch guest {
	case StateInitialising, StateInitWait:
		// It begins, or begins anew.
		if h.State == StateInitWait && !h.connected {
			return nil
		}
		return h.leave(StateInitWait)
	case StateInitialised, StateConnected:
		switch {
		case h.connected:
			return nil
		case h.State == StateUnknown:
			// A driver that was there before us. It has yet to see what we offer.
			h.State = StateInitWait
			return []Action{Write}
		case h.State != StateInitWait:
			return nil // it will see that we have closed
		}
		h.connected, h.State = true, StateConnected
		return []Action{Connect, Write}
	case StateClosing:
		return h.leave(StateClosing)
	}
	switch {
	case h.State == StateUnknown: // nobody has begun
		h.State = StateInitWait
		return []Action{Write}
	case guest == StateUnknown && h.State == StateInitWait:
		return nil
	}
	return h.leave(StateClosed)
}

// Failed says that Connect did not succeed, or that the guest's state is none.
// Nothing is to be done then until the guest's side changes.
func (h *Handshake) Failed() []Action {
	h.connected = false
	return h.leave(StateClosing)
}

// leave goes to a state without a connection.
func (h *Handshake) leave(to State) []Action {
	var actions []Action
	if h.connected {
		h.connected = false
		actions = append(actions, Disconnect)
	}
	if h.State != to {
		h.State = to
		actions = append(actions, Write)
	}
	return actions
}
