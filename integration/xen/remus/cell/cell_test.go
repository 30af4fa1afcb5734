package cell

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"understudy/hypervisor/xen/stream"
)

// remus writes a stream of Remus, and returns what each checkpoint took.
func remus(t *testing.T, out *bytes.Buffer) (all []Checkpoint) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w, err := stream.NewWriter(out)
	must(err)
	must(w.Write(stream.Domain{Version: 3, Type: stream.HVM, Major: 4, Minor: 17}))
	must(w.Write(stream.CPUIDPolicy{Leaves: make([]byte, 24)}))
	must(w.Write(stream.StaticDataEnd{}))
	began := 0
	for n := range 4 {
		pages := uint64(0)
		for range n { // none in the first
			pfns := []stream.PFN{stream.NewPFN(7, stream.PageNormal), stream.NewPFN(8, stream.PageNone), stream.NewPFN(9, stream.PageNormal)}
			data := bytes.Repeat([]byte("\x04\x00\x00\x00\x00\x00\x00\x00"), 2*stream.PageSize/8) // looks like the end's head
			must(w.WritePages(pfns, data))
			pages += 2
		}
		must(w.Write(stream.TSCInfo{Mode: 1}))
		must(w.Write(stream.HVMContext{Context: make([]byte, 13)})) // filled up
		must(w.Write(stream.HVMParams{Params: []stream.HVMParam{{Index: 1, Value: 2}}}))
		must(w.Write(stream.Checkpoint{}))
		if n%2 == 1 {
			must(w.Write(stream.EmulatorContext{Emulator: stream.Emulator{ID: stream.EmulatorQEMU}, Context: []byte("QEVM!")}))
		}
		must(w.Write(stream.CheckpointEnd{}))
		all = append(all, Checkpoint{Bytes: uint64(out.Len() - began), Pages: pages})
		began = out.Len()
	}
	must(w.Write(stream.TSCInfo{Mode: 1})) // of one that does not end
	return all
}

// The meter finds the checkpoints of a stream in whatever pieces it comes.
func TestAStreamIsCounted(t *testing.T) {
	var text bytes.Buffer
	want := remus(t, &text)
	for _, size := range []int{1, 3, 7, 8, 16, 1000, 4096, 1 << 20} {
		var got []Checkpoint
		m := Meter{End: func(c Checkpoint) { got = append(got, c) }}
		for piece := range slices.Chunk(text.Bytes(), size) {
			if n, err := m.Write(piece); n != len(piece) || err != nil {
				t.Fatalf("pieces of %d: %d of %d taken, error %v", size, n, len(piece), err)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pieces of %d: counted %+v, want %+v", size, got, want)
		}
	}
}

// What is no stream, or would not end, is refused.
func TestWhatIsNoStreamIsRefused(t *testing.T) {
	var text bytes.Buffer
	remus(t, &text)
	long := bytes.Clone(text.Bytes())
	copy(long[libxlHeader+recordHead+libxcHeaders+4:], "\xff\xff\xff\x7f")
	pages := bytes.Clone(text.Bytes()[:libxlHeader+recordHead+libxcHeaders])
	pages = append(pages, "\x01\x00\x00\x00\x10\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00"...) // nine pages in 16 bytes
	for name, bad := range map[string][]byte{"no header": []byte(strings.Repeat("no stream", 9)), "a record without end": long, "pages that do not fit": pages} {
		m := Meter{End: func(Checkpoint) {}}
		if _, err := m.Write(bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// Steps and checkpoints are put together by their order.
func TestStockIsPutTogether(t *testing.T) {
	const said = "request 100\nsuspended 130\nresumed 190\nrequest 300\nsuspended 340\nresumed 390\nrequest 500\nsuspended 520\n"
	all := []Checkpoint{{Bytes: 1000, Pages: 10}, {Bytes: 20, Pages: 2}}
	got, err := StockEpochs(said, all)
	want := []Epoch{{Stood: 130, Suspend: 30, Pause: 60, Pages: 10, Bytes: 1000}, {Stood: 340, Suspend: 40, Pause: 50, Pages: 2, Bytes: 20}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("epochs %+v, error %v; want %+v", got, err, want)
	}
	for name, bad := range map[string]string{
		"a step is missing":      "request 1\nsuspended 2\nresumed 3\nrequest 4\nsuspended 5\n",
		"steps in another order": "request 1\nsuspended 2\nresumed 3\nsuspended 4\nrequest 5\nresumed 6\n",
		"one begins in another":  "request 1\nsuspended 2\nresumed 30\nrequest 4\nsuspended 5\nresumed 31\n",
		"no time":                "request soon\n",
	} {
		if got, err := StockEpochs(bad, all); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// What one side writes into the page the other reads.
func TestThePageOfMeasurements(t *testing.T) {
	words := make([]uint64, PageSize/8) // aligned
	memory := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), PageSize)
	if IsPage(memory) {
		t.Error("zeros are the page")
	}
	p := NewPage(memory)
	p.Begin()
	if !IsPage(memory) || p.Asked() != (Load{}) {
		t.Errorf("it is not found, or asks for %+v", p.Asked())
	}
	l := Load{Pages: 5000, Bytes: PageSize}
	if p.Ask(l); p.Asked() != l {
		t.Errorf("asked for %+v", p.Asked())
	}
	p.Tick(3)
	p.Tick(4)
	if p.Written() != 7 || p.Ticks() != 2 || !IsPage(memory) {
		t.Errorf("%d pages, %d ticks", p.Written(), p.Ticks())
	}
}

// Each epoch's gap is the time without a tick around the moment at which it stood still.
func TestGapsAreMatched(t *testing.T) {
	const ms = int64(time.Millisecond)
	var w Watcher
	for now, ticks := int64(1), uint64(5); now < 1000*ms; now += 2 * ms {
		if now/ms%200 >= 60 && now/ms != 150 { // once it is a little late
			ticks++
		}
		w.Look(now, now+3, ticks)
	}
	if len(w.Gaps) != 5 || w.Gaps[1] != (Gap{196*ms + 1, 260*ms + 4}) {
		t.Errorf("gaps %v", w.Gaps)
	}
	var late Watcher // held up in the look that sees the first tick after it
	late.Look(1, 2, 1)
	late.Look(2*ms, 90*ms, 2)
	if len(late.Gaps) != 1 || late.Gaps[0] != (Gap{1, 90 * ms}) {
		t.Errorf("held up: %v", late.Gaps)
	}
	at := func(n int64) Epoch { return Epoch{Stood: n * ms} }
	got, err := Match([]Epoch{at(230), at(659)}, w.Gaps)
	if err != nil || !slices.Equal(got, []time.Duration{64*time.Millisecond + 3, 64*time.Millisecond + 3}) {
		t.Errorf("matched %v, error %v", got, err)
	}
	for _, bad := range [][]Epoch{{at(100)}, {at(230), at(300)}, {at(999)}} {
		if got, err := Match(bad, w.Gaps); err == nil {
			t.Errorf("an epoch in which it ticked has the gap %v", got)
		}
	}
}
