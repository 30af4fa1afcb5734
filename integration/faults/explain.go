package main

// This file says how long the design lets a guest be silent, from the settings
// of the world that it happens in. What is measured has the same parts, and the
// time of two slow processors.

import (
	"time"

	"understudy/backup"
	"understudy/config"
	"understudy/crashpoint"
	"understudy/failover"
	"understudy/ownership"
	"understudy/primary"
)

// times are a world's settings that recovery is made of.
type times struct {
	Lease time.Duration `json:"lease_ns"`
	// Drift is what the leader adds to a lease that it waits out.
	Drift time.Duration `json:"drift_ns"`
	// Renew is how often the owner renews.
	Renew time.Duration `json:"renew_ns"`
	// Ask is how long the backup hears nothing before it asks for a takeover.
	Ask time.Duration `json:"ask_ns"`
	// Notice is how long a session without a word lives.
	Notice time.Duration `json:"notice_ns"`
	// Detach is how long output waits for a backup that is silent.
	Detach time.Duration `json:"detach_ns"`
	// Ack is how long output waits for an acknowledgement.
	Ack time.Duration `json:"ack_ns"`
	// Refused is how long until the next session to a dead daemon is refused.
	Refused time.Duration `json:"refused_ns"`
	// Reclaim is how long a guest that was surrendered waits for its new owner.
	Reclaim time.Duration `json:"reclaim_ns"`
	// TakeBack is how long a guest that another was granted waits to run there.
	TakeBack time.Duration `json:"take_back_ns"`
	// Elect bounds the choice of another leader, while nobody's answer is late.
	Elect time.Duration `json:"elect_ns"`
}

// timesOf computes them as cmd/daemon does.
func timesOf(c *config.Config, guest string) times {
	lease := c.Lease.Std()
	g, _ := c.Guest(guest)
	p := primary.DefaultConfig(guest, ownership.HostID(g.Host), lease)
	b := backup.DefaultConfig(guest, ownership.HostID(g.Backup), lease, uint64(g.Memory))
	raft := failover.ProfileFor(lease)
	return times{
		Lease: lease, Drift: lease/200 + time.Millisecond, Renew: lease / 4,
		Ask: b.AskAfter, Notice: max(lease*3/4, 3*c.Heartbeat.Std()), Detach: g.Protection.DetachAfter.Std(),
		Ack: p.AckTimeout, Refused: p.Reconnect, Reclaim: p.ReclaimAfter, TakeBack: p.TakeBackAfter, Elect: 2*raft.Heartbeat + raft.Election,
	}
}

// resend is Linux' shortest wait before a segment without an answer is sent again
// (TCP_RTO_MIN, include/net/tcp.h): what was on its way to or from a host that
// was lost comes after that.
const resend = 200 * time.Millisecond

// explanation is a silence of at most Most, and why.
type explanation struct {
	Most time.Duration
	Why  string
}

// takenBack is how long a taker may leave the log without word that the guest
// runs, until the former owner goes on with its own: it asks after a while, and
// is granted what it asks for when a lease of the taker's is over.
func (t times) takenBack() time.Duration { return t.TakeBack + t.Lease + t.Drift }

// explain says how long a guest is silent, from the fault on, if the hosts do
// what the design says; false where there is no silence that it explains.
func (c cell) explain(t times, mode config.DiskMode) (explanation, bool) {
	s, f := c.situation, c.fault
	switch {
	case s.restarts || c.promise(mode) == mayWait:
		return explanation{}, false
	case f.name == "stall":
		return explanation{time.Duration(f.lasts*float64(t.Lease)) + t.Lease + t.Drift, "the stall, and at worst the lease that it cost"}, true
	case s.yields && f.strikes(standby) && c.granted():
		return explanation{t.takenBack(), "a lease without word from the taker, and at worst one of its own: the former owner takes the guest back"}, true
	case s.yields && f.strikes(standby):
		return explanation{t.Reclaim + t.Renew, "the wait for the new owner; then the former one reclaims the guest"}, true
	case s.yields && c.point != crashpoint.SurrenderProposed:
		return explanation{t.Elect + resend, "the guest is surrendered: no wait but for another leader; grant, load; the guest's TCP sends again"}, true
	case f.surrenders && !s.strikes(owner):
		return explanation{t.Renew + resend, "no wait: the live daemon surrenders the guest; grant, load; the guest's TCP sends again"}, true
	case f.deaf && !s.strikes(owner):
		return explanation{t.Notice + t.Ask + t.Lease + t.Drift + resend, "the owner is still heard: its renewals are granted, unheard, until the backup asks, whose session ends without a word; then the lease as for any owner lost"}, true
	case f.strikes(owner) || s.strikes(owner):
		return explanation{t.Lease + t.Drift + resend, "what is left of the lease, and its drift; the backup asks after a quarter lease of silence, within it; grant, load beside; the guest's TCP sends again"}, true
	case s.backupGone && !s.strikes(owner) && !f.silent && !s.yields:
		return explanation{t.Refused + t.Renew, "the backup was lost before: its daemon's host refuses the next session; OutOfSync"}, true
	case f.spare:
		return explanation{0, "nobody waits for the waiting machine"}, true
	case f.strikes(standby) && f.silent:
		return explanation{t.Notice + t.Detach, "a session without a word, then the wait for it to come back; OutOfSync"}, true
	case f.refuses:
		return explanation{t.Ack + t.Renew, "the wait for an acknowledgement, over however many sessions; OutOfSync"}, true
	case f.disguised:
		return explanation{t.Detach, "the wait for a session to the backup; OutOfSync"}, true
	case f.strikes(standby) || s.strikes(standby):
		return explanation{t.Refused, "the host of the dead daemon refuses the next session; OutOfSync"}, true
	case f.ownDisk:
		return explanation{time.Duration(f.lasts * float64(t.Lease)), "output waits for none of it, but the guest for its own reads, as long as the disk fails"}, true
	case f.strikes(voter):
		return explanation{0, "the lease outlives the choice of another leader"}, true
	}
	return explanation{0, "output waits for none of it"}, true
}

// patience is how long a guest may take to go on by itself before that counts
// as a breach of the promise: the explained time, and much for slow machines.
func (c cell) patience(t times, mode config.DiskMode) time.Duration {
	e, _ := c.explain(t, mode)
	return e.Most + 4*t.Lease + 10*time.Second
}
