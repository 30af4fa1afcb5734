package epoch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// workload is memory that changes from epoch to epoch in one way. Epochs
// alternate between two states of it, so that nothing is made while measuring.
type workload struct {
	name   string
	states [2][]byte
}

func workloads(pages int) []workload {
	r := rand.New(rand.NewPCG(7, 8))
	random := func() []byte {
		b := make([]byte, pages*PageSize)
		fillRandom(r, b)
		return b
	}
	text := func() []byte {
		var b bytes.Buffer
		for b.Len() < pages*PageSize {
			fmt.Fprintf(&b, "%08x Nov 22 host-%d kernel: [%5d.%06d] device eth%d: link up, %d Mbit/s\n",
				r.Uint32(), r.IntN(4), r.IntN(99999), r.IntN(999999), r.IntN(3), r.IntN(1000))
		}
		return b.Bytes()[:pages*PageSize]
	}
	changed := func(of []byte, perPage int) []byte {
		b := bytes.Clone(of)
		for p := 0; p < len(b); p += PageSize {
			for range perPage {
				b[p+r.IntN(PageSize)]++
			}
		}
		return b
	}
	counters := func(of []byte) []byte {
		b := bytes.Clone(of)
		for i := 0; i < len(b); i += wordSize {
			b[i] += byte(1 + i%3)
		}
		return b
	}
	zero, noise, prose := make([]byte, pages*PageSize), random(), text()
	return []workload{
		{"zero", [2][]byte{zero, zero}},
		{"same", [2][]byte{noise, noise}},
		{"small-change", [2][]byte{noise, changed(noise, 8)}},
		{"counters", [2][]byte{noise, counters(noise)}},
		{"text", [2][]byte{prose, text()}},
		{"random", [2][]byte{noise, random()}},
	}
}

// bench is a rig with one workload, whose epochs do nothing that is not
// measured.
type bench struct {
	*rig
	load  workload
	wire  [][]byte // chunk buffers, reused
	count int      // chunks of the epoch
	sink  func([]byte) error
	write func(GFN, []byte) error
	turn  int
	disks
}

func newBench(pages int, load workload, effort Effort) *bench {
	b := &bench{rig: newRig(uint64(pages), EncoderConfig{DeltaCacheBytes: uint64(pages) * 2 * PageSize}, DecoderConfig{}), load: load}
	b.enc.SetEffort(effort)
	b.sink = func(chunk []byte) error {
		if b.count == len(b.wire) {
			b.wire = append(b.wire, make([]byte, 0, DefaultChunkBytes))
		}
		b.wire[b.count] = append(b.wire[b.count][:0], chunk...)
		b.count++
		return nil
	}
	b.write = func(first GFN, data []byte) error {
		copy(b.image[first*PageSize:], data)
		return nil
	}
	return b
}

// encodeNext encodes the workload's next state.
func (b *bench) encodeNext() (Header, Trailer, Position, EpochStats) {
	b.count = 0
	b.turn++
	h := b.header(KindSync)
	if err := b.enc.Begin(h, b.sink); err != nil {
		panic(err)
	}
	b.enc.SetExcluder(b.leave)
	if err := b.enc.Pages(0, b.load.states[b.turn%2]); err != nil {
		panic(err)
	}
	if err := b.enc.Writes(b.writes, b.equal); err != nil {
		panic(err)
	}
	trailer, to, stats, err := b.enc.End()
	if err != nil {
		panic(err)
	}
	return h, trailer, to, stats
}

// decodeNext decodes what encodeNext has encoded. The image is not written.
func (b *bench) decodeNext(header, trailer []byte, at Position) {
	if _, err := b.dec.Begin(header, at, b.gen); err != nil {
		panic(err)
	}
	for _, c := range b.wire[:b.count] {
		if err := b.dec.Chunk(c); err != nil {
			panic(err)
		}
	}
	if _, err := b.dec.End(trailer); err != nil {
		panic(err)
	}
}

func (b *bench) commitNext() EpochStats {
	h, trailer, to, stats := b.encodeNext()
	b.decodeNext(h.AppendTo(nil), trailer.AppendTo(nil), b.at)
	if err := b.dec.Stage().Apply(b.write); err != nil {
		panic(err)
	}
	b.at = to
	return stats
}

func TestEpochsAllocateNothingPerPage(t *testing.T) {
	const pages = 64
	for _, load := range workloads(pages) {
		for effort := EffortNone; effort <= EffortFull; effort++ {
			b := newBench(pages, load, effort)
			b.commitNext()
			b.commitNext()
			most := 2.0 // the bytes of the header and of the trailer
			if raceEnabled {
				most = 4
				if effort == EffortFull {
					most = pages
				}
			}
			if allocs := testing.AllocsPerRun(4, func() { b.commitNext() }); allocs > most {
				t.Errorf("%s, effort %v: %v allocations in an epoch of %d pages, want %v", load.name, effort, allocs, pages, most)
			}
			if !bytes.Equal(b.image, load.states[b.turn%2]) {
				t.Errorf("%s, effort %v: image and memory differ", load.name, effort)
			}
		}
	}
}

