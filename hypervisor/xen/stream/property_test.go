package stream

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// Whatever whole domain is written, of whatever kind and with however many
// checkpoints, is read back as it was, and nothing is read behind its end.
func TestWhatIsWrittenIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bare := rapid.Bool().Draw(t, "bare")
		records := domains().Draw(t, "records")
		if bare {
			records = withoutLibxl(records)
		}
		file := SaveFile{Config: rapid.SliceOfN(rapid.ByteRange(1, 255), 1, 50).Draw(t, "config"), JSON: rapid.Bool().Draw(t, "json")}
		head, err := file.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		buf := bytes.NewBuffer(head)
		w := NewLibxcWriter(buf)
		if !bare {
			w, _ = NewWriter(buf)
		}
		for i, rec := range records {
			if err := w.Write(rec); err != nil {
				t.Fatalf("record %d: %v", i, err)
			}
		}
		if !w.Ended() {
			t.Fatal("the stream is not at its end")
		}
		buf.WriteString("behind")

		got, err := ReadSaveFile(buf)
		if err != nil || !reflect.DeepEqual(got, file) {
			t.Fatalf("head %+v, want %+v, error %v", got, file, err)
		}
		r := NewLibxcReader(buf)
		if !bare {
			if r, err = NewReader(buf); err != nil {
				t.Fatal(err)
			}
		}
		if err := compare(r, records); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if buf.String() != "behind" {
			t.Fatalf("%d bytes are left", buf.Len())
		}
	})
}

// domains generates the records of a libxl stream.
func domains() *rapid.Generator[[]Record] {
	return rapid.Custom(func(t *rapid.T) []Record {
		d := Domain{
			Version: rapid.Uint32Range(2, 3).Draw(t, "version"), Type: rapid.SampledFrom([]DomainType{PV, HVM}).Draw(t, "type"),
			Major: 4, Minor: rapid.Uint32().Draw(t, "minor"),
		}
		records := []Record{d}
		pv := rapid.SampledFrom([]PVInfo{{8, 4}, {4, 3}}).Draw(t, "shape")
		if d.Type == PV {
			records = append(records, pv)
		}
		if d.Version == 3 {
			records = append(records, CPUIDPolicy{blob(t, leafSize)}, MSRPolicy{blob(t, msrSize)}, StaticDataEnd{})
		}
		if d.Type == PV {
			frames := rapid.SliceOfN(rapid.Uint64(), 1, 4).Draw(t, "frames")
			start := rapid.Uint32Range(0, 1<<20).Draw(t, "start")
			each := PageSize / uint32(pv.Width)
			end := (start/each+uint32(len(frames))-1)*each + each - 1
			records = append(records, P2MFrames{start, end, frames})
		}
		for range rapid.IntRange(0, 2).Draw(t, "checkpoints") {
			records = append(append(records, state(t, d)...), Checkpoint{})
			records = append(append(records, emulators(t, d)...), CheckpointEnd{})
		}
		records = append(append(records, state(t, d)...), DomainEnd{})
		return append(append(records, emulators(t, d)...), End{})
	})
}

func blob(t *rapid.T, size int) []byte {
	n := size * rapid.IntRange(1, 5).Draw(t, "entries")
	return rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "blob")
}

// state generates what makes a checkpoint of a domain.
func state(t *rapid.T, d Domain) []Record {
	var records []Record
	types := []PageType{PageNormal, PageBroken, PageAlloc, PageNone}
	if d.Type == PV {
		types = append(types, PageTable1, PageTable4, PageTable1|PagePinned, PageTable4|PagePinned)
	}
	for range rapid.IntRange(0, 2).Draw(t, "batches") {
		var p Pages
		p.Data = []byte{}
		for range rapid.IntRange(1, 5).Draw(t, "pages") {
			pfn := NewPFN(rapid.Uint64Range(0, MaxPFN-1).Draw(t, "pfn"), rapid.SampledFrom(types).Draw(t, "page type"))
			p.PFNs = append(p.PFNs, pfn)
			if pfn.HasData() {
				p.Data = append(p.Data, page(rapid.Byte().Draw(t, "content"))...)
			}
		}
		records = append(records, p)
	}
	records = append(records, TSCInfo{rapid.Uint32().Draw(t, "mode"), 1, rapid.Uint64().Draw(t, "ns"), 2})
	if d.Type == HVM {
		params := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) HVMParam {
			return HVMParam{rapid.Uint64().Draw(t, "index"), rapid.Uint64().Draw(t, "value")}
		}), 1, 4).Draw(t, "params")
		return append(records, HVMContext{blob(t, 1)}, HVMParams{params})
	}
	records = append(records, SharedInfo{page(rapid.Byte().Draw(t, "shared"))})
	for id := range rapid.Uint32Range(1, 3).Draw(t, "processors") {
		for part := VCPUBasic; part <= VCPUMSRs; part++ {
			records = append(records, VCPU{part, id, blob(t, 1)})
		}
	}
	return records
}

func emulators(t *rapid.T, d Domain) []Record {
	if d.Type == PV || rapid.Bool().Draw(t, "no emulator") {
		return nil
	}
	var pairs []Pair
	for range rapid.IntRange(0, 3).Draw(t, "pairs") {
		pairs = append(pairs, Pair{rapid.StringMatching(`[-_@a-zA-Z0-9][-/_@a-zA-Z0-9]{0,9}`).Draw(t, "key"), rapid.StringMatching(`[ -~]{0,9}`).Draw(t, "value")})
	}
	return []Record{EmulatorStore{qemuEmulator, pairs}, EmulatorContext{qemuEmulator, blob(t, 1)}}
}

// withoutLibxl leaves the records of libxc's part.
func withoutLibxl(records []Record) []Record {
	var bare []Record
	for _, rec := range records {
		if _, first := rec.(Domain); first || rec.kind().level == Libxc {
			bare = append(bare, rec)
		}
	}
	return bare
}
