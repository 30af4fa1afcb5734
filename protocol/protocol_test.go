package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
	"understudy/hypervisor"
	"understudy/ownership"
)

func position(t *rapid.T, what string) (p epoch.Position) {
	copy(p.Image[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, what+" image"))
	p.Image[0] |= 1 // not zero
	p.Number = epoch.Number(rapid.Uint64().Draw(t, what+" number"))
	copy(p.Running[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, what+" running"))
	return p
}

// TestRoundTrip: what one side writes, the other reads, whatever it is.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hello := Hello{Version: Version,
			Guest:      rapid.StringMatching(`[a-z0-9-]{1,64}`).Draw(t, "guest"),
			Host:       ownership.HostID(rapid.StringMatching(`[a-z0-9.-]{1,30}`).Draw(t, "host")),
			Generation: epoch.Generation(rapid.Uint64Min(1).Draw(t, "generation")),
			Spec: hypervisor.Spec{Pages: rapid.Uint64Range(1, MaxPages).Draw(t, "pages"),
				Machine: rapid.SliceOfN(rapid.Byte(), 1, 2000).Draw(t, "machine")},
		}
		for range rapid.IntRange(1, MaxKnown).Draw(t, "known") {
			hello.Known = append(hello.Known, position(t, "known"))
		}
		hello.PrintKey = epoch.PrintKey(rapid.Uint64().Draw(t, "print key"))
		for range rapid.IntRange(0, epoch.MaxDisks).Draw(t, "disks") {
			hello.Disks = append(hello.Disks, DiskSpec{Sectors: rapid.Uint64Range(1, epoch.MaxSectors).Draw(t, "sectors"),
				Store: rapid.SampledFrom([]string{StoreShared, StoreReplicated}).Draw(t, "store")})
		}
		b, err := EncodeHello(hello)
		if err != nil {
			t.Fatal(err)
		}
		// As it travels: in pieces.
		var j Joiner
		var whole []byte
		pieces := 0
		err = Pieces(b, rapid.IntRange(5, 600).Draw(t, "piece"), func(p []byte) (err error) {
			if whole != nil {
				return errors.New("a piece after the last")
			}
			pieces++
			var done bool
			if whole, done, err = j.Add(bytes.Clone(p)); !done {
				whole = nil
			}
			return err
		})
		if err != nil || !bytes.Equal(whole, b) {
			t.Fatalf("%d bytes became %d in %d pieces: %v", len(b), len(whole), pieces, err)
		}
		if got, err := ParseHello(whole); err != nil || !reflect.DeepEqual(got, hello) {
			t.Fatalf("%+v, %v", got, err)
		}

		welcome := Welcome{Version: Version, At: position(t, "at"), Whole: rapid.Bool().Draw(t, "whole")}
		for i := range rapid.IntRange(0, epoch.MaxDisks).Draw(t, "boot files") {
			welcome.Boot = append(welcome.Boot, epoch.BootFile{Disk: epoch.DiskID(i), Sectors: rapid.Uint64().Draw(t, "sectors"),
				Sum: epoch.Hash{rapid.Byte().Draw(t, "sum")}})
		}
		if b, err = EncodeWelcome(welcome); err != nil {
			t.Fatal(err)
		}
		if got, err := ParseWelcome(b); err != nil || !reflect.DeepEqual(got, welcome) {
			t.Fatalf("%+v, %v", got, err)
		}

		pages := rapid.Uint64Range(1, MaxPages).Draw(t, "image")
		first := rapid.Uint64Range(0, pages).Draw(t, "first")
		verify := Verify{First: epoch.GFN(first), Count: rapid.Uint64Range(0, pages-first).Draw(t, "count")}
		header := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "header")
		gotVerify, gotHeader, err := ParseBegin(AppendBegin(nil, verify, header), pages)
		if err != nil || gotVerify != verify || !bytes.Equal(gotHeader, header) {
			t.Fatalf("%+v %x, %v", gotVerify, gotHeader, err)
		}

		ack := Ack{At: position(t, "acknowledged"), HasHash: rapid.Bool().Draw(t, "has hash")}
		copy(ack.Verified[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "hash"))
		ack.Materialised = epoch.Number(rapid.Uint64Range(0, uint64(ack.At.Number)).Draw(t, "materialised"))
		if b = AppendAck(nil, ack); len(b) != AckSize {
			t.Fatalf("an acknowledgement of %d bytes", len(b))
		}
		if got, err := ParseAck(b); err != nil || got != ack {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

// TestDiskMessagesRoundTrip: the same for the messages about disks.
func TestDiskMessagesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, epoch.MaxHashes).Draw(t, "chunks")
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		disk := epoch.DiskID(rapid.IntRange(0, epoch.MaxDisks-1).Draw(t, "disk"))
		first := rapid.Uint64Range(0, maxChunks-uint64(n)).Draw(t, "first")

		h := epoch.DiskHashes{Disk: disk, First: first, Hashes: make([]epoch.Hash, n)}
		for i := range h.Hashes {
			h.Hashes[i][i%16] = byte(random.Uint32())
		}
		if got, err := ParseDiskHashes(AppendDiskHashes(nil, h)); err != nil || !reflect.DeepEqual(got, h) {
			t.Fatalf("%d hashes: %v", len(got.Hashes), err)
		}
		d := epoch.DiskDiffers{Disk: disk, First: first, Count: n, Bits: make([]byte, (n+7)/8)}
		for i := range n {
			d.Bits[i/8] |= byte(random.IntN(2)) << (i % 8)
		}
		if got, err := ParseDiskDiffers(AppendDiskDiffers(nil, d)); err != nil || !reflect.DeepEqual(got, d) {
			t.Fatalf("%+v: %v", got, err)
		}
	})
}

