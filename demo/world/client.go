package world

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"understudy/guest/client"
)

// Client holds one connection to a guest, whose lines come in order, and keeps
// when each came.
type Client struct {
	mu     sync.Mutex
	lines  []Line
	fault  error
	change chan struct{} // closed and replaced at each line

	stop func()
}

// Line is one line and when it came.
type Line struct {
	Number uint64
	At     time.Time
}

// LineEvery is how often a guest under QEMU says a line.
const LineEvery = 5 * time.Millisecond

func newClient() *Client { return &Client{change: make(chan struct{}), stop: func() {}} }

// add notes a line, or the first breach.
func (c *Client) add(n uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.lines = append(c.lines, Line{n, time.Now()})
	case c.fault == nil:
		c.fault = err
	}
	close(c.change)
	c.change = make(chan struct{})
}

// Last is the newest line.
func (c *Client) Last() Line {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.lines) == 0 {
		return Line{}
	}
	return c.lines[len(c.lines)-1]
}

// Outage finds the longest silence since t; it began at the line before it, or
// at t if that came earlier, and ended with the line returned.
func (c *Client) Outage(since time.Time) (time.Duration, Line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := len(c.lines)
	for first > 0 && c.lines[first-1].At.After(since) {
		first--
	}
	longest, end := time.Duration(0), Line{}
	before := since
	for _, l := range c.lines[first:] {
		if d := l.At.Sub(before); d > longest {
			longest, end = d, l
		}
		before = l.At
	}
	return longest, end
}

// Err is the first breach: a line lost, repeated or taken back, or the
// connection reset.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

// Wait waits for line n.
func (c *Client) Wait(ctx context.Context, n uint64, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		c.mu.Lock()
		change, fault, now := c.change, c.fault, uint64(0)
		if len(c.lines) > 0 {
			now = c.lines[len(c.lines)-1].Number
		}
		c.mu.Unlock()
		switch {
		case fault != nil:
			return fault
		case now >= n:
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return fmt.Errorf("line %d did not come within %v, the last was %d", n, limit, now)
		}
	}
}

// More waits for n more lines than there are.
func (c *Client) More(ctx context.Context, n uint64, limit time.Duration) error {
	return c.Wait(ctx, c.Last().Number+n, limit)
}

// Close ends the connection.
func (c *Client) Close() { c.stop() }

// Follow reads the counter service of a guest under QEMU over conn, which it closes
// in the end.
func Follow(ctx context.Context, conn net.Conn) (*Client, error) {
	stream, err := client.OpenStream(ctx, conn, LineEvery)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := newClient()
	var done sync.WaitGroup
	done.Go(func() {
		defer func() { _ = stream.Close() }()
		for {
			n, err := stream.Next(ctx)
			if errors.Is(err, context.Canceled) {
				return
			}
			c.add(n, err)
			if err != nil {
				return
			}
		}
	})
	c.stop = func() { cancel(); done.Wait() }
	return c, nil
}
