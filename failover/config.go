// Package failover keeps the ownership log on hashicorp/raft and the leases
// that run beside it. It decides who may run a guest; it does not run one.
//
// The way of a request:
//
//	Renew, Propose, Read (renew.go, propose.go)
//	   -> route (route.go): to the leader, or through a voter that reaches it
//	   -> link (link.go): frames (wire.go) on one connection per peer
//	   -> server (server.go): whose request is it? verified by the connection
//	   -> leader (reign.go, leases.go): is the lease out? may it be renewed?
//	   -> raft -> fsm.go: ownership.Apply, on every voter alike
//
// node.go puts the parts together, placement.go moves the leader off the hosts
// that own guests.
package failover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"understudy/clock"
	"understudy/ownership"
)

// The protocols a Node asks Dial for; cmd uses them as TLS ALPN names.
const (
	// ProtocolRaft carries raft's own messages (hashicorp/raft net_transport).
	ProtocolRaft = "understudy-raft/1"
	// ProtocolRPC carries renewals, proposals and reads (wire.go).
	ProtocolRPC = "understudy-ownership/1"
)

// Peer is one voter.
type Peer struct {
	ID ownership.HostID
	// Address is for messages only: connections come from Config.Dial, and the
	// raft configuration knows voters by ID, so that an address may change.
	Address string
	// Witness marks the voter that runs no guest; it is preferred as leader.
	Witness bool
}

// Config is what a Node is made of. Every field without "optional" is needed.
type Config struct {
	Self  ownership.HostID
	Peers []Peer // the configuration's voters, Self among them; the same on every voter
	// Former are voters that the log may still name although the configuration
	// does not; optional.
	Former []Peer
	// Dir holds raft's log and snapshots. It is created when missing.
	Dir string
	// RaftListener and RPCListener accept connections of the two protocols.
	// The Node closes them.
	RaftListener net.Listener
	RPCListener  net.Listener
	// Dial opens a connection to a peer for one of the two protocols.
	Dial func(ctx context.Context, peer ownership.HostID, protocol string) (net.Conn, error)
	// PeerName returns the verified name of the peer of an accepted
	// connection, "" if it has none. It may complete the TLS handshake: it is
	// called in a goroutine of its own, with a deadline set on the connection.
	PeerName func(net.Conn) ownership.HostID
	// Lease is the length of a lease that a fresh log begins with. Afterwards
	// the log's own length counts; SetLease changes it.
	Lease time.Duration
	// Profile is optional: zero means ProfileFor(Lease).
	Profile Profile
	Clock   clock.Clock  // optional: zero means clock.Boot
	Log     *slog.Logger // optional: zero means no log
}

// Profile is the timing of raft. See Validate for how the parts relate.
type Profile struct {
	// Heartbeat is how long a voter waits for the leader before it stands for
	// election (raft draws from one to two times this).
	Heartbeat time.Duration
	// Election is how long a candidate waits for votes before it tries again.
	Election time.Duration
	// Commit bounds how long an idle follower lags behind the commit index.
	Commit time.Duration
	// Attempt bounds one try of a renewal, a read or a confirmation at one
	// peer before another way is tried.
	Attempt time.Duration
}

// ProfileFor returns the timing that suits leases of the given length: 200 ms
// heartbeats for the default lease of 1 s, 60 ms for the fast profile's 300 ms.
func ProfileFor(lease time.Duration) Profile {
	hb := min(max(lease/5, 20*time.Millisecond), 500*time.Millisecond)
	return Profile{
		Heartbeat: hb,
		Election:  hb,
		Commit:    min(max(hb/6, 5*time.Millisecond), 25*time.Millisecond),
		Attempt:   max(hb*3/4, 20*time.Millisecond),
	}
}

// Validate checks the profile against the length of a lease. An owner that
// renews every third of a lease must outlive the loss of the leader: so the
// longest wait for a heartbeat (2 x Heartbeat) and one election must fit into
// two thirds of a lease.
func (p Profile) Validate(lease time.Duration) error {
	switch {
	case p.Heartbeat < 20*time.Millisecond:
		return fmt.Errorf("heartbeat %s: below 20ms the scheduling noise of a busy host unseats leaders", p.Heartbeat)
	case p.Election < p.Heartbeat:
		return fmt.Errorf("election timeout %s is shorter than the heartbeat timeout %s", p.Election, p.Heartbeat)
	case p.Commit < time.Millisecond || p.Commit > p.Heartbeat:
		return fmt.Errorf("commit interval %s is not between 1ms and the heartbeat timeout %s", p.Commit, p.Heartbeat)
	case p.Attempt < 5*time.Millisecond || p.Attempt > lease:
		return fmt.Errorf("attempt %s is not between 5ms and the lease %s", p.Attempt, lease)
	case 2*p.Heartbeat+p.Election > lease*2/3:
		return fmt.Errorf("2 heartbeat timeouts of %s and an election of %s do not fit into two thirds of a lease of %s: "+
			"owners would lose their leases with every leader; lengthen the lease or shorten the timeouts",
			p.Heartbeat, p.Election, lease)
	}
	return nil
}

// maxPeers bounds the voters: more than seven make every commit slower and
// nothing safer.
const maxPeers = 7

// check validates c and fills in what is optional.
func (c *Config) check() error {
	if c.Lease < ownership.MinLease || c.Lease > ownership.MaxLease {
		return fmt.Errorf("lease %s is not between %s and %s", c.Lease, ownership.MinLease, ownership.MaxLease)
	}
	if c.Profile == (Profile{}) {
		c.Profile = ProfileFor(c.Lease)
	}
	if err := c.Profile.Validate(c.Lease); err != nil {
		return err
	}
	if c.Clock == nil {
		c.Clock = clock.Boot{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if len(c.Peers) == 0 || len(c.Peers) > maxPeers {
		return fmt.Errorf("%d voters are named, want 1 to %d (three: two hosts and a witness)", len(c.Peers), maxPeers)
	}
	seen := map[ownership.HostID]bool{}
	for _, p := range c.Peers {
		if p.ID == "" || len(p.ID) > maxName {
			return fmt.Errorf("voter name %q is not 1 to %d bytes long", p.ID, maxName)
		}
		if seen[p.ID] {
			return fmt.Errorf("voter %s is named twice", p.ID)
		}
		seen[p.ID] = true
	}
	if !seen[c.Self] {
		return fmt.Errorf("this host, %q, is not among the voters", c.Self)
	}
	if c.Dir == "" || c.RaftListener == nil || c.RPCListener == nil || c.Dial == nil || c.PeerName == nil {
		return errors.New("the fields Dir, RaftListener, RPCListener, Dial and PeerName are all needed")
	}
	return nil
}
