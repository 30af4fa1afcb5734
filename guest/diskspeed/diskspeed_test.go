package diskspeed

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEachModeMeasures(t *testing.T) {
	for _, mode := range []Mode{Read, Write, RandRead, RandWrite} {
		for _, sync := range []bool{false, true} {
			path := filepath.Join(t.TempDir(), "file")
			o := Options{Mode: mode, Block: 4096, Depth: 4, Sync: sync, Time: 30 * time.Millisecond, Size: 1 << 20}
			r, err := File(t.Context(), path, o)
			if err != nil {
				t.Fatal(err)
			}
			if r.Ops == 0 || r.Bytes != r.Ops*4096 || r.Took < o.Time || r.P50 == 0 || r.P99 < r.P50 || r.IOPS() <= 0 || r.MBs() <= 0 {
				t.Errorf("%s: %+v", mode, r)
			}
			if _, err := os.Stat(path); !os.IsNotExist(err) {
				t.Errorf("the file is left: %v", err)
			}
		}
	}
}

func TestOptionsHaveBounds(t *testing.T) {
	good := Options{Mode: Read, Block: 4096, Depth: 1, Time: time.Millisecond, Size: 1 << 20}
	for name, spoil := range map[string]func(*Options){
		"mode":       func(o *Options) { o.Mode = "erase" },
		"odd block":  func(o *Options) { o.Block = 1000 },
		"no block":   func(o *Options) { o.Block = 0 },
		"depth":      func(o *Options) { o.Depth = MaxDepth + 1 },
		"no depth":   func(o *Options) { o.Depth = 0 },
		"time":       func(o *Options) { o.Time = MaxTime + 1 },
		"size":       func(o *Options) { o.Size = -1 },
		"small file": func(o *Options) { o.Size = 512 },
	} {
		o := good
		spoil(&o)
		if _, err := File(t.Context(), filepath.Join(t.TempDir(), "file"), o); err == nil {
			t.Errorf("%s: %+v is accepted", name, o)
		}
	}
}

func TestQuantilesAgainstSorting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.Int64Range(8, int64(time.Hour)), 1, 200).Draw(t, "durations")
		var h histogram
		for _, d := range list {
			h.add(time.Duration(d))
		}
		slices.Sort(list)
		for _, part := range []float64{0, 0.5, 0.99, 1} {
			want := list[int(part*float64(len(list)-1))]
			got := int64(h.quantile(part))
			if got < want || float64(got) > float64(want)*1.126 {
				t.Errorf("quantile %v of %v is %d, want %d", part, list, got, want)
			}
		}
	})
}
