package epoch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/s2"
	"pgregory.net/rapid"
)

func TestPatchTurnsBaseIntoPage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		base := make([]byte, PageSize)
		fillRandom(r, base)
		page := bytes.Clone(base)
		for range rapid.IntRange(0, 40).Draw(t, "changes") {
			at := r.IntN(PageSize)
			fillRandom(r, page[at:min(PageSize, at+1+r.IntN(rapid.SampledFrom([]int{1, 8, 64, 4096}).Draw(t, "span")))])
		}
		patch, ok := appendPatch(nil, page, base, 2*PageSize)
		if !ok {
			t.Fatal("no room in two pages")
		}
		if bytes.Equal(page, base) != (len(patch) == 0) {
			t.Fatalf("equal pages and an empty patch must go together, got %d bytes", len(patch))
		}
		if small, ok := appendPatch([]byte("x"), page, base, len(patch)); !ok || !bytes.Equal(small[1:], patch) {
			t.Fatal("a patch does not fit its own length")
		}
		if len(patch) > 0 {
			if rest, ok := appendPatch([]byte("x"), page, base, len(patch)-1); ok || len(rest) != 1 {
				t.Fatal("a patch went beyond its limit, or left something behind")
			}
		}
		for range 2 { // twice does no harm
			if err := applyPatch(base, patch); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(base, page) {
				t.Fatal("page differs after the patch")
			}
		}
	})
}

func TestMalformedPatchIsRefused(t *testing.T) {
	for name, patch := range map[string][]byte{
		"half a group":       {1},
		"no progress":        {0, 0},
		"a gap not full":     {254, 0},
		"words missing":      {0, 2, 1, 2, 3, 4, 5, 6, 7, 8},
		"beyond the page":    append([]byte{255, 0, 255, 0, 2, 1}, make([]byte, 8)...),
		"a gap far too long": {255, 0, 255, 0, 255, 0},
	} {
		if err := applyPatch(make([]byte, PageSize), patch); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	whole := append([]byte{255, 0, 255, 0, 1, 1}, make([]byte, 8)...)
	if err := applyPatch(make([]byte, PageSize), whole); err != nil {
		t.Errorf("the last word of the page: %v", err)
	}
}

func fillRandom(r *rand.Rand, b []byte) {
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, r.Uint64())
		b = b[8:]
	}
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

// BenchmarkDelta is the ground for the choice of codec: a patch against s2
// over the XOR, on pages that changed in different ways.
func BenchmarkDelta(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	base := make([]byte, PageSize)
	fillRandom(r, base)
	type change struct {
		name string
		make func(p []byte)
	}
	for _, c := range []change{
		{"same", func([]byte) {}},
		{"1word", func(p []byte) { p[2000]++ }},
		{"8words", func(p []byte) {
			for i := range 8 {
				fillRandom(r, p[i*500:i*500+8])
			}
		}},
		{"64counters", func(p []byte) {
			for i := range 64 {
				p[i*64]++
			}
		}},
		{"512counters", func(p []byte) {
			for i := range 512 {
				p[i*8] += byte(1 + i%3)
			}
		}},
		{"halfrandom", func(p []byte) { fillRandom(r, p[1024:3072]) }},
		{"random", func(p []byte) { fillRandom(r, p) }},
	} {
		page := bytes.Clone(base)
		c.make(page)
		xor := make([]byte, PageSize)
		dst := make([]byte, 0, 2*PageSize)
		b.Run(fmt.Sprintf("patch/%s", c.name), func(b *testing.B) {
			b.SetBytes(PageSize)
			b.ReportAllocs()
			var out []byte
			var ok bool
			for b.Loop() {
				out, ok = appendPatch(dst, page, base, PageSize*7/8)
			}
			if !ok {
				out = page
			}
			b.ReportMetric(float64(len(out)), "bytes/page")
		})
		b.Run(fmt.Sprintf("s2xor/%s", c.name), func(b *testing.B) {
			b.SetBytes(PageSize)
			b.ReportAllocs()
			var out []byte
			for b.Loop() {
				for i := 0; i < PageSize; i += 8 {
					binary.LittleEndian.PutUint64(xor[i:], binary.LittleEndian.Uint64(page[i:])^binary.LittleEndian.Uint64(base[i:]))
				}
				out = s2.Encode(dst[:cap(dst)], xor)
			}
			b.ReportMetric(float64(len(out)), "bytes/page")
		})
		b.Run(fmt.Sprintf("s2page/%s", c.name), func(b *testing.B) {
			b.SetBytes(PageSize)
			var out []byte
			for b.Loop() {
				out = s2.Encode(dst[:cap(dst)], page)
			}
			b.ReportMetric(float64(len(out)), "bytes/page")
		})
	}
}
