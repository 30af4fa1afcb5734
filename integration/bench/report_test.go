package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"understudy/primary"
)

// Pauses and floors take turns, so that each has the same epoch before it, and
// every twentieth round is a migration.
func TestRoundsTakeTurns(t *testing.T) {
	count := map[round]int{}
	for i := range 200 {
		r := roundAt(i)
		count[r]++
		if (r == roundPause) != (i%2 == 0) {
			t.Errorf("round %d is of kind %d", i, r)
		}
	}
	if count[roundPause] != 100 || count[roundFloor] != 90 || count[roundMigrate] != 10 {
		t.Errorf("of 200 rounds %d were pauses, %d floors, %d migrations", count[roundPause], count[roundFloor], count[roundMigrate])
	}
}

const us = time.Microsecond

func someSamples() samples {
	return samples{
		pauses: []primary.Cost{
			{Stop: 300 * us, Seal: 10 * us, Scan: 400 * us, Copy: 900 * us, Device: 700 * us, Resume: 200 * us, Pause: 1900 * us, Dirty: 5000},
			{Stop: 300 * us, Seal: 10 * us, Scan: 400 * us, Copy: 900 * us, Device: 1500 * us, Resume: 200 * us, Pause: 2100 * us, Dirty: 5000},
			{Stop: 300 * us, Seal: 10 * us, Scan: 400 * us, Copy: 900 * us, Device: 700 * us, Resume: 200 * us, Pause: 9000 * us, Dirty: 5100},
		},
		floors: []floorSample{
			{Stop: 300 * us, Scan: 200 * us, Device: 700 * us, Copy: 800 * us, Cont: 200 * us, Pages: 4990},
			{Stop: 300 * us, Scan: 200 * us, Device: 700 * us, Copy: 700 * us, Cont: 200 * us, Pages: 5010},
			{Stop: 900 * us, Scan: 200 * us, Device: 700 * us, Copy: 800 * us, Cont: 200 * us, Pages: 5010},
		},
		migrations: []time.Duration{5000 * us, 4000 * us, 7000 * us},
	}
}

func TestPauseIsSetAgainstTheFloor(t *testing.T) {
	var r PauseReport
	summarise(&r, someSamples())
	for name, got := range map[string][2]float64{
		"pause":            {r.Pause.Median, 2100},
		"pause p99":        {r.Pause.P99, 9000},
		"dirty":            {r.Dirty.Median, 5000},
		"device":           {r.Steps.Device, 700},
		"rest":             {r.Steps.Rest, 100}, // of 90, 100 and 7190
		"floor":            {r.Floor.Median, 2200},
		"overlapped floor": {r.Floor.Overlapped, 1500},
		"pages":            {r.Floor.Pages, 5010},
		"ratio":            {r.Ratio, 2100.0 / 2200},
		"overlapped ratio": {r.RatioOverlapped, 2100.0 / 1500},
		"migrate":          {r.Migrate.Median, 5000},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is %v, want %v", name, got[0], got[1])
		}
	}
}

func TestWireIsWhatWasSentBetweenTwoReadings(t *testing.T) {
	a := primary.Totals{Checkpoints: 10, RawBytes: 1000, WireBytes: 500, DeltaPages: 7}
	b := primary.Totals{Checkpoints: 14, RawBytes: 9000, WireBytes: 900, DeltaPages: 9, ZeroPages: 1}
	got := wireBetween(a, b)
	if want := (WireReport{RawBytes: 2000, WireBytes: 100, Ratio: 0.05, DeltaPages: 2, ZeroPages: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := wireBetween(a, a); got != (WireReport{}) {
		t.Errorf("no epoch: %+v", got)
	}
}

// The overall figure is the median of the scenarios; the worst one is told too.
func TestReportConcludesAndPrints(t *testing.T) {
	r := Report{Target: targetRatio}
	for _, x := range []float64{1.1, 1.6, 0.9} {
		p := PauseReport{GuestMiB: 512}
		summarise(&p, someSamples())
		p.Ratio = x
		r.Pauses = append(r.Pauses, p)
	}
	r.Latency = []Compared{{Epochs: "25 ms", Load: "idle", Unit: "µs", Unprotected: 500, Protected: 13_500, Protected99: 30_000, Ratio: 27}}
	r.Wire = []WireScenario{{PagesAsked: 10, BytesPerPage: 8}}
	r.conclude()
	if r.PauseToFloorRatio != 1.1 || r.WorstRatio != 1.6 {
		t.Errorf("ratio %v, worst %v", r.PauseToFloorRatio, r.WorstRatio)
	}
	var out bytes.Buffer
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pause_to_floor_ratio 1.10 (worst scenario 1.60, target at most 1.3)", "512 MiB", "13500", "13000"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, out.String())
		}
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(`"pause_to_floor_ratio":1.1`)) {
		t.Errorf("the key pause_to_floor_ratio is missing in %s", text)
	}
}
