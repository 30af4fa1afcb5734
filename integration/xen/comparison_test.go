package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"understudy/checkpoint"
)

// Figures are medians, and what follows from them is per kind of guest.
func TestTheComparison(t *testing.T) {
	save := func(bytes uint64, took, stood time.Duration) sample {
		return sample{bytes: bytes, took: took, stood: stood, pages: checkpoint.Counts{Mapped: 3, Packed: 1}}
	}
	ours := []sample{save(20, 9*time.Second, time.Second), save(30, time.Second, 2*time.Second), save(10, 2*time.Second, time.Second)}
	xls := []sample{save(100, 4*time.Second, 0), save(100, 5*time.Second, 0)}
	c := newComparison(options{repeat: 3})
	works := works()
	c.Rows = []ComparedRow{newComparedRow("pvh", works[0], ours, xls), newComparedRow("pvh", works[1], ours[:1], xls), newComparedRow(pv, works[0], ours[2:], xls)}
	c.conclude(c.Time.Add(time.Minute))

	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	first := c.Rows[0]
	near("the size", first.Ours.Bytes, 20)
	near("the time", first.Ours.Seconds, 2)
	near("xl's time", first.Xl.Seconds, 4.5)
	near("smaller", first.Smaller, 0.8)
	near("faster", first.Faster, 1-2/4.5)
	near("standing still", first.LessStill, 1-1/4.5)
	if len(c.Kinds) != 2 || c.Kinds[0].Kind != "pvh" || c.Kinds[1].Kind != pv {
		t.Fatalf("the kinds are %+v", c.Kinds)
	}
	near("smaller of all", c.Kinds[0].Smaller, 0.8)
	near("faster of all", c.Kinds[0].Faster, (1-2/4.5+1-9/4.5)/2)
	near("the target", c.Kinds[1].TargetSmaller, 0.81)
	near("the time of all", c.Seconds, 60)

	path := filepath.Join(t.TempDir(), "new", "report.json")
	if err := c.write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	var back Comparison
	if err == nil {
		err = json.Unmarshal(text, &back)
	}
	if err != nil || len(back.Rows) != 3 || back.Rows[0].Pages.Mapped != 3 {
		t.Errorf("the report has %d rows, %v", len(back.Rows), err)
	}
}
