package main

import (
	_ "embed"
	"regexp"
	"slices"
	"strings"
	"testing"
)

//go:embed README.md
var readme string

// TestModelHolds checks the smallest bounds, and that one of the rules is
// missed when it is left out. make model checks all of it.
func TestModelHolds(t *testing.T) {
	var table strings.Builder
	err := run(t.Context(), &table, quick(), false, false)
	t.Log("\n" + table.String())
	if err != nil {
		t.Error(err)
	}
}

// TestTableNamesEveryTransition compares the model's transitions with those
// that README.md gives the code of. That the code is there is checked with the
// other documents, in package integration.
func TestTableNamesEveryTransition(t *testing.T) {
	_, table, ok := strings.Cut(readme, "| Transition | Code |\n|---|---|\n")
	if !ok {
		t.Fatal("README.md has no table of transitions")
	}
	var rows []string
	for line := range strings.Lines(table) {
		m := regexp.MustCompile("^\\| ([A-Z_]+) \\| .*`[a-z]+\\.[A-Za-z.]+`.* \\|\n?$").FindStringSubmatch(line)
		if m == nil {
			t.Errorf("this row names no transition, or no code: %s", line)
			continue
		}
		rows = append(rows, m[1])
	}
	if own := transitions(source); !slices.Equal(rows, own) {
		for _, name := range own {
			if !slices.Contains(rows, name) {
				t.Errorf("%s is in the model, not in the table", name)
			}
		}
		for _, name := range rows {
			if !slices.Contains(own, name) {
				t.Errorf("%s is in the table, not in the model", name)
			}
		}
		if !t.Failed() {
			t.Error("the table has another order than the model, or a transition twice")
		}
	}
}

// TestEveryRuleLeftOutIsTried compares the model's list of rules with the
// searches.
func TestEveryRuleLeftOutIsTried(t *testing.T) {
	var tried []string
	for _, b := range breaches {
		tried = append(tried, b.broken)
	}
	_, list, _ := strings.Cut(source, "/* The rules that can be left out. */\n")
	list, _, _ = strings.Cut(list, "#ifndef")
	var rules []string
	for _, m := range regexp.MustCompile(`#define ([A-Z_]+)\s`).FindAllStringSubmatch(list, -1) {
		rules = append(rules, m[1])
	}
	if len(rules) < 20 || !slices.Equal(tried, rules) {
		t.Errorf("the model can leave out %v, tried are %v", rules, tried)
	}
}

// TestUnfinishedSearchIsNoResult reads reports that must not pass for clean.
func TestUnfinishedSearchIsNoResult(t *testing.T) {
	const done = "State-vector 204 byte, depth reached 97, errors: 0\n     1000 states, stored\n"
	if f, err := parsePan(done); err != nil || f.states != 1000 || f.depth != 97 || f.violated != "" {
		t.Errorf("a clean report came to %+v, %v", f, err)
	}
	found, err := parsePan("pan:1: assertion violated (x>0) (at depth 9)\nWarning: Search not completed\n" +
		strings.Replace(done, "errors: 0", "errors: 1", 1))
	if err != nil || found.violated != "(x>0)" {
		t.Errorf("a violation came to %+v, %v", found, err)
	}
	for name, said := range map[string]string{
		"nothing":       "",
		"too deep":      "error: max search depth too small\n" + done,
		"out of memory": "pan: out of memory\n" + done,
		"stopped":       "Warning: Search not completed\n" + done,
		"unnamed error": strings.Replace(done, "errors: 0", "errors: 1", 1),
		"no transition": "did 1 7\n" + done,
	} {
		if f, err := parsePan(said); err == nil {
			t.Errorf("%s: passed as %+v", name, f)
		}
	}
}
