package daemon

// This file keeps the record of what happened on this host (package events): in
// the state directory, from host-up to host-down.

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"understudy/clock"
	"understudy/epoch"
	"understudy/events"
	"understudy/ownership"
)

// Record is where a host's record of events is.
func Record(state string) string { return filepath.Join(state, "events") }

// openRecord opens the record. No record is no reason not to protect guests: if
// it cannot be kept, events are in memory only.
func openRecord(state string, self ownership.HostID, log *slog.Logger) (*events.Log, error) {
	c := events.Config{Host: self, BootID: bootID(), Dir: Record(state), Slog: log}
	l, err := events.Open(c)
	if err != nil {
		log.Error("what happens is recorded in memory only", "err", err)
		c.Dir = ""
		l, err = events.Open(c)
	}
	return l, err
}

// bootID names this boot of the machine: see proc(5), /proc/sys/kernel/random.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// tellUp says that the host takes part, and how the daemon before it ended.
func tellUp(l *events.Log, version string) {
	e := events.Event{Kind: events.KindHostUp, Reason: events.ReasonFirst, Text: "understudy " + version + " is up"}
	if last := l.Newest(1, events.Filter{Kinds: []events.Kind{events.KindHostUp, events.KindHostDown}}); len(last) > 0 {
		e.Reason = events.ReasonClean
		if last[0].Kind == events.KindHostUp {
			e.Reason = events.ReasonUnclean
			e.Text += "; the daemon before it, or its host, was lost"
		}
	}
	l.Add(e)
}

// tellDown says that the daemon goes down, and ends the record.
func tellDown(l *events.Log, began clock.Instant, why error, log *slog.Logger) {
	e := events.Event{Kind: events.KindHostDown, Duration: clock.Boot{}.Now().Sub(began), Text: "understudy goes down"}
	if why != nil {
		e.Text += ": " + why.Error()
	}
	l.Add(e)
	if err := l.Close(); err != nil {
		log.Warn("the latest events may not be in the files of the record", "err", err)
	}
}

// leaders is a voter that knows who leads; see failover.Node.LeaderChange.
type leaders interface {
	LeaderChange() (ownership.HostID, <-chan struct{})
}

// tellLeaders follows the leader of the ownership log, as this voter knows it.
func tellLeaders(ctx context.Context, l *events.Log, voter leaders) {
	was, changed := voter.LeaderChange()
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		var is ownership.HostID
		if is, changed = voter.LeaderChange(); is == was {
			continue
		}
		text := fmt.Sprintf("%s leads the ownership log", is)
		if is == "" {
			text = "no voter is known to lead the ownership log"
		}
		l.Add(events.Event{Kind: events.KindLeaderChanged, Change: events.Change{From: string(was), To: string(is)}, Text: text})
		was = is
	}
}

// tellDisks says when a guest's disks fail, and when they work again; see
// disk.SetConfig.Trouble.
func tellDisks(l *events.Log, guest string) func(epoch.DiskID, error) {
	if l == nil {
		return nil
	}
	since := map[epoch.DiskID]clock.Instant{}
	return func(d epoch.DiskID, err error) {
		now := clock.Boot{}.Now()
		if err != nil {
			since[d] = now
			l.Add(events.Event{Kind: events.KindDiskTrouble, Guest: guest, Text: err.Error()})
			return
		}
		failed := now.Sub(since[d])
		l.Add(events.Event{Kind: events.KindDiskWell, Guest: guest, Duration: failed,
			Text: fmt.Sprintf("disk %d works again after %v", d, events.About(failed))})
	}
}
