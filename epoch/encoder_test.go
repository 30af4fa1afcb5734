package epoch

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

const encodePages = 32

// encoderRig is a rig that has committed one epoch of random pages, all of
// them in the delta cache, and that memory.
func encoderRig(t *testing.T) (*rig, []byte, *PageSet) {
	t.Helper()
	r := newRig(encodePages, EncoderConfig{DeltaCacheBytes: 1 << 20}, DecoderConfig{})
	memory := make([]byte, len(r.image))
	fillRandom(rand.New(rand.NewPCG(5, 6)), memory)
	all := NewPageSet(encodePages)
	all.Fill()
	s := r.mustCommit(t, KindSync, memory, all)
	if s.stats.RawPages != encodePages {
		t.Fatalf("first epoch: %+v", s.stats)
	}
	return r, memory, all
}

func (r *rig) mustCommit(t *testing.T, kind Kind, memory []byte, dirty *PageSet) sent {
	t.Helper()
	s, err := r.encode(r.header(kind), memory, dirty, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.decode(s); err != nil {
		t.Fatal(err)
	}
	if err := r.commit(s.to); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.image, memory) {
		t.Fatal("image and memory differ")
	}
	return s
}

func TestPagesTheBackupHoldsTravelAsDeltas(t *testing.T) {
	r, memory, all := encoderRig(t)
	memory[3*PageSize]++
	s := r.mustCommit(t, KindSync, memory, all)
	if st := s.stats; st.SamePages != encodePages-1 || st.DeltaPages != 1 || st.WireBytes > 1000 {
		t.Errorf("%+v, want %d pages the same and one delta, in 1000 bytes", st, encodePages-1)
	}
}

// The encoder may build on the cache only if the backup has applied all that
// went into it.
func TestWhateverEndsAnEpochEarlyEndsTheCache(t *testing.T) {
	broken := errors.New("connection reset")
	nothing := func([]byte) error { return nil }
	for _, c := range []struct {
		name string
		end  func(t *testing.T, r *rig, memory []byte)
	}{
		{"Forget", func(t *testing.T, r *rig, memory []byte) { r.enc.Forget() }},
		{"Abort", func(t *testing.T, r *rig, memory []byte) {
			if err := r.enc.Begin(r.header(KindSync), nothing); err != nil {
				t.Fatal(err)
			}
			if err := r.enc.Pages(0, memory[:PageSize]); err != nil {
				t.Fatal(err)
			}
			r.enc.Abort()
			if err := r.enc.Pages(1, memory[:PageSize]); !errors.Is(err, ErrMisuse) {
				t.Errorf("a page after Abort: %v", err)
			}
		}},
		{"sink fails in Pages", func(t *testing.T, r *rig, memory []byte) {
			r.enc.SetEffort(EffortNone)
			if err := r.enc.Begin(r.header(KindSync), func([]byte) error { return broken }); err != nil {
				t.Fatal(err)
			}
			var err error
			for f := GFN(0); err == nil && f < encodePages; f++ {
				err = r.enc.Pages(f, memory[f*PageSize:][:PageSize])
			}
			if err == nil {
				_, _, _, err = r.enc.End()
			}
			if !errors.Is(err, broken) {
				t.Errorf("%v, want %v", err, broken)
			}
			if _, _, _, err := r.enc.End(); err == nil {
				t.Error("a broken epoch ended well")
			}
			r.enc.SetEffort(EffortDelta)
		}},
		{"sink fails in End", func(t *testing.T, r *rig, memory []byte) {
			if err := r.enc.Begin(r.header(KindSync), func([]byte) error { return broken }); err != nil {
				t.Fatal(err)
			}
			if _, _, _, err := r.enc.End(); !errors.Is(err, broken) {
				t.Errorf("%v, want %v", err, broken)
			}
		}},
		{"misuse", func(t *testing.T, r *rig, memory []byte) {
			if err := r.enc.Begin(r.header(KindSync), nothing); err != nil {
				t.Fatal(err)
			}
			if err := r.enc.Pages(encodePages, memory[:PageSize]); !errors.Is(err, ErrMisuse) {
				t.Errorf("a page outside the image: %v", err)
			}
		}},
		{"an epoch that was lost", func(t *testing.T, r *rig, memory []byte) {
			all := NewPageSet(encodePages)
			all.Fill()
			if _, err := r.encode(r.header(KindSync), bytes.Repeat([]byte("other"), len(memory)), all, nil); err != nil {
				t.Fatal(err)
			}
		}},
		{"another image", func(t *testing.T, r *rig, memory []byte) {
			r.at.Image[0]++
			clear(r.image)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, memory, all := encoderRig(t)
			c.end(t, r, memory)
			s := r.mustCommit(t, KindSync, memory, all)
			if s.stats.RawPages != encodePages {
				t.Errorf("%+v, want every page raw", s.stats)
			}
		})
	}
}

