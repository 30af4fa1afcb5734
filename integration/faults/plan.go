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
	// stops: the guest may be off in the end, and is started again.
	stops bool
}

var situations = []situation{
	{name: "protected", on: owner, count: 25, points: []crashpoint.Point{crashpoint.CapturePaused, crashpoint.Captured, crashpoint.Sent,
		crashpoint.AckReceived, crashpoint.Released, crashpoint.FlushWritten, crashpoint.Flushed}},
	{name: "protected", on: owner, count: 3, points: []crashpoint.Point{crashpoint.LeaseRenewed}},
	{name: "protected", on: standby, count: 25, points: []crashpoint.Point{crashpoint.Staged, crashpoint.AckSent, crashpoint.Applied, crashpoint.Materialised}},
	{name: "protected", on: voter, count: 3, points: []crashpoint.Point{crashpoint.LeaseGranted}},
	{name: "owner cut off", on: owner, provoke: cutOwner, points: []crashpoint.Point{crashpoint.LeaseLost}},
	{name: "resync", on: owner, provoke: bounceBackup, backupGone: true,
		points: []crashpoint.Point{crashpoint.Hello, crashpoint.SyncBegun, crashpoint.HoldBegun, crashpoint.InSyncProposed}},
	{name: "backup lost", on: owner, provoke: loseBackup, backupGone: true, points: []crashpoint.Point{crashpoint.OutOfSyncProposed}},
	{name: "switchover", on: owner, provoke: switchover, points: []crashpoint.Point{crashpoint.SurrenderProposed}},
	{name: "switchover", on: standby, provoke: switchover, points: []crashpoint.Point{crashpoint.TakeoverAsked, crashpoint.Loaded,
		crashpoint.Granted, crashpoint.DisksActivated, crashpoint.Running, crashpoint.ActivatedProposed}},
	{name: "owner lost", on: standby, provoke: loseOwner, ownerGone: true, points: []crashpoint.Point{crashpoint.TakeoverAsked, crashpoint.Loaded,
		crashpoint.Granted, crashpoint.DisksActivated, crashpoint.Running, crashpoint.ActivatedProposed}},
	{name: "owner lost", on: voter, provoke: loseOwner, ownerGone: true, points: []crashpoint.Point{crashpoint.TakeoverDecided, crashpoint.TakeoverApplied}},
	{name: "owner back at once", on: owner, provoke: bounceOwner, ownerGone: true, points: []crashpoint.Point{crashpoint.Surrendering}},
	{name: "adoption", on: owner, provoke: restartAlone, backupGone: true, points: []crashpoint.Point{crashpoint.AdoptionBegun, crashpoint.Adopted}},
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
	// anyTime: it has nothing to do with points.
	anyTime bool
	// copies: it needs a disk of which each host has a copy.
	copies bool
	// fine: it is one of a kind of which another strikes everywhere; this one
	// strikes at the points of a protected guest and at any time.
	fine bool
	// lasts: it is mended only after this many leases; else once the guest goes
	// on, or does not by itself.
	lasts float64
}

