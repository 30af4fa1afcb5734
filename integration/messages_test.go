package integration

// What our programs can say, read from their sources:
//
//	package → its files → calls that make an error, log a warning or refuse a
//	request → the text, with <> for each variable part → where it is said
//
// Text that is put together of constants counts as a whole. A text of nothing
// but variable parts ("%s: %w") says nothing of its own and does not count.

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// said maps a text to the places that say it.
type said map[string][]string

func (s said) add(text, where string) { s[text] = append(s[text], where) }

// speaker is one package that is read.
type speaker struct {
	dir    string
	errors bool // all errors that it makes are read, not only its exported ones
}

// speakers are the packages whose messages reach a person: in a log, as an
// exported error, and, with errors, from a command, the API, a report or a
// guest's problem. The others' errors say which byte of a format, or which call of
// the kernel or of QEMU, it was: they stand behind the colon of one that counts.
var speakers = []speaker{
	{"config", true}, {"cmd/understudy", true}, {"cmd/understudyd", true}, {"cmd/daemon", true}, {"cmd/sdnotify", true},
	{"host", true}, {"status", true}, {"fencing", true}, {"strike", true}, {"drill", true}, {"ownership", true},
	{"backup", true}, {"bubble", true}, {"bubble/isolate", true}, {"checkpoint", true}, {"clock", false}, {"disk", true},
	{"disk/store", true}, {"disk/blkif", false}, {"disk/vhost", false}, {"egress", true}, {"egress/netif", false}, {"epoch", false}, {"events", true}, {"exclusion", false},
	{"failover", true}, {"failover/leases", false}, {"hypervisor", false}, {"hypervisor/qemu", true},
	{"hypervisor/qemu/dirty", false}, {"hypervisor/qemu/qmp", false}, {"hypervisor/qemu/stream", false},
	{"hypervisor/sim", false}, {"hypervisor/xen", false}, {"hypervisor/xen/stream", false}, {"hypervisor/xen/xenctl", false},
	{"hypervisor/xen/xenbus", false}, {"hypervisor/xen/xenstore", false}, {"primary", true}, {"protocol", false}, {"rebuild", true}, {"top", false},
	{"status/dashboard", false}, {"status/samples", false}, {"netspace", true}, {"transport", true}, {"transport/pki", true}, {"cmd/manual", false},
}

// silent are packages of the binaries that say nothing to an operator: the
// demo's and the simulation's own worlds, and points that only tests stop at.
var silent = []string{"crashpoint", "demo", "demo/world", "filestamp", "guest", "guest/client", "guest/diskspeed", "guest/diskwork", "guest/image",
	"guest/workload", "lab", "simulation"}

// messages reads every speaker.
func messages(t *testing.T) said {
	t.Helper()
	all := said{}
	for _, s := range speakers {
		r := &reading{speaker: s, set: token.NewFileSet(), texts: map[string]string{}, all: all}
		r.read(t)
		for _, where := range r.unseen {
			t.Errorf("%s: the text of a log line is put together elsewhere: write it there, with what varies as attributes", where)
		}
	}
	return all
}

// reading is one package, while it is read.
type reading struct {
	speaker
	set   *token.FileSet
	texts map[string]string // its string constants
	all   said

	unseen []string // log lines whose text is not to be seen
}

func (r *reading) read(t *testing.T) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, r.dir, "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatalf("package %s has no files: %v", r.dir, err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(r.set, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		r.constants(f)
	}
	for _, f := range files {
		r.listen(f)
	}
}

// listen reads one file; the package's constants are known by then.
func (r *reading) listen(f *ast.File) {
	r.sentinels(f)
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			r.call(n)
		case *ast.CompositeLit:
			r.literal(n)
		case *ast.FuncDecl:
			if r.dir == "config" && strings.HasPrefix(n.Name.Name, "check") {
				r.returned(n)
			}
		}
		return true
	})
}

// constants notes what the package's string constants are.
func (r *reading) constants(f *ast.File) {
	ast.Inspect(f, func(n ast.Node) bool {
		d, ok := n.(*ast.GenDecl)
		if !ok || d.Tok != token.CONST {
			return true
		}
		for _, s := range d.Specs {
			v := s.(*ast.ValueSpec)
			for i, name := range v.Names {
				if i < len(v.Values) {
					if text, ok := r.text(v.Values[i]); ok {
						r.texts[name.Name] = text
					}
				}
			}
		}
		return true
	})
}

// sentinels reads the package's exported errors.
func (r *reading) sentinels(f *ast.File) {
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			for i, name := range v.Names {
				if !strings.HasPrefix(name.Name, "Err") || i >= len(v.Values) {
					continue
				}
				if call, ok := v.Values[i].(*ast.CallExpr); ok && len(call.Args) > 0 && !r.errors {
					r.note(call.Args[0], call)
				}
			}
		}
	}
}

