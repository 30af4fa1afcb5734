package egress

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"understudy/clock"
	"understudy/epoch"
)

// oracle is what a gate shall do, as plainly as it can be said.
type oracle struct {
	mode    Mode
	waiting []oracleFrame // in the order in which the guest sent them
	sealed  epoch.Number
	until   clock.Instant
}

type oracleFrame struct {
	n     uint64
	epoch epoch.Number // 0: not sealed
	due   bool
}

// leave takes what leaves now out of waiting.
func (o *oracle) leave(now clock.Instant, guard time.Duration) (left []uint64) {
	if o.mode == ModePass {
		for i := range o.waiting {
			o.waiting[i].due = true
		}
	}
	if o.mode == ModeShut || !now.Before(o.until.Add(-guard)) {
		return nil
	}
	for len(o.waiting) > 0 && o.waiting[0].due {
		left = append(left, o.waiting[0].n)
		o.waiting = o.waiting[1:]
	}
	return left
}

func (o *oracle) unseal() {
	o.sealed = 0
	for i := range o.waiting {
		o.waiting[i].epoch = 0
	}
}

func TestNoFrameLeavesBeforeItsTurn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// rapid draws the whole story first: its T does not belong to a bubble.
		type step struct{ op, arg int }
		var story []step
		const steps, frames = 80, 40
		for range rapid.IntRange(1, steps).Draw(rt, "steps") {
			story = append(story, step{rapid.IntRange(0, 11).Draw(rt, "op"), rapid.IntRange(0, frames).Draw(rt, "arg")})
		}
		synctest.Test(t, func(t *testing.T) {
			const guard = 5 * time.Millisecond
			// One step may release all that the steps before it held.
			r := newDeepRig(t, Config{Guard: guard, HeldBytes: 2 << 20}, steps*frames)
			defer r.end()
			o := &oracle{}
			next := uint64(0)
			for i, s := range story {
				switch s.op {
				case 0, 1, 2, 3:
					for range s.arg {
						if err := r.guest.WriteFrame(numbered(next, 60+s.arg*10)); err != nil {
							t.Fatal(err)
						}
						o.waiting = append(o.waiting, oracleFrame{n: next})
						next++
					}
					if s.op == 3 { // sealed before anybody had time to collect
						sealBoth(t, r, o, epoch.Number(s.arg))
					}
				case 4, 5:
					sealBoth(t, r, o, o.sealed+epoch.Number(s.arg/8))
				case 6, 7:
					through := max(o.sealed, 3) - 3 + epoch.Number(s.arg/10)
					r.Release(through)
					for k := range o.waiting {
						if e := o.waiting[k].epoch; e != 0 && e <= through {
							o.waiting[k].due = true
						}
					}
				case 8:
					o.until = r.clock.Now().Add(time.Duration(s.arg) * time.Millisecond)
					if err := r.Allow(o.until); err != nil {
						t.Fatal(err)
					}
				case 9:
					time.Sleep(time.Duration(s.arg) * time.Millisecond / 4)
				case 10:
					switch s.arg % 4 {
					case 0:
						r.Pass()
						o.mode = ModePass
						o.unseal()
					case 1:
						r.Shut()
						o.mode = ModeShut
					default:
						if o.mode == ModePass { // what was passed on stays so
							o.leave(r.clock.Now(), guard)
						}
						r.Hold()
						o.mode = ModeHold
						o.unseal()
					}
				case 11:
					if s.arg == 0 {
						r.Discard()
						o.waiting, o.sealed = nil, 0
					}
				}
				want := o.leave(r.clock.Now(), guard)
				synctest.Wait()
				if got := drain(t, r.network); !slices.Equal(got, want) {
					t.Fatalf("step %d %+v in mode %v: %v left, want %v", i, s, o.mode, got, want)
				}
				if frames, _ := r.Held(); frames != len(o.waiting) {
					t.Fatalf("step %d %+v: %d held, want %d", i, s, frames, len(o.waiting))
				}
			}
		})
	})
}

func sealBoth(t *testing.T, r *rig, o *oracle, n epoch.Number) {
	t.Helper()
	if err := r.Seal(n); (err == nil) != (n > o.sealed) {
		t.Fatalf("sealing %d after %d: %v", n, o.sealed, err)
	}
	if n <= o.sealed {
		return
	}
	o.sealed = n
	for i := range o.waiting {
		if o.waiting[i].epoch == 0 {
			o.waiting[i].epoch = n
		}
	}
}

// TestTheRingAgreesWithAList adds and drops frames of all sizes in a ring that
// wraps often.
func TestTheRingAgreesWithAList(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRing(minRing + rapid.IntRange(0, minRing).Draw(rt, "extra"))
		var list [][]byte
		var bytes int64
		for range rapid.IntRange(1, 200).Draw(rt, "steps") {
			if rapid.Bool().Draw(rt, "add") {
				slot := r.slot()
				if slot == nil {
					if r.used < int64(len(r.buf))-2*recordRoom {
						rt.Fatalf("full with %d of %d bytes used", r.used, len(r.buf))
					}
					continue
				}
				n := rapid.IntRange(headerLen, MaxFrame).Draw(rt, "size")
				frame := numbered(rapid.Uint64().Draw(rt, "content"), n)
				r.add(copy(slot, frame))
				list = append(list, frame)
				bytes += int64(len(frame))
				r.releaseAll()
			} else {
				got := r.view(nil, rapid.IntRange(1, 8).Draw(rt, "count"))
				for i, f := range got {
					if !slices.Equal(f, list[i]) {
						rt.Fatalf("frame %d of %d bytes differs from the one of %d that was added", i, len(f), len(list[i]))
					}
					bytes -= int64(len(f))
				}
				r.drop(len(got))
				list = list[len(got):]
			}
			if r.frames() != len(list) || r.bytes != bytes || r.used > int64(len(r.buf)) {
				rt.Fatalf("%d frames, %d bytes, %d used: want %d, %d", r.frames(), r.bytes, r.used, len(list), bytes)
			}
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(numbered(1, 60))
	mac := []byte{2, 3, 4, 5, 6, 7}
	f.Add(arpFrame(typeARP, 1, mac, [4]byte{192, 0, 2, 7}, mac, [4]byte{192, 0, 2, 1}))
	f.Add(append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45}, make([]byte, 19)...))
	f.Add([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 1, 8, 0, 0x45})
	f.Fuzz(func(t *testing.T, frame []byte) {
		if addr, ok := sourceIPv4(frame); ok && (!addr.Is4() || addr.IsUnspecified() || addr.IsMulticast()) {
			t.Errorf("%v from % x", addr, frame)
		}
	})
}

func FuzzNetfilterAnswer(f *testing.F) {
	b := newBatch().message(0, 0).finish()
	b.stamp(7)
	f.Add(b.bytes)
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff})
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = verdict(b, 7) // it must come back, whatever it says
	})
}
