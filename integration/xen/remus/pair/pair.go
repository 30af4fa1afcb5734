// Package pair has what both ends of our side of the comparison agree on.
package pair

import (
	"time"

	"understudy/transport"
)

// The hosts.
const (
	HostA = "a" // the Xen host
	HostB = "b" // its backup
)

// Replication is the ALPN name of the sessions.
const Replication = "understudy-replication/1"

// Lease is long: what a lease costs is not measured here, and a busy machine must not
// end one.
const Lease = 10 * time.Second

// Wire is how the sessions are set up.
func Wire() transport.Config {
	c := transport.DefaultConfig()
	c.HeartbeatTimeout = 5 * time.Second
	return c
}
