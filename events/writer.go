package events

// This file is the one goroutine that does I/O:
//
//	woken → what the ring has and the files have not → lines → file ── full ──> next file
//	                                                              └─ syncAfter ─> synced
//
// A write that fails is taken back and tried again, so a file never has half a
// line in its middle; meanwhile the ring keeps what it can.

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

const (
	// syncAfter is how long what was written may wait to be synced. The ownership
	// log, by which a takeover is granted, syncs to the same disk: a sync at once
	// would make it wait.
	syncAfter = 3 * time.Second
	// retryAfter is how long a disk that took nothing is left alone.
	retryAfter = 2 * time.Second
)

// writer writes what is new to the files.
type writer struct {
	l    *Log
	room int64 // bytes of a file
	keep int   // files

	names []uint64 // of the files, ascending; the last is written to
	file  file     // nil: the last is not open
	size  int64    // bytes of whole events in the last
	seq   uint64   // the last number that is in a file, or lost

	events   []Event
	lines    []byte
	unsynced bool
	failing  error // what was said to be wrong; nil: all is well
	lost     uint64
}

// resume finds where the record ends.
func (w *writer) resume() error {
	dir := w.l.files.dir
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make the directory of the record of events: %w", err)
	}
	var err error
	if w.names, err = w.l.files.names(); err != nil || len(w.names) == 0 {
		return err
	}
	last := w.names[len(w.names)-1]
	w.seq = last - 1
	for e, err := range w.l.files.in(last) {
		if err != nil {
			return err
		}
		w.seq, w.size = e.Seq, e.end
	}
	if err := os.Truncate(w.l.files.path(last), w.size); err != nil {
		return fmt.Errorf("cut off what was not written whole of the record of events: %w", err)
	}
	return nil
}

func (w *writer) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	set := false // the timer, to something that is to be done
	for {
		select {
		case <-w.l.wake:
			if w.failing == nil { // else its time will come
				w.tell(w.write())
			}
		case <-timer.C:
			set = false
			w.tell(w.settle())
		case <-w.l.done:
			w.l.closed = w.end()
			return
		}
		switch {
		case set:
		case w.failing != nil:
			set = true
			timer.Reset(retryAfter)
		case w.unsynced:
			set = true
			timer.Reset(syncAfter)
		}
	}
}

// write brings what the ring has, and the files have not, to the files.
func (w *writer) write() error {
	for {
		w.events = w.l.take(w.seq+1, w.events[:0])
		if len(w.events) == 0 {
			return nil
		}
		w.lost += w.events[0].Seq - (w.seq + 1)
		w.seq = w.events[0].Seq - 1
		w.lines = w.lines[:0]
		for i := range w.events {
			e := &w.events[i]
			before := len(w.lines)
			lines, err := appendLine(w.lines, e)
			if err != nil {
				w.l.cfg.Slog.Error("an event is not in the files", "err", err)
				continue
			}
			w.lines = lines
			full := w.size+int64(len(lines)) > w.room && w.size+int64(before) > 0
			if len(w.names) > 0 && !full {
				continue
			}
			line := lines[before:]
			if err := w.put(lines[:before], e.Seq-1); err != nil {
				return err
			}
			if err := w.begin(e.Seq); err != nil {
				return err
			}
			w.lines = append(w.lines[:0], line...)
		}
		if err := w.put(w.lines, w.events[len(w.events)-1].Seq); err != nil {
			return err
		}
	}
}

// put writes the lines of events up to number seq to the end of the last file.
func (w *writer) put(lines []byte, seq uint64) error {
	if len(lines) > 0 {
		if err := w.open(); err != nil {
			return err
		}
		if _, err := w.file.Write(lines); err != nil {
			// What it took of them goes when the file is opened again.
			return errors.Join(err, w.shut())
		}
		w.size += int64(len(lines))
		w.unsynced = true
	}
	w.seq = seq
	return nil
}

// open opens the last file behind its last whole event.
func (w *writer) open() error {
	if w.file != nil {
		return nil
	}
	f, err := w.l.cfg.open(w.l.files.path(w.names[len(w.names)-1]))
	if err != nil {
		return err
	}
	if err := f.Truncate(w.size); err != nil {
		return errors.Join(err, f.Close())
	}
	w.file = f
	return nil
}

// begin ends the last file and begins the next, which makes the oldest go.
func (w *writer) begin(first uint64) error {
	if err := errors.Join(w.sync(), w.shut()); err != nil {
		return err
	}
	w.names, w.size = append(w.names, first), 0
	for len(w.names) > w.keep {
		if err := os.Remove(w.l.files.path(w.names[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		w.names = w.names[1:]
	}
	return nil
}

// settle writes what is left, and makes sure that it stays.
func (w *writer) settle() error {
	if err := w.write(); err != nil {
		return err
	}
	return w.sync()
}

func (w *writer) sync() error {
	if !w.unsynced || w.file == nil {
		return nil
	}
	err := w.file.Sync()
	w.unsynced = err != nil
	return err
}

func (w *writer) shut() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// tell logs, once, that the disk takes nothing, and that it does again.
func (w *writer) tell(err error) {
	switch log := w.l.cfg.Slog; {
	case err != nil && w.failing == nil:
		log.Warn("events cannot be written, and are kept in memory as far as there is room: look after the disk", "dir", w.l.files.dir, "err", err)
	case err == nil && w.failing != nil:
		log.Info("events are written again", "lost", w.lost)
	}
	w.failing = err
}

// end is the last of what the writer does.
func (w *writer) end() error {
	if err := errors.Join(w.settle(), w.shut()); err != nil {
		return fmt.Errorf("the newest events are not on the disk: %w", err)
	}
	return nil
}
