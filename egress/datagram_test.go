package egress

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/clock"
	"understudy/epoch"
)

// socketPair is the gate's end of a guest's link and the guest's.
func socketPair(t testing.TB) (ours, guests *Datagram) {
	t.Helper()
	dir := t.TempDir()
	host, guest := filepath.Join(dir, "host"), filepath.Join(dir, "guest")
	var links [2]*Datagram
	for i, c := range []SocketConfig{{Local: host, Remote: guest, UID: -1, GID: -1}, {Local: guest, Remote: host, UID: -1, GID: -1}} {
		d, err := OpenGuestSocket(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		links[i] = d
	}
	return links[0], links[1]
}

func TestAGuestMayComeLateAndGo(t *testing.T) {
	dir := t.TempDir()
	host, guest := filepath.Join(dir, "host"), filepath.Join(dir, "guest")
	ours, err := OpenGuestSocket(SocketConfig{Local: host, Remote: guest, UID: -1, GID: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if err := ours.WriteFrame(numbered(1, 60)); err != ErrNotTaken {
		t.Errorf("a frame for a guest that is not there: %v", err)
	}
	for range 2 { // the second time it is a guest started anew
		g, err := OpenGuestSocket(SocketConfig{Local: guest, Remote: host, UID: -1, GID: -1})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(ours.WriteFrame(numbered(2, 60)), g.WriteFrame(numbered(3, 60))); err != nil {
			t.Fatal(err)
		}
		if err := ours.Wait(); err != nil {
			t.Fatal(err)
		}
		if in, out := drain(t, ours), drain(t, g); len(in) != 1 || in[0] != 3 || len(out) != 1 || out[0] != 2 {
			t.Errorf("from the guest %v, to it %v", in, out)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		if err := ours.WriteFrame(numbered(4, 60)); err != ErrNotTaken {
			t.Errorf("a frame for a guest that is gone: %v", err)
		}
	}
}

func TestAGuestThatDoesNotReadLosesFrames(t *testing.T) {
	ours, guest := socketPair(t)
	n := uint64(0)
	for ours.WriteFrame(numbered(n, 1514)) == nil {
		if n++; n > 1<<20 {
			t.Fatal("no bound")
		}
	}
	if n < 500 {
		t.Errorf("only %d frames fit in the guest's socket", n)
	}
	if got := drain(t, guest); uint64(len(got)) != n {
		t.Errorf("%d frames arrived of %d", len(got), n)
	}
}

func TestWhatIsNoFrameIsPassedOver(t *testing.T) {
	ours, guest := socketPair(t)
	for _, n := range []int{0, 1, headerLen - 1, MaxFrame + 1, MaxFrame + 1000} {
		if err := guest.WriteFrame(make([]byte, n)); err != ErrFrameSize {
			t.Errorf("a frame of %d bytes: %v", n, err)
		}
		if err := guest.send(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	largest := bytes.Repeat([]byte{7}, MaxFrame)
	if err := guest.WriteFrame(largest); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, MaxFrame+1)
	if n, err := ours.ReadFrame(buf); err != nil || !bytes.Equal(buf[:n], largest) {
		t.Errorf("the largest frame arrived with %d bytes, %v", n, err)
	}
	if ours.Malformed() != 5 {
		t.Errorf("%d datagrams counted as malformed, want 5", ours.Malformed())
	}
}

func TestASocketIsTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "host")
	c := SocketConfig{Local: path, Remote: path + ".guest", UID: 65534, GID: 65534}
	first, err := OpenGuestSocket(c)
	if err != nil {
		t.Fatal(err)
	}
	second, err := OpenGuestSocket(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("the old daemon removed the new one's socket: %v", err)
	}
	if st.Uid != 65534 || st.Gid != 65534 || st.Mode&0o777 != 0o600 {
		t.Errorf("the socket belongs to %d:%d with mode %o", st.Uid, st.Gid, st.Mode&0o777)
	}
	if err := errors.Join(second.Close(), second.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket was left behind")
	}
	if err := second.Wait(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("waiting for a closed link: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []SocketConfig{c, {Remote: "x"}, {Local: "x"}, {Local: strings.Repeat("x", 108), Remote: "x"}, {Local: "/nowhere/x", Remote: "x"}} {
		if d, err := OpenGuestSocket(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
			_ = d.Close()
		}
	}
}

func TestASwitchLearnsAndForgets(t *testing.T) {
	dir := t.TempDir()
	hub := filepath.Join(dir, "switch")
	if p, err := OpenSegment(SocketConfig{Local: filepath.Join(dir, "p"), Remote: hub, UID: -1, GID: -1}); err == nil {
		t.Error("a port without a switch was opened")
		_ = p.Close()
	}
	s, err := NewSwitch(hub, quietLog)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	port := func(name string) *Datagram {
		p, err := OpenSegment(SocketConfig{Local: filepath.Join(dir, name), Remote: hub, UID: -1, GID: -1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	a, b, c := port("a"), port("b"), port("c")
	frame := func(n uint64, from, to byte) []byte {
		f := numbered(n, 60)
		f[5], f[11] = to, from
		return f
	}
	send := func(p *Datagram, f []byte) {
		t.Helper()
		if err := p.WriteFrame(f); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(p *Datagram, want uint64) {
		t.Helper()
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		if got := drain(t, p); len(got) != 1 || got[0] != want {
			t.Errorf("got %v, want %d", got, want)
		}
	}
	send(a, frame(1, 'a', 'b')) // not known yet: everywhere
	expect(b, 1)
	expect(c, 1)
	send(b, frame(2, 'b', 'a')) // known: to a alone
	expect(a, 2)
	// The guest of b moves to c and says so.
	send(c, frame(3, 'b', 'a'))
	expect(a, 3)
	send(a, frame(4, 'a', 'b'))
	expect(c, 4)
	if got := drain(t, b); len(got) != 0 {
		t.Errorf("b heard %v that was not for it", got)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	send(a, frame(5, 'a', 'b')) // lost, and then forgotten
	until(t, "the switch to miss port c", func() bool { return s.Stats().Lost == 1 })
	send(a, frame(6, 'a', 'b'))
	expect(b, 6)
}

// TestNothingIsAllocatedPerFrame covers the way from the guest's socket through
// the ring to the network, and back.
func TestNothingIsAllocatedPerFrame(t *testing.T) {
	ours, guest := socketPair(t)
	const perRun = 100
	network, far := NewPipe(perRun) // its slots get their memory in the first run
	g, err := NewGate(Config{Guest: ours, Network: network, Clock: clock.Boot{}, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Allow(forever); err != nil {
		t.Fatal(err)
	}
	frame, buf := numbered(1, 1514), make([]byte, MaxFrame+1)
	n := epoch.Number(0)
	allocs := testing.AllocsPerRun(50, func() {
		for range perRun {
			if guest.WriteFrame(frame) != nil || far.WriteFrame(frame) != nil {
				t.Fatal("a frame was not taken")
			}
		}
		n++
		if err := g.Seal(n); err != nil {
			t.Fatal(err)
		}
		g.Release(n)
		for got := 0; got < 2*perRun; {
			before := got
			if _, err := far.ReadFrame(buf); err == nil {
				got++
			}
			if _, err := guest.ReadFrame(buf); err == nil {
				got++
			}
			if got == before {
				runtime.Gosched()
			}
		}
	})
	if allocs > 0 && !raceEnabled {
		t.Errorf("%.1f allocations per %d frames each way", allocs, perRun)
	}
}

// BenchmarkSeal is the gate's part of the pause: with nothing in the guest's
// socket, and with 64 frames that nobody had time to collect.
func BenchmarkSeal(b *testing.B) {
	for _, frames := range []int{0, 64} {
		b.Run(map[int]string{0: "empty", 64: "64frames"}[frames], func(b *testing.B) {
			ours, guest := socketPair(b)
			network, far := NewPipe(256)
			g, err := NewGate(Config{Guest: ours, Network: network, Clock: clock.Boot{}, Log: quietLog})
			if err != nil {
				b.Fatal(err)
			}
			defer g.Close()
			defer far.Close()
			frame := numbered(1, 1514)
			n := epoch.Number(0)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				for range frames {
					if err := guest.WriteFrame(frame); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				n++
				if err := g.Seal(n); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				g.Discard()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkGate moves frames from a guest's socket through the gate, in epochs
// of 256 frames.
func BenchmarkGate(b *testing.B) {
	ours, guest := socketPair(b)
	network, far := NewPipe(1024)
	g, err := NewGate(Config{Guest: ours, Network: network, Clock: clock.Boot{}, Log: quietLog})
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	if err := g.Allow(forever); err != nil {
		b.Fatal(err)
	}
	frame, buf := numbered(1, 1514), make([]byte, MaxFrame+1)
	n := epoch.Number(0)
	const perEpoch = 256
	b.ReportAllocs()
	b.SetBytes(int64(len(frame)) * perEpoch)
	for b.Loop() {
		for range perEpoch {
			if err := guest.WriteFrame(frame); err != nil {
				b.Fatal(err)
			}
		}
		n++
		if err := g.Seal(n); err != nil {
			b.Fatal(err)
		}
		g.Release(n)
		for got := 0; got < perEpoch; {
			if err := far.Wait(); err != nil {
				b.Fatal(err)
			}
			for {
				if _, err := far.ReadFrame(buf); err != nil {
					break
				}
				got++
			}
		}
	}
	b.ReportMetric(float64(b.N)*perEpoch/b.Elapsed().Seconds(), "frames/s")
}