func TestEncoderRefusesMisuse(t *testing.T) {
	page, state := make([]byte, PageSize), []byte{1}
	for _, c := range []struct {
		name string
		kind Kind
		call func(e *Encoder) error
	}{
		{"half a page", KindSync, func(e *Encoder) error { return e.Pages(0, page[:100]) }},
		{"pages over the end", KindSync, func(e *Encoder) error { return e.Pages(encodePages-1, make([]byte, 2*PageSize)) }},
		{"page far away", KindSync, func(e *Encoder) error { return e.Pages(^GFN(0), page) }},
		{"page twice", KindSync, func(e *Encoder) error { return errors.Join(e.Pages(4, page), e.Pages(4, page)) }},
		{"pages overlap", KindSync, func(e *Encoder) error {
			return errors.Join(e.Pages(4, make([]byte, 3*PageSize)), e.Pages(6, page))
		}},
		{"page descends", KindSync, func(e *Encoder) error { return errors.Join(e.Pages(4, page), e.Pages(3, page)) }},
		{"device state in a sync", KindSync, func(e *Encoder) error { return e.DeviceState(state) }},
		{"empty device state", KindCheckpoint, func(e *Encoder) error { return e.DeviceState(nil) }},
		{"giant device state", KindCheckpoint, func(e *Encoder) error { return e.DeviceState(make([]byte, MaxDeviceState+1)) }},
		{"device state twice", KindCheckpoint, func(e *Encoder) error { return errors.Join(e.DeviceState(state), e.DeviceState(state)) }},
		{"checkpoint without device state", KindCheckpoint, func(e *Encoder) error { _, _, _, err := e.End(); return err }},
		{"epoch in an epoch", KindSync, func(e *Encoder) error {
			return e.Begin(Header{Number: 9}, func([]byte) error { return nil })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(encodePages, EncoderConfig{}, DecoderConfig{})
			if err := r.enc.Begin(r.header(c.kind), func([]byte) error { return nil }); err != nil {
				t.Fatal(err)
			}
			if err := c.call(r.enc); !errors.Is(err, ErrMisuse) {
				t.Errorf("%v, want %v", err, ErrMisuse)
			}
		})
	}
	r := newRig(encodePages, EncoderConfig{}, DecoderConfig{})
	if err := r.enc.Pages(0, page); !errors.Is(err, ErrMisuse) {
		t.Errorf("a page without an epoch: %v", err)
	}
	h := r.header(KindSync)
	h.Pages++
	if err := r.enc.Begin(h, nil); !errors.Is(err, ErrForeign) {
		t.Errorf("an epoch of an image of another size: %v", err)
	}
}

// A device state of the largest size comes through whole, in chunks that keep
// their bound.
func TestLargestDeviceState(t *testing.T) {
	r := newRig(1, EncoderConfig{}, DecoderConfig{})
	state := make([]byte, MaxDeviceState)
	fillRandom(rand.New(rand.NewPCG(1, 1)), state[:1<<20])
	for n := 1 << 20; n < len(state); n *= 2 {
		copy(state[n:], state[:n])
	}
	s, err := r.encode(r.header(KindCheckpoint), r.image, NewPageSet(1), state)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.chunks {
		if len(c) > DefaultChunkBytes {
			t.Fatalf("a chunk of %d bytes", len(c))
		}
	}
	if err := r.decode(s); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.dec.Stage().DeviceState(), state) {
		t.Error("device state differs")
	}
}

