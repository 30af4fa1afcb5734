package events

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/clock"
)

var update = flag.Bool("update", false, "write the golden file anew")

// examples is one event of each kind, as a host would tell it.
func examples() []Event {
	at := time.Date(2026, 3, 1, 10, 0, 0, 250_000_000, time.UTC)
	all := []Event{
		{Kind: KindHostUp, Text: "the daemon is up", Reason: ReasonUnclean},
		{Kind: KindHostDown, Text: "the daemon goes down", Duration: time.Hour},
		{Kind: KindLeaderChanged, Change: Change{From: "witness"}, Text: "no voter leads the ownership log"},
		{Kind: KindUpgradeBegun, Change: Change{From: "1.0.0", To: "1.1.0"}, Text: "version 1.1.0 is ready to take the place of version 1.0.0"},
		{Kind: KindUpgraded, Change: Change{From: "1.0.0", To: "1.1.0"}, Text: "version 1.1.0 has taken the place of version 1.0.0"},
		{Kind: KindUpgradeFailed, Text: "the upgrade failed, and the daemon goes on as it was: it ended before it took part"},
		{Kind: KindConfigChanged, Text: "host beta is replaced by gamma"},
		{Kind: KindRoleChanged, Guest: "web", Change: Change{"backup", "primary"}, Duration: time.Minute},
		{Kind: KindOwnerChanged, Guest: "web", Generation: 4, Change: Change{"alpha", "beta"}},
		{Kind: KindProblem, Guest: "web", Text: `start the guest: no such file "/srv/vmlinuz"`},
		{Kind: KindProblemOver, Guest: "web", Duration: 3 * time.Second},
		{Kind: KindStarted, Guest: "web", Generation: 5},
		{Kind: KindBooted, Guest: "web", Generation: 5, Duration: 40 * time.Millisecond},
		{Kind: KindRestored, Guest: "web", Generation: 5, Duration: time.Second},
		{Kind: KindAdopted, Guest: "web", Generation: 5},
		{Kind: KindStopAsked, Guest: "web"},
		{Kind: KindStopped, Guest: "web", Generation: 5, Reason: ReasonOperator},
		{Kind: KindGuestEvent, Guest: "web", Reason: "panic", Text: "the guest: panic"},
		{Kind: KindLeaseLost, Guest: "web", Generation: 5},
		{Kind: KindLeaseRenewed, Guest: "web", Generation: 5, Duration: 700 * time.Millisecond},
		{Kind: KindModeChanged, Guest: "web", Generation: 5, Epoch: 77, Change: Change{"protected", "detaching"}},
		{Kind: KindProtected, Guest: "web", Generation: 5, Epoch: 3, Peer: "beta", Duration: 2 * time.Second},
		{Kind: KindUnprotected, Guest: "web", Generation: 5, Epoch: 77, Peer: "beta", Reason: ReasonBackupSilent, Duration: time.Hour},
		{Kind: KindProtectionChanged, Guest: "web", Generation: 5, Peer: "beta", Reason: ReasonOperator, Change: Change{"on", "paused"}},
		{Kind: KindMismatch, Guest: "web", Epoch: 78, Peer: "beta"},
		{Kind: KindImageGivenUp, Guest: "web", Epoch: 78, Text: "a page cannot be rebuilt"},
		{Kind: KindDiskTrouble, Guest: "web", Text: "disk 0: no space left on device"},
		{Kind: KindDiskWell, Guest: "web", Duration: time.Minute},
		{Kind: KindSwitchoverAsked, Guest: "web", Peer: "beta"},
		{Kind: KindFailbackBegun, Guest: "web", Peer: "beta", Reason: ReasonPolicy, Duration: 10 * time.Minute},
		{Kind: KindSurrendered, Guest: "web", Generation: 5, Epoch: 80, Peer: "beta", Reason: ReasonOperator},
		{Kind: KindTakeoverAsked, Guest: "web", Generation: 5, Epoch: 80, Peer: "alpha", Reason: ReasonOwnerSilent, Duration: 250 * time.Millisecond},
		{Kind: KindTakeoverGranted, Guest: "web", Generation: 6, Epoch: 80, Peer: "alpha", Duration: 20 * time.Millisecond},
		{Kind: KindTakeoverRefused, Guest: "web", Generation: 5, Text: "no backup is in sync"},
		{Kind: KindTakeoverRunning, Guest: "web", Generation: 6, Epoch: 80, Duration: 30 * time.Millisecond},
		{Kind: KindActivated, Guest: "web", Generation: 6},
		{Kind: KindFirstOutput, Guest: "web", Generation: 6, Duration: 5 * time.Millisecond},
		{Kind: KindForced, Guest: "web", Generation: 7, Epoch: 80, Peer: "alpha", Reason: ReasonImage, Text: "whatever it did after epoch 80 is lost"},
		{Kind: KindFenceAsked, Guest: "web", Peer: "alpha", Reason: ReasonPolicy},
		{Kind: KindFenced, Guest: "web", Generation: 7, Peer: "alpha", Reason: ReasonOperator, Duration: 2 * time.Second},
		{Kind: KindFenceFailed, Guest: "web", Peer: "alpha", Reason: ReasonPolicy, Text: "/usr/sbin/fence_ipmilan alpha: exit status 1"},
		{Kind: KindUnfenced, Guest: "web", Generation: 7},
		{Kind: KindReturned, Guest: "web", Generation: 7, Peer: "alpha"},
		{Kind: KindTakenBack, Guest: "web", Generation: 7, Peer: "beta"},
		{Kind: KindMissed, Missed: 12, Text: "12 events are missing here"},
		{Kind: DrillPrefix + "begun", Guest: "web", Text: "drill 3: freeze of alpha", Suppressed: 2},
		{Kind: KindBubbleBegun, Guest: "web", Peer: "alpha"},
		{Kind: KindBubbleEnded, Guest: "web", Epoch: 90, Peer: "alpha", Reason: ReasonBubbleWell, Duration: 4 * time.Second},
		{Kind: KindStruck, Guest: "web", Reason: "freeze", Duration: 10 * time.Second},
		{Kind: KindStrikeUndone, Guest: "web", Reason: "freeze", Duration: 10 * time.Second},
	}
	for i := range all {
		e := &all[i]
		e.Seq, e.Host, e.BootID = uint64(i+1), "alpha", "5f0c"
		e.At, e.Boot = at.Add(time.Duration(i)*time.Millisecond), clock.Instant(i+1)*clock.Instant(time.Millisecond)
	}
	return all
}

