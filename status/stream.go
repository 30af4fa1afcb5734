package status

// This file is the long operations, those on checkpoint files and bubbles. The request has a
// JSON body; the answer is a stream of JSON objects, one a line:
//
//	{"stage":"memory","done":4096,"total":65536}   as often as it is worth it
//	{"result":…} or {"error":"…"}                  once, the last
//
// A request that is refused at once is answered as any other, with a status code
// that is not 2xx. The operation ends with its client.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"understudy/host"
)

// Checkpoints is what the endpoint offers for checkpoint files (package host).
type Checkpoints interface {
	SaveCheckpoint(ctx context.Context, guest string, req host.SaveRequest, progress host.Progress) (host.SaveResult, error)
	RestoreCheckpoint(ctx context.Context, guest string, req host.RestoreRequest, progress host.Progress) (host.RestoreResult, error)
	VerifyCheckpoint(ctx context.Context, guest, file string, progress host.Progress) (host.VerifyFileResult, error)
	RemoveCheckpoint(ctx context.Context, guest, file string, keep bool) error
}

// FileRequest names a checkpoint file, for verify and remove.
type FileRequest struct {
	File string `json:"file"` // absolute
	// Keep: remove ends the file's pins only.
	Keep bool `json:"keep,omitempty"`
}

// FileRemoved is the result of remove.
type FileRemoved struct {
	File string `json:"file"`
	Kept bool   `json:"kept"`
}

// message is one line of a stream.
type message struct {
	Stage  string          `json:"stage,omitempty"`
	Done   uint64          `json:"done"`
	Total  uint64          `json:"total"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// progressEvery is the least time between two lines about one stage.
const progressEvery = 100 * time.Millisecond

func checkpointRoutes(ops Checkpoints) []route {
	return []route{
		{"POST /api/v1/guests/{guest}/checkpoint/save", Root, streamed(ops.SaveCheckpoint)},
		{"POST /api/v1/guests/{guest}/checkpoint/restore", Root, streamed(ops.RestoreCheckpoint)},
		{"POST /api/v1/guests/{guest}/checkpoint/verify", Root, streamed(
			func(ctx context.Context, guest string, r FileRequest, p host.Progress) (host.VerifyFileResult, error) {
				return ops.VerifyCheckpoint(ctx, guest, r.File, p)
			})},
		{"POST /api/v1/guests/{guest}/checkpoint/remove", Root, streamed(
			func(ctx context.Context, guest string, r FileRequest, _ host.Progress) (FileRemoved, error) {
				return FileRemoved{r.File, r.Keep}, ops.RemoveCheckpoint(ctx, guest, r.File, r.Keep)
			})},
	}
}

// streamed serves one operation.
func streamed[Q, R any](f func(ctx context.Context, guest string, request Q, p host.Progress) (R, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if err := decode(r, &q); err != nil {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("the request's body: %v", err))
			return
		}
		s := &streamer{w: w}
		v, err := f(r.Context(), r.PathValue("guest"), q, s.progress)
		s.end(v, err)
	}
}

// streamer writes an answer's lines.
type streamer struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	begun bool
	stage string
	last  time.Time
}

func (s *streamer) progress(stage string, done, total uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if stage == s.stage && done != total && now.Sub(s.last) < progressEvery {
		return
	}
	s.stage, s.last = stage, now
	s.line(message{Stage: stage, Done: done, Total: total})
}

// line writes one. The client may be gone; nobody else can be told.
func (s *streamer) line(v any) {
	if !s.begun {
		s.begun = true
		s.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	hurry(s.w)
	_ = json.NewEncoder(s.w).Encode(v)
	_ = http.NewResponseController(s.w).Flush()
}

// end answers with the outcome: in the stream, or in place of it.
func (s *streamer) end(v any, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.line(map[string]any{"result": v})
	case s.begun:
		s.line(map[string]string{"error": err.Error()})
	default:
		refuse(s.w, http.StatusConflict, err.Error())
	}
}

// Checkpoint asks for an operation on a checkpoint file: save, restore, verify,
// remove. progress, which may be nil, is told how far it is; the answer is
// decoded into result.
func (c *Client) Checkpoint(ctx context.Context, guest, operation string, request, result any, progress host.Progress) error {
	return c.streamFrom(ctx, "/api/v1/guests/"+url.PathEscape(guest)+"/checkpoint/"+operation, request, result, progress)
}

// streamFrom posts a request and follows its answer to the end.
func (c *Client) streamFrom(ctx context.Context, path string, request, result any, progress host.Progress) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	resp, err := c.send(ctx, http.MethodPost, path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return c.refusal(resp)
	}
	err = follow(resp.Body, result, progress)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", c.socket, ctx.Err())
	}
	var told toldError
	if errors.As(err, &told) {
		return err
	}
	return fmt.Errorf("%s: the answer to %s: %w", c.socket, path, err)
}

// toldError is an error in the daemon's words.
type toldError string

func (e toldError) Error() string { return string(e) }

// follow reads a stream to its end.
func follow(r io.Reader, result any, progress host.Progress) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), MaxBody)
	for lines.Scan() {
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return fmt.Errorf("no line of progress: %w", err)
		}
		switch {
		case m.Error != "":
			return toldError(m.Error)
		case m.Result != nil:
			if err := json.Unmarshal(m.Result, result); err != nil {
				return fmt.Errorf("its result: %w", err)
			}
			if lines.Scan() {
				return errors.New("something follows its result")
			}
			return lines.Err()
		case m.Stage == "" || m.Done > m.Total:
			return fmt.Errorf("progress that makes no sense: %.100q", lines.Bytes())
		case progress != nil:
			progress(m.Stage, m.Done, m.Total)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("it broke off: %w", err)
	}
	return errors.New("it broke off: the daemon has ended, or was killed; `understudy status` says what became of the guest")
}
