package strike

// What is asked for, what is kept of it, and the agent's story against acts that
// only take notes, in fake time.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == actorWord {
		os.Exit(actor(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

func TestASpecIsBounded(t *testing.T) {
	for _, c := range []struct {
		spec Spec
		want string // "" is well
	}{
		{Spec{ID: "d1", Kind: Kill}, ""},
		{Spec{ID: "2026-03-01T10.00_x", Kind: Cut, For: MaxFor}, ""},
		{Spec{ID: strings.Repeat("x", MaxID), Kind: Freeze, For: MinFor}, ""},
		{Spec{ID: strings.Repeat("x", MaxID+1), Kind: Freeze}, "the strike's id"},
		{Spec{Kind: Kill}, "the strike's id"},
		{Spec{ID: "../../etc/passwd", Kind: Kill}, "the strike's id"},
		{Spec{ID: ".new-x", Kind: Kill}, "the strike's id"},
		{Spec{ID: "a b", Kind: Kill}, "the strike's id"},
		{Spec{ID: "a", Kind: "burn"}, `of kind "burn": want kill, freeze or cut`},
		{Spec{ID: "a"}, "want kill, freeze or cut"},
		{Spec{ID: "a", Kind: Kill, For: MaxFor + 1}, "want 100ms to 5m0s"},
		{Spec{ID: "a", Kind: Kill, For: MinFor - 1}, "want 100ms to 5m0s"},
		{Spec{ID: "a", Kind: Kill, For: -1}, "want 100ms to 5m0s"},
	} {
		given := c.spec
		err := c.spec.Check()
		if c.want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", given, err, c.want)
		}
		if err == nil && given.For == 0 && c.spec.For != DefaultFor {
			t.Errorf("%+v lasts %v", given, c.spec.For)
		}
	}
}

// notes are acts that only take notes.
type notes struct {
	mu    sync.Mutex
	did   []string
	fails map[string]error
	began time.Time
	start func()
	gone  bool // every process has ended
}

func (n *notes) note(format string, args ...any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	what := fmt.Sprintf(format, args...)
	n.did = append(n.did, fmt.Sprintf("%v %s", time.Since(n.began), what))
	return n.fails[what]
}

func (n *notes) Signal(p Process, s syscall.Signal) error {
	if s == 0 {
		if n.gone {
			return os.ErrProcessDone
		}
		return nil
	}
	return n.note("%v to %d", s, p.PID)
}
func (n *notes) Cut(c Cable, limit time.Duration) error {
	return n.note("cut %d from %v for %v", c.Port, c.Peers, limit)
}
func (n *notes) Mend() error { return n.note("mend") }
func (n *notes) Start(s Start) error {
	err := n.note("start %q in %s", s.Args, s.Dir)
	if n.start != nil {
		n.start()
	}
	return err
}

// pipe is what a daemon hears of its agent.
type pipe struct {
	said strings.Builder
	gone bool
}

func (p *pipe) Write(b []byte) (int, error) {
	if p.gone {
		return 0, syscall.EPIPE
	}
	return p.said.Write(b)
}
func (*pipe) Close() error { return nil }

// record is one of a strike of that kind, Lead from now and for 10 s.
func record(kind Kind) Record {
	boot, _ := bootID()
	at := time.Now().Add(Lead).UTC().Round(0)
	r := Record{Struck: Struck{ID: "d1", Kind: kind, Guest: "web", At: at, Undo: at.Add(10 * time.Second)}, Boot: boot}
	switch kind {
	case Cut:
		r.Cable = &Cable{Port: 7070, Peers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:7070")}}
	case Kill:
		r.Start = &Start{Program: "/usr/sbin/understudyd", Args: []string{"understudyd", "--host", "alpha"}, Dir: "/"}
		fallthrough
	case Freeze:
		r.Victims = []Process{{PID: 100, Began: 1}, {PID: 200, Began: 2}}
	}
	return r
}

func TestTheAgentStrikesAndUndoes(t *testing.T) {
	const half = 5 * time.Second
	for about, c := range map[string]struct {
		kind    Kind
		change  func(*Record)
		fails   map[string]error
		gone    bool
		stop    time.Duration // SIGTERM then
		want    []string
		err     string
		remains bool // the record
	}{
		"kill": {kind: Kill, want: []string{"500ms killed to 100", "500ms killed to 200", `10.5s start ["understudyd" "--host" "alpha"] in /`}},
		"kill of a service": {kind: Kill, change: func(r *Record) { r.Start = nil }, want: []string{"500ms killed to 100", "500ms killed to 200"},
			err: "it is not back; start it by hand", remains: true},
		"kill, and it does not start": {kind: Kill, fails: map[string]error{`start ["understudyd" "--host" "alpha"] in /`: errors.New("no such file")},
			want: []string{"500ms killed to 100", "500ms killed to 200", `10.5s start ["understudyd" "--host" "alpha"] in /`}, err: "start it by hand: no such file", remains: true},
		"kill, and it may not": {kind: Kill, fails: map[string]error{"killed to 100": syscall.EPERM}, want: []string{"500ms killed to 100", "500ms killed to 200"}, err: "operation not permitted"},
		"kill, of the daemon alone": {kind: Kill, gone: true, fails: map[string]error{"killed to 200": syscall.EPERM},
			want: []string{"500ms killed to 100", "500ms killed to 200", `500ms start ["understudyd" "--host" "alpha"] in /`}, err: "operation not permitted"},
		"freeze": {kind: Freeze, want: []string{"500ms stopped (signal) to 100", "500ms stopped (signal) to 200", "10.5s continued to 100", "10.5s continued to 200"}},
		"freeze of one that dies": {kind: Freeze, fails: map[string]error{"continued to 200": os.ErrProcessDone},
			want: []string{"500ms stopped (signal) to 100", "500ms stopped (signal) to 200", "10.5s continued to 100", "10.5s continued to 200"}},
		"freeze that half works": {kind: Freeze, fails: map[string]error{"stopped (signal) to 200": syscall.EPERM},
			want: []string{"500ms stopped (signal) to 100", "500ms stopped (signal) to 200", "500ms continued to 100", "500ms continued to 200"}, err: "operation not permitted"},
		"cut": {kind: Cut, want: []string{"500ms cut 7070 from [192.0.2.2:7070] for 10s", "10.5s mend"}},
		"cut that cannot be mended": {kind: Cut, fails: map[string]error{"mend": syscall.ENOBUFS}, want: []string{"500ms cut 7070 from [192.0.2.2:7070] for 10s", "10.5s mend"},
			err: "the next start of the daemon tries again", remains: true},
		"ended early":           {kind: Freeze, stop: half, want: []string{"500ms stopped (signal) to 100", "500ms stopped (signal) to 200", "5s continued to 100", "5s continued to 200"}},
		"ended before it began": {kind: Cut, stop: Lead / 2},
		"a record for later":    {kind: Cut, change: func(r *Record) { r.At = r.At.Add(time.Hour); r.Undo = r.Undo.Add(time.Hour) }, err: "the clock was set back", remains: true},
	} {
		t.Run(strings.ReplaceAll(about, " ", "-"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := record(c.kind)
				if c.change != nil {
					c.change(&r)
				}
				dir := t.TempDir()
				file, err := r.create(dir)
				if err != nil {
					t.Fatal(err)
				}
				n := &notes{began: time.Now(), fails: c.fails, gone: c.gone}
				n.start = func() {
					if _, fails := c.fails[`start ["understudyd" "--host" "alpha"] in /`]; !fails {
						if undone, err := Undo(dir, n); err != nil || len(undone) != 1 { // the new daemon does
							t.Errorf("undone %+v, %v", undone, err)
						}
					}
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.stop > 0 {
					time.AfterFunc(c.stop, cancel)
				}
				told := &pipe{}
				err = Agent(ctx, file, told, n)
				if c.err == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v, want %q", err, c.err)
				}
				if said := told.said.String(); (said == ready) == (about == "a record for later") {
					t.Errorf("the daemon was told %q", said)
				}
				if !slices.Equal(n.did, c.want) {
					t.Errorf("did\n%q\nwant\n%q", n.did, c.want)
				}
				if undone(file) == c.remains {
					t.Errorf("the record remains: %t", c.remains)
				}
			})
		})
	}
}