// Zero pages are written in bounded pieces, and runs longer than a record's
// count come back whole.
func TestLargeZeroRun(t *testing.T) {
	const pages = 70_001
	enc := NewEncoder(pages, EncoderConfig{})
	var chunk []byte
	h := Header{Kind: KindSync, Number: 1, Parent: Position{Image: Incarnation{1}}, Pages: pages}
	if err := enc.Begin(h, func(c []byte) error { chunk = bytes.Clone(c); return nil }); err != nil {
		t.Fatal(err)
	}
	zero := make([]byte, 1000*PageSize)
	for f := GFN(0); f < pages; f += 1000 {
		if err := enc.Pages(f, zero[:min(1000, pages-f)*PageSize]); err != nil {
			t.Fatal(err)
		}
	}
	trailer, _, _, err := enc.End()
	if err != nil {
		t.Fatal(err)
	}
	if len(chunk) != 3*headSize {
		t.Errorf("a chunk of %d bytes, want two zero runs and the end", len(chunk))
	}
	dec := NewDecoder(pages, DecoderConfig{}, nil)
	if _, err := dec.Begin(h.AppendTo(nil), h.Parent, 0); err != nil {
		t.Fatal(err)
	}
	if err := dec.Chunk(chunk); err != nil {
		t.Fatal(err)
	}
	if _, err := dec.End(trailer.AppendTo(nil)); err != nil {
		t.Fatal(err)
	}
	next := GFN(0)
	if err := dec.Stage().Apply(func(first GFN, data []byte) error {
		if first != next || len(data) > 1<<20 {
			t.Fatalf("%d bytes at page %d, want at most 1 MiB at page %d", len(data), first, next)
		}
		next += GFN(len(data) / PageSize)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if next != pages {
		t.Errorf("%d pages written, want %d", next, pages)
	}
}

// An Apply that fails half way is repeated, and the image is right.
func TestApplyIsRepeatable(t *testing.T) {
	r, memory, all := encoderRig(t)
	clear(memory[5*PageSize : 9*PageSize])
	memory[20*PageSize]++
	s, err := r.encode(r.header(KindSync), memory, all, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.decode(s); err != nil {
		t.Fatal(err)
	}
	full := errors.New("no space left on device")
	left := 2
	if err := r.dec.Stage().Apply(func(first GFN, data []byte) error {
		if left--; left < 0 {
			return full
		}
		copy(r.image[first*PageSize:], data)
		return nil
	}); !errors.Is(err, full) {
		t.Fatalf("%v, want %v", err, full)
	}
	if err := r.commit(s.to); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.image, memory) {
		t.Error("image and memory differ")
	}
}

func TestHashPages(t *testing.T) {
	image := make([]byte, 700*PageSize) // several pieces, the last one short
	fillRandom(rand.New(rand.NewPCG(1, 9)), image)
	read := func(first GFN, dst []byte) error {
		if len(dst) > 1<<20 {
			t.Fatalf("read of %d bytes", len(dst))
		}
		copy(dst, image[first*PageSize:])
		return nil
	}
	hash := func(first GFN, count uint64) Hash {
		h, err := HashPages(read, first, count)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	whole := hash(0, 700)
	if hash(0, 700) != whole {
		t.Error("not the same twice")
	}
	image[699*PageSize+4095]++
	if hash(0, 700) == whole || hash(0, 699) == whole {
		t.Error("the last byte does not matter")
	}
	// The empty input of xxh3-128 is a published test vector.
	if got := hash(3, 0).String(); got != "99aa06d3014798d86001c324468d497f" {
		t.Errorf("hash of nothing: %s", got)
	}
	broken := errors.New("page gone")
	if _, err := HashPages(func(GFN, []byte) error { return broken }, 0, 1); !errors.Is(err, broken) {
		t.Errorf("%v, want %v", err, broken)
	}
	if _, err := HashPages(read, 1, ^uint64(0)); err == nil {
		t.Error("a count beyond every image is taken")
	}
}
