package epoch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/zeebo/xxh3"
)

const (
	refusePages = 64
	rawMark     = "here begins a page that travels raw"
)

// refuseRig is a rig whose image holds epoch 3, and epoch 4 on the wire, made
// of several chunks and every kind of record.
func refuseRig(t *testing.T) (*rig, sent, []byte) {
	t.Helper()
	r := newRig(refusePages, EncoderConfig{DeltaCacheBytes: 1 << 20, ChunkBytes: MinChunkBytes}, DecoderConfig{})
	random := rand.New(rand.NewPCG(3, 4))
	memory := make([]byte, len(r.image))
	dirty := NewPageSet(refusePages)
	dirty.Fill()
	for range 3 {
		fillRandom(random, memory)
		s, err := r.encode(r.header(KindSync), memory, dirty, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.decode(s); err != nil {
			t.Fatal(err)
		}
		if err := r.commit(s.to); err != nil {
			t.Fatal(err)
		}
	}
	r.enc.SetEffort(EffortFull)
	clear(memory[:3*PageSize])
	copy(memory[10*PageSize:], bytes.Repeat([]byte("text, "), PageSize/6))
	for i := 20 * PageSize; i < 40*PageSize; i += 8 {
		memory[i]++
	}
	memory[41*PageSize]++
	copy(memory[50*PageSize:], rawMark)
	fillRandom(random, memory[50*PageSize+len(rawMark):53*PageSize])
	state := bytes.Repeat([]byte("state"), 10_000)
	fillRandom(random, state[:30_000])
	s, err := r.encode(r.header(KindCheckpoint), memory, dirty, state)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.chunks) < 4 {
		t.Fatalf("%d chunks, want some", len(s.chunks))
	}
	return r, s, memory
}

