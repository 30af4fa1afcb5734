package epoch

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

type frames struct {
	first GFN
	count uint64
}

func runsOf(s *PageSet) []frames {
	var out []frames
	for first, count := range s.Runs {
		out = append(out, frames{first, count})
	}
	return out
}

func TestRunsMergeAdjacentFrames(t *testing.T) {
	for _, c := range []struct {
		name  string
		pages uint64
		add   []frames
		want  []frames
	}{
		{"empty image", 0, nil, nil},
		{"nothing", 200, nil, nil},
		{"first and last", 200, []frames{{0, 1}, {199, 1}}, []frames{{0, 1}, {199, 1}}},
		{"everything", 200, []frames{{0, 200}}, []frames{{0, 200}}},
		{"exactly one word", 192, []frames{{64, 64}}, []frames{{64, 64}}},
		{"over a border", 192, []frames{{63, 2}}, []frames{{63, 2}}},
		{"word by word", 256, []frames{{0, 64}, {128, 64}, {64, 64}}, []frames{{0, 192}}},
		{"a full word after a gap", 256, []frames{{10, 20}, {64, 64}}, []frames{{10, 20}, {64, 64}}},
		{"a full word, then a part", 256, []frames{{60, 4}, {64, 64}, {128, 3}}, []frames{{60, 71}}},
		{"holes in one word", 64, []frames{{0, 1}, {2, 1}, {4, 60}}, []frames{{0, 1}, {2, 1}, {4, 60}}},
		{"no frames", 64, []frames{{3, 0}, {64, 0}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := NewPageSet(c.pages)
			var n uint64
			for _, a := range c.add {
				s.AddRange(a.first, a.count)
				n += a.count
			}
			if got := runsOf(s); !slices.Equal(got, c.want) {
				t.Errorf("runs %v, want %v", got, c.want)
			}
			if s.Count() != n || s.Empty() != (n == 0) {
				t.Errorf("count %d, empty %t, want %d frames", s.Count(), s.Empty(), n)
			}
		})
	}
}

func TestFramesOutsideTheImagePanic(t *testing.T) {
	for name, f := range map[string]func(s *PageSet){
		"add":            func(s *PageSet) { s.Add(100) },
		"range over end": func(s *PageSet) { s.AddRange(99, 2) },
		"overflow":       func(s *PageSet) { s.AddRange(99, ^uint64(0)) },
		"far away":       func(s *PageSet) { s.RemoveRange(^GFN(0), 1) },
		"union":          func(s *PageSet) { s.Union(NewPageSet(101)) },
		"take":           func(s *PageSet) { s.TakeInto(NewPageSet(101), 1) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f(NewPageSet(100))
		})
	}
	if NewPageSet(100).Contains(^GFN(0)) {
		t.Error("a frame outside the image is contained")
	}
}

func TestTakingLeavesWhatWasNotMoved(t *testing.T) {
	s, dst := NewPageSet(128), NewPageSet(128)
	s.AddRange(10, 5)
	s.Add(100)
	dst.Add(100)
	if n := s.TakeInto(dst, 0); n != 0 || s.Count() != 6 {
		t.Errorf("taking nothing moved %d frames and left %d of 6", n, s.Count())
	}
	if n := s.TakeInto(dst, 3); n != 3 {
		t.Errorf("moved %d frames, want 3", n)
	}
	if got, want := runsOf(s), []frames{{13, 2}, {100, 1}}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
	if got, want := runsOf(dst), []frames{{10, 3}, {100, 1}}; !slices.Equal(got, want) {
		t.Errorf("taken %v, want %v", got, want)
	}
}

