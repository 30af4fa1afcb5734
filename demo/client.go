package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"understudy/guest/client"
)

// connection is the client's view of the guest: lines that come in order.
type connection interface {
	last() line
	// after returns the first line that came after t.
	after(t time.Time) (line, bool)
	// wait waits for line n.
	wait(ctx context.Context, n uint64, limit time.Duration) error
	// err is the first breach: a line lost, repeated or taken back, or the
	// connection reset.
	err() error
	close()
}

// line is one line and when it came.
type line struct {
	number uint64
	at     time.Time
}

// record collects lines; it is the common part of both clients.
type record struct {
	mu     sync.Mutex
	lines  []line
	fault  error
	change chan struct{} // closed and replaced at each line
}

func newRecord() *record { return &record{change: make(chan struct{})} }

func (r *record) add(n uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		if r.fault == nil {
			r.fault = err
		}
	} else {
		r.lines = append(r.lines, line{n, time.Now()})
	}
	close(r.change)
	r.change = make(chan struct{})
}

func (r *record) last() line {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) == 0 {
		return line{}
	}
	return r.lines[len(r.lines)-1]
}

func (r *record) after(t time.Time) (line, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.lines) - 1; i >= 0; i-- {
		if !r.lines[i].at.After(t) {
			if i+1 == len(r.lines) {
				return line{}, false
			}
			return r.lines[i+1], true
		}
	}
	return line{}, false
}

func (r *record) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault
}

func (r *record) wait(ctx context.Context, n uint64, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		r.mu.Lock()
		change, fault, now := r.change, r.fault, uint64(0)
		if len(r.lines) > 0 {
			now = r.lines[len(r.lines)-1].number
		}
		r.mu.Unlock()
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

// tcpClient reads the counter service of the real guest.
type tcpClient struct {
	*record
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// lineEvery is how often the guest says a line.
const lineEvery = 5 * time.Millisecond

func newTCPClient(ctx context.Context, conn net.Conn) (*tcpClient, error) {
	stream, err := client.OpenStream(ctx, conn, lineEvery)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &tcpClient{record: newRecord(), cancel: cancel}
	c.done.Go(func() {
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
	return c, nil
}

func (c *tcpClient) close() {
	c.cancel()
	c.done.Wait()
}
