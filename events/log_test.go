package events

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a record in memory only.
func memory(t testing.TB, ring int) *Log {
	t.Helper()
	l, err := Open(Config{Host: "alpha", Ring: ring})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// kindOf spreads events over kinds, so that none comes too often.
func kindOf(i int) Kind { return DrillPrefix + Kind(fmt.Sprint(i%40)) }

// texts is what a reader got, in short.
func texts(all []Event) string {
	s := ""
	for _, e := range all {
		if e.Kind == KindMissed {
			s += fmt.Sprintf("(%d missed) ", e.Missed)
			continue
		}
		s += fmt.Sprintf("%d:%s ", e.Seq, e.Text)
	}
	return s
}

func TestAddStampsWhatIsNotSaid(t *testing.T) {
	l, err := Open(Config{Host: "alpha", BootID: "x", Ring: 4})
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	l.Add(Event{Kind: KindProtected, Guest: "web", Text: "a"})
	l.Add(Event{Kind: KindProtected, Guest: "web", Text: "b", At: before.Add(-time.Hour), Boot: 7, Host: "beta", Seq: 99})
	l.Add(Event{Kind: "not a kind"})
	got := l.Since(0, Filter{}, 0)
	if len(got) != 2 || got[0].Seq != 1 || got[0].Host != "alpha" || got[0].BootID != "x" || got[0].Boot == 0 || got[0].At.Before(before.Round(0)) {
		t.Errorf("%+v", got)
	}
	if got[1].Seq != 2 || got[1].Host != "beta" || got[1].Boot != 7 || !got[1].At.Equal(before.Add(-time.Hour)) {
		t.Errorf("%+v", got[1])
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	l.Add(Event{Kind: KindProtected})
	if n := len(l.Newest(0, Filter{})); n != 2 {
		t.Errorf("%d events: a closed record takes none", n)
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("a record of no host")
	}
}

// TestWhatComesTooOftenPushesNothingOut: a guest that resets itself without end
// must not cost the record of a failover.
func TestWhatComesTooOftenPushesNothingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := Open(Config{Host: "alpha", Ring: 1024, Clock: ticking(t)})
		if err != nil {
			t.Fatal(err)
		}
		l.Add(Event{Kind: KindTakeoverGranted, Guest: "web"})
		for range 10_000 {
			l.Add(Event{Kind: KindGuestEvent, Guest: "web", Reason: "reset"})
			l.Add(Event{Kind: KindGuestEvent, Guest: "db"})
			time.Sleep(time.Millisecond)
		}
		if n := len(l.Since(0, Filter{Guest: "web", Kinds: []Kind{KindGuestEvent}}, 0)); n != burst+1 {
			t.Errorf("%d of 10000 in 10 s: want %d", n, burst+1)
		}
		if n := len(l.Since(0, Filter{Kinds: []Kind{KindTakeoverGranted}}, 0)); n != 1 {
			t.Error("the takeover was pushed out")
		}
		time.Sleep(refill)
		l.Add(Event{Kind: KindGuestEvent, Guest: "web"})
		var told uint64
		for _, e := range l.Since(0, Filter{Guest: "web", Kinds: []Kind{KindGuestEvent}}, 0) {
			told += 1 + e.Suppressed
		}
		if told != 10_001 {
			t.Errorf("%d events told of, want 10001", told)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheLimiterIsBounded(t *testing.T) {
	l := limiter{}
	for i := range maxKeys + 1000 {
		l.admit(0, key{fmt.Sprint(i), KindProblem})
	}
	if len(l) > maxKeys+1 {
		t.Errorf("%d keys", len(l))
	}
}

// TestAFollowerHearsEachAsItComes, and ends with its context.
func TestAFollowerHearsEachAsItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := Open(Config{Host: "alpha", Ring: 64})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			l.Add(Event{Kind: kindOf(i), Text: fmt.Sprint(i)})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var heard []Event
		var running sync.WaitGroup
		running.Go(func() {
			for e := range l.Follow(ctx, 2, Filter{}) {
				mu.Lock()
				heard = append(heard, e)
				mu.Unlock()
			}
		})
		check := func(want string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got := texts(heard); got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
			heard = nil
		}
		check("3:2 4:3 5:4 ")
		l.Add(Event{Kind: kindOf(5), Text: "5"})
		check("6:5 ")
		check("")
		cancel()
		running.Wait()
		l.Add(Event{Kind: kindOf(6), Text: "6"})
		check("")

		running.Go(func() {
			for e := range l.Follow(t.Context(), 5, Filter{Kinds: []Kind{kindOf(6)}}) {
				mu.Lock()
				heard = append(heard, e)
				mu.Unlock()
			}
		})
		check("7:6 ")
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		running.Wait() // the record's end is the follower's
		if len(l.followers) != 0 {
			t.Error("a follower was left")
		}
		for range l.Follow(t.Context(), 0, Filter{}) {
			break // who has heard enough may go
		}
	})
}

