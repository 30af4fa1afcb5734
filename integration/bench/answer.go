package main

// When does a guest answer? A client that does not know when it will: it opens a
// connection to the control port, and another one every few milliseconds, each
// with a request of its own, until one of them is answered.

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"understudy/lab"
)

const (
	askEvery = 20 * time.Millisecond // a new connection
	askFor   = 3 * time.Second       // each may take
)

// firstAnswer returns when a guest has answered on address, from begin on.
func firstAnswer(ctx context.Context, from *lab.Host, address string, begin time.Time) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan time.Time)
	asking := make(chan struct{})
	dial := func(ctx context.Context) (net.Conn, error) { return from.Dial(ctx, "tcp", address) }
	go func() { // ends with ctx
		defer close(asking)
		askOften(ctx, dial, answers)
	}()
	var at time.Time
	var err error
	select {
	case at = <-answers:
	case <-ctx.Done():
		err = fmt.Errorf("the guest at %s does not answer: %w", address, ctx.Err())
	}
	cancel()
	<-asking
	return at.Sub(begin), err
}

// askOften asks until ctx ends, and returns after every question has ended.
func askOften(ctx context.Context, dial func(context.Context) (net.Conn, error), answers chan<- time.Time) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	open := 0
	ended := make(chan struct{})
	for ctx.Err() == nil {
		open++
		go func() { // ends with ctx, or by itself
			if ask(ctx, dial) == nil {
				select {
				case answers <- time.Now():
				case <-ctx.Done():
				}
			}
			ended <- struct{}{}
		}()
		for waiting := true; waiting; {
			select {
			case <-ended:
				open--
			case <-tick.C:
				waiting = false
			case <-ctx.Done():
				waiting = false
			}
		}
	}
	for ; open > 0; open-- {
		<-ended
	}
}

// ask asks the guest for its boot id.
func ask(ctx context.Context, dial func(context.Context) (net.Conn, error)) error {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, "boot\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "boot ") {
		err = fmt.Errorf("the guest says %q", line)
	}
	return err
}
