package daemon

// This file ends a daemon in good order, so that the next one goes on where it has
// left off, and nobody takes the silence between the two for a failure:
//
//	a signal ──> leaver ─ the leadership goes to another voter ─ the guests stand
//	             still after a last epoch, their backups wait (or what else the
//	             configuration's on_stop says) ─> everything is closed
//	upgrade ─ the new daemon is started and ready ─> leaver, the same, but if a guest
//	             cannot be left: all goes on here ─> everything is closed ─> handOn
//
// From the moment that the first guest stands still to the one that it runs under
// the new daemon is the guests' outage. What can be done before or after is.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"understudy/events"
	"understudy/failover"
	"understudy/host"
	"understudy/ownership"
	"understudy/status"
)

const (
	// stopTime bounds the good order of a daemon's end by a signal.
	stopTime = 3 * time.Second
	// handoverTime bounds it for an upgrade, which can be given up.
	handoverTime = 5 * time.Second
	// endTime bounds what is done before it for guests that are stopped with it: less
	// than a service manager waits.
	endTime = 20 * time.Second
	// reachTime bounds the question to the other voters.
	reachTime = 2 * time.Second
)

// leaver ends one life of the daemon.
type leaver struct {
	o        Options
	self     ownership.HostID
	voter    *failover.Node
	host     *host.Host
	keeping  *keeping
	upgrades chan *upgrade
	log      *slog.Logger

	// Set when the daemon ends for an upgrade.
	next *successor
	kept *kept
}

// upgrade is one on its way to the leaver.
type upgrade struct {
	next *successor
	done chan error // gets one answer: nil when everything is about to be closed
}

// run waits for what ends the daemon, and calls end when all is in order. It
// returns when ctx ends; signal is done by then if it was a signal.
func (l *leaver) run(ctx context.Context, signal <-chan struct{}, end func()) {
	defer end()
	for {
		select {
		case <-ctx.Done():
			return
		case <-signal:
			l.giveLead(ctx, stopTime)
			if err := l.host.GoDown(ctx, stopTime, endTime); err != nil {
				l.log.Warn("not all is in order for the next daemon", "err", err)
			}
			return
		case u := <-l.upgrades:
			call, cancel := context.WithTimeout(ctx, handoverTime)
			err := l.handOver(call, u.next)
			cancel()
			u.done <- err
			if err == nil {
				return
			}
		}
	}
}

// giveLead has another voter lead, if this one does.
func (l *leaver) giveLead(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := l.voter.HandLeadership(ctx); err != nil {
		l.log.Warn("the others find out by themselves that this voter ends", "err", err)
	}
}

// handOver is leave for an upgrade.
func (l *leaver) handOver(ctx context.Context, next *successor) error {
	l.o.record.Add(events.Event{Kind: events.KindUpgradeBegun, Change: events.Change{From: status.Version, To: next.version},
		Text: fmt.Sprintf("version %s is ready to take the place of version %s", next.version, status.Version)})
	began := time.Now()
	l.giveLead(ctx, handoverTime)
	err := l.host.HandOver(ctx)
	if err == nil {
		l.next = next
		if l.kept, err = l.keeping.all(); err != nil {
			l.log.Warn("not everything can be passed on: it is made anew", "err", err)
		}
		l.log.Info("everything is left to the new daemon", "after", time.Since(began), "descriptors", len(l.kept.files))
		return nil
	}
	err = errors.Join(err, next.kill())
	l.tellFailed(err)
	return fmt.Errorf("the upgrade is given up, and nothing has changed: %w", err)
}

// tellBegan says how this life came about, if by an upgrade: after the guests that
// were left to it are adopted, so that one that dies of that is not the last daemon.
func (l *leaver) tellBegan(ctx context.Context) {
	switch {
	case l.o.failed != nil:
		l.tellFailed(l.o.failed)
	case l.o.From != nil:
		l.o.record.Add(events.Event{Kind: events.KindUpgraded, Change: events.Change{From: l.o.From.version, To: status.Version},
			Text: fmt.Sprintf("version %s has taken the place of version %s", status.Version, l.o.From.version)})
		awaitAdoption(ctx, l.host.Settled, adoptTime)
		if err := l.o.From.up(); err != nil {
			l.log.Warn("the former daemon was not told that this one takes part", "err", err)
		}
	}
}

// adoptTime is how long the former daemon is kept waiting for adoptions: less than
// guestsTime, at whose end it would end this one for being slow.
const adoptTime = guestsTime / 2

// awaitAdoption waits until the guests that were left here are adopted.
func awaitAdoption(ctx context.Context, settled func() bool, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !settled() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (l *leaver) tellFailed(err error) {
	l.log.Error("the upgrade failed", "err", err)
	l.o.record.Add(events.Event{Kind: events.KindUpgradeFailed, Text: "the upgrade failed, and the daemon goes on as it was: " + err.Error()})
}

// Upgrade starts binary, or this daemon's own program anew with "", and has it
// take everything over. It returns when nothing stands in its way any more; then
// this daemon ends. After an error nothing has changed.
func (l *leaver) Upgrade(ctx context.Context, binary string) (status.Upgrade, error) {
	argv := l.o.Command
	if len(argv) == 0 {
		return status.Upgrade{}, errors.New("this daemon does not know how it was started")
	}
	if binary == "" {
		binary = strings.TrimSuffix(argv[0], " (deleted)")
	}
	if !filepath.IsAbs(binary) {
		return status.Upgrade{}, fmt.Errorf("binary %q: give its absolute path", binary)
	}
	if st, err := os.Stat(binary); err != nil {
		return status.Upgrade{}, fmt.Errorf("the new daemon's program: %w", err)
	} else if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return status.Upgrade{}, fmt.Errorf("the new daemon's program %s is no executable file", binary)
	}
	reach, cancel := context.WithTimeout(ctx, reachTime)
	away := l.voter.Unreached(reach)
	cancel()
	if len(away) > 0 {
		return status.Upgrade{}, fmt.Errorf("%v does not answer: while this voter is away the ownership log needs all others", away)
	}
	next, err := startSuccessor(ctx, append([]string{binary}, argv[1:]...))
	if err != nil {
		return status.Upgrade{}, err
	}
	u := &upgrade{next: next, done: make(chan error, 1)}
	select {
	case l.upgrades <- u:
		err = <-u.done
	case <-ctx.Done():
		err = errors.Join(errors.New("another upgrade, or this daemon's end, is under way"), next.kill())
	}
	if err != nil {
		return status.Upgrade{}, err
	}
	return status.Upgrade{From: status.Version, To: next.version, PID: next.cmd.Process.Pid, Binary: binary}, nil
}

// supervisor is what this life tells its supervisor of its end: nothing, if it is
// not the service's.
type supervisor struct {
	Supervisor
	l *leaver
}

func (s supervisor) Stopping() error {
	if s.l.next != nil {
		return nil
	}
	return s.Supervisor.Stopping()
}

// mainPID is a Supervisor that can be told that another process is the service now.
type mainPID interface{ MainPID(pid int) error }

// handOn is the end of a life that ended for an upgrade. After an error the next
// life is this process's, with the inheritance that is returned.
func (l *leaver) handOn(ctx context.Context) (*inheritance, error) {
	err := l.next.handOn(ctx, l.kept)
	if err == nil {
		l.kept.close()
		if s, ok := l.o.Supervisor.(mainPID); ok {
			if err := s.MainPID(l.next.cmd.Process.Pid); err != nil {
				l.log.Warn("the supervisor was not told of the new daemon", "err", err)
			}
		}
		return nil, nil
	}
	return l.kept.ownAgain(), err
}
