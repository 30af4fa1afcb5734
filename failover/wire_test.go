package failover

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"time"

	"understudy/epoch"
	"understudy/ownership"
)

func takeoverRequest() request {
	return request{Timeout: time.Second, Session: session{Number: 3, Nonce: 9}, Command: &ownership.Command{
		ID: ownership.CommandID{1}, Guest: guest, Kind: ownership.Takeover, Host: hostB, Generation: 4, Revision: 5,
		Backup: ownership.Backup{Host: hostB, Image: epoch.Incarnation{7}, Epoch: 8}}}
}

func mustFrame(t testing.TB, k kind, id uint64, body any) []byte {
	b, err := encodeFrame(k, id, body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFramesRoundTrip(t *testing.T) {
	var b bytes.Buffer
	b.Write(mustFrame(t, kindPropose, 42, takeoverRequest()))
	b.Write(mustFrame(t, kindCancel, 42, nil))
	b.Write(mustFrame(t, kindAnswer, 42, answer{Code: codeOK, Lease: time.Second, State: ownership.Guest{Generation: 4}}))

	f, err := readFrame(&b)
	if err != nil {
		t.Fatal(err)
	}
	req, err := decodeRequest(f)
	if err != nil || f.id != 42 || *req.Command != *takeoverRequest().Command || req.Session != takeoverRequest().Session {
		t.Fatalf("request %+v, %v", req, err)
	}
	if f, err = readFrame(&b); err != nil || f.kind != kindCancel || len(f.body) != 0 {
		t.Fatalf("cancel %+v, %v", f, err)
	}
	if f, err = readFrame(&b); err != nil {
		t.Fatal(err)
	}
	if a, err := decodeAnswer(f); err != nil || a.Lease != time.Second || a.State.Generation != 4 {
		t.Fatalf("answer %+v, %v", a, err)
	}
	if _, err := readFrame(&b); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
}

// Guarantee 8: each bound has an error that names it, before anything is
// allocated by what the peer says.
func TestHostileFrames(t *testing.T) {
	frameOf := func(k kind, body string) []byte {
		b := make([]byte, frameHead, frameHead+len(body))
		binary.BigEndian.PutUint32(b, uint32(frameHead-4+len(body)))
		b[4], b[5] = wireVersion, byte(k)
		return append(b, body...)
	}
	for name, tc := range map[string]struct {
		bytes []byte
		want  string
	}{
		"too long":          {[]byte{0, 1, 0, 1}, "65537 bytes"},
		"huge":              {[]byte{0xff, 0xff, 0xff, 0xff}, "4294967295 bytes"},
		"too short":         {[]byte{0, 0, 0, 9}, "9 bytes"},
		"torn head":         {[]byte{0, 0, 0, 20, 1}, "unexpected EOF"},
		"torn body":         {frameOf(kindRead, `{"guest":"web"`)[:20], "unexpected EOF"},
		"another version":   {[]byte{0, 0, 0, 10, 7, 1, 0, 0, 0, 0, 0, 0, 0, 1}, "version 7"},
		"unknown kind":      {frameOf(99, `{"timeout":1}`), "unknown kind"},
		"unknown field":     {frameOf(kindRead, `{"timeout":1,"guest":"web","x":1}`), "unknown field"},
		"trailing bytes":    {frameOf(kindRead, `{"timeout":1,"guest":"web"}{}`), "after the end"},
		"no guest":          {frameOf(kindRead, `{"timeout":1}`), "guest name of 0 bytes"},
		"long guest":        {frameOf(kindRenew, `{"timeout":1,"guest":"`+strings.Repeat("x", 129)+`"}`), "129 bytes"},
		"no timeout":        {frameOf(kindRead, `{"guest":"web"}`), "timeout 0s"},
		"endless timeout":   {frameOf(kindRead, `{"timeout":9000000000000000000,"guest":"web"}`), "not between"},
		"no command":        {frameOf(kindPropose, `{"timeout":1}`), "without a command"},
		"lease out of line": {frameOf(kindLease, `{"timeout":1,"lease":1}`), "lease 1ns"},
		"not JSON":          {frameOf(kindRead, "\x00\x01"), "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := readFrame(bytes.NewReader(tc.bytes))
			if err == nil {
				_, err = decodeRequest(f)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v, want %q", err, tc.want)
			}
		})
	}
	if _, err := encodeFrame(kindRead, 1, request{Guest: strings.Repeat("x", MaxFrame)}); err == nil {
		t.Error("a frame too long was encoded")
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(mustFrame(f, kindPropose, 1, takeoverRequest()))
	f.Add(mustFrame(f, kindRenew, 2, request{Timeout: 1, Guest: guest, Generation: 3}))
	f.Add(mustFrame(f, kindAnswer, 3, answer{Code: codeRefused, Text: "no", Leader: witness}))
	f.Add(mustFrame(f, kindCancel, 4, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		fr, err := readFrame(r)
		if err != nil {
			return
		}
		if len(fr.body) > MaxFrame {
			t.Fatalf("a body of %d bytes", len(fr.body))
		}
		if req, err := decodeRequest(fr); err == nil {
			again, err := readFrame(bytes.NewReader(mustFrame(t, fr.kind, fr.id, req)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := decodeRequest(again); err != nil {
				t.Fatalf("what was accepted is refused when sent again: %v", err)
			}
		}
		_, _ = decodeAnswer(fr) // must not panic
	})
}

func FuzzEntry(f *testing.F) {
	for _, e := range []entry{
		{Kind: entryCommand, Command: takeoverRequest().Command, Session: session{1, 2}},
		{Kind: entrySession, Guest: guest, Host: hostA, From: session{1, 2}, Session: session{2, 3}},
		{Kind: entryLease, Lease: time.Second, Revision: 1},
	} {
		b, err := encodeEntry(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[5:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m := newFSM(func(error) {})
		_ = m.Apply(logOf(sealEntry(body))) // a right checksum gets past it
	})
}

func FuzzSnapshot(f *testing.F) {
	m := scripted(f)
	s, err := m.Snapshot()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(s.(frozen))[16:])
	f.Fuzz(func(t *testing.T, body []byte) {
		back := newFSM(func(error) {})
		if err := back.Restore(io.NopCloser(bytes.NewReader(sealSnapshot(body)))); err != nil {
			if len(back.guests) > 0 {
				t.Fatal("a refused snapshot left something behind")
			}
			return
		}
		if _, err := back.Snapshot(); err != nil {
			t.Fatal(err)
		}
	})
}
