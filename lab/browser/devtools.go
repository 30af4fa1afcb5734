package browser

// The DevTools protocol: JSON messages, each ended by a zero byte. Answers have
// the number of their question; everything else is an event of a session.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// maxMessage bounds one message, in bytes: a picture of a page is one.
const maxMessage = 64 << 20

// wire is the way to a browser.
type wire struct {
	in, out *os.File
	done    chan struct{} // the reader has ended

	mu      sync.Mutex
	last    int
	waiting map[int]chan answer
	hears   map[string]func(method string, params json.RawMessage) // of each session
	err     error                                                  // why there is nothing to be heard any more
}

type answer struct {
	result json.RawMessage
	err    error
}

var errClosed = errors.New("the browser has ended")

func newWire(in, out *os.File) *wire {
	w := &wire{in: in, out: out, done: make(chan struct{}), waiting: map[int]chan answer{}, hears: map[string]func(string, json.RawMessage){}}
	go func() {
		defer close(w.done)
		w.fail(w.read())
	}()
	return w
}

func (w *wire) close() {
	_ = w.out.Close() // nothing is waited for any more
	_ = w.in.Close()
	<-w.done
}

func (w *wire) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		err = errClosed
	}
	w.err = err
	for id, c := range w.waiting {
		delete(w.waiting, id)
		c <- answer{err: err}
	}
}

func (w *wire) read() error {
	r := bufio.NewReaderSize(w.in, 1<<20)
	var message bytes.Buffer
	for {
		part, err := r.ReadSlice(0)
		message.Write(part)
		switch {
		case errors.Is(err, bufio.ErrBufferFull) && message.Len() < maxMessage:
			continue
		case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("hear from the browser: %w", err)
		}
		if err := w.take(bytes.TrimSuffix(message.Bytes(), []byte{0})); err != nil {
			return err
		}
		message.Reset()
	}
}

func (w *wire) take(text []byte) error {
	var m struct {
		ID      int
		Session string `json:"sessionId"`
		Method  string
		Params  json.RawMessage
		Result  json.RawMessage
		Error   *struct{ Message, Data string }
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("the browser said %.100q: %w", text, err)
	}
	w.mu.Lock()
	hear := w.hears[m.Session]
	c := w.waiting[m.ID]
	delete(w.waiting, m.ID)
	w.mu.Unlock()
	switch {
	case m.ID == 0 && hear != nil:
		hear(m.Method, m.Params)
	case c != nil && m.Error != nil:
		c <- answer{err: fmt.Errorf("the browser refuses: %s %s", m.Error.Message, m.Error.Data)}
	case c != nil:
		c <- answer{result: m.Result}
	}
	return nil
}

// call asks for method and puts its result into result, if that is not nil.
func (w *wire) call(ctx context.Context, session, method string, params, result any) error {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return fmt.Errorf("%s: %w", method, w.err)
	}
	w.last++
	id, c := w.last, make(chan answer, 1)
	w.waiting[id] = c
	w.mu.Unlock()
	if params == nil {
		params = struct{}{}
	}
	text, err := json.Marshal(map[string]any{"id": id, "method": method, "params": params, "sessionId": session})
	if session == "" {
		text, err = json.Marshal(map[string]any{"id": id, "method": method, "params": params})
	}
	if err == nil {
		_, err = w.out.Write(append(text, 0))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case a := <-c:
		if a.err != nil {
			return fmt.Errorf("%s: %w", method, a.err)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(a.result, result)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	}
}

// hear has f called for each event of a session, by the reader: f must not wait.
func (w *wire) hear(session string, f func(method string, params json.RawMessage)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hears[session] = f
}
