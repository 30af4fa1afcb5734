package main

// This file is the table: which situations lead to which points, which faults
// strike there, and what may come of it.

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"syscall"
	"time"

	"understudy/config"
	"understudy/crashpoint"
	"understudy/demo/world"
)

// role is a host by the part it plays when a trial begins.
type role string

const (
	owner   role = "owner"
	standby role = "backup"
	voter   role = "witness"
)

// situation is a way to some points.
type situation struct {
	name   string
	on     role // whose daemon is stopped there
	points []crashpoint.Point
	count  int // it is reached all the time: up to this many are let pass
	// provoke brings the steps about, once the point is armed; nil: they happen
	// by themselves.
	provoke func(ctx context.Context, s *stage) error
	// ownerGone, backupGone: there is no copy of the guest there any more.
	ownerGone, backupGone bool
	// out are the hosts of which nobody hears anything any more.
	out []role
	// yields: the owner has given the guest away, and keeps it, paused, until the
	// log says that it runs elsewhere.
	yields bool
	// inVain: every machine that waits at the backup dies before it has loaded
	// anything, until the point is reached.
	inVain bool
	// restarts: the owner's daemon is started anew on the way there.
	restarts bool
	// stops: the guest may be off in the end, and is started again.
	stops bool
}

var situations = []situation{
	{name: "protected", on: owner, count: 25, points: []crashpoint.Point{crashpoint.CapturePaused, crashpoint.Captured, crashpoint.Sent,
		crashpoint.AckReceived, crashpoint.Released, crashpoint.FlushWritten, crashpoint.Flushed}},
	{name: "protected", on: owner, count: 3, points: []crashpoint.Point{crashpoint.LeaseRenewed}},
	{name: "protected", on: standby, count: 25, points: []crashpoint.Point{crashpoint.Staged, crashpoint.AckSent, crashpoint.Applied, crashpoint.Materialised}},
	{name: "protected", on: voter, count: 3, points: []crashpoint.Point{crashpoint.LeaseGranted}},
	{name: "owner cut off", on: owner, provoke: cutOwner, out: []role{owner}, points: []crashpoint.Point{crashpoint.LeaseLost}},
	{name: "resync", on: owner, provoke: bounceBackup, backupGone: true,
		points: []crashpoint.Point{crashpoint.Hello, crashpoint.SyncBegun, crashpoint.HoldBegun, crashpoint.InSyncProposed}},
	{name: "backup lost", on: owner, provoke: loseBackup, backupGone: true, out: []role{standby}, points: []crashpoint.Point{crashpoint.OutOfSyncProposed}},
	{name: "switchover", on: owner, provoke: switchover, yields: true, points: []crashpoint.Point{crashpoint.SurrenderProposed}},
	{name: "switchover", on: standby, provoke: switchover, yields: true, points: []crashpoint.Point{crashpoint.TakeoverAsked, crashpoint.Loaded,
		crashpoint.Granted, crashpoint.DisksActivated, crashpoint.Running, crashpoint.ActivatedProposed}},
	{name: "standby does not load", on: standby, provoke: switchover, inVain: true, yields: true, backupGone: true, points: []crashpoint.Point{crashpoint.ReturnProposed}},
	{name: "owner lost", on: standby, provoke: loseOwner, ownerGone: true, out: []role{owner}, points: []crashpoint.Point{crashpoint.TakeoverAsked, crashpoint.Loaded,
		crashpoint.Granted, crashpoint.DisksActivated, crashpoint.Running, crashpoint.ActivatedProposed}},
	{name: "owner lost", on: voter, provoke: loseOwner, ownerGone: true, out: []role{owner}, points: []crashpoint.Point{crashpoint.TakeoverDecided, crashpoint.TakeoverApplied}},
	{name: "owner back at once", on: owner, provoke: bounceOwner, ownerGone: true, restarts: true, points: []crashpoint.Point{crashpoint.Surrendering}},
	{name: "adoption", on: owner, provoke: restartAlone, backupGone: true, restarts: true, out: []role{standby}, points: []crashpoint.Point{crashpoint.AdoptionBegun, crashpoint.Adopted}},
	{name: "stop", on: owner, provoke: stop, stops: true, points: []crashpoint.Point{crashpoint.StopProposed}},
	{name: "start", on: owner, provoke: stopAndStart, stops: true, ownerGone: true, backupGone: true, points: []crashpoint.Point{crashpoint.Booting}},
	{name: "any time"},
}

