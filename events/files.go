package events

// This file is the directory: each file is named by the number of its first
// event, so that the names alone say where an event is, and what to remove.

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// file is what the writer does to one.
type file interface {
	io.Writer // at its end
	Truncate(size int64) error
	Sync() error
	Close() error
}

func openFile(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
}

// files is the directory of a record; "" has none.
type files struct{ dir string }

const suffix = ".jsonl"

func (f files) path(first uint64) string {
	return filepath.Join(f.dir, fmt.Sprintf("%016d", first)+suffix)
}

// names returns the first numbers of the files, ascending. Other files are
// nobody's business.
func (f files) names() ([]uint64, error) {
	if f.dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, fmt.Errorf("list the record of events: %w", err)
	}
	var all []uint64
	for _, e := range entries {
		name, ours := strings.CutSuffix(e.Name(), suffix)
		first, err := strconv.ParseUint(name, 10, 64)
		if ours && err == nil && first > 0 && first <= maxSeq && f.path(first) == filepath.Join(f.dir, e.Name()) {
			all = append(all, first)
		}
	}
	slices.Sort(all)
	return all, nil
}

// entry is an event of a file, and where its line ends.
type entry struct {
	Event
	end int64
}

// in yields the whole events of one file, in the order of their numbers, and
// passes over what is none. The error is of the file.
func (f files) in(first uint64) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		file, err := os.Open(f.path(first))
		if errors.Is(err, fs.ErrNotExist) {
			return // it has made room meanwhile
		}
		if err != nil {
			yield(entry{}, fmt.Errorf("read the record of events: %w", err))
			return
		}
		defer func() { _ = file.Close() }() // it was only read
		var at int64
		next := first
		r := bufio.NewReaderSize(file, MaxLine)
		for long := false; ; {
			line, err := r.ReadSlice('\n')
			at += int64(len(line))
			switch {
			case errors.Is(err, bufio.ErrBufferFull):
				long = true
				continue
			case errors.Is(err, io.EOF):
				return // what is left is being written, or was not written whole
			case err != nil:
				yield(entry{}, fmt.Errorf("read the record of events, %s: %w", file.Name(), err))
				return
			}
			e, err := Parse(line)
			if long || err != nil || e.Seq < next {
				long = false
				continue
			}
			next = e.Seq + 1
			if !yield(entry{e, at}, nil) {
				return
			}
		}
	}
}

// from yields what the files hold of numbers from seq on and below end.
func (f files) from(seq, end uint64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		names, err := f.names()
		if err != nil {
			yield(Event{}, err)
			return
		}
		for i, first := range names {
			if first >= end {
				return
			}
			if i+1 < len(names) && names[i+1] <= seq {
				continue // all of it is older
			}
			for e, err := range f.in(first) {
				switch {
				case err != nil:
					yield(Event{}, err)
					return
				case e.Seq < seq:
					continue
				case e.Seq >= end || !yield(e.Event, nil):
					return
				}
				seq = e.Seq + 1
			}
		}
	}
}
