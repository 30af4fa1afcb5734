package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Event is something QEMU said unasked. The names and the shape of Data are
// those of QEMU's "QMP reference manual".
type Event struct {
	Name string
	// Data is the event's own object, or nil if it has none.
	Data json.RawMessage
	// Time is QEMU's clock at the event; zero if QEMU could not read it.
	Time time.Time
	// Lost counts the events discarded just before this one because nobody
	// read the channel. If it is not zero the reader's picture of the guest
	// may be stale: ask query-status.
	Lost uint64
}

// Error is QEMU's refusal of a command. The connection lives on.
type Error struct {
	Command string // the command refused
	Class   string // "GenericError", "CommandNotFound", "DeviceNotFound", …
	Desc    string // QEMU's own words, for people
}

func (e *Error) Error() string {
	return fmt.Sprintf("QEMU refused %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// Greeting is what QEMU says of itself when a client connects.
type Greeting struct {
	Version struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
			Micro int `json:"micro"`
		} `json:"qemu"`
		// Package names the builder, "Debian 1:7.2+dfsg-7+deb12u13" for one.
		Package string `json:"package"`
	} `json:"version"`
	Capabilities []string `json:"capabilities"`
}

// message is one line from QEMU: a greeting, a reply or an event. Nothing in
// it points into the line it was parsed from.
type message struct {
	greeting *Greeting
	event    *Event
	reply    *reply
}

// reply answers the command with the same id. Either refused is set, or
// result holds a JSON value.
type reply struct {
	id      uint64
	result  json.RawMessage
	refused *Error
}

// maxQuote bounds how much of a line that makes no sense an error repeats.
const maxQuote = 80

// parse reads one line, without its newline. Every error means that the two
// sides no longer understand each other: the connection has to be given up.
func parse(line []byte) (message, error) {
	var raw struct {
		Greeting  json.RawMessage `json:"QMP"`
		Return    json.RawMessage `json:"return"`
		Error     json.RawMessage `json:"error"`
		Event     json.RawMessage `json:"event"`
		ID        json.RawMessage `json:"id"`
		Data      json.RawMessage `json:"data"`
		Timestamp json.RawMessage `json:"timestamp"`
	}
	if err := json.Unmarshal(line, &raw); err != nil {
		return message{}, fmt.Errorf("not a QMP message: %w: %s", err, quote(line))
	}
	kinds := 0
	for _, part := range []json.RawMessage{raw.Greeting, raw.Return, raw.Error, raw.Event} {
		if part != nil {
			kinds++
		}
	}
	if kinds != 1 {
		return message{}, fmt.Errorf("a QMP message must be one of greeting, return, error and event, this is %d of them: %s", kinds, quote(line))
	}
	var m message
	var err error
	switch {
	case raw.Greeting != nil:
		m.greeting = new(Greeting)
		err = strict(raw.Greeting, m.greeting)
	case raw.Event != nil:
		m.event, err = parseEvent(raw.Event, raw.Data, raw.Timestamp)
	default:
		m.reply, err = parseReply(raw.ID, raw.Return, raw.Error)
	}
	if err != nil {
		return message{}, fmt.Errorf("%w: %s", err, quote(line))
	}
	return m, nil
}

func parseEvent(name, data, timestamp json.RawMessage) (*Event, error) {
	e := &Event{Data: data}
	if err := strict(name, &e.Name); err != nil || e.Name == "" {
		return nil, fmt.Errorf("event without a name: %w", orEmpty(err))
	}
	if timestamp == nil {
		return e, nil
	}
	var t struct{ Seconds, Microseconds int64 }
	if err := strict(timestamp, &t); err != nil {
		return nil, fmt.Errorf("timestamp of event %s: %w", quote([]byte(e.Name)), err)
	}
	// QEMU says -1 for both when it could not read its clock.
	if t.Seconds >= 0 && t.Microseconds >= 0 && t.Microseconds < 1e6 {
		e.Time = time.Unix(t.Seconds, t.Microseconds*1000)
	}
	return e, nil
}

func parseReply(id, result, refusal json.RawMessage) (*reply, error) {
	r := &reply{result: result}
	if refusal != nil {
		var e struct{ Class, Desc string }
		if err := strict(refusal, &e); err != nil {
			return nil, fmt.Errorf("error reply: %w", err)
		}
		r.refused = &Error{Class: e.Class, Desc: e.Desc}
	}
	if id == nil {
		// This is how QEMU answers bytes that it could not read as a command.
		if r.refused != nil {
			return nil, fmt.Errorf("error that answers no command: %s (%s)", r.refused.Desc, r.refused.Class)
		}
		return nil, errors.New("reply without an id")
	}
	if err := strict(id, &r.id); err != nil {
		return nil, fmt.Errorf("reply with a foreign id: %w", err)
	}
	return r, nil
}

// strict unmarshals a value that must be there: encoding/json takes null for
// "leave it alone".
func strict(value json.RawMessage, into any) error {
	if bytes.Equal(value, []byte("null")) {
		return errors.New("null where a value must be")
	}
	return json.Unmarshal(value, into)
}

func orEmpty(err error) error {
	if err == nil {
		return errors.New("empty string")
	}
	return err
}

func quote(line []byte) string {
	if len(line) > maxQuote {
		return fmt.Sprintf("%q… (%d bytes)", line[:maxQuote], len(line))
	}
	return fmt.Sprintf("%q", line)
}
