package qmp

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// startQEMU starts a real QEMU without a guest and connects to it.
func startQEMU(t testing.TB) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "understudy-qmp-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "qmp")
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-accel", "tcg", "-machine", "pc", "-m", "16M",
		"-display", "none", "-sandbox", "on", "-S", "-qmp", "unix:"+socket+",server=on,wait=off")
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		c, err := Dial(ctx, socket)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			return c
		}
		if ctx.Err() != nil {
			t.Fatalf("QEMU does not answer: %v", err)
		}
		time.Sleep(time.Millisecond) // until the socket is there
	}
}

func TestQEMU(t *testing.T) {
	c := startQEMU(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if c.Greeting().Version.QEMU.Major < 7 {
		t.Fatalf("greeting %+v", c.Greeting())
	}
	var status struct {
		Status  string
		Running bool
	}
	must(t, c.Execute(ctx, "query-status", nil, &status))
	if status.Status != "prelaunch" || status.Running {
		t.Fatalf("status %+v", status)
	}
	must(t, c.Execute(ctx, "cont", nil, nil))
	must(t, c.Execute(ctx, "stop", nil, nil))
	for _, want := range []string{"RESUME", "STOP"} {
		if e := <-c.Events(); e.Name != want || e.Time.IsZero() {
			t.Fatalf("event %+v, want %s", e, want)
		}
	}
	var schema []any // the longest reply there is
	must(t, c.Execute(ctx, "query-qmp-schema", nil, &schema))
	if len(schema) < 100 {
		t.Fatalf("schema of %d entries", len(schema))
	}

	f, err := os.OpenFile(t.TempDir()+"/state", os.O_CREATE|os.O_WRONLY, 0o600) // QEMU insists on write-only
	must(t, err)
	defer func() { _ = f.Close() }()
	var set struct{ FD int }
	must(t, c.ExecuteWithFile(ctx, "add-fd", map[string]any{"fdset-id": 1}, f, &set))
	must(t, c.Execute(ctx, "xen-save-devices-state", map[string]any{"filename": "/dev/fdset/1", "live": false}, nil))
	info, err := f.Stat()
	must(t, err)
	if info.Size() == 0 {
		t.Fatal("no device state came through the passed descriptor")
	}
	must(t, c.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": "x"}, f, nil))
	must(t, c.Execute(ctx, "closefd", map[string]any{"fdname": "x"}, nil))

	var refused *Error
	if err := c.Execute(ctx, "no-such-command", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Fatalf("got %v", err)
	}
	must(t, c.Execute(ctx, "quit", nil, nil))
	<-c.Done()
}

// What the protocol and our client add to every step of a pause.
func BenchmarkRoundTrip(b *testing.B) {
	c := startQEMU(b)
	b.ReportAllocs()
	for b.Loop() {
		must(b, c.Execute(b.Context(), "query-status", nil, nil))
	}
}

// stop and cont on a machine that runs its firmware.
func BenchmarkStopCont(b *testing.B) {
	c := startQEMU(b)
	for b.Loop() {
		must(b, c.Execute(b.Context(), "cont", nil, nil))
		must(b, c.Execute(b.Context(), "stop", nil, nil))
	}
}
