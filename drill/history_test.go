package drill

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func aReport(id string) Report {
	return Report{ID: id, Spec: Spec{Guest: guest, Kind: Switchover}, State: Held, Host: witness, Began: time.Unix(1_800_000_000, 0).UTC(), Took: time.Second}
}

func openHistory(t *testing.T) *History {
	t.Helper()
	h, err := OpenHistory(filepath.Join(t.TempDir(), "drills"))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestReportsAreKept(t *testing.T) {
	h := openHistory(t)
	var ids []string
	for i := range 3 {
		id := NewID(time.Unix(1_800_000_000, int64(i)*int64(time.Millisecond)), Spec{Name: "weekly"}, "aabbcc")
		ids = append(ids, id)
		if err := h.Save(aReport(id)); err != nil {
			t.Fatal(err)
		}
	}
	slices.Reverse(ids)
	got, err := h.IDs()
	if err != nil || !slices.Equal(got, ids) {
		t.Errorf("there are %q, %v; want %q", got, err, ids)
	}
	r, err := h.Load(ids[0])
	if err != nil || r.ID != ids[0] || r.State != Held {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := h.Load("another"); !errors.Is(err, ErrNoReport) {
		t.Errorf("no such report: %v", err)
	}
}

// TestHostileFilesAreRefused: whoever wrote them, the error says what is wrong.
func TestHostileFilesAreRefused(t *testing.T) {
	h := openHistory(t)
	whole, err := json.Marshal(aReport("x"))
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(*Report)) string {
		r := aReport("x")
		f(&r)
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "EOF"},
		{"half", string(whole[:len(whole)/2]), "unexpected EOF"},
		{"two", string(whole) + "{}", "something follows"},
		{"a list", "[]", "cannot unmarshal"},
		{"too large", strings.Repeat(" ", MaxReport+1), "more than"},
		{"of another drill", edit(func(r *Report) { r.ID = "y" }), "it is of drill"},
		{"no name", edit(func(r *Report) { r.ID = "../x" }), "is not the ID"},
		{"no state", edit(func(r *Report) { r.State = "fine" }), "is not known"},
		{"no time", edit(func(r *Report) { r.Began = time.Time{} }), "it began"},
		{"a negative time", edit(func(r *Report) { r.Took = -1 }), "took"},
		{"no kind", edit(func(r *Report) { r.Spec.Kind = "explosion" }), "kind"},
		{"an endless timeline", edit(func(r *Report) { r.Timeline = make([]Step, 3*maxSteps) }), "lines of a timeline"},
		{"endless samples", edit(func(r *Report) { r.Samples = make([]Sample, 3*maxSamples) }), "samples"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(h.dir, "x.json"), []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Load("x"); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "x.json") {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	for _, id := range []string{"", "..", "../../etc/passwd", "a/b", "A", "a\x00", "-a", strings.Repeat("a", 65)} {
		if _, err := h.Load(id); err == nil || errors.Is(err, ErrNoReport) {
			t.Errorf("the ID %q: %v", id, err)
		}
		if err := h.Save(aReport(id)); err == nil {
			t.Errorf("the ID %q was written", id)
		}
	}
	if err := os.Mkdir(filepath.Join(h.dir, "d.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Load("d"); err == nil || !strings.Contains(err.Error(), "is no file") {
		t.Errorf("a directory: %v", err)
	}
}

func TestTheOldestReportsGo(t *testing.T) {
	h := openHistory(t)
	for i := range maxReports + 5 {
		if err := os.WriteFile(filepath.Join(h.dir, fmt.Sprintf("%06d.json", i)), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(h.dir, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Prune(); err != nil {
		t.Fatal(err)
	}
	ids, err := h.IDs()
	if err != nil || len(ids) != maxReports || ids[len(ids)-1] != "000005" {
		t.Errorf("%d are left, the oldest %s, %v", len(ids), ids[len(ids)-1], err)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "README")); err != nil {
		t.Errorf("what is no report is gone: %v", err)
	}
}

func TestSpecsAreChecked(t *testing.T) {
	for _, c := range []struct {
		name string
		s    Spec
		want string
	}{
		{"no guest", Spec{Kind: Bubble}, "name of a guest"},
		{"no kind", Spec{Guest: "g"}, "none of switchover"},
		{"a fault of a switchover", Spec{Guest: "g", Kind: Switchover, Fault: Kill}, "is for a failover"},
		{"no such fault", Spec{Guest: "g", Kind: Failover, Fault: "burn"}, "none of kill"},
		{"too long", Spec{Guest: "g", Kind: Failover, Fault: Kill, FaultFor: time.Hour}, "fault time"},
		{"no patience", Spec{Guest: "g", Kind: Bubble, Patience: 1}, "patience"},
		{"a relative command", Spec{Guest: "g", Kind: Bubble, Check: []string{"x"}}, "absolute path"},
		{"a NUL", Spec{Guest: "g", Kind: Bubble, Check: []string{"/x", "a\x00"}}, "NUL"},
		{"many words", Spec{Guest: "g", Kind: Bubble, Check: append([]string{"/x"}, make([]string, 100)...)}, "101 arguments"},
		{"a probe", Spec{Guest: "g", Kind: Bubble, Probe: "host"}, "host:port"},
		{"a schedule", Spec{Guest: "g", Kind: Bubble, Schedule: "often"}, "schedule"},
		{"a name", Spec{Guest: "g", Kind: Bubble, Name: "A b"}, "name"},
	} {
		if err := c.s.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	whole, err := json.Marshal(hostileReport())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	small, err := json.Marshal(aReport("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	f.Add([]byte(`{"id":"x","timeline":[{"at_ns":-9223372036854775808}],"samples":[{"lag_ns":9223372036854775807}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseReport(text)
		if err != nil {
			return
		}
		r.bound()
		for _, write := range []func(*discard) error{
			func(w *discard) error { return r.WriteTable(w) }, func(w *discard) error { return r.WriteJUnit(w) }, func(w *discard) error { return r.WriteHTML(w) },
		} {
			if err := write(&discard{}); err != nil {
				t.Fatalf("%v of %q", err, text)
			}
		}
	})
}

// discard counts.
type discard struct{ n int }

func (d *discard) Write(p []byte) (int, error) {
	d.n += len(p)
	return len(p), nil
}
