package xen

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/xen/stream"
)

// pageOf is a page's content that nobody else has.
func pageOf(n uint64) []byte {
	return bytes.Repeat([]byte{byte(n), byte(n >> 8), byte(n>>16) | 1, 7}, epoch.PageSize/4)
}

// image is a Sink: what was given last for each page.
type image map[epoch.GFN][]byte

func (m image) Pages(first epoch.GFN, data []byte) error {
	for ; len(data) > 0; first, data = first+1, data[epoch.PageSize:] {
		m[first] = bytes.Clone(data[:epoch.PageSize])
	}
	return nil
}

func (m image) Zero(first epoch.GFN, count uint64) error {
	for page := first; page < first+epoch.GFN(count); page++ {
		m[page] = make([]byte, epoch.PageSize)
	}
	return nil
}

// xlConfig is what xl puts before a stream, as far as it matters.
func xlConfig(t Type) []byte {
	return fmt.Appendf(nil, `{"c_info":{"type":%q,"name":"web","uuid":"6ba1"},"b_info":{"max_vcpus":2,"max_memkb":131072},"disks":[{"vdev":"xvda"}]}`, t)
}

// xlFile writes a file of xl save.
func xlFile(t rapid.TB, config []byte, records ...stream.Record) []byte {
	head, err := stream.SaveFile{Config: config, JSON: true}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.NewBuffer(head)
	w, err := stream.NewWriter(out)
	if err != nil {
		t.Fatal(err)
	}
	for i, rec := range records {
		if err := w.Write(rec); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	return out.Bytes()
}

var (
	pvhHead = []stream.Record{stream.Domain{Version: 3, Type: stream.HVM, Major: 4, Minor: 17}, stream.CPUIDPolicy{Leaves: make([]byte, 48)}, stream.MSRPolicy{Entries: make([]byte, 16)}, stream.StaticDataEnd{}}
	pvHeads = []stream.Record{stream.Domain{Version: 3, Type: stream.PV, Major: 4, Minor: 17}, stream.PVInfo{Width: 8, Levels: 4}, stream.CPUIDPolicy{Leaves: make([]byte, 24)}, stream.StaticDataEnd{}}
	pvTail  = []stream.Record{stream.TSCInfo{Mode: 1}, stream.SharedInfo{Page: pageOf(99)}, stream.VCPU{Part: stream.VCPUBasic, Context: make([]byte, 40)},
		stream.VCPU{Part: stream.VCPUXSave, Context: make([]byte, 8)}, stream.DomainEnd{}, stream.End{}}
)

func pvhTail() []stream.Record {
	s := state()
	return []stream.Record{s.TSC, stream.HVMContext{Context: s.Context}, stream.HVMParams{Params: s.Params}, stream.DomainEnd{}, stream.End{}}
}

// pvFrames announces so many pages.
func pvFrames(pages int) stream.P2MFrames {
	return stream.P2MFrames{End: uint32(pages - 1), Frames: make([]uint64, (pages+511)/512)}
}

// take reads a file of xl's as the import does.
func take(data []byte) (*Saved, image, hypervisor.Spec, []byte, error) {
	fail := func(err error) (*Saved, image, hypervisor.Spec, []byte, error) {
		return nil, nil, hypervisor.Spec{}, nil, err
	}
	s, err := OpenSaved(bytes.NewReader(data), uint64(len(data)/8)+4096) // not every page is named here
	if err != nil {
		return fail(err)
	}
	if !s.IsPV() {
		frames, err := s.Survey()
		if err != nil {
			return fail(err)
		}
		if s, err = OpenSaved(bytes.NewReader(data), 0); err != nil {
			return fail(err)
		}
		s.Located(frames)
	}
	spec, err := s.Spec(nil)
	if err != nil {
		return fail(err)
	}
	m := image{}
	state, err := s.Copy(m)
	if err != nil {
		return fail(err)
	}
	return s, m, spec, state, nil
}

// export writes an image as the export does, in some order.
func export(spec hypervisor.Spec, state []byte, m image, order []epoch.GFN) ([]byte, error) {
	k, err := ParseKept(spec, state)
	if err != nil {
		return nil, err
	}
	config, err := k.Configuration(Boot{Name: "web"})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	e, err := k.Export(&out, config)
	if err != nil {
		return nil, err
	}
	for _, page := range order {
		if bytes.Equal(m[page], make([]byte, epoch.PageSize)) {
			err = e.Zero(page, 1)
		} else {
			err = e.Pages(page, m[page])
		}
		if err != nil {
			return nil, err
		}
	}
	err = e.End()
	return out.Bytes(), err
}

// Whatever domain xl has saved, live or not: its image is what was said of each
// page last, and what is written of it for xl is the same domain.
func TestWhatXLSavesIsExportedAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pv := rapid.Bool().Draw(t, "pv")
		pages := rapid.IntRange(1, 1200).Draw(t, "pages")
		first := uint64(0)
		types := []stream.PageType{stream.PageNormal, stream.PageNormal, stream.PageAlloc, stream.PageNone}
		config, records, tail := xlConfig(PVH), slices.Clone(pvhHead), pvhTail()
		if pv {
			types = append(types, stream.PageTable1, stream.PageTable4|stream.PagePinned)
			config, records, tail = xlConfig(PV), append(slices.Clone(pvHeads), pvFrames(pages)), pvTail
		} else {
			first = rapid.Uint64Range(0, 1<<20).Draw(t, "first frame")
		}
		want, kinds := map[uint64][]byte{}, map[uint64]stream.PageType{}
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			p := stream.Pages{}
			for n := uint64(rapid.IntRange(0, pages-1).Draw(t, "from")); n < uint64(pages) && len(p.PFNs) < 900; n += uint64(rapid.SampledFrom([]int{1, 1, 1, 1, 5}).Draw(t, "step")) {
				kind := rapid.SampledFrom(types).Draw(t, "type")
				p.PFNs = append(p.PFNs, stream.NewPFN(first+n, kind))
				kinds[first+n], want[first+n] = kind, make([]byte, epoch.PageSize)
				if kind.Content() {
					content := pageOf(rapid.Uint64Range(0, 1<<20).Draw(t, "content"))
					want[first+n], p.Data = content, append(p.Data, content...)
				}
			}
			records = append(records, p)
		}
		if !pv {
			records = append(records, stream.Pages{PFNs: []stream.PFN{stream.NewPFN(first, stream.PageNormal)}, Data: pageOf(1)})
			kinds[first], want[first] = stream.PageNormal, pageOf(1)
		}
		file := xlFile(t, config, append(records, tail...)...)
		s, m, spec, state, err := take(file)
		if err != nil {
			t.Fatal(err)
		}
		if s.Name != "web" || s.VCPUs != 2 || s.Memory != 128<<20 {
			t.Fatalf("it is %+v", s.Outline)
		}
		check := func(m image, frames *Frames) {
			t.Helper()
			if uint64(len(m)) != frames.Pages() {
				t.Fatalf("%d pages were given, the image has %d", len(m), frames.Pages())
			}
			for n := range uint64(pages) {
				page, is := frames.Page(first + n)
				kind, said := kinds[first+n]
				if !pv && is != (said && kind != stream.PageNone) {
					t.Fatalf("frame %d (type %d) is in the image: %v", first+n, kind, is)
				}
				if is && want[first+n] != nil && !bytes.Equal(m[page], want[first+n]) {
					t.Fatalf("frame %d (type %d), page %d has other content", first+n, kind, page)
				}
			}
		}
		check(m, s.frames)
		if spec.Pages != s.frames.Pages() {
			t.Fatalf("a spec of %d pages", spec.Pages)
		}

		order := rapid.Permutation(slices.Sorted(maps.Keys(m))).Draw(t, "order")
		out, err := export(spec, state, m, order)
		if err != nil {
			t.Fatal(err)
		}
		again, n, spec2, state2, err := take(out)
		if err != nil {
			t.Fatal(err)
		}
		check(n, again.frames)
		if !bytes.Equal(spec2.Machine, spec.Machine) || !bytes.Equal(state2, state) {
			t.Fatal("what is exported is another domain")
		}
		if !bytes.Equal(again.spec.Toolstack, config) {
			t.Fatalf("xl finds the configuration %s", again.spec.Toolstack)
		}
		if pv {
			for n, kind := range kinds {
				if again.types[n] != kind {
					t.Fatalf("page %d is of type %d, was %d", n, again.types[n], kind)
				}
			}
		}
	})
}

