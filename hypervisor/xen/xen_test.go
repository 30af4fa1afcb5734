package xen

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
	"understudy/hypervisor/xen/stream"
)

// A PVH domain of 128 MiB as Xen lays it out, and one of 5 GiB.
var (
	small = []Run{{0, 32768}, {0xfeff8, 8}}
	large = []Run{{0, 0xf0000}, {0xfeff8, 8}, {0x100000, 0x50000}}
)

func TestFramesOfADomain(t *testing.T) {
	f, err := NewFrames(large)
	if err != nil {
		t.Fatal(err)
	}
	if f.Pages() != 0xf0000+8+0x50000 {
		t.Errorf("%d pages", f.Pages())
	}
	for _, c := range []struct {
		frame uint64
		page  epoch.GFN
		is    bool
	}{
		{0, 0, true}, {0xeffff, 0xeffff, true}, {0xf0000, 0, false}, {0xfeff7, 0, false}, {0xfeff8, 0xf0000, true},
		{0xfefff, 0xf0007, true}, {0xff000, 0, false}, {0x100000, 0xf0008, true}, {0x14ffff, 0x140007, true}, {0x150000, 0, false},
	} {
		page, is := f.Page(c.frame)
		if page != c.page || is != c.is {
			t.Errorf("frame %#x is page %#x, %v; want %#x, %v", c.frame, page, is, c.page, c.is)
		}
		if is && f.Frame(page) != c.frame {
			t.Errorf("page %#x is frame %#x, want %#x", page, f.Frame(page), c.frame)
		}
	}
	var b Builder
	for _, r := range large {
		for frame := r.First; frame < r.First+r.Count; frame++ {
			b.Add(frame)
		}
	}
	if g, err := b.Frames(); err != nil || !g.Equal(f) {
		t.Errorf("built frame by frame it is %v, error %v", g.Runs(), err)
	}
	other, _ := NewFrames(small)
	if other.Equal(f) {
		t.Error("two domains are the same")
	}
}

func TestFramesRefuse(t *testing.T) {
	for name, runs := range map[string][]Run{
		"nothing": nil, "an empty run": {{0, 0}}, "touching": {{0, 8}, {8, 8}}, "turned round": {{16, 8}, {0, 8}},
		"overlapping": {{0, 8}, {7, 8}}, "high": {{MaxFrame, 1}}, "long": {{1, MaxFrame}}, "overflowing": {{1, ^uint64(0)}},
		"pieces": slices.Repeat([]Run{{0, 1}}, maxRuns+1),
	} {
		if _, err := NewFrames(runs); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// The walk over the bitmap finds what looking at every bit finds, and nothing
// where no RAM is.
func TestDirtyEqualsItsOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var runs []Run
		at := uint64(0)
		for range rapid.IntRange(1, 6).Draw(t, "runs") {
			at += rapid.Uint64Range(1, 150).Draw(t, "gap")
			n := rapid.Uint64Range(1, 200).Draw(t, "count")
			runs = append(runs, Run{at, n})
			at += n
		}
		f, err := NewFrames(runs)
		if err != nil {
			t.Fatal(err)
		}
		bitmap := rapid.SliceOfN(rapid.OneOf(rapid.Just(uint64(0)), rapid.Just(^uint64(0)), rapid.Uint64()), 0, int(at/64)+2).Draw(t, "bitmap")
		got, want := epoch.NewPageSet(f.Pages()), epoch.NewPageSet(f.Pages())
		if err := f.Dirty(bitmap, got); err != nil {
			t.Fatal(err)
		}
		for frame := range uint64(len(bitmap)) * 64 {
			if page, is := f.Page(frame); is && bitmap[frame/64]>>(frame%64)&1 != 0 {
				want.Add(page)
			}
		}
		for page := range epoch.GFN(f.Pages()) {
			if got.Contains(page) != want.Contains(page) {
				t.Fatalf("page %d (frame %d): %v, want %v", page, f.Frame(page), got.Contains(page), want.Contains(page))
			}
		}
	})
}

func TestABitmapOfBytes(t *testing.T) {
	b := make([]byte, 16)
	b[1], b[15] = 1, 0x80
	words, err := Bitmap(nil, b)
	if err != nil || !slices.Equal(words, []uint64{1 << 8, 1 << 63}) {
		t.Errorf("words %x, error %v", words, err)
	}
	if _, err := Bitmap(nil, b[:7]); err == nil {
		t.Error("half a word is taken")
	}
	f, _ := NewFrames(small)
	if err := f.Dirty(words, epoch.NewPageSet(1)); err == nil {
		t.Error("a set of another image is taken")
	}
}

