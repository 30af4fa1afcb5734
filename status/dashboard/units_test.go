package dashboard_test

// The pure modules, tried where they run: in the browser.

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// harness is what the files in testdata say what they want with.
const harness = `(async () => {
	const failures = [];
	const same = (got, want, about) => { const [g, w] = [got, want].map((v) => JSON.stringify(v)); if (g !== w) failures.push(about + ': ' + g + ', want ' + w); };
	const ok = (yes, about) => { if (!yes) failures.push(about); };
	const throws = (f, about) => { try { f(); } catch { return; } failures.push(about + ' is taken'); };
	%s
	return failures;
})()`

func TestThePureModules(t *testing.T) {
	s := newStage(t)
	p := open(t, s.url, "")
	files, err := filepath.Glob("testdata/*.js")
	if err != nil || len(files) == 0 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var failures []string
		p.must(p.Eval(p.ctx, fmt.Sprintf(harness, text), &failures))
		if len(failures) > 0 {
			t.Errorf("%s:\n%s", file, strings.Join(failures, "\n"))
		}
	}
}

// TestEveryModuleIsLoaded: one that is not would be tried by nobody, and one that
// cannot be parsed would end the page.
func TestEveryModuleIsLoaded(t *testing.T) {
	s := newStage(t)
	p := open(t, s.url, "")
	p.within(testTime, "asking who one is", "!document.getElementById('signinbox').hidden")
	asked := strings.Join(p.Requests(), "\n")
	files, err := filepath.Glob("*.*s")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, "icon.svg") {
		if !strings.Contains(asked, "/ui/"+file) {
			t.Errorf("the page does not ask for %s", file)
		}
	}
}
