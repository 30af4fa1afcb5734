package stream

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// golden reads a stream that is written down in testdata, as bytes with
// comments.
func golden(t testing.TB, name string) []byte {
	text, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		for _, word := range strings.Fields(line) {
			n := 1
			if count, b, ok := strings.Cut(word, "*"); ok {
				if n, err = strconv.Atoi(count); err != nil {
					t.Fatal(err)
				}
				word = b
			}
			b, err := hex.DecodeString(word)
			if err != nil {
				t.Fatalf("%s: %q: %v", name, word, err)
			}
			out = append(out, bytes.Repeat(b, n)...)
		}
	}
	return out
}

func page(b byte) []byte { return bytes.Repeat([]byte{b}, PageSize) }

var qemuEmulator = Emulator{EmulatorQEMU, 0}

// The golden streams, and what they say.
var (
	pvhRecords = []Record{
		Domain{3, HVM, 4, 17},
		CPUIDPolicy{[]byte("\x00\x00\x00\x00\xff\xff\xff\xff\x0d\x00\x00\x00AuthcAMDenti")},
		MSRPolicy{[]byte("\xce\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00")},
		StaticDataEnd{},
		Pages{[]PFN{NewPFN(0, PageNormal), NewPFN(0xfefff, PageNone), NewPFN(0x1234, PageNormal)}, append(page(0x5a), page(0)...)},
		TSCInfo{1, 1_000_000, 1_000_000_000, 2},
		HVMContext{[]byte("\x01\x00\x00\x00\x05\x00\x00\x00hello")},
		HVMParams{[]HVMParam{{1, 0xfeffc}}},
		DomainEnd{},
		End{},
	}
	remusRecords = []Record{
		Domain{3, HVM, 4, 17},
		StaticDataEnd{},
		Pages{[]PFN{5}, page(1)},
		TSCInfo{},
		HVMContext{bytes.Repeat([]byte{7}, 8)},
		Checkpoint{},
		EmulatorStore{qemuEmulator, []Pair{{"a/b", "c d"}}},
		EmulatorContext{qemuEmulator, []byte("QEV")},
		CheckpointEnd{},
		TSCInfo{},
		HVMContext{bytes.Repeat([]byte{8}, 8)},
		Checkpoint{},
		CheckpointEnd{},
	}
	pvRecords = []Record{
		Domain{2, PV, 4, 11},
		PVInfo{8, 4},
		P2MFrames{0, 1023, []uint64{0x10, 0x11}},
		Pages{[]PFN{NewPFN(16, PageTable4|PagePinned), NewPFN(17, PageAlloc)}, page(0x44)},
		TSCInfo{},
		SharedInfo{page(0x99)},
		VCPU{VCPUBasic, 0, []byte{0xde, 0xad, 0xbe, 0xef}},
		VCPU{VCPUExtended, 0, []byte{}},
		VCPU{VCPUXSave, 0, bytes.Repeat([]byte{6}, 8)},
		VCPU{VCPUMSRs, 0, bytes.Repeat([]byte{12}, 8)},
		Verify{},
		Pages{[]PFN{NewPFN(16, PageTable4|PagePinned)}, page(0x44)},
		DomainEnd{},
	}
)

func TestAFileOfXlSave(t *testing.T) {
	data := golden(t, "pvh")
	in := bytes.NewReader(data)
	file, err := ReadSaveFile(in)
	if err != nil || !file.JSON || string(file.Config) != "{}" {
		t.Fatalf("head %+v, error %v", file, err)
	}
	r, err := NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := compare(r, pvhRecords); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if in.Len() != 0 {
		t.Errorf("%d bytes are left", in.Len())
	}

	out, err := file.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	buf := bytes.NewBuffer(out)
	write(t, buf, false, pvhRecords)
	if !bytes.Equal(buf.Bytes(), data) {
		t.Error("written anew, the file has other bytes")
	}
}

func TestARemusStream(t *testing.T) {
	data := golden(t, "remus")
	r, err := NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	// What came before the cut is a whole checkpoint; what comes after it is nothing.
	if err := compare(r, remusRecords); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	write(t, &buf, false, remusRecords)
	if !bytes.HasPrefix(data, buf.Bytes()) || len(data)-buf.Len() != 16 {
		t.Error("written anew, the stream has other bytes")
	}
}

