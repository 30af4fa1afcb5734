package qmp

import (
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

func TestLines(t *testing.T) {
	long := strings.Repeat("x", 200<<10) // beyond the buffer
	lines := newLineReader(iotest.OneByteReader(strings.NewReader("a\r\n\r\nbc\n"+long+"\nlast")), 1<<20)
	for _, want := range []string{"a", "", "bc", long} {
		got, err := lines.next()
		must(t, err)
		if string(got) != want {
			t.Fatalf("%d bytes %.20q, want %d bytes %.20q", len(got), got, len(want), want)
		}
	}
	if _, err := lines.next(); err != io.ErrUnexpectedEOF {
		t.Fatalf("got %v for a line cut short", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '['
	}
	return len(p), nil
}

// A line without end is refused at the limit, not when memory is gone.
func TestEndlessLine(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := newLineReader(endless{}, 1<<20).next()
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Fatalf("got %v", err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
		t.Fatalf("%d bytes were allocated for a line limited to 1 MiB", used)
	}
}

func FuzzParse(f *testing.F) {
	for _, line := range []string{
		hello,
		`{"return": {}, "id": 1}`,
		`{"id": 3, "error": {"class": "GenericError", "desc": "no"}}`,
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP", "data": {"a": [1]}}`,
		`{"event": "X", "timestamp": {"seconds": -1, "microseconds": -1}}`,
		`{"RETURN": 1, "id": 18446744073709551616}`,
		strings.Repeat("[", 20000),
		`null`, ``, `{}`,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parse(line)
		kinds := 0
		for _, there := range []bool{m.greeting != nil, m.event != nil, m.reply != nil} {
			if there {
				kinds++
			}
		}
		if err == nil && kinds != 1 || err != nil && kinds != 0 {
			t.Fatalf("%d kinds of message and error %v", kinds, err)
		}
		if m.event != nil && m.event.Name == "" {
			t.Fatal("nameless event")
		}
		if m.reply != nil && m.reply.refused == nil && m.reply.result == nil {
			t.Fatal("reply with nothing in it")
		}
	})
}