// Whatever is done to an epoch on its way, the decoder says what is wrong, and
// nothing of it can be applied.
func TestDamagedEpochIsRefused(t *testing.T) {
	put := func(at int, v uint64) func(*rig, *sent) {
		return func(_ *rig, s *sent) { binary.LittleEndian.PutUint64(s.header[at:], v) }
	}
	count := func(at int, delta int64) func(*rig, *sent) {
		return func(_ *rig, s *sent) {
			v := binary.LittleEndian.Uint64(s.trailer[at:])
			binary.LittleEndian.PutUint64(s.trailer[at:], v+uint64(delta))
		}
	}
	for _, c := range []struct {
		name   string
		damage func(*rig, *sent)
		want   Reason
	}{
		{"header torn", func(_ *rig, s *sent) { s.header = s.header[:40] }, ErrMalformed},
		{"another version", func(_ *rig, s *sent) { s.header[4]++ }, ErrVersion},
		{"another image", func(_ *rig, s *sent) { s.header[33]++ }, ErrForeign},
		{"another history", func(_ *rig, s *sent) { s.header[57]++ }, ErrForeign},
		{"another size", put(24, refusePages+1), ErrForeign},
		{"an older generation", put(16, 6), ErrGeneration},
		{"a newer generation", put(16, 8), ErrGeneration},
		{"replayed", func(r *rig, s *sent) { r.at = s.to }, ErrReplayed},
		{"replayed, long ago", func(r *rig, s *sent) { r.at.Number += 1000 }, ErrReplayed},
		{"one missing before it", func(r *rig, s *sent) { r.at.Number-- }, ErrGap},
		{"kind changed", func(_ *rig, s *sent) { s.header[5] = byte(KindSync) }, ErrMalformed},
		{"generation changed on both sides", func(r *rig, s *sent) { s.header[16]++; r.gen++ }, ErrCorrupt},

		{"first chunk lost", func(_ *rig, s *sent) { s.chunks = s.chunks[1:] }, ErrIncomplete},
		{"last chunk lost", func(_ *rig, s *sent) { s.chunks = s.chunks[:len(s.chunks)-1] }, ErrIncomplete},
		{"all chunks lost", func(_ *rig, s *sent) { s.chunks = nil }, ErrIncomplete},
		{"chunk twice", func(_ *rig, s *sent) { s.chunks = append(s.chunks[:1:1], s.chunks...) }, ErrMalformed},
		{"chunks swapped", func(_ *rig, s *sent) { s.chunks[0], s.chunks[1] = s.chunks[1], s.chunks[0] }, ErrMalformed},
		{"device state swapped", func(_ *rig, s *sent) {
			n := len(s.chunks)
			s.chunks[n-1], s.chunks[n-2] = s.chunks[n-2], s.chunks[n-1]
		}, ErrMalformed},
		{"chunk torn in a body", func(_ *rig, s *sent) { s.chunks[0] = s.chunks[0][:len(s.chunks[0])-1] }, ErrMalformed},
		{"chunk torn in a head", func(_ *rig, s *sent) { s.chunks[0] = s.chunks[0][:headSize+3] }, ErrMalformed},
		{"empty chunk added", func(_ *rig, s *sent) { s.chunks = append(s.chunks, nil) }, ErrCorrupt},
		{"a record after the end", func(_ *rig, s *sent) { s.chunks = append(s.chunks, s.chunks[0]) }, ErrMalformed},
		{"one bit of a raw page", func(_ *rig, s *sent) {
			for _, chunk := range s.chunks {
				if at := bytes.Index(chunk, []byte(rawMark)); at >= 0 {
					chunk[at+2] ^= 4
				}
			}
		}, ErrCorrupt},
		{"one bit of the device state", func(_ *rig, s *sent) { s.chunks[len(s.chunks)-2][10000] ^= 4 }, ErrCorrupt},

		{"trailer torn", func(_ *rig, s *sent) { s.trailer = s.trailer[:80] }, ErrMalformed},
		{"fewer chunks counted", count(8, -1), ErrCorrupt},
		{"more chunks counted", count(8, 1), ErrIncomplete},
		{"more bytes counted", count(16, 1), ErrIncomplete},
		{"fewer records counted", count(24, -1), ErrCorrupt},
		{"more pages counted", count(32, 1), ErrIncomplete},
		{"fewer device bytes counted", count(40, -1), ErrCorrupt},
		{"more references counted", count(48, 1), ErrIncomplete},
		{"more writes counted", count(56, 1), ErrIncomplete},
		{"more bytes of writes counted", count(64, 1), ErrIncomplete},
		{"more bytes of disk state counted", count(72, 1), ErrIncomplete},
		{"checksum", count(80, 1), ErrCorrupt},
		{"running hash", count(96, 1), ErrCorrupt},

		{"the image is another one", func(r *rig, s *sent) { r.image[25*PageSize+77]++ }, ErrBase},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, s, memory := refuseRig(t)
			good := sent{header: bytes.Clone(s.header), trailer: bytes.Clone(s.trailer), to: s.to}
			for _, chunk := range s.chunks {
				good.chunks = append(good.chunks, bytes.Clone(chunk))
			}
			at, gen, image := r.at, r.gen, bytes.Clone(r.image)

			c.damage(r, &s)
			err := r.decode(s)
			var refused *RefusedError
			if !errors.Is(err, c.want) || !errors.As(err, &refused) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			t.Log(err)
			if r.dec.Stage() != nil {
				t.Error("a refused epoch can be applied")
			}
			if err := r.dec.Chunk(good.chunks[0]); err == nil {
				t.Error("a chunk is taken after a refusal")
			}
			if _, err := r.dec.End(good.trailer); err == nil {
				t.Error("a trailer is taken after a refusal")
			}

			// The same epoch, whole, is taken as if nothing had happened.
			r.at, r.gen, r.image = at, gen, image
			if err := r.decode(good); err != nil {
				t.Fatalf("the undamaged epoch: %v", err)
			}
			if err := r.commit(good.to); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.image, memory) {
				t.Error("image and memory differ")
			}
		})
	}
}

