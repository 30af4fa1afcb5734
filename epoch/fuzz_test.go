package epoch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
)

func FuzzParseHeader(f *testing.F) {
	f.Add(goldenHeader().AppendTo(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		var refused *RefusedError
		if err != nil && !errors.As(err, &refused) {
			t.Fatalf("an error of another kind: %v", err)
		}
		if err == nil && !bytes.Equal(h.AppendTo(nil), b) {
			t.Fatalf("%x is taken for %+v, which is written otherwise", b, h)
		}
	})
}

func FuzzParseTrailer(f *testing.F) {
	f.Add(goldenTrailer().AppendTo(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		trailer, err := ParseTrailer(b)
		var refused *RefusedError
		if err != nil && !errors.As(err, &refused) {
			t.Fatalf("an error of another kind: %v", err)
		}
		if err == nil && !bytes.Equal(trailer.AppendTo(nil), b) {
			t.Fatalf("%x is taken for %+v, which is written otherwise", b, trailer)
		}
	})
}

// Any bytes for two chunks, under a header and a trailer that are right: the
// decoder refuses them, or hands out a stage that stays inside the image.
func FuzzDecoderChunk(f *testing.F) {
	for _, name := range []string{"none", "delta", "full"} {
		b, err := os.ReadFile("testdata/" + name + ".epoch")
		if err != nil {
			f.Fatal(err)
		}
		chunk := b[HeaderSize : len(b)-TrailerSize]
		f.Add(chunk, []byte{}, true)
		f.Add(chunk[:len(chunk)/2], chunk[len(chunk)/2:], true)
	}
	f.Add(record(recordZero, 3, 5), record(recordEnd, 0, 0), false)
	same := binary.LittleEndian.AppendUint32(record(recordPatch, 2, 0), pageCheck(bytes.Repeat([]byte{7}, PageSize)))
	f.Add(same, record(recordEnd, 0, 0), false)
	const pages, limit = 12, 9*PageSize + 1000
	f.Fuzz(func(t *testing.T, one, two []byte, checkpoint bool) {
		at := Position{Image: Incarnation{1}}
		h := Header{Kind: KindSync, Number: 1, Parent: at, Pages: pages}
		if checkpoint {
			h.Kind = KindCheckpoint
		}
		dec := NewDecoder(pages, DecoderConfig{MaxStageBytes: limit}, func(first GFN, dst []byte) error {
			if uint64(first)+uint64(len(dst)/PageSize) > pages {
				t.Fatalf("base of %d bytes at page %d", len(dst), first)
			}
			for i := range dst {
				dst[i] = 7
			}
			return nil
		})
		if _, err := dec.Begin(h.AppendTo(nil), at, 0); err != nil {
			t.Fatal(err)
		}
		for _, chunk := range [][]byte{one, two} {
			if err := dec.Chunk(chunk); err != nil {
				var refused *RefusedError
				if !errors.As(err, &refused) || dec.Stage() != nil {
					t.Fatalf("not refused as it should be: %v", err)
				}
				return
			}
			if dec.stage.used() > limit {
				t.Fatalf("%d bytes staged, the limit is %d", dec.stage.used(), limit)
			}
		}
		trailer := dec.seen
		trailer.Checksum, trailer.Running = dec.sum.end()
		if _, err := dec.End(trailer.AppendTo(nil)); err != nil {
			return
		}
		next, count := GFN(0), uint64(0)
		if err := dec.Stage().Apply(func(first GFN, data []byte) error {
			n := uint64(len(data) / PageSize)
			if first < next || uint64(first)+n > pages || n == 0 {
				t.Fatalf("%d pages written at %d, after %d", n, first, next)
			}
			next, count = first+GFN(n), count+n
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if count != dec.Stage().PageCount() {
			t.Fatalf("%d pages written of %d", count, dec.Stage().PageCount())
		}
	})
}
