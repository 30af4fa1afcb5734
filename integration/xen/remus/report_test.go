package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/integration/xen/remus/cell"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// runs are a pair of runs, of three epochs each.
func runs() []cell.Run {
	stock := cell.Run{Side: cell.Stock, Interval: 200 * time.Millisecond, Load: cell.Load{Pages: 5000, Bytes: 8}, Took: time.Second, Written: 4000, Full: 1 << 20,
		Gaps: []time.Duration{90 * time.Millisecond, 110 * time.Millisecond, 100 * time.Millisecond}}
	ours := stock
	ours.Side = cell.Ours
	ours.Gaps = []time.Duration{50 * time.Millisecond, 40 * time.Millisecond, 500 * time.Millisecond}
	for i := range 3 {
		ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
		stock.Epochs = append(stock.Epochs, cell.Epoch{Suspend: ms(40), Pause: ms(50 + i), Pages: 1600, Bytes: 1 << 20})
		ours.Epochs = append(ours.Epochs, cell.Epoch{Suspend: ms(30), Pause: ms(10 + 7*i), Pages: 1600, Bytes: 1 << (16 + i),
			Steps: &cell.Steps{Scan: ms(i), Copy: ms(2), Device: ms(3), Resume: ms(1)}})
	}
	return []cell.Run{stock, ours}
}

// What the first domain writes becomes a row of medians and their ratios.
func TestRunsBecomeARow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs() {
		if err := json.NewEncoder(f).Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	read, err := readRuns(path)
	if err != nil {
		t.Fatal(err)
	}
	r := newReport()
	if err := r.add(read); err != nil {
		t.Fatal(err)
	}
	row := r.Rows[0]
	if row.PauseRatio != 17.0/51 || row.GapRatio != 0.5 || row.BytesRatio != 0.125 || row.SuspendRatio != 0.75 {
		t.Errorf("ratios %+v", row)
	}
	if row.Ours.Gap.P99 != 500_000 || row.Stock.PerSecond != 3 || row.Ours.Written != 4000 || row.Ours.Steps.Scan != 1000 || row.Ours.Steps.Rest != 13_000 || row.Stock.Steps != nil {
		t.Errorf("summaries %+v, %+v", row.Stock, row.Ours)
	}
	if r.WorstPause != row.PauseRatio || r.WorstBytes != row.BytesRatio {
		t.Errorf("worst %v, %v", r.WorstPause, r.WorstBytes)
	}
	var text bytes.Buffer
	if err := r.print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"5000 pages/s, 8 bytes", "at worst 0.33 of stock's, target 0.20; bytes: at worst 0.125"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, text.String())
		}
	}
}

// Runs that are no pair are no row.
func TestRunsOfOneSideAreRefused(t *testing.T) {
	both := runs()
	for _, bad := range [][]cell.Run{both[:1], {both[1], both[0]}, {both[0], both[0]}} {
		if err := newReport().add(bad); err == nil {
			t.Errorf("%d runs, the first of side %s: taken", len(bad), bad[0].Side)
		}
	}
	other := runs()
	other[1].Interval = 50 * time.Millisecond
	if err := newReport().add(other); err == nil {
		t.Error("runs at two intervals are compared")
	}
}

// The backup's standby is memory, and stays in its bounds.
func TestTheStandbyIsMemory(t *testing.T) {
	s, err := images{}.Standby(context.Background(), hypervisor.Spec{Pages: 3})
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Repeat([]byte{7}, epoch.PageSize)
	if err := s.WritePages(2, page); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2*epoch.PageSize)
	if err := s.ReadPages(1, got); err != nil || !bytes.Equal(got, append(make([]byte, epoch.PageSize), page...)) {
		t.Errorf("it does not hold what was written, error %v", err)
	}
	if s.WritePages(3, page) == nil || s.ReadPages(2, got) == nil || s.WritePages(0, page[1:]) == nil {
		t.Error("it reads or writes what is none of its pages")
	}
	if _, err := (images{}).Standby(context.Background(), hypervisor.Spec{Pages: 1 << 40}); err == nil {
		t.Error("an image of any size")
	}
}
