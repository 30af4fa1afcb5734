package netif

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"understudy/clock"
	"understudy/egress"
	"understudy/epoch"
	"understudy/hypervisor/xen/xentest"
)

func frameOf(n int, seed byte) []byte {
	return bytes.Repeat([]byte{seed}, n)
}

// next waits for a frame of the guest.
func next(t testing.TB, l *Link) []byte {
	t.Helper()
	buf := make([]byte, egress.MaxFrame+1)
	for {
		n, err := l.ReadFrame(buf)
		if err == nil {
			return buf[:n]
		}
		if !errors.Is(err, egress.ErrEmpty) {
			t.Fatal(err)
		}
		if err := l.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFramesBothWays(t *testing.T) {
	g, l, _ := connected(t)
	for i, n := range []int{14, 60, 1514, 4096, 9014, 65535} {
		want := frameOf(n, byte(i+1))
		g.send(want, pageSize-300, 0)
		if got := next(t, l); !bytes.Equal(got, want) {
			t.Errorf("a frame of %d bytes comes as %d", n, len(got))
		}
		for _, s := range g.statuses() {
			if s != statusOK {
				t.Errorf("a frame of %d bytes has the status %d", n, s)
			}
		}
		g.lend(20)
		if err := l.WriteFrame(want); err != nil {
			t.Fatal(err)
		}
		if got := g.frame(); !bytes.Equal(got, want) {
			t.Errorf("the guest gets %d bytes of a frame of %d", len(got), n)
		}
	}
	if l.Malformed() != 0 {
		t.Errorf("%d frames were malformed", l.Malformed())
	}
}

// Frames for a guest without buffers wait for them, in their order, up to a bound.
func TestAGuestWithoutBuffers(t *testing.T) {
	g, l, _ := connected(t)
	for i := range depth {
		if err := l.WriteFrame(frameOf(100, byte(i))); err != nil {
			t.Fatal(i, err)
		}
	}
	taken := 0
	for l.WriteFrame(frameOf(100, 0)) == nil {
		taken++
	}
	if taken > 1 { // one is in the device's own hand
		t.Errorf("%d frames more than the bound are taken", taken)
	}
	for i := range depth {
		if i%50 == 0 {
			g.lend(50)
		}
		if got := g.frame(); len(got) != 100 || got[0] != byte(i) {
			t.Fatalf("frame %d is %v", i, got[:1])
		}
	}
}

// While the guest stands still nothing of it is written, and nothing is lost.
func TestAStop(t *testing.T) {
	g, l, d := connected(t)
	g.lend(10)
	dirty := epoch.NewPageSet(guestPages)
	d.Stop()
	if err := d.CollectDirty(dirty); err != nil {
		t.Fatal(err)
	}
	g.send(frameOf(200, 1), pageSize, 0)
	before := bytes.Clone(g.mem)
	if got := next(t, l); len(got) != 200 {
		t.Errorf("%d bytes of a frame that a suspended guest has sent", len(got))
	}
	if n, err := l.ReadFrame(make([]byte, egress.MaxFrame+1)); !errors.Is(err, egress.ErrEmpty) {
		t.Errorf("%d bytes, %v", n, err)
	}
	for i := range 5 {
		if err := l.WriteFrame(frameOf(300, byte(i))); err != nil {
			t.Fatal(err)
		}
	}
	dirty.Clear()
	if err := d.CollectDirty(dirty); err != nil || !dirty.Empty() || !bytes.Equal(before, g.mem) {
		t.Fatalf("the guest is touched while it stands still: %d pages, %v", dirty.Count(), err)
	}
	d.Start()
	if s := g.statuses(); len(s) != 1 || s[0] != statusOK {
		t.Errorf("the answers are %v", s)
	}
	for i := range 5 {
		if got := g.frame(); len(got) != 300 || got[0] != byte(i) {
			t.Errorf("frame %d", i)
		}
	}
	d.Stop()
	if err := d.CollectDirty(dirty); err != nil {
		t.Fatal(err)
	}
	for page := range epoch.GFN(guestPages) {
		if changed := !bytes.Equal(before[page*pageSize:][:pageSize], g.page(int(page))); changed && !dirty.Contains(page) {
			t.Errorf("page %d was written, and nobody was told", page)
		}
	}
	if err := d.CollectDirty(epoch.NewPageSet(1)); err == nil {
		t.Error("a set of another size is taken")
	}
}

func TestPacketsThatMakeNoSense(t *testing.T) {
	g, l, _ := connected(t)
	ok := frameOf(64, 7)
	for name, pieces := range map[string][]piece{
		"short":               {{page: 130, size: 13}},
		"beyond the page":     {{page: 130, offset: 4090, size: 60}},
		"not lent":            {{page: 5000, size: 60}},
		"less than its parts": {{page: 130, size: 60}, {page: 131, size: 60}},
		"a segment":           {{page: 130, size: 60, flags: flagExtra}, {page: 131, size: 60}},
		"a blank checksum":    {{page: 130, size: 60, flags: flagChecksum}},
	} {
		bad := l.Malformed()
		g.put(pieces...)
		g.send(ok, pageSize, 0)
		if got := next(t, l); !bytes.Equal(got, ok) {
			t.Errorf("%s: the frame behind it is %d bytes", name, len(got))
		}
		s := g.statuses()
		if s[0] != statusError || s[len(s)-1] != statusOK || l.Malformed() != bad+1 {
			t.Errorf("%s: statuses %v, %d more malformed", name, s, l.Malformed()-bad)
		}
		if name == "a segment" && s[1] != statusNull {
			t.Errorf("extra information has the status %d", s[1])
		}
	}
}

func TestRingsThatMakeNoSense(t *testing.T) {
	for name, spoil := range map[string]func(g *guest, l *Link){
		"too many requests": func(g *guest, _ *Link) { g.show(0, 300) },
		"half a packet": func(g *guest, _ *Link) {
			g.put(piece{page: 130, size: 60, flags: flagMore})
			g.show(0, g.sent)
		},
		"a packet without an end": func(g *guest, _ *Link) {
			for range 40 {
				g.put(piece{page: 130, size: 60, flags: flagMore})
			}
			g.show(0, g.sent)
		},
		"too many buffers": func(g *guest, l *Link) {
			g.show(1, 300)
			_ = l.WriteFrame(frameOf(60, 1))
		},
	} {
		g, l, d := connected(t)
		spoil(g, l)
		g.event.Kick()
		limit := time.After(20 * time.Second)
		for over := false; !over; {
			if _, err := l.ReadFrame(make([]byte, egress.MaxFrame+1)); !errors.Is(err, egress.ErrEmpty) {
				t.Fatalf("%s: %v", name, err)
			}
			select {
			case <-g.event.Closed():
				over = true
			case <-limit:
				t.Fatalf("%s: the ring is served on", name)
			default:
			}
		}
		before := bytes.Clone(g.mem)
		d.Stop()
		d.Start()
		if err := l.WriteFrame(frameOf(60, 1)); !errors.Is(err, egress.ErrNotTaken) || !bytes.Equal(before, g.mem) {
			t.Errorf("%s: a frame for a ring that was given up: %v", name, err)
		}
	}
}

func TestADriverThatWritesNonsense(t *testing.T) {
	g, l := newGuest(t), New()
	defer func() { _ = l.Close() }()
	d := g.device(l)
	for key, value := range map[string]string{"tx-ring-ref": "9999", "rx-ring-ref": "-1", "event-channel": "0", "request-rx-copy": ""} {
		read := func(k string) string {
			if k == key {
				return value
			}
			return g.keys()(k)
		}
		if _, err := d.Plug(read); err == nil {
			t.Errorf("%s = %q is taken", key, value)
		}
		g.event = xentest.NewEvent() // the other was closed
	}
	if _, err := d.Plug(func(key string) string { return map[string]string{"event-channel": "6"}[key] + g.keys()(key) }); err == nil {
		t.Error("a port that is not there is bound")
	}
	if d.Offer()["feature-rx-copy"] != "1" {
		t.Errorf("offered is %v", d.Offer())
	}
}

// A process comes after another; the guest's driver notices nothing. Then the guest
// goes on in a new domain.
func TestAFormerProcess(t *testing.T) {
	g, l, d := connected(t)
	g.lend(10)
	if err := l.WriteFrame(frameOf(60, 1)); err != nil {
		t.Fatal(err)
	}
	g.frame()
	g.send(frameOf(60, 2), pageSize, 0)
	next(t, l)
	d.Unplug()
	g.send(frameOf(60, 3), pageSize, 0) // to nobody
	if err := l.WriteFrame(frameOf(60, 4)); !errors.Is(err, egress.ErrNotTaken) {
		t.Errorf("a frame for nobody: %v", err)
	}
	g.event = xentest.NewEvent()
	again := New()
	defer func() { _ = again.Close() }()
	e := g.device(again)
	if _, err := e.Plug(g.keys()); err != nil {
		t.Fatal(err)
	}
	defer e.Unplug()
	e.Start()
	if got := next(t, again); got[0] != 3 {
		t.Errorf("the first frame is %v", got[:1])
	}
	if err := again.WriteFrame(frameOf(60, 5)); err != nil {
		t.Fatal(err)
	}
	if got := g.frame(); got[0] != 5 {
		t.Errorf("the guest gets %v", got[:1])
	}
	g.statuses()

	elsewhere := newGuest(t)
	f := elsewhere.device(again)
	if err := again.WriteFrame(frameOf(60, 9)); err != nil { // its driver has yet to come
		t.Fatal(err)
	}
	elsewhere.lend(1)
	if _, err := f.Plug(elsewhere.keys()); err != nil {
		t.Fatal(err)
	}
	defer f.Unplug()
	f.Start()
	if got := elsewhere.frame(); got[0] != 9 {
		t.Errorf("the guest in its new domain gets %v at first", got[:1])
	}
	elsewhere.lend(1)
	if err := again.WriteFrame(frameOf(60, 6)); err != nil {
		t.Fatal(err)
	}
	if got := elsewhere.frame(); got[0] != 6 {
		t.Errorf("the guest in its new domain gets %v", got[:1])
	}
	elsewhere.send(frameOf(60, 7), pageSize, 0)
	if got := next(t, again); got[0] != 7 {
		t.Errorf("the guest in its new domain sends %v", got[:1])
	}
}

func TestCloseWakesWait(t *testing.T) {
	l := New()
	done := make(chan error, 1)
	go func() { done <- l.Wait() }()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := l.ReadFrame(nil); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := l.WriteFrame(frameOf(60, 1)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// Output commit for a Xen guest is the very gate: nothing leaves before its epoch is
// released, and what leaves does so in the order in which it was sent.
func TestBehindAGate(t *testing.T) {
	g, l, d := connected(t)
	inner, outer := egress.NewPipe(4096)
	gate, err := egress.NewGate(egress.Config{Guest: l, Network: inner, Clock: clock.Boot{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = gate.Close() }()
	if err := gate.Allow(clock.Instant(1 << 62)); err != nil {
		t.Fatal(err)
	}
	gate.Hold()
	buf := make([]byte, egress.MaxFrame+1)
	leaves := func() (n int, seq uint32) {
		t.Helper()
		for {
			n, err := outer.ReadFrame(buf)
			if err == nil {
				return n, binary.LittleEndian.Uint32(buf[20:])
			}
			if err := outer.Wait(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var sent, left uint32
	for n := epoch.Number(1); n <= 50; n++ {
		for range 1 + rand.IntN(60) {
			f := frameOf(100, 0)
			binary.LittleEndian.PutUint32(f[20:], sent)
			g.send(f, pageSize, 0)
			sent++
			if rand.IntN(8) == 0 {
				g.statuses()
			}
		}
		d.Stop()
		if err := gate.Seal(n); err != nil {
			t.Fatal(err)
		}
		of := sent
		d.Start()
		g.statuses()
		g.send(frameOf(100, 0xff), pageSize, 0) // of the next epoch
		g.statuses()
		if size, err := outer.ReadFrame(buf); err == nil {
			t.Fatalf("%d bytes leave before their epoch's release", size)
		}
		gate.Release(n)
		for ; left < of; left++ {
			_, seq := leaves()
			for seq == 0xffffffff {
				_, seq = leaves()
			}
			if seq != left {
				t.Fatalf("frame %d leaves in the place of %d", seq, left)
			}
		}
	}
}

// The checksums are those that a plain implementation makes.
func TestChecksums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.SliceOfN(rapid.Byte(), 20, 1480).Draw(t, "body")
		protocol := rapid.SampledFrom([]byte{protoTCP, protoUDP}).Draw(t, "protocol")
		options := rapid.IntRange(0, 10).Draw(t, "options") * 4
		f := frameOf(12, 1)
		if rapid.Bool().Draw(t, "tag") {
			f = binary.BigEndian.AppendUint16(append(binary.BigEndian.AppendUint16(f, typeVLAN), 0, 5), typeIPv4)
		} else {
			f = binary.BigEndian.AppendUint16(f, typeIPv4)
		}
		ip := make([]byte, 20+options)
		ip[0], ip[9] = 4<<4|byte(len(ip)/4), protocol
		copy(ip[12:], rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "addresses"))
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(body)))
		f = append(append(f, ip...), body...)
		padded := append(slices.Clone(f), make([]byte, rapid.IntRange(0, 18).Draw(t, "padding"))...)
		if !fillChecksum(padded) {
			t.Fatal("refused")
		}
		at := len(f) - len(body) + map[byte]int{protoTCP: 16, protoUDP: 6}[protocol]
		if !bytes.Equal(padded[:at], f[:at]) || !bytes.Equal(padded[at+2:len(f)], f[at+2:]) {
			t.Fatal("something else than the checksum has changed")
		}
		pseudo := append(slices.Clone(ip[12:20]), 0, protocol, byte(len(body)>>8), byte(len(body)))
		all := append(pseudo, padded[len(f)-len(body):len(f)]...)
		if len(all)%2 == 1 {
			all = append(all, 0)
		}
		sum := uint32(0)
		for i := 0; i < len(all); i += 2 {
			sum += uint32(all[i])<<8 | uint32(all[i+1])
			sum = sum>>16 + sum&0xffff
		}
		if sum != 0xffff {
			t.Fatalf("the sum is %#x", sum)
		}
	})
	for name, f := range map[string][]byte{
		"nothing": nil, "no IP": frameOf(60, 1), "short": append(frameOf(12, 0), 8, 0, 0x45), "cut": append(append(frameOf(12, 0), 8, 0), slices.Concat([]byte{0x45, 0, 0xff, 0xff}, make([]byte, 40))...),
		"fragment": append(append(frameOf(12, 0), 8, 0), slices.Concat([]byte{0x45, 0, 0, 40, 0, 0, 0x20, 0, 64, 6}, make([]byte, 30))...),
		"ICMP":     append(append(frameOf(12, 0), 8, 0), slices.Concat([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 1}, make([]byte, 30))...),
	} {
		if before := slices.Clone(f); fillChecksum(f) || !bytes.Equal(before, f) {
			t.Errorf("%s has a checksum", name)
		}
	}
}

// FuzzRings lets a guest write anything into its rings: pages that it has not lent
// for writing never change, and no frame is longer than the largest.
func FuzzRings(f *testing.F) {
	g := newGuest(f)
	g.send(frameOf(5000, 1), 1000, 0)
	g.lend(3)
	f.Add(bytes.Clone(g.page(0)[:512]), bytes.Clone(g.page(1)[:256]), uint8(3))
	f.Fuzz(func(t *testing.T, tx, rx []byte, frames uint8) {
		g := newGuest(t)
		for i := 128; i < guestPages; i++ {
			copy(g.page(i), frameOf(pageSize, byte(i)))
		}
		copy(g.page(0), tx)
		copy(g.page(1), rx)
		before := bytes.Clone(g.mem[128*pageSize:])
		l := New()
		d := g.device(l)
		if _, err := d.Plug(g.keys()); err != nil {
			t.Fatal(err)
		}
		d.Start()
		buf := make([]byte, egress.MaxFrame+1)
		for range int(frames) + 300 {
			if n, err := l.ReadFrame(buf); err == nil && (n < headerLen || n > egress.MaxFrame) {
				t.Fatalf("a frame of %d bytes", n)
			}
		}
		for i := range frames {
			_ = l.WriteFrame(frameOf(60+int(i)*77, i))
		}
		d.Unplug()
		_ = l.Close()
		if !bytes.Equal(before, g.mem[128*pageSize:]) {
			t.Fatal("a page is written that was not lent for it")
		}
	})
}

// BenchmarkFrames is a frame of 1514 bytes from the guest's ring to the gate's
// memory, answered, and one back.
func BenchmarkFrames(b *testing.B) {
	for _, size := range []int{60, 1514} {
		b.Run(fmt.Sprintf("%dbytes", size), func(b *testing.B) {
			g, l, _ := connected(b)
			f, buf := frameOf(size, 1), make([]byte, egress.MaxFrame+1)
			g.lend(200)
			b.ReportAllocs()
			for b.Loop() {
				g.put(piece{page: 130, size: size})
				g.show(0, g.sent)
				if n, err := l.ReadFrame(buf); err != nil || n != size {
					b.Fatal(n, err)
				}
				if err := l.WriteFrame(f); err != nil {
					b.Fatal(err)
				}
				g.lend(1)
			}
		})
	}
}

func TestTheLogNamesWhatIsWrong(t *testing.T) {
	g, l := newGuest(t), New()
	var said bytes.Buffer
	d := l.Device(Config{Memory: g, Pages: guestPages, Bind: func(uint32) (Channel, error) { return g.event, nil }, Log: slog.New(slog.NewTextHandler(&said, nil))})
	if _, err := d.Plug(g.keys()); err != nil {
		t.Fatal(err)
	}
	d.Start()
	g.show(0, 999)
	_, _ = l.ReadFrame(make([]byte, egress.MaxFrame+1))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said.String(), "request 999 of a ring of 256") {
		t.Errorf("the log: %s", said.String())
	}
}
