package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"understudy/hypervisor"
	"understudy/hypervisor/qemu/dirty"
	"understudy/hypervisor/qemu/stream"
)

const ramBlockText = `              Block Name    PSize              Offset               Used              Total
                     ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000
    /rom@etc/acpi/tables    4 KiB  0x0000000010080000 0x0000000000020000 0x0000000000200000
                 pc.bios    4 KiB  0x0000000010000000 0x0000000000040000 0x0000000000040000
`

// The list of QEMU 8.2 and later has two columns more.
const ramBlockNewText = `              Block Name    PSize              Offset               Used              Total                HVA  RO
                     ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f2e3fe00000  rw
                 pc.bios    4 KiB  0x0000000010000000 0x0000000000040000 0x0000000000040000 0x00007f2e3fa00000  ro
`

func TestParseRAMBlocks(t *testing.T) {
	for name, text := range map[string]string{"7.2": ramBlockText, "8.2": ramBlockNewText} {
		blocks, err := parseRAMBlocks(text)
		if err != nil || blocks["ram"] != [2]uint64{256 * mib, 256 * mib} || blocks["pc.bios"] != [2]uint64{0x40000, 0x40000} {
			t.Errorf("%s: %v, %v", name, blocks, err)
		}
	}
	blocks, _ := parseRAMBlocks(ramBlockText)
	if blocks["/rom@etc/acpi/tables"] != [2]uint64{0x20000, 0x200000} {
		t.Errorf("the tables are %v", blocks["/rom@etc/acpi/tables"])
	}
	for name, text := range map[string]string{
		"nothing": "", "a sentence": "no memory here\n", "twice": ramBlockText + "  ram 4 KiB 0x0 0x1000 0x1000\n",
		"more used than there is": "ram 4 KiB 0x0 0x2000 0x1000\n", "part of a page": "ram 4 KiB 0x0 0x10 0x10\n", "too long": "ram 4 KiB 0x0 0x11111111111111111 0x1\n",
	} {
		if b, err := parseRAMBlocks(text); err == nil {
			t.Errorf("%s: taken for %v", name, b)
		}
	}
}

func FuzzParseRAMBlocks(f *testing.F) {
	f.Add(ramBlockText)
	f.Add(ramBlockNewText)
	f.Fuzz(func(t *testing.T, text string) {
		blocks, err := parseRAMBlocks(text)
		for name, size := range blocks {
			if err == nil && (size[0] == 0 || size[0] > size[1] || name == "") {
				t.Fatalf("%q gives block %q of %v", text, name, size)
			}
		}
	})
}

func testBlocks() []block {
	return []block{
		{stream.Block{Name: "ram", Used: 16 * mib}, 16 * mib},
		{stream.Block{Name: "/rom@etc/acpi/tables", Used: 0x20000}, 0x200000},
		{stream.Block{Name: "pc.bios", Used: 0x40000, Addr: 0xfffc0000}, 0x40000},
	}
}