// TestASlowFollowerIsToldHowManyItMissed, and keeps nobody waiting.
func TestASlowFollowerIsToldHowManyItMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := Open(Config{Host: "alpha", Ring: 8})
		if err != nil {
			t.Fatal(err)
		}
		l.Add(Event{Kind: kindOf(0), Text: "0"})
		ctx, cancel := context.WithCancel(t.Context())
		stuck := make(chan struct{})
		var heard []Event
		var running sync.WaitGroup
		running.Go(func() {
			for e := range l.Follow(ctx, 0, Filter{}) {
				heard = append(heard, e)
				<-stuck
			}
		})
		synctest.Wait()
		began := time.Now()
		for i := range 100 {
			l.Add(Event{Kind: kindOf(i), Text: fmt.Sprint(i + 1)})
		}
		if time.Since(began) != 0 {
			t.Error("Add has waited")
		}
		close(stuck)
		synctest.Wait()
		cancel()
		running.Wait()
		if got, want := texts(heard), "1:0 (92 missed) 94:93 95:94 96:95 97:96 98:97 99:98 100:99 101:100 "; got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
		if heard[1].Seq != 93 || heard[1].Host != "alpha" {
			t.Errorf("%+v", heard[1])
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestASeqFromAnotherLifeBeginsAnew: who followed a record that was lost with
// its host must not wait until the new one has got as far.
func TestASeqFromAnotherLifeBeginsAnew(t *testing.T) {
	l := memory(t, 8)
	l.Add(Event{Kind: KindHostUp, Text: "a"})
	l.Add(Event{Kind: KindHostDown, Text: "b"})
	for seq, want := range map[uint64]string{0: "1:a 2:b ", 1: "2:b ", 2: "", 3: "1:a 2:b ", 1 << 60: "1:a 2:b "} {
		if got := texts(l.Since(seq, Filter{}, 0)); got != want {
			t.Errorf("since %d: %q, want %q", seq, got, want)
		}
	}
	if got := texts(l.Since(0, Filter{}, 1)); got != "1:a " {
		t.Error(got)
	}
	if got := texts(l.Newest(1, Filter{})); got != "2:b " {
		t.Error(got)
	}
}

// TestAddAllocatesNothing, with somebody who follows.
func TestAddAllocatesNothing(t *testing.T) {
	l := memory(t, 256)
	news := make(chan struct{}, 1)
	l.followers[news] = struct{}{}
	guest := "web"
	if n := testing.AllocsPerRun(2000, func() {
		l.Add(Event{Kind: KindModeChanged, Guest: guest, Change: Change{"alone", "syncing"}, Text: "from alone to syncing"})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	l := memory(b, DefaultRing)
	kinds := make([]Kind, 1024)
	for i := range kinds {
		kinds[i] = Kind(fmt.Sprint("k", i))
	}
	i := 0
	for b.Loop() {
		l.Add(Event{Kind: kinds[i%len(kinds)], Guest: "web", Text: "from alone to syncing"})
		i++
	}
}
