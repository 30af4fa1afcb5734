package egress

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"understudy/epoch"
)

// TestAResizedRingHoldsTheSame: whatever was held, sealed and released before, what
// leaves after a change of the size is what would have left without it.
func TestAResizedRingHoldsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(MinHeldBytes, 2*MinHeldBytes)
		r := newRing(size.Draw(t, "size"))
		var want [][]byte // held, oldest first
		free, last := 0, epoch.Number(0)
		seals := map[epoch.Number]int{} // how many of all frames so far
		dropped := 0
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				slot := r.slot()
				if slot == nil {
					continue
				}
				frame := bytes.Repeat([]byte{byte(len(want))}, rapid.IntRange(1, MaxFrame).Draw(t, "frame"))
				copy(slot, frame)
				r.add(len(frame))
				want = append(want, frame)
			case 2:
				last++
				r.seal(last)
				seals[last] = dropped + len(want)
			case 3:
				n := epoch.Number(rapid.IntRange(0, int(last)).Draw(t, "through"))
				r.release(n)
				free = max(free, seals[n])
			case 4:
				n := min(rapid.IntRange(0, 5).Draw(t, "drop"), len(r.view(nil, 5)))
				r.drop(n)
				want, dropped = want[n:], dropped+n
			}
			if rapid.Bool().Draw(t, "resize") {
				if other, ok := r.resized(size.Draw(t, "other")); ok {
					r = other
				}
			}
			if r.frames() != len(want) {
				t.Fatalf("%d frames are held, want %d", r.frames(), len(want))
			}
			may := r.view(nil, 1<<20)
			if len(may) != max(0, free-dropped) {
				t.Fatalf("%d frames may leave, want %d", len(may), max(0, free-dropped))
			}
			for i, frame := range may {
				if !bytes.Equal(frame, want[i]) {
					t.Fatalf("frame %d is another one", i)
				}
			}
		}
		r.releaseAll()
		for i, frame := range r.view(nil, 1<<20) {
			if !bytes.Equal(frame, want[i]) {
				t.Fatalf("frame %d is another one", i)
			}
		}
	})
}