// call reads a call that says something.
func (r *reading) call(c *ast.CallExpr) {
	name := called(c)
	switch {
	case (name == "Warn" || name == "Error") && len(c.Args) > 0:
		if _, ok := r.text(c.Args[0]); !ok {
			r.passes(c)
		}
		r.note(c.Args[0], c)
	case (name == "fmt.Errorf" || name == "errors.New") && r.errors:
		r.note(c.Args[0], c)
	case name == "refuse" && r.dir == "ownership": // a command that the log does not take
		r.note(c.Args[0], c)
	case name == "refuse" && r.dir == "status" && len(c.Args) == 3: // an answer of the API
		r.note(c.Args[2], c)
		r.status(c.Args[1], c)
	case name == "abandonLeave": // a warning of the primary's core
		r.note(c.Args[0], c)
	case name == "bad" && r.errors && len(c.Args) > 0, name == "refused" && r.dir == "failover":
		r.note(c.Args[0], c)
	case name == "add" && r.dir == "config" && len(c.Args) > 1: // what is wrong with a configuration
		r.note(c.Args[1], c)
	}
}

// literal reads a composite literal that says something.
func (r *reading) literal(c *ast.CompositeLit) {
	kind := ""
	switch t := c.Type.(type) {
	case *ast.Ident:
		kind = t.Name
	case *ast.SelectorExpr:
		kind = t.Sel.Name
	}
	field := map[string]string{"Warn": "Text", "denial": "why", "Refusal": "What", "refusal": "text", "Problem": "Text", "answer": "Text"}[kind]
	for i, e := range c.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			if key, ok := kv.Key.(*ast.Ident); ok && key.Name == field {
				r.note(kv.Value, c)
			} else if ok && kind == "denial" && key.Name == "code" {
				r.status(kv.Value, c)
			}
		} else if field != "" && (i == 0) != (kind == "Problem") {
			r.note(e, c)
		}
	}
}

// returned reads the words of a function that says what is wrong with a value.
func (r *reading) returned(f *ast.FuncDecl) {
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.ReturnStmt); ok && len(s.Results) == 1 {
			r.note(s.Results[0], s)
		}
		return true
	})
}

// passed are the places that log what somebody else has put into words: the
// shells of the two cores, whose warnings are read where the cores make them.
var passed = []string{"backup/backup.go", "primary/primary.go"}

// passes notes a log line whose text is not to be seen where it is written.
func (r *reading) passes(c *ast.CallExpr) {
	where := strings.TrimPrefix(r.set.Position(c.Pos()).String(), root+"/")
	if file, _, _ := strings.Cut(where, ":"); !slices.Contains(passed, file) {
		r.unseen = append(r.unseen, where)
	}
}

// status notes the HTTP status of a refusal.
func (r *reading) status(e ast.Expr, at ast.Node) {
	if s, ok := e.(*ast.SelectorExpr); ok && strings.HasPrefix(s.Sel.Name, "Status") {
		r.add(httpStatus(s.Sel.Name), at)
	}
}

// note notes a text that is said.
func (r *reading) note(e ast.Expr, at ast.Node) {
	text, ok := r.text(e)
	text = plain(verbs.ReplaceAllStringFunc(text, verb))
	if ok && strings.ContainsFunc(strings.ReplaceAll(text, hole, ""), unicode.IsLetter) {
		r.add(text, at)
	}
}

// httpStatus is "HTTP 404" for StatusNotFound.
func httpStatus(name string) string {
	for code := 400; code < 600; code++ {
		if name == "Status"+strings.ReplaceAll(http.StatusText(code), " ", "") {
			return "HTTP " + strconv.Itoa(code)
		}
	}
	return name
}

func (r *reading) add(text string, at ast.Node) {
	r.all.add(text, strings.TrimPrefix(r.set.Position(at.Pos()).String(), root+"/"))
}

// hole stands for a variable part of a text.
const hole = "<>"

// verbs are the places of a format's variable parts, and a percent sign's own.
var verbs = regexp.MustCompile(`%%|%[-+# 0]*[0-9*]*(\.[0-9*]+)?(\[[0-9]+\])?[a-zA-Z]`)

// verb is what is printed for one of them.
func verb(v string) string {
	if v == "%%" {
		return "%"
	}
	return hole
}

// text puts a string together; ok is false if nothing of it is constant.
func (r *reading) text(e ast.Expr) (text string, ok bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return hole, false
		}
		s, err := strconv.Unquote(e.Value)
		return s, err == nil
	case *ast.ParenExpr:
		return r.text(e.X)
	case *ast.Ident:
		s, ok := r.texts[e.Name]
		if !ok {
			return hole, false
		}
		return s, true
	case *ast.BinaryExpr:
		if e.Op != token.ADD {
			return hole, false
		}
		x, okX := r.text(e.X)
		y, okY := r.text(e.Y)
		return x + y, okX || okY
	case *ast.CallExpr:
		if called(e) == "fmt.Sprintf" {
			return r.text(e.Args[0])
		}
	}
	return hole, false
}

// called is the name of what is called: a function, a method, or a function of
// fmt and errors with its package.
func called(c *ast.CallExpr) string {
	switch f := c.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if p, ok := f.X.(*ast.Ident); ok && (p.Name == "fmt" || p.Name == "errors") {
			return p.Name + "." + f.Sel.Name
		}
		return f.Sel.Name
	}
	return ""
}

// holes are a message's variable parts as a document writes them.
var holes = regexp.MustCompile(`<[^<>]*>`)

// plain brings a message, of the sources or of a document, into the form in
// which they are compared: <> for what varies, without quotes around it, and
// single spaces.
func plain(text string) string {
	text = holes.ReplaceAllString(text, hole)
	text = strings.NewReplacer(`"<>"`, hole, "`", "'", "|", "/").Replace(text)
	return strings.Join(strings.Fields(text), " ")
}