func TestAPVStreamOfVersion2(t *testing.T) {
	data := golden(t, "pv")
	if err := compare(NewLibxcReader(bytes.NewReader(data)), pvRecords); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	write(t, &buf, true, pvRecords)
	if !bytes.Equal(buf.Bytes(), data) {
		t.Error("written anew, the stream has other bytes")
	}
}

// compare reads records and returns the error that ends the reading.
func compare(r *Reader, want []Record) error {
	for i := 0; ; i++ {
		rec, err := r.Next()
		if err != nil {
			if i < len(want) {
				return errors.Join(errors.New("records are missing"), err)
			}
			return err
		}
		if i >= len(want) || !reflect.DeepEqual(rec, want[i]) {
			return errors.New("record " + strconv.Itoa(i) + " is not as it was: " + rec.kind().String())
		}
	}
}

func write(t testing.TB, out io.Writer, bare bool, records []Record) {
	w := NewLibxcWriter(out)
	if !bare {
		var err error
		if w, err = NewWriter(out); err != nil {
			t.Fatal(err)
		}
	}
	for _, rec := range records {
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
	}
}

// Every record that is left out, doubled or moved makes a stream that is
// refused, or another one that is whole: never a panic, and never one that
// reader and writer judge differently.
func TestReaderAndWriterAgree(t *testing.T) {
	for _, c := range []struct {
		bare    bool
		records []Record
	}{{false, pvhRecords}, {false, remusRecords}, {true, pvRecords}} {
		for i := range c.records {
			for j := range c.records {
				changed := append([]Record(nil), c.records...)
				changed[i] = c.records[j]
				agree(t, c.bare, changed)
				agree(t, c.bare, append(changed[:i:i], changed[i+1:]...))
			}
		}
	}
}

// agree demands that the reader finds the same record wrong that the writer
// refuses.
func agree(t *testing.T, bare bool, records []Record) {
	t.Helper()
	var buf bytes.Buffer
	w := NewLibxcWriter(&buf)
	if !bare {
		w, _ = NewWriter(&buf)
	}
	refused := len(records)
	for i, rec := range records {
		level := w.order.level()
		if w.Write(rec) == nil {
			continue
		}
		if rec.kind().level != level {
			return // its number is another record's at this level
		}
		refused = i
		buf.Write(encode(rec))
		break
	}
	r := NewLibxcReader(&buf)
	if !bare {
		r, _ = NewReader(&buf)
	}
	for i := 0; ; i++ {
		if _, err := r.Next(); err != nil {
			if i != refused {
				t.Errorf("the writer refuses record %d of %d, the reader record %d: %v", refused, len(records), i, err)
			}
			return
		}
	}
}

// encode returns a record's bytes, wherever it stands.
func encode(rec Record) []byte {
	k := rec.kind()
	var body []byte
	switch r := rec.(type) {
	case Pages:
		body = le.AppendUint64(nil, uint64(len(r.PFNs)))
		for _, p := range r.PFNs {
			body = le.AppendUint64(body, uint64(p))
		}
		body = append(body, r.Data...)
	default:
		if k.level == Libxc {
			body, _ = appendLibxc(nil, rec)
		} else {
			body, _ = appendLibxl(nil, rec)
		}
	}
	out := le.AppendUint32(nil, k.number)
	out = le.AppendUint32(out, uint32(len(body)))
	out = append(out, body...)
	return append(out, make([]byte, padded(len(body))-len(body))...)
}

