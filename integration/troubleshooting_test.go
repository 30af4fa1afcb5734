package integration

// docs/TROUBLESHOOTING.md has a line for each thing that our programs say, and
// no line for one that they do not:
//
//	sources (messages_test.go), kinds of events, alerts, exit statuses
//	   ⇄ first column of every table of the document

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"understudy/events"
)

const troubleshooting = "docs/TROUBLESHOOTING.md"

// TestTroubleshootingHasALineForEachMessage holds the document in both directions.
func TestTroubleshootingHasALineForEachMessage(t *testing.T) {
	all := messages(t)
	if len(all) < 500 {
		t.Errorf("the sources have %d messages: is what finds them still right?", len(all))
	}
	for _, k := range append(events.Kinds(), events.KindDrillBegun, events.KindDrillEnded) {
		all.add(string(k), "events/kinds.go")
	}
	for _, m := range regexp.MustCompile(`(?m)^ *- alert: (\w+)$`).FindAllStringSubmatch(read(t, "packaging/prometheus/alerts.yaml"), -1) {
		all.add(m[1], "packaging/prometheus/alerts.yaml")
	}
	for _, s := range exits(t) {
		all.add(s, "cmd")
	}
	lines, complaints := entries(read(t, troubleshooting))
	for _, c := range append(complaints, differ(all, lines)...) {
		t.Errorf("%s: %s", troubleshooting, c)
	}
}

// exits are the exit statuses of both programs.
func exits(t *testing.T) []string {
	t.Helper()
	found := []string{"understudy 0", "understudyd 0", "understudyd 1", "understudyd 2"}
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, "cmd/understudy/main.go"), nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Names) == 1 && len(v.Values) == 1 && strings.HasPrefix(v.Names[0].Name, "exit") {
			if status, ok := v.Values[0].(*ast.BasicLit); ok {
				found = append(found, "understudy "+status.Value)
			}
		}
		return true
	})
	return found
}

// entries returns what the tables of a document tell of, and what is wrong with
// its lines.
func entries(text string) (lines map[string]bool, complaints []string) {
	lines = map[string]bool{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 || strings.TrimSpace(cells[1]) == "" || strings.TrimSpace(cells[2]) == "" {
			complaints = append(complaints, fmt.Sprintf("not message, meaning and remedy: %s", line))
			continue
		}
		message := plain(strings.Trim(cells[0], " `"))
		if lines[message] {
			complaints = append(complaints, fmt.Sprintf("two lines for %q", message))
		}
		lines[message] = true
	}
	return lines, complaints
}

// differ says what is said without a line, and what lines are about nothing.
func differ(all said, lines map[string]bool) (complaints []string) {
	for message, where := range all {
		if !lines[message] {
			complaints = append(complaints, fmt.Sprintf("no line for %q (%s)", message, strings.Join(where, ", ")))
		}
	}
	for message := range lines {
		if len(all[message]) == 0 {
			complaints = append(complaints, fmt.Sprintf("a line for %q, which nobody says", message))
		}
	}
	slices.Sort(complaints)
	return complaints
}

// TestEveryPackageOfTheProgramsIsListenedTo compares the list of packages that
// are read with what the programs are built of.
func TestEveryPackageOfTheProgramsIsListenedTo(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-tags", "xen", "-deps", module+"/cmd/understudy", module+"/cmd/understudyd").Output()
	if err != nil {
		t.Fatal(err)
	}
	var built []string
	for name := range strings.Lines(string(out)) {
		if ours, ok := strings.CutPrefix(strings.TrimSpace(name), module+"/"); ok {
			built = append(built, ours)
		}
	}
	listed := slices.Clone(silent)
	for _, s := range speakers {
		listed = append(listed, s.dir)
	}
	for _, name := range built {
		if !slices.Contains(listed, name) {
			t.Errorf("package %s is in the programs: give it a place among the speakers or the silent", name)
		}
	}
	for _, name := range listed {
		if !slices.Contains(built, name) {
			t.Errorf("package %s is not in the programs", name)
		}
	}
}

// TestAMessageWithoutALineIsNoticed makes sure that the tests above can fail.
func TestAMessageWithoutALineIsNoticed(t *testing.T) {
	const source = `package p
const more = "do %q"
var ErrGone = errors.New("gone")
func f() error {
	log.Warn("a " + "warning", "err", err)
	log.Error(fmt.Sprintf("%d of %s are 100%% lost", n, s))
	log.Warn(text)
	c.emit(Warn{"the core warns"})
	refuse(w, http.StatusTooManyRequests, "too many")
	_ = &hypervisor.Refusal{What: "a machine", Remedy: "another"}
	_ = fmt.Errorf("%s: %w", what, err)
	return fmt.Errorf("it is \"%s\": %w; "+more, what, err)
}
`
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, "status/p.go", source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	all := said{}
	r := &reading{speaker: speaker{dir: "status", errors: true}, set: set, texts: map[string]string{}, all: all}
	r.constants(f)
	r.listen(f)
	want := []string{"<> of <> are 100% lost", "HTTP 429", "a machine", "a warning", "gone", "it is <>: <>; do <>", "the core warns", "too many"}
	var got []string
	for m := range all {
		got = append(got, m)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("heard %q\nwant  %q", got, want)
	}
	if len(r.unseen) != 1 {
		t.Errorf("log lines whose text is not to be seen: %q, want one", r.unseen)
	}

	var doc bytes.Buffer
	for _, m := range want[1:] {
		fmt.Fprintf(&doc, "| `%s` | meaning | remedy |\n", strings.ReplaceAll(m, hole, "<what>"))
	}
	doc.WriteString("| `nobody says it` | meaning | remedy |\n| `gone` | twice | over |\n| `half` | a line |\n")
	lines, complaints := entries(doc.String())
	if len(complaints) != 2 {
		t.Errorf("complaints about the lines: %q, want two", complaints)
	}
	if got := differ(all, lines); len(got) != 2 || !strings.Contains(got[0], "nobody says it") || !strings.Contains(got[1], "100% lost") {
		t.Errorf("complaints: %q", got)
	}
}
