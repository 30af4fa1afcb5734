package main

import (
	"math"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMedianAndQuantile(t *testing.T) {
	for _, c := range []struct {
		samples     []float64
		median, p99 float64
	}{
		{nil, 0, 0},
		{[]float64{7}, 7, 7},
		{[]float64{3, 1}, 2, 3},
		{[]float64{9, 1, 5}, 5, 9},
		{[]float64{4, 1, 3, 2}, 2.5, 4},
	} {
		if got := median(slices.Clone(c.samples)); got != c.median {
			t.Errorf("median of %v is %v, want %v", c.samples, got, c.median)
		}
		if got := quantile(slices.Clone(c.samples), 0.99); got != c.p99 {
			t.Errorf("99th percentile of %v is %v, want %v", c.samples, got, c.p99)
		}
	}
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	if got := spread(hundred); got != (Spread{Median: 50.5, P99: 100, Samples: 100}) {
		t.Errorf("spread of 1 to 100 is %+v", got)
	}
	if hundred[0] != 100 {
		t.Error("spread has changed the order of its samples")
	}
}

// Whatever the samples: as many lie below the median as above it.
func TestMedianSplitsTheSamples(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SliceOfN(rapid.Float64Range(-1e6, 1e6), 1, 50).Draw(t, "samples")
		m := median(slices.Clone(s))
		below, above := 0, 0
		for _, v := range s {
			if v < m {
				below++
			}
			if v > m {
				above++
			}
		}
		if below > len(s)/2 || above > len(s)/2 {
			t.Fatalf("median %v of %v: %d below, %d above", m, s, below, above)
		}
	})
}

func TestRatios(t *testing.T) {
	if got := ratio(3, 2); got != 1.5 {
		t.Errorf("3 to 2 is %v", got)
	}
	if got := ratio(3, 0); got != 0 {
		t.Errorf("a ratio to nothing is %v, want 0", got)
	}
	// The machine grows ten times slower, protection costs a fifth throughout:
	// the ratio of the medians would not show it, the median of the ratios does.
	plain, guarded := []float64{100, 50, 10}, []float64{80, 40, 8}
	if got := perPair(guarded, plain); math.Abs(got-0.8) > 1e-9 {
		t.Errorf("the pairs' ratio is %v, want 0.8", got)
	}
	if got := perPair([]float64{1}, []float64{0}); got != 0 {
		t.Errorf("a pair without a base counts: %v", got)
	}
}

func TestMicroseconds(t *testing.T) {
	if got := micros(1500 * time.Nanosecond); got != 1.5 {
		t.Errorf("1500 ns are %v µs", got)
	}
}
