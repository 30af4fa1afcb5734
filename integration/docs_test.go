package integration

// The documents name packages, symbols, tests, files and make targets in
// backticks. What they name must exist, or they lead their reader astray:
//
//	document → citations (`package.Symbol`, `path/file.go`, `make target`)
//	         → declared in the sources? there in the tree? in the Makefile?

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents are checked; root is the module's directory, seen from here.
var documents = []string{"README.md", "ARCHITECTURE.md", "PROTOCOL.md", "model/README.md", guide, troubleshooting}

const root = ".."

// TestDocumentsCiteWhatExists checks every symbol and every file.
func TestDocumentsCiteWhatExists(t *testing.T) {
	declared := declarations(t)
	for _, name := range documents {
		text := read(t, name)
		cited := symbolsIn(text)
		if len(cited) == 0 && (name == "ARCHITECTURE.md" || name == "PROTOCOL.md") {
			t.Errorf("%s cites no symbol: is the pattern still right?", name)
		}
		for _, c := range cited {
			if complaint := declared.missing(c); complaint != "" {
				t.Errorf("%s: `%s`: %s", name, c, complaint)
			}
		}
		for _, f := range filesIn(text) {
			if _, err := os.Stat(filepath.Join(root, f)); err != nil {
				t.Errorf("%s: `%s`: there is no such file", name, f)
			}
		}
	}
}

// TestDocumentsNameRealTargets checks that what a reader is told to make can be
// made.
func TestDocumentsNameRealTargets(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z-]*):`).FindAllStringSubmatch(read(t, "Makefile"), -1) {
		targets[m[1]] = true
	}
	for _, name := range documents {
		if name == troubleshooting {
			continue // messages begin with "make", too
		}
		found := regexp.MustCompile("(?m)(?:`|^\\s*|&& )make ([a-z][a-z-]*)").FindAllStringSubmatch(read(t, name), -1)
		if name == "README.md" && len(found) == 0 {
			t.Errorf("%s names no make target", name)
		}
		for _, m := range found {
			if !targets[m[1]] {
				t.Errorf("%s says `make %s`, the Makefile has no such target", name, m[1])
			}
		}
	}
}

