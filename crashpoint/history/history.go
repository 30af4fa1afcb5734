// Package history is what daemons built for tests write down of their gates,
// and the checker of what they wrote.
//
//	gate, log, sessions ── Writer ──> one file of JSON lines for each host and guest
//	files of all hosts, frames captured on their cables ── Checker ──> breaches
//
// All hosts of such a test are on one machine, so that their times, all of
// CLOCK_BOOTTIME, can be compared.
package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"understudy/clock"
	"understudy/egress"
	"understudy/epoch"
	"understudy/ownership"
)

// What a line says, besides the gate's own notes (egress.What).
const (
	Born    = "born"    // a process begins; what was before it is over
	Log     = "log"     // the ownership log, as this host has learned it
	Renewed = "renewed" // a lease of Generation until Until
	Welcome = "welcome" // the backup's image stands at Image, Epoch
	Acked   = "acked"   // the backup has acknowledged Epoch
)

// Line is one line of a history.
type Line struct {
	At    clock.Instant `json:"at"`
	Host  string        `json:"host"`
	Guest string        `json:"guest"`
	What  string        `json:"what"`

	Gate     int           `json:"gate,omitempty"` // which network device
	Epoch    epoch.Number  `json:"epoch,omitempty"`
	Position uint64        `json:"position,omitempty"`
	Frames   int           `json:"frames,omitempty"`
	Until    clock.Instant `json:"until,omitempty"`

	Generation epoch.Generation  `json:"generation,omitempty"`
	Image      epoch.Incarnation `json:"image,omitzero"`
	Owner      ownership.HostID  `json:"owner,omitempty"`
	Phase      ownership.Phase   `json:"phase,omitempty"`
	InSync     bool              `json:"in_sync,omitempty"`
	Revision   uint64            `json:"revision,omitempty"`
}

// Writer appends lines to one file. A line is with the kernel before Write
// returns: it outlives a process that is killed.
type Writer struct {
	host, guest string
	clock       clock.Clock

	mu   sync.Mutex
	file *os.File
	line bytes.Buffer
	err  error
}

// Create opens the file of a host and guest, for one more process.
func Create(path, host, guest string, c clock.Clock) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("write a history: %w", err)
	}
	w := &Writer{host: host, guest: guest, clock: c, file: f}
	w.Write(Line{What: Born})
	return w, w.err
}

// Write appends a line, with the time of now.
func (w *Writer) Write(l Line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l.At, l.Host, l.Guest = w.clock.Now(), w.host, w.guest
	w.line.Reset()
	if err := json.NewEncoder(&w.line).Encode(l); err != nil {
		w.err = errors.Join(w.err, err)
		return
	}
	if _, err := w.file.Write(w.line.Bytes()); err != nil {
		w.err = errors.Join(w.err, err)
	}
}

// Gate returns a recorder for one of the guest's gates.
func (w *Writer) Gate(i int) egress.Recorder { return gate{w, i} }

type gate struct {
	*Writer
	index int
}

// Record implements egress.Recorder.
func (g gate) Record(n egress.Note) {
	g.Write(Line{What: string(n.What), Gate: g.index, Epoch: n.Epoch, Position: n.Position, Frames: n.Frames, Until: n.Until})
}

// Read reads a file. The last line of a process that was killed may be cut off.
func Read(path string) ([]Line, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read a history: %w", err)
	}
	lines, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("history %s: %w", path, err)
	}
	return lines, nil
}

// Parse reads lines.
func Parse(text []byte) ([]Line, error) {
	var lines []Line
	scan := bufio.NewScanner(bytes.NewReader(text))
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		var l Line
		if err := json.Unmarshal(scan.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("after %d lines: %w", len(lines), err)
		}
		lines = append(lines, l)
	}
	return lines, scan.Err()
}