// edited returns a good Hello with one thing changed.
func edited(change func(*Hello)) []byte {
	h := Hello{Version: Version, Guest: "web", Host: "a", Generation: 1, Spec: hypervisor.Spec{Pages: 16, Machine: []byte("{}")}}
	change(&h)
	b, err := EncodeHello(h)
	if err != nil {
		panic(err)
	}
	return b
}

// boots is a welcome of a backup with n boot files.
func boots(n int) []byte {
	b, err := EncodeWelcome(Welcome{Version: Version, At: epoch.Position{Image: epoch.Incarnation{1}}, Boot: make([]epoch.BootFile, n)})
	if err != nil {
		panic(err)
	}
	return b
}

func goodWelcome() []byte {
	b, err := EncodeWelcome(Welcome{Version: Version, At: epoch.Position{Image: epoch.Incarnation{1}, Number: 7}})
	if err != nil {
		panic(err)
	}
	return b
}

// TestHostileInput: each gets an error that says what is wrong, and nothing of
// it is returned.
func TestHostileInput(t *testing.T) {
	parseHello := func(b []byte) (any, error) { return ParseHello(b) }
	parseWelcome := func(b []byte) (any, error) { return ParseWelcome(b) }
	parseAck := func(b []byte) (any, error) { return ParseAck(b) }
	parseBegin := func(b []byte) (any, error) { v, _, err := ParseBegin(b, 100); return v, err }
	join := func(pieces ...string) func([]byte) (any, error) {
		return func([]byte) (any, error) {
			var j Joiner
			for _, p := range pieces {
				if whole, _, err := j.Add([]byte(p)); err != nil {
					return any(nil), err
				} else if whole != nil {
					return whole, nil
				}
			}
			return any(nil), fmt.Errorf("never whole")
		}
	}
	good := AppendAck(nil, Ack{At: epoch.Position{Image: epoch.Incarnation{1}}})
	flagged := bytes.Clone(good)
	flagged[40] = 2
	ahead := AppendAck(nil, Ack{At: epoch.Position{Image: epoch.Incarnation{1}, Number: 4}, Materialised: 5})
	parseHashes := func(b []byte) (any, error) { return ParseDiskHashes(b) }
	parseDiffers := func(b []byte) (any, error) { return ParseDiskDiffers(b) }
	hashes := func(disk epoch.DiskID, first uint64, n int) []byte {
		return AppendDiskHashes(nil, epoch.DiskHashes{Disk: disk, First: first, Hashes: make([]epoch.Hash, n)})
	}
	differs := func(disk epoch.DiskID, first uint64, n int, bits ...byte) []byte {
		return AppendDiskDiffers(nil, epoch.DiskDiffers{Disk: disk, First: first, Count: n, Bits: bits})
	}
	disks := func(d ...DiskSpec) []byte { return edited(func(h *Hello) { h.Disks = d }) }
	for _, row := range []struct {
		name  string
		parse func([]byte) (any, error)
		input []byte
		says  string
	}{
		{"hello: nothing", parseHello, nil, "hello"},
		{"hello: no JSON", parseHello, []byte("GET / HTTP/1.1"), "hello"},
		{"hello: cut short", parseHello, edited(func(*Hello) {})[:40], "hello"},
		{"hello: of another kind", parseHello, []byte("[]"), "hello"},
		{"hello: too long", parseHello, make([]byte, MaxHello+1), "at most"},
		{"hello: another version", parseHello, edited(func(h *Hello) { h.Version = 1 }), "run the same release"},
		{"hello: no guest", parseHello, edited(func(h *Hello) { h.Guest = "" }), "guest name"},
		{"hello: a long guest", parseHello, edited(func(h *Hello) { h.Guest = strings.Repeat("x", 65) }), "guest name of 65"},
		{"hello: generation 0", parseHello, edited(func(h *Hello) { h.Generation = 0 }), "generation 0"},
		{"hello: a negative generation", parseHello, bytes.Replace(edited(func(*Hello) {}), []byte(`"generation":1`), []byte(`"generation":-1`), 1), "hello"},
		{"hello: no pages", parseHello, edited(func(h *Hello) { h.Spec.Pages = 0 }), "image of 0 pages"},
		{"hello: too many pages", parseHello, edited(func(h *Hello) { h.Spec.Pages = MaxPages + 1 }), "at most"},
		{"hello: too many positions", parseHello, edited(func(h *Hello) { h.Known = make([]epoch.Position, MaxKnown+1) }), "65 known positions"},
		{"hello: a short image name", parseHello, bytes.Replace(edited(func(h *Hello) { h.Known = make([]epoch.Position, 1) }),
			[]byte("00000000000000000000000000000000"), []byte("00"), 1), "hello"},
		{"welcome: another version", parseWelcome, bytes.Replace(goodWelcome(), []byte(`"version":2`), []byte(`"version":9`), 1), "version 9"},
		{"welcome: no image", parseWelcome, []byte(`{"version":2}`), "no image"},
		{"welcome: too many boot files", parseWelcome, boots(epoch.MaxDisks + 1), "17 boot files"},
		{"welcome: no JSON", parseWelcome, []byte{0}, "welcome"},
		{"welcome: too long", parseWelcome, make([]byte, MaxHello+1), "at most"},
		{"begin: cut short", parseBegin, make([]byte, verifySize-1), "15 bytes"},
		{"begin: outside the image", parseBegin, AppendBegin(nil, Verify{First: 99, Count: 2}, nil), "outside an image of 100"},
		{"begin: a sum that overflows", parseBegin, AppendBegin(nil, Verify{First: 50, Count: ^uint64(0) - 40}, nil), "outside an image"},
		{"begin: far outside", parseBegin, AppendBegin(nil, Verify{First: 1 << 63, Count: 0}, nil), "outside an image"},
		{"hello: too many disks", parseHello, disks(make([]DiskSpec, epoch.MaxDisks+1)...), "17 disks"},
		{"hello: a disk of nothing", parseHello, disks(DiskSpec{8, StoreShared}, DiskSpec{0, StoreShared}), "disk 1 has 0 sectors"},
		{"hello: a disk too large", parseHello, disks(DiskSpec{epoch.MaxSectors + 1, StoreShared}), "disk 0 has 1099511627777 sectors"},
		{"hello: a store of no kind", parseHello, disks(DiskSpec{8, ""}), `store of kind ""`},
		{"hello: a store of another kind", parseHello, disks(DiskSpec{8, strings.Repeat("x", 9999)}), "want \"shared\" or"},
		{"hello: a negative key", parseHello, bytes.Replace(edited(func(*Hello) {}), []byte(`"print_key":0`), []byte(`"print_key":-1`), 1), "hello"},
		{"hashes: nothing", parseHashes, nil, "0 bytes"},
		{"hashes: cut short", parseHashes, hashes(0, 0, 2)[:30], "30 bytes"},
		{"hashes: none", parseHashes, hashes(0, 0, 0), "of no chunk"},
		{"hashes: too many", parseHashes, hashes(0, 0, epoch.MaxHashes+1), "at most 4096"},
		{"hashes: of no disk", parseHashes, hashes(epoch.MaxDisks, 0, 1), "disk 16"},
		{"hashes: behind every disk", parseHashes, hashes(0, maxChunks, 1), "outside every disk"},
		{"hashes: a sum that overflows", parseHashes, hashes(0, ^uint64(0), 1), "outside every disk"},
		{"differs: nothing", parseDiffers, nil, "0 bytes"},
		{"differs: cut short", parseDiffers, differs(0, 0, 9, 1), "1 bytes of bits for 9"},
		{"differs: too long", parseDiffers, differs(0, 0, 8, 1, 0), "2 bytes of bits for 8"},
		{"differs: none", parseDiffers, differs(0, 0, 0), "of no chunk"},
		{"differs: too many", parseDiffers, differs(0, 0, epoch.MaxHashes+1, make([]byte, epoch.MaxHashes/8+1)...), "at most 4096"},
		{"differs: of no disk", parseDiffers, differs(200, 0, 1, 1), "disk 200"},
		{"differs: behind every disk", parseDiffers, differs(0, maxChunks-1, 2, 1), "outside every disk"},
		{"differs: a bit too many", parseDiffers, differs(0, 0, 3, 9), "behind the last of 3"},
		{"ack: short", parseAck, good[:AckSize-1], "64 bytes"},
		{"ack: long", parseAck, append(bytes.Clone(good), 0), "66 bytes"},
		{"ack: materialised before it is acknowledged", parseAck, ahead, "epoch 5 is materialised, of 4"},
		{"ack: a flag that is none", parseAck, flagged, "flag 2"},
		{"piece: without a size", join("abc"), nil, "piece of 3 bytes"},
		{"piece: of nothing", join("\x00\x00\x00\x00x"), nil, "message of 0 bytes"},
		{"piece: of too much", join("\xff\xff\xff\xffx"), nil, "at most"},
		{"piece: empty", join("\x05\x00\x00\x00"), nil, "empty piece"},
		{"piece: of another message", join("\x05\x00\x00\x00ab", "\x06\x00\x00\x00ab"), nil, "amid one of 5"},
		{"piece: too much of it", join("\x05\x00\x00\x00ab", "\x05\x00\x00\x00abcd"), nil, "pieces of 6 bytes"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := row.parse(row.input)
			if err == nil || !strings.Contains(err.Error(), row.says) {
				t.Fatalf("%v, want an error that says %q", err, row.says)
			}
			if got != nil && !reflect.ValueOf(got).IsZero() {
				t.Errorf("with the error came %+v", got)
			}
		})
	}
}

