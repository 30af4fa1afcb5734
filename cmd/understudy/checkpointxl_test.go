package main

// What the script about files of xl needs: domains as xl saves them, with a disk that
// has some of their memory, and a configuration that knows one of them.

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"

	"understudy/config"
	"understudy/disk/store"
	"understudy/epoch"
	"understudy/hypervisor/xen/stream"
)

// xlPages is how much of its 64 MiB a domain has touched.
const xlPages = 4096

func xlPage(n int) []byte {
	return bytes.Repeat([]byte{byte(n), byte(n >> 8), 1, 2}, epoch.PageSize/4)
}

// xlSave makes a file of xl save, and the domain's disk: of every eight pages one is
// on it, one is zero, and the others are not.
func xlSave(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: xlsave FILE pvh|pv DISK")
	}
	disk := make([]byte, xlPages*epoch.PageSize)
	p := stream.Pages{}
	for n := range xlPages {
		p.PFNs = append(p.PFNs, stream.NewPFN(uint64(n), stream.PageNormal))
		switch n % 8 {
		case 0:
			p.Data = append(p.Data, make([]byte, epoch.PageSize)...)
		case 1:
			copy(disk[(xlPages-1-n)*epoch.PageSize:], xlPage(n))
			fallthrough
		default:
			p.Data = append(p.Data, xlPage(n)...)
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), disk, 0o600))
	config := fmt.Appendf(nil, `{"c_info":{"type":%q,"name":"old"},"b_info":{"max_vcpus":1,"max_memkb":65536}}`, args[1])
	head, err := stream.SaveFile{Config: config, JSON: true}.Append(nil)
	ts.Check(err)
	out := bytes.NewBuffer(head)
	w, err := stream.NewWriter(out)
	ts.Check(err)
	records := []stream.Record{stream.Domain{Version: 3, Type: stream.HVM, Major: 4, Minor: 17}, stream.CPUIDPolicy{Leaves: make([]byte, 24)}, stream.StaticDataEnd{}, p,
		stream.TSCInfo{}, stream.HVMContext{Context: oneProcessor()}, stream.HVMParams{Params: []stream.HVMParam{{Index: 1, Value: 5}}}, stream.DomainEnd{}, stream.End{}}
	if args[1] == "pv" {
		records = []stream.Record{stream.Domain{Version: 3, Type: stream.PV, Major: 4, Minor: 17}, stream.PVInfo{Width: 8, Levels: 4}, stream.StaticDataEnd{},
			stream.P2MFrames{End: xlPages - 1, Frames: make([]uint64, xlPages/512)}, p, stream.TSCInfo{}, stream.SharedInfo{Page: xlPage(7)},
			stream.VCPU{Context: make([]byte, 8)}, stream.DomainEnd{}, stream.End{}}
	}
	for _, rec := range records {
		ts.Check(w.Write(rec))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), out.Bytes(), 0o600))
}

// oneProcessor is the HVM context of one: a header, a processor, an end.
func oneProcessor() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint32(nil, 1), 24)
	b = le.AppendUint32(le.AppendUint32(b, 0x54381286), 1)
	b = append(b, make([]byte, 16)...)
	b = le.AppendUint32(le.AppendUint32(b, 2), 8)
	return append(append(b, make([]byte, 8)...), make([]byte, 8)...)
}

// xlConfig makes a configuration with a Xen guest "web" that has a disk, as its daemon
// has left it.
func xlConfig(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: xlconfig CONFIG DISK MEMORY")
	}
	dir := filepath.Dir(ts.MkAbs(args[0]))
	kernel := filepath.Join(dir, "vmlinuz")
	ts.Check(os.WriteFile(kernel, []byte("a kernel"), 0o600))
	text := fmt.Sprintf(`cluster = "test"
state_dir = %[1]q
run_dir = %[1]q
tls_dir = %[1]q
[[host]]
name = "a"
address = "192.0.2.1:7070"
[[host]]
name = "b"
address = "192.0.2.2:7070"
[[host]]
name = "w"
address = "192.0.2.3:7070"
witness = true
[[guest]]
name = "web"
host = "a"
backup = "b"
hypervisor = "xen"
memory = %[2]q
cpus = 1
kernel = %[3]q
[[guest.disk]]
path = %[4]q
mode = "replicated"
`, dir, args[2], kernel, ts.MkAbs(args[1]))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
	_, err := config.Load(ts.MkAbs(args[0]))
	ts.Check(err)
	f, err := store.Open(store.Config{Path: ts.MkAbs(args[1]), Host: "a", Direct: store.DirectNever})
	ts.Check(err)
	ts.Check(f.Close())
}
