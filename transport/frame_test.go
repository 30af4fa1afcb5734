package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// stranger is a peer that speaks the wire format by hand: it joins a session
// properly and then sends what a table tells it.
type stranger struct {
	t     *testing.T
	conns []net.Conn
	id    sessionID
}

// infiltrate joins a session of the given number of connections, as dialer.
func infiltrate(t *testing.T, cfg Config, lanes int) (*stranger, *Session) {
	t.Helper()
	l := newPipeListener()
	a, err := NewAcceptor(l, cfg, silent())
	if err != nil {
		t.Fatal(err)
	}
	x := &stranger{t: t, id: sessionID{1, 2, 3, 4, 5, 6, 7, 8, 9}}
	h := helloOf(cfg)
	h.id, h.lanes = x.id, lanes
	for h.lane = range lanes {
		conn, err := l.dial(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := sendHello(conn, h); err != nil {
			t.Fatal(err)
		}
		x.conns = append(x.conns, conn)
	}
	for _, conn := range x.conns {
		if _, err := readHello(conn); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, conn) }()
	}
	s, err := a.Accept(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	t.Cleanup(func() {
		for _, conn := range x.conns {
			_ = conn.Close()
		}
		_ = s.Close()
	})
	return x, s
}

func (x *stranger) frame(h header, payload []byte) []byte {
	frame := append(make([]byte, headerSize), payload...)
	if h.session == 0 {
		h.session = x.id.tag()
	}
	seal(frame, h)
	return frame
}

func (x *stranger) data(lane, sequence int, payload string) []byte {
	return x.frame(header{typ: frameData, lane: uint16(lane), sequence: uint64(sequence)}, []byte(payload))
}

// changed returns the frame with one byte changed and, if reseal, its checksum
// made to fit again.
func changed(frame []byte, at int, value byte, reseal bool) []byte {
	frame = bytes.Clone(frame)
	frame[at] = value
	if reseal {
		binary.LittleEndian.PutUint64(frame[32:], checksum(frame[:headerSize], frame[headerSize:]))
	}
	return frame
}