// record builds one record, whatever it says.
func record(t recordType, frame uint64, n int, body ...byte) []byte {
	b := make([]byte, headSize, headSize+len(body))
	putHead(b, t, frame, n)
	return append(b, body...)
}

// writeRecord builds the head of a write.
func writeRecord(disk uint64, kind WriteKind, seq, sector uint64, sectors uint32) []byte {
	body := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, seq), sector)
	return record(recordWrite, disk, int(kind), binary.LittleEndian.AppendUint32(body, sectors)...)
}

func TestHostileRecordIsRefused(t *testing.T) {
	page := make([]byte, PageSize)
	bomb := binary.AppendUvarint(nil, 1<<32-1)
	small := s2.Encode(nil, page[:PageSize-1])
	large := s2.Encode(nil, make([]byte, PageSize+1))
	torn := s2.Encode(nil, bytes.Repeat([]byte("abc"), 2000)[:PageSize])
	torn = torn[:len(torn)-1]
	good := s2.Encode(nil, page)
	// Longer than anything of its type may be, although it is all there.
	padded := make([]byte, PageSize+1)
	check := []byte{1, 2, 3, 4}
	join := func(records ...[]byte) []byte { return bytes.Join(records, nil) }
	refs := func(first uint64, n int, disk, sector uint64) []byte {
		return record(recordReference, first, n, append(binary.LittleEndian.AppendUint64(nil, disk<<56|sector), make([]byte, 16*n)...)...)
	}
	copyOf := func(f, source uint64, check uint32) []byte {
		return record(recordCopy, f, 0, binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(nil, source), check)...)
	}
	write := writeRecord
	zeroCheck := xxh3.Hash(page)
	pageData := func(sector, first uint64, checks ...uint64) []byte {
		body := binary.LittleEndian.AppendUint64(nil, first)
		for _, c := range checks {
			body = binary.LittleEndian.AppendUint64(body, c)
		}
		return record(recordPageData, sector, len(checks), body...)
	}
	packed := func(t recordType, body []byte) []byte { return record(t, 1, len(body), body...) }
	checked := func(t recordType, body []byte) []byte {
		return record(t, 1, len(body), append(bytes.Clone(check), body...)...)
	}
	for _, c := range []struct {
		name  string
		chunk []byte
		want  Reason
		say   string
	}{
		{"type 0", record(0, 1, 1), ErrMalformed, "unknown type 0"},
		{"type 18", record(18, 1, 1), ErrMalformed, "unknown type 18"},
		{"type 37", record(37, 1, 1), ErrMalformed, "unknown type 37"},
		{"type 255", record(255, 1, 1), ErrMalformed, "unknown type 255"},
		{"no zero pages", record(recordZero, 1, 0), ErrMalformed, "n = 0"},
		{"no raw pages", record(recordRaw, 1, 0), ErrMalformed, "n = 0"},
		{"zero pages behind the image", record(recordZero, refusePages, 1), ErrMalformed, "outside"},
		{"zero pages over the end", record(recordZero, refusePages-1, 2), ErrMalformed, "outside"},
		{"zero pages far away", record(recordZero, 1<<40-1, maxCount), ErrMalformed, "outside"},
		{"raw pages over the end", record(recordRaw, refusePages-1, 2, make([]byte, 2*PageSize)...), ErrMalformed, "outside"},
		{"raw pages missing", record(recordRaw, 0, maxCount, page...), ErrMalformed, "of which 4104 are here"},
		{"page twice", bytes.Join([][]byte{record(recordRaw, 5, 1, page...), record(recordZero, 5, 1)}, nil), ErrMalformed, "page 5 comes after page 5, or twice"},
		{"runs overlap", bytes.Join([][]byte{record(recordZero, 5, 9), record(recordZero, 13, 9)}, nil), ErrMalformed, "chunk 1, byte 8: page 13 comes after page 13"},
		{"page descends", bytes.Join([][]byte{record(recordZero, 5, 1), record(recordZero, 4, 1)}, nil), ErrMalformed, "page 4 comes after page 5"},
		{"nothing packed", packed(recordPacked, nil), ErrMalformed, "n = 0"},
		{"packed bomb", packed(recordPacked, append(bomb, good...)), ErrMalformed, "decompress"},
		{"packed too small", packed(recordPacked, small), ErrMalformed, "4095 bytes"},
		{"packed too large", packed(recordPacked, large), ErrMalformed, "4097 bytes"},
		{"packed torn", packed(recordPacked, torn), ErrMalformed, "decompressing page 1"},
		{"packed longer than a page", packed(recordPacked, padded), ErrMalformed, "n = 4097"},
		{"nothing xored", checked(recordXOR, nil), ErrMalformed, "n = 0"},
		{"xored bomb", checked(recordXOR, append(bomb, good...)), ErrMalformed, "decompress"},
		{"xored too small", checked(recordXOR, small), ErrMalformed, "4095 bytes"},
		{"xored, wrong check", checked(recordXOR, good), ErrBase, "page 1"},
		{"check missing", record(recordPatch, 1, 0, 1, 2), ErrMalformed, "of which 10 are here"},
		{"same, wrong check", checked(recordPatch, nil), ErrBase, "page 1"},
		{"patch beyond the page", checked(recordPatch, []byte{255, 0, 255, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0}), ErrMalformed, "malformed patch"},
		{"patch longer than a page", checked(recordPatch, padded), ErrMalformed, "n = 4097"},
		{"no device state", record(recordState, 0, 0), ErrMalformed, "n = 0"},
		{"device state from the middle", record(recordState, 1, 1, 7), ErrMalformed, "offset 1, want 0"},
		{"device state twice", append(record(recordState, 0, 1, 7), record(recordState, 0, 1, 7)...), ErrMalformed, "offset 0, want 1"},
		{"packed state bomb", record(recordPackedState, 0, len(bomb)+9, append(bomb, make([]byte, 9)...)...), ErrMalformed, "decompresses to"},
		{"packed state of nothing", record(recordPackedState, 0, 1, 0), ErrMalformed, "decompresses to 0 bytes"},
		{"packed state torn", record(recordPackedState, 0, len(torn), torn...), ErrMalformed, "decompressing device state"},
		{"packed state from the middle", record(recordPackedState, 9, len(good), good...), ErrMalformed, "offset 9, want 0"},
		{"no references", record(recordReference, 1, 0, make([]byte, 8)...), ErrMalformed, "n = 0"},
		{"references over the end", refs(refusePages-1, 2, 0, 0), ErrMalformed, "outside the image"},
		{"references missing", refs(1, 2, 0, 0)[:40], ErrMalformed, "of which 40 are here"},
		{"reference to no disk", refs(1, 1, MaxDisks, 0), ErrMalformed, "disk 16, sectors 0+8"},
		{"reference behind every disk", refs(1, 1, 0, MaxSectors-7), ErrMalformed, "outside every disk"},
		{"references over the end of every disk", refs(1, 2, 0, MaxSectors-8), ErrMalformed, "outside every disk"},
		{"reference far behind every disk", refs(1, 1, 0, 1<<56-1), ErrMalformed, "outside every disk"},
		{"reference twice", join(refs(1, 1, 0, 0), refs(1, 1, 0, 0)), ErrMalformed, "page 1 comes after page 1"},
		{"a copy with a count", record(recordCopy, 2, 1, make([]byte, 12)...), ErrMalformed, "n = 1"},
		{"a copy of itself", copyOf(2, 2, 0), ErrMalformed, "want a lower one"},
		{"a copy of a higher page", copyOf(2, 3, 0), ErrMalformed, "want a lower one"},
		{"a copy outside the image", copyOf(refusePages, 3, 0), ErrMalformed, "outside the image"},
		{"a copy of something far away", copyOf(2, 1<<63, 0), ErrMalformed, "want a lower one"},
		{"a copy of a reference", join(refs(1, 3, 0, 0), copyOf(4, 2, 0)), ErrMalformed, "page 2, which is a reference"},
		{"a copy with another content", copyOf(4, 2, 7), ErrBase, "copied from page 2"},
		{"a copy of this epoch with another content", join(record(recordZero, 2, 1), copyOf(4, 2, 7)), ErrBase, "copied from page 2"},
		{"a write of kind 0", record(recordWrite, 0, 0, make([]byte, writeSize)...), ErrMalformed, "n = 0"},
		{"a write of kind 6", record(recordWrite, 0, 6, make([]byte, writeSize)...), ErrMalformed, "n = 6"},
		{"a write torn", write(0, WriteData, 1, 0, 1)[:20], ErrMalformed, "of which 20 are here"},
		{"a write to no disk", write(MaxDisks, WriteData, 1, 0, 1), ErrMalformed, "disk 16"},
		{"a write to a disk far away", write(1<<40-256, WriteData, 1, 0, 1), ErrMalformed, "disk 1099511627520"},
		{"a write without a number", write(0, WriteData, 0, 0, 1), ErrMalformed, "number 0 after 0"},
		{"a write twice", join(write(0, WriteDiscard, 5, 0, 1), write(0, WriteDiscard, 5, 0, 1)), ErrMalformed, "number 5 after 5"},
		{"writes descend", join(write(0, WriteDiscard, 5, 0, 1), write(1, WriteDiscard, 4, 0, 1)), ErrMalformed, "number 4 after 5"},
		{"a synchronisation with a number", write(0, WriteSync, 1, 0, 1), ErrMalformed, "number 1, want 0"},
		{"a write of nothing", write(0, WriteData, 1, 0, 0), ErrMalformed, "of 0 sectors"},
		{"a discard of nothing", write(0, WriteDiscard, 1, 0, 0), ErrMalformed, "of 0 sectors"},
		{"a barrier of a sector", write(0, WriteBarrier, 1, 0, 1), ErrMalformed, "of 1 sectors"},
		{"a barrier somewhere", write(0, WriteBarrier, 1, 8, 0), ErrMalformed, "sectors 8+0"},
		{"a write too large", write(0, WriteData, 1, 0, MaxWriteSectors+1), ErrMalformed, "of 8193 sectors"},
		{"a synchronisation too large", write(0, WriteSync, 0, 0, MaxWriteSectors+1), ErrMalformed, "of 8193 sectors"},
		{"zeroes too large", write(0, WriteZeroes, 1, 0, MaxZeroSectors+1), ErrMalformed, "of 32769 sectors"},
		{"a giant discard", write(0, WriteDiscard, 1, 0, 1<<32-1), ErrMalformed, "of 4294967295 sectors"},
		{"a write over the end of every disk", write(0, WriteData, 1, MaxSectors, 1), ErrMalformed, "outside every disk"},
		{"a write far behind every disk", write(0, WriteData, 1, 1<<64-1, 1), ErrMalformed, "outside every disk"},
		{"data without a write", record(recordZeroData, 0, 1), ErrMalformed, "wants 0 more"},
		{"data of a discard", join(write(0, WriteDiscard, 1, 0, 1), record(recordZeroData, 0, 1)), ErrMalformed, "wants 0 more"},
		{"no data", join(write(0, WriteData, 1, 0, 1), record(recordRawData, 0, 0)), ErrMalformed, "n = 0"},
		{"data from the middle", join(write(0, WriteData, 1, 0, 2), record(recordZeroData, 1, 1)), ErrMalformed, "for sector 1 of a write, want sector 0"},
		{"data twice", join(write(0, WriteData, 1, 0, 2), record(recordZeroData, 0, 1), record(recordZeroData, 0, 1)), ErrMalformed, "for sector 0 of a write, want sector 1"},
		{"too much zero data", join(write(0, WriteData, 1, 0, 2), record(recordZeroData, 0, 3)), ErrMalformed, "wants 1024 more"},
		{"too much raw data", join(write(0, WriteData, 1, 0, 7), record(recordRawData, 0, 8, page...)), ErrMalformed, "wants 3584 more"},
		{"too much packed data", join(write(0, WriteData, 1, 0, 7), record(recordPackedData, 0, len(good), good...)), ErrMalformed, "wants 3584 more"},
		{"too much page data", join(write(0, WriteData, 1, 0, 15), pageData(0, 1, 0, 0)), ErrMalformed, "wants 7680 more"},
		{"raw data missing", join(write(0, WriteData, 1, 0, 8), record(recordRawData, 0, 8, page[:100]...)), ErrMalformed, "of which 108 are here"},
		{"data without end", record(recordRawData, 0, MaxWriteSectors+1), ErrMalformed, "n = 8193"},
		{"packed data bomb", join(write(0, WriteData, 1, 0, 8), record(recordPackedData, 0, len(bomb)+9, append(bomb, make([]byte, 9)...)...)), ErrMalformed, "whole sectors"},
		{"packed data of half a sector", join(write(0, WriteData, 1, 0, 8), record(recordPackedData, 0, len(small), small...)), ErrMalformed, "decompresses to 4095"},
		{"packed data torn", join(write(0, WriteData, 1, 0, 8), record(recordPackedData, 0, len(torn), torn...)), ErrMalformed, "decompressing data"},
		{"page data outside the image", join(write(0, WriteData, 1, 0, 16), pageData(0, refusePages-1, 0, 0)), ErrMalformed, "pages 63+2, outside the image"},
		{"page data from far away", join(write(0, WriteData, 1, 0, 8), pageData(0, 1<<64-1, 0)), ErrMalformed, "outside the image"},
		{"page data of a reference", join(refs(5, 3, 0, 0), write(0, WriteData, 1, 0, 16), pageData(0, 4, zeroCheck, 0)), ErrMalformed, "page 5, which is a reference"},
		{"page data with another content", join(write(0, WriteData, 1, 0, 16), pageData(0, 4, zeroCheck, 1)), ErrBase, "out of page 5"},
		{"a page while a write wants data", join(write(0, WriteData, 1, 0, 8), record(recordZero, 1, 1)), ErrMalformed, "(pages) after disk writes"},
		{"a write while a write wants data", join(write(0, WriteData, 1, 0, 8), write(0, WriteBarrier, 2, 0, 0)), ErrMalformed, "wants 4096 more bytes"},
		{"an end while a write wants data", join(write(0, WriteData, 1, 0, 8), record(recordZeroData, 0, 7), record(recordEnd, 0, 0)), ErrMalformed, "wants 512 more bytes"},
		{"a page after the device state", join(record(recordState, 0, 1, 7), record(recordZero, 1, 1)), ErrMalformed, "(pages) after device state"},
		{"a write after the device state", join(record(recordState, 0, 1, 7), write(0, WriteBarrier, 1, 0, 0)), ErrMalformed, "(disk writes) after device state"},
		{"a device state after the disk state", join(record(recordDiskState, 0, 1, 7), record(recordState, 0, 1, 7)), ErrMalformed, "(device state) after disk state"},
		{"no disk state", record(recordDiskState, 0, 0), ErrMalformed, "n = 0"},
		{"disk state twice", join(record(recordDiskState, 0, 1, 7), record(recordDiskState, 0, 1, 7)), ErrMalformed, "disk state at offset 0, want 1"},
		{"packed disk state torn", record(recordPackedDiskState, 0, len(torn), torn...), ErrMalformed, "decompressing disk state"},
		{"packed disk state bomb", record(recordPackedDiskState, 0, len(bomb)+9, append(bomb, make([]byte, 9)...)...), ErrMalformed, "disk state at offset 0 decompresses to"},
		{"an end with a count", record(recordEnd, 0, 1), ErrMalformed, "n = 1"},
		{"an end with a frame", record(recordEnd, 1, 0), ErrMalformed, "frame 1"},
		{"end twice", append(record(recordEnd, 0, 0), record(recordEnd, 0, 0)...), ErrMalformed, "follow the end"},
		{"a byte too many", append(record(recordEnd, 0, 0), 0), ErrMalformed, "1 bytes where"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(refusePages, EncoderConfig{}, DecoderConfig{})
			h := r.header(KindCheckpoint)
			if _, err := r.dec.Begin(h.AppendTo(nil), r.at, r.gen); err != nil {
				t.Fatal(err)
			}
			err := r.dec.Chunk(c.chunk)
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.say) {
				t.Fatalf("%v, want %v saying %q", err, c.want, c.say)
			}
			if r.dec.Stage() != nil || r.dec.stage.Bytes() != 0 {
				t.Error("something of it is left")
			}
			if again := r.dec.Chunk(record(recordZero, 0, 1)); !errors.Is(again, c.want) {
				t.Errorf("the next chunk: %v, want the same refusal", again)
			}
		})
	}
}

func TestEpochWithoutItsPartsIsRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		kind  Kind
		chunk []byte
		want  Reason
		say   string
	}{
		{"checkpoint without device state", KindCheckpoint, record(recordEnd, 0, 0), ErrIncomplete, "without a device state"},
		{"no end record", KindCheckpoint, record(recordState, 0, 1, 7), ErrIncomplete, "no end record"},
		{"sync with a device state", KindSync, record(recordState, 0, 1, 7), ErrMalformed, "device state in an epoch of kind sync"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(refusePages, EncoderConfig{}, DecoderConfig{})
			_, err := r.dec.Begin(r.header(c.kind).AppendTo(nil), r.at, r.gen)
			if err != nil {
				t.Fatal(err)
			}
			if err = r.dec.Chunk(c.chunk); err == nil {
				trailer := r.dec.seen // counts are right, and so are the hashes
				trailer.Checksum, trailer.Running = r.dec.sum.end()
				_, err = r.dec.End(trailer.AppendTo(nil))
			}
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.say) {
				t.Errorf("%v, want %v saying %q", err, c.want, c.say)
			}
		})
	}
}

func TestStageKeepsItsLimit(t *testing.T) {
	page := make([]byte, PageSize)
	for _, c := range []struct {
		name   string
		limit  uint64
		record func(i int) []byte
	}{
		{"raw pages", 10 * PageSize, func(i int) []byte { return record(recordRaw, uint64(i), 1, page...) }},
		{"raw pages, several slabs", 3<<20 + 10000, func(i int) []byte { return record(recordRaw, uint64(i), 1, page...) }},
		{"scattered zero pages", 10 * PageSize, func(i int) []byte { return record(recordZero, uint64(2*i), 1) }},
		{"device state", 10 * PageSize, func(i int) []byte { return record(recordState, uint64(i)*PageSize, PageSize, page...) }},
		{"references", 10 * PageSize, func(i int) []byte { return record(recordReference, uint64(i), 1, make([]byte, 24)...) }},
		{"barriers", 10 * PageSize, func(i int) []byte { return writeRecord(0, WriteBarrier, uint64(i+1), 0, 0) }},
		{"zero data", 3<<20 + 10000, func(i int) []byte {
			return append(writeRecord(0, WriteData, uint64(i+1), 0, 200), record(recordZeroData, 0, 200)...)
		}},
		{"large writes", 20 << 20, func(i int) []byte {
			n := []int{1, 1000, MaxWriteSectors}[i%3]
			return append(writeRecord(0, WriteSync, 0, 0, uint32(n)), record(recordZeroData, 0, n)...)
		}},
		{"disk state", 10 * PageSize, func(i int) []byte { return record(recordDiskState, uint64(i)*PageSize, PageSize, page...) }},
		{"no room at all", 1, func(i int) []byte { return record(recordZero, uint64(2*i), 1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(8192, EncoderConfig{}, DecoderConfig{MaxStageBytes: c.limit})
			for range 2 { // the second epoch gets as far as the first
				if _, err := r.dec.Begin(r.header(KindCheckpoint).AppendTo(nil), r.at, r.gen); err != nil {
					t.Fatal(err)
				}
				var err error
				var most uint64
				for i := 0; err == nil; i++ {
					most = r.dec.stage.used()
					err = r.dec.Chunk(c.record(i))
				}
				if !errors.Is(err, ErrTooLarge) {
					t.Fatal(err)
				}
				spare := uint64(stageSlab)
				if c.name == "large writes" {
					spare = MaxWriteSectors * SectorSize
				}
				if most > c.limit || most+spare < c.limit {
					t.Errorf("%d bytes staged, the limit is %d", most, c.limit)
				}
				if got := uint64(len(r.dec.stage.slabs) * r.dec.stage.slab); got > c.limit {
					t.Errorf("%d bytes of slabs, the limit is %d", got, c.limit)
				}
			}
		})
	}

	t.Run("disk state above its bound", func(t *testing.T) {
		r := newRig(8, EncoderConfig{}, DecoderConfig{})
		if _, err := r.dec.Begin(r.header(KindSync).AppendTo(nil), r.at, r.gen); err != nil {
			t.Fatal(err)
		}
		var err error
		for at := 0; err == nil; at += PageSize {
			if at > MaxDiskState {
				t.Fatalf("%d bytes of disk state taken", at)
			}
			err = r.dec.Chunk(record(recordDiskState, uint64(at), PageSize, page...))
		}
		if !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	})
	t.Run("device state above its bound", func(t *testing.T) {
		r := newRig(8, EncoderConfig{}, DecoderConfig{})
		if _, err := r.dec.Begin(r.header(KindCheckpoint).AppendTo(nil), r.at, r.gen); err != nil {
			t.Fatal(err)
		}
		piece := make([]byte, maxCount)
		var err error
		for at := 0; err == nil; at += len(piece) {
			if at > MaxDeviceState {
				t.Fatalf("%d bytes of device state taken", at)
			}
			err = r.dec.Chunk(record(recordState, uint64(at), len(piece), piece...))
		}
		if !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	})
}

func TestBaseThatCannotBeReadIsRefused(t *testing.T) {
	broken := errors.New("the image is gone")
	dec := NewDecoder(refusePages, DecoderConfig{}, func(GFN, []byte) error { return broken })
	at := Position{Image: Incarnation{1}}
	h := Header{Kind: KindSync, Number: 1, Parent: at, Pages: refusePages}
	if _, err := dec.Begin(h.AppendTo(nil), at, 0); err != nil {
		t.Fatal(err)
	}
	if err := dec.Chunk(record(recordPatch, 9, 0, 1, 2, 3, 4)); !errors.Is(err, ErrBase) || !errors.Is(err, broken) {
		t.Errorf("%v, want %v because of %v", err, ErrBase, broken)
	}
}

func TestDecoderCallsOutOfOrder(t *testing.T) {
	r, s, _ := refuseRig(t)
	misuse := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrMisuse) {
			t.Errorf("%s: %v, want %v", what, err, ErrMisuse)
		}
	}
	r.dec.Reset()
	misuse("a chunk before any header", r.dec.Chunk(s.chunks[0]))
	_, err := r.dec.End(s.trailer)
	misuse("a trailer before any header", err)
	if err := r.decode(s); err != nil {
		t.Fatal(err)
	}
	misuse("a chunk after the trailer", r.dec.Chunk(s.chunks[0]))
	_, err = r.dec.End(s.trailer)
	misuse("a second trailer", err)
	if r.dec.Stage() == nil {
		t.Error("the stage is gone")
	}
	r.dec.Reset()
	if r.dec.Stage() != nil {
		t.Error("the stage outlived Reset")
	}
}
