package transport

import (
	"errors"
	"fmt"
	"time"
)

// Config holds the settings of a session. Both ends have their own; only the
// heartbeats must agree with the peer's.
type Config struct {
	// Connections is how many connections the dialer opens, 1 to 16. The first
	// carries the heartbeats and credits as well and is kept responsive; with
	// several, the TLS work spreads over as many processors. The acceptor takes
	// as many as the dialer opens.
	Connections int
	// MaxMessage is the largest message this side takes, in bytes, 1 to 64 MiB.
	MaxMessage int
	// Window bounds the bytes that this side lets wait for Receive, 512 per
	// message included. It is the peer's back-pressure, and has to cover the
	// bandwidth times the round trip. At least twice MaxMessage, at most 4 GiB.
	// Memory may reach twice as much, since buffers come in powers of two.
	Window int
	// HeartbeatInterval is the time between two pings of this side.
	HeartbeatInterval time.Duration
	// HeartbeatTimeout is how long nothing may be heard before the session is
	// given up. At least twice either side's HeartbeatInterval.
	HeartbeatTimeout time.Duration
}

// DefaultConfig fits two hosts on a network of 1 to 10 Gbit/s.
func DefaultConfig() Config {
	return Config{
		Connections:       3,
		MaxMessage:        1 << 20,
		Window:            16 << 20,
		HeartbeatInterval: 50 * time.Millisecond,
		HeartbeatTimeout:  500 * time.Millisecond,
	}
}

// maxHeartbeat bounds both heartbeat settings.
const maxHeartbeat = time.Minute

// Validate reports everything that is wrong with c.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Connections < 1 || c.Connections > maxLanes {
		bad("Connections is %d; it must be 1 to %d", c.Connections, maxLanes)
	}
	if c.MaxMessage < 1 || c.MaxMessage > maxMessageMax {
		bad("MaxMessage is %d bytes; it must be 1 to %d", c.MaxMessage, maxMessageMax)
	} else if c.Window < 2*(c.MaxMessage+messageCost) || c.Window > maxWindow {
		bad("Window is %d bytes; it must be at least %d (twice MaxMessage and %d) and at most %d",
			c.Window, 2*(c.MaxMessage+messageCost), messageCost, maxWindow)
	}
	if c.HeartbeatInterval < time.Millisecond || c.HeartbeatInterval > maxHeartbeat {
		bad("HeartbeatInterval is %v; it must be 1ms to %v", c.HeartbeatInterval, maxHeartbeat)
	}
	if c.HeartbeatTimeout < 2*c.HeartbeatInterval || c.HeartbeatTimeout > maxHeartbeat {
		bad("HeartbeatTimeout is %v; it must be at least twice HeartbeatInterval (%v) and at most %v",
			c.HeartbeatTimeout, c.HeartbeatInterval, maxHeartbeat)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("session configuration: %w", err)
	}
	return nil
}
