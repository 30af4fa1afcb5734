// Package protocoltest connects the two sides of a replication session in
// memory, for tests of either side.
package protocoltest

import (
	"context"
	"errors"
	"slices"
	"sync"

	"understudy/protocol"
)

// ErrBroken is what both ends see once a pair is broken or closed.
var ErrBroken = errors.New("the session is broken")

// Room is how many messages one direction holds before Send waits.
const Room = 8

// End is one end of a session. Messages arrive in order, exactly once, or the
// session is dead. Hooks may be set before the end is used.
type End struct {
	in, out chan protocol.Message
	dead    chan struct{}
	die     *sync.Once

	// OnSend, if not nil, sees each message before it is sent, and may refuse
	// it: the session then breaks.
	OnSend func(kind uint8, payload []byte) error
}

var _ protocol.Session = (*End)(nil)

// Pair returns the two ends of a new session.
func Pair() (a, b *End) {
	ab, ba := make(chan protocol.Message, Room), make(chan protocol.Message, Room)
	dead, die := make(chan struct{}), &sync.Once{}
	return &End{in: ba, out: ab, dead: dead, die: die}, &End{in: ab, out: ba, dead: dead, die: die}
}

// Send copies the payload and waits while the other end takes no more.
func (e *End) Send(ctx context.Context, kind uint8, payload []byte) error {
	if e.OnSend != nil {
		if err := e.OnSend(kind, payload); err != nil {
			_ = e.Close()
			return err
		}
	}
	select {
	case <-e.dead:
		return ErrBroken
	default:
	}
	m := protocol.Message{Kind: kind, Payload: slices.Clone(payload), Release: func() {}}
	select {
	case e.out <- m:
		return nil
	case <-e.dead:
		return ErrBroken
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Receive returns the next message. What arrived before the end is still read.
func (e *End) Receive(ctx context.Context) (protocol.Message, error) {
	select {
	case m := <-e.in:
		return m, nil
	default:
	}
	select {
	case m := <-e.in:
		return m, nil
	case <-e.dead:
		return protocol.Message{}, ErrBroken
	case <-ctx.Done():
		return protocol.Message{}, ctx.Err()
	}
}

// Close breaks the session for both ends.
func (e *End) Close() error {
	e.die.Do(func() { close(e.dead) })
	return nil
}

// Dead is closed once the session is broken.
func (e *End) Dead() <-chan struct{} { return e.dead }