// TestJoinerGrowsWithWhatCame: an announced size allocates nothing.
func TestJoinerGrowsWithWhatCame(t *testing.T) {
	piece := append([]byte{0, 0, 0, 4}, 'x') // announces 64 MiB
	if n := testing.AllocsPerRun(100, func() {
		var j Joiner
		if _, _, err := j.Add(piece); err != nil {
			t.Fatal(err)
		}
		if cap(j.got) > 64 {
			t.Fatalf("%d bytes for a piece of one", cap(j.got))
		}
	}); n > 1 {
		t.Errorf("%v allocations", n)
	}
}

// TestPiecesRefusesWhatCannotArrive: the sender finds out first.
func TestPiecesRefusesWhatCannotArrive(t *testing.T) {
	send := func([]byte) error { return nil }
	if Pieces(make([]byte, MaxHello+1), 100, send) == nil {
		t.Error("a message above the limit was sent")
	}
	if Pieces([]byte("x"), pieceHeader, send) == nil {
		t.Error("pieces without room for a byte were sent")
	}
	broken := errors.New("broken")
	if err := Pieces(make([]byte, 100), 10, func([]byte) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("the sender's error became %v", err)
	}
}

// TestRefuseIsSafeToLog: a peer's reason can forge no line of our log.
func TestRefuseIsSafeToLog(t *testing.T) {
	got := ParseRefuse([]byte("no\nlevel=ERROR \x1b[31m\xff" + strings.Repeat("x", 2*MaxReason)))
	if strings.ContainsAny(got, "\n\x1b") || len(got) > 4*MaxReason {
		t.Errorf("%.80q… (%d bytes)", got, len(got))
	}
}

