package qemu

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// A place is one running machine's directory RunDir/vm-<id>, with its QMP
// socket and its record, and its memory file ImageDir/<id>.ram. The record is
// what a later process of ours adopts the machine by. It is removed last, so
// that nothing is ever left that no record names.

// role is what a machine is for.
type role string

const (
	roleStandby role = "standby" // has not run yet, or is starting: never adopted
	roleGuest   role = "guest"
)

// fillState says how far a lazily activated machine is.
type fillState string

const (
	fillDone    fillState = ""        // all of its memory is there
	fillMissing fillState = "missing" // some is known to its process only
	fillHoles   fillState = "holes"   // all is there, but it waits at holes for zeros
)

// record is the content of a place's file "record".
type record struct {
	Role    role            `json:"role"`
	Process identity        `json:"process"`
	Pages   uint64          `json:"pages,omitempty"`
	Spec    json.RawMessage `json:"spec,omitempty"`
	// Fill says what of main memory was supplied by the process that activated
	// the machine, and would be missing without it.
	Fill fillState `json:"fill,omitempty"`
	// Side says where the machine's side blocks lie inside the process.
	Side []uint64 `json:"side,omitempty"`
}

const maxRecord = 64 << 20

// place names the files of one machine.
type place struct {
	dir string // RunDir/vm-<id>
	ram string // ImageDir/<id>.ram
}

const placePrefix = "vm-"

// newPlace makes a place for a machine.
func newPlace(c *Config) (place, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails, see crypto/rand
	p := c.placeOf(placePrefix + hex.EncodeToString(id[:]))
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return place{}, err
	}
	return p, nil
}

func (c *Config) placeOf(dir string) place {
	return place{
		dir: filepath.Join(c.RunDir, dir),
		ram: filepath.Join(c.ImageDir, strings.TrimPrefix(dir, placePrefix)+".ram"),
	}
}

func (p place) socket() string { return filepath.Join(p.dir, "qmp") }

func (p place) save(r record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// Whole or not at all, but not synced: it need not survive a reboot, since
	// nothing it names does, and a takeover waits for it.
	path := filepath.Join(p.dir, "record")
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (p place) load() (record, error) {
	var r record
	path := filepath.Join(p.dir, "record")
	info, err := os.Stat(path)
	if err != nil {
		return r, err
	}
	if info.Size() > maxRecord {
		return r, fmt.Errorf("record %s has %d bytes, at most %d are allowed", path, info.Size(), maxRecord)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("record %s: %w", path, err)
	}
	return r, nil
}

// remove frees what the place holds, the memory first.
func (p place) remove() error {
	err := os.Remove(p.ram)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}

// places lists what former processes left of this guest.
func (c *Config) places() ([]place, error) {
	entries, err := os.ReadDir(c.RunDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found []place
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), placePrefix) {
			found = append(found, c.placeOf(e.Name()))
		}
	}
	return found, nil
}

// prepare makes the directories that machines are placed in.
func (c *Config) prepare(as account) error {
	// Root's, but to be passed through: QEMU opens its memory file by name and
	// binds its sockets in net.
	for _, dir := range []string{c.RunDir, c.ImageDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	if len(c.NICs) > 0 {
		if err := os.MkdirAll(c.netDir(), 0o700); err != nil {
			return err
		}
		if err := as.own(c.netDir()); err != nil {
			return err
		}
	}
	if len(c.Served) > 0 {
		if err := os.MkdirAll(c.diskDir(), 0o711); err != nil {
			return err
		}
	}
	for _, dir := range c.dirs() {
		if err := as.canPass(dir); err != nil {
			return fmt.Errorf("%w: chmod o+x it, or use another directory", err)
		}
	}
	return nil
}

// dirs lists where QEMU opens or makes something by its path.
func (c *Config) dirs() []string {
	dirs := []string{c.ImageDir}
	for _, n := range c.NICs {
		dirs = append(dirs, filepath.Dir(n.GuestSocket))
	}
	for _, d := range c.Served {
		dirs = append(dirs, filepath.Dir(d.Socket))
	}
	return dirs
}

// openConsole opens the console's file, nil for none. QEMU gets the descriptor,
// so that it need not be able to reach the file.
func (c *Config) openConsole() (*os.File, error) {
	if c.Console == "" {
		return nil, nil
	}
	f, err := os.OpenFile(c.Console, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	return f, nil
}
