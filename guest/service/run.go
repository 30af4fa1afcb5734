package service

// The control service's request "run": a workload whose lines go to the client.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"understudy/guest/workload"
)

// loads runs one workload at a time.
type loads struct {
	dir  string
	run  func(ctx context.Context, words []string, out io.Writer) error
	busy sync.Mutex
}

func (l *loads) handle(ctx context.Context, peer *conn, words []string) (string, error) {
	if err := workload.Check(words); err != nil {
		return "", err
	}
	if l.dir == "" || l.run == nil {
		return "", errors.New("this guest has no disk to work on")
	}
	if !l.busy.TryLock() {
		return "", errors.New("another workload is running")
	}
	defer l.busy.Unlock()
	out := &lines{to: peer}
	if err := l.run(ctx, words, out); err != nil {
		return "", err
	}
	if !strings.HasPrefix(out.last, "done ") {
		return "", fmt.Errorf("%s ended without saying that it is done", words[0])
	}
	return out.last, nil
}

// lines passes whole lines on, but for the newest: that may be the last.
type lines struct {
	to      io.Writer
	pending []byte
	last    string
	failed  bool
}

// Write takes text to be sent on. A client that has gone does not end the work.
func (l *lines) Write(p []byte) (int, error) {
	l.pending = append(l.pending, p...)
	for {
		line, rest, found := bytes.Cut(l.pending, []byte{'\n'})
		if !found && len(l.pending) < maxLine {
			return len(p), nil
		}
		if !found { // a line without an end goes in pieces
			line, rest = l.pending, nil
		}
		if l.last != "" && !l.failed {
			_, err := fmt.Fprintln(l.to, "out "+l.last)
			l.failed = err != nil
		}
		l.last, l.pending = string(line), rest
	}
}
