// Package manual makes man pages from a command tree, so that what they say is
// what the program does.
//
//	cobra commands, About → Write → one page of man(7) for each command
//
// A command's Long text keeps its shape: lines that are indented stand as they
// are, others are filled.
package manual

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ExitKey is the annotation of a command that has exit statuses of its own: one
// a line, like "3 a guest is not protected".
const ExitKey = "understudy exit statuses"

// Exit is an exit status and what it means.
type Exit struct {
	Status  string
	Meaning string
}

// About is what the pages say that is in no command.
type About struct {
	Section int // of the manual, 1 to 9
	Date    time.Time
	Version string
	// Exits are those of every command, Files what a reader may look for, name
	// and meaning. Also are other pages, like "understudyd(8)".
	Exits []Exit
	Files [][2]string
	Also  []string
}

// Write writes a page for root and for each command beneath it that is not
// hidden into dir, which it makes, and returns their names.
func Write(dir string, root *cobra.Command, about About) (names []string, err error) {
	if about.Section < 1 || about.Section > 9 {
		return nil, fmt.Errorf("section %d of the manual: want 1 to 9", about.Section)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for _, c := range Commands(root) {
		name := fmt.Sprintf("%s.%d", pageName(c), about.Section)
		if err := renameio.WriteFile(filepath.Join(dir, name), about.Page(c), 0o644); err != nil {
			return names, err
		}
		names = append(names, name)
	}
	return names, nil
}

// Commands lists root and all commands beneath it that a reader may meet.
func Commands(root *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{root}
	for _, c := range root.Commands() {
		if !c.Hidden && c.Name() != "help" {
			all = append(all, Commands(c)...)
		}
	}
	return all
}

// pageName is a page's name without its section: understudy-config-check.
func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// Page is one command's page.
func (a About) Page(c *cobra.Command) []byte {
	p := &page{}
	name := pageName(c)
	a.title(p, name)
	p.macro("SH", "NAME")
	p.text(fmt.Sprintf("%s \\- %s\n", escape(name), escape(strings.TrimSuffix(c.Short, "."))))
	p.macro("SH", "SYNOPSIS")
	p.text("\\fB" + escape(c.CommandPath()) + "\\fR" + a.synopsis(c) + "\n")
	p.macro("SH", "DESCRIPTION")
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	p.prose(long)
	a.commands(p, c)
	p.flags("OPTIONS", c.NonInheritedFlags())
	p.flags("OPTIONS OF EVERY COMMAND", c.InheritedFlags())
	if c.Example != "" {
		p.macro("SH", "EXAMPLES")
		p.asIs(dedent(c.Example))
	}
	a.exits(p, c)
	if len(a.Files) > 0 {
		p.macro("SH", "FILES")
		for _, f := range a.Files {
			p.tagged("\\fI"+escape(f[0])+"\\fR", f[1])
		}
	}
	a.seeAlso(p, c)
	return p.Bytes()
}

// title begins a page. A date is not text: its hyphens stay.
func (a About) title(p *page, name string) {
	p.text(`.TH "` + escape(strings.ToUpper(name)) + `" ` + strconv.Itoa(a.Section) + " " + a.Date.UTC().Format(time.DateOnly) + ` "` + escape(a.Version) + `" understudy` + "\n")
}

// synopsis is what follows a command's name.
func (a About) synopsis(c *cobra.Command) string {
	_, rest, _ := strings.Cut(c.Use, " ")
	out := ""
	for _, word := range strings.Fields(rest) {
		out += " \\fI" + escape(word) + "\\fR"
	}
	if c.HasAvailableSubCommands() {
		out += " \\fICOMMAND\\fR"
	}
	if c.HasAvailableFlags() || c.HasAvailableInheritedFlags() {
		out += " [\\fIoptions\\fR]"
	}
	return out
}

func (a About) commands(p *page, c *cobra.Command) {
	if !c.HasAvailableSubCommands() {
		return
	}
	p.macro("SH", "COMMANDS")
	for _, sub := range Commands(c)[1:] {
		if sub.Parent() == c {
			p.tagged(a.reference(sub), strings.TrimSuffix(sub.Short, ".")+".")
		}
	}
}

// reference names a command's page.
func (a About) reference(c *cobra.Command) string {
	return fmt.Sprintf("\\fB%s\\fR(%d)", escape(pageName(c)), a.Section)
}

func (a About) exits(p *page, c *cobra.Command) {
	all := slices.Clone(a.Exits)
	for line := range strings.Lines(c.Annotations[ExitKey]) {
		if status, meaning, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			all = append(all, Exit{status, meaning})
		}
	}
	if len(all) == 0 {
		return
	}
	slices.SortStableFunc(all, func(x, y Exit) int { return strings.Compare(x.Status, y.Status) })
	p.macro("SH", "EXIT STATUS")
	for _, e := range all {
		p.tagged("\\fB"+escape(e.Status)+"\\fR", e.Meaning)
	}
}

func (a About) seeAlso(p *page, c *cobra.Command) {
	var also []string
	if c.HasParent() {
		also = append(also, a.reference(c.Parent()))
	}
	for _, s := range a.Also {
		name, section, ok := strings.Cut(s, "(")
		if ok && name != pageName(c) && (!c.HasParent() || name != pageName(c.Parent())) {
			also = append(also, "\\fB"+escape(name)+"\\fR("+section)
		}
	}
	if len(also) > 0 {
		p.macro("SH", "SEE ALSO")
		p.text(strings.Join(also, ",\n") + "\n")
	}
}

