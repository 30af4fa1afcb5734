package protocol

import "context"

// Session is what primary and backup need of a connection between two hosts:
// messages arrive whole, in order, exactly once, or the session is dead.
// Package transport provides it over TLS; tests and simulations in memory.
type Session interface {
	// Send queues one message. The payload may be reused when it returns. It
	// blocks while the peer takes no more, and fails when the session is dead.
	Send(ctx context.Context, kind uint8, payload []byte) error
	// Receive returns the next message. Its Release must be called once its
	// payload is no longer needed.
	Receive(ctx context.Context) (Message, error)
	// Close ends the session at once; both calls above then fail.
	Close() error
}

// Message is one received message.
type Message struct {
	Kind    uint8
	Payload []byte
	Release func()
}
