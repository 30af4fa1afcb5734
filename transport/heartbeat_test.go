package transport

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// The watch as a story: at each moment, when the peer was last heard, and what
// is to be done. Interval 10 ms, timeout 50 ms; times in milliseconds.
func TestWatch(t *testing.T) {
	type moment struct {
		at, heard    int
		ping, silent bool
		wakeAt       int
	}
	for _, tt := range []struct {
		name    string
		moments []moment
	}{
		{"an idle peer that answers", []moment{
			{0, 0, true, false, 10}, {10, 1, true, false, 20}, {20, 11, true, false, 30}, {30, 21, true, false, 40},
		}},
		{"a peer that falls silent", []moment{
			{0, 0, true, false, 10}, {10, 5, true, false, 20}, {20, 5, true, false, 30}, {30, 5, true, false, 40},
			{40, 5, true, false, 50}, {50, 5, true, false, 55}, {55, 5, false, true, 55},
		}},
		{"we stood still, and the peer was there", []moment{
			{0, 0, true, false, 10}, {10, 9, true, false, 20},
			{500, 9, true, false, 510}, // late: forgiven
			{510, 501, true, false, 520},
		}},
		{"we stood still, and the peer is gone", []moment{
			{0, 0, true, false, 10}, {10, 9, true, false, 20},
			{500, 9, true, false, 510}, {510, 9, false, true, 510},
		}},
		{"we stand still again and again: forgiven once only", []moment{
			{0, 0, true, false, 10}, {10, 9, true, false, 20},
			{500, 9, true, false, 510}, {900, 9, false, true, 510},
		}},
		{"a little late is not standing still", []moment{
			{0, 0, true, false, 10}, {19, 0, true, false, 29}, {38, 0, true, false, 48}, {57, 0, false, true, 48},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			ms := func(n int) time.Time { return start.Add(time.Duration(n) * time.Millisecond) }
			w := watch{interval: 10 * time.Millisecond, timeout: 50 * time.Millisecond, nextPing: start, wakeAt: start}
			for _, m := range tt.moments {
				ping, silent := w.ask(ms(m.at), ms(m.heard))
				if ping != m.ping || silent != m.silent || !w.wakeAt.Equal(ms(m.wakeAt)) {
					t.Fatalf("at %d, heard at %d: ping %v, silent %v, wake at %v; want %v, %v, %d",
						m.at, m.heard, ping, silent, w.wakeAt.Sub(start), m.ping, m.silent, m.wakeAt)
				}
			}
		})
	}
}

// A connection to a silent peer is given up with a reset, which does not queue
// behind what the peer has not acknowledged.
func TestAGivenUpConnectionIsReset(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	mine, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = theirs.Close() }()
	sent := 0
	for sent == 0 { // on a busy machine the time may be over before anything is taken
		if err := mine.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := mine.Write(make([]byte, 64<<20)) // until nothing more is taken
		if err == nil {
			t.Fatal("the peer took everything")
		}
		sent += n
	}
	resetOnClose(mine)
	hardClose(mine)
	if err := theirs.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got, err := io.Copy(io.Discard, theirs)
	if !errors.Is(err, syscall.ECONNRESET) || got >= int64(sent) {
		t.Errorf("the peer read %d of %d bytes and then %v, want a reset", got, sent, err)
	}
}
