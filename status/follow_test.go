package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestAFollowerMissesNothingAndSeesNothingTwice, although the daemon it follows
// ends and comes back, and more has happened meanwhile.
func TestAFollowerMissesNothingAndSeesNothingTwice(t *testing.T) {
	three := newTrio(t)
	local := three.socket("alpha").At("beta")
	var mu sync.Mutex
	var seen []uint64
	var breaks []error
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	since := uint64(2)
	go func() {
		ended <- local.Follow(ctx, EventQuery{Since: &since}, func(seq uint64, event json.RawMessage) error {
			if !strings.Contains(string(event), fmt.Sprintf(`"seq":%d,`, seq)) {
				t.Errorf("event %d is %s", seq, event)
			}
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, seq)
			return nil
		}, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			breaks = append(breaks, err)
		})
	}()
	await := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			mu.Lock()
			ok := done()
			mu.Unlock()
			if ok {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: not within 30 s; seen %v, breaks %v", what, seen, breaks)
			}
		}
	}
	await("what there is", func() bool { return slices.Equal(seen, []uint64{3, 4, 5}) })
	three.end("beta")
	await("the break", func() bool { return len(breaks) > 0 })
	three.recorded["beta"].add()
	three.begin("beta")
	await("what happened meanwhile", func() bool { return slices.Equal(seen, []uint64{3, 4, 5, 6}) })
	three.recorded["beta"].add()
	await("what happens", func() bool { return slices.Equal(seen, []uint64{3, 4, 5, 6, 7}) })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

func TestAFollowerIsToldAtOnceWhatIsWrong(t *testing.T) {
	three := newTrio(t)
	local := three.socket("alpha")
	never := func(uint64, json.RawMessage) error { t.Error("an event"); return nil }
	three.end("beta")
	if err := local.At("beta").Follow(t.Context(), EventQuery{}, never, nil); !errors.Is(err, ErrNoPeer) {
		t.Errorf("a dead host: %v", err)
	}
	var refused *Refused
	if err := local.Follow(t.Context(), EventQuery{Guest: strings.Repeat("x", maxFilter+1), Since: new(uint64)}, never, nil); !errors.As(err, &refused) || refused.Status != http.StatusBadRequest {
		t.Errorf("nonsense: %v", err)
	}
	enough := errors.New("enough")
	if err := local.Follow(t.Context(), EventQuery{Since: new(uint64)}, func(uint64, json.RawMessage) error { return enough }, nil); !errors.Is(err, enough) {
		t.Errorf("enough is %v", err)
	}
	list, err := local.Events(t.Context(), EventQuery{Since: new(uint64), Limit: 2})
	if err != nil || len(list.Events) != 2 || list.Last != 2 {
		t.Errorf("a list: %+v, %v", list, err)
	}
}

func TestServerSentEventsAreReadAsTheStandardSays(t *testing.T) {
	read := func(text string) (got []string, err error) {
		err = readEvents(strings.NewReader(text), func() {}, func(seq uint64, e json.RawMessage) error {
			got = append(got, fmt.Sprintf("%d %s", seq, e))
			return nil
		})
		return got, err
	}
	got, err := read("retry: 2000\n\nevent: status\ndata: {}\n\n: still here\n\nevent: log\nid: 7\ndata: {\"a\":\ndata: 1}\n\nid:8\nevent:log\ndata:{}\r\n\r\nevent: log\nid: 9\ndata: {}\n")
	if !slices.Equal(got, []string{"7 {\"a\":\n1}", "8 {}"}) || err == nil || !strings.Contains(err.Error(), "goes down") {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"event: log\nid: x\ndata: {}\n\n", "event: log\nid: 1\ndata: {\n\n", "event: log\ndata: {}\n\n", strings.Repeat("x", MaxBody+1)} {
		if got, err := read(text); err == nil || len(got) > 0 {
			t.Errorf("%.40q: %q, %v", text, got, err)
		}
	}
}

func FuzzServerSentEvents(f *testing.F) {
	f.Add("event: log\nid: 7\ndata: {}\n\n")
	f.Add(": x\n\nevent: status\ndata: {}\n\n")
	f.Fuzz(func(_ *testing.T, text string) {
		_ = readEvents(strings.NewReader(text), func() {}, func(uint64, json.RawMessage) error { return nil })
	})
}
