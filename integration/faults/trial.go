package main

// This file is one trial: arm → provoke → wait for the point → strike → let go →
// see the guest go on → mend → see the pair whole again → judge.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"understudy/backup"
	"understudy/crashpoint/history"
	"understudy/demo/world"
	"understudy/host"
	"understudy/ownership"
)

// trial is what came of a cell, once. Durations are nanoseconds in JSON.
type trial struct {
	Row    string `json:"point"`
	Fault  string `json:"fault"`
	Number int    `json:"number"`
	// Build is that of the daemons; Promise is what its cell promises.
	Build   string  `json:"build"`
	Promise promise `json:"promise"`
	Outcome string  `json:"outcome"`
	Why     string  `json:"why,omitempty"`

	// Outage is the longest silence at the client. FirstLine is from the fault
	// until its end, 0 if nobody would have noticed it. The rest, from the fault
	// too, is what the taker's log tells.
	FirstLine time.Duration `json:"first_line_ns"`
	Outage    time.Duration `json:"outage_ns"`
	Asked     time.Duration `json:"asked_ns,omitempty"`
	Granted   time.Duration `json:"granted_ns,omitempty"`
	Running   time.Duration `json:"running_ns,omitempty"`
	// Explained is the silence that the design explains, and why; "" if it
	// explains none.
	Explained    time.Duration `json:"explained_ns"`
	ExplainedWhy string        `json:"explained,omitempty"`
	// Mended: the guest went on only after what had been struck was back.
	Mended bool `json:"mended"`
	// Whole again: from the repair until the guest was protected.
	Again time.Duration `json:"protected_again_ns"`
	Took  time.Duration `json:"took_ns"`
	// Phases are what it is made of.
	Phases []phase `json:"phases"`

	Seen     seen     `json:"histories"`
	Breaches []string `json:"breaches,omitempty"`
}

// Outcomes.
const (
	goesOn  = "goes on"
	boots   = "boots anew" // both copies were lost
	failed  = "FAILED"
	missed  = "MISSED" // the point was not reached
	guestOn = "runs"   // was asked to stop, and was not stopped, or was started again
)

// name is the trial's cell.
func (t *trial) name() string { return t.Row + " / " + t.Fault }

// situation is what had happened before the fault.
func (t *trial) situation() string {
	name, _, _ := strings.Cut(t.Row, ":")
	if name == "protected" || name == "any time" {
		return oneFailure
	}
	return name
}

func (t *trial) ok() bool { return t.Outcome != failed && t.Outcome != missed }

// play plays a cell once. An error means that the world is not fit for another.
func (s *stage) play(ctx context.Context, c cell, dice *rand.Rand) (t trial, err error) {
	t = trial{Row: c.row(), Fault: c.fault.name, Promise: c.promise(s.mode)}
	if e, ok := c.explain(s.times(), s.mode); ok {
		t.Explained, t.ExplainedWhy = e.Most, e.Why
	}
	began := time.Now()
	s.watch = newStopwatch()
	defer func() {
		t.Took, t.Phases = time.Since(began), s.watch.all()
		if err != nil {
			t.Outcome, t.Why = failed, err.Error()
		}
	}()
	last := s.client.Last().Number
	if err := s.client.Wait(ctx, last+5, soon); err != nil {
		return t, err
	}
	s.watch.lap("hear lines")
	struck, err := s.strike(ctx, c, dice)
	s.watch.lap("strike and let go")
	if errors.Is(err, errMissed) {
		t.Outcome, t.Why = missed, err.Error()
		s.control.release(s.host(c.situation.on))
	} else if err != nil {
		return t, err
	}
	taker := s.backup
	on := s.goesOn(ctx, c, struck)
	t.Mended = !on
	if err := s.mend(ctx, c); err != nil {
		return t, err
	}
	s.watch.lap("mend")
	mended := time.Now()
	booted, err := s.comesBack(ctx, c)
	s.watch.lap("comes back")
	if err != nil {
		return t, err
	}
	t.measure(s, struck, taker, booted)
	if err := s.settle(ctx); err != nil {
		return t, err
	}
	t.Again = time.Since(mended)
	if err := s.whole(ctx, c); err != nil {
		return t, err
	}
	var breaches []history.Breach
	t.Seen, breaches, err = s.judge()
	if err = errors.Join(err, s.alarm(began)); err != nil {
		return t, err
	}
	s.watch.lap("judge")
	if t.breached(breaches, c.fault.lies); len(t.Breaches) > 0 {
		return t, fmt.Errorf("%d breaches, the first: %s", len(t.Breaches), t.Breaches[0])
	}
	switch {
	case t.Outcome == missed:
	case t.Mended && t.Promise == mustGoOn:
		t.Outcome, t.Why = failed, fmt.Sprintf("the guest was not heard of by itself within %v, only after the mending", c.patience(s.times(), s.mode))
	case booted && c.situation.stops:
		t.Outcome = guestOn
	case booted:
		t.Outcome = boots
	default:
		t.Outcome = goesOn
	}
	return t, nil
}

// breached notes breaches. lies: a peer has acknowledged what it was not asked.
func (t *trial) breached(all []history.Breach, lies bool) {
	for _, b := range all {
		if lies && b.Rule == history.RuleAnswer {
			continue
		}
		t.Breaches = append(t.Breaches, b.String())
	}
}

var errMissed = errors.New("the point was not reached")