// Every malformed, corrupt, foreign or misplaced frame ends the session with an
// error that names what was wrong; of the good messages before it none is lost,
// of the bad one nothing is delivered.
func TestHostileFrames(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxMessage, cfg.Window = 1000, 8000
	eight := make([]byte, controlSize)
	huge := func(x *stranger) []byte {
		f := x.data(0, 0, "x")
		binary.LittleEndian.PutUint32(f[24:], 1<<31)
		return f
	}
	type sent struct {
		lane int
		data []byte
	}
	on := func(lane int, frames ...[]byte) (out []sent) {
		for _, f := range frames {
			out = append(out, sent{lane, f})
		}
		return out
	}
	for _, tt := range []struct {
		name  string
		lanes int
		send  func(x *stranger) []sent
		good  int // messages delivered before the failure
		want  string
	}{
		{"not a frame", 1, func(x *stranger) []sent { return on(0, []byte(strings.Repeat("GET /", 20))) }, 0, "magic"},
		{"other version", 1, func(x *stranger) []sent { return on(0, changed(x.data(0, 0, "x"), 2, 2, true)) }, 0, "version 2"},
		{"unknown type", 1, func(x *stranger) []sent { return on(0, changed(x.data(0, 0, "x"), 3, 99, true)) }, 0, "unknown type 99"},
		{"flags set", 1, func(x *stranger) []sent { return on(0, changed(x.data(0, 0, "x"), 5, 1, true)) }, 0, "flags"},
		{"reserved bytes set", 1, func(x *stranger) []sent { return on(0, changed(x.data(0, 0, "x"), 30, 1, true)) }, 0, "reserved"},
		{"oversize by far", 1, func(x *stranger) []sent { return on(0, huge(x)) }, 0, "payload of 2147483648 bytes, not 0 to 1000"},
		{"oversize by one", 1, func(x *stranger) []sent { return on(0, x.data(0, 0, strings.Repeat("x", 1001))) }, 0, "payload of 1001 bytes"},
		{"checksum", 1, func(x *stranger) []sent { return on(0, x.data(0, 0, "ok"), changed(x.data(0, 1, "x"), 33, 7, false)) }, 1, "checksum"},
		{"payload changed", 1, func(x *stranger) []sent { return on(0, changed(x.data(0, 0, "x"), headerSize, 'y', false)) }, 0, "checksum"},
		{"kind changed", 1, func(x *stranger) []sent { return on(0, changed(x.data(0, 0, "x"), 4, 9, false)) }, 0, "checksum"},
		{"wrong session", 1, func(x *stranger) []sent {
			return on(0, x.frame(header{typ: frameData, session: 77}, []byte("x")))
		}, 0, "of session 000000000000004d"},
		{"frame of another connection", 2, func(x *stranger) []sent { return on(1, x.data(0, 0, "x")) }, 0, "of connection 0"},
		{"replay", 1, func(x *stranger) []sent { return on(0, x.data(0, 0, "ok"), x.data(0, 0, "ok")) }, 1, "message 0 again"},
		{"replay on another connection", 2, func(x *stranger) []sent { return on(0, x.data(0, 0, "ok"), x.data(0, 1, "ok"), nil) }, 2, "again"},
		{"backwards", 1, func(x *stranger) []sent { return on(0, x.data(0, 0, "ok"), x.data(0, 1, "ok"), x.data(0, 0, "x")) }, 2, "message 0 again"},
		{"gap on the only connection", 1, func(x *stranger) []sent { return on(0, x.data(0, 0, "ok"), x.data(0, 2, "x")) }, 1, "message 1 is missing"},
		{"gap that every connection passed", 2, func(x *stranger) []sent {
			return append(on(0, x.data(0, 0, "ok"), x.data(0, 3, "x")), on(1, x.data(1, 2, "x"))...)
		}, 1, "message 1 is missing"},
		{"gap wider than the window", 2, func(x *stranger) []sent { return on(0, x.data(0, 1000, "x")) }, 0, "wider than the window"},
		{"highest number", 1, func(x *stranger) []sent {
			return on(0, x.frame(header{typ: frameData, sequence: 1<<64 - 1}, nil))
		}, 0, "wider than the window"},
		{"more than the credit", 2, func(x *stranger) (out []sent) {
			for i := 1; i < 8; i++ { // message 0 never comes, so none is consumed
				out = append(out, on(0, x.data(0, i, strings.Repeat("x", 1000)))...)
			}
			return out
		}, 0, "without credit"},
		{"control frame again", 1, func(x *stranger) []sent {
			f := x.frame(header{typ: framePing, sequence: 1}, eight)
			return on(0, f, f)
		}, 0, "control frame 1 where 2 is due"},
		{"short ping", 1, func(x *stranger) []sent { return on(0, x.frame(header{typ: framePing, sequence: 1}, eight[:7])) }, 0, "payload of 7 bytes"},
		{"ping with a kind", 1, func(x *stranger) []sent {
			return on(0, changed(x.frame(header{typ: framePing, sequence: 1}, eight), 4, 1, true))
		}, 0, "with the kind 1"},
		{"ping elsewhere", 2, func(x *stranger) []sent { return on(1, x.frame(header{typ: framePing, lane: 1, sequence: 1}, eight)) }, 0, "belongs on connection 0"},
		{"pong never asked for", 1, func(x *stranger) []sent {
			return on(0, x.frame(header{typ: framePong, sequence: 1}, []byte("\xff\xff\xff\xff\xff\xff\xff\x7f")))
		}, 0, "ping never sent"},
		{"credit for nothing", 1, func(x *stranger) []sent {
			return on(0, x.frame(header{typ: frameCredit, sequence: 1}, []byte{1, 0, 0, 0, 0, 0, 0, 0}))
		}, 0, "reports 1 bytes consumed"},
		{"second hello", 1, func(x *stranger) []sent {
			return on(0, x.frame(header{typ: frameHello, sequence: 1}, make([]byte, helloSize)))
		}, 0, "type 1 within a session"},
		{"truncated header", 1, func(x *stranger) []sent { return append(on(0, x.data(0, 0, "ok")[:17]), sent{-1, nil}) }, 0, "broke: "},
		{"truncated payload", 1, func(x *stranger) []sent {
			return append(on(0, x.data(0, 0, "ok"), x.data(0, 1, "xyz")[:headerSize+1]), sent{-1, nil})
		}, 1, "broke: "},
		{"end without farewell", 1, func(x *stranger) []sent { return append(on(0, x.data(0, 0, "ok")), sent{-1, nil}) }, 1, "broke: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x, s := infiltrate(t, cfg, tt.lanes)
			frames := tt.send(x)
			if tt.name == "replay on another connection" {
				frames[2] = sent{1, x.data(1, 0, "ok")}
			}
			for i, f := range frames {
				if f.lane < 0 {
					_ = x.conns[0].Close()
					continue
				}
				_ = x.conns[f.lane].SetWriteDeadline(time.Now().Add(patience))
				if _, err := x.conns[f.lane].Write(f.data); err != nil {
					break // the session has closed it already
				}
				if i < tt.good { // the good ones come first
					if m, err := s.Receive(testContext(t)); err != nil || string(m.Payload) != "ok" {
						t.Errorf("good message %d: %q, %v", i, m.Payload, err)
					}
				}
			}
			m, err := s.Receive(testContext(t))
			if err == nil {
				t.Fatalf("delivered: kind %d, %q", m.Kind, m.Payload)
			}
			wantError(t, err, tt.want)
			if tt.want != "broke: " && !errors.Is(err, ErrBadFrame) {
				t.Errorf("%v is not ErrBadFrame", err)
			}
			<-s.Done()
		})
	}
}