// What a stranger may send, and what is said of it.
func TestHostileStreams(t *testing.T) {
	le32 := func(b []byte, at int, v uint32) []byte {
		b = bytes.Clone(b)
		le.PutUint32(b[at:], v)
		return b
	}
	pvh, pv := golden(t, "pvh"), golden(t, "pv")
	const head = saveHeaderLen + 7
	const records = head + headerLen + 8 + headersLen
	pageData := bytes.Index(pvh, []byte{1, 0, 0, 0, 0x20, 0x20, 0, 0})
	params := bytes.Index(pvh, []byte{0x0a, 0, 0, 0, 0x18, 0, 0, 0})
	frames := bytes.Index(pv, []byte{3, 0, 0, 0, 0x18, 0, 0, 0})
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"nothing", nil, "unexpected EOF"},
		{"no magic", append([]byte("Y"), pvh[1:]...), "it begins with"},
		{"byte order", le32(pvh, 32, 0x04030201), "byte order"},
		{"legacy stream", le32(pvh, 36, saveJSON), "convert-legacy-stream"},
		{"unknown flag", le32(pvh, 36, 7), "flags 0x7"},
		{"large configuration", le32(pvh, 44, MaxConfig+1), "4194305 bytes of configuration"},
		{"cut configuration", le32(pvh[:48+3], 44, MaxConfig), "unexpected EOF"},
		{"configuration beyond its place", le32(pvh, 48, 4), "do not hold"},
		{"configuration without a place", le32(pvh, 44, 3), "do not hold"},
		{"no libxl stream", le32(pvh, head, 0), "no libxl stream"},
		{"libxl version", le32(pvh, head+8, 3), "version 50331648"},
		{"libxl big endian", le32(pvh, head+12, 1<<24), "big-endian"},
		{"libxl record", le32(pvh, head+16, 9), "libxl record of type 0x9 at byte 16: it is mandatory"},
		{"COLO", le32(pvh, head+16, 5), "COLO"},
		{"libxl ends at once", le32(pvh, head+16, 0), "END at byte 16: the stream ends without a whole domain"},
		{"checkpoint that has not begun", le32(pvh, head+16, 4), "has not begun"},
		{"marker", le32(pvh, head+24, 0), "no libxc stream"},
		{"libxc version", le32(pvh, head+24+12, 4<<24), "version 4"},
		{"libxc big endian", le32(pvh, head+24+16, 1<<8), "big-endian"},
		{"ARM", le32(pvh, head+24+24, 3), "type 3"},
		{"large pages", le32(pvh, head+24+28, 21), "2^21"},
		{"long record", le32(pvh, records+4, MaxRecord+1), "X86_CPUID_POLICY at byte 64: 134217729 bytes are announced"},
		{"longer than the stream", le32(pvh, records+4, MaxRecord), "unexpected EOF"},
		{"leaf cut in two", le32(pvh, records+4, 23), "23 bytes, want one or more times 24"},
		{"unknown record", le32(pvh, records, 0x13), "newer Xen"},
		{"no pages", le32(pvh, pageData+8, 0), "0 pages are announced"},
		{"more pages than bytes", le32(pvh, pageData+8, 1<<32-1), "4294967295 pages are announced"},
		{"less content", le32(pvh, pageData+8, 2), "content"},
		{"a page of no type", le32(pvh, pageData+20, 0x50000000), "no type that Xen knows"},
		{"what nobody knows of a page", le32(pvh, pageData+20, 0x00100000), "no type that Xen knows"},
		{"params", le32(pvh, params+8, 1<<28), "count of parameters"},
		{"a PV record", le32(pvh, params, libxcSharedInfo), "24 bytes, want 4096"},
		{"PV shape", le32(pv, headersLen+8, 0x0308), "words of 8 bytes and page tables of 3 levels"},
		{"P2M range", le32(pv, frames+12, 1024), "2 frames for the pages 0 to 1024"},
		{"P2M turned round", le32(pv, frames+8, 1024), "2 frames for the pages 1024 to 1023"},
	} {
		err := readAll(c.data)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

// readAll reads a file of xl, a libxl stream or a libxc stream to its end.
func readAll(data []byte) error {
	in := bytes.NewReader(data)
	r := NewLibxcReader(in)
	if len(data) == 0 || data[0] != 0xff {
		if _, err := ReadSaveFile(in); err != nil {
			return err
		}
		var err error
		if r, err = NewReader(in); err != nil {
			return err
		}
	}
	for {
		if _, err := r.Next(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// Cut anywhere, a stream is never taken for a whole one.
func TestACutStreamIsNotWhole(t *testing.T) {
	for _, name := range []string{"pvh", "pv"} {
		data := golden(t, name)
		for n := range data {
			if n > 5000 && n%7 != 0 && n < len(data)-200 {
				continue // in the middle of pages
			}
			if err := readAll(data[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s, cut to %d of %d bytes: error %v", name, n, len(data), err)
			}
		}
	}
}

// A length is nobody's word: memory is taken as the bytes arrive.
func TestMemoryIsTakenAsBytesArrive(t *testing.T) {
	data := golden(t, "pv")[:headersLen]
	data = le.AppendUint32(data, libxcPVInfo)
	data = le.AppendUint32(data, MaxRecord)
	r := NewLibxcReader(bytes.NewReader(data))
	for {
		if _, err := r.Next(); err != nil {
			break
		}
	}
	if cap(r.buf) > step {
		t.Errorf("%d bytes are taken for a body of which none came", cap(r.buf))
	}
}

func TestWhatAWriterRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		recs []Record
		want string
	}{
		{"version", []Record{Domain{4, HVM, 4, 17}}, "version 4"},
		{"no domain", []Record{Pages{[]PFN{0}, page(0)}}, "a libxl record has to be"},
		{"before the static data's end", []Record{pvhRecords[0], Pages{[]PFN{0}, page(0)}}, "before STATIC_DATA_END"},
		{"no pages", []Record{pvhRecords[0], StaticDataEnd{}, Pages{}}, "0 pages"},
		{"content of none", []Record{pvhRecords[0], StaticDataEnd{}, Pages{[]PFN{NewPFN(1, PageNone)}, page(0)}}, "4096 bytes of content"},
		{"torn", []Record{pvhRecords[0], StaticDataEnd{}, TSCInfo{}, DomainEnd{}}, "HVM_CONTEXT is missing"},
		{"torn checkpoint", append(remusRecords[:9:9], Checkpoint{}), "HVM_CONTEXT is missing"},
		{"two domains", append(pvhRecords[:9:9], pvhRecords[0]), "second domain"},
		{"behind the end", append(pvhRecords[:10:10], End{}), "follows the stream's end"},
		{"foreign", []Record{pvhRecords[0], StaticDataEnd{}, Unknown{Libxc, optional | 1, nil}}, "only what is known"},
		{"path", append(remusRecords[:6:6], EmulatorStore{qemuEmulator, []Pair{{"/local", ""}}}), "below the device model's path"},
		{"key", append(remusRecords[:6:6], EmulatorStore{qemuEmulator, []Pair{{"a b", ""}}}), "characters"},
		{"emulator", append(remusRecords[:6:6], EmulatorContext{Emulator{3, 0}, nil}), "kind 3"},
		{"processor", append(pvRecords[:3:3], VCPU{VCPUBasic, MaxVCPUs, nil}), "part 0 of processor 8192"},
	} {
		w, err := NewWriter(io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range c.recs {
			err = w.Write(rec)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
		if again := w.Write(End{}); again == nil || again.Error() != err.Error() || w.Ended() {
			t.Errorf("%s: after its error the writer says %v", c.name, again)
		}
	}
}

// The way of memory allocates nothing per record of pages written, and one
// word per record read.
func TestPagesAllocateNothing(t *testing.T) {
	pfns := make([]PFN, MaxBatch)
	for i := range pfns {
		pfns[i] = NewPFN(uint64(i), PageNormal)
	}
	content := make([]byte, MaxBatch*PageSize)
	w, _ := NewWriter(io.Discard)
	for _, rec := range pvhRecords[:4] {
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
	}
	pieces := [][]byte{content[:PageSize], content[PageSize:]}
	if n := testing.AllocsPerRun(10, func() {
		if err := w.WritePages(pfns, pieces...); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("writing %d pages allocates %v times", len(pfns), n)
	}

	var buf bytes.Buffer
	write(t, &buf, false, pvhRecords[:4])
	for range 12 {
		buf.Write(encode(Pages{pfns, content}))
	}
	r, err := NewReader(&buf)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(8, func() {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}); n > 2 {
		t.Errorf("reading %d pages allocates %v times", len(pfns), n)
	}
}

// The table of a PV domain's pages stands before its memory, and is of no shape when it
// comes behind.
func TestATailHasNoTableOfPages(t *testing.T) {
	d := Domain{Version: 3, Type: PV, Major: 4}
	var buf bytes.Buffer
	w := NewTailWriter(&buf, d)
	if err := w.Write(P2MFrames{End: 511, Frames: []uint64{1}}); err == nil {
		t.Error("it is written")
	}
	frames := []byte{libxcPVP2MFrames, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0xff, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}
	if _, err := NewTailReader(bytes.NewReader(frames), d).Next(); err == nil || !strings.Contains(err.Error(), "behind what it belongs to") {
		t.Errorf("error %v", err)
	}
	// Its memory does.
	if err := NewTailWriter(&buf, d).Write(Pages{PFNs: []PFN{NewPFN(7, PageTable1)}, Data: make([]byte, PageSize)}); err != nil {
		t.Error(err)
	}
}