// fault is what strikes.
type fault struct {
	name   string
	strike func(ctx context.Context, s *stage) error
	// mend, if not nil, undoes what is not undone by starting the dead again.
	mend func(s *stage) error
	// ownerGone, backupGone: the guest's copy there is lost with it.
	ownerGone, backupGone bool
	// out are the hosts of which nobody hears anything until it is mended: their
	// votes are lost, and what they have is of no use. silent: their connections
	// do not even end.
	out    []role
	silent bool
	// disguised: a daemon is there again at once, which nobody talks to.
	disguised bool
	// surrenders: a live daemon knows that its guest is gone.
	surrenders bool
	// spare: only the machine that waits is lost.
	spare bool
	// anyTime: it has nothing to do with points.
	anyTime bool
	// copies: it needs a disk of which each host has a copy.
	copies bool
	// deaf: the owner is heard, and hears nothing.
	deaf bool
	// ownDisk: the guest's own reads wait for its disk meanwhile.
	ownDisk bool
	// unreadable: the guest's reads may fail meanwhile.
	unreadable bool
	// refuses: the backup may take up every session and refuse the same epoch.
	refuses bool
	// lies: somebody in the backup's place acknowledges out of turn.
	lies bool
	// fine: it is one of a kind of which another strikes everywhere; this one
	// strikes at the points of a protected guest and at any time.
	fine bool
	// lasts: it is mended only after this many leases; else once the guest goes
	// on, or does not by itself.
	lasts float64
}

