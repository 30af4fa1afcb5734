package integration

// Many drills in a row: which ones, what came of each, and what that makes of all
// of them. Nothing here runs one: real_drills_test.go does.
//
//	seed ── planDrills ──> acts ── (a drill each) ──> outcomes ── kept in a file, one a line
//	                                                     └── table, by kind

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"understudy/config"
	"understudy/drill"
)

// act is one drill of a plan.
type act struct {
	N     int             `json:"n"` // from 1 on
	Mode  config.DiskMode `json:"disk"`
	Kind  drill.Kind      `json:"kind"`
	Fault drill.Fault     `json:"fault,omitempty"`
	For   time.Duration   `json:"fault_for_ns,omitempty"`
	Stay  bool            `json:"stay,omitempty"`
	Probe bool            `json:"probe,omitempty"` // the guest is connected to all the time
	Still bool            `json:"still,omitempty"` // the guest leaves its disk alone meanwhile
}

func (a act) String() string {
	s := fmt.Sprintf("%d %s on a %s disk", a.N, a.name(), a.Mode)
	if a.For > 0 {
		s += fmt.Sprintf(" for %v", a.For)
	}
	for _, one := range []struct {
		is   bool
		text string
	}{{a.Stay, "stays"}, {a.Probe, "probed"}, {a.Still, "disk at rest"}} {
		if one.is {
			s += ", " + one.text
		}
	}
	return s
}

// name is the kind, and the fault if there is one.
func (a act) name() string { return strings.TrimSuffix(string(a.Kind)+" "+string(a.Fault), " ") }

// deck has each kind once.
var deck = []act{{Kind: drill.Switchover}, {Kind: drill.Bubble}, {Kind: drill.Failover, Fault: drill.Kill},
	{Kind: drill.Failover, Fault: drill.Freeze}, {Kind: drill.Failover, Fault: drill.Cut}}

// planDrills shuffles decks: whatever the seed, each kind comes as often as the
// others. The first half is on one kind of disk, the second on the other, since
// another disk is another guest.
func planDrills(n int, seed uint64) []act {
	r := rand.New(rand.NewPCG(seed, 0))
	var plan, left []act
	for i := range n {
		if len(left) == 0 {
			left = slices.Clone(deck)
			r.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
		}
		a := left[0]
		left = left[1:]
		a.N, a.Mode, a.Probe = i+1, config.Replicated, r.IntN(2) == 0
		if i >= (n+1)/2 {
			a.Mode = config.Shared
		}
		stay, still, longer := r.IntN(3) == 0, r.IntN(2) == 0, time.Duration(r.IntN(5))*time.Second
		switch a.Kind {
		case drill.Failover:
			a.Stay, a.For = stay, 6*time.Second+longer
		case drill.Switchover:
			a.Stay = stay
		case drill.Bubble:
			a.Still = still
		}
		plan = append(plan, a)
	}
	return plan
}

// outcome is what came of a drill.
type outcome struct {
	Seed uint64 `json:"seed"`
	Of   int    `json:"of"`
	act
	Held bool   `json:"held"`
	Why  string `json:"why,omitempty"`
	// Silence is the longest at the client, Running and Output are the drill's own
	// RTO, Age its RPO: how far the guest was set back.
	Silence time.Duration  `json:"silence_ns"`
	Running *time.Duration `json:"running_ns,omitempty"`
	Output  *time.Duration `json:"first_output_ns,omitempty"`
	Age     *time.Duration `json:"rpo_ns,omitempty"`
	Took    time.Duration  `json:"took_ns"`
}

// record keeps outcomes in a file, so that a run can go on where another ended.
type record struct {
	path string // "": nowhere
	all  []outcome
}

// openRecord reads what was kept of a plan. Lines of others are let alone.
func openRecord(path string, n int, seed uint64) (*record, error) {
	r := &record{path: path}
	if path == "" {
		return r, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var o outcome
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if o.Of == n && o.Seed == seed {
			r.all = append(r.all, o)
		}
	}
	return r, nil
}

// has reports whether a drill was run already.
func (r *record) has(a act) bool {
	return slices.ContainsFunc(r.all, func(o outcome) bool { return o.act == a })
}