// TestNobodyStrikesForADaemonThatIsGone: the strike was not answered for.
func TestNobodyStrikesForADaemonThatIsGone(t *testing.T) {
	dir := t.TempDir()
	r := record(Freeze)
	file, err := r.create(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := &notes{}
	if err := Agent(t.Context(), file, &pipe{gone: true}, n); !errors.Is(err, syscall.EPIPE) || len(n.did) > 0 || !undone(file) {
		t.Errorf("%v, did %q", err, n.did)
	}
}

// TestTheNextDaemonUndoesWhatAKilledAgentLeft, once, and nothing of another boot,
// whose processes are others.
func TestTheNextDaemonUndoesWhatAKilledAgentLeft(t *testing.T) {
	for _, c := range []struct {
		kind Kind
		boot string
		want []string
	}{
		{Freeze, "", []string{"continued to 100", "continued to 200"}},
		{Cut, "", []string{"mend"}},
		{Kill, "", nil},
		{Freeze, "another", nil},
		{Cut, "another", nil},
	} {
		dir := t.TempDir()
		r := record(c.kind)
		if c.boot != "" {
			r.Boot = c.boot
		}
		if _, err := r.create(dir); err != nil {
			t.Fatal(err)
		}
		n := &notes{began: time.Now(), fails: map[string]error{"continued to 100": syscall.EPERM, "mend": syscall.EPERM}}
		if len(c.want) > 0 { // it fails at first
			if undone, err := Undo(dir, n); err == nil || len(undone) != 0 {
				t.Errorf("%s: undone %v, %v", c.kind, undone, err)
			}
		}
		n.did, n.fails = nil, nil
		undone, err := Undo(dir, n)
		if err != nil || len(undone) != 1 || undone[0].ID != "d1" {
			t.Errorf("%s: undone %v, %v", c.kind, undone, err)
		}
		for i := range n.did {
			_, n.did[i], _ = strings.Cut(n.did[i], " ")
		}
		if !slices.Equal(n.did, c.want) {
			t.Errorf("%s of boot %q: did %q, want %q", c.kind, c.boot, n.did, c.want)
		}
		if undone, err := Undo(dir, n); err != nil || len(undone) != 0 {
			t.Errorf("%s: undone again %v, %v", c.kind, undone, err)
		}
	}
	if undone, err := Undo(filepath.Join(t.TempDir(), "none"), &notes{}); err != nil || len(undone) != 0 {
		t.Errorf("where there never was one: %v, %v", undone, err)
	}
}

func TestOneStrikeAtATime(t *testing.T) {
	dir := t.TempDir()
	r := record(Freeze)
	if _, err := r.create(dir); err != nil {
		t.Fatal(err)
	}
	other := record(Cut)
	other.ID = "d2"
	if _, err := other.create(dir); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "strike d1 (freeze) is undone at") {
		t.Errorf("another: %v", err)
	}
	if all, err := List(dir); err != nil || len(all) != 1 || all[0].ID != "d1" {
		t.Errorf("%v, %v", all, err)
	}
}