func TestGrants(t *testing.T) {
	table := make(Grants, 16*grantLen)
	put := func(ref int, flags, domain uint16, frame uint32) {
		binary.LittleEndian.PutUint16(table[ref*grantLen:], flags)
		binary.LittleEndian.PutUint16(table[ref*grantLen+2:], domain)
		binary.LittleEndian.PutUint32(table[ref*grantLen+4:], frame)
	}
	put(0, grantAccess, 0, 0xfefff)                      // the console's
	put(1, grantAccess, 0, 0xfeffc)                      // xenstore's
	put(8, grantAccess|grantReading|grantWriting, 0, 77) // a ring
	put(9, grantAccess|grantReadOnly|grantReading, 0, 78)
	put(10, grantAccess, 0, 79) // free to be mapped
	put(11, 2|grantWriting, 0, 80)
	put(12, grantAccess|grantSubPage, 0, 81)
	var got []uint64
	table.Written(func(frame uint64) bool { got = append(got, frame); return true })
	if !slices.Equal(got, []uint64{0xfefff, 0xfeffc, 77}) {
		t.Errorf("written are %#x", got)
	}
	for ref, want := range map[uint32][2]bool{8: {true, false}, 9: {true, true}, 10: {true, false}, 11: {false, false}, 12: {false, false}, 15: {false, false}} {
		g, err := table.At(ref)
		if err != nil || g.Valid() != want[0] || g.ReadOnly() != want[1] {
			t.Errorf("grant %d: %+v, error %v", ref, g, err)
		}
	}
	if _, err := table.At(16); err == nil {
		t.Error("a grant behind the table is taken")
	}
}

// hvmContext makes a context of so many processors.
func hvmContext(vcpus int) []byte {
	var b []byte
	entry := func(kind, instance uint16, data []byte) {
		b = binary.LittleEndian.AppendUint16(b, kind)
		b = binary.LittleEndian.AppendUint16(b, instance)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
		b = append(b, data...)
	}
	head := binary.LittleEndian.AppendUint32(nil, contextMagic)
	head = binary.LittleEndian.AppendUint32(head, contextVersion)
	head = binary.LittleEndian.AppendUint64(head, 0)
	head = binary.LittleEndian.AppendUint32(head, 0x000806e9)
	head = binary.LittleEndian.AppendUint32(head, 2_400_000)
	entry(contextHeader, 0, head)
	for i := range vcpus {
		entry(contextCPU, uint16(2*i), make([]byte, 100))
	}
	entry(5, 0, []byte{1, 2, 3})
	entry(contextEnd, 0, nil)
	return b
}

func TestParseContext(t *testing.T) {
	b := hvmContext(2)
	c, err := ParseContext(b)
	if err != nil || c.VCPUs != 2 || c.KHz != 2_400_000 || c.CPUID != 0x000806e9 || len(c.Entries) != 4 {
		t.Fatalf("%+v, error %v", c, err)
	}
	for n := range b {
		if _, err := ParseContext(b[:n]); err == nil {
			t.Fatalf("cut to %d of %d bytes it is taken", n, len(b))
		}
	}
	change := func(at int, v byte) []byte { c := bytes.Clone(b); c[at] = v; return c }
	for name, bad := range map[string][]byte{
		"more": append(bytes.Clone(b), 0), "no header": change(0, 2), "magic": change(8, 0), "version": change(12, 2),
		"no processor": hvmContext(0), "a processor twice": change(32+108+2, 0), "length": change(7, 0xff),
	} {
		if c, err := ParseContext(bad); err == nil {
			t.Errorf("%s: taken as %+v", name, c)
		}
	}
}

func FuzzContext(f *testing.F) {
	f.Add(hvmContext(1))
	f.Add(hvmContext(3))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseContext(b)
		if err != nil {
			return
		}
		size := 8
		for _, e := range c.Entries {
			size += 8 + len(e.Data)
		}
		if size != len(b) {
			t.Fatalf("%d bytes in its records, of %d", size, len(b))
		}
	})
}