var faults = []fault{
	{name: "stall", lasts: 1.5, strike: func(context.Context, *stage) error { return nil }},
	{name: "kill owner's daemon", strike: on(owner, (*stage).killDaemon)},
	{name: "kill owner's QEMU", ownerGone: true, strike: on(owner, (*stage).killQEMU)},
	{name: "kill owner", ownerGone: true, strike: on(owner, (*stage).killHost)},
	{name: "kill backup's daemon", backupGone: true, strike: on(standby, (*stage).killDaemon)},
	{name: "kill backup's QEMU", backupGone: true, strike: on(standby, (*stage).killQEMU)},
	{name: "kill backup", backupGone: true, strike: on(standby, (*stage).killHost)},
	{name: "kill witness", strike: on(voter, (*stage).killHost)},
	{name: "kill both", fine: true, ownerGone: true, backupGone: true, strike: func(_ context.Context, s *stage) error { return s.killBoth() }},
	{name: "freeze owner", lasts: 1.5, strike: on(owner, (*stage).freeze), mend: (*stage).thawAll},
	{name: "freeze backup", lasts: 1.5, strike: on(standby, (*stage).freeze), mend: (*stage).thawAll},
	{name: "freeze witness", fine: true, lasts: 1.5, strike: on(voter, (*stage).freeze), mend: (*stage).thawAll},
	{name: "cut owner", lasts: 1.5, strike: on(owner, (*stage).cutBoth), mend: (*stage).restoreAll},
	{name: "cut owner, out", fine: true, lasts: 1.5, strike: on(owner, (*stage).cutOut), mend: (*stage).restoreAll},
	{name: "cut owner, in", fine: true, lasts: 1.5, strike: on(owner, (*stage).cutIn), mend: (*stage).restoreAll},
	{name: "cut backup", lasts: 1.5, strike: on(standby, (*stage).cutBoth), mend: (*stage).restoreAll},
	{name: "cut backup, out", fine: true, lasts: 1.5, strike: on(standby, (*stage).cutOut), mend: (*stage).restoreAll},
	{name: "cut backup, in", fine: true, lasts: 1.5, strike: on(standby, (*stage).cutIn), mend: (*stage).restoreAll},
	{name: "cut witness", fine: true, lasts: 1.5, strike: on(voter, (*stage).cutBoth), mend: (*stage).restoreAll},

	{name: "no room for owner's log", anyTime: true, lasts: 2, strike: on(owner, (*stage).fillState), mend: (*stage).emptyAll},
	{name: "no room for backup's log", anyTime: true, lasts: 2, strike: on(standby, (*stage).fillState), mend: (*stage).emptyAll},
	{name: "no room for witness's log", anyTime: true, lasts: 2, strike: on(voter, (*stage).fillState), mend: (*stage).emptyAll},

	{name: "EIO on owner's writes", anyTime: true, lasts: 2, strike: on(owner, sicken(ail{write: syscall.EIO})), mend: (*stage).healAll},
	{name: "ENOSPC on owner's writes", anyTime: true, lasts: 2, strike: on(owner, sicken(ail{write: syscall.ENOSPC})), mend: (*stage).healAll},
	{name: "torn writes, owner", anyTime: true, lasts: 2, strike: on(owner, sicken(ail{write: syscall.EIO, torn: true})), mend: (*stage).healAll},
	{name: "short writes, owner", anyTime: true, lasts: 2, strike: on(owner, sicken(ail{short: true})), mend: (*stage).healAll},
	{name: "EIO on owner's sync", anyTime: true, lasts: 2, strike: on(owner, sicken(ail{sync: syscall.EIO})), mend: (*stage).healAll},
	{name: "slow disk, owner", anyTime: true, lasts: 3, strike: on(owner, sicken(ail{slow: 200 * time.Millisecond})), mend: (*stage).healAll},
	{name: "EIO on backup's writes", anyTime: true, copies: true, lasts: 2, strike: on(standby, sicken(ail{write: syscall.EIO})), mend: (*stage).healAll},
	{name: "ENOSPC on backup's writes", anyTime: true, copies: true, lasts: 2, strike: on(standby, sicken(ail{write: syscall.ENOSPC})), mend: (*stage).healAll},
	{name: "torn writes, backup", anyTime: true, copies: true, lasts: 2, strike: on(standby, sicken(ail{write: syscall.EIO, torn: true})), mend: (*stage).healAll},
	{name: "short writes, backup", anyTime: true, copies: true, lasts: 2, strike: on(standby, sicken(ail{short: true})), mend: (*stage).healAll},
	{name: "EIO on backup's sync", anyTime: true, copies: true, lasts: 2, strike: on(standby, sicken(ail{sync: syscall.EIO})), mend: (*stage).healAll},
	{name: "slow disk, backup", anyTime: true, copies: true, lasts: 3, strike: on(standby, sicken(ail{slow: 200 * time.Millisecond})), mend: (*stage).healAll},
	{name: "backup's certificate of another authority", anyTime: true, backupGone: true, strike: wearForeign, mend: (*stage).undress},
	{name: "backup's certificate expired", anyTime: true, backupGone: true, strike: wearExpired, mend: (*stage).undress},
	{name: "backup with the witness's certificate", anyTime: true, backupGone: true, strike: wearBorrowed, mend: (*stage).undress},
	{name: "backup with another machine", anyTime: true, backupGone: true, strike: differ, mend: (*stage).undress},
	{name: "stranger with owner's certificate", anyTime: true, strike: attack},

	{name: "owner's disk fails, then owner is killed", anyTime: true, ownerGone: true, lasts: 2, strike: failThenKill, mend: (*stage).healAll},
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

// unplanned lists the points that no situation leads to, and why none does.
var unplanned = map[crashpoint.Point]string{
	crashpoint.ReturnProposed: "only a takeover that fails leads there: see integration.TestRealSharedDisk",
}

// missing lists the points that are neither in a situation nor excused.
func missing() (names []crashpoint.Point) {
	for _, p := range crashpoint.All() {
		planned := slices.ContainsFunc(situations, func(s situation) bool { return slices.Contains(s.points, p) })
		if _, excused := unplanned[p]; !planned && !excused {
			names = append(names, p)
		}
	}
	return names
}
