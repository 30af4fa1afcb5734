package events

// This file is one event as one line of JSON, and back.

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

const (
	// MaxLine is the longest line, in bytes, its newline included. No event of
	// ours comes near it, see clip.
	MaxLine = 16 << 10
	// maxText and maxWord bound what an event says, in bytes; JSON may make six
	// of each.
	maxText = 1024
	maxWord = 128
	// maxSeq is the largest number that every reader of JSON can hold.
	maxSeq = 1<<53 - 1
)

// Parse reads one line, with or without its newline. A field that it does not
// know is passed over, so is what is unknown of a Kind or a Reason.
func Parse(line []byte) (Event, error) {
	var e Event
	if len(line) > MaxLine {
		return Event{}, fmt.Errorf("event of %d bytes: want at most %d", len(line), MaxLine)
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return Event{}, fmt.Errorf("event: %w", err)
	}
	switch {
	case e.Seq == 0 || e.Seq > maxSeq:
		return Event{}, fmt.Errorf("event with the number %d: want 1 to %d", e.Seq, uint64(maxSeq))
	case !e.Kind.valid():
		return Event{}, fmt.Errorf("event %d: kind %q is no word of lower-case letters, digits and hyphens", e.Seq, e.Kind[:min(len(e.Kind), maxKind)])
	case e.At.IsZero():
		return Event{}, fmt.Errorf("event %d: it has no time", e.Seq)
	}
	return e, nil
}

var errLong = errors.New("it is too long")

// appendLine appends the event's line to buf.
func appendLine(buf []byte, e *Event) ([]byte, error) {
	line, err := json.Marshal(e)
	if err == nil && len(line) >= MaxLine {
		err = errLong
	}
	if err != nil {
		return buf, fmt.Errorf("event %d (%s) cannot be written: %w", e.Seq, e.Kind, err)
	}
	return append(append(buf, line...), '\n'), nil
}

// clip bounds what the caller may have made as long as it likes.
func (e *Event) clip() {
	e.Text = cut(e.Text, maxText)
	for _, s := range []*string{&e.Guest, &e.BootID, (*string)(&e.Host), (*string)(&e.Peer), (*string)(&e.Reason), &e.Change.From, &e.Change.To} {
		*s = cut(*s, maxWord)
	}
}

// cut returns the first bytes of s, whole characters only.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
