package sim

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// wire is a guest kernel and a client session joined by a network that the
// test controls frame by frame. There is no goroutine and no clock.
type wire struct {
	k       *kernel
	s       session
	now     time.Time
	toGuest [][]byte
	out     *deaf // what the guest has sent
	lines   []Line
	faults  []Violation
}

func newWire(seed uint64) *wire {
	w := &wire{now: time.Unix(1, 0), out: newDeaf()}
	cfg := small()
	cfg.DirtyPages = 1
	w.k = &kernel{mem: newMemory(cfg.Pages), nic: w.out}
	w.k.boot(cfg, seed, 1)
	w.s = session{
		guest: [6]byte(cfg.MAC), self: [6]byte(MACFor("client")), conn: 1,
		emit:     func(l Line) { w.lines = append(w.lines, l) },
		complain: func(v Violation) { w.faults = append(w.faults, v) },
	}
	return w
}

func (w *wire) clientSays(msg *message) {
	b := make([]byte, FrameSize)
	msg.put(b)
	w.toGuest = append(w.toGuest, b)
}

func (w *wire) clientHears(frame []byte) {
	var out message
	if w.s.receive(w.now, frame, &out) {
		w.clientSays(&out)
	}
}

func (w *wire) clientTick() {
	var out message
	w.s.tick(w.now, &out)
	w.clientSays(&out)
}

// settle carries every frame to where it goes.
func (w *wire) settle() {
	for len(w.toGuest) > 0 || len(w.out.sent) > 0 {
		for _, f := range take(&w.toGuest) {
			w.k.receive(f)
		}
		for _, f := range take(&w.out.sent) {
			w.clientHears(f)
		}
	}
}

func take(frames *[][]byte) [][]byte {
	f := *frames
	*frames = nil
	return f
}

// run lets time pass on a good network.
func (w *wire) run(steps int) {
	for range steps {
		w.now = w.now.Add(time.Millisecond)
		w.k.tick(uint64(w.now.UnixNano()))
		w.settle()
		if w.k.regs.step%5 == 0 {
			w.clientTick()
			w.settle()
		}
	}
}

// save keeps what a checkpoint of the guest would hold.
func (w *wire) save() (kernel, []byte) { return *w.k, slices.Clone(w.k.mem.bytes) }

func (w *wire) rollBack(k kernel, image []byte) {
	copy(w.k.mem.bytes, image)
	w.k.regs = k.regs
}

// Whatever a network does to single frames (loses, repeats, delays, reorders
// them, in either direction), the client gets every line once and in order and
// has nothing to complain of; and when the network is good again, so is the
// stream.
func TestStreamSurvivesABadNetwork(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWire(rapid.Uint64().Draw(rt, "seed"))
		pass := func(frames *[][]byte, to func([]byte), name string) {
			if len(*frames) == 0 {
				return
			}
			i := rapid.IntRange(0, len(*frames)-1).Draw(rt, name)
			f := (*frames)[i]
			*frames = slices.Delete(*frames, i, i+1)
			to(f)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"step":            func(*rapid.T) { w.now = w.now.Add(time.Millisecond); w.k.tick(uint64(w.now.UnixNano())) },
			"tick":            func(*rapid.T) { w.clientTick() },
			"to guest":        func(*rapid.T) { pass(&w.toGuest, w.k.receive, "frame") },
			"to client":       func(*rapid.T) { pass(&w.out.sent, w.clientHears, "frame") },
			"lose to guest":   func(*rapid.T) { pass(&w.toGuest, func([]byte) {}, "lost") },
			"lose to client":  func(*rapid.T) { pass(&w.out.sent, func([]byte) {}, "lost") },
			"twice to client": func(*rapid.T) { pass(&w.out.sent, func(f []byte) { w.clientHears(f); w.clientHears(f) }, "twice") },
			"settle":          func(*rapid.T) { w.settle() },
			"damage": func(rt *rapid.T) {
				pass(&w.out.sent, func(f []byte) {
					f[rapid.IntRange(0, FrameSize-1).Draw(rt, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
					w.clientHears(f)
				}, "damaged")
			},
			"": func(rt *rapid.T) {
				for i, l := range w.lines {
					if l.Number != uint64(i)+1 {
						rt.Fatalf("the %d. line is number %d", i+1, l.Number)
					}
				}
				if len(w.faults) != 0 {
					rt.Fatalf("the client complains of %v", w.faults[0])
				}
			},
		})
		before := len(w.lines)
		w.run(100)
		if len(w.lines) < before+50 || len(w.faults) != 0 {
			rt.Fatalf("on a good network %d lines came in 100 steps; complaints %v", len(w.lines)-before, w.faults)
		}
	})
}

