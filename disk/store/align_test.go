package store

import (
	"strings"
	"testing"
	"unsafe"
)

// TestAlignment: which requests go straight to the file, and which blocks the
// others touch.
func TestAlignment(t *testing.T) {
	b := alignedBuffer(8192, 4096)
	if uintptr(unsafe.Pointer(&b[0]))%4096 != 0 || cap(b) != 8192 {
		t.Fatal("an aligned buffer is not")
	}
	buffered := alignment{memory: 1, io: 512}
	small := alignment{direct: true, memory: 4, io: 512}
	large := alignment{direct: true, memory: 512, io: 4096}
	for _, c := range []struct {
		name     string
		a        alignment
		skip, n  int
		offset   int64
		fits     bool
		from, to int64
	}{
		{"buffered, anything", buffered, 1, 512, 512, true, 512, 1024},
		{"memory as asked", small, 4, 512, 512, true, 512, 1024},
		{"odd memory", small, 1, 512, 512, false, 512, 1024},
		{"a whole block", large, 512, 4096, 4096, true, 4096, 8192},
		{"a whole block, odd memory", large, 8, 4096, 4096, false, 4096, 8192},
		{"part of a block", large, 0, 512, 4096, false, 4096, 8192},
		{"a block's worth, across two", large, 0, 4096, 512, false, 0, 8192},
		{"a block and a sector", large, 0, 4608, 4096, false, 4096, 12288},
	} {
		p := b[c.skip : c.skip+c.n]
		if got := c.a.fits(p, c.offset); got != c.fits {
			t.Errorf("%s: fits %v", c.name, got)
		}
		if from, to := c.a.down(c.offset), c.a.up(c.offset+int64(c.n)); from != c.from || to != c.to {
			t.Errorf("%s: blocks from %d to %d, want %d to %d", c.name, from, to, c.from, c.to)
		}
	}
	for _, c := range []struct{ memory, io int }{{512, 3000}, {3, 512}, {512, 1 << 20}} {
		if _, err := newAlignment(c.memory, c.io); err == nil {
			t.Errorf("alignment %+v is believed", c)
		}
	}
	if err := large.check(15); err == nil || !strings.Contains(err.Error(), "enlarge it by 512 bytes") {
		t.Errorf("a disk that ends within a block: %v", err)
	}
}