func testSpec(tb testing.TB) hypervisor.Spec {
	tb.Helper()
	m := &machineSpec{
		Format: specFormat, QEMU: "QEMU emulator version 7.2.0", Machine: "pc-q35-7.2", Accel: AccelTCG, Memory: 16 * mib,
		Shape: []string{"-smp", "1"}, RAM: stream.Section{ID: 2, Name: "ram", Version: 4}, Blocks: testBlocks(),
		Devices: []stream.Section{{ID: 0, Name: "timer", Version: 2}},
	}
	s, err := m.pack()
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func TestLayoutPutsSideBlocksBehindMemory(t *testing.T) {
	side, pages := layout(testBlocks())
	want := []sideBlock{{index: 1, first: 4096, pages: 512}, {index: 2, first: 4608, pages: 64}}
	if pages != 4096+512+64 || !slices.Equal(side, want) {
		t.Fatalf("%d pages, %+v", pages, side)
	}
}

func FuzzUnpackSpec(f *testing.F) {
	s := testSpec(f)
	f.Add(s.Pages, s.Machine)
	f.Add(uint64(1)<<62, []byte("{}"))
	f.Fuzz(func(t *testing.T, pages uint64, text []byte) {
		m, err := unpackSpec(hypervisor.Spec{Pages: pages, Machine: text})
		if err != nil {
			var refusal *hypervisor.Refusal
			if !errors.As(err, &refusal) {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		again, err := m.pack()
		if err != nil || again.Pages != pages {
			t.Fatalf("a spec of %d pages comes back with %d, %v", pages, again.Pages, err)
		}
	})
}

func TestStateIsTakenApartAgain(t *testing.T) {
	blocks := testBlocks()
	head := appendStateHead(nil, blocks, []uint64{16 * mib, 0x40000, 0x40000})
	used, devices, err := splitState(append(bytes.Clone(head), "devices"...), blocks)
	if err != nil || !slices.Equal(used, []uint64{16 * mib, 0x40000, 0x40000}) || string(devices) != "devices" {
		t.Fatalf("%v, %q, %v", used, devices, err)
	}
	bad := map[string][]byte{
		"nothing": nil, "another magic": append([]byte("XXXX"), head[4:]...), "another format": append([]byte("USDS\x00\x09"), head[6:]...),
		"cut": head[:20], "fewer blocks": append([]byte("USDS\x00\x01\x00\x02"), head[8:]...),
		"a table too long":        appendStateHead(nil, blocks, []uint64{16 * mib, 0x201000, 0x40000}),
		"a fixed block resized":   appendStateHead(nil, blocks, []uint64{16 * mib, 0x20000, 0x1000}),
		"main memory shrunk":      appendStateHead(nil, blocks, []uint64{8 * mib, 0x20000, 0x40000}),
		"a table of no length":    appendStateHead(nil, blocks, []uint64{16 * mib, 0, 0x40000}),
		"a table of half a page":  appendStateHead(nil, blocks, []uint64{16 * mib, 0x800, 0x40000}),
		"longer than any machine": make([]byte, maxState+1),
	}
	for name, state := range bad {
		if _, _, err := splitState(state, blocks); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzSplitState(f *testing.F) {
	blocks := testBlocks()
	f.Add(appendStateHead(nil, blocks, []uint64{16 * mib, 0x20000, 0x40000}))
	f.Fuzz(func(t *testing.T, state []byte) {
		used, devices, err := splitState(state, blocks)
		if err != nil {
			return
		}
		if again := append(appendStateHead(nil, blocks, used), devices...); !bytes.Equal(again, state) {
			t.Fatalf("%x comes back as %x", state, again)
		}
	})
}

// A RAM block is one mapping of its size, aligned, private, with a guard page.
func TestCandidates(t *testing.T) {
	maps := func(text string) []dirty.Mapping {
		m, err := dirty.ParseMaps(strings.NewReader(text))
		must(t, err)
		return m
	}
	const guard = "7f0000010000-7f0000011000 ---p 00000000 00:00 0\n"
	tests := map[string]struct {
		text string
		want int
	}{
		"a block":        {"7f0000000000-7f0000010000 rw-p 00000000 00:00 0\n" + guard, 1},
		"no guard":       {"7f0000000000-7f0000010000 rw-p 00000000 00:00 0\n", 0},
		"a stack behind": {"7f0000000000-7f0000010000 rw-p 00000000 00:00 0\n7f0000010000-7f0000011000 rw-p 00000000 00:00 0\n", 0},
		"not aligned":    {"7f0000008000-7f0000010000 rw-p 00000000 00:00 0\n" + guard, 0},
		"a file":         {"7f0000000000-7f0000010000 rw-p 00000000 08:01 77 /lib/x\n" + guard, 0},
		"shared":         {"7f0000000000-7f0000010000 rw-s 00000000 00:00 0\n" + guard, 0},
		"code":           {"7f0000000000-7f0000010000 r-xp 00000000 00:00 0\n" + guard, 0},
	}
	for name, test := range tests {
		if got := candidates(maps(test.text), 0x10000); len(got) != test.want {
			t.Errorf("%s: %d candidates, want %d", name, len(got), test.want)
		}
	}
}

// What the stream and QEMU's own list say must fit together.
func TestReadDescription(t *testing.T) {
	devices := smallDevices(t)
	compose := func(shared func(int) bool) []byte {
		var out bytes.Buffer
		var blocks []stream.Block
		for _, b := range testBlocks() {
			blocks = append(blocks, b.Block)
		}
		page := bytes.Repeat([]byte{7}, stream.PageSize)
		must(t, stream.Compose(&out, stream.Incoming{
			RAM: stream.Section{ID: 2, Name: "ram", Version: 4}, Blocks: blocks, Devices: devices, Shared: shared,
			Page: func(int, uint64) ([]byte, error) { return page, nil },
		}))
		return out.Bytes()
	}
	main := func(i int) bool { return i == 0 }
	totals := func() map[string][2]uint64 {
		return map[string][2]uint64{"ram": {16 * mib, 16 * mib}, "/rom@etc/acpi/tables": {0x20000, 0x200000}, "pc.bios": {0x40000, 0x40000}}
	}
	d, err := readDescription(compose(main), totals(), 16*mib)
	must(t, err)
	if len(d.blocks) != 3 || d.blocks[1].Total != 0x200000 || len(d.content[2]) != 0x40000 || d.content[2][5] != 7 {
		t.Fatalf("%+v", d.blocks)
	}
	bad := map[string]func() error{
		"main memory in the stream": func() error {
			_, err := readDescription(compose(func(int) bool { return false }), totals(), 16*mib)
			return err
		},
		"a block outside the stream": func() error {
			m := totals()
			m["vfio"] = [2]uint64{4096, 4096}
			_, err := readDescription(compose(main), m, 16*mib)
			return err
		},
		"another length": func() error {
			m := totals()
			m["pc.bios"] = [2]uint64{4096, 0x40000}
			_, err := readDescription(compose(main), m, 16*mib)
			return err
		},
		"other memory": func() error { _, err := readDescription(compose(main), totals(), 32*mib); return err },
	}
	for name, f := range bad {
		if f() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// smallDevices is a device state of one section, as QEMU would save it.
func smallDevices(t *testing.T) []byte {
	t.Helper()
	return []byte("QEVM\x00\x00\x00\x03" + "\x04\x00\x00\x00\x00\x05timer\x00\x00\x00\x00\x00\x00\x00\x02" + "data" + "\x7e\x00\x00\x00\x00" + "\x00")
}

func TestParseStat(t *testing.T) {
	line := "77 (a) b (c) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3"
	if start, err := parseStat([]byte(line)); err != nil || start != 987654 {
		t.Fatalf("start %d, %v", start, err)
	}
	for _, bad := range []string{"", "77", "77 (x) S 1 2", "77 (x) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 x 1"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var l tail
	for _, part := range []string{strings.Repeat("a", tailSize-1), "bc", strings.Repeat("d", 2*tailSize), "end"} {
		n, err := l.Write([]byte(part))
		if n != len(part) || err != nil {
			t.Fatalf("write of %d: %d, %v", len(part), n, err)
		}
		if s := l.String(); len(s) > tailSize || !strings.HasSuffix(s, part[max(0, len(part)-10):]) {
			t.Fatalf("%d bytes kept, end %q", len(s), s[len(s)-10:])
		}
	}
}

// A record is taken back as it was saved, and nothing else is.
func TestRecord(t *testing.T) {
	c := testConfig(t, "q35").withDefaults()
	must(t, c.prepare(account{}))
	at, err := newPlace(c)
	must(t, err)
	spec := testSpec(t)
	want := record{Role: roleGuest, Process: identity{PID: 7, Start: 8, Boot: "b"}, Pages: spec.Pages, Spec: spec.Machine, Side: []uint64{1, 2}}
	must(t, at.save(want))
	got, err := at.load()
	must(t, err)
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	if !bytes.Equal(a, b) {
		t.Fatalf("saved %s, loaded %s", a, b)
	}
	if _, err := got.spec(); err != nil {
		t.Fatal(err)
	}
	found, err := c.places()
	if err != nil || len(found) != 1 || found[0] != at {
		t.Fatalf("places %v, %v", found, err)
	}
	must(t, at.remove())
	if found, err := c.places(); err != nil || len(found) != 0 {
		t.Fatalf("places %v, %v", found, err)
	}
}