// A guest that goes on from behind what the client has seen is always found
// out, however long the client did not listen and whatever was lost.
func TestRollbackIsFoundOut(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWire(rapid.Uint64().Draw(rt, "seed"))
		w.clientTick()
		w.run(rapid.IntRange(5, 50).Draw(rt, "before"))
		k, image := w.save()
		seen := len(w.lines)
		w.run(rapid.IntRange(1, 200).Draw(rt, "taken back"))
		if len(w.faults) != 0 || len(w.lines) == seen {
			rt.Fatalf("before the rollback: %d new lines, complaints %v", len(w.lines)-seen, w.faults)
		}
		w.rollBack(k, image)
		for range rapid.IntRange(0, 100).Draw(rt, "unheard") {
			w.now = w.now.Add(time.Millisecond)
			w.k.tick(uint64(w.now.UnixNano()))
		}
		take(&w.out.sent)
		w.clientTick()
		w.run(40)
		if len(w.faults) == 0 || w.faults[0].Fault != FaultTakenBack {
			rt.Fatalf("the guest went back behind line %d, the client complains of %v", seen, w.faults)
		}
	})
}

// A takeover that obeys output commit (what was sent after the checkpoint never
// got out) is no rollback to the client.
func TestCommittedTakeoverIsNotNoticed(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWire(rapid.Uint64().Draw(rt, "seed"))
		w.clientTick()
		w.run(20)
		for range rapid.IntRange(1, 5).Draw(rt, "takeovers") {
			k, image := w.save()
			for range rapid.IntRange(0, 50).Draw(rt, "steps lost") {
				w.k.tick(uint64(w.now.UnixNano()))
				if rapid.Bool().Draw(rt, "ack lost") {
					w.clientTick()
					for _, f := range take(&w.toGuest) {
						w.k.receive(f) // heard, and then forgotten in the rollback
					}
				}
			}
			take(&w.out.sent) // held, and discarded at the takeover
			w.rollBack(k, image)
			w.clientTick()
			w.run(30)
		}
		if len(w.faults) != 0 {
			rt.Fatalf("the client complains of %v", w.faults)
		}
	})
}

func TestClientNoticesOtherFaults(t *testing.T) {
	for name, c := range map[string]struct {
		break_ func(w *wire)
		want   Fault
		detail string
	}{
		"the guest rebooted":   {func(w *wire) { w.k.boot(small(), 99, 2) }, FaultReset, "no such connection"},
		"another boot answers": {func(w *wire) { w.k.mem.put(atBoot, 1) }, FaultRebooted, "boot id"},
		"the guest skips a line": {func(w *wire) {
			c, _ := w.k.findConn(w.s.self, w.s.conn)
			w.k.mem.put(c+connSent, w.k.mem.get(c+connSent)+1)
			w.k.mem.put(c+connAcked, w.k.mem.get(c+connSent))
		}, FaultLost, "has not come"},
		"a line says something else": {func(w *wire) {
			c, _ := w.k.findConn(w.s.self, w.s.conn)
			w.k.mem.put(c+connToken, 1)
		}, FaultTakenBack, "does not follow"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(3)
			w.clientTick()
			w.run(20)
			c.break_(w)
			w.run(20)
			if len(w.faults) == 0 || w.faults[0].Fault != c.want || !strings.Contains(w.faults[0].Detail, c.detail) {
				t.Errorf("the client complains of %v, want %q (… %s …)", w.faults, c.want, c.detail)
			}
		})
	}
}

// Two guests of one state that both speak are found out, whichever is heard.
func TestTwoOwnersAreFoundOut(t *testing.T) {
	w := newWire(5)
	w.clientTick()
	w.run(20)
	k, image := w.save()
	other := newWire(5)
	copy(other.k.mem.bytes, image)
	other.k.regs = k.regs
	for range 100 {
		w.run(1)
		for _, f := range take(&other.out.sent) {
			w.clientHears(f)
		}
		var probe message
		w.s.tick(w.now, &probe)
		b := make([]byte, FrameSize)
		probe.put(b)
		other.k.receive(b)
		other.k.tick(uint64(w.now.UnixNano()) + 1)
	}
	if len(w.faults) == 0 || w.faults[0].Fault != FaultTakenBack {
		t.Errorf("two guests spoke, the client complains of %v", w.faults)
	}
}

func TestConnectionsHaveAnEnd(t *testing.T) {
	w := newWire(1)
	open := func(id uint64, what kind) kind {
		w.out.sent = nil
		b := make([]byte, FrameSize)
		msg := message{dst: w.s.guest, src: w.s.self, conn: id, kind: what}
		msg.put(b)
		w.k.receive(b)
		if len(w.out.sent) == 0 {
			return 0
		}
		var answer message
		if err := answer.parse(w.out.sent[0]); err != nil {
			t.Fatal(err)
		}
		return answer.kind
	}
	for id := range uint64(maxConns) {
		if got := open(id+1, kindOpen); got != kindWelcome {
			t.Fatalf("connection %d: answer %d, want a welcome", id+1, got)
		}
	}
	if got := open(100, kindOpen); got != kindReset {
		t.Errorf("one connection too many: answer %d, want a reset", got)
	}
	open(3, kindClose)
	if got := open(100, kindOpen); got != kindWelcome {
		t.Errorf("a connection after another was closed: answer %d, want a welcome", got)
	}
	for range idleSteps {
		w.k.tick(uint64(w.now.UnixNano()))
	}
	if got := open(101, kindOpen); got != kindWelcome {
		t.Errorf("a connection after all others were silent: answer %d, want a welcome", got)
	}
}
