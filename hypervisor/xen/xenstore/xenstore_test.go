package xenstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon plays xenstored for one connection: a map, one transaction at a time
// that is refused once, and events on what is written below a watched path.
type daemon struct {
	conn    net.Conn
	values  map[string]string
	perms   map[string]string
	watches map[string]string // token to path
	again   int               // how many transactions are to be refused
	before  map[string]string // what was when the transaction began
	resumed string
	ended   chan struct{}
}

func start(t *testing.T) (*daemon, *Client) {
	here, there := net.Pipe()
	d := &daemon{conn: there, values: map[string]string{}, perms: map[string]string{}, watches: map[string]string{}, ended: make(chan struct{})}
	go d.serve()
	c := NewClient(here)
	t.Cleanup(func() {
		_ = c.Close()
		<-d.ended
	})
	return d, c
}

func (d *daemon) serve() {
	defer close(d.ended)
	defer func() { _ = d.conn.Close() }()
	for {
		m, err := readMessage(d.conn)
		if err != nil {
			return
		}
		reply, events := d.handle(m)
		reply.id, reply.tx = m.id, m.tx
		if _, err := d.conn.Write(reply.append(nil)); err != nil {
			return
		}
		for _, e := range events {
			if _, err := d.conn.Write(e.append(nil)); err != nil {
				return
			}
		}
	}
}

func (d *daemon) handle(m message) (reply message, events []message) {
	parts := strings.Split(string(m.payload), "\x00")
	ok := message{op: m.op, payload: []byte("OK\x00")}
	refuse := func(word string) message { return message{op: opError, payload: []byte(word + "\x00")} }
	event := func(at, token string) message {
		return message{op: opWatchEvent, payload: []byte(at + "\x00" + token + "\x00")}
	}
	at := parts[0]
	switch m.op {
	case opRead:
		v, there := d.values[at]
		if !there {
			return refuse("ENOENT"), nil
		}
		return message{op: m.op, payload: []byte(v)}, nil
	case opWrite:
		d.values[at] = strings.Join(parts[1:], "\x00")
		for token, p := range d.watches {
			if at == p || strings.HasPrefix(at, p+"/") {
				events = append(events, event(at, token))
			}
		}
		return ok, events
	case opRemove:
		if _, there := d.values[at]; !there {
			return refuse("ENOENT"), nil
		}
		maps.DeleteFunc(d.values, func(p, _ string) bool { return p == at || strings.HasPrefix(p, at+"/") })
		return ok, nil
	case opDirectory:
		var names []string
		for p := range d.values {
			if path.Dir(p) == at {
				names = append(names, path.Base(p)+"\x00")
			}
		}
		slices.Sort(names)
		return message{op: m.op, payload: []byte(strings.Join(names, ""))}, nil
	case opSetPerms:
		d.perms[at] = strings.Join(parts[1:len(parts)-1], " ")
		return ok, nil
	case opWatch:
		d.watches[parts[1]] = at
		return ok, []message{event(at, parts[1])}
	case opUnwatch:
		delete(d.watches, parts[1])
		return ok, nil
	case opTransactionStart:
		d.before = maps.Clone(d.values)
		return message{op: m.op, payload: []byte("7\x00")}, nil
	case opTransactionEnd:
		if m.tx != 7 {
			return refuse("ENOENT"), nil
		}
		if at == "F" || d.again > 0 {
			d.values = d.before
			if at == "T" {
				d.again--
				return refuse("EAGAIN"), nil
			}
		}
		return ok, nil
	case opResume:
		d.resumed = at
		return ok, nil
	}
	return refuse("ENOSYS"), nil
}

