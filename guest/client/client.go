// Package client is the other end of package service: it speaks to a guest's
// services and checks what they say. Each type works on a connection that the
// caller dialled, so that it may come from another network namespace, and
// closes it in the end.
package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Refused is an answer "error …" of the guest.
type Refused struct{ Request, Reason string }

func (r *Refused) Error() string {
	return fmt.Sprintf("guest refuses %q: %s", r.Request, r.Reason)
}

// line is a connection read by lines.
type line struct {
	conn net.Conn
	r    *bufio.Reader
}

func newLine(conn net.Conn) line { return line{conn, bufio.NewReaderSize(conn, 4096)} }

// during runs talk; when ctx ends before it, talk's reads and writes fail and
// the error is that of ctx. The connection is of no use after that.
func (l line) during(ctx context.Context, talk func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) })
	err := talk()
	if !stop() && err != nil {
		return errors.Join(ctx.Err(), err)
	}
	return err
}

// read returns the next line without its end.
func (l line) read() (string, error) {
	text, err := l.r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(string(text), "\n"), nil
}

// ask sends a request and returns the words of its answer, whose first one has
// to be want.
func (l line) ask(ctx context.Context, request, want string) ([]string, error) {
	var answer string
	err := l.during(ctx, func() error {
		_, err := fmt.Fprintf(l.conn, "%s\n", request)
		if err == nil {
			answer, err = l.read()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask the guest %q: %w", request, err)
	}
	if reason, refused := strings.CutPrefix(answer, "error "); refused {
		return nil, &Refused{request, reason}
	}
	words := strings.Fields(answer)
	if len(words) == 0 || words[0] != want {
		return nil, fmt.Errorf("ask the guest %q: answer %q does not begin with %q", request, answer, want)
	}
	return words[1:], nil
}

// Stream is a connection to the counter service.
type Stream struct {
	line
	boot string
	last uint64
}

// OpenStream asks for a number at each interval.
func OpenStream(ctx context.Context, conn net.Conn, every time.Duration) (*Stream, error) {
	s := &Stream{line: newLine(conn)}
	words, err := s.ask(ctx, "stream "+every.String(), "boot")
	if err != nil {
		return nil, err
	}
	if len(words) != 1 {
		return nil, fmt.Errorf("stream: the guest tells no boot id but %q", words)
	}
	s.boot = words[0]
	return s, nil
}

// Boot is the boot id of the guest that the stream began with.
func (s *Stream) Boot() string { return s.boot }

// Last is the number that Next returned last, 0 before the first.
func (s *Stream) Last() uint64 { return s.last }

// BrokenSequence says that a stream went on with another number than the next
// one: lines were lost (Got too large), repeated or taken back (too small).
type BrokenSequence struct{ Want, Got uint64 }

func (b *BrokenSequence) Error() string {
	return fmt.Sprintf("counter went on with %d instead of %d", b.Got, b.Want)
}

// Next waits for the next number and returns it. The error is a *BrokenSequence
// if it is not the one after the last.
func (s *Stream) Next(ctx context.Context) (uint64, error) {
	var text string
	err := s.during(ctx, func() (err error) {
		text, err = s.read()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("wait for number %d: %w", s.last+1, err)
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("wait for number %d: the guest says %q", s.last+1, text)
	}
	if n != s.last+1 {
		return 0, &BrokenSequence{Want: s.last + 1, Got: n}
	}
	s.last = n
	return n, nil
}

// Close ends the stream.
func (s *Stream) Close() error { return s.conn.Close() }

// Echo sends payload over conn, a connection to the echo service, and returns
// how long it took to come back.
func Echo(ctx context.Context, conn net.Conn, payload []byte) (time.Duration, error) {
	got := make([]byte, len(payload))
	begin := time.Now()
	err := newLine(conn).during(ctx, func() error {
		if _, err := conn.Write(payload); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, got)
		return err
	})
	took := time.Since(begin)
	if err != nil {
		return 0, fmt.Errorf("echo of %d bytes: %w", len(payload), err)
	}
	if !bytes.Equal(got, payload) {
		return 0, fmt.Errorf("echo of %d bytes: other bytes came back", len(payload))
	}
	return took, nil
}

// Source has the throughput service send size bytes and returns how long that
// took, the request included.
func Source(ctx context.Context, conn net.Conn, size int64) (time.Duration, error) {
	begin := time.Now()
	err := newLine(conn).during(ctx, func() error {
		if _, err := fmt.Fprintf(conn, "source %d\n", size); err != nil {
			return err
		}
		_, err := io.CopyN(io.Discard, conn, size)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("get %d bytes from the guest: %w", size, err)
	}
	return time.Since(begin), nil
}

// Sink sends size bytes to the throughput service and returns how long it took
// until the guest had them all.
func Sink(ctx context.Context, conn net.Conn, size int64) (time.Duration, error) {
	l := newLine(conn)
	chunk := make([]byte, 64<<10)
	begin := time.Now()
	var answer string
	err := l.during(ctx, func() error {
		if _, err := fmt.Fprintf(conn, "sink %d\n", size); err != nil {
			return err
		}
		for left := size; left > 0; left -= min(left, int64(len(chunk))) {
			if _, err := conn.Write(chunk[:min(left, int64(len(chunk)))]); err != nil {
				return err
			}
		}
		var err error
		answer, err = l.read()
		return err
	})
	took := time.Since(begin)
	if err != nil {
		return 0, fmt.Errorf("send %d bytes to the guest: %w", size, err)
	}
	if !strings.HasPrefix(answer, fmt.Sprintf("ok %d ", size)) {
		return 0, fmt.Errorf("send %d bytes to the guest: it says %q", size, answer)
	}
	return took, nil
}