func FuzzParseHello(f *testing.F) {
	f.Add(edited(func(*Hello) {}))
	f.Add(edited(func(h *Hello) { h.Known = []epoch.Position{{Image: epoch.Incarnation{1}, Number: 7}} }))
	f.Add(edited(func(h *Hello) { h.PrintKey, h.Disks = 1<<63, []DiskSpec{{Sectors: 8, Store: StoreReplicated}} }))
	f.Add([]byte(`{"version":2,"guest":"web","generation":18446744073709551615,"spec":{"pages":1e3}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHello(b)
		if err != nil {
			return
		}
		if h.Version != Version || h.Guest == "" || h.Generation == 0 || h.Spec.Pages == 0 || h.Spec.Pages > MaxPages || len(h.Known) > MaxKnown || len(h.Disks) > epoch.MaxDisks {
			t.Fatalf("accepted %+v", h)
		}
		again, err := EncodeHello(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseHello(again); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
	})
}

func FuzzParseWelcome(f *testing.F) {
	f.Add(goodWelcome())
	f.Add(boots(2))
	f.Add([]byte(`{"version":2,"at":{"image":"00"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, err := ParseWelcome(b); err == nil && (w.Version != Version || w.At.Image.IsZero() || len(w.Boot) > epoch.MaxDisks) {
			t.Fatalf("accepted %+v", w)
		}
	})
}

func FuzzParseBegin(f *testing.F) {
	f.Add(AppendBegin(nil, Verify{First: 3, Count: 4}, []byte("header")), uint64(16))
	f.Add(AppendBegin(nil, Verify{First: 1, Count: ^uint64(0)}, nil), uint64(16))
	f.Fuzz(func(t *testing.T, b []byte, pages uint64) {
		v, header, err := ParseBegin(b, pages)
		if err != nil {
			return
		}
		if end := uint64(v.First) + v.Count; end > pages || end < v.Count {
			t.Fatalf("accepted %+v for an image of %d pages", v, pages)
		}
		if !bytes.Equal(AppendBegin(nil, v, header), b) {
			t.Fatalf("%x is written otherwise", b)
		}
	})
}

func FuzzParseAck(f *testing.F) {
	f.Add(AppendAck(nil, Ack{At: epoch.Position{Image: epoch.Incarnation{1}, Number: 9}, HasHash: true}))
	f.Add(make([]byte, AckSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseAck(b); err == nil && !bytes.Equal(AppendAck(nil, a), b) {
			t.Fatalf("%x is written otherwise", b)
		}
	})
}

func FuzzParseDiskHashes(f *testing.F) {
	f.Add(AppendDiskHashes(nil, epoch.DiskHashes{Disk: 3, First: 70, Hashes: []epoch.Hash{{1}, {2}}}))
	f.Add(make([]byte, chunksHead))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseDiskHashes(b)
		if err != nil {
			return
		}
		if n := uint64(len(h.Hashes)); h.Disk >= epoch.MaxDisks || n == 0 || n > epoch.MaxHashes || h.First > maxChunks-n {
			t.Fatalf("accepted %d hashes from chunk %d of disk %d on", n, h.First, h.Disk)
		}
		if !bytes.Equal(AppendDiskHashes(nil, h), b) {
			t.Fatalf("%x is written otherwise", b)
		}
	})
}