// TestEveryKindsLine: the names of the fields are the format, so what was
// written once must be read for ever.
func TestEveryKindsLine(t *testing.T) {
	var lines []byte
	for _, e := range examples() {
		var err error
		if lines, err = appendLine(lines, &e); err != nil {
			t.Fatal(err)
		}
	}
	golden := filepath.Join("testdata", "events.jsonl")
	if *update {
		if err := os.WriteFile(golden, lines, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(lines, want) {
		t.Errorf("the lines are not those of %s:\n%s", golden, lines)
	}
	i := 0
	for line := range bytes.Lines(want) {
		if e, err := Parse(line); err != nil || !reflect.DeepEqual(e, examples()[i]) {
			t.Errorf("line %d is read as %+v, %v", i+1, e, err)
		}
		i++
	}
}

// TestNoKindIsForgotten: whoever adds one adds it to Kinds, and to the examples.
func TestNoKindIsForgotten(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "kinds.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var told []Kind
	for _, e := range examples() {
		told = append(told, e.Kind)
	}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		v, ok := node.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(v.Names[0].Name, "Kind") || len(v.Values) != 1 {
			return true
		}
		literal, ok := v.Values[0].(*ast.BasicLit)
		if !ok {
			return true // a drill's, of DrillPrefix
		}
		word, err := strconv.Unquote(literal.Value)
		if err != nil || !slices.Contains(Kinds(), Kind(word)) || !slices.Contains(told, Kind(word)) || !Kind(word).valid() {
			t.Errorf("%s = %q is no word, or not in kinds, or not in examples: %v", v.Names[0].Name, word, err)
		}
		n++
		return true
	})
	if n != len(Kinds()) {
		t.Errorf("%d constants, %d kinds", n, len(Kinds()))
	}
}

