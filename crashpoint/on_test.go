//go:build crashpoints

package crashpoint

import (
	"encoding/json"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestAPointStopsWhenItIsArmed has a test on one end and a process on the other.
func TestAPointStopsWhenItIsArmed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := Connect(path); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	orders, reports := json.NewEncoder(conn), json.NewDecoder(conn)
	for _, end := range []func() error{
		func() error { return orders.Encode(Order{Go: true}) },
		conn.Close,
	} {
		At(Captured) // not armed
		if err := orders.Encode(Order{Arm: Captured, Count: 2}); err != nil {
			t.Fatal(err)
		}
		for armed.look() != Captured {
			time.Sleep(time.Millisecond)
		}
		At(Sent)     // another
		At(Captured) // the first of two
		passed := make(chan struct{})
		go func() { At(Captured); close(passed) }()
		var r Report
		if err := reports.Decode(&r); err != nil || r.At != Captured {
			t.Fatalf("reported %+v, %v", r, err)
		}
		At(Captured) // it stops once
		select {
		case <-passed:
			t.Fatal("nobody said that it may go on")
		default:
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		<-passed
	}
}

func (t *trap) look() Point {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.point
}
