package checkpoint

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"understudy/epoch"
)

// FuzzOpen changes a file behind its checksums: they are made to hold again, so
// that what lies under them is reached.
func FuzzOpen(f *testing.F) {
	// A small one: mutations are to hit what matters.
	rng := rand.New(rand.NewPCG(17, 18))
	d, m, path := newDisk(2, rng), newImage(6), filepath.Join(f.TempDir(), "x")
	copy(m.page(1), d.block(1))
	for i := range epoch.GFN(3) {
		copy(m.page(i+2), bytes.Repeat([]byte{byte(1 + i)}, epoch.PageSize))
	}
	copy(m.page(5), m.page(2))
	save(f, path, m, d, Options{})
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, true)
	f.Add(whole[:prefaceSize+int(tailSize)], false)
	f.Add(whole[:len(whole)-1], false)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed && len(b) >= prefaceSize+int(tailSize) {
			b = seal(append([]byte(nil), b...))
		}
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := Open(path)
		if err != nil {
			return
		}
		defer func() { _ = file.Close() }()
		if file.Head().Pages > 1<<12 {
			return // it takes long
		}
		report, err := file.Verify(t.Context(), d, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, lazy := range []bool{false, true} {
			s, _, err := Restore(t.Context(), file, &driver{}, d, RestoreOptions{Lazy: lazy, leaveFew: true})
			if err == nil && lazy {
				err = s.(*image).touch(rand.New(rand.NewPCG(1, 2)))
			}
			if err == nil && report.Err() != nil {
				t.Fatalf("lazy %t: restored, though %v", lazy, report.Err())
			}
		}
	})
}

// FuzzRecord: what is not a record is refused, what is one is whole pages.
func FuzzRecord(f *testing.F) {
	w := &Writer{}
	k := newWorker(w)
	for i := range k.open {
		k.open[i] = byte(i / 1000)
	}
	for k.count = 1; k.count <= recordPages; k.count += 5 {
		b, _ := k.pack()
		f.Add(append([]byte(nil), b...), uint64(32))
	}
	dst := make([]byte, recordPages*epoch.PageSize)
	f.Fuzz(func(t *testing.T, b []byte, offset uint64) {
		if len(b) >= recordHead {
			signRecord(b, salt{}, offset)
		}
		if pages, err := openRecord(dst, b, salt{}, offset); err == nil && (len(pages) == 0 || len(pages)%epoch.PageSize != 0) {
			t.Fatalf("a record of %d bytes", len(pages))
		}
	})
}

// FuzzLeaf: the same for the index.
func FuzzLeaf(f *testing.F) {
	var scratch []byte
	entries := []entry{0, recordEntry(3, 1024, 32), blockEntry(Place{2, 800}), entry(kindParent)}
	b, row := appendLeaf(nil, nil, 0, entries, make([]epoch.Fingerprint, 4), salt{}, &scratch)
	f.Add(b, row)
	f.Fuzz(func(t *testing.T, b, row []byte) {
		if len(row) != dirSize {
			return
		}
		starts, err := checkRows(row, uint64(len(b)))
		if err != nil {
			return
		}
		if starts[1] != uint64(len(b)) {
			t.Fatalf("leaves of %d bytes end at %d", len(b), starts[1])
		}
		_ = parseLeaf(new(leaf), b, row, make([]byte, leafPages*entrySize), 0, 4, salt{})
	})
}
