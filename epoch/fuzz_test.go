package epoch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/zeebo/xxh3"
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
	word := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	refs := record(recordReference, 1, 2, append(word(2<<56|40), make([]byte, 32)...)...)
	sevens := bytes.Repeat([]byte{7}, PageSize)
	copied := record(recordCopy, 9, 0, binary.LittleEndian.AppendUint32(word(4), pageCheck(sevens))...)
	pageData := record(recordPageData, 0, 1, append(word(9), word(xxh3.Hash(sevens))...)...)
	f.Add(append(refs, copied...), bytes.Join([][]byte{writeRecord(1, WriteData, 3, 8, 16), pageData, record(recordZeroData, 8, 7),
		record(recordRawData, 15, 1, sevens[:SectorSize]...), writeRecord(0, WriteDiscard, 4, 0, 9), writeRecord(2, WriteBarrier, 5, 0, 0),
		record(recordDiskState, 0, 3, 1, 2, 3), record(recordEnd, 0, 0)}, nil), false)
	const pages, limit = 16, 20*PageSize + 1000
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
		checkDisks(t, dec.Stage(), pages)
		next, count := GFN(0), uint64(len(dec.Stage().References()))
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

// checkDisks demands what the receivers of a stage rely on.
func checkDisks(t *testing.T, s *Stage, pages uint64) {
	brought := NewPageSet(pages)
	s.EachRun(brought.AddRange)
	next := GFN(0)
	for _, r := range s.References() {
		if r.Page < next || uint64(r.Page) >= pages || brought.Contains(r.Page) || r.Disk >= MaxDisks || r.Sector > MaxSectors-PageSectors {
			t.Fatalf("%v, after page %d", r, next)
		}
		next = r.Page + 1
	}
	if brought.Count()+uint64(len(s.References())) != s.PageCount() {
		t.Fatalf("%d pages and %d references of %d", brought.Count(), len(s.References()), s.PageCount())
	}
	seq := uint64(0)
	for _, w := range s.Writes() {
		if err := w.check(seq); err != nil || len(w.Data) != w.dataBytes() {
			t.Fatalf("%v, with %d bytes of data", err, len(w.Data))
		}
		seq = max(seq, w.Seq)
	}
	if len(s.DiskState()) > MaxDiskState {
		t.Fatalf("%d bytes of disk state", len(s.DiskState()))
	}
}
