package drill

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

func TestChecksAreRun(t *testing.T) {
	for _, c := range []struct {
		name   string
		argv   []string
		limit  time.Duration
		status int
		says   string
		failed string
	}{
		{"well", []string{"/bin/sh", "-c", "echo well; echo too >&2"}, time.Minute, 0, "well\ntoo\n", ""},
		{"not well", []string{"/bin/sh", "-c", "echo bad; exit 3"}, time.Minute, 3, "bad\n", ""},
		{"no such command", []string{"/no/such/command"}, time.Minute, -1, "", "no such file"},
		{"no command", nil, time.Minute, -1, "", "no command"},
		{"killed", []string{"/bin/sh", "-c", "kill -9 $$"}, time.Minute, -1, "", "killed"},
		{"too slow, with a child that holds its output", []string{"/bin/sh", "-c", "echo begun; sleep 100 & sleep 100"}, 300 * time.Millisecond, -1, "begun\n", "its time was over"},
		{"what a terminal would obey", []string{"/bin/sh", "-c", `printf 'a\033[31mb\000c\377'`}, time.Minute, 0, "a [31mb c\uFFFD", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), c.limit)
			defer cancel()
			began := time.Now()
			got := RunCheck(ctx, c.argv)
			if got.Status != c.status || got.Output != c.says || !strings.Contains(got.Error, c.failed) || (c.failed == "") != (got.Error == "") {
				t.Errorf("got %+v", got)
			}
			if time.Since(began) > 30*time.Second {
				t.Error("it was waited for")
			}
		})
	}
}

func TestAnEndlessOutputIsCut(t *testing.T) {
	got := RunCheck(t.Context(), []string{"/bin/sh", "-c", "head -c 1000000 /dev/zero | tr '\\000' x"})
	if got.Status != 0 || len(got.Output) > MaxOutput || !strings.HasSuffix(got.Output, "bytes more") {
		t.Errorf("%d bytes, status %d, ends %q", len(got.Output), got.Status, got.Output[max(0, len(got.Output)-40):])
	}
}

func TestConnect(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := Connect(t.Context(), l.Addr().String()); err != nil {
		t.Error(err)
	}
	_ = l.Close()
	if err := Connect(t.Context(), l.Addr().String()); err == nil {
		t.Error("connected to nobody")
	}
}
