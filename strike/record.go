package strike

// A strike's record: a file that says, before anything is done, what will be and
// how to undo it. It is there exactly as long as something is left to undo. It
// holds the daemon's environment and is for its owner's eyes.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Record is all of a strike.
type Record struct {
	Struck
	// Boot is the boot of the machine in which the processes are.
	Boot string `json:"boot"`
	// Victims are struck (kill, freeze), in this order, the daemon first.
	Victims []Process `json:"victims,omitempty"`
	// Start is how the daemon is started again (kill); nil: somebody else does.
	Start *Start `json:"start,omitempty"`
	Cable *Cable `json:"cable,omitempty"` // is cut
}

// Process is one process of one boot.
type Process struct {
	PID int `json:"pid"`
	// Began is in clock ticks since the boot (proc_pid_stat(5), field 22).
	Began uint64 `json:"began"`
}

// Start is how a daemon was started.
type Start struct {
	Program string   `json:"program"`
	Args    []string `json:"args"` // the program's name first
	Env     []string `json:"env"`
	Dir     string   `json:"dir"`
}

// Cable is the TCP traffic that is cut: from the peers' addresses to this host's
// port, from the peers' ports to this host, and both the other way round.
type Cable struct {
	Port  uint16           `json:"port"`
	Peers []netip.AddrPort `json:"peers"`
}

const (
	maxRecord = 4 << 20 // bytes: arguments and environment have 2 MiB at most (execve(2))
	suffix    = ".json"
	// maxVictims bounds the processes of a strike: a daemon, and a guest's machine
	// or its standbys.
	maxVictims = 64
)

// Dir is where a host keeps its records.
func Dir(state string) string { return filepath.Join(state, "strikes") }

// fileOf is where a record is.
func fileOf(dir, id string) string { return filepath.Join(dir, id+suffix) }

// create writes a new record durably and returns its path. There must be no other.
func (r *Record) create(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("keep what a strike has to undo: %w", err)
	}
	switch others, err := List(dir); {
	case err != nil:
		return "", err
	case len(others) > 0:
		return "", fmt.Errorf("%w: strike %s (%s) is undone at %s", ErrBusy, others[0].ID, others[0].Kind, others[0].Undo.UTC().Format("15:04:05"))
	}
	if err := r.write(dir); err != nil {
		return "", fmt.Errorf("keep what a strike has to undo: %w", err)
	}
	return fileOf(dir, r.ID), nil
}

// write puts the record in its place, whole or not at all, and durably.
func (r *Record) write(dir string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), fileOf(dir, r.ID))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// remove says that nothing is left to undo.
func remove(dir, id string) error {
	if err := os.Remove(fileOf(dir, id)); err != nil {
		return err
	}
	return syncDir(dir)
}

// Read reads a record.
func Read(file string) (Record, error) {
	var r Record
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0) // a FIFO would wait for its writer
	if err != nil {
		return r, fmt.Errorf("the record of a strike: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err == nil && len(text) > maxRecord {
		err = fmt.Errorf("it has more than %d bytes", maxRecord)
	}
	if err == nil {
		err = r.parse(text)
	}
	if err == nil && filepath.Base(file) != r.ID+suffix {
		err = fmt.Errorf("it is of strike %.80q", r.ID)
	}
	if err != nil {
		return Record{}, fmt.Errorf("the record of a strike %s: %w", file, err)
	}
	return r, nil
}

// parse reads a record's text and checks all that will be acted upon.
func (r *Record) parse(text []byte) error {
	if err := json.Unmarshal(text, r); err != nil {
		return err
	}
	s := Spec{ID: r.ID, Kind: r.Kind, For: r.Undo.Sub(r.At)}
	if err := s.Check(); err != nil {
		return err
	}
	for _, p := range r.Victims {
		if p.PID < 2 {
			return fmt.Errorf("it names process %d", p.PID)
		}
	}
	if r.Kind != Cut && (len(r.Victims) == 0 || len(r.Victims) > maxVictims) {
		return fmt.Errorf("it names %d processes", len(r.Victims))
	}
	if r.Kind == Cut && (r.Cable == nil || len(r.Cable.Peers) == 0 || r.Cable.Port == 0) {
		return errors.New("it does not say what is cut")
	}
	if r.Start != nil && (r.Start.Program == "" || len(r.Start.Args) == 0) {
		return errors.New("it does not say how the daemon is started")
	}
	return nil
}

// maxRecords bounds how many are looked at; there is one at a time.
const maxRecords = 64

// List returns the records in dir, those that can be read, by ID. Of others, the
// error tells.
func List(dir string) ([]Record, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the records of strikes: %w", err)
	}
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool {
		return strings.HasPrefix(e.Name(), ".") || !strings.HasSuffix(e.Name(), suffix)
	})
	var all []Record
	var wrong error
	for _, e := range entries[:min(len(entries), maxRecords)] {
		r, err := Read(filepath.Join(dir, e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // undone meanwhile
		case err != nil:
			wrong = errors.Join(wrong, fmt.Errorf("%w: remove it once nothing is left to undo", err))
		default:
			all = append(all, r)
		}
	}
	return all, wrong
}
