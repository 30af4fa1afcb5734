package main

// This file holds the model in step with the code: a command of the ownership
// log, or a place that makes one, that the model knows nothing of is an error.
//
//	ownership.go: constants of type Kind ──> README.md's table of commands
//	                                     ──> the model proposes it, decides on it, applies it
//	primary, backup, host …: who makes one ──> README.md's table of transitions

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// kinds returns the commands that the ownership log knows, in its order.
func kinds(t *testing.T) (names []string) {
	file, err := parser.ParseFile(token.NewFileSet(), "../ownership/ownership.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			if id, ok := v.Type.(*ast.Ident); ok && id.Name == "Kind" {
				for _, n := range v.Names {
					names = append(names, n.Name)
				}
			}
		}
	}
	if len(names) < 10 {
		t.Fatalf("found only the commands %v", names)
	}
	return names
}

// tableAfter returns the cells of the table in README.md that begins with head.
func tableAfter(t *testing.T, head string) (rows [][]string) {
	_, table, ok := strings.Cut(readme, head+"\n")
	if !ok {
		t.Fatalf("README.md has no table %q", head)
	}
	_, table, _ = strings.Cut(table, "\n") // the line below the head
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "| ") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}

// TestEveryCommandIsInTheModel compares the commands of the ownership log with
// those of the model, by the table that names them.
func TestEveryCommandIsInTheModel(t *testing.T) {
	_, list, _ := strings.Cut(source, "/* commands */\n")
	list, _, _ = strings.Cut(list, "\n\n")
	var own []string
	for _, m := range regexp.MustCompile(`(?m)^#define ([A-Z]+)\s+\d+`).FindAllStringSubmatch(list, -1) {
		own = append(own, m[1])
	}
	var listed, modelled []string
	for _, row := range tableAfter(t, "| Command | In the model | Why |") {
		listed = append(listed, strings.TrimSuffix(strings.TrimPrefix(row[0], "`ownership."), "`"))
		switch {
		case row[1] == "–" && row[2] == "":
			t.Errorf("README.md does not say why %s is left out", row[0])
		case row[1] != "–":
			modelled = append(modelled, row[1])
		}
	}
	if want := kinds(t); !slices.Equal(listed, want) {
		t.Errorf("the log has the commands %v, README.md lists %v", want, listed)
	}
	if !slices.Equal(modelled, own) {
		t.Errorf("the model has the commands %v, README.md lists %v", own, modelled)
	}
	_, may, _ := strings.Cut(source, "#define MAYAPPLY(s)")
	may, apply, _ := strings.Cut(may, "inline apply(s)")
	may, _, _ = strings.Cut(may, "\n\n")
	apply, _, _ = strings.Cut(apply, "\n}\n")
	switches := "PAUSE UNPROTECT PROTECT" // by one name, SWITCHES_TO
	for _, name := range own {
		in := regexp.MustCompile(`pk\[s\] == ` + name + `\b`)
		bySwitch := slices.Contains(strings.Fields(switches), name)
		if !in.MatchString(may) && !bySwitch {
			t.Errorf("the model does not say when %s may be applied", name)
		}
		if !in.MatchString(apply) && !bySwitch {
			t.Errorf("the model does not say what %s changes", name)
		}
		if !regexp.MustCompile(`\b(propose|ask)\(me, ` + name + `\b`).MatchString(source) {
			t.Errorf("nobody in the model proposes %s", name)
		}
	}
	for _, part := range []string{may, apply} {
		if !strings.Contains(part, "SWITCHES_TO(s)") {
			t.Error("the model does not decide on the switch of protection, or does not apply it")
		}
	}
}

// TestWhoProposesIsInTheTable finds every function outside of the simulation
// that makes a command, and demands a transition of the model that stands
// for it and names the command, or the reason for leaving it out.
func TestWhoProposesIsInTheTable(t *testing.T) {
	known := map[string]bool{"SwitchTo": true} // what makes one of three
	for _, k := range kinds(t) {
		known[k] = true
	}
	rows := append(tableAfter(t, "| Transition | Code |"), tableAfter(t, "| Command | In the model | Why |")...)
	found := 0
	for _, dir := range []string{"primary", "backup", "host", "failover", "cmd/daemon"} {
		for name, file := range parseDir(t, filepath.Join("..", dir)) {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			for _, d := range file.Decls {
				f, ok := d.(*ast.FuncDecl)
				if !ok || f.Body == nil {
					continue
				}
				maker := "`" + filepath.Base(dir) + "." + receiver(f) + f.Name.Name + "`"
				for _, kind := range makes(f.Body, known) {
					found++
					if !slices.ContainsFunc(rows, func(row []string) bool {
						said := strings.Join(row, " ")
						return strings.Contains(said, maker) && strings.Contains(said, "`ownership."+kind+"`")
					}) {
						t.Errorf("%s makes the command %s: README.md names no transition for that, nor why it is left out", maker, kind)
					}
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("found only %d places that make a command", found)
	}
}

func parseDir(t *testing.T, dir string) map[string]*ast.File {
	files := map[string]*ast.File{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != dir:
			return fs.SkipDir
		case !d.IsDir() && strings.HasSuffix(path, ".go"):
			files[path], err = parser.ParseFile(token.NewFileSet(), path, nil, 0)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	e := f.Recv.List[0].Type
	if p, ok := e.(*ast.StarExpr); ok {
		e = p.X
	}
	return e.(*ast.Ident).Name + "."
}

// makes lists the commands that a body names other than to compare with them.
func makes(body *ast.BlockStmt, known map[string]bool) (kinds []string) {
	compared := map[ast.Expr]bool{}
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			if n.Op == token.EQL || n.Op == token.NEQ {
				compared[n.X], compared[n.Y] = true, true
			}
		case *ast.CaseClause:
			for _, e := range n.List {
				compared[e] = true
			}
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if ok && x.Name == "ownership" && known[n.Sel.Name] && !compared[n] && !slices.Contains(kinds, n.Sel.Name) {
				kinds = append(kinds, n.Sel.Name)
			}
		}
		return true
	})
	return kinds
}
