package status

// A client of the log of events: as a list, and as a stream that it follows over
// breaks, restarts of the daemon among them, by the events' numbers.

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// EventQuery says which events are wanted.
type EventQuery struct {
	// Since is the number after which they begin; nil: of a list the newest, of a
	// stream those to come.
	Since       *uint64
	Guest, Kind string // "" for all
	Limit       int    // of a list, at most 1000; 0: as many as the host likes
}

func (q EventQuery) path(of string) string {
	v := url.Values{}
	for name, value := range map[string]string{"guest": q.Guest, "kind": q.Kind} {
		if value != "" {
			v.Set(name, value)
		}
	}
	if q.Since != nil {
		v.Set("since", strconv.FormatUint(*q.Since, 10))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if len(v) == 0 {
		return of
	}
	return of + "?" + v.Encode()
}

// Events returns a list of events, the oldest first.
func (c *Client) Events(ctx context.Context, q EventQuery) (EventList, error) {
	var list EventList
	return list, c.Get(ctx, q.path("/api/v1/events"), &list)
}

const (
	followAgain = time.Second      // before a stream that broke is asked for again
	followQuiet = 3 * stillHere    // without a word is a break
	quietStatus = 60 * time.Second // between snapshots nobody looks at
)

// Follow calls each with every event, in order and none twice, until ctx ends, or
// each fails, or the host refuses. A stream that breaks is told to lost, which may
// be nil, and asked for again from the last event on. It fails at once only if
// the host does not answer the first time.
func (c *Client) Follow(ctx context.Context, q EventQuery, each func(seq uint64, event json.RawMessage) error, lost func(error)) error {
	q.Limit = 0
	if q.Since == nil { // from now on: which number that is has to outlive a break
		newest, err := c.Events(ctx, EventQuery{Limit: 1})
		if err != nil {
			return err
		}
		q.Since = &newest.Last
	}
	for since, first := *q.Since, true; ; first = false {
		q.Since = &since
		err := c.followOnce(ctx, q, func(seq uint64, event json.RawMessage) error {
			if seq <= since {
				return nil
			}
			since = seq
			return each(seq, event)
		})
		var refused *Refused
		var ended *eachError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &ended):
			return ended.error
		case errors.As(err, &refused) && refused.Status/100 == 4 && refused.Status != http.StatusTooManyRequests:
			return err
		case first && errors.Is(err, c.silent):
			return err
		}
		if lost != nil {
			lost(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followAgain):
		}
	}
}

// eachError is an error of who is told.
type eachError struct{ error }

var errQuiet = errors.New("the host has fallen silent")

// followOnce follows until the stream ends, which is an error.
func (c *Client) followOnce(ctx context.Context, q EventQuery, each func(seq uint64, event json.RawMessage) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(followQuiet, func() { cancel(errQuiet) })
	defer quiet.Stop()
	path := q.path("/api/v1/stream")
	path += "&every=" + strconv.FormatInt(quietStatus.Milliseconds(), 10) // there is a since before it
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err == nil {
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode/100 != 2 {
			return c.refusal(resp)
		}
		err = readEvents(resp.Body, func() { quiet.Reset(followQuiet) }, each)
	}
	if cause := context.Cause(ctx); errors.Is(cause, errQuiet) {
		return fmt.Errorf("%s: %w", c.socket, cause)
	}
	return err
}

// readEvents reads server-sent events to their end and calls each with those of
// the log, and alive at every line.
func readEvents(r io.Reader, alive func(), each func(seq uint64, event json.RawMessage) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), MaxBody)
	var kind, id, data string
	for lines.Scan() {
		alive()
		line := lines.Text()
		if line != "" {
			name, value, _ := strings.Cut(line, ":")
			value = strings.TrimPrefix(value, " ")
			switch name {
			case "event":
				kind = value
			case "id":
				id = value
			case "data":
				if data != "" {
					data += "\n"
				}
				if data += value; len(data) > MaxBody {
					return fmt.Errorf("an event of more than %d bytes", MaxBody)
				}
			}
			continue
		}
		if kind == "log" {
			seq, err := strconv.ParseUint(id, 10, 64)
			if err != nil || !json.Valid([]byte(data)) {
				return fmt.Errorf("an event that is none: id %.40q, data %.100q", id, data)
			}
			if err := each(seq, json.RawMessage(data)); err != nil {
				return &eachError{err}
			}
		}
		kind, id, data = "", "", ""
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("the stream of events broke off: %w", err)
	}
	return errors.New("the stream of events ended: the daemon goes down")
}