// A header survives its way through the wire format.
func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		payload := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "payload")
		want := header{
			typ: frameData, kind: rapid.Uint8().Draw(t, "kind"), lane: rapid.Uint16().Draw(t, "lane"),
			session: rapid.Uint64().Draw(t, "session"), sequence: rapid.Uint64().Draw(t, "sequence"),
		}
		frame := append(make([]byte, headerSize), payload...)
		seal(frame, want)
		got, err := parseHeader(frame[:headerSize], 100)
		if err != nil {
			t.Fatal(err)
		}
		if err := got.verify(frame[:headerSize], frame[headerSize:]); err != nil {
			t.Fatal(err)
		}
		want.length, want.checksum = uint32(len(payload)), got.checksum
		if got != want {
			t.Fatalf("%+v came back as %+v", want, got)
		}
		// Any other byte anywhere is found.
		at := rapid.IntRange(0, len(frame)-1).Draw(t, "at")
		frame[at] ^= rapid.ByteRange(1, 255).Draw(t, "flip")
		got, err = parseHeader(frame[:headerSize], 100)
		if err == nil && int(got.length) == len(payload) {
			err = got.verify(frame[:headerSize], frame[headerSize:])
		} else if err == nil {
			return // another length: the frame would end elsewhere
		}
		if !errors.Is(err, ErrBadFrame) {
			t.Fatalf("byte %d changed: %v", at, err)
		}
	})
}

// FuzzFrame feeds bytes to what reads the frames of a hello and of a message:
// no panic, and whatever is accepted is what would be written again.
func FuzzFrame(f *testing.F) {
	x := &stranger{id: sessionID{1}}
	f.Add(x.data(0, 0, "hello"))
	f.Add(x.frame(header{typ: framePing, sequence: 1}, make([]byte, controlSize)))
	f.Add(x.frame(header{typ: frameBye, lane: 3, sequence: 9}, nil))
	f.Add(x.frame(header{typ: frameRefuse}, []byte("no")))
	h := helloOf(DefaultConfig())
	h.lanes = 4
	f.Add(x.frame(header{typ: frameHello}, h.append(nil)))
	f.Add(changed(x.data(0, 0, "hello"), 24, 0xff, true))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var buf [headerSize + maxReason]byte
		if h, payload, err := readSmall(bytes.NewReader(in), &buf); err == nil {
			again := append(make([]byte, headerSize), payload...)
			seal(again, h)
			if !bytes.HasPrefix(in, again) {
				t.Errorf("%x was accepted as %x", in, again)
			}
			if h.typ == frameHello {
				if hi, err := parseHello(payload); err == nil && !bytes.Equal(hi.append(nil), payload) {
					t.Errorf("hello %x was accepted as %x", payload, hi.append(nil))
				}
			}
		}
		if len(in) < headerSize {
			return
		}
		if h, err := parseHeader(in[:headerSize], 1<<16); err == nil && h.length > 1<<16 {
			t.Errorf("a length of %d was accepted", h.length)
		}
		if h, err := parseHello(in[:helloSize]); err == nil && (h.lanes > maxLanes || h.window > maxWindow) {
			t.Errorf("hello %+v was accepted", h)
		}
	})
}
