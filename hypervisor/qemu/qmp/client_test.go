package qmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The conversation of a pause, word by word.
func TestConversation(t *testing.T) {
	c, _ := talk(t, `
> {"execute":"stop","id":1}
< {"timestamp": {"seconds": 1700000000, "microseconds": 250000}, "event": "STOP"}
< {"return": {}, "id": 1}
> {"execute":"query-status","id":2}
< {"return": {"status": "paused", "running": false, "singlestep": false}, "id": 2}
> {"execute":"xen-save-devices-state","arguments":{"filename":"/nowhere/x","live":false},"id":3}
< {"id": 3, "error": {"class": "GenericError", "desc": "Failed to open '/nowhere/x'"}}
> {"execute":"cont","id":4}
< {"return": {}, "id": 4}
`)
	if v := c.Greeting().Version; v.QEMU.Major != 7 || v.QEMU.Micro != 22 || v.Package != "Debian" {
		t.Fatalf("greeting %+v", c.Greeting())
	}
	ctx := t.Context()
	must(t, c.Execute(ctx, "stop", nil, nil))
	e := <-c.Events()
	if e.Name != "STOP" || !e.Time.Equal(time.Unix(1700000000, 250e6)) || e.Lost != 0 || e.Data != nil {
		t.Fatalf("event %+v", e)
	}
	var status struct{ Status string }
	must(t, c.Execute(ctx, "query-status", nil, &status))
	if status.Status != "paused" {
		t.Fatalf("status %+v", status)
	}
	err := c.Execute(ctx, "xen-save-devices-state", map[string]any{"filename": "/nowhere/x", "live": false}, nil)
	var refused *Error
	if !errors.As(err, &refused) || *refused != (Error{"xen-save-devices-state", "GenericError", "Failed to open '/nowhere/x'"}) {
		t.Fatalf("got %v", err)
	}
	must(t, c.Execute(ctx, "cont", nil, nil)) // a refusal does not end the connection
	must(t, c.Close())
	if err := c.Execute(ctx, "cont", nil, nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v, want ErrClosed", err)
	}
	if _, open := <-c.Events(); open {
		t.Fatal("events go on after Close")
	}
}

// Two commands sent before the first reply: QEMU sees them in order.
func TestPipelining(t *testing.T) {
	c, _ := talk(t, `
> {"execute":"stop","id":1}
> {"execute":"query-status","id":2}
< {"return": {"status": "paused"}, "id": 2}
< {"return": {}, "id": 1}
`)
	stop, err := c.Send(t.Context(), "stop", nil)
	must(t, err)
	query, err := c.Send(t.Context(), "query-status", nil)
	must(t, err)
	must(t, stop.Wait(t.Context(), nil))
	var status struct{ Status string }
	must(t, query.Wait(t.Context(), &status))
	if status.Status != "paused" {
		t.Fatalf("status %+v", status)
	}
}

// echo answers every command with its own arguments, in bursts and backwards,
// until the connection ends.
func echo(t *testing.T, fake *fakeQEMU, burst int) {
	var held []string
	for {
		line, err := fake.in.ReadString('\n')
		if err != nil {
			return
		}
		_, rest, _ := strings.Cut(line, `"arguments":`)
		args, id, _ := strings.Cut(rest, `,"id":`)
		held = append(held, fmt.Sprintf(`{"event": "NOISE"}`+"\n"+`{"id": %s, "return": %s}`+"\n", strings.TrimRight(id, "}\n"), args))
		if len(held) < burst {
			continue
		}
		for i := range held {
			if _, err := io.WriteString(fake.conn, held[len(held)-1-i]); err != nil {
				t.Errorf("echo: %v", err)
				return
			}
		}
		held = nil
	}
}