// TestArchitectureDrawsTheArrowsThatAreChecked compares the document's table of
// packages with the one that TestImportsPointDown goes by.
func TestArchitectureDrawsTheArrowsThatAreChecked(t *testing.T) {
	_, section, ok := strings.Cut(read(t, "ARCHITECTURE.md"), "\n## Packages and arrows\n")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no section Packages and arrows")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	drawn := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]*) \\|").FindAllStringSubmatch(section, -1) {
		var to []string
		for _, p := range strings.Split(m[2], ",") {
			if p = strings.Trim(p, " `"); p != "–" {
				to = append(to, p)
			}
		}
		drawn[m[1]] = to
	}
	for name, want := range layers {
		got, ok := drawn[name]
		slices.Sort(got)
		want = slices.Sorted(slices.Values(want))
		switch {
		case !ok:
			t.Errorf("ARCHITECTURE.md has no row for package %s", name)
		case !slices.Equal(got, want):
			t.Errorf("ARCHITECTURE.md lets %s import %v, the test %v", name, got, want)
		}
	}
	for name := range drawn {
		if _, ok := layers[name]; !ok {
			t.Errorf("ARCHITECTURE.md has a row for package %s, the layers have none", name)
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// names maps a package, by its path and by the last element of it, to what it
// declares: "Symbol", "Type.Method", "Type.field". Tests count.
type names map[string]map[string]bool

// missing says what is wrong with a citation, "" if nothing is.
func (n names) missing(citation string) string {
	pkg, symbol, _ := strings.Cut(citation, ".")
	of, ok := n[pkg]
	switch {
	case !ok:
		return fmt.Sprintf("there is no package %s in this module", pkg)
	case !of[symbol]:
		return fmt.Sprintf("package %s declares no %s", pkg, symbol)
	}
	return ""
}

// declarations parses every Go file of the module.
func declarations(t *testing.T) names {
	t.Helper()
	found := names{}
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); p != root && (strings.HasPrefix(n, ".") || n == "testdata" || p == filepath.Join(root, "build") || p == filepath.Join(root, "bin")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(set, p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(p))
		if err != nil {
			return err
		}
		for _, key := range []string{filepath.ToSlash(dir), path.Base(filepath.ToSlash(dir))} {
			if found[key] == nil {
				found[key] = map[string]bool{}
			}
			for _, d := range f.Decls {
				declare(found[key], d)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// declare notes what one declaration names.
func declare(in map[string]bool, d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		name := d.Name.Name
		if d.Recv != nil && len(d.Recv.List) == 1 {
			name = receiver(d.Recv.List[0].Type) + "." + name
		}
		in[name] = true
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.ValueSpec:
				for _, n := range s.Names {
					in[n.Name] = true
				}
			case *ast.TypeSpec:
				in[s.Name.Name] = true
				for _, f := range members(s.Type) {
					in[s.Name.Name+"."+f] = true
				}
			}
		}
	}
}

// receiver is the name of a method's type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// members are a struct's fields or an interface's methods.
func members(e ast.Expr) (found []string) {
	var list *ast.FieldList
	switch e := e.(type) {
	case *ast.StructType:
		list = e.Fields
	case *ast.InterfaceType:
		list = e.Methods
	default:
		return nil
	}
	for _, f := range list.List {
		for _, n := range f.Names {
			found = append(found, n.Name)
		}
	}
	return found
}

var (
	// spans are the pieces of a document in single backticks.
	spans = regexp.MustCompile("`([^`\n]+)`")
	// symbolForm is a citation: a package, by its last element or its path, and
	// one of its names, or a type and what belongs to it.
	symbolForm = regexp.MustCompile(`^((?:[a-z][a-z0-9]*/)*[a-z][a-z0-9]*)\.([A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)?)$`)
	// fileForm is a file that has to be in the tree.
	fileForm = regexp.MustCompile(`^[a-z0-9._/-]+\.(go|sh|story)$|^(\.ci|scripts)/[a-z]+$`)
)

// notSymbols are the endings of names that look like package.symbol.
var notSymbols = []string{"go", "md", "sh", "pem", "key", "toml", "json", "sock", "story", "raw", "ram", "qcow2", "bolt", "service", "pml", "yaml"}

// symbolsIn returns a document's citations of symbols, each once.
func symbolsIn(text string) (cited []string) {
	for _, m := range spans.FindAllStringSubmatch(text, -1) {
		s := symbolForm.FindStringSubmatch(m[1])
		if s != nil && !slices.Contains(notSymbols, s[2]) && !slices.Contains(cited, m[1]) {
			cited = append(cited, m[1])
		}
	}
	return cited
}

// filesIn returns a document's citations of files.
func filesIn(text string) (cited []string) {
	for _, m := range spans.FindAllStringSubmatch(text, -1) {
		if fileForm.MatchString(m[1]) && strings.Contains(m[1], "/") && !slices.Contains(cited, m[1]) {
			cited = append(cited, m[1])
		}
	}
	return cited
}

// TestAWrongCitationIsNoticed makes sure that the tests above can fail.
func TestAWrongCitationIsNoticed(t *testing.T) {
	declared := declarations(t)
	for _, c := range []string{"epoch.Number", "primary.Core.Step", "primary.Config.Window", "hypervisor/qemu/dirty.Attach", "dirty.Attach",
		"primary.Gate.Seal", "failover.leaseBook.admit", "egress.TestStories"} {
		if symbolForm.FindString(c) == "" || declared.missing(c) != "" {
			t.Errorf("%s is refused: %s", c, declared.missing(c))
		}
	}
	for _, c := range []string{"epoch.Nothing", "primary.Core.Leap", "primary.Nobody.Step", "nowhere.Attach"} {
		if declared.missing(c) == "" {
			t.Errorf("%s is accepted", c)
		}
	}
	if got := symbolsIn("see `epoch.Number`, `core.go`, `ca.pem` and\n`egress.Gate.Seal`, not epoch.Other"); !slices.Equal(got, []string{"epoch.Number", "egress.Gate.Seal"}) {
		t.Errorf("symbols found: %q", got)
	}
	if got := filesIn("`egress/gate.go`, `gate.go`, `.ci/run`"); !slices.Equal(got, []string{"egress/gate.go", ".ci/run"}) {
		t.Errorf("files found: %q", got)
	}
}
