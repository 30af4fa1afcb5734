package samples

// What is known of a guest's past: what happened between two looks, gaps where
// nothing was known, and no more than the rings hold.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"understudy/clock"
	"understudy/disk"
	"understudy/epoch"
	"understudy/host"
	"understudy/primary"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counted is a guest whose primary has taken n checkpoints in a generation.
func counted(generation epoch.Generation, n uint64) host.GuestStatus {
	return host.GuestStatus{Name: "web", Protected: host.ProtectedYes, Disks: &disk.Status{Bytes: 99},
		Primary: &primary.Status{Mode: primary.ModeProtected, Generation: generation, Held: 1, HeldBytes: 7, Dirty: 60, Lag: primary.Percentiles{Samples: 3, Median: 5, P99: 9},
			Totals: primary.Totals{Checkpoints: n, Commits: n, PauseTime: time.Duration(n) * 2 * time.Millisecond, LagTime: time.Duration(n) * 8 * time.Millisecond,
				RawBytes: n * 100 * pageSize, WireBytes: n * 10 * pageSize, ReferencePages: n * 30, CopyPages: n * 5, ZeroPages: n * 10, SamePages: n * 15}}}
}

const second = clock.Instant(time.Second)

// taken is a keeper, and when it is asked.
type taken struct {
	t *testing.T
	*Keeper
	now clock.Instant
}

func newTaken(t *testing.T) *taken { return &taken{t: t, Keeper: NewKeeper("alpha")} }

// take looks, a second after the last time.
func (k *taken) take(all ...host.GuestStatus) { k.now += second; k.Take(k.now, all) }

func (k *taken) series(ring, since string) Series {
	k.t.Helper()
	s, err := k.Series("web", ring, since, k.now)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, c := range Columns {
		if len(s.Values[c]) != len(s.Age) || len(s.Generation) != len(s.Age) {
			k.t.Fatalf("%d samples, %d of %s", len(s.Age), len(s.Values[c]), c)
		}
	}
	return s
}

