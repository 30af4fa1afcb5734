package egress

import (
	"encoding/binary"
	"log/slog"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy/clock"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "frozen-daemon" {
		frozenDaemon(os.Args[2] == "kernel")
		return
	}
	goleak.VerifyTestMain(m)
}

// forever is a lease that no test outlives.
const forever = clock.Instant(1 << 62)

var quietLog = slog.New(slog.DiscardHandler)

// numbered is an Ethernet frame of size bytes that carries a number.
func numbered(n uint64, size int) []byte {
	f := make([]byte, max(size, headerLen+8))
	copy(f, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5}) // an EtherType for experiments
	binary.BigEndian.PutUint64(f[headerLen:], n)
	return f
}

func numberOf(f []byte) uint64 { return binary.BigEndian.Uint64(f[headerLen:]) }

// drain reads what is waiting at the end of a link.
func drain(t testing.TB, f Frames) []uint64 {
	t.Helper()
	var got []uint64
	buf := make([]byte, MaxFrame+1)
	for {
		n, err := f.ReadFrame(buf)
		if err == ErrEmpty {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		if n < headerLen+8 {
			t.Fatalf("a frame of %d bytes", n)
		}
		got = append(got, numberOf(buf[:n]))
	}
}

// until waits for a condition that the kernel or another process brings about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 5 s for %s", what)
		}
	}
}
