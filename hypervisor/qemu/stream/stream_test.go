package stream

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// golden returns a stream that QEMU 7.2 wrote for a paused machine of 256 MiB.
// Every byte of its pages was replaced by the number of the block, counted
// from 1, so that no firmware is in this tree.
func golden(tb testing.TB, machine string) []byte {
	tb.Helper()
	f, err := os.Open(filepath.Join("testdata", machine+".stream.gz"))
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// devicesOf cuts the device sections out of a golden stream, in the form that
// xen-save-devices-state gives them.
func devicesOf(tb testing.TB, data []byte) []byte {
	tb.Helper()
	first := append([]byte{typeFull, 0, 0, 0, 0, 5}, "timer"...) // stock machines start with it
	at := bytes.Index(data, first)
	_, end, err := splitSections(data, at, true)
	if err != nil {
		tb.Fatal(err)
	}
	return append(appendHeader(nil), data[at:end]...)
}

func noPages(int, uint64, []byte) error { return nil }

func TestGoldenStreams(t *testing.T) {
	tests := map[string]struct {
		blocks  []string
		devices int
	}{
		"pc": {[]string{"ram", "0000:00:02.0/vga.vram", "/rom@etc/acpi/tables", "pc.bios", "pc.rom",
			"/rom@etc/table-loader", "/rom@etc/acpi/rsdp"}, 32},
		"q35":     {[]string{"ram", "/rom@etc/acpi/tables", "pc.bios", "pc.rom", "/rom@etc/table-loader", "/rom@etc/acpi/rsdp"}, 29},
		"microvm": {[]string{"ram", "/rom@etc/acpi/tables", "pc.bios", "/rom@etc/table-loader", "/rom@etc/acpi/rsdp"}, 14},
	}
	for machine, want := range tests {
		t.Run(machine, func(t *testing.T) {
			var pages, full int
			s, err := ParseSnapshot(golden(t, machine), func(block int, offset uint64, data []byte) error {
				pages++
				if data != nil {
					full++
					if data[0] != byte(block+1) || data[PageSize-1] != byte(block+1) {
						t.Fatalf("page %#x of block %d holds a page of block %d", offset, block, data[0]-1)
					}
				}
				if block == 0 {
					t.Fatalf("page %#x of main memory is in a stream that leaves it out", offset)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			var side uint64
			for i, b := range s.Blocks {
				names = append(names, b.Name)
				if i > 0 {
					side += b.Used / PageSize
				}
			}
			if strings.Join(names, " ") != strings.Join(want.blocks, " ") {
				t.Errorf("blocks %q, want %q", names, want.blocks)
			}
			if uint64(pages) != side || full == 0 {
				t.Errorf("%d pages (%d with data), want %d", pages, full, side)
			}
			if len(s.Devices) != want.devices || len(s.Described) != want.devices {
				t.Fatalf("%d device sections, %d described, want %d", len(s.Devices), len(s.Described), want.devices)
			}
			for i, d := range s.Devices {
				if d.Name != s.Described[i].Name || d.Instance != s.Described[i].Instance {
					t.Errorf("section %d is %+v, QEMU describes it as %+v", i, d, s.Described[i])
				}
			}
		})
	}
}

// What Compose writes, ParseSnapshot reads back: same blocks, same pages, same
// devices, whatever the pages hold.
func TestComposeIsReadBack(t *testing.T) {
	data := golden(t, "q35")
	saved := devicesOf(t, data)
	snapshot, err := ParseSnapshot(data, noPages)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		blocks := snapshot.Blocks
		memory := make([][]byte, len(blocks))
		for i := range blocks {
			if i == 0 {
				continue
			}
			blocks[i].Used = PageSize * rapid.Uint64Range(1, 5).Draw(t, "pages")
			memory[i] = make([]byte, blocks[i].Used)
			for p := uint64(0); p < blocks[i].Used; p += PageSize {
				if rapid.Bool().Draw(t, "zero") {
					continue
				}
				memory[i][p+rapid.Uint64Range(0, PageSize-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
			}
		}
		var out bytes.Buffer
		err := Compose(&out, Incoming{
			RAM: snapshot.RAM, Blocks: blocks, Devices: saved,
			Shared: func(b int) bool { return b == 0 },
			Page:   func(b int, offset uint64) ([]byte, error) { return memory[b][offset : offset+PageSize], nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		got := make([][]byte, len(blocks))
		for i := range blocks {
			if i > 0 {
				got[i] = bytes.Repeat([]byte{0xee}, int(blocks[i].Used))
			}
		}
		s, err := ParseSnapshot(out.Bytes(), func(b int, offset uint64, page []byte) error {
			if page == nil {
				page = make([]byte, PageSize)
			}
			copy(got[b][offset:], page)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range blocks {
			if s.Blocks[i] != blocks[i] || !bytes.Equal(got[i], memory[i]) {
				t.Fatalf("block %+v came back as %+v, or with other pages", blocks[i], s.Blocks[i])
			}
		}
		if len(s.Devices) != 29 {
			t.Fatalf("%d device sections came back, want 29", len(s.Devices))
		}
	})
}

func TestComposeRefuses(t *testing.T) {
	saved := devicesOf(t, golden(t, "microvm"))
	page := make([]byte, PageSize)
	good := func() Incoming {
		return Incoming{
			RAM:    Section{ID: 2, Name: "ram", Version: 4},
			Blocks: []Block{{Name: "ram", Used: PageSize}, {Name: "rom", Used: PageSize}}, Devices: saved,
			Shared: func(b int) bool { return b == 0 },
			Page:   func(int, uint64) ([]byte, error) { return page, nil },
		}
	}
	if err := Compose(io.Discard, good()); err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*Incoming){
		"no block":              func(in *Incoming) { in.Blocks = nil },
		"a block twice":         func(in *Incoming) { in.Blocks[1].Name = "ram" },
		"a block without name":  func(in *Incoming) { in.Blocks[1].Name = "" },
		"an uneven block":       func(in *Incoming) { in.Blocks[1].Used = 5000 },
		"blocks that overflow":  func(in *Incoming) { in.Blocks[0].Used, in.Blocks[1].Used = maxRAM, PageSize },
		"no devices":            func(in *Incoming) { in.Devices = nil },
		"devices cut short":     func(in *Incoming) { in.Devices = saved[:len(saved)-1] },
		"devices and more":      func(in *Incoming) { in.Devices = append(bytes.Clone(saved), 0) },
		"a RAM section by name": func(in *Incoming) { in.RAM.Name = "block" },
		"a page too short":      func(in *Incoming) { in.Page = func(int, uint64) ([]byte, error) { return page[1:], nil } },
		"a page that fails":     func(in *Incoming) { in.Page = func(int, uint64) ([]byte, error) { return nil, io.EOF } },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			in := good()
			spoil(&in)
			if err := Compose(io.Discard, in); err == nil {
				t.Fatal("composed")
			}
		})
	}
}

// A stream with a configuration section, as a QEMU without our -global writes
// it, gives the machine's name.
func TestConfigurationSection(t *testing.T) {
	data := golden(t, "microvm")
	conf := append([]byte{typeConfiguration, 0, 0, 0, 7}, "microvm"...)
	conf = append(append(conf, typeSubsection, 26), "configuration/capabilities"...)
	conf = append(conf, 0, 0, 0, 1, 0, 0, 0, 1, 15)
	conf = append(conf, "x-ignore-shared"...)
	with := append(append(bytes.Clone(data[:HeaderSize]), conf...), data[HeaderSize:]...)
	s, err := ParseSnapshot(with, noPages)
	if err != nil {
		t.Fatal(err)
	}
	if s.Machine != "microvm" || len(s.Devices) != 14 {
		t.Fatalf("machine %q with %d devices", s.Machine, len(s.Devices))
	}
	with[HeaderSize+1+4+7+1+1+14] = 'x' // another subsection
	if _, err := ParseSnapshot(with, noPages); err == nil || !strings.Contains(err.Error(), "unknown subsection") {
		t.Fatalf("an unknown subsection gave %v", err)
	}
}

// Each lie about the stream's beginning gets an error that names it.
func TestSnapshotRefuses(t *testing.T) {
	put32 := func(d []byte, at int, v uint32) { binary.BigEndian.PutUint32(d[at:], v) }
	put64 := func(d []byte, at int, v uint64) { binary.BigEndian.PutUint64(d[at:], v) }
	const ram = HeaderSize                 // start of the RAM section
	const list = ram + 1 + 4 + 1 + 3 + 8   // its total
	const firstBlock = list + 8            // the first block's name
	const firstUsed = firstBlock + 1 + 3   // its length
	const secondName = firstUsed + 8 + 8   // "/rom@etc/acpi/tables"
	const secondUsed = secondName + 1 + 20 // its length
	tests := map[string]struct {
		spoil func(d []byte) []byte
		want  string
	}{
		"empty":             {func(d []byte) []byte { return nil }, "magic"},
		"magic":             {func(d []byte) []byte { d[0] = 'q'; return d }, "magic"},
		"version":           {func(d []byte) []byte { put32(d, 4, 4); return d }, "version 4"},
		"early section":     {func(d []byte) []byte { d[ram] = typeFull; return d }, "early sections"},
		"command":           {func(d []byte) []byte { d[ram] = typeCommand; return d }, "type 0x8"},
		"not ram":           {func(d []byte) []byte { d[ram+6] = 'v'; return d }, "several steps"},
		"no total":          {func(d []byte) []byte { put64(d, list, 4096|flagPage); return d }, "flags"},
		"huge total":        {func(d []byte) []byte { put64(d, list, 1<<60|flagMemSize); return d }, "at most"},
		"empty block":       {func(d []byte) []byte { put64(d, firstUsed, 0); return d }, `block "ram" has 0 bytes`},
		"huge block":        {func(d []byte) []byte { put64(d, secondUsed, 1<<40); return d }, "are left"},
		"control character": {func(d []byte) []byte { d[firstBlock+1] = 7; return d }, "not a name"},
		"nameless block":    {func(d []byte) []byte { d[firstBlock] = 0; return d }, "not a name"},
		"cut in the list":   {func(d []byte) []byte { return d[:secondName+3] }, "needs 20 bytes"},
		"cut at the end":    {func(d []byte) []byte { return d[:len(d)-1] }, "no footer"},
		"more at the end":   {func(d []byte) []byte { return append(d, 1) }, "no footer"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseSnapshot(test.spoil(golden(t, "microvm")), noPages)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

// The caller can stop at a page: that is how a stream that carries main memory
// after all is refused before it is read.
func TestPageErrorEndsParsing(t *testing.T) {
	stop := errors.New("stop")
	if _, err := ParseSnapshot(golden(t, "q35"), func(int, uint64, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("got %v, want the page function's error", err)
	}
}

func TestCheckerSeesHotplug(t *testing.T) {
	before := devicesOf(t, golden(t, "q35"))
	sections, err := ParseDevices(before)
	if err != nil {
		t.Fatal(err)
	}
	k := NewChecker(sections)
	if err := k.Check(before); err != nil {
		t.Fatal(err)
	}
	end := len(before) - 1
	added := appendSection(bytes.Clone(before[:end]), typeFull, Section{ID: 77, Name: "0000:00:05.0/e1000", Version: 2})
	added = append(appendFooter(append(added, 1, 2, 3), 77), typeEOF)
	if err := k.Check(added); err == nil || !strings.Contains(err.Error(), "e1000") || !strings.Contains(err.Error(), "is new") {
		t.Fatalf("a new device gave %v", err)
	}
	if err := NewChecker(append(sections, Section{ID: 77, Name: "gone"})).Check(before); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Fatalf("a lost device gave %v", err)
	}
	if err := k.Check(before[:end]); err == nil {
		t.Fatal("a state that was cut short passed")
	}
	if n := testing.AllocsPerRun(100, func() {
		if err := k.Check(before); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("a check allocates %v times", n)
	}
}

// A guest can put bytes into a device that look like a footer. Only a footer
// that a section or the end follows counts.
func TestFooterInsideASection(t *testing.T) {
	d := appendHeader(nil)
	d = appendSection(d, typeFull, Section{ID: 1, Name: "a"})
	d = append(appendFooter(d, 1), 9, 9, 9) // data that looks like the footer
	d = append(appendFooter(d, 1), typeEOF, 5)
	d = append(appendFooter(d, 1), typeEOF)
	s, err := ParseDevices(d)
	if err != nil || len(s) != 1 {
		t.Fatalf("sections %v, error %v", s, err)
	}
}

// smallDevices is a device state of two sections; smallStream is a stream with
// it and two blocks. Small seeds keep the fuzzer fast.
func smallDevices() []byte {
	d := appendSection(appendHeader(nil), typeFull, Section{ID: 0, Name: "timer", Version: 2})
	d = appendFooter(append(d, 1, 2, 3), 0)
	d = appendSection(d, typeFull, Section{ID: 9, Name: "cpu", Instance: 1, Version: 12})
	return append(appendFooter(append(d, 4, 5), 9), typeEOF)
}

func smallStream(tb testing.TB) []byte {
	var out bytes.Buffer
	page := make([]byte, PageSize)
	err := Compose(&out, Incoming{
		RAM:    Section{ID: 2, Name: "ram", Version: 4},
		Blocks: []Block{{Name: "ram", Used: PageSize}, {Name: "rom", Used: 2 * PageSize}}, Devices: smallDevices(),
		Shared: func(b int) bool { return b == 0 },
		Page: func(_ int, offset uint64) ([]byte, error) {
			page[0] = byte(offset / PageSize) // the first page is zero, the second is not
			return page, nil
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func FuzzParseSnapshot(f *testing.F) {
	small := smallStream(f)
	f.Add(small)
	f.Add(small[:60])
	f.Add(golden(f, "microvm")[:400])
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSnapshot(data, func(b int, offset uint64, page []byte) error {
			if offset%PageSize != 0 || page != nil && len(page) != PageSize {
				t.Fatalf("page of %d bytes at %#x", len(page), offset)
			}
			return nil
		})
		if (s == nil) == (err == nil) {
			t.Fatalf("snapshot %v, error %v", s, err)
		}
	})
}

func FuzzParseDevices(f *testing.F) {
	f.Add(smallDevices())
	f.Add(devicesOf(f, golden(f, "microvm")))
	f.Fuzz(func(t *testing.T, data []byte) {
		sections, err := ParseDevices(data)
		if err != nil {
			return
		}
		if err := NewChecker(sections).Check(data); err != nil {
			t.Fatalf("a state does not pass its own check: %v", err)
		}
	})
}

func BenchmarkChecker(b *testing.B) {
	state := devicesOf(b, golden(b, "pc"))
	sections, err := ParseDevices(state)
	if err != nil {
		b.Fatal(err)
	}
	k := NewChecker(sections)
	b.ReportAllocs()
	b.SetBytes(int64(len(state)))
	for b.Loop() {
		if err := k.Check(state); err != nil {
			b.Fatal(err)
		}
	}
}