// left leaves out pages: all but the last quarter are on a disk, in extents of
// eight; the last are copies.
type left struct{ pages GFN }

func (l left) Exclude(f GFN, page []byte, _ bool) (Exclusion, bool) {
	if f < l.pages*3/4 {
		return Exclusion{Kind: ExcludeBlock, Ref: Reference{Page: f, Disk: 1, Sector: uint64(f+f/8*100) * PageSectors}}, true
	}
	if f == l.pages*3/4 {
		return Exclusion{}, false
	}
	return Exclusion{Kind: ExcludeCopy, Source: f - 1}, true
}

// newDiskBench is a bench whose pages are all left out but one, and whose
// epochs have writes of every sort of data.
func newDiskBench(pages int) *bench {
	page := make([]byte, PageSize)
	fillRandom(rand.New(rand.NewPCG(7, 9)), page)
	same := bytes.Repeat(page, pages)
	b := newBench(pages, workload{"left out", [2][]byte{same, same}}, EffortDelta)
	w := DiskWrite{Seq: 1, Kind: WriteData, Sectors: uint32(pages) * PageSectors, Data: bytes.Clone(same)}
	for f := range GFN(pages) {
		switch f % 4 {
		case 0:
			clear(w.Data[f*PageSize:][:PageSize])
			w.Pages = append(w.Pages, NoPage)
		case 1:
			w.Data[f*PageSize]++
			w.Pages = append(w.Pages, NoPage)
		default:
			w.Pages = append(w.Pages, GFN(pages-1))
		}
	}
	b.leave = left{GFN(pages)}
	b.writes = []DiskWrite{w, {Seq: 2, Kind: WriteBarrier}}
	b.equal = func(page GFN, piece []byte) bool { return bytes.Equal(same[page*PageSize:][:PageSize], piece) }
	return b
}

func TestDisksAllocateNothingPerPage(t *testing.T) {
	b := newDiskBench(64)
	for range 3 {
		b.commitNext()
	}
	most := 2.0 // the bytes of the header and of the trailer
	if raceEnabled {
		most = 64 // s2's pool forgets at random then
	}
	var stats EpochStats
	if allocs := testing.AllocsPerRun(4, func() { stats = b.commitNext() }); allocs > most {
		t.Errorf("%v allocations in an epoch, want %v", allocs, most)
	}
	if stats.ReferencePages != 48 || stats.CopyPages != 15 || stats.SamePages != 1 || stats.WritePageBytes != 32*PageSize {
		t.Errorf("%+v", stats)
	}
}

func BenchmarkDisks(b *testing.B) {
	const pages = 1024
	w := newDiskBench(pages)
	for range 3 {
		w.commitNext()
	}
	b.SetBytes(pages * PageSize * 2)
	b.ReportAllocs()
	for b.Loop() {
		w.commitNext()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/pages/2, "ns/page")
}

func BenchmarkEncode(b *testing.B) {
	const pages = 8192
	for _, load := range workloads(pages) {
		for effort := EffortNone; effort <= EffortFull; effort++ {
			b.Run(fmt.Sprintf("%s/%v", load.name, effort), func(b *testing.B) {
				w := newBench(pages, load, effort)
				w.commitNext()
				w.commitNext()
				var stats EpochStats
				b.SetBytes(pages * PageSize)
				b.ReportAllocs()
				for b.Loop() {
					_, _, w.at, stats = w.encodeNext()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/pages, "ns/page")
				b.ReportMetric(float64(stats.WireBytes)/pages, "wire-B/page")
			})
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	const pages = 8192
	for _, load := range workloads(pages) {
		for _, effort := range []Effort{EffortDelta, EffortFull} {
			b.Run(fmt.Sprintf("%s/%v", load.name, effort), func(b *testing.B) {
				w := newBench(pages, load, effort)
				w.commitNext()
				w.commitNext()
				h, trailer, _, _ := w.encodeNext()
				header, end := h.AppendTo(nil), trailer.AppendTo(nil)
				b.SetBytes(pages * PageSize)
				b.ReportAllocs()
				for b.Loop() {
					w.decodeNext(header, end, w.at)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/pages, "ns/page")
			})
		}
	}
}

func BenchmarkHashPages(b *testing.B) {
	image := make([]byte, 64<<20)
	fillRandom(rand.New(rand.NewPCG(1, 2)), image)
	b.SetBytes(int64(len(image)))
	for b.Loop() {
		if _, err := HashPages(func(first GFN, dst []byte) error {
			copy(dst, image[first*PageSize:])
			return nil
		}, 0, uint64(len(image)/PageSize)); err != nil {
			b.Fatal(err)
		}
	}
}
