package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"understudy/epoch"
)

// newRAM makes a memory file of the given size in a directory.
func newRAM(t testing.TB, dir string, size uint64) *ramFile {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "ram"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	must(t, err)
	must(t, f.Truncate(int64(size)))
	r, err := mapRAM(f, size)
	must(t, err)
	return r
}

func blocksOf(t testing.TB, r *ramFile) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(int(r.file.Fd()), &st))
	return st.Blocks * 512
}

// Whatever is written is read back, through our mapping, through the file and
// through another process's mapping of it, and only pages that hold something
// take memory.
func TestMemoryFileHoldsWhatWasWritten(t *testing.T) {
	const pages = 40
	dir := memoryDir(t)
	rapid.Check(t, func(rt *rapid.T) {
		r := newRAM(t, dir, pages*epoch.PageSize)
		defer func() { must(t, r.close()) }()
		model := make([]byte, pages*epoch.PageSize)
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			first := rapid.Uint64Range(0, pages-1).Draw(rt, "first")
			n := rapid.Uint64Range(1, pages-first).Draw(rt, "count")
			buf := make([]byte, n*epoch.PageSize)
			if rapid.Bool().Draw(rt, "read") {
				must(t, r.read(first, buf))
				if !bytes.Equal(buf, model[first*epoch.PageSize:(first+n)*epoch.PageSize]) {
					rt.Fatalf("pages %d+%d are not what was written", first, n)
				}
				continue
			}
			for p := range n {
				if rapid.Bool().Draw(rt, "zero") {
					continue
				}
				buf[p*epoch.PageSize+rapid.Uint64Range(0, epoch.PageSize-1).Draw(rt, "at")] = 1
			}
			must(t, r.write(first, buf))
			copy(model[first*epoch.PageSize:], buf)
		}
		if !bytes.Equal(r.mem, model) { // last: to look fills the holes
			rt.Fatal("the mapping is not what was written")
		}
	})
	r := newRAM(t, dir, pages*epoch.PageSize)
	defer func() { must(t, r.close()) }()
	buf := make([]byte, pages*epoch.PageSize)
	must(t, r.write(0, buf))
	must(t, r.read(0, buf))
	if n := blocksOf(t, r); n != 0 {
		t.Errorf("pages of zeros take %d bytes", n)
	}
	buf[5*epoch.PageSize] = 1
	must(t, r.write(0, buf))
	if n := blocksOf(t, r); n != epoch.PageSize {
		t.Errorf("one page takes %d bytes", n)
	}
}

// A tmpfs that is full is an error, not the end of the process.
func TestFullTmpfsIsAnError(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	r := newRAM(t, dir, 1*mib)
	defer func() { must(t, r.close()) }()
	err := r.write(0, bytes.Repeat([]byte{1}, mib))
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v, want %v", err, unix.ENOSPC)
	}
	if _, err := createRAM(&Config{Memory: mib}, filepath.Join(dir, "more"), account{}); err == nil {
		t.Fatal("a memory file that does not fit was made")
	}
	if _, err := createRAM(&Config{Memory: mib}, filepath.Join(openDir(t), "more"), account{}); err == nil {
		t.Fatal("a memory file was made outside of a tmpfs")
	}
}

// Zeros over pages that are there: cleared, or made a hole.
func BenchmarkZeros(b *testing.B) {
	const pages = 512
	r := newRAM(b, memoryDir(b), pages*epoch.PageSize)
	defer func() { must(b, r.close()) }()
	full, zeros := bytes.Repeat([]byte{1}, pages*epoch.PageSize), make([]byte, pages*epoch.PageSize)
	for _, n := range []int{8, 32, 128, pages} {
		for name, write := range map[string]func(uint64, []byte) error{
			"cleared": func(first uint64, data []byte) error { copy(r.mem[first*epoch.PageSize:], data); return nil },
			"hole":    func(first uint64, data []byte) error { return r.punch(first, uint64(len(data))/epoch.PageSize) },
		} {
			b.Run(fmt.Sprintf("%dpages/%s", n, name), func(b *testing.B) {
				for range b.N {
					b.StopTimer()
					must(b, r.write(0, full))
					copy(r.mem, full) // mapped
					b.StartTimer()
					must(b, write(0, zeros[:n*epoch.PageSize]))
				}
			})
		}
	}
}
