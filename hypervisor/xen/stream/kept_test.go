package stream_test

// What a checkpoint file is written out as for xl, Xen's own tool takes.

import (
	"bytes"
	"encoding/binary"
	"testing"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/hypervisor/xen"
	"understudy/hypervisor/xen/stream"
)

func write(t *testing.T, w *stream.Writer, records ...stream.Record) {
	t.Helper()
	for i, rec := range records {
		if err := w.Write(rec); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
}

// context is the HVM context of one processor.
func context() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint32(nil, 1), 24)
	b = le.AppendUint32(le.AppendUint32(b, 0x54381286), 1)
	b = append(b, make([]byte, 16)...)
	b = le.AppendUint32(le.AppendUint32(b, 2), 8)
	return append(append(b, make([]byte, 8)...), make([]byte, 8)...)
}

func TestXenVerifiesWhatIsExported(t *testing.T) {
	// A guest of ours.
	head, err := xen.Head(4, 17, xen.Policies{CPUID: make([]byte, 48), MSR: make([]byte, 16)})
	must(t, err)
	d, err := xen.ParseHead(head)
	must(t, err)
	var tail bytes.Buffer
	write(t, stream.NewTailWriter(&tail, d), stream.TSCInfo{KHz: 1}, stream.HVMContext{Context: context()},
		stream.HVMParams{Params: []stream.HVMParam{{Index: 1, Value: 0xfeffc}}}, stream.DomainEnd{}, stream.End{})
	spec, err := xen.Spec{Head: head, Memory: []xen.Run{{First: 0, Count: 3000}, {First: 0xfeff8, Count: 8}}, Config: []byte(`{"type":"pvh","memory":16777216,"vcpus":1}`)}.Pack()
	must(t, err)
	verifyKept(t, "a PVH guest", spec, tail.Bytes())

	// A PV domain that xl has saved.
	file, err := stream.SaveFile{Config: []byte(`{"c_info":{"type":"pv","name":"old"}}`), JSON: true}.Append(nil)
	must(t, err)
	out := bytes.NewBuffer(file)
	w, err := stream.NewWriter(out)
	must(t, err)
	write(t, w, stream.Domain{Version: 3, Type: stream.PV, Major: 4, Minor: 17}, stream.PVInfo{Width: 8, Levels: 4}, stream.CPUIDPolicy{Leaves: make([]byte, 24)},
		stream.StaticDataEnd{}, stream.P2MFrames{End: 511, Frames: []uint64{9}},
		stream.Pages{PFNs: []stream.PFN{stream.NewPFN(9, stream.PageNormal), stream.NewPFN(10, stream.PageTable4|stream.PagePinned), stream.NewPFN(11, stream.PageAlloc)}, Data: make([]byte, 2*stream.PageSize)},
		stream.TSCInfo{}, stream.SharedInfo{Page: make([]byte, stream.PageSize)}, stream.VCPU{Context: make([]byte, 8)}, stream.DomainEnd{}, stream.End{})
	saved, err := xen.OpenSaved(out, 512)
	must(t, err)
	spec, err = saved.Spec(nil)
	must(t, err)
	state, err := saved.Copy(ignored{})
	must(t, err)
	verifyKept(t, "a PV domain", spec, state)
}

// ignored is a sink of an image that does not matter.
type ignored struct{}

func (ignored) Pages(epoch.GFN, []byte) error { return nil }
func (ignored) Zero(epoch.GFN, uint64) error  { return nil }

func verifyKept(t *testing.T, name string, spec hypervisor.Spec, state []byte) {
	t.Helper()
	kept, err := xen.ParseKept(spec, state)
	must(t, err)
	config, err := kept.Configuration(xen.Boot{Name: "web", Disks: []string{"/srv/web.img"}})
	must(t, err)
	var file bytes.Buffer
	e, err := kept.Export(&file, config)
	must(t, err)
	must(t, e.Zero(0, spec.Pages))
	must(t, e.End())
	if says, ok := stream.VerifyForTest(t, "xl", file.Bytes()); !ok {
		t.Errorf("%s:\n%s", name, says)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