var faults = []fault{
	{name: "stall", lasts: 1.5, strike: func(context.Context, *stage) error { return nil }},
	{name: "kill owner's daemon", out: []role{owner}, strike: on(owner, (*stage).killDaemon)},
	{name: "kill owner's QEMU", surrenders: true, ownerGone: true, strike: on(owner, (*stage).killQEMU)},
	{name: "kill owner", out: []role{owner}, ownerGone: true, strike: on(owner, (*stage).killHost)},
	{name: "kill backup's daemon", out: []role{standby}, backupGone: true, strike: on(standby, (*stage).killDaemon)},
	{name: "kill backup's QEMU", spare: true, backupGone: true, strike: on(standby, (*stage).killQEMU)},
	{name: "kill backup", out: []role{standby}, backupGone: true, strike: on(standby, (*stage).killHost)},
	{name: "kill witness", out: []role{voter}, strike: on(voter, (*stage).killHost)},
	{name: "kill both", out: []role{owner, standby}, fine: true, ownerGone: true, backupGone: true, strike: func(_ context.Context, s *stage) error { return s.killBoth() }},
	{name: "freeze owner", out: []role{owner}, silent: true, lasts: 1.5, strike: on(owner, (*stage).freeze), mend: (*stage).thawAll},
	{name: "freeze backup", out: []role{standby}, silent: true, lasts: 1.5, strike: on(standby, (*stage).freeze), mend: (*stage).thawAll},
	{name: "freeze witness", out: []role{voter}, silent: true, fine: true, lasts: 1.5, strike: on(voter, (*stage).freeze), mend: (*stage).thawAll},
	{name: "cut owner", out: []role{owner}, silent: true, lasts: 1.5, strike: on(owner, (*stage).cutBoth), mend: (*stage).restoreAll},
	{name: "cut owner, out", out: []role{owner}, silent: true, fine: true, lasts: 1.5, strike: on(owner, (*stage).cutOut), mend: (*stage).restoreAll},
	{name: "cut owner, in", out: []role{owner}, silent: true, deaf: true, fine: true, lasts: 1.5, strike: on(owner, (*stage).cutIn), mend: (*stage).restoreAll},
	{name: "cut backup", out: []role{standby}, silent: true, lasts: 1.5, strike: on(standby, (*stage).cutBoth), mend: (*stage).restoreAll},
	{name: "cut backup, out", out: []role{standby}, silent: true, fine: true, lasts: 1.5, strike: on(standby, (*stage).cutOut), mend: (*stage).restoreAll},
	{name: "cut backup, in", out: []role{standby}, silent: true, fine: true, lasts: 1.5, strike: on(standby, (*stage).cutIn), mend: (*stage).restoreAll},
	{name: "cut witness", out: []role{voter}, silent: true, fine: true, lasts: 1.5, strike: on(voter, (*stage).cutBoth), mend: (*stage).restoreAll},

	{name: "no room for owner's log", anyTime: true, lasts: 2, strike: on(owner, (*stage).fillState), mend: (*stage).emptyAll},
	{name: "no room for backup's log", anyTime: true, lasts: 2, strike: on(standby, (*stage).fillState), mend: (*stage).emptyAll},
	{name: "no room for witness's log", anyTime: true, lasts: 2, strike: on(voter, (*stage).fillState), mend: (*stage).emptyAll},

	{name: "EIO on owner's writes", anyTime: true, lasts: 2, strike: on(owner, sicken(ail{write: syscall.EIO})), mend: (*stage).healAll},
	{name: "ENOSPC on owner's writes", anyTime: true, lasts: 2, strike: on(owner, sicken(ail{write: syscall.ENOSPC})), mend: (*stage).healAll},
	{name: "torn writes, owner", anyTime: true, lasts: 2, strike: on(owner, sicken(ail{write: syscall.EIO, torn: true})), mend: (*stage).healAll},
	{name: "short writes, owner", anyTime: true, lasts: 2, strike: on(owner, sicken(ail{short: true})), mend: (*stage).healAll},
	{name: "EIO on owner's reads", anyTime: true, lasts: 2, unreadable: true, ownDisk: true, strike: on(owner, sicken(ail{read: syscall.EIO})), mend: (*stage).healAll},
	{name: "EIO on owner's sync", anyTime: true, lasts: 2, strike: on(owner, sicken(ail{sync: syscall.EIO})), mend: (*stage).healAll},
	{name: "slow disk, owner", anyTime: true, ownDisk: true, lasts: 3, strike: on(owner, sicken(ail{slow: 200 * time.Millisecond})), mend: (*stage).healAll},
	{name: "EIO on backup's writes", anyTime: true, copies: true, lasts: 2, strike: on(standby, sicken(ail{write: syscall.EIO})), mend: (*stage).healAll},
	{name: "ENOSPC on backup's writes", anyTime: true, copies: true, lasts: 2, strike: on(standby, sicken(ail{write: syscall.ENOSPC})), mend: (*stage).healAll},
	{name: "torn writes, backup", anyTime: true, copies: true, lasts: 2, strike: on(standby, sicken(ail{write: syscall.EIO, torn: true})), mend: (*stage).healAll},
	{name: "short writes, backup", anyTime: true, copies: true, lasts: 2, strike: on(standby, sicken(ail{short: true})), mend: (*stage).healAll},
	{name: "EIO on backup's reads", anyTime: true, copies: true, refuses: true, lasts: 2, strike: on(standby, sicken(ail{read: syscall.EIO})), mend: (*stage).healAll},
	{name: "EIO on backup's sync", anyTime: true, copies: true, lasts: 2, strike: on(standby, sicken(ail{sync: syscall.EIO})), mend: (*stage).healAll},
	{name: "slow disk, backup", anyTime: true, copies: true, lasts: 3, strike: on(standby, sicken(ail{slow: 200 * time.Millisecond})), mend: (*stage).healAll},
	{name: "backup's certificate of another authority", out: []role{standby}, disguised: true, anyTime: true, backupGone: true, strike: wearForeign, mend: (*stage).undress},
	{name: "backup's certificate expired", out: []role{standby}, disguised: true, anyTime: true, backupGone: true, strike: wearExpired, mend: (*stage).undress},
	{name: "backup with the witness's certificate", out: []role{standby}, disguised: true, anyTime: true, backupGone: true, strike: wearBorrowed, mend: (*stage).undress},
	{name: "backup with another machine", out: []role{standby}, disguised: true, anyTime: true, backupGone: true, strike: differ, mend: (*stage).undress},
	{name: "stranger with owner's certificate", anyTime: true, strike: attack},
	{name: "stranger in the hosts' places", anyTime: true, out: []role{owner, standby}, backupGone: true, lies: true, strike: impersonate, mend: (*stage).thawAll},

	{name: "owner's disk fails, then owner is killed", out: []role{owner}, anyTime: true, ownerGone: true, lasts: 2, strike: failThenKill, mend: (*stage).healAll},
}

