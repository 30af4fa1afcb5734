package integration

// docs/GUIDE.md says of each word that `understudy status` and a drill's report
// print what it means:
//
//	words of the code ⇄ first column of the table below each heading

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy/host"
	"understudy/ownership"
	"understudy/primary"
)

const guide = "docs/GUIDE.md"

// TestTheGuideSaysWhatEachStateMeans compares each table with the words it is of.
func TestTheGuideSaysWhatEachStateMeans(t *testing.T) {
	var modes []string
	for m := primary.Mode(0); m == 0 || m.String() != primary.Mode(0).String(); m++ {
		modes = append(modes, m.String())
	}
	text := read(t, guide)
	for heading, want := range map[string][]string{
		"`protected`":                  {host.ProtectedYes, host.ProtectedNo, host.ProtectedUnknown},
		"Modes of the primary":         modes,
		"Parts of a host":              append(written(t, "host", `\.as\("([a-z]+)"`), "starting"),
		"Image of the backup":          written(t, "backup", `st\.State = "([a-z]+)"`),
		"Ownership log":                append(constants(t, "ownership/ownership.go", "Phase", "Desired", "Protection"), ownership.ProtectionOn.String()),
		"Why a guest is not protected": append(group(t, "events/kinds.go", "Of KindUnprotected."), "operator"),
		"Drills":                       constants(t, "drill/report.go", "State"),
	} {
		_, section, ok := strings.Cut(text, "\n### "+heading+"\n")
		if !ok {
			t.Errorf("%s has no section %q", guide, heading)
			continue
		}
		section, _, _ = strings.Cut(section, "\n#")
		var got []string
		for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
			got = append(got, m[1])
		}
		want = slices.DeleteFunc(want, func(s string) bool { return s == "" })
		slices.Sort(want)
		slices.Sort(got)
		if want = slices.Compact(want); !slices.Equal(got, want) {
			t.Errorf("%s, %s: it has %q, the code %q", guide, heading, got, want)
		}
	}
}

// TestTheGuideNamesRealCommands takes each `understudy …` of the documents for
// operators word by word through the command tree's own sources.
func TestTheGuideNamesRealCommands(t *testing.T) {
	known := map[string]bool{"COMMAND": true, "version": true, "help": true}
	for _, use := range written(t, "cmd/understudy", `(?:Use: +|operation\(f, |group\()"([a-z-]+)`) {
		known[use] = true
	}
	for _, name := range []string{guide, troubleshooting, "README.md"} {
		for _, m := range regexp.MustCompile("(?m)(?:`|^# |^)understudy ([a-z][a-z-]*|COMMAND)").FindAllStringSubmatch(read(t, name), -1) {
			if !known[m[1]] {
				t.Errorf("%s names the command understudy %s, which there is not", name, m[1])
			}
		}
	}
}

// written are the words that a pattern finds in the sources of a package.
func written(t *testing.T, dir, pattern string) (found []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(read(t, rel), -1) {
			found = append(found, m[1])
		}
	}
	if len(found) == 0 {
		t.Fatalf("%s: nothing looks like %s", dir, pattern)
	}
	return found
}

// constants are the values of a file's string constants of some types.
func constants(t *testing.T, file string, types ...string) (found []string) {
	t.Helper()
	each(t, file, func(_ string, v *ast.ValueSpec) {
		if kind, ok := v.Type.(*ast.Ident); ok && slices.Contains(types, kind.Name) {
			found = append(found, values(t, v)...)
		}
	})
	return found
}

// group are the values of the block of constants below a comment.
func group(t *testing.T, file, comment string) (found []string) {
	t.Helper()
	each(t, file, func(doc string, v *ast.ValueSpec) {
		if strings.TrimSpace(doc) == comment {
			found = append(found, values(t, v)...)
		}
	})
	return found
}

func each(t *testing.T, file string, do func(doc string, v *ast.ValueSpec)) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.CONST {
			for _, s := range g.Specs {
				do(g.Doc.Text(), s.(*ast.ValueSpec))
			}
		}
	}
}

func values(t *testing.T, v *ast.ValueSpec) (found []string) {
	t.Helper()
	for _, e := range v.Values {
		text, err := strconv.Unquote(e.(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(fmt.Errorf("%s: %w", v.Names[0].Name, err))
		}
		found = append(found, text)
	}
	return found
}

// TestTheProtocolListsTheRoutes compares PROTOCOL.md's routes with those of the
// contract, which package status holds its handlers against.
func TestTheProtocolListsTheRoutes(t *testing.T) {
	var contract []string
	route := ""
	for line := range strings.Lines(read(t, "status/openapi.yaml")) {
		if m := regexp.MustCompile(`^  (/\S*):`).FindStringSubmatch(line); m != nil {
			route = m[1]
		} else if m := regexp.MustCompile(`^    (get|post|put|delete):`).FindStringSubmatch(line); m != nil && route != "" {
			contract = append(contract, strings.ToUpper(m[1])+" "+route)
		}
	}
	var told []string
	for _, m := range regexp.MustCompile("`((?:GET|POST|PUT|DELETE) /[^` ?]*)`").FindAllStringSubmatch(read(t, "PROTOCOL.md"), -1) {
		told = append(told, m[1])
	}
	if len(contract) < 40 {
		t.Errorf("the contract has %d routes: is the pattern still right?", len(contract))
	}
	for _, r := range contract {
		if !slices.Contains(told, r) {
			t.Errorf("PROTOCOL.md does not list %s", r)
		}
	}
	for _, r := range told {
		if !slices.Contains(contract, r) {
			t.Errorf("PROTOCOL.md lists %s, the contract does not", r)
		}
	}
}

// TestTheReadmeNamesEveryKey compares the README's table of the configuration
// with the keys that a file may have.
func TestTheReadmeNamesEveryKey(t *testing.T) {
	_, section, ok := strings.Cut(read(t, "README.md"), "\n### The configuration in brief\n")
	if !ok {
		t.Fatal("README.md has no section The configuration in brief")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for _, key := range written(t, "config", "toml:\"([a-z_]+)\"") {
		if !regexp.MustCompile("[`\\[.]" + key + "[`\\]]").MatchString(section) {
			t.Errorf("README.md does not name the key %s", key)
		}
	}
}