func TestALineThatIsNoEventIsRefused(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{`{"seq":1,"time":"2026-03-01T10:00:00Z","boot_ns":5,"host":"a","kind":"protected","text":"","colour":"red"}`, ""},
		{`{"seq":1,"time":"2026-03-01T10:00:00Z","boot_ns":5,"host":"a","kind":"tomorrow-s-kind","reason":"unheard-of","text":""}`, ""},
		{`{"seq":0,"time":"2026-03-01T10:00:00Z","kind":"protected"}`, "with the number 0"},
		{`{"seq":9007199254740992,"time":"2026-03-01T10:00:00Z","kind":"protected"}`, "want 1 to 9007199254740991"},
		{`{"seq":-1}`, "event: "},
		{`{"seq":7,"time":"2026-03-01T10:00:00Z","kind":"Pro tected"}`, `event 7: kind "Pro tected"`},
		{`{"seq":7,"kind":"protected"}`, "event 7: it has no time"},
		{`{"seq":7,"time":"2026-03-01T10:00`, "event: "},
		{"\x00\x00\x00\x00", "event: "},
		{`"` + strings.Repeat("x", MaxLine) + `"`, "want at most 16384"},
	} {
		_, err := Parse([]byte(c.line))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%.80s: got %v, want %q", c.line, err, c.want)
		}
	}
}

// TestWhateverIsSaidFitsOnALine: texts come from hypervisors and disks.
func TestWhateverIsSaidFitsOnALine(t *testing.T) {
	for _, text := range []string{strings.Repeat("\x00", 100_000), strings.Repeat("é", 100_000), strings.Repeat("\xff", 5000), "line\nbreak"} {
		l := memory(t, 4)
		l.Add(Event{Kind: KindProblem, Text: text, Guest: text, Peer: "b", Reason: Reason(text), Change: Change{text, text}})
		got := l.Since(0, Filter{}, 0)[0]
		line, err := appendLine(nil, &got)
		if err != nil || bytes.Count(line, []byte("\n")) != 1 {
			t.Errorf("%.10q…: %d bytes, %v", text, len(line), err)
		}
		if _, err := Parse(line); err != nil {
			t.Errorf("%.10q…: %v", text, err)
		}
	}
}

// TestIntervalsAreRightWhateverTheClockDoes, within one boot.
func TestIntervalsAreRightWhateverTheClockDoes(t *testing.T) {
	at := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	a := Event{Host: "alpha", BootID: "x", At: at, Boot: clock.Instant(time.Second)}
	for _, c := range []struct {
		name  string
		later Event
		want  time.Duration
		exact bool
	}{
		{"the clock was set back", Event{Host: "alpha", BootID: "x", At: at.Add(-time.Hour), Boot: clock.Instant(3 * time.Second)}, 2 * time.Second, true},
		{"the host was booted", Event{Host: "alpha", BootID: "y", At: at.Add(time.Minute)}, time.Minute, false},
		{"another host's", Event{Host: "beta", BootID: "x", At: at.Add(time.Minute)}, time.Minute, false},
	} {
		if d, exact := a.Until(c.later); d != c.want || exact != c.exact {
			t.Errorf("%s: %v, %v", c.name, d, exact)
		}
	}
}

func TestATextHasThreeDigits(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 42: "42ns", 5775887522: "5.78s", 1504524161: "1.5s", 75927742: "75.9ms",
		-999999: "-1ms", time.Minute + 234567*time.Microsecond: "1m0.2s"} {
		if got := About(d).String(); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, e := range examples() {
		line, err := appendLine(nil, &e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	f.Add([]byte(`{"seq":1e3,"time":"2026-03-01T10:00:00+14:00","kind":"a","change":null,"duration_ns":-5}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := Parse(line)
		if err != nil {
			return
		}
		again, err := appendLine(nil, &e)
		if err != nil {
			return // longer than what it was read from: escapes
		}
		back, err := Parse(again)
		if err != nil || !back.At.Equal(e.At) {
			t.Fatalf("%q is written as %q: %v", line, again, err)
		}
		if back.At = e.At; !reflect.DeepEqual(back, e) {
			t.Fatalf("%+v comes back as %+v", e, back)
		}
	})
}