// failThenKill: what the owner could not write is with the backup.
func failThenKill(ctx context.Context, s *stage) error {
	if err := sicken(ail{write: syscall.EIO, torn: true})(s, s.owner); err != nil {
		return err
	}
	if err := world.Sleep(ctx, s.Lease()); err != nil {
		return err
	}
	return s.killHost(s.owner)
}

func on(r role, f func(s *stage, host string) error) func(context.Context, *stage) error {
	return func(_ context.Context, s *stage) error { return f(s, s.host(r)) }
}

// cell is one square of the matrix.
type cell struct {
	situation *situation
	point     crashpoint.Point // "" for any time
	fault     *fault
}

func (c cell) row() string {
	if c.point == "" {
		return c.situation.name
	}
	return fmt.Sprintf("%s: %s", c.situation.name, c.point)
}

func (c cell) String() string { return c.row() + " / " + c.fault.name }

// mayBoot reports whether the guest may have been lost: no host has a copy.
func (c cell) mayBoot() bool {
	return c.situation.stops || (c.situation.ownerGone || c.fault.ownerGone) && (c.situation.backupGone || c.fault.backupGone)
}

func (s *situation) strikes(r role) bool { return slices.Contains(s.out, r) }
func (f *fault) strikes(r role) bool     { return slices.Contains(f.out, r) }

// promise is what the design says of a guest before anything is mended.
type promise string

const (
	// mustGoOn: it is heard of again by itself.
	mustGoOn promise = "goes on by itself"
	// mayWait: the last good copy, or the majority of the voters, is lost until
	// somebody mends it. Waiting is right; going on, where it can, is too.
	mayWait promise = "may wait"
)

// promise says which it is, for a mode of the disk. The guest goes on by itself
// as long as two voters hear of each other and one of them has a copy that can
// run: the owner's own, or the backup's in sync.
func (c cell) promise(mode config.DiskMode) promise {
	s, f := c.situation, c.fault
	if s.stops {
		return mayWait // it was asked to be off
	}
	votes := 3
	for _, r := range []role{owner, standby, voter} {
		if s.strikes(r) || f.strikes(r) {
			votes--
		}
	}
	atOwner := !s.ownerGone && !f.ownerGone && !s.strikes(owner) && !f.strikes(owner)
	atBackup := !s.backupGone && !f.backupGone && !s.strikes(standby) && !f.strikes(standby)
	if votes < 2 || !atOwner && !atBackup {
		return mayWait
	}
	if s.yields && mode == config.Shared && f.strikes(standby) && c.granted() {
		// What the taker replays could land on the one disk after the former
		// owner goes on: nobody does before the taker has been heard.
		return mayWait
	}
	return mustGoOn
}

// granted reports whether, at the cell's point, the log may name the backup as
// who takes over, and does not know yet that the guest runs there.
func (c cell) granted() bool {
	return slices.Contains([]crashpoint.Point{crashpoint.Loaded, crashpoint.Granted, crashpoint.DisksActivated, crashpoint.Running,
		crashpoint.ActivatedProposed, crashpoint.ReturnProposed}, c.point)
}

// cells lists the squares whose names fit the pattern, for a mode of the disk:
// those of the matrix, or every one that can be made.
func cells(pattern *regexp.Regexp, mode config.DiskMode, every bool) (all []cell) {
	for i := range situations {
		s := &situations[i]
		points := s.points
		if len(points) == 0 {
			points = []crashpoint.Point{""}
		}
		for _, p := range points {
			for j := range faults {
				c := cell{s, p, &faults[j]}
				if c.fault.fine && len(s.points) > 0 && s.name != "protected" && !every {
					continue
				}
				if c.fault.anyTime && p != "" || c.fault.copies && mode != config.Replicated {
					continue
				}
				if pattern.MatchString(c.String()) {
					all = append(all, c)
				}
			}
		}
	}
	return all
}

// missing lists the points that no situation leads to.
func missing() (names []crashpoint.Point) {
	for _, p := range crashpoint.All() {
		if !slices.ContainsFunc(situations, func(s situation) bool { return slices.Contains(s.points, p) }) {
			names = append(names, p)
		}
	}
	return names
}
