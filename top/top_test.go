package top

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"understudy/backup"
	"understudy/clock"
	"understudy/disk"
	"understudy/exclusion"
	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
	"understudy/status"
	"understudy/status/samples"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write the golden frames anew")

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// moment is a pair with two guests, at the n-th second: web runs on alpha and is
// protected, db runs on beta and is being synchronised.
func moment(n int) Look {
	web := ownership.Guest{Generation: 3, Owner: "alpha", Phase: ownership.PhaseActive, InSync: true, Backup: ownership.Backup{Host: "beta"}}
	db := ownership.Guest{Generation: 1, Owner: "beta", Phase: ownership.PhaseActive}
	wave := time.Duration(1+n%5) * time.Millisecond
	return Look{At: noon.Add(time.Duration(n) * time.Second), Lease: time.Second, Cluster: status.Cluster{Leader: "witness"},
		Hosts: []Host{
			{Name: "alpha", Guests: []host.GuestStatus{
				{Name: "db", Host: "alpha", Role: "backup", Protected: host.ProtectedUnknown, Log: db, Backup: &backup.Status{State: "fed"}},
				{Name: "web", Host: "alpha", Role: "primary", Protected: host.ProtectedYes, Log: web,
					Disks: &disk.Status{Writes: 4, Bytes: 16384, Limit: 64 << 20}, Excluded: &exclusion.Stats{Mapped: 900, Indexed: 100, Copied: 7},
					Primary: &primary.Status{Mode: primary.ModeProtected, ModeFor: time.Duration(n) * time.Second, Backup: "beta", Epoch: 1234, EpochAge: 20 * time.Millisecond,
						Held: 3, HeldBytes: 4500, Dirty: uint64(600 + 100*(n%7)), LeaseLeft: 750 * time.Millisecond,
						Pause:  primary.Percentiles{Samples: 9, Median: wave, P99: 5 * time.Millisecond, Max: 9 * time.Millisecond},
						Lag:    primary.Percentiles{Samples: 9, Median: 4 * wave, P99: 40 * time.Millisecond},
						Totals: primary.Totals{RawBytes: uint64(n) * 40 << 20, WireBytes: uint64(3*n+2*(n%3)) << 20, ZeroPages: 5, SamePages: 6}}},
			}},
			{Name: "beta", Guests: []host.GuestStatus{
				{Name: "db", Host: "beta", Role: "primary", Protected: host.ProtectedNo, Log: db, Problem: "",
					Primary: &primary.Status{Mode: primary.ModeSyncing, Backup: "alpha", Pages: 1000, Remaining: 550, LinkError: "connection refused",
						Totals: primary.Totals{RawBytes: uint64(n) << 20, WireBytes: uint64(n) << 20}}},
				{Name: "web", Host: "beta", Role: "backup", Protected: host.ProtectedUnknown, Log: web, Backup: &backup.Status{State: "fed", Epoch: 1234, EpochAge: 30 * time.Millisecond, InSync: true, Whole: true}},
			}},
			{Name: "witness", Witness: true},
		},
		Events: []Event{
			{noon.Add(-3 * time.Minute), "", "the daemon is up, version 0.1.0"},
			{noon.Add(-2 * time.Minute), "web", "is its primary (was: recovering)"},
			{noon.Add(-time.Minute), "web", "is protected: host beta is in sync from epoch 17 on"},
		}}
}

// lost is moment with beta gone.
func lost(n int) Look {
	l := moment(n)
	l.Hosts[1] = Host{Name: "beta", Err: errors.New("host beta does not answer")}
	web := &l.Hosts[0].Guests[1]
	web.Protected = host.ProtectedNo
	return l
}

func after(m *Model, looks int, keys ...string) *Model {
	for n := range looks {
		m.Take(moment(n))
	}
	for _, k := range keys {
		m.Key(k)
	}
	return m
}

