package crashpoint_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy/crashpoint"
)

// TestEveryPointIsNamedOnceAndUsed reads the sources: each constant stands in
// All, and each is somewhere in the engine the argument of an At.
func TestEveryPointIsNamedOnceAndUsed(t *testing.T) {
	constants := map[string]crashpoint.Point{} // by name
	used := map[string]int{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "build" || d.Name() == "integration" || strings.HasPrefix(d.Name(), ".") && d.Name() != "..") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				kind, _ := n.Type.(*ast.Ident)
				if file.Name.Name == "crashpoint" && kind != nil && kind.Name == "Point" {
					text, _ := strconv.Unquote(n.Values[0].(*ast.BasicLit).Value)
					constants[n.Names[0].Name] = crashpoint.Point(text)
				}
			case *ast.SelectorExpr:
				if p, ok := n.X.(*ast.Ident); ok && p.Name == "crashpoint" && file.Name.Name != "crashpoint" {
					used[n.Sel.Name]++
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	all := crashpoint.All()
	if len(constants) != len(all) {
		t.Errorf("%d constants, %d points in All", len(constants), len(all))
	}
	for name, p := range constants {
		if n := slices.Index(all, p); n < 0 || slices.Contains(all[n+1:], p) {
			t.Errorf("%s (%q) is to be in All once", name, p)
		}
		if used[name] == 0 {
			t.Errorf("%s (%q) is nowhere in the engine", name, p)
		}
	}
}
