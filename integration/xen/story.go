package main

// This file is one round of the story, between two hosts that are up:
//
//	protected ─> a host is lost, as by a loss of power ─> the other runs the guest
//	          ─> the host comes back, with its disk ─> protected ─> switchover, back to it
//
// After each move the guest's connection goes on, and its disk and memory are as they
// must be; in the end both hosts' copies of the disk are equal.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"understudy/backup"
	"understudy/host"
	"understudy/ownership"
)

// story is what is told.
type story struct {
	world *pair
	began time.Time
}

func (s *story) tell(format string, args ...any) {
	fmt.Printf("%7.1f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// What the guest may lose of its count: it goes on from the last checkpoint. It
// counts a line each tenth of a second.
const mayLose = 20

// counted waits until the guest is protected, ends the host that runs it, and has
// the other go on: the guest's console tells.
func (s *story) counted(ctx context.Context, from, to string) error {
	w := s.world
	if err := s.protected(ctx, from, to); err != nil {
		return err
	}
	if _, err := w.count(ctx, from, w.last(from).n+30); err != nil {
		return err
	}
	before := w.last(from)
	killed, err := s.lose(ctx, from, to, fmt.Sprintf("the guest has counted to %d", before.n))
	if err != nil {
		return err
	}
	after, err := w.count(ctx, to, 0)
	if err != nil {
		return err
	}
	s.tell("the guest counts there, from %d on, %d ms after the kill", after.n, after.came.Sub(killed).Milliseconds())
	if after.n+mayLose < before.n {
		return fmt.Errorf("the guest goes on with %d at host %s, and had counted to %d: it has lost more than an epoch, or begun anew", after.n, to, before.n)
	}
	if after, err = w.count(ctx, to, after.n+50); err != nil {
		return err
	}
	s.tell("it has counted to %d; every check held", after.n)
	return nil
}

// round loses the host that runs the guest, and brings both back. It returns how
// long the guest's client heard nothing.
func (s *story) round(ctx context.Context, g *met, from, to string, moment time.Duration) (silence time.Duration, err error) {
	if err := s.protected(ctx, from, to); err != nil {
		return 0, err
	}
	if err := s.working(ctx, g, func() error {
		if err := pass(ctx, moment); err != nil {
			return err
		}
		killed, err := s.lose(ctx, from, to, fmt.Sprintf("line %d of the guest", g.lines.Last().Number))
		if err != nil {
			return err
		}
		silence, err = s.heard(ctx, g, from, to, killed)
		return err
	}); err != nil {
		return silence, err
	}
	if err := s.back(ctx, from); err != nil {
		return silence, err
	}
	if err := s.protected(ctx, to, from); err != nil {
		return silence, err
	}
	if err := s.working(ctx, g, func() error {
		asked := time.Now()
		var now ownership.Guest
		if err := s.world.ask(to).Operate(ctx, guestName, "switchover", &now); err != nil {
			return fmt.Errorf("switchover: %w", err)
		}
		if now.Owner != ownership.HostID(from) {
			return fmt.Errorf("after the switchover host %q has the guest, want %q", now.Owner, from)
		}
		s.tell("switchover to host %s, in %d ms", from, time.Since(asked).Milliseconds())
		_, err := s.heard(ctx, g, to, from, asked)
		return err
	}); err != nil {
		return silence, err
	}
	if err := s.protected(ctx, from, to); err != nil {
		return silence, err
	}
	return silence, s.equal(ctx)
}

// restart ends the daemon of the host that runs the guest, as its service manager
// does, and starts it anew: the guest is left to the next daemon, or to the backup if
// that takes longer than the backup is asked to wait. It returns who runs it.
func (s *story) restart(ctx context.Context, g *met, from, to string) (owner, backup string, err error) {
	err = s.working(ctx, g, func() error {
		began := time.Now()
		h := s.world.hosts[from]
		if err := order(ctx, h, from, "kill -TERM $(pidof understudyd) && timeout 60 sh -c 'while pidof understudyd >/dev/null; do sleep 0.1; done'"); err != nil {
			return err
		}
		s.tell("the daemon of host %s has ended, after %d ms", from, time.Since(began).Milliseconds())
		if err := s.world.startDaemon(ctx, from); err != nil {
			return err
		}
		err := s.world.until(ctx, seldom, func() bool {
			for _, pair := range [][2]string{{from, to}, {to, from}} {
				owner, backup = pair[0], pair[1]
				now, err := s.world.status(ctx, owner)
				if err == nil && now.Log.Owner == ownership.HostID(owner) && now.Role == "primary" {
					return true
				}
			}
			return false
		})
		if err != nil {
			return fmt.Errorf("wait until a host has the guest again: %w", err)
		}
		s.tell("host %s has the guest, %d ms after that", owner, time.Since(began).Milliseconds())
		if err := g.lines.More(ctx, 100, patience); err != nil {
			return errors.Join(err, g.lines.Err())
		}
		silence, _ := g.lines.Outage(began)
		s.tell("the connection lives, the longest silence was %d ms", silence.Milliseconds())
		return g.lines.Err()
	})
	if err == nil {
		err = s.protected(ctx, owner, backup)
	}
	return owner, backup, err
}

// working moves the guest while it uses its disk, which it then examines.
func (s *story) working(ctx context.Context, g *met, move func() error) (err error) {
	disk, err := g.LoadDisk(ctx, diskWork)
	if err != nil {
		return fmt.Errorf("have the guest use its disk: %w", err)
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	const some = 4 // each takes seconds here
	if err := disk.Wait(ctx, disk.Last()+some, patience); err != nil {
		return err
	}
	if err := move(); err != nil {
		return err
	}
	if err := disk.Wait(ctx, disk.Last()+some, patience); err != nil {
		return err
	}
	if err := disk.Verify(ctx); err != nil {
		return fmt.Errorf("the guest's disk: %w", err)
	}
	pages, err := g.checkMemory(ctx)
	if err != nil {
		return err
	}
	s.tell("%d writes were acknowledged to it: what it reads is what it has written, and so are %d pages of its memory", disk.Last(), pages)
	return nil
}

// heard waits until the guest's client hears it again, and tells for how long it has
// not. Until a packet has left the new host, the client may still read what left the
// former one.
func (s *story) heard(ctx context.Context, g *met, from, to string, since time.Time) (time.Duration, error) {
	defer s.world.wire.Forget()
	var packet time.Time
	var wrong error
	err := s.world.until(ctx, seldom, func() bool {
		packet, wrong = s.firstPacket(from, to, since)
		return wrong != nil || !packet.IsZero()
	})
	if err != nil {
		return 0, fmt.Errorf("wait for a packet of the guest from host %s: %w", to, err)
	}
	if wrong != nil {
		return 0, wrong
	}
	if err := g.lines.More(ctx, 100, patience); err != nil {
		return 0, errors.Join(err, g.lines.Err())
	}
	if packet, err = s.firstPacket(from, to, since); err != nil {
		return 0, err
	}
	s.tell("the guest's first packet left host %s %d ms after that", to, packet.Sub(since).Milliseconds())
	return s.lives(g, since)
}

// lives tells how the guest's client has heard it again.
func (s *story) lives(g *met, since time.Time) (time.Duration, error) {
	silence, first := g.lines.Outage(since)
	s.tell("the connection lives: line %d came %d ms after that, the longest silence was %d ms", first.Number, first.At.Sub(since).Milliseconds(), silence.Milliseconds())
	return silence, g.lines.Err()
}

// firstPacket is when the first packet of the guest's own left its new host, zero: none
// has; what is announced for it before that is none. After it no packet leaves the
// former host.
func (s *story) firstPacket(from, to string, since time.Time) (time.Time, error) {
	frames, err := s.world.wire.Since(guestMAC, since)
	var first, last time.Time
	for _, f := range frames {
		switch {
		case f.Host == to && f.Type == unix.ETH_P_IP && (first.IsZero() || f.At.Before(first)):
			first = f.At
		case f.Host == from && f.At.After(last):
			last = f.At
		}
	}
	if err == nil && !first.IsZero() && last.After(first) {
		err = fmt.Errorf("a frame of the guest left host %s %v after its first packet had left host %s", from, last.Sub(first), to)
	}
	return first, err
}

// protected waits until one host runs the guest and the other stands by.
func (s *story) protected(ctx context.Context, by, to string) error {
	var last host.GuestStatus
	err := s.world.until(ctx, seldom, func() bool {
		now, err := s.world.status(ctx, by)
		if err == nil {
			last = now
		}
		return err == nil && now.Protected == host.ProtectedYes && now.Log.Owner == ownership.HostID(by)
	})
	if err != nil {
		return fmt.Errorf("wait until host %s runs the guest, protected (it is %s, the owner is %q, protected: %s; %s): %w", by, last.Role, last.Log.Owner, last.Protected, last.Problem, err)
	}
	s.tell("the guest is protected: %s runs it, %s stands by", by, to)
	return nil
}

// lose ends a host as a loss of power does, and waits until the other one runs the
// guest.
func (s *story) lose(ctx context.Context, from, to, after string) (killed time.Time, err error) {
	w := s.world
	now, err := w.status(ctx, from)
	if err != nil {
		return killed, fmt.Errorf("ask host %s before it is lost: %w", from, err)
	}
	if now.Log.Owner != ownership.HostID(from) || now.Protected != host.ProtectedYes {
		return killed, fmt.Errorf("host %s is not to be lost yet: it is %s, the owner is %q, protected: %s", from, now.Role, now.Log.Owner, now.Protected)
	}
	killed = time.Now()
	w.hosts[from].Kill()
	s.tell("SIGKILL to host %s, after %s", from, after)
	for _, step := range []struct{ what, says string }{
		{"asks for the takeover", backup.LogAsking}, {"is granted it", backup.LogGranted}, {"runs the guest", backup.LogRunning},
	} {
		is := says(step.says, killed)
		if err := w.await(ctx, to, step.what, is); err != nil {
			return killed, err
		}
		l, _ := w.find(to, is)
		s.tell("host %s %s, %d ms after the kill", to, step.what, l.came.Sub(killed).Milliseconds())
	}
	return killed, nil
}

// back boots a host that was lost.
func (s *story) back(ctx context.Context, name string) error {
	if err := s.world.bootAgain(ctx, name); err != nil {
		return err
	}
	s.tell("host %s is back", name)
	return s.world.startDaemon(ctx, name)
}

// equal waits until both hosts' copies of the guest's disk are equal, now that it
// rests.
func (s *story) equal(ctx context.Context) error {
	var sums [2]string
	err := s.world.until(ctx, seldom, func() bool {
		for i, name := range []string{hostA, hostB} {
			var err error
			if sums[i], err = said(ctx, s.world.hosts[name], name, "dd if="+kept+"/"+guestDisk+" iflag=direct bs=1M status=none | md5sum"); err != nil {
				sums[i] = err.Error()
				return false
			}
		}
		return sums[0] == sums[1]
	})
	if err != nil {
		return fmt.Errorf("wait until the copies of the guest's disk are equal (%.200q, %.200q): %w", sums[0], sums[1], err)
	}
	s.tell("both copies of its disk are equal")
	return nil
}

// pass lets time go by.
func pass(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