// strike brings the fault about, at the point.
func (s *stage) strike(ctx context.Context, c cell, dice *rand.Rand) (time.Time, error) {
	where := s.host(c.situation.on)
	if c.point != "" {
		s.control.arm(where, c.point, 1+dice.IntN(max(c.situation.count, 1)))
	} else if err := world.Sleep(ctx, time.Duration(dice.Int64N(int64(200*time.Millisecond)))); err != nil {
		return time.Time{}, err
	}
	s.watch.lap("wait at random")
	provoked := time.Now()
	if c.situation.inVain {
		s.hunt(ctx, s.backup)
	}
	// A start waits for a daemon that may be standing still.
	provoking := make(chan error, 1)
	go func() {
		if c.situation.provoke == nil {
			provoking <- nil
			return
		}
		provoking <- c.situation.provoke(ctx, s)
	}()
	if c.point != "" {
		reached := s.control.wait(ctx, where, soon)
		if s.endHunt != nil {
			if err := s.endHunt(); err != nil {
				return provoked, err
			}
		}
		if reached != nil {
			return provoked, errors.Join(fmt.Errorf("%w: %w", errMissed, reached), <-provoking)
		}
	}
	s.watch.lap("reach the point")
	struck := time.Now()
	if err := c.fault.strike(ctx, s); err != nil {
		return struck, fmt.Errorf("%s: %w", c.fault.name, err)
	}
	if c.fault.name == "stall" {
		if err := world.Sleep(ctx, s.lasting(c)); err != nil {
			return struck, err
		}
	}
	if c.point != "" && !s.frozen[where] {
		s.control.release(where)
	}
	// What was to be started, there or at the other host, may have been killed:
	// then it is mended.
	err := <-provoking
	dead := slices.ContainsFunc(world.Hosts(), func(h string) bool { return !s.Up(h) })
	if err != nil && !dead && !s.frozen[where] && len(s.cut) == 0 {
		return struck, fmt.Errorf("%s: %w", c.situation.name, err)
	}
	if s.frozen[where] {
		s.control.release(where) // read once it is thawed
	}
	return struck, nil
}

func (s *stage) lasting(c cell) time.Duration {
	return time.Duration(c.fault.lasts * float64(s.Lease()))
}

// goesOn reports whether the client hears of the guest again before anything is
// mended: for as long as the design needs where it promises that, else for as
// long as a takeover takes. It takes as long as the fault lasts.
func (s *stage) goesOn(ctx context.Context, c cell, struck time.Time) bool {
	limit := 2 * s.Lease()
	if c.promise(s.mode) == mustGoOn {
		limit = c.patience(s.times(), s.mode)
	}
	// What was on its way when the fault struck still comes: it is not enough.
	err := s.client.Wait(ctx, s.client.Last().Number+100, limit)
	s.watch.lap("goes on")
	if rest := s.lasting(c) - time.Since(struck); c.fault.name != "stall" && rest > 0 {
		_ = world.Sleep(ctx, rest) // ctx's end is seen by what comes next
	}
	s.watch.lap("the fault lasts")
	return err == nil
}

// mend undoes what the fault, and the way to it, did.
func (s *stage) mend(ctx context.Context, c cell) error {
	errs := []error{s.thawAll(), s.restoreAll()} // also of what led to the point
	for _, h := range world.Hosts() {
		s.control.release(h)
	}
	if c.fault.mend != nil {
		errs = append(errs, c.fault.mend(s))
	}
	return errors.Join(append(errs, s.startDead(ctx))...)
}

// comesBack waits until the guest is heard of again, and, where it may have been
// lost, until it has booted anew.
func (s *stage) comesBack(ctx context.Context, c cell) (booted bool, err error) {
	if !c.mayBoot() {
		if err := s.client.Wait(ctx, s.client.Last().Number+20, late); err != nil {
			return false, fmt.Errorf("the guest does not go on: %w", err)
		}
		return false, nil
	}
	if c.situation.stops {
		if err := s.startStopped(ctx); err != nil {
			return false, err
		}
	}
	if _, err := s.Protected(ctx, web, "", late); err != nil {
		return false, err
	}
	boot, err := s.Boot(ctx, web)
	if err != nil {
		return false, err
	}
	if boot == s.boot {
		return false, nil
	}
	return true, s.connect(ctx)
}

// startStopped starts a guest that was stopped, on the host that ran it last.
func (s *stage) startStopped(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	for {
		// Whether it is to stop may not have been decided yet.
		at, err := s.Await(ctx, web, "decided", soon, func(name string, g host.GuestStatus) bool {
			return g.Log.Owner == ownership.HostID(name) && (g.Log.Desired == ownership.Stopped && g.Role == "stopped" || g.Protected == host.ProtectedYes)
		})
		if err != nil {
			return err
		}
		g, err := s.Status(ctx, at, web)
		if err == nil && g.Log.Desired == ownership.Running {
			return nil
		}
		if err == nil {
			if err = s.Operate(ctx, at, web, "start", nil); err == nil {
				return nil
			}
		}
		if world.Sleep(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("the stopped guest cannot be started: %w", err)
		}
	}
}

// noticed is how long a silence has to be to count as one.
const noticed = 200 * time.Millisecond

// measure takes the times from the client and the taker's log.
func (t *trial) measure(s *stage, struck time.Time, taker string, booted bool) {
	if !booted {
		outage, first := s.client.Outage(struck)
		t.Outage = outage
		if first.Number != 0 && outage >= noticed {
			t.FirstLine = first.At.Sub(struck)
		}
	}
	for _, e := range []struct {
		msg string
		to  *time.Duration
	}{{backup.LogAsking, &t.Asked}, {backup.LogGranted, &t.Granted}, {backup.LogRunning, &t.Running}} {
		if at, ok := s.Logged(taker, e.msg, struck); ok {
			*e.to = at.Sub(struck)
		}
	}
}