// TestARecordIsReadAsItWasWritten, and one that was damaged is not acted upon.
func TestARecordIsReadAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := record(rapid.SampledFrom([]Kind{Kill, Freeze, Cut}).Draw(t, "kind"))
		r.ID = rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,20}`).Draw(t, "id")
		r.Guest = rapid.String().Draw(t, "guest")
		r.Also = rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,8}`), 1, 5).Draw(t, "also")
		r.Machines = []int{200}
		if r.Start != nil {
			r.Start.Env = rapid.SliceOfN(rapid.StringMatching(`[A-Z]{1,4}=[ -~]{0,20}`), 1, 4).Draw(t, "env")
		}
		dir, err := os.MkdirTemp("", "strike")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		file, err := r.create(dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Read(file)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, r)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("it holds the environment: %v, %v", info.Mode(), err)
		}
	})
	dir := t.TempDir()
	for about, text := range map[string]string{
		"empty": "", "half": `{"id":"x","kind":"kill"`, "another's": `{"id":"y","kind":"cut"}`,
		"init":    `{"id":"x","kind":"kill","at":"2026-01-01T00:00:00Z","undo":"2026-01-01T00:00:10Z","victims":[{"pid":1,"began":0}]}`,
		"itself":  `{"id":"x","kind":"kill","at":"2026-01-01T00:00:00Z","undo":"2026-01-01T00:00:10Z","victims":[{"pid":-1,"began":0}]}`,
		"ages":    `{"id":"x","kind":"cut","at":"2026-01-01T00:00:00Z","undo":"2027-01-01T00:00:10Z","cable":{"port":1,"peers":["1.2.3.4:5"]}}`,
		"nobody":  `{"id":"x","kind":"freeze","at":"2026-01-01T00:00:00Z","undo":"2026-01-01T00:00:10Z"}`,
		"nowhere": `{"id":"x","kind":"cut","at":"2026-01-01T00:00:00Z","undo":"2026-01-01T00:00:10Z"}`,
	} {
		file := filepath.Join(dir, "x.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n := &notes{}
		if undone, err := Undo(dir, n); err == nil || len(undone) > 0 || len(n.did) > 0 || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: undone %v, did %q, %v", about, undone, n.did, err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":"x","kind":"kill","at":"2026-01-01T00:00:00Z","undo":"2026-01-01T00:00:10Z","victims":[{"pid":5,"began":7}],"start":{"program":"/a","args":["a"]}}`))
	f.Add([]byte(`{"id":"x","kind":"cut","at":"2026-01-01T00:00:00Z","undo":"2026-01-01T00:00:10Z","cable":{"port":1,"peers":["1.2.3.4:5","[::1]:7"]}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var r Record
		if r.parse(text) != nil {
			return
		}
		for _, p := range r.Victims {
			if p.PID < 2 {
				t.Errorf("it would signal process %d", p.PID)
			}
		}
		if d := r.Undo.Sub(r.At); d < MinFor || d > MaxFor || checkID(r.ID) != nil {
			t.Errorf("%q for %v", r.ID, d)
		}
	})
}

func TestAProcessNameSaysNothingOfItsStart(t *testing.T) {
	for stat, want := range map[string]uint64{
		"7 (a) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0":            4711,
		"7 (a) b) (9 9 9) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 42 0 0\n": 42,
		"": 0, "7 (a": 0, "7 (a) S 1 2 3": 0, "7 (a) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 x 0 0": 0,
	} {
		got, err := beganIn([]byte(stat))
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", stat, got, err)
		}
	}
}

func TestAServiceIsKnownByItsControlGroup(t *testing.T) {
	for text, want := range map[string]bool{
		"0::/system.slice/understudyd.service\n":                            true,
		"0::/system.slice/system-understudyd.slice/understudyd@a.service\n": true,
		"1:name=systemd:/system.slice/understudyd.service\n0::/\n":          true,
		"0::/user.slice/user-0.slice/session-3.scope\n":                     false,
		"0::/system.slice/x.service/child\n":                                false,
		"4:memory:/a.service\n0::/\n":                                       false,
		"":                                                                  false,
	} {
		if inService(text) != want {
			t.Errorf("%q: want %t", text, want)
		}
	}
}