// File is a page for a file: a few words, and an example that stands as it is.
func (a About) File(name, short, long, example string) []byte {
	p := &page{}
	a.title(p, name)
	p.macro("SH", "NAME")
	p.text(fmt.Sprintf("%s \\- %s\n", escape(name), escape(short)))
	p.macro("SH", "DESCRIPTION")
	p.prose(long)
	p.macro("SH", "EXAMPLES")
	p.asIs(example)
	if len(a.Also) > 0 {
		p.macro("SH", "SEE ALSO")
		var also []string
		for _, s := range a.Also {
			if n, section, ok := strings.Cut(s, "("); ok {
				also = append(also, "\\fB"+escape(n)+"\\fR("+section)
			}
		}
		p.text(strings.Join(also, ",\n") + "\n")
	}
	return p.Bytes()
}

// page is text in man(7)'s language.
type page struct{ bytes.Buffer }

// macro writes a request with its arguments.
func (p *page) macro(name string, args ...string) {
	p.WriteString("." + name)
	for _, a := range args {
		p.WriteString(` "` + strings.ReplaceAll(escape(a), `"`, `\(dq`) + `"`)
	}
	p.WriteByte('\n')
}

// text writes what is in man(7)'s language already.
func (p *page) text(s string) { p.WriteString(s) }

// tagged writes a paragraph with a tag before it.
func (p *page) tagged(tag, text string) {
	p.WriteString(".TP\n" + tag + "\n")
	p.line(text)
}

// line writes one line of text that is no request, whatever it begins with.
func (p *page) line(s string) {
	s = escape(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	p.WriteString(s + "\n")
}

// prose writes paragraphs; indented lines stand as they are.
func (p *page) prose(s string) {
	var kept []string
	first, gap := true, false
	flush := func() {
		if len(kept) > 0 {
			p.asIs(dedent(strings.Join(kept, "\n")))
			kept, gap = nil, false
			first = false
		}
	}
	for _, l := range strings.Split(strings.TrimSpace(s), "\n") {
		switch {
		case strings.TrimSpace(l) == "":
			gap = true
			if len(kept) > 0 {
				kept = append(kept, "")
			}
		case strings.HasPrefix(l, " ") || strings.HasPrefix(l, "\t"):
			kept = append(kept, l)
		default:
			flushed := len(kept) > 0
			flush()
			if (gap || flushed) && !first {
				p.WriteString(".PP\n")
			}
			gap, first = false, false
			p.line(strings.TrimSpace(l))
		}
	}
	flush()
}

// asIs writes lines that are not filled, a little to the right.
func (p *page) asIs(s string) {
	lines := bytes.Split(bytes.TrimSuffix(p.Bytes(), []byte("\n")), []byte("\n"))
	if !bytes.HasPrefix(lines[len(lines)-1], []byte(".SH")) {
		p.WriteString(".PP\n")
	}
	p.WriteString(".RS 4\n.EX\n")
	for _, l := range strings.Split(strings.TrimRight(s, " \n"), "\n") {
		p.line(strings.TrimRight(l, " "))
	}
	p.WriteString(".EE\n.RE\n")
}

func (p *page) flags(title string, set *pflag.FlagSet) {
	if !set.HasAvailableFlags() {
		return
	}
	p.macro("SH", title)
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		tag := `\fB` + escape("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			tag = `\fB` + escape("-"+f.Shorthand) + `\fR, ` + tag
		}
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			tag += `=\fI` + escape(value) + `\fR`
		}
		if isSet(f) && !strings.Contains(usage, "(default") {
			usage += " (default: " + f.DefValue + ")"
		}
		p.tagged(tag, usage)
	})
}

// isSet tells whether a flag's default is worth a word.
func isSet(f *pflag.Flag) bool {
	return !slices.Contains([]string{"", "false", "0", "0s", "[]"}, f.DefValue)
}

// special are the characters that man(7) would take for something else.
var special = strings.NewReplacer(`\`, `\e`, "-", `\-`, "→", `\(->`, "…", "...", "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`)

func escape(s string) string { return special.Replace(s) }

var indent = regexp.MustCompile(`^[ \t]*`)

// dedent takes away what all lines are indented by.
func dedent(s string) string {
	lines := strings.Split(strings.Trim(s, "\n"), "\n")
	least := -1
	for _, l := range lines {
		if strings.TrimSpace(l) == "" {
			continue
		}
		if n := len(indent.FindString(l)); least < 0 || n < least {
			least = n
		}
	}
	for i, l := range lines {
		lines[i] = l[min(len(l), max(0, least)):]
	}
	return strings.Join(lines, "\n")
}

// Check returns what a reader would miss in a command tree: each command needs
// a short and a long text, each flag a usage, and each command that does
// something an example.
func Check(root *cobra.Command) error {
	var missing []error
	for _, c := range Commands(root) {
		path := c.CommandPath()
		if c.Short == "" {
			missing = append(missing, fmt.Errorf("%s has no Short", path))
		}
		if c.Long == "" {
			missing = append(missing, fmt.Errorf("%s has no Long", path))
		}
		if c.Example == "" && c.Runnable() && !c.HasAvailableSubCommands() {
			missing = append(missing, fmt.Errorf("%s has no Example", path))
		}
		c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				missing = append(missing, fmt.Errorf("%s --%s has no usage", path, f.Name))
			}
		})
	}
	return errors.Join(missing...)
}