func TestReadsAndWrites(t *testing.T) {
	d, c := start(t)
	ctx := t.Context()
	const at = "/local/domain/3/device/vbd/51712"
	if _, err := c.Read(ctx, 0, at); !errors.Is(err, syscall.ENOENT) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading nothing: %v", err)
	}
	for _, err := range []error{
		c.Write(ctx, 0, at, "with\x00zero"), c.Write(ctx, 0, at+"/state", "3"), c.Write(ctx, 0, at+"/ring-ref", "8"),
		c.Permit(ctx, 0, at, "n0", "r3"), c.Resumed(ctx, 3),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if v, err := c.Read(ctx, 0, at); v != "with\x00zero" || err != nil {
		t.Errorf("read %q, %v", v, err)
	}
	if names, err := c.List(ctx, 0, at); !slices.Equal(names, []string{"ring-ref", "state"}) || err != nil {
		t.Errorf("below are %q, %v", names, err)
	}
	if names, err := c.List(ctx, 0, "/nothing"); len(names) != 0 || err != nil {
		t.Errorf("below nothing are %q, %v", names, err)
	}
	for range 2 { // the second time there is nothing
		if err := c.Remove(ctx, 0, at); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.values) != 0 || d.perms[at] != "n0 r3" || d.resumed != "3" {
		t.Errorf("left are %q, permissions %q, resumed %q", d.values, d.perms, d.resumed)
	}
	for _, path := range []string{"", "a\x00b", strings.Repeat("/a", maxPath)} {
		if _, err := c.Read(ctx, 0, path); err == nil {
			t.Errorf("%.20q is a path", path)
		}
	}
	if err := c.Write(ctx, 0, at, strings.Repeat("v", maxPayload)); err == nil {
		t.Error("a value that ends the connection is sent")
	}
	if _, err := c.Read(ctx, 0, at); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestTransactions(t *testing.T) {
	d, c := start(t)
	ctx := t.Context()
	d.again = 2
	tried := 0
	err := c.Transact(ctx, func(tx Tx) error {
		tried++
		return c.Write(ctx, tx, "/a", fmt.Sprint(tried))
	})
	if err != nil || tried != 3 || d.values["/a"] != "3" {
		t.Errorf("tried %d times, %q, %v", tried, d.values, err)
	}
	wrong := errors.New("wrong")
	err = c.Transact(ctx, func(tx Tx) error { return errors.Join(c.Write(ctx, tx, "/a", "4"), wrong) })
	if !errors.Is(err, wrong) || d.values["/a"] != "3" {
		t.Errorf("%q, %v", d.values, err)
	}
	d.again = attempts
	if err := c.Transact(ctx, func(Tx) error { return nil }); err == nil || !strings.Contains(err.Error(), "64 times") {
		t.Errorf("a transaction without an end: %v", err)
	}
}

// A watch tells at once, and then of each change or of several in one; it never
// holds the connection up.
func TestWatches(t *testing.T) {
	d, c := start(t)
	ctx := t.Context()
	w, err := c.Watch(ctx, "/backend")
	if err != nil {
		t.Fatal(err)
	}
	<-w.Changed
	for range 5 {
		if err := c.Write(ctx, 0, "/backend/state", "4"); err != nil {
			t.Fatal(err)
		}
	}
	<-w.Changed
	if err := w.End(ctx); err != nil {
		t.Fatal(err)
	}
	if len(d.watches) != 0 {
		t.Errorf("left are %q", d.watches)
	}
	if w, err = c.Watch(ctx, "/other"); err != nil {
		t.Fatal(err)
	}
	<-w.Changed
	_ = c.Close()
	if _, open := <-w.Changed; open {
		t.Error("a watch outlives its connection")
	}
	if _, err := c.Watch(ctx, "/other"); err == nil {
		t.Error("a watch without a connection")
	}
}

// What breaks the connection ends every call, with the reason.
func TestABrokenConnection(t *testing.T) {
	for name, send := range map[string][]byte{
		"a long payload":     binaryMessage(opRead, 1, maxPayload+1, nil),
		"nobody's reply":     binaryMessage(opRead, 99, 0, nil),
		"an event of none":   binaryMessage(opWatchEvent, 0, 2, []byte("a\x00")),
		"another's reply":    binaryMessage(opWrite, 1, 0, nil),
		"half a message":     binaryMessage(opRead, 1, 5, []byte("a")),
		"half a header":      {1, 2, 3},
		"nothing any more":   {},
		"a transaction of 0": binaryMessage(opTransactionStart, 1, 2, []byte("0\x00")),
	} {
		t.Run(name, func(t *testing.T) {
			here, there := net.Pipe()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = readMessage(there)
				_, _ = there.Write(send)
				_ = there.Close()
			}()
			c := NewClient(here)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			var err error
			if strings.HasSuffix(name, "of 0") {
				err = c.Transact(ctx, func(Tx) error { return nil })
			} else {
				_, err = c.Read(ctx, 0, "/a")
			}
			if err == nil || ctx.Err() != nil {
				t.Errorf("error %v", err)
			}
			_, again := c.Read(ctx, 0, "/a")
			if again == nil {
				t.Error("the connection is still of use")
			}
			_ = c.Close()
			<-ended
		})
	}
}

// A caller that gives up does not disturb the next.
func TestACallerThatGivesUp(t *testing.T) {
	here, there := net.Pipe()
	proceed, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		first, _ := readMessage(there)
		<-proceed
		_, _ = there.Write(message{op: opRead, id: first.id, payload: []byte("late")}.append(nil))
		second, _ := readMessage(there)
		_, _ = there.Write(message{op: opRead, id: second.id, payload: []byte("right")}.append(nil))
	}()
	c := NewClient(here)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Read(ctx, 0, "/a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	close(proceed)
	if v, err := c.Read(t.Context(), 0, "/a"); v != "right" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	_ = c.Close()
	<-ended
}

func binaryMessage(o op, id, length uint32, payload []byte) []byte {
	b := message{op: o, id: id}.append(nil)
	b[12], b[13] = byte(length), byte(length>>8)
	return append(b, payload...)
}

func FuzzMessage(f *testing.F) {
	f.Add(message{op: opRead, id: 1, payload: []byte("/a\x00")}.append(nil))
	f.Add(binaryMessage(opWatchEvent, 0, 8, []byte("/a\x00tok\x00")))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bytes.NewReader(b))
		if err != nil {
			if errors.Is(err, io.EOF) && len(b) > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%d bytes end without a message", len(b))
			}
			return
		}
		if got := m.append(nil); !bytes.Equal(got, b[:len(got)]) {
			t.Fatalf("%x, written %x", b, got)
		}
		_ = split(m.payload)
	})
}
