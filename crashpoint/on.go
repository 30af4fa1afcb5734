//go:build crashpoints

package crashpoint

// This file is what a daemon built for tests does at a point. The test listens
// on a Unix socket and the daemon connects to it; both send lines of JSON:
//
//	test → daemon   {"arm":"captured","count":3}   stop when it is reached the third time
//	daemon → test   {"at":"captured"}              it has been, and stands still
//	test → daemon   {"go":true}                    go on, and stop nowhere
//
// A test that has gone lets everything go on.

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"sync"
)

// Order is what a test sends.
type Order struct {
	Arm   Point `json:"arm,omitempty"`
	Count int   `json:"count,omitempty"`
	Go    bool  `json:"go,omitempty"`
}

// Report is what a daemon sends.
type Report struct {
	At Point `json:"at"`
}

// trap is this process's one armed point. It cannot be handed down to all those
// who call At without their having a part in it when nobody tests.
type trap struct {
	mu    sync.Mutex
	point Point
	left  int
	open  chan struct{} // closed when who stands still may go on
	tell  func(Report)
}

var armed trap

// Connect obeys the test that listens on a socket, until it goes away.
func Connect(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return fmt.Errorf("connect to the test: %w", err)
	}
	reports := json.NewEncoder(conn)
	armed.mu.Lock()
	armed.tell = func(r Report) { _ = reports.Encode(r) } // a test that has gone is noticed below
	armed.mu.Unlock()
	go func() { // for as long as the process lives, or the test
		defer armed.set("", 0)
		defer func() { _ = conn.Close() }()
		for orders := json.NewDecoder(conn); ; {
			var o Order
			if orders.Decode(&o) != nil || !o.Go && !slices.Contains(All(), o.Arm) {
				return
			}
			armed.set(o.Arm, max(o.Count, 1))
		}
	}()
	return nil
}

// set arms a point, "" for none, and lets go who stands still.
func (t *trap) set(p Point, count int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.point, t.left = p, count
	if t.open != nil {
		close(t.open)
		t.open = nil
	}
}

// At stops here if a test has asked for it.
func At(p Point) {
	armed.mu.Lock()
	if p == "" || armed.point != p {
		armed.mu.Unlock()
		return
	}
	if armed.left--; armed.left > 0 {
		armed.mu.Unlock()
		return
	}
	armed.point = ""
	open := make(chan struct{})
	armed.open = open
	armed.tell(Report{At: p})
	armed.mu.Unlock()
	<-open
}
