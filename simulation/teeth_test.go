package simulation

import (
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
