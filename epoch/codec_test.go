package epoch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// rig is an encoder and a decoder joined by a perfect wire, with the image the
// backup would hold.
type rig struct {
	enc   *Encoder
	dec   *Decoder
	image []byte
	at    Position
	gen   Generation
}

func newRig(pages uint64, enc EncoderConfig, dec DecoderConfig) *rig {
	r := &rig{image: make([]byte, pages*PageSize), at: Position{Image: Incarnation{1, 2, 3}}, gen: 7}
	r.enc = NewEncoder(pages, enc)
	r.dec = NewDecoder(pages, dec, func(first GFN, dst []byte) error {
		copy(dst, r.image[first*PageSize:])
		return nil
	})
	return r
}

func (r *rig) header(kind Kind) Header {
	return Header{Kind: kind, Number: r.at.Number + 1, Parent: r.at, Generation: r.gen, Pages: uint64(len(r.image) / PageSize)}
}

// sent is one epoch as it is on the wire.
type sent struct {
	header, trailer []byte
	chunks          [][]byte
	stats           EpochStats
	to              Position
}

// disks are what an epoch says of disks.
type disks struct {
	leave  Excluder
	writes []DiskWrite
	equal  func(page GFN, piece []byte) bool
	state  []byte
}

// encode makes an epoch of the given pages of memory.
func (r *rig) encode(h Header, memory []byte, dirty *PageSet, device []byte) (sent, error) {
	return r.encodeWith(h, memory, dirty, device, disks{})
}

// encodeWith makes an epoch of the given pages of memory, and of what disks says.
func (r *rig) encodeWith(h Header, memory []byte, dirty *PageSet, device []byte, d disks) (sent, error) {
	s := sent{header: h.AppendTo(nil)}
	if err := r.enc.Begin(h, func(chunk []byte) error {
		s.chunks = append(s.chunks, bytes.Clone(chunk))
		return nil
	}); err != nil {
		return sent{}, err
	}
	if d.leave != nil {
		r.enc.SetExcluder(d.leave)
	}
	for first, count := range dirty.Runs {
		if err := r.enc.Pages(first, memory[first*PageSize:][:count*PageSize]); err != nil {
			return sent{}, err
		}
	}
	if err := r.enc.Writes(d.writes, d.equal); err != nil {
		return sent{}, err
	}
	if device != nil {
		if err := r.enc.DeviceState(device); err != nil {
			return sent{}, err
		}
	}
	if d.state != nil {
		if err := r.enc.DiskState(d.state); err != nil {
			return sent{}, err
		}
	}
	trailer, to, stats, err := r.enc.End()
	s.trailer, s.to, s.stats = trailer.AppendTo(nil), to, stats
	return s, err
}

// decode gives an epoch to the decoder, all of it.
func (r *rig) decode(s sent) error {
	if _, err := r.dec.Begin(s.header, r.at, r.gen); err != nil {
		return err
	}
	for _, c := range s.chunks {
		if err := r.dec.Chunk(c); err != nil {
			return err
		}
	}
	_, err := r.dec.End(s.trailer)
	return err
}

// commit applies the decoded epoch to the image.
func (r *rig) commit(to Position) error {
	err := r.dec.Stage().Apply(func(first GFN, data []byte) error {
		copy(r.image[first*PageSize:], data)
		return nil
	})
	r.at = to
	r.dec.Reset()
	return err
}

// Random epochs over a small image, at every effort, with caches that are too
// small: after each commit the image equals the memory, bit for bit.
func TestEveryEpochMakesTheImageEqualTheMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const pages = 96
		r := newRig(pages, EncoderConfig{
			DeltaCacheBytes: rapid.SampledFrom([]uint64{0, 10, 9 * cacheEntry, 40 * cacheEntry, 1 << 20}).Draw(t, "cache"),
			ChunkBytes:      rapid.SampledFrom([]int{1, 20000, 0}).Draw(t, "chunk"),
		}, DecoderConfig{})
		memory := make([]byte, len(r.image))
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		dirty := NewPageSet(pages)
		for n := range rapid.IntRange(1, 12).Draw(t, "epochs") {
			r.enc.SetEffort(Effort(rapid.IntRange(0, 2).Draw(t, "effort")))
			for range rapid.IntRange(0, 30).Draw(t, "writes") {
				f := GFN(random.IntN(pages))
				count := 1 + random.Uint64N(min(8, pages-uint64(f)))
				for i := range count {
					scribble(random, memory[(uint64(f)+i)*PageSize:][:PageSize])
				}
				dirty.AddRange(f, count)
			}
			kind, device := KindSync, []byte(nil)
			if rapid.Bool().Draw(t, "checkpoint") {
				kind, device = KindCheckpoint, make([]byte, 1+random.IntN(200_000))
				fillRandom(random, device[random.IntN(len(device)):])
			}

			s, err := r.encode(r.header(kind), memory, dirty, device)
			if err != nil {
				t.Fatalf("encoding epoch %d: %v", n, err)
			}
			if rapid.IntRange(0, 9).Draw(t, "lost") == 0 {
				continue // the pages stay dirty, and the next epoch has the same parent
			}
			if err := r.decode(s); err != nil {
				t.Fatalf("decoding epoch %d: %v", n, err)
			}
			stage := r.dec.Stage()
			if stage.PageCount() != dirty.Count() || s.stats.Pages != dirty.Count() {
				t.Fatalf("%d pages staged and %d sent, %d were dirty", stage.PageCount(), s.stats.Pages, dirty.Count())
			}
			if st := s.stats; st.ZeroPages+st.SamePages+st.DeltaPages+st.PackedPages+st.RawPages != st.Pages {
				t.Fatalf("stats do not add up: %+v", st)
			}
			if !bytes.Equal(stage.DeviceState(), device) {
				t.Fatal("device state differs")
			}
			if err := r.commit(s.to); err != nil {
				t.Fatal(err)
			}
			dirty.Clear()
			if !bytes.Equal(r.image, memory) {
				t.Fatalf("epoch %d: image and memory differ", n)
			}
		}
	})
}

// scribble changes a page in one of the ways guests change pages.
func scribble(r *rand.Rand, page []byte) {
	switch r.IntN(6) {
	case 0:
		clear(page)
	case 1:
		fillRandom(r, page)
	case 2:
		copy(page, bytes.Repeat([]byte(fmt.Sprintf("line %d of a log\n", r.Uint64())), PageSize))
	case 3:
		for i := 0; i < PageSize; i += 8 {
			page[i]++
		}
	case 4: // written, not changed
	default:
		for range 1 + r.IntN(20) {
			page[r.IntN(PageSize)] = byte(r.Uint32())
		}
	}
}
