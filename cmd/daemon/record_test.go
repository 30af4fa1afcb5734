package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"understudy/clock"
	"understudy/events"
	"understudy/ownership"
)

// TestADaemonSaysHowTheOneBeforeItEnded: an operator who finds a failover in the
// morning asks that first.
func TestADaemonSaysHowTheOneBeforeItEnded(t *testing.T) {
	defer goleak.VerifyNone(t)
	state, quiet := t.TempDir(), slog.New(slog.DiscardHandler)
	life := func(want events.Reason) *events.Log {
		t.Helper()
		l, err := openRecord(state, "alpha", quiet)
		if err != nil {
			t.Fatal(err)
		}
		tellUp(l, "1.2")
		if got := l.Newest(1, events.Filter{})[0]; got.Kind != events.KindHostUp || got.Reason != want || got.BootID == "" ||
			strings.Contains(got.Text, "was lost") != (want == events.ReasonUnclean) {
			t.Errorf("told %+v, want %s", got, want)
		}
		return l
	}
	tellDown(life(events.ReasonFirst), clock.Boot{}.Now(), nil, quiet)
	killed := life(events.ReasonClean)
	if err := killed.Close(); err != nil { // it was not said
		t.Fatal(err)
	}
	tellDown(life(events.ReasonUnclean), clock.Boot{}.Now(), errors.New("the voter failed"), quiet)
	last := life(events.ReasonClean)
	if got := last.Newest(2, events.Filter{})[0]; got.Kind != events.KindHostDown || !strings.Contains(got.Text, "the voter failed") || got.Duration <= 0 {
		t.Errorf("told %+v", got)
	}
	if err := last.Close(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(Record(state)); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestAHostWithoutItsRecordStillProtects: events are then in memory only, and the
// operator is told.
func TestAHostWithoutItsRecordStillProtects(t *testing.T) {
	state := t.TempDir()
	if err := os.WriteFile(filepath.Join(state, "events"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	l, err := openRecord(state, "alpha", slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil || !strings.Contains(said.String(), "in memory only") {
		t.Fatalf("%v; said %s", err, &said)
	}
	tellUp(l, "1.2")
	if n := len(l.Since(0, events.Filter{}, 0)); n != 1 {
		t.Errorf("%d events", n)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// election is a voter that hears of leaders.
type election struct {
	mu      sync.Mutex
	leader  ownership.HostID
	changed chan struct{}
}

func (e *election) LeaderChange() (ownership.HostID, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.leader, e.changed
}

func (e *election) elect(h ownership.HostID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leader = h
	close(e.changed)
	e.changed = make(chan struct{})
}

func TestLeadersAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := events.Open(events.Config{Host: "alpha"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		e := &election{changed: make(chan struct{})}
		var running sync.WaitGroup
		running.Go(func() { tellLeaders(ctx, l, e) })
		for _, h := range []ownership.HostID{"witness", "witness", "", "beta"} {
			synctest.Wait()
			e.elect(h)
		}
		synctest.Wait()
		cancel()
		running.Wait()
		got := l.Since(0, events.Filter{Kinds: []events.Kind{events.KindLeaderChanged}}, 0)
		want := []events.Change{{To: "witness"}, {From: "witness"}, {To: "beta"}}
		if len(got) != len(want) {
			t.Fatalf("told %+v", got)
		}
		for i, e := range got {
			if e.Change != want[i] || e.Guest != "" {
				t.Errorf("told %+v, want %v", e, want[i])
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestTroubleWithDisksIsTold(t *testing.T) {
	l, err := events.Open(events.Config{Host: "alpha"})
	if err != nil {
		t.Fatal(err)
	}
	tell := tellDisks(l, "web")
	tell(1, errors.New("disk 1: no space left on device"))
	tell(0, errors.New("disk 0: input/output error"))
	tell(1, nil)
	got := l.Since(0, events.Filter{Guest: "web"}, 0)
	if len(got) != 3 || got[0].Kind != events.KindDiskTrouble || got[0].Text != "disk 1: no space left on device" ||
		got[2].Kind != events.KindDiskWell || got[2].Duration <= 0 || !strings.HasPrefix(got[2].Text, "disk 1 works again") {
		t.Errorf("told %+v", got)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if tellDisks(nil, "web") != nil {
		t.Error("nobody is to be told without a record")
	}
}