// line is one column in words.
func line(s Series, column string) string {
	text, err := json.Marshal(s.Values[column])
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func (k *taken) reads(about string, s Series, want map[string]string) {
	k.t.Helper()
	for c, w := range want {
		if got := line(s, c); got != w {
			k.t.Errorf("%s: %s is %s, want %s", about, c, got, w)
		}
	}
}

func TestASampleIsWhatHappenedSinceTheOneBefore(t *testing.T) {
	k := newTaken(t)
	k.take(counted(1, 100))
	k.reads("the first says nothing of what happened", k.series("fine", ""), map[string]string{
		"pause_ns": "[null]", "sent_bytes_per_second": "[null]", "held_bytes": "[7]", "held_frames": "[1]", "held_write_bytes": "[99]", "pause_p99_ns": "[null]", "lag_p99_ns": "[9]",
		"lag_p50_ns": "[5]", "dirty_pages": "[null]", "protected": "[1]"})
	k.take(counted(1, 120))
	k.reads("20 checkpoints in a second", k.series("fine", ""), map[string]string{
		"pause_ns": "[null,2000000]", "epoch_ns": "[null,50000000]", "lag_ns": "[null,8000000]", "raw_bytes_per_second": "[null,8192000]", "sent_bytes_per_second": "[null,819200]",
		"on_disk_bytes_per_second": "[null,2457600]", "equal_bytes_per_second": "[null,409600]", "zero_bytes_per_second": "[null,819200]",
		"unchanged_bytes_per_second": "[null,1228800]", "packed_bytes_per_second": "[null,2457600]"})
	g := counted(1, 120)
	g.Protected = host.ProtectedNo
	k.take(g)
	k.reads("nothing happened", k.series("fine", ""), map[string]string{"pause_ns": "[null,2000000,null]", "sent_bytes_per_second": "[null,819200,0]", "protected": "[1,1,0]"})
	if s := k.series("fine", ""); fmt.Sprintf("%v %v %s %s %v", s.Age, s.Generation, s.Host, s.Ring, s.Whole) != "[2000 1000 0] [1 1 1] alpha fine true" {
		t.Errorf("%v", s)
	}
}

func TestWhatIsNotKnownIsAGap(t *testing.T) {
	for name, next := range map[string]host.GuestStatus{"another generation": counted(2, 140), "counts that began anew": counted(1, 3)} {
		k := newTaken(t)
		k.take(counted(1, 100))
		k.take(counted(1, 120))
		k.take(next)
		k.reads(name, k.series("fine", ""), map[string]string{"held_bytes": "[7,7,null,7]", "pause_ns": "[null,2000000,null,null]", "protected": "[1,1,null,1]"})
	}
	k := newTaken(t)
	elsewhere, gone := counted(1, 120), counted(1, 120)
	elsewhere.Primary = nil
	gone.Primary.Mode = primary.ModeYielded
	k.take(elsewhere)
	k.take(counted(1, 100))
	for range 5 {
		k.take(elsewhere)
	}
	k.take(gone)
	k.take(counted(1, 120))
	s := k.series("fine", "")
	k.reads("the guest is elsewhere", s, map[string]string{"held_bytes": "[null,7,null,7]", "sent_bytes_per_second": "[null,null,null,null]"})
	if fmt.Sprint(s.Age, s.Generation) != "[8000 7000 6000 0] [0 1 0 1]" {
		t.Error(s.Age, s.Generation)
	}
	k.now += second * 60 // nobody looked, the machine was asleep
	k.take(counted(1, 9000))
	k.reads("a long time without a look", k.series("fine", ""), map[string]string{"held_bytes": "[null,7,null,7,null,7]", "pause_ns": "[null,null,null,null,null,null]"})
	k.now += 4 * second // a busy machine
	k.take(counted(1, 9100))
	if s = k.series("fine", s.Next); line(s, "epoch_ns") != "[null,null,50000000]" || s.Whole {
		t.Error(line(s, "epoch_ns"), s.Whole)
	}
}

func TestTheCoarseRingIsTheMeanOfTenSeconds(t *testing.T) {
	k := newTaken(t)
	for i := range uint64(41) {
		k.take(counted(1, 10*i+i%10))
	}
	s := k.series("coarse", "")
	k.reads("ten seconds", s, map[string]string{"epoch_ns": "[null,100000000,100000000,100000000,100000000]"})
	if fmt.Sprint(s.Age) != "[40000 30000 20000 10000 0]" {
		t.Error(s.Age)
	}
}

func TestWhoAsksAgainGetsWhatIsNew(t *testing.T) {
	k := newTaken(t)
	k.take(counted(1, 100))
	all := k.series("fine", "")
	if none := k.series("fine", all.Next); none.Whole || len(none.Age) != 0 || none.Next != all.Next {
		t.Errorf("nothing new is %+v", none)
	}
	k.take(counted(1, 120))
	if more := k.series("fine", all.Next); more.Whole || len(more.Age) != 1 {
		t.Errorf("what is new is %+v", more)
	}
	other := newTaken(t) // the daemon began anew: its numbers are others
	other.take(counted(1, 120))
	if again := other.series("fine", all.Next); !again.Whole || len(again.Age) != 1 {
		t.Errorf("of another daemon: %+v", again)
	}
	for _, c := range []struct {
		guest, ring, since string
		want               error
	}{
		{"db", "fine", "", ErrGuest}, {"web", "hourly", "", ErrRing}, {"web", "fine", "x", ErrSince}, {"web", "fine", "a-b", ErrSince}, {"web", "fine", "-1", nil}, {"web", "fine", all.Next + "9999", nil},
		{"web", "fine", strings.Repeat("x", 99) + "-1", ErrSince}, {"web", "fine", "a-99999999999999999999", ErrSince},
	} {
		if _, err := k.Series(c.guest, c.ring, c.since, k.now); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	k.take()
	if _, err := k.Series("web", "fine", "", k.now); !errors.Is(err, ErrGuest) {
		t.Errorf("a guest that is not configured any more: %v", err)
	}
}

func TestAMomentOfSeveralHosts(t *testing.T) {
	a := Series{Age: []int64{5000, 4000, 3000, 1000}, Generation: []uint64{1, 1, 0, 3}, Values: map[string][]Value{"held_bytes": {5, 4, Unknown(), 1}}}
	b := Series{Age: []int64{4500, 2500, 2000}, Generation: []uint64{0, 2, 2}, Values: map[string][]Value{"held_bytes": {Unknown(), 25}}}
	for _, c := range []struct {
		ago  time.Duration
		want string
	}{
		{6 * time.Second, "none"}, {5 * time.Second, "5"}, {4500 * time.Millisecond, "5"}, {4 * time.Second, "4"}, {3 * time.Second, "none"}, {2500 * time.Millisecond, "25"},
		{2 * time.Second, "NaN"}, {time.Second, "1"}, {0, "1"}, {-time.Minute, "none"},
	} {
		got := "none"
		if m, known := At([]Series{a, b}, c.ago, 2*time.Second); known {
			got = fmt.Sprint(m.Value("held_bytes"))
		}
		if got != c.want {
			t.Errorf("%v ago: %s, want %s", c.ago, got, c.want)
		}
	}
	if m, known := At([]Series{a, b}, time.Second, time.Second); !known || m.Value("no such").Known() {
		t.Error("a column that is none")
	}
}

// TestMemoryIsBounded holds what the package says of itself.
func TestMemoryIsBounded(t *testing.T) {
	k := newTaken(t)
	for i := range uint64(8 * 60 * 60) {
		k.take(counted(1, i*20))
	}
	if s := k.series("fine", ""); len(s.Age) != 900 || s.Age[0] > 15*60*1000 {
		t.Errorf("fine: %d samples, the oldest %d ms old", len(s.Age), s.Age[0])
	}
	s := k.series("coarse", "")
	if len(s.Age) != 2160 || s.Age[0] > 6*60*60*1000 || s.Age[0] < 5*60*60*1000 {
		t.Errorf("coarse: %d samples, the oldest %d ms old", len(s.Age), s.Age[0])
	}
	text, err := json.Marshal(s)
	if err != nil || len(text) > 1<<20 {
		t.Errorf("the longest answer has %d bytes, %v", len(text), err)
	}
	bytes := uintptr(0)
	for _, r := range k.guests["web"] {
		bytes += unsafe.Sizeof(*r) + uintptr(cap(r.all))*unsafe.Sizeof(sample{})
	}
	if bytes > 320<<10 {
		t.Errorf("a guest's samples take %d bytes", bytes)
	}
	var many []host.GuestStatus
	for i := range MaxGuests + 1 {
		g := counted(1, 1)
		g.Name = fmt.Sprint(i)
		many = append(many, g)
	}
	if k.take(many...); len(k.guests) != MaxGuests {
		t.Errorf("samples of %d guests", len(k.guests))
	}
}

// TestWhateverHappensTheSamplesAddUp: a guest that comes, goes and begins anew, looked
// at whenever; what the samples say was sent is what the totals grew by while they
// could be compared, and they are in order.
func TestWhateverHappensTheSamplesAddUp(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		k := NewKeeper("alpha")
		var now, lastAt clock.Instant
		var n, last uint64
		generation, lastGeneration := epoch.Generation(1), epoch.Generation(0)
		grown := 0.0
		for range rapid.IntRange(1, 60).Draw(r, "looks") {
			now += clock.Instant(rapid.SampledFrom([]time.Duration{time.Second, time.Second, 900 * time.Millisecond, 3 * time.Second, 20 * time.Second}).Draw(r, "time"))
			g := counted(generation, n)
			switch rapid.IntRange(0, 9).Draw(r, "what") {
			case 0:
				g.Primary = nil
				lastGeneration = 0
			case 1:
				generation, n = generation+1, 0
				g = counted(generation, n)
				fallthrough
			default:
				if lastGeneration == generation && now.Sub(lastAt) <= time.Second+late {
					grown += float64(n-last) * 10 * pageSize
				}
				last, lastAt, lastGeneration = n, now, generation
			}
			k.Take(now, []host.GuestStatus{g})
			n += uint64(rapid.IntRange(0, 30).Draw(r, "checkpoints"))
		}
		s, err := k.Series("web", "fine", "", now)
		if err != nil {
			r.Fatal(err)
		}
		sum := 0.0
		for i, v := range s.Values["sent_bytes_per_second"] {
			if i > 0 && s.Age[i] > s.Age[i-1] {
				r.Fatalf("out of order: %v", s.Age)
			}
			if v.Known() {
				sum += float64(v) * float64(s.Age[i-1]-s.Age[i]) / 1000
			}
			if (s.Generation[i] == 0) == s.Values["held_bytes"][i].Known() {
				r.Fatalf("sample %d is of generation %d with %v held", i, s.Generation[i], s.Values["held_bytes"][i])
			}
		}
		if math.Abs(sum-grown) > 1e-3*grown+1 {
			r.Fatalf("the samples say that %.0f bytes were sent, the totals %.0f", sum, grown)
		}
	})
}

func TestAKeeperLooksEverySecondUntilItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := NewKeeper("alpha")
		ctx, cancel := context.WithCancel(t.Context())
		n := uint64(0)
		ended := make(chan struct{})
		now := clock.Go{Start: time.Now()}
		go func() {
			defer close(ended)
			k.Run(ctx, now, func() []host.GuestStatus { n += 20; return []host.GuestStatus{counted(1, n)} })
		}()
		time.Sleep(10*time.Second + time.Millisecond) // of the bubble's clock
		s, err := k.Series("web", "fine", "", now.Now())
		if err != nil || len(s.Age) != 11 || line(s, "epoch_ns") != "[null"+strings.Repeat(",50000000", 10)+"]" {
			t.Errorf("%v, %v", s, err)
		}
		cancel()
		<-ended
	})
}

func TestAValueReadsAsItIsWritten(t *testing.T) {
	for _, v := range []Value{0, 1, 2000000, 1 << 40, Unknown(), Value(math.Inf(1))} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var got Value
		if err := json.Unmarshal(text, &got); err != nil || got.Known() && got != v {
			t.Errorf("%v is written %s and read %v, %v", v, text, got, err)
		}
	}
	var v Value
	for _, bad := range []string{`"x"`, `{}`, `true`} {
		if json.Unmarshal([]byte(bad), &v) == nil {
			t.Errorf("%s is a value", bad)
		}
	}
}
