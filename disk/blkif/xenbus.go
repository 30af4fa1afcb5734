package blkif

// This file is the handshake by which the guest's driver and we find each other,
// by what each has written in xenstore. It is pure: Step is told what the guest's
// driver has written and returns what to do, in order.
//
//	ours:   InitWait ─────────────────> Connected ──────────> Closing ─> Closed
//	guest:  Initialising ─> Initialised ─────────> Connected ─> Closing ─> Closed ─> Initialising …
//	                        (ring, event channel)
//
// Whoever carries it out has a watch on the guest's "state", and calls Step after
// each change, and at first. What it is told is what there is, not what has
// changed: changes may be missed, and may come several in one.

import (
	"errors"
	"fmt"
	"strconv"

	"understudy/disk"
	"understudy/epoch"
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

// ParseState reads a state. "" is StateUnknown: the guest's side is not there.
func ParseState(s string) (State, error) {
	if s == "" {
		return StateUnknown, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || State(n) > StateClosed {
		return StateUnknown, fmt.Errorf("a driver of the guest is in state %.20q, which is none", s)
	}
	return State(n), nil
}

// String is the state as it is written.
func (s State) String() string { return strconv.Itoa(int(s)) }

// Entry is a key below our side's path, and its value.
type Entry struct{ Key, Value string }

// Features is what is written before the guest's driver looks, with the state
// StateInitWait behind it.
func Features(info disk.Info) []Entry {
	entries := []Entry{
		{"max-ring-page-order", strconv.Itoa(MaxRingOrder)},
		{"feature-flush-cache", "1"},
		{"feature-barrier", "0"},
		{"feature-persistent", "0"},
	}
	if n := min(MaxSegments, info.MaxSectors/pageSectors); n > maxDirect {
		entries = append(entries, Entry{"feature-max-indirect-segments", strconv.FormatUint(uint64(n), 10)})
	}
	if info.MaxZeroSectors > 0 && !info.ReadOnly {
		entries = append(entries, Entry{"feature-discard", "1"}, Entry{"discard-granularity", strconv.Itoa(epoch.SectorSize)},
			Entry{"discard-alignment", "0"}, Entry{"discard-secure", "0"})
	}
	return entries
}

// vdiskReadOnly is the bit of "info" that says so.
const vdiskReadOnly = 4

// Size is what is written, with StateConnected behind it, when the ring is
// connected: the guest's driver reads it then.
func Size(info disk.Info) []Entry {
	flags := 0
	if info.ReadOnly {
		flags = vdiskReadOnly
	}
	return []Entry{
		{"sectors", strconv.FormatUint(info.Sectors, 10)},
		{"sector-size", strconv.Itoa(epoch.SectorSize)},
		{"physical-sector-size", strconv.Itoa(pageSize)},
		{"info", strconv.Itoa(flags)},
	}
}

// Front is what the guest's driver has written below its path. An empty string is
// a key that is not there.
type Front struct {
	State    string
	Protocol string
	Port     string // event-channel
	Order    string // ring-page-order
	// Ref returns a key: "ring-ref", or "ring-ref0" and so on.
	Ref func(key string) string
}

// Action is what to do.
type Action uint8

const (
	// Write our state: Handshake.State, with Features before it for
	// StateInitWait, and Size before it for StateConnected, all in one transaction.
	Write Action = iota + 1
	// Connect to the ring that Handshake.Ring names, before Connected is written.
	Connect
	// Disconnect from the ring.
	Disconnect
)

// Handshake is our side. The zero Handshake has written nothing yet.
type Handshake struct {
	// State is ours, as it is to be written.
	State State
	// Ring and Port are the ring that was found last, for Connect.
	Ring Parameters
	Port uint32

	connected bool
}

// Step looks at the guest's side. After an error nothing is to be done until the
// guest's side changes; our state is StateClosing then, and the actions that come
// with it bring that about.
func (h *Handshake) Step(f Front) ([]Action, error) {
	state, err := ParseState(f.State)
	if err != nil {
		return h.leave(StateClosing), err
	}
	switch state {
	case StateInitialising, StateInitWait:
		// It begins, or begins anew.
		if h.State == StateInitWait && !h.connected {
			return nil, nil
		}
		actions := h.leave(StateInitWait)
		return actions, nil
	case StateInitialised, StateConnected:
		if h.connected {
			return nil, nil
		}
		if h.State == StateUnknown {
			// A driver that was there before us. It has yet to see what we offer.
			h.State = StateInitWait
			return []Action{Write}, nil
		}
		if h.State != StateInitWait {
			return nil, nil // it will see that we have closed
		}
		if err := h.parse(f); err != nil {
			return h.leave(StateClosing), err
		}
		h.connected, h.State = true, StateConnected
		return []Action{Connect, Write}, nil
	case StateClosing:
		return h.leave(StateClosing), nil
	case StateClosed, StateUnknown:
		if h.State == StateUnknown { // nobody has begun
			h.State = StateInitWait
			return []Action{Write}, nil
		}
		if state == StateUnknown && h.State == StateInitWait {
			return nil, nil
		}
		return h.leave(StateClosed), nil
	}
	return nil, nil
}

// Failed says that Connect did not succeed.
func (h *Handshake) Failed() []Action {
	h.connected = false
	return h.leave(StateClosing)
}

// leave goes to a state without a ring.
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

// parse reads what the guest's driver says of its ring.
func (h *Handshake) parse(f Front) error {
	protocol, err := ParseProtocol(f.Protocol)
	if err != nil {
		return err
	}
	port, err := number("event-channel", f.Port)
	if err != nil {
		return err
	}
	if port == 0 {
		return errors.New("the guest's event-channel is 0, which is none")
	}
	var refs []uint32
	if f.Order == "" {
		ref, err := number("ring-ref", f.Ref("ring-ref"))
		if err != nil {
			return err
		}
		refs = append(refs, ref)
	} else {
		order, err := number("ring-page-order", f.Order)
		if err != nil {
			return err
		}
		if order > MaxRingOrder {
			return fmt.Errorf("a ring of 2^%d pages, at most 2^%d were offered", order, MaxRingOrder)
		}
		for i := range 1 << order {
			key := "ring-ref" + strconv.Itoa(i)
			ref, err := number(key, f.Ref(key))
			if err != nil {
				return err
			}
			refs = append(refs, ref)
		}
	}
	h.Ring, h.Port = Parameters{Protocol: protocol, Refs: refs}, port
	return nil
}

func number(key, value string) (uint32, error) {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("the guest's %s is %.20q, which is no number", key, value)
	}
	return uint32(n), nil
}
