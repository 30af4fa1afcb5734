package service

// The services that are a stream of bytes: counter, echo, source and sink.

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"time"
)

// counter returns the handler of the counter service.
func counter(bootID string) func(context.Context, *conn) error {
	return func(ctx context.Context, c *conn) error {
		words, err := c.request()
		if err != nil {
			return err
		}
		if len(words) != 2 || words[0] != "stream" {
			return c.refuse(fmt.Errorf("want: stream <interval>"))
		}
		every, err := duration("interval", words[1], time.Millisecond, time.Minute)
		if err != nil {
			return c.refuse(err)
		}
		if _, err := fmt.Fprintf(c, "boot %s\n", bootID); err != nil {
			return err
		}
		tick := time.NewTicker(every)
		defer tick.Stop()
		line := make([]byte, 0, 24)
		for n := uint64(1); ; n++ {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
			line = append(strconv.AppendUint(line[:0], n, 10), '\n')
			if _, err := c.Write(line); err != nil {
				return err
			}
		}
	}
}

// echo sends back what it reads.
func echo(_ context.Context, c *conn) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := c.r.Read(buf)
		if _, werr := c.Write(buf[:n]); werr != nil {
			return werr
		}
		if err != nil {
			return err
		}
	}
}

// maxTransfer bounds one source or sink request, in bytes.
const maxTransfer = 1 << 40

// throughput serves source and sink requests.
func throughput(_ context.Context, c *conn) error {
	chunk := make([]byte, 64<<10)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	for {
		words, err := c.request()
		if err != nil {
			return err
		}
		if len(words) != 2 || words[0] != "source" && words[0] != "sink" {
			return c.refuse(fmt.Errorf("want: source <bytes> or sink <bytes>"))
		}
		size, err := number("bytes", words[1], 0, maxTransfer)
		if err != nil {
			return c.refuse(err)
		}
		if words[0] == "source" {
			err = source(c, size, chunk)
		} else {
			err = sink(c, c.r, size, chunk)
		}
		if err != nil {
			return err
		}
	}
}

func source(w io.Writer, size int64, chunk []byte) error {
	for size > 0 {
		n, err := w.Write(chunk[:min(size, int64(len(chunk)))])
		if err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

// sink reads size bytes and answers how long that took. What the line reader
// has buffered comes first; the rest is read past it in large pieces.
func sink(w io.Writer, r *bufio.Reader, size int64, chunk []byte) error {
	var begin time.Time
	for left := size; left > 0; {
		n, err := r.Read(chunk[:min(left, int64(len(chunk)))])
		if begin.IsZero() {
			begin = time.Now()
		}
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	var took time.Duration
	if !begin.IsZero() {
		took = time.Since(begin)
	}
	_, err := fmt.Fprintf(w, "ok %d %d\n", size, took.Nanoseconds())
	return err
}
