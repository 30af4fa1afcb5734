package main

// This file is the other end of package crashpoint: one socket for each host,
// to which its daemon connects, and connects anew after each start.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"understudy/crashpoint"
)

// order and report are what goes over the socket; see package crashpoint.
type order struct {
	Arm   crashpoint.Point `json:"arm,omitempty"`
	Count int              `json:"count,omitempty"`
	Go    bool             `json:"go,omitempty"`
}

type report struct {
	At crashpoint.Point `json:"at"`
}

// control is the hosts' sockets.
type control struct {
	dir     string
	hosts   map[string]*controlled
	workers sync.WaitGroup
}

type controlled struct {
	listener net.Listener
	reached  chan crashpoint.Point

	mu    sync.Mutex
	conn  net.Conn
	armed order // for a daemon that is not there yet
}

func newControl(dir string, hosts ...string) (*control, error) {
	c := &control{dir: dir, hosts: map[string]*controlled{}}
	for _, name := range hosts {
		l, err := net.Listen("unix", c.socket(name))
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		h := &controlled{listener: l, reached: make(chan crashpoint.Point, 16)}
		c.hosts[name] = h
		c.workers.Go(func() { h.accept(&c.workers) })
	}
	return c, nil
}

func (c *control) socket(host string) string { return filepath.Join(c.dir, "control."+host) }

// accept takes one daemon after the other, until the listener is closed.
func (h *controlled) accept(workers *sync.WaitGroup) {
	for {
		conn, err := h.listener.Accept()
		if err != nil {
			return
		}
		h.mu.Lock()
		if h.conn != nil {
			_ = h.conn.Close()
		}
		h.conn = conn
		if h.armed.Arm != "" {
			_ = json.NewEncoder(conn).Encode(h.armed) // or it is gone again
		}
		h.mu.Unlock()
		workers.Go(func() {
			for in := json.NewDecoder(conn); ; {
				var r report
				if in.Decode(&r) != nil {
					return
				}
				h.reached <- r.At
			}
		})
	}
}

func (h *controlled) send(o order) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.armed = o
	if h.conn == nil {
		return nil
	}
	return json.NewEncoder(h.conn).Encode(o)
}

// arm has a host's daemon, or the next one there, stop at a point.
func (c *control) arm(host string, p crashpoint.Point, count int) {
	h := c.hosts[host]
	for len(h.reached) > 0 {
		<-h.reached
	}
	_ = h.send(order{Arm: p, Count: count}) // a daemon that is dead is told when it is back
}

// release lets it go on. A daemon that is dead needs no telling.
func (c *control) release(host string) { _ = c.hosts[host].send(order{Go: true}) }

// wait waits until a host's daemon stands still at its point.
func (c *control) wait(ctx context.Context, host string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-c.hosts[host].reached:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the point was not reached on host %s within %v", host, limit)
	}
}

func (c *control) close() error {
	var errs []error
	for _, h := range c.hosts {
		errs = append(errs, h.listener.Close())
		h.mu.Lock()
		if h.conn != nil {
			_ = h.conn.Close()
		}
		h.mu.Unlock()
	}
	c.workers.Wait()
	return errors.Join(errs...)
}
