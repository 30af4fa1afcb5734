package simulation

import (
	"fmt"
	"strings"
	"testing"
)

// TestTeeth breaks one rule at a time and demands that the oracle notices.
func TestTeeth(t *testing.T) {
	const most = 1000
	teeth, err := Teeth(t.Context(), most, 0)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	if err := PrintTeeth(&text, teeth); err != nil {
		t.Fatal(err)
	}
	t.Logf("a broken rule is noticed after so many seeds:\n%s", &text)
	for _, b := range teeth {
		if b.Seeds == 0 {
			t.Errorf("%s: nobody noticed within %d seeds", b.Breach, most)
		}
	}
}

// TestEveryRuleHasATooth: each guarantee, and each rule of the design that
// concerns the cores, is broken by something, or it is said where it is.
func TestEveryRuleHasATooth(t *testing.T) {
	has := map[string]bool{}
	note := func(rules string) {
		for _, r := range strings.Split(rules, ", ") {
			has[r] = true
		}
	}
	for b := honest + 1; b < breaches; b++ {
		if breachTable[b].rules == "" || breachTable[b].name == "" {
			t.Errorf("breach %d is not described", b)
		}
		note(breachTable[b].rules)
	}
	for n := range 8 {
		if g := fmt.Sprintf("G%d", n+1); !has[g] {
			t.Errorf("nothing breaks guarantee %s", g)
		}
	}
	for n := range 5 {
		if h := fmt.Sprintf("H%d", n+1); !has[h] {
			t.Errorf("nothing breaks rule %s of the handover", h)
		}
	}
	for _, e := range elsewhere {
		note(e.rules)
	}
	for n := range 20 {
		if r := fmt.Sprint(n + 1); !has[r] {
			t.Errorf("nothing breaks rule %s", r)
		}
	}
}
