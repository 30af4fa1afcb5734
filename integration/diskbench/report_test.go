package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	row := newRow("some reads", 4096)
	for i, ours := range []float64{100, 50, 3000} {
		row.add(nameQSD, Sample{IOPS: 100 * float64(i+1), P50: 10})
		row.add(nameOurs, Sample{IOPS: ours, P50: 20})
	}
	row.compare(hostRatios)
	// Of 1, ¼ and 10.
	if got := row.Ratios["understudy:qsd"]; got != 1 {
		t.Errorf("the ratio is %v, want 1: the median of the rounds'", got)
	}
	if got := row.Sides[nameOurs]; got != (Sample{IOPS: 100, P50: 20}) {
		t.Errorf("the median is %+v", got)
	}
	var out strings.Builder
	if err := table(&out, "Title", []Row{row}, hostRatios); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Title", "some reads", "understudy : qsd", "1.00"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		values  []float64
		q, want float64
	}{
		{nil, 0.5, 0},
		{[]float64{7}, 0.99, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{1, 2}, 0.5, 1.5},
		{[]float64{5, 1}, 1, 5},
	} {
		if got := quantile(c.values, c.q); got != c.want {
			t.Errorf("quantile %v of %v: %v, want %v", c.q, c.values, got, c.want)
		}
	}
}