// rememberedBy is a first look at hosts that remember: web ran on beta until 30
// seconds ago, and for ten seconds on no host.
func rememberedBy(m *Model) *Model {
	k := map[ownership.HostID]*samples.Keeper{"alpha": samples.NewKeeper("alpha"), "beta": samples.NewKeeper("beta")}
	const now = 70
	for n := range now {
		web := moment(n).Hosts[0].Guests[1]
		web.Primary.Totals.Checkpoints, web.Primary.Generation = uint64(10*n), 3
		elsewhere := web
		elsewhere.Primary = nil
		at := map[ownership.HostID]host.GuestStatus{"alpha": elsewhere, "beta": elsewhere}
		switch {
		case n < 30:
			at["beta"] = web
		case n >= 40:
			p := *web.Primary
			p.Generation = 4
			web.Primary = &p
			at["alpha"] = web
		}
		for h, one := range k {
			one.Take(clock.Instant(n)*clock.Instant(time.Second), []host.GuestStatus{at[h]})
		}
	}
	l := moment(now)
	l.Past = map[string][]samples.Series{}
	for _, one := range k {
		s, err := one.Series("web", "fine", "", now*clock.Instant(time.Second))
		if err != nil {
			panic(err)
		}
		l.Past["web"] = append(l.Past["web"], s)
	}
	m.Take(l)
	m.Key("down")
	return m
}

func TestFrames(t *testing.T) {
	t.Parallel()
	unicode := func(width, height int) *Model {
		m := New(width, height)
		m.Unicode = true
		return m
	}
	coloured := unicode(80, 24)
	coloured.Colour = true
	silent := after(unicode(80, 24), 5)
	silent.Take(lost(5))
	gone := after(unicode(80, 24), 5)
	gone.Take(Look{At: noon.Add(9 * time.Second), Err: errors.New("no daemon answers")})
	never := unicode(60, 12)
	never.Take(Look{At: noon, Err: errors.New("/run/understudy/understudy.sock: no daemon answers: is understudyd running, and are you root?")})
	for name, m := range map[string]*Model{
		"usual":      after(unicode(80, 24), 70),
		"wide":       after(unicode(132, 30), 70),
		"narrow":     after(unicode(40, 12), 70),
		"tiny":       after(unicode(24, 4), 70),
		"ascii":      after(New(80, 24), 70),
		"coloured":   after(coloured, 70),
		"detail":     after(unicode(80, 24), 70, "down", "enter"),
		"events":     after(unicode(80, 24), 70, "e", "up"),
		"help":       after(unicode(80, 24), 70, "?"),
		"beta-lost":  silent,
		"no-answer":  gone,
		"no-daemon":  never,
		"first-look": unicode(80, 10),
		"remembered": rememberedBy(unicode(80, 24)),
	} {
		got := m.Frame(noon.Add(75*time.Second)) + "\n"
		path := filepath.Join("testdata", name+".txt")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got, want)
		}
	}
}

// TestAFrameFitsItsTerminal: whatever its size, whatever was pressed, and whatever
// the hosts say.
func TestAFrameFitsItsTerminal(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := New(rapid.IntRange(0, 200).Draw(t, "width"), rapid.IntRange(0, 60).Draw(t, "height"))
		m.Unicode, m.Colour = rapid.Bool().Draw(t, "unicode"), rapid.Bool().Draw(t, "colour")
		for n := range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				m.Key(rapid.SampledFrom([]string{"up", "down", "enter", "e", "?", "space", "pgup", "pgdown", "backspace", "x"}).Draw(t, "key"))
			case 1:
				m.Resize(rapid.IntRange(0, 200).Draw(t, "width"), rapid.IntRange(0, 60).Draw(t, "height"))
			case 2:
				m.Take(Look{Err: errors.New(rapid.String().Draw(t, "error"))})
			default:
				l := moment(n)
				l.Events = append(l.Events, Event{noon, rapid.String().Draw(t, "guest"), rapid.String().Draw(t, "text")})
				for i := range rapid.IntRange(0, 40).Draw(t, "guests") {
					g := l.Hosts[0].Guests[1]
					g.Name = fmt.Sprintf("guest-%d", i)
					g.Problem = rapid.String().Draw(t, "problem")
					l.Hosts[0].Guests = append(l.Hosts[0].Guests, g)
				}
				m.Take(l)
			}
			frame := m.Frame(noon)
			lines := strings.Split(frame, "\n")
			if m.width >= leastWidth && m.height >= leastHeight && len(lines) > m.height {
				t.Fatalf("%d lines on %d:\n%s", len(lines), m.height, frame)
			}
			for _, l := range lines {
				if w := ansi.StringWidth(l); w > max(m.width, 0) {
					t.Fatalf("%d columns of %d: %q", w, m.width, l)
				}
			}
			if !utf8.ValidString(frame) || strings.ContainsFunc(ansi.Strip(frame), func(r rune) bool { return r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 }) {
				t.Fatalf("a frame that moves the cursor: %q", frame)
			}
		}
	})
}

