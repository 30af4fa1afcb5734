package sim

import (
	"bytes"
	"testing"
	"time"

	"understudy/hypervisor"
)

// A frame is taken as it was meant or not at all.
func FuzzMessage(f *testing.F) {
	b := make([]byte, FrameSize)
	(&message{kind: kindLine, line: 3, sent: 4}).put(b)
	f.Add(b)
	f.Add(append(bytes.Clone(b), 0))
	f.Add(b[:FrameSize-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		if m.parse(b) != nil {
			return
		}
		again := make([]byte, FrameSize)
		m.put(again)
		if !bytes.Equal(again, b[:FrameSize]) {
			t.Fatalf("%x was read as %+v, which is %x", b, m, again)
		}
	})
}

// Whatever the network says to a guest and to a client, neither falls over,
// and the guest's memory stays one that its registers fit to.
func FuzzNetwork(f *testing.F) {
	f.Add(byte(kindOpen), uint16(0), uint64(1), uint64(0), uint64(0), uint64(0), uint64(9))
	f.Add(byte(kindAck), uint16(1), uint64(1), ^uint64(0), ^uint64(0), ^uint64(0), uint64(9))
	f.Add(byte(kindLine), uint16(0), uint64(1), uint64(1)<<63, ^uint64(0), uint64(5), uint64(0))
	f.Fuzz(func(t *testing.T, k byte, flags uint16, conn, line, sent, acked, stamp uint64) {
		w := newWire(1)
		w.clientTick()
		w.run(3)
		msg := message{
			dst: w.s.guest, src: w.s.self, kind: kind(k), flags: flags, conn: conn, boot: w.s.boot,
			line: line, sent: sent, acked: acked, seen: line, stamp: stamp,
		}
		b := make([]byte, FrameSize)
		msg.put(b)
		w.k.receive(b)
		msg.dst, msg.src = w.s.self, w.s.guest
		msg.put(b)
		w.clientHears(b)
		w.now = w.now.Add(time.Millisecond)
		w.run(3)

		m := &machine{kernel: *w.k}
		if _, err := parseState(appendState(nil, m), &m.mem); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzState(f *testing.F) {
	w := newWire(1)
	w.run(3)
	m := &machine{kernel: *w.k}
	f.Add(appendState(nil, m))
	f.Add([]byte(stateMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		regs, err := parseState(b, &m.mem)
		if err == nil && regs != m.regs {
			t.Fatalf("%x was loaded as %+v, the memory fits to %+v only", b, regs, m.regs)
		}
	})
}

func FuzzSpec(f *testing.F) {
	cfg := DefaultConfig("guest")
	f.Add(cfg.Pages, makeSpec(cfg).Machine)
	f.Add(uint64(1)<<60, []byte(`{"adapter":"sim"}`))
	f.Add(cfg.Pages, bytes.Repeat([]byte("["), maxSpec))
	f.Fuzz(func(t *testing.T, pages uint64, machine []byte) {
		if checkSpec(cfg, hypervisor.Spec{Pages: pages, Machine: machine}) != nil {
			return
		}
		if got, err := parseSpec(machine); err != nil || pages != cfg.Pages || got != specOf(cfg) {
			t.Fatalf("%d pages, %q was taken for this guest (%+v, %v)", pages, machine, got, err)
		}
	})
}
