package checkpoint

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What several goroutines put, each at the place that it was given, is in the file,
// past the page cache and through it, and also where the disk refuses at first to
// do without.
func TestOutputEqualsWhatWasPut(t *testing.T) {
	for name, direct := range map[string]func(*output){
		"direct":     func(*output) {},
		"page cache": func(o *output) { _ = o.closeDirect() },
		"refused": func(o *output) { // for memory that is not aligned
			for ; o.made < o.most; o.made++ {
				o.free = append(o.free, make([]byte, pieceBytes+1)[1:])
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			f, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			want := make([]byte, 9*pieceBytes+777)
			for i := range want {
				want[i] = byte(rng.Uint32())
			}
			const workers = 3
			o, err := newOutput(f, want[:32], workers)
			if err != nil {
				t.Fatal(err)
			}
			direct(o)
			var mu sync.Mutex
			at := 32
			var group sync.WaitGroup
			for range workers {
				group.Go(func() {
					for {
						mu.Lock()
						from, to := at, min(at+1+rng.IntN(maxRecord), len(want))
						at = to
						mu.Unlock()
						if from == to {
							return
						}
						if err := o.put(want[from:to], uint64(from)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			group.Wait()
			if err := o.drain(uint64(len(want))); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(f.Name())
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("another file of %d bytes, want %d: %v", len(got), len(want), err)
			}
			if o.made > o.most {
				t.Errorf("%d pieces, want at most %d", o.made, o.most)
			}
		})
	}
}

// A disk that is full, or a hole that nobody fills, is told of by whatever comes
// next, and nobody waits for ever.
func TestOutputTellsOfErrors(t *testing.T) {
	make := func() *output {
		f, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		o, err := newOutput(f, nil, 1)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	b := bytes.Repeat([]byte{7}, pieceBytes)

	o := make()
	_ = o.closeDirect()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	o.direct = full
	for i := range uint64(100) {
		if err = o.put(b, i*pieceBytes); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	if err := o.drain(100 * pieceBytes); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("and in the end: %v", err)
	}

	o = make()
	if err := o.put(b, 100); err != nil {
		t.Fatal(err)
	}
	if err := o.drain(100 + pieceBytes); err == nil {
		t.Error("the first 100 bytes are missing, and nobody says so")
	}
	if err := o.end(); err != nil {
		t.Error(err)
	}
}