func FuzzParseDiskDiffers(f *testing.F) {
	f.Add(AppendDiskDiffers(nil, epoch.DiskDiffers{Disk: 3, First: 70, Count: 10, Bits: []byte{0xff, 3}}))
	f.Add(make([]byte, differsHead))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDiskDiffers(b)
		if err != nil {
			return
		}
		if n := uint64(d.Count); d.Disk >= epoch.MaxDisks || n == 0 || n > epoch.MaxHashes || d.First > maxChunks-n || len(d.Bits) != (d.Count+7)/8 {
			t.Fatalf("accepted %+v", d)
		}
		if !bytes.Equal(AppendDiskDiffers(nil, d), b) {
			t.Fatalf("%x is written otherwise", b)
		}
	})
}

func FuzzParseRefuse(f *testing.F) {
	f.Add([]byte("not standing by"))
	f.Add([]byte("\x1b]0;title\x07\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range ParseRefuse(b) {
			if r < ' ' || r == 0x7f {
				t.Fatalf("a control character came through: %q", ParseRefuse(b))
			}
		}
	})
}

// FuzzJoiner feeds pieces, each with a length byte before it.
func FuzzJoiner(f *testing.F) {
	f.Add([]byte("\x06\x05\x00\x00\x00ab\x07\x05\x00\x00\x00cde"))
	f.Add([]byte("\x05\x00\x00\x00\x04x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var j Joiner
		came := 0
		for len(b) > 0 {
			n := min(int(b[0]), len(b)-1)
			piece := b[1 : 1+n]
			b = b[1+n:]
			whole, done, err := j.Add(piece)
			if err != nil {
				return
			}
			came += len(piece) - pieceHeader
			if done != (whole != nil) || done && len(whole) != came {
				t.Fatalf("%d bytes came, %d are whole (%v)", came, len(whole), done)
			}
			if done {
				came = 0
			}
			if cap(j.got) > 4*came+64 {
				t.Fatalf("%d bytes are held for %d that came", cap(j.got), came)
			}
		}
	})
}