func TestWhatKeysDo(t *testing.T) {
	t.Parallel()
	m := after(New(80, 24), 3)
	for _, c := range []struct {
		key  string
		quit bool
		want func() bool
	}{
		{"down", false, func() bool { return m.selected == "web" }},
		{"down", false, func() bool { return m.selected == "web" }},
		{"enter", false, func() bool { return m.page == detail }},
		{"enter", false, func() bool { return m.page == overview }},
		{"e", false, func() bool { return m.page == events }},
		{"pgup", false, func() bool { return m.offset == 2 }},
		{"pgdown", false, func() bool { return m.offset == 0 }},
		{"esc", false, func() bool { return m.page == overview }},
		{"up", false, func() bool { return m.selected == "db" }},
		{"space", false, func() bool { return m.frozen }},
		{"space", false, func() bool { return !m.frozen }},
		{"?", false, func() bool { return m.page == help }},
		{"backspace", false, func() bool { return m.page == overview }},
		{"q", true, func() bool { return true }},
		{"ctrl+c", true, func() bool { return true }},
		{"esc", true, func() bool { return true }},
	} {
		if quit := m.Key(c.key); quit != c.quit || !c.want() {
			t.Errorf("after %q: quit %v, page %d, selected %s, offset %d", c.key, quit, m.page, m.selected, m.offset)
		}
	}
	// A guest that goes takes the choice along.
	m.Key("down")
	l := moment(4)
	l.Hosts[0].Guests, l.Hosts[1].Guests = l.Hosts[0].Guests[:1], l.Hosts[1].Guests[:1]
	m.Take(l)
	if m.selected != "db" || len(m.past) != 1 {
		t.Errorf("selected %s, %d guests remembered", m.selected, len(m.past))
	}
}

func TestAFrozenScreenStandsStill(t *testing.T) {
	t.Parallel()
	m := after(New(80, 24), 3, "space")
	before := m.Frame(noon)
	m.Take(moment(50))
	if m.Frame(noon) != before {
		t.Error("it moved")
	}
}

// played is a source that plays moments.
type played struct {
	looks int
	err   error
}

func (p *played) Look(context.Context) Look {
	p.looks++
	l := moment(p.looks)
	l.Err = p.err
	return l
}

func TestOnceHasRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		frame, err := Once(t.Context(), Options{Source: &played{}, Every: time.Second}, 80)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"web", "protected", "5.0M", "NOT PROTECTED: sync 45%", "in sync from epoch 17 on"} {
			if !strings.Contains(frame, want) {
				t.Errorf("no %q in\n%s", want, frame)
			}
		}
		if _, err := Once(t.Context(), Options{Source: &played{err: errors.New("nobody")}, Every: time.Second}, 80); err == nil {
			t.Error("nobody answers, and there is a frame")
		}
	})
}

// TestAViewEndsWithItsContext, and draws before that.
func TestAViewEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	source := &ending{after: 3, end: cancel}
	if err := Run(ctx, Options{Source: source, Every: time.Millisecond, In: strings.NewReader(""), Out: &out, Environ: []string{"TERM=xterm"}}); err != nil {
		t.Fatal(err)
	}
	if source.looks < 3 {
		t.Errorf("%d looks", source.looks)
	}
}

// ending is a source after whose looks the view is to end.
type ending struct {
	played
	after int
	end   func()
}

func (e *ending) Look(ctx context.Context) Look {
	l := e.played.Look(ctx)
	if e.looks >= e.after {
		e.end()
	}
	return l
}

func TestShortWords(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{0: "0.0ms", 1700 * time.Microsecond: "1.7ms", 85 * time.Millisecond: "85ms", 2500 * time.Millisecond: "2.5s", 90 * time.Second: "1m30", 25 * time.Hour: "25h00"} {
		if got := short(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0B", 999: "999B", 1 << 10: "1.0K", 45 << 20: "45M", 3 << 40: "3.0T", 1e18: "lots"} {
		if got := size(n); got != want {
			t.Errorf("%v: %s, want %s", n, got, want)
		}
	}
	if got := sparkline([]float64{0, 1, 2, 4, -1, 8}, blocks); got != "▁▂▃▅ █" {
		t.Errorf("sparkline %q", got)
	}
}