func (r *record) add(o outcome) error {
	r.all = append(r.all, o)
	if r.path == "" {
		return nil
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(json.NewEncoder(f).Encode(o), f.Close())
}

// table writes what came of all, by kind.
func (r *record) table(to io.Writer) error {
	kinds := map[string][]outcome{}
	for _, o := range r.all {
		kinds[o.name()] = append(kinds[o.name()], o)
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "drill\tcount\theld\tsilence at the client\tit runs again\tfirst output\tset back by\ttook\t")
	_, _ = fmt.Fprintln(w, "\t\t\tmedian/p99/most ms\tmedian/p99/most ms\tmedian/p99/most ms\tmedian/p99/most ms\tmedian s\t")
	for _, a := range deck {
		all := kinds[a.name()]
		held := 0
		for _, o := range all {
			if o.Held {
				held++
			}
		}
		figures := func(of func(outcome) *time.Duration) string {
			var them []time.Duration
			for _, o := range all {
				if d := of(o); d != nil {
					them = append(them, *d)
				}
			}
			if len(them) == 0 {
				return "-"
			}
			slices.Sort(them)
			ms := func(d time.Duration) int64 { return d.Round(time.Millisecond).Milliseconds() }
			return fmt.Sprintf("%d/%d/%d", ms(quantile(them, 50)), ms(quantile(them, 99)), ms(them[len(them)-1]))
		}
		took := make([]time.Duration, 0, len(all))
		for _, o := range all {
			took = append(took, o.Took)
		}
		slices.Sort(took)
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\t%.1f\t\n", a.name(), len(all), held,
			figures(func(o outcome) *time.Duration { return &o.Silence }), figures(func(o outcome) *time.Duration { return o.Running }),
			figures(func(o outcome) *time.Duration { return o.Output }), figures(func(o outcome) *time.Duration { return o.Age }), quantile(took, 50).Seconds())
	}
	return w.Flush()
}

// quantile is the smallest of sorted values that percent of a hundred do not
// exceed; 0 of none.
func quantile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, max(0, (len(sorted)*percent+99)/100-1))]
}

func TestDrillsArePlannedByTheirSeed(t *testing.T) {
	for _, n := range []int{1, 5, 100} {
		plan := planDrills(n, 7)
		if !slices.Equal(plan, planDrills(n, 7)) {
			t.Errorf("two plans of %d by one seed", n)
		}
		count := map[string]int{}
		for _, a := range plan {
			count[a.name()]++
		}
		for name, c := range count {
			if want := max(1, n/len(deck)); c != want {
				t.Errorf("%d of %d drills are %q, want %d", c, n, name, want)
			}
		}
	}
	if slices.Equal(planDrills(100, 7), planDrills(100, 8)) {
		t.Error("two seeds, one plan")
	}
}

// TestDrillsGoOnWhereTheyEnded: what was run is in the file, and in the table.
func TestDrillsGoOnWhereTheyEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "drills.jsonl")
	plan := planDrills(10, 7)
	for i, a := range plan[:4] {
		r, err := openRecord(path, 10, 7)
		if err != nil {
			t.Fatal(err)
		}
		if next := slices.IndexFunc(plan, func(a act) bool { return !r.has(a) }); next != i {
			t.Fatalf("drill %d is next, want %d", next, i)
		}
		long := time.Duration(i) * time.Second
		if err := r.add(outcome{Seed: 7, Of: 10, act: a, Held: i != 2, Silence: long, Output: &long}); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := openRecord(path, 10, 8); err != nil || len(r.all) != 0 {
		t.Errorf("%d outcomes of another seed: %v", len(r.all), err)
	}
	r, err := openRecord(path, 10, 7)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := r.table(&text); err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(text.String()) {
		for _, a := range plan[:4] {
			fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), a.name()))
			if !strings.HasPrefix(strings.TrimSpace(line), a.name()+" ") || len(fields) < 3 {
				continue
			}
			rows++
			held := "1"
			if a == plan[2] {
				held = "0"
			}
			if s := cmp.Or(slices.Index(plan, a)*1000, 0); fields[0] != "1" || fields[1] != held || fields[2] != fmt.Sprintf("%d/%[1]d/%[1]d", s) {
				t.Errorf("%q of %v", line, a)
			}
		}
	}
	if rows != 4 {
		t.Errorf("%d rows of 4 drills:\n%s", rows, text.String())
	}
}
