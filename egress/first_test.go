package egress

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestTheFirstFrameIsToldOnce: when it has left, not when it was due, and of the
// guest's own frames only.
func TestTheFirstFrameIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{MAC: []byte{2, 0, 0, 0, 0, 1}})
		defer r.end()
		var told int
		first := func() { told++ }
		check := func(word, out string, want int) {
			t.Helper()
			if got := r.do(word); got != out || told != want {
				t.Errorf("%s: %q left, told %d times; want %q, %d", word, got, told, out, want)
			}
		}
		r.OnFirst(first)
		check("guest:12", "", 0)
		check("seal:1", "", 0)
		check("release:1", "", 0) // there is no lease
		check("lease:1s", "12", 1)
		check("pass", "", 1)
		check("guest:3", "3", 1)
		r.OnFirst(first)
		r.OnFirst(nil)
		check("guest:4", "4", 1)
		r.OnFirst(first)
		if err := r.Announce(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		for range drainRaw(r.network) {
			continue
		}
		if told != 1 {
			t.Error("an announcement is not the guest's")
		}
		if n := testing.AllocsPerRun(100, func() { r.OnFirst(first) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
		check("guest:5", "5", 2)
	})
}

// drainRaw returns how many frames wait.
func drainRaw(p *Pipe) int {
	buf := make([]byte, MaxFrame+1)
	for n := 0; ; n++ {
		if _, err := p.ReadFrame(buf); err != nil {
			return n
		}
	}
}