func TestWhatIsNoSavedDomainIsRefused(t *testing.T) {
	one := stream.Pages{PFNs: []stream.PFN{5}, Data: pageOf(5)}
	pvh := func(records ...stream.Record) []byte {
		return xlFile(t, xlConfig(PVH), append(slices.Clone(pvhHead), records...)...)
	}
	pv := func(records ...stream.Record) []byte {
		return xlFile(t, xlConfig(PV), append(slices.Clone(pvHeads), records...)...)
	}
	with := func(tail []stream.Record, before ...stream.Record) []stream.Record { return append(before, tail...) }
	good := pvh(with(pvhTail(), one)...)
	if _, _, _, _, err := take(good); err != nil {
		t.Fatal(err)
	}
	whole := pv(with(pvTail, pvFrames(6), one)...)
	if _, _, _, _, err := take(whole); err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if _, _, _, _, err := take(whole[:n]); err == nil {
			t.Fatalf("cut to %d of %d bytes it is taken", n, len(whole))
		}
	}
	remus := []stream.Record{one}
	remus = append(append(remus, pvhTail()[:3]...), stream.Checkpoint{}, stream.CheckpointEnd{}, one)
	for _, c := range []struct {
		name, want string
		data       []byte
	}{
		{"an HVM domain", `of type "hvm"`, xlFile(t, xlConfig("hvm"), append(slices.Clone(pvhHead), with(pvhTail(), one)...)...)},
		{"of another type than it says", "its configuration of one of type", xlFile(t, xlConfig(PV), append(slices.Clone(pvhHead), with(pvhTail(), one)...)...)},
		{"no configuration", "in JSON: true", xlFile(t, nil, append(slices.Clone(pvhHead), with(pvhTail(), one)...)...)},
		{"a large one", "KiB of memory", xlFile(t, []byte(`{"c_info":{"type":"pv"},"b_info":{"max_memkb":18446744073709551615}}`), append(slices.Clone(pvHeads), with(pvTail, pvFrames(6), one)...)...)},
		{"no frame", "memory in 0 pieces", pvh(pvhTail()...)},
		{"broken memory", "broken memory", pvh(with(pvhTail(), stream.Pages{PFNs: []stream.PFN{stream.NewPFN(5, stream.PageBroken)}})...)},
		{"a device model", "a device model", pvh(append(with(pvhTail()[:4], one), stream.EmulatorContext{Emulator: stream.Emulator{ID: stream.EmulatorQEMU}, Context: []byte("q")}, stream.End{})...)},
		{"Remus", "Remus", pvh(with(pvhTail(), remus...)...)},
		{"two clocks", "TSCInfo twice", pvh(with(pvhTail(), one, stream.TSCInfo{})...)},
		{"a page outside", "page 6 of a domain of 6", pv(with(pvTail, pvFrames(6), stream.Pages{PFNs: []stream.PFN{6}, Data: pageOf(6)})...)},
		{"pages that are not there", "too short", pv(with(pvTail, pvFrames(1<<25), one)...)},
		{"not from the first page on", "begin with page 512", pv(with(pvTail, stream.P2MFrames{Start: 512, End: 1023, Frames: []uint64{1}}, one)...)},
		{"no clock", "the time stamp counter is there: false", pv(with(pvTail[1:], pvFrames(6), one)...)},
	} {
		if _, _, _, _, err := take(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

// A file of a guest of ours has no configuration of xl's: it is made, with the disks
// that libxl is to serve then, and never with a UUID by which a daemon would take
// the domain for its own.
func TestAGuestOfOursForXL(t *testing.T) {
	c := testConfig(t)
	shape, err := c.Shape()
	must(t, err)
	spec, err := Spec{Head: head(t), Memory: fakeRuns, Config: shape}.Pack()
	must(t, err)
	k, err := ParseKept(spec, tailOf(t, 127))
	must(t, err)
	if got := k.String(); got != "Xen domain of type pvh, 2 processors, 64 MiB, saved on Xen 4.17" {
		t.Errorf("it is called %q", got)
	}
	config, err := k.Configuration(Boot{Name: "web", Kernel: "/srv/vmlinuz", Disks: []string{"/srv/a.img", "/srv/b.img"}})
	must(t, err)
	var got struct {
		Create struct{ Type, Name, UUID string } `json:"c_info"`
		Build  struct {
			Kernel, Cmdline string
			MaxMemKB        uint64 `json:"max_memkb"`
		} `json:"b_info"`
		Disks []struct {
			Path string `json:"pdev_path"`
			VDev string
		}
	}
	must(t, json.Unmarshal(config, &got))
	if got.Create.Name != "web" || got.Create.Type != "pvh" || got.Build.Kernel != "/srv/vmlinuz" || got.Build.MaxMemKB != 64<<10 || got.Build.Cmdline != "quiet" ||
		len(got.Disks) != 2 || got.Disks[1].Path != "/srv/b.img" || got.Disks[1].VDev != "xvdb" {
		t.Errorf("xl is told %s", config)
	}
	var id [16]byte
	for i, text := 0, strings.ReplaceAll(got.Create.UUID, "-", ""); i < len(id); i++ {
		id[i] = unhex(text[2*i])<<4 | unhex(text[2*i+1])
	}
	if ours("web", id) {
		t.Error("a daemon would destroy the domain")
	}
	if _, err := outlineOf(config); err != nil {
		t.Errorf("it cannot be taken back: %v", err)
	}

	k.Spec.Config = []byte(`{"type":"hvm"}`)
	if _, err := k.Configuration(Boot{Name: "web"}); err == nil || !strings.Contains(err.Error(), `only those of type "pvh"`) {
		t.Errorf("a device model of ours for xl: %v", err)
	}

	e, err := k.Export(new(bytes.Buffer), nil)
	must(t, err)
	if e.End() == nil || e.Zero(60, 5) == nil || e.Zero(65, 0) != nil {
		t.Error("a domain without its memory is written")
	}
	must(t, e.Zero(0, 64))
	if e.Zero(0, 1) == nil {
		t.Error("more pages than there are")
	}
	must(t, e.End())
}

func FuzzSaved(f *testing.F) {
	one := stream.Pages{PFNs: []stream.PFN{5}, Data: pageOf(5)}
	f.Add(xlFile(f, xlConfig(PVH), append(append(slices.Clone(pvhHead), one), pvhTail()...)...))
	f.Add(xlFile(f, xlConfig(PV), append(append(slices.Clone(pvHeads), pvFrames(6), one), pvTail...)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, m, spec, state, err := take(data)
		if err != nil {
			return
		}
		out, err := export(spec, state, m, slices.Sorted(maps.Keys(m)))
		if err != nil {
			t.Fatal(err)
		}
		_, _, spec2, state2, err := take(out)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(spec.Machine, spec2.Machine) || !bytes.Equal(state, state2) {
			t.Fatal("what is exported is another domain")
		}
	})
}

// Any machine and any state of a file are a domain, or an error.
func FuzzKept(f *testing.F) {
	for _, data := range [][]byte{
		xlFile(f, xlConfig(PVH), append(append(slices.Clone(pvhHead), stream.Pages{PFNs: []stream.PFN{5}, Data: pageOf(5)}), pvhTail()...)...),
		xlFile(f, xlConfig(PV), append(append(slices.Clone(pvHeads), pvFrames(6)), pvTail...)...),
	} {
		_, _, spec, state, err := take(data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(spec.Pages, spec.Machine, state)
	}
	f.Fuzz(func(t *testing.T, pages uint64, machine, state []byte) {
		spec := hypervisor.Spec{Pages: pages, Machine: machine}
		if s, frames, err := ParseSpec(spec); err == nil && (frames.Pages() != pages || len(s.Config) == 0) {
			t.Fatalf("%d pages", frames.Pages())
		}
		k, err := ParseKept(spec, state)
		if err != nil {
			return
		}
		if k.frames.Pages() != pages {
			t.Fatalf("%d pages", k.frames.Pages())
		}
		for page := epoch.GFN(0); uint64(page) < min(pages, 1<<12); page++ {
			if kind, n := k.typesFrom(page); !kind.Valid() || n == 0 {
				t.Fatalf("page %d is of type %d, %d of them", page, kind, n)
			}
		}
	})
}

// A PV domain's state that is cut off, or says anything else than one type for each
// page and one whole domain, is refused.
func TestAForeignPVStateIsRefused(t *testing.T) {
	page := stream.Pages{PFNs: []stream.PFN{stream.NewPFN(2, stream.PageTable4|stream.PagePinned), 3}, Data: append(pageOf(2), pageOf(3)...)}
	_, _, spec, state, err := take(xlFile(t, xlConfig(PV), append(append(slices.Clone(pvHeads), pvFrames(6), page), pvTail...)...))
	must(t, err)
	k, err := ParseKept(spec, state)
	must(t, err)
	if want := []typeRun{{0, 2, stream.PageNone}, {2, 1, stream.PageTable4 | stream.PagePinned}, {3, 1, stream.PageNormal}, {4, 2, stream.PageNone}}; !slices.Equal(k.types, want) {
		t.Errorf("the types are %v, want %v", k.types, want)
	}
	for n := range state {
		if _, err := ParseKept(spec, state[:n]); err == nil {
			t.Fatalf("cut to %d of %d bytes it is taken", n, len(state))
		}
	}
	change := func(at int, to byte) []byte {
		b := bytes.Clone(state)
		b[at] = to
		return b
	}
	tail := func(records ...stream.Record) []byte {
		var out bytes.Buffer
		w := stream.NewTailWriter(&out, k.Domain)
		for _, rec := range records {
			must(t, w.Write(rec))
		}
		return append(bytes.Clone(state[:len(state)-len(k.tail)]), out.Bytes()...)
	}
	run := func(n int) int { return pvHead + n*pvRunSize }
	for _, c := range []struct {
		name, want string
		state      []byte
	}{
		{"another beginning", "does not begin", change(0, 'x')},
		{"something reserved", "does not begin", change(len(pvMagic)+4, 1)},
		{"many runs", "runs of pages in", change(len(pvMagic)+3, 0xff)},
		{"a type that is none", "of type 8", change(run(1)+7, 0x80)},
		{"a gap", "behind page", change(run(1), 3)},
		{"an empty run", "behind page", change(run(1)+8, 0)},
		{"a long run", "behind page", change(run(3)+8, 3)},
		{"too few pages", "the types of 5 pages", change(run(3)+8, 1)},
		{"more", "bytes follow it", append(bytes.Clone(state), 0)},
		{"memory", "no state", tail(append([]stream.Record{page}, pvTail...)...)},
		{"no processor", "X86_PV_VCPU_BASIC", append(tail(pvTail[0], pvTail[1]), tailEnd...)},
	} {
		if _, err := ParseKept(spec, c.state); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
	other := spec
	other.Pages = 7
	if _, err := ParseKept(other, state); err == nil {
		t.Error("an image of another size is taken")
	}
}

// tailEnd is libxc's END, and libxl's.
var tailEnd = make([]byte, 16)
