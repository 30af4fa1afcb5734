package main

// The arithmetic of the report. Medians and quantiles take no assumption about
// the noise of a shared machine; a mean would be the noise.

import (
	"slices"
	"time"
)

// quantile returns the value below or at which the share q of the samples
// lies, 0 without samples. It changes the order of s.
func quantile(s []float64, q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// median is the middle sample, or the mean of the two in the middle.
func median(s []float64) float64 {
	n := len(s)
	if n == 0 {
		return 0
	}
	slices.Sort(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// Spread summarises samples of one quantity.
type Spread struct {
	Median  float64 `json:"median"`
	P99     float64 `json:"p99"`
	Samples int     `json:"samples"`
}

func spread(s []float64) Spread {
	s = slices.Clone(s)
	return Spread{Median: median(s), P99: quantile(s, 0.99), Samples: len(s)}
}

// pick collects one quantity of many samples.
func pick[T any](all []T, of func(T) float64) []float64 {
	s := make([]float64, len(all))
	for i, v := range all {
		s[i] = of(v)
	}
	return s
}

// micros is a duration in microseconds, the unit of every time in the report.
func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// ratio is a/b, 0 if there is nothing to compare with.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// perPair returns the median of a[i]/b[i]: of measurements taken one after the
// other, so that a machine that grows slow or fast meanwhile cancels out.
func perPair(a, b []float64) float64 {
	var r []float64
	for i := range min(len(a), len(b)) {
		if b[i] != 0 {
			r = append(r, a[i]/b[i])
		}
	}
	return median(r)
}