// The wire's own shape: a change here is a new protocol version.
func TestWireShape(t *testing.T) {
	ack := AppendAck(nil, Ack{At: epoch.Position{Image: epoch.Incarnation{0xa}, Number: 2, Running: epoch.Hash{0xb}}, HasHash: true, Verified: epoch.Hash{0xc}, Materialised: 1})
	want := append(append([]byte{0xa}, make([]byte, 15)...), 2, 0, 0, 0, 0, 0, 0, 0)
	want = append(append(want, 0xb), make([]byte, 15)...)
	want = append(append(want, 1, 0xc), make([]byte, 15)...)
	want = append(want, 1, 0, 0, 0, 0, 0, 0, 0)
	if !bytes.Equal(ack, want) {
		t.Errorf("an acknowledgement is %x, was %x", ack, want)
	}
	hashes := AppendDiskHashes(nil, epoch.DiskHashes{Disk: 3, First: 0x102, Hashes: []epoch.Hash{{0xd}}})
	if want := append([]byte{2, 1, 0, 0, 0, 0, 0, 0, 3, 0xd}, make([]byte, 15)...); !bytes.Equal(hashes, want) {
		t.Errorf("hashes are %x, were %x", hashes, want)
	}
	differs := AppendDiskDiffers(nil, epoch.DiskDiffers{Disk: 3, First: 0x102, Count: 9, Bits: []byte{0x80, 1}})
	if want := []byte{2, 1, 0, 0, 0, 0, 0, 0, 3, 9, 0, 0x80, 1}; !bytes.Equal(differs, want) {
		t.Errorf("differs are %x, were %x", differs, want)
	}
	b, err := json.Marshal(Hello{Version: 2, Guest: "web", Host: "a", Generation: 2, Spec: hypervisor.Spec{Pages: 3, Machine: []byte{1}},
		PrintKey: 5, Disks: []DiskSpec{{Sectors: 8, Store: StoreShared}}})
	if err != nil {
		t.Fatal(err)
	}
	if s := string(b); s != `{"version":2,"guest":"web","host":"a","generation":2,"spec":{"pages":3,"machine":"AQ=="},"known":null,"print_key":5,"disks":[{"sectors":8,"store":"shared"}]}` {
		t.Errorf("a hello is %s", s)
	}
}