func head(t testing.TB) []byte {
	b, err := Head(4, 17, Policies{CPUID: make([]byte, 48), MSR: make([]byte, 16)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func state() *State {
	return &State{
		TSC: stream.TSCInfo{Mode: 1, KHz: 5, Nanoseconds: 6, Incarnation: 7}, Context: hvmContext(1),
		Params: []stream.HVMParam{{Index: paramStore, Value: 0xfeffc}, {Index: paramConsole, Value: 0xfefff}, {Index: 12, Value: 1}},
	}
}

// Head, memory and tail together are the stream of a whole domain.
func TestHeadMemoryAndTailAreAStream(t *testing.T) {
	frames, err := NewFrames(small)
	if err != nil {
		t.Fatal(err)
	}
	for _, emulator := range [][]byte{nil, []byte("QEVM")} {
		want := state()
		want.Emulator = emulator
		d, err := ParseHead(head(t))
		if err != nil {
			t.Fatal(err)
		}
		tail, err := want.AppendTail([]byte("before"), d)
		if err != nil {
			t.Fatal(err)
		}
		tail = tail[len("before"):]
		got, err := ParseTail(tail, d)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("state %+v, want %+v, error %v", got, want, err)
		}
		if !slices.Equal(got.Transient(), []uint64{0xfeffc, 0xfefff}) {
			t.Errorf("made anew are %#x", got.Transient())
		}

		var whole bytes.Buffer
		if err := Feed(&whole, head(t), frames); err != nil {
			t.Fatal(err)
		}
		fed := whole.Len()
		whole.Write(tail)
		r, err := stream.NewReader(&whole)
		if err != nil {
			t.Fatal(err)
		}
		var pages uint64
		for {
			rec, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if p, ok := rec.(stream.Pages); ok {
				for _, pfn := range p.PFNs {
					if pfn.Type() != stream.PageAlloc || pfn.Number() != frames.Frame(epoch.GFN(pages)) {
						t.Fatalf("page %d is fed as %#x", pages, uint64(pfn))
					}
					pages++
				}
			}
		}
		if pages != frames.Pages() || fed > int(pages)*9+MaxHead/1024 {
			t.Errorf("%d pages fed in %d bytes", pages, fed)
		}
	}
}

// A tail that is cut off, or not of one domain at one instant, is never half
// taken.
func TestATornTailIsRefused(t *testing.T) {
	d, err := ParseHead(head(t))
	if err != nil {
		t.Fatal(err)
	}
	tail, err := state().AppendTail(nil, d)
	if err != nil {
		t.Fatal(err)
	}
	for n := range tail {
		if _, err := ParseTail(tail[:n], d); err == nil {
			t.Fatalf("cut to %d of %d bytes it is taken", n, len(tail))
		}
	}
	records := func(recs ...stream.Record) []byte {
		var out bytes.Buffer
		w := stream.NewTailWriter(&out, d)
		for _, rec := range recs {
			if err := w.Write(rec); err != nil {
				t.Fatal(err)
			}
		}
		return out.Bytes()
	}
	s := state()
	tsc, params, context := s.TSC, stream.HVMParams{Params: s.Params}, stream.HVMContext{Context: s.Context}
	for _, c := range []struct {
		name string
		tail []byte
		want string
	}{
		{"more", append(bytes.Clone(tail), 0), "1 bytes follow it"},
		{"twice", records(tsc, tsc, params, context, stream.DomainEnd{}, stream.End{}), "TSCInfo twice"},
		{"no counter", records(params, context, stream.DomainEnd{}, stream.End{}), "missing"},
		{"no parameters", records(tsc, context, stream.DomainEnd{}, stream.End{}), "missing"},
		{"memory", records(stream.Pages{PFNs: []stream.PFN{0}, Data: make([]byte, 4096)}, tsc, params, context, stream.DomainEnd{}, stream.End{}), "no state"},
		{"context", records(tsc, params, stream.HVMContext{Context: []byte("x")}, stream.DomainEnd{}, stream.End{}), "without an end"},
		{"emulator", records(tsc, params, context, stream.DomainEnd{}, stream.EmulatorContext{}, stream.End{}), "one QEMU is known"},
	} {
		if _, err := ParseTail(c.tail, d); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

func TestAForeignHeadIsRefused(t *testing.T) {
	h := head(t)
	for n := range h {
		if _, err := ParseHead(h[:n]); err == nil {
			t.Fatalf("cut to %d of %d bytes it is taken", n, len(h))
		}
	}
	var pv bytes.Buffer
	w, _ := stream.NewWriter(&pv)
	for _, rec := range []stream.Record{stream.Domain{Version: 3, Type: stream.PV}, stream.PVInfo{Width: 8, Levels: 4}, stream.StaticDataEnd{}, stream.P2MFrames{End: 511, Frames: []uint64{7}}} {
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		head []byte
		want string
	}{
		{"more", append(bytes.Clone(h), 0), "1 bytes follow it"},
		{"large", make([]byte, MaxHead+1), "at most"},
		{"PV", pv.Bytes(), "it is a PV domain"},
	} {
		if _, err := ParseHead(c.head); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
	if err := Feed(io.Discard, pv.Bytes(), nil); err == nil {
		t.Error("a restore is fed for a PV domain")
	}
}

func FuzzState(f *testing.F) {
	d := stream.Domain{Version: 3, Type: stream.HVM}
	tail, err := state().AppendTail(nil, d)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tail)
	f.Add(head(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ParseHead(b)
		s, err := ParseTail(b, d)
		if err != nil {
			return
		}
		again, err := s.AppendTail(nil, d)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseTail(again, d); err != nil || !reflect.DeepEqual(got, s) {
			t.Fatalf("%+v, written and read %+v, error %v", s, got, err)
		}
	})
}