// Many callers at once, replies in any order, events nobody reads: each gets
// its own answer.
func TestConcurrentCallers(t *testing.T) {
	const callers, calls = 8, 200
	conn, fake := pair(t)
	go func() {
		defer close(fake.ended)
		fake.perform(opening)
		echo(t, fake, callers)
	}()
	c, err := New(t.Context(), conn)
	must(t, err)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for j := range calls {
				want := fmt.Sprintf("%d/%d", i, j)
				var got struct{ X string }
				if err := c.Execute(t.Context(), "echo", map[string]string{"x": want}, &got); err != nil || got.X != want {
					t.Errorf("got %q, %v, want %q", got.X, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
	must(t, c.Close())
	<-fake.ended

	// The backlog holds the newest events and tells how many went before.
	var seen, lost uint64
	for e := range c.Events() {
		seen++
		lost += e.Lost
	}
	if seen != eventBacklog || seen+lost != callers*calls {
		t.Fatalf("%d events seen, %d lost, of %d", seen, lost, callers*calls)
	}
}

func TestSlowReaderKeepsTheNewestEvents(t *testing.T) {
	var script strings.Builder
	for i := range eventBacklog + 10 {
		fmt.Fprintf(&script, "< {\"event\": \"E%d\"}\n", i)
	}
	script.WriteString(`> {"execute":"query-status","id":1}` + "\n" + `< {"return": {}, "id": 1}` + "\n")
	c, _ := talk(t, script.String())
	must(t, c.Execute(t.Context(), "query-status", nil, nil)) // comes after all events
	must(t, c.Close())
	var names []string
	var lost uint64
	for e := range c.Events() {
		names = append(names, e.Name)
		lost += e.Lost
	}
	if len(names) != eventBacklog || names[0] != "E10" || names[len(names)-1] != fmt.Sprintf("E%d", eventBacklog+9) || lost != 10 {
		t.Fatalf("%d events from %s to %s, %d lost", len(names), names[0], names[len(names)-1], lost)
	}
}

// A caller that gives up does not disturb the next: the late reply is dropped.
func TestCancelledCallLeavesTheConnectionWhole(t *testing.T) {
	c, _ := talk(t, `
> {"execute":"migrate","id":1}
> {"execute":"query-status","id":2}
< {"return": {"late": true}, "id": 1}
< {"return": {"status": "running"}, "id": 2}
`)
	ctx, cancel := context.WithCancel(t.Context())
	call, err := c.Send(ctx, "migrate", nil)
	must(t, err)
	cancel()
	if err := call.Wait(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	var status struct{ Status string }
	must(t, c.Execute(t.Context(), "query-status", nil, &status))
	if status.Status != "running" {
		t.Fatalf("got %+v", status)
	}
	if err := c.Execute(ctx, "never", nil, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// A QEMU that stands still reads nothing; the socket fills up; the caller's
// context cuts the write. A line cut in its middle is the connection's end.
func TestHungQEMU(t *testing.T) {
	c, fake := talk(t, "")
	<-fake.ended
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := c.Execute(ctx, "big", map[string]string{"x": strings.Repeat("y", 4<<20)}, nil)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	<-c.Done()
	if err := c.Execute(t.Context(), "stop", nil, nil); err == nil {
		t.Fatal("a connection cut in the middle of a line goes on")
	}
}

func TestDialogueThatFails(t *testing.T) {
	cases := map[string]string{
		"no greeting":        `< {"event": "STOP"}`,
		"garbage":            "< \x00\xff hello",
		"second kind":        `< {"QMP": {}, "event": "X"}`,
		"refused":            "< " + hello + "\n" + `> {"execute":"qmp_capabilities","id":0}` + "\n" + `< {"id": 0, "error": {"class": "CommandNotFound", "desc": "no"}}`,
		"greeting twice":     "< " + hello + "\n< " + hello,
		"reply from nowhere": "< " + hello + "\n" + `< {"return": {}, "id": 7}`,
	}
	for name, script := range cases {
		t.Run(name, func(t *testing.T) {
			conn, fake := pair(t)
			fake.play(script)
			if c, err := New(t.Context(), conn); err == nil {
				_ = c.Close()
				t.Fatal("no error")
			} else {
				t.Log(err)
			}
			<-fake.ended
		})
	}
	t.Run("silence", func(t *testing.T) {
		conn, _ := pair(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := New(ctx, conn); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		if _, err := Dial(t.Context(), t.TempDir()+"/none"); err == nil {
			t.Fatal("no error")
		}
	})
}

// Whatever breaks the conversation ends it, with a reason for everyone who
// waits.
func TestBrokenConversation(t *testing.T) {
	cases := map[string]string{
		"not JSON":           `< {"return": `,
		"array":              `< [1, 2]`,
		"neither kind":       `< {"id": 1}`,
		"reply without id":   `< {"return": {}}`,
		"error without id":   `< {"error": {"class": "GenericError", "desc": "JSON parse error"}}`,
		"id as text":         `< {"return": {}, "id": "1"}`,
		"negative id":        `< {"return": {}, "id": -1}`,
		"null id":            `< {"return": {}, "id": null}`,
		"id never sent":      `< {"return": {}, "id": 2}`,
		"nameless event":     `< {"event": ""}`,
		"event of a number":  `< {"event": 1}`,
		"odd timestamp":      `< {"event": "X", "timestamp": []}`,
		"error without body": `< {"error": null, "id": 1}`,
		"greeting again":     "< " + hello,
	}
	for name, line := range cases {
		t.Run(name, func(t *testing.T) {
			c, _ := talk(t, `> {"execute":"stop","id":1}`+"\n"+line+"\n")
			err := c.Execute(t.Context(), "stop", nil, nil)
			if err == nil || c.Err() == nil {
				t.Fatalf("got %v, connection %v", err, c.Err())
			}
			var refused *Error
			if errors.As(err, &refused) {
				t.Fatalf("taken for a refusal: %v", err)
			}
			<-c.Done()
		})
	}
	t.Run("hang-up", func(t *testing.T) {
		c, fake := talk(t, `> {"execute":"stop","id":1}`+"\n")
		go func() {
			<-fake.ended
			_ = fake.conn.Close()
		}()
		if err := c.Execute(t.Context(), "stop", nil, nil); !errors.Is(err, io.EOF) {
			t.Fatalf("got %v, want EOF", err)
		}
	})
}

func TestResultOfAnotherShape(t *testing.T) {
	c, _ := talk(t, `
> {"execute":"a","id":1}
< {"return": "text", "id": 1}
> {"execute":"b","id":2}
< {"return": null, "id": 2}
`)
	var n int
	if err := c.Execute(t.Context(), "a", nil, &n); err == nil {
		t.Fatal("text was taken for a number")
	}
	must(t, c.Execute(t.Context(), "b", nil, nil))
	if err := c.Execute(t.Context(), "c", func() {}, nil); err == nil {
		t.Fatal("a function was sent")
	}
}

// The descriptor arrives with its command, and the sender keeps its own.
func TestExecuteWithFile(t *testing.T) {
	conn, fake := pair(t)
	got := make(chan string, 1)
	go func() {
		defer close(fake.ended)
		fake.perform(opening)
		buf, oob := make([]byte, 4096), make([]byte, 64)
		_, n, _, _, err := fake.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			t.Error(err)
			return
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(msgs) != 1 {
			t.Errorf("%d control messages: %v", len(msgs), err)
			return
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			t.Errorf("%d descriptors: %v", len(fds), err)
			return
		}
		f := os.NewFile(uintptr(fds[0]), "passed")
		text := make([]byte, 5)
		_, err = f.ReadAt(text, 0)
		if err != nil {
			t.Error(err)
		}
		_ = f.Close()
		got <- string(text)
		fake.perform(`< {"return": {}, "id": 1}` + "\n")
	}()
	c, err := New(t.Context(), conn)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	path := t.TempDir() + "/f"
	must(t, os.WriteFile(path, []byte("hello"), 0o600))
	f, err := os.Open(path)
	must(t, err)
	must(t, c.ExecuteWithFile(t.Context(), "getfd", map[string]string{"fdname": "x"}, f, nil))
	if text := <-got; text != "hello" {
		t.Fatalf("the other side read %q", text)
	}
	must(t, f.Close())
	if err := c.ExecuteWithFile(t.Context(), "getfd", nil, f, nil); err == nil {
		t.Fatal("a closed file was passed")
	}
}
