package integration

// What something costs on a machine whose speed changes from one moment to the
// next: each measurement is held against those right before and right after it, and
// what two measurements with nothing between them differ by says what that is worth.
//
//	beside[0] ─ during[0] ─ beside[1] ─ during[1] ─ … ─ beside[n]     losses ──> middle
//	 └┴ noise                └┴ noise

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// losses are what each of during lacks of the mean of its two neighbours, as a part
// of it, and what the second of each pair of beside lacks of the first.
func losses(beside [][2]float64, during []float64) (all, noise []float64) {
	for i, d := range during {
		all = append(all, 1-2*d/(beside[i][1]+beside[i+1][0]))
	}
	for _, b := range beside {
		noise = append(noise, 1-b[1]/b[0])
	}
	return all, noise
}

// middle is the median of values, and between what it lies, 98 times of a hundred,
// whatever their distribution: so many of n tosses of a coin are heads. Too few
// values bound nothing.
func middle(values []float64) (median, low, high float64) {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return math.NaN(), math.Inf(-1), math.Inf(1)
	}
	median = (sorted[(n-1)/2] + sorted[n/2]) / 2
	k, tail, term := 0, 0.0, math.Pow(0.5, float64(n)) // term: the chance of k heads
	for ; k < n && tail+term <= 0.01; k++ {
		tail += term
		term *= float64(n-k) / float64(k+1)
	}
	if k == 0 {
		return median, math.Inf(-1), math.Inf(1)
	}
	return median, sorted[k-1], sorted[n-k]
}

func TestALossIsTheMedianBetweenItsBounds(t *testing.T) {
	all, noise := losses([][2]float64{{100, 80}, {120, 60}}, []float64{90})
	if len(all) != 1 || math.Abs(all[0]-0.1) > 1e-9 || len(noise) != 2 || math.Abs(noise[0]-0.2) > 1e-9 || noise[1] != 0.5 {
		t.Errorf("losses %v, noise %v", all, noise)
	}
	if m, low, high := middle([]float64{3, 1, 2, 4}); m != 2.5 || !math.IsInf(low, -1) || !math.IsInf(high, 1) {
		t.Errorf("of four: %v, %v to %v", m, low, high)
	}
	if m, low, high := middle([]float64{7, 6, 5, 4, 3, 2, 1}); m != 4 || low != 1 || high != 7 {
		t.Errorf("of seven: %v, %v to %v", m, low, high)
	}
	r := rand.New(rand.NewPCG(7, 0))
	for _, n := range []int{7, 10, 20, 51} {
		outside := 0
		const rounds = 20000
		for range rounds {
			values := make([]float64, n)
			for i := range values {
				values[i] = r.NormFloat64()
			}
			if _, low, high := middle(values); low > 0 || high < 0 {
				outside++
			}
		}
		if outside > rounds*25/1000 {
			t.Errorf("of %d values: the median was outside of its bounds %d times of %d", n, outside, rounds)
		}
	}
}