// A PageSet does what a map of frames does.
func TestPageSetIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.Uint64Range(1, 400).Draw(t, "pages")
		sets := [2]*PageSet{NewPageSet(pages), NewPageSet(pages)}
		oracles := [2]map[GFN]bool{{}, {}}
		draw := func(t *rapid.T) (int, GFN, uint64) {
			first := rapid.Uint64Range(0, pages-1).Draw(t, "first")
			return rapid.IntRange(0, 1).Draw(t, "set"), GFN(first), rapid.Uint64Range(0, pages-first).Draw(t, "count")
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				i, f, _ := draw(t)
				sets[i].Add(f)
				oracles[i][f] = true
			},
			"add range": func(t *rapid.T) {
				i, f, n := draw(t)
				sets[i].AddRange(f, n)
				for ; n > 0; f, n = f+1, n-1 {
					oracles[i][f] = true
				}
			},
			"remove range": func(t *rapid.T) {
				i, f, n := draw(t)
				sets[i].RemoveRange(f, n)
				for ; n > 0; f, n = f+1, n-1 {
					delete(oracles[i], f)
				}
			},
			"union": func(t *rapid.T) {
				i, _, _ := draw(t)
				sets[i].Union(sets[1-i])
				for f := range oracles[1-i] {
					oracles[i][f] = true
				}
			},
			"take": func(t *rapid.T) {
				i, _, limit := draw(t)
				moved := sets[i].TakeInto(sets[1-i], limit)
				if want := min(limit, uint64(len(oracles[i]))); moved != want {
					t.Fatalf("moved %d frames, want %d", moved, want)
				}
				for f := GFN(0); moved > 0; f++ {
					if oracles[i][f] {
						delete(oracles[i], f)
						oracles[1-i][f] = true
						moved--
					}
				}
			},
			"clear": func(t *rapid.T) {
				i, _, _ := draw(t)
				sets[i].Clear()
				clear(oracles[i])
			},
			"fill": func(t *rapid.T) {
				i, _, _ := draw(t)
				sets[i].Fill()
				for f := range GFN(pages) {
					oracles[i][f] = true
				}
			},
			"": func(t *rapid.T) {
				for i, s := range sets {
					compareWithOracle(t, s, oracles[i])
				}
			},
		})
	})
}

func compareWithOracle(t *rapid.T, s *PageSet, oracle map[GFN]bool) {
	if s.Count() != uint64(len(oracle)) || s.Empty() != (len(oracle) == 0) {
		t.Fatalf("count %d, empty %t, want %d frames", s.Count(), s.Empty(), len(oracle))
	}
	var want []frames
	for f := GFN(0); uint64(f) < s.Pages(); f++ {
		if s.Contains(f) != oracle[f] {
			t.Fatalf("contains %d: %t", f, s.Contains(f))
		}
		if !oracle[f] {
			continue
		}
		if last := len(want) - 1; last >= 0 && want[last].first+GFN(want[last].count) == f {
			want[last].count++
		} else {
			want = append(want, frames{f, 1})
		}
	}
	if got := runsOf(s); !slices.Equal(got, want) {
		t.Fatalf("runs %v, want %v", got, want)
	}
	// A walk that is broken off stops there.
	for first, count := range s.Runs {
		if (frames{first, count}) != want[0] {
			t.Fatalf("first run %d+%d, want %v", first, count, want[0])
		}
		break
	}
}

// pagesOf4GiB is what the benchmarks and allocation tests walk over.
const pagesOf4GiB = 4 << 30 / PageSize

func scattered(n int) *PageSet {
	s, r := NewPageSet(pagesOf4GiB), rand.New(rand.NewPCG(1, 2))
	for range n {
		s.Add(GFN(r.IntN(pagesOf4GiB)))
	}
	return s
}

func TestPageSetsAllocateNothing(t *testing.T) {
	s, all, dst := scattered(5000), NewPageSet(pagesOf4GiB), NewPageSet(pagesOf4GiB)
	all.Fill()
	var n uint64
	if allocs := testing.AllocsPerRun(3, func() {
		for first, count := range s.Runs {
			n += uint64(first) + count
		}
		dst.Union(s)
		dst.TakeInto(s, 1000)
		dst.AddRange(5, 1000)
		dst.RemoveRange(5, 1000)
		n += dst.Count() + all.Count()
		dst.Clear()
	}); allocs != 0 {
		t.Errorf("%v allocations, want none", allocs)
	}
}

func BenchmarkPageSetRuns(b *testing.B) {
	full := NewPageSet(pagesOf4GiB)
	full.Fill()
	for _, c := range []struct {
		name string
		set  *PageSet
	}{{"4GiB/empty", NewPageSet(pagesOf4GiB)}, {"4GiB/5k", scattered(5000)}, {"4GiB/20k", scattered(20000)}, {"4GiB/full", full}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var n uint64
			for b.Loop() {
				for first, count := range c.set.Runs {
					n += uint64(first) ^ count
				}
			}
		})
	}
}
